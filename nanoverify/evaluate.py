"""How well does a model solve, check and correct itself? Every metric of the paper, on held-out
questions.

    python -m nanoverify.evaluate --model out/rl                       # by level and family
    python -m nanoverify.evaluate --model out/rl --json                # one JSON object
    python -m nanoverify.evaluate --model out/rl --responses r.jsonl   # every graded response
    python -m nanoverify.evaluate --model out/rl --families both_sides shopping tickets
                                                  # transfer to families that no stage trains on

One response is sampled for each question, the same one in every run. What each metric counts is
said in `metrics`. A metric is None if there is nothing to count: a model that never verifies has no
verification accuracy.
"""
from nanoverify.support.start import run  # isort: skip  (before torch)

import itertools
import json
import re
from dataclasses import replace

from nanoverify.answers import grade
from nanoverify.problems import SOLVE_PROMPT, Problem, read_problems
from nanoverify.puzzles import FAMILIES, HELD_OUT, TRAINED, make_puzzles
from nanoverify.sampler import Sampling, generate
from nanoverify.support.files import write_jsonl
from nanoverify.support.flags import Parser, at_least_0, positive
from nanoverify.support.kernels import autocast
from nanoverify.trajectory import Trajectory, as_row, parse, well_formed
from nanoverify.verifier import agreement

EQUATION = re.compile(r"([(\d][\d ()+*/-]*) = (-?\d+)")


def respond(model, tokenizer, problems: list[Problem], sampling: Sampling,
            progress: str = "") -> list[list[Trajectory]]:
    """Sample responses to each question and parse them: [problem][sample].

    Each keeps the log-probs of its tokens.
    """
    prompts = [tokenizer.prompt(SOLVE_PROMPT.format(question=problem.question))
               for problem in problems]
    with autocast(model.lm_head.weight.device):
        samples = generate(model, prompts, sampling.with_tokenizer(tokenizer), progress)

    def parsed(problem, sample):
        trajectory = parse(problem, sample.ids, sample.finished, tokenizer)
        return replace(trajectory, logprobs=sample.logprobs)
    return [[parsed(problem, sample) for sample in row] for problem, row in zip(problems, samples)]


def share(hits) -> float | None:
    """Their mean; None if there are none."""
    hits = list(hits)
    return sum(hits) / len(hits) if hits else None


def metrics(trajectories: list[Trajectory]) -> dict:
    """All metrics of one group of responses. A verify is judged against the solve just before it.

    first_accuracy, final_accuracy  the first, the last solve is right
    verification_accuracy           verdict agrees with the rule, of all verifications
    error_recall                    wrong solves called incorrect, of wrong solves verified
    correct_precision               right solves, of solves called correct
    incorrect_to_correct            last solve right, of responses whose first is wrong
    correct_to_incorrect            last solve wrong, of responses whose first is right
    tpr, tnr                        right solves called correct, wrong ones incorrect; first checks
    trials                          mean number of solves
    repeats                         gives an answer called incorrect before, of later solves
    well_formed                     solve, verify, ..., end, and each move agrees with the verdict
    follows_verdict                 incorrect -> solve, correct -> end; of all verdicts
    within_2, within_4, within_8    accuracy if cut after the first 2, 4, 8 solves
    tokens_per_response, truncated  mean length; cut by the token limit
    """
    checks = [action for t in trajectories for action in t.verifies]
    wrong_first = [t for t in trajectories if not t.solves[0].right]
    right_first = [t for t in trajectories if t.solves[0].right]
    first_checks = [t.verifies[0] for t in trajectories if t.verifies]
    first = agreement([(check.verdict, check.right) for check in first_checks])
    return {
        "count": len(trajectories),
        "first_accuracy": share(t.solves[0].right for t in trajectories),
        "final_accuracy": share(t.solves[-1].right for t in trajectories),
        "verification_accuracy": share(check.verdict is check.right for check in checks),
        "error_recall": share(check.verdict is False for check in checks if not check.right),
        "correct_precision": share(check.right for check in checks if check.verdict is True),
        "incorrect_to_correct": share(t.solves[-1].right for t in wrong_first),
        "correct_to_incorrect": share(not t.solves[-1].right for t in right_first),
        "tpr": first["tpr"],
        "tnr": first["tnr"],
        "trials": share(len(t.solves) for t in trajectories),
        "repeats": share(itertools.chain(*map(repeated, trajectories))),
        "well_formed": share(well_formed(t) for t in trajectories),
        "follows_verdict": share(itertools.chain(*map(obeyed, trajectories))),
        **{f"within_{k}": share(t.solves[:k][-1].right for t in trajectories) for k in (2, 4, 8)},
        "tokens_per_response": share(len(t.ids) for t in trajectories),
        "truncated": share(not t.finished for t in trajectories),
    }


def obeyed(t: Trajectory) -> list[bool]:
    """For each verdict: whether the next move agrees with it. After the last action of a response
    that was cut there is no move.
    """
    moves = [action.kind for action in t.actions[1:]] + (["end"] if t.finished else [])
    return [move == ("end" if action.verdict else "solve")
            for action, move in zip(t.actions, moves) if action.verdict is not None]


def repeated(t: Trajectory) -> list[bool]:
    """For each solve after the first: whether the response has already called its answer
    incorrect.
    """
    hits, answer, rejected = [], None, set()
    for action in t.actions:
        if action.kind == "solve":
            if answer is not None:
                hits.append(action.answer in rejected)
            answer = action.answer
        elif action.verdict is False:
            rejected.add(answer)
    return hits


def by(trajectories: list[Trajectory], attribute: str) -> dict[str, dict]:
    """metrics() for each value of problem.level or problem.family."""
    groups = {}
    for t in trajectories:
        groups.setdefault(getattr(t.problem, attribute), []).append(t)
    groups.pop(None, None)
    return {str(value): metrics(groups[value]) for value in sorted(groups)}


def report(trajectories: list[Trajectory]) -> dict:
    """metrics() of all responses, and by level and family."""
    return {**metrics(trajectories), "by_level": by(trajectories, "level"),
            "by_family": by(trajectories, "family")}


COLUMNS = ("first_accuracy", "final_accuracy", "verification_accuracy", "error_recall",
           "correct_precision", "incorrect_to_correct", "correct_to_incorrect", "tpr", "tnr",
           "trials", "repeats", "well_formed", "follows_verdict", "tokens_per_response",
           "truncated")
WHOLE = ("tokens_per_response", "trained_tokens", "seconds")  # shown without decimals


def cell(name: str, value: float | None) -> str:
    """The value of a metric as text: 2.13, 1,234 or 56.7%."""
    if value is None:
        return "-"
    if name.startswith("trials"):
        return f"{value:.2f}"
    return f"{value:,.0f}" if name in WHOLE else f"{100 * value:.1f}%"


def table(columns: dict[str, dict], rows=COLUMNS) -> str:
    """One row for each metric, one column for each entry of {"base": metrics, "SFT": metrics}."""
    lines = [f"{'':22}" + "".join(f"{name:>16}" for name in columns)]
    for row in rows:
        cells = [f"{cell(row, values[row]):>16}" for values in columns.values()]
        lines.append(f"{row:22}" + "".join(cells))
    return "\n".join(lines)


def evaluate(model, tokenizer, problems: list[Problem], sampling: Sampling) -> list[Trajectory]:
    """The first response to each question."""
    return [row[0] for row in respond(model, tokenizer, problems, sampling, "evaluate")]


def correction(trajectories: list[Trajectory]) -> Trajectory | None:
    """The shortest response in which the model rejects two different wrong answers of its own and
    then gives the right one, and in which all equations hold. If there is none: in which some do
    not hold, or that rejects one.
    """
    corrected = [t for t in trajectories
                 if well_formed(t) and not t.solves[0].right and t.solves[-1].right]
    twice = [t for t in corrected if len({solve.answer for solve in t.solves}) == len(t.solves) > 2]
    candidates = twice or corrected
    sound = [t for t in candidates if all(equations_hold(action.text) for action in t.actions)]
    return min(sound or candidates, key=lambda t: len(t.ids), default=None)


def equations_hold(text: str) -> bool:
    """Whether each "4 * (2 + 1) = 12" in the text is true."""
    return all(grade(value, expression) for expression, value in EQUATION.findall(text))


def flags(argv):
    from nanoverify.support.stage import TEST_TEMPERATURE, add_model_flags
    parser = Parser(" ".join(__doc__.split("\n\n")[0].split()))
    add_model_flags(parser)
    parser.add_argument("--questions", nargs="+", metavar="FILE",
                        help="JSONL: GSM8K, MATH or plain (default: test puzzles)")
    parser.add_argument("--families", nargs="+", choices=tuple(FAMILIES), default=TRAINED,
                        metavar="NAME", help=f"of the puzzles; {', '.join(HELD_OUT)} are never "
                                             "trained on (default: all others)")
    parser.add_argument("--split", choices=("test", "valid"), default="test",
                        help="of the puzzles (default: test)")
    parser.add_argument("--skip-bad-lines", action="store_true",
                        help="leave out and count what cannot be used")
    parser.add_argument("--test-count", type=positive, default=1000,
                        help="most questions to ask (default: %(default)s)")
    parser.add_argument("--temperature", type=at_least_0, default=TEST_TEMPERATURE,
                        help="0 is greedy (default: %(default)s)")
    parser.add_argument("--json", action="store_true",
                        help="print one JSON object instead of tables")
    parser.add_argument("--responses", metavar="FILE",
                        help="write every graded response as a JSON line")
    return parser.parse_args(argv)


def main(argv=None):
    from nanoverify.support.stage import TEST_DRAW, bad_lines, fitting, load
    args = flags(argv)
    model, tokenizer = load(args)
    if args.questions:
        problems = read_problems(args.questions, bad_lines(args))[: args.test_count]
    else:
        problems = make_puzzles(args.split, args.test_count, TEST_DRAW, args.families, fewer=True)
    problems = fitting(args, problems)
    sampling = Sampling(args.max_new_tokens, args.temperature, seed=args.seed,
                        batch_size=args.batch_size)
    trajectories = evaluate(model, tokenizer, problems, sampling)
    result = report(trajectories)
    if args.responses:
        write_jsonl(args.responses, (as_row(t, tokenizer) for t in trajectories))
    if args.json:
        print(json.dumps(result))
        return
    print(table({"all": result}))
    for title, groups in (("level", result["by_level"]), ("family", result["by_family"])):
        print(f"\n{title:22}{'count':>8}{'first':>8}{'final':>8}{'verified':>10}{'trials':>8}")
        for name, values in groups.items():
            first, last, verified, trials = (cell(key, values[key]) for key in (
                "first_accuracy", "final_accuracy", "verification_accuracy", "trials"))
            print(f"{name:22}{values['count']:8}{first:>8}{last:>8}{verified:>10}{trials:>8}")


if __name__ == "__main__":
    run(main)
