"""How well does a model solve, check and correct itself? Every metric of the paper, on held-out questions.

    python -m nanoverify.evaluate --model out/rl                    # a table, by level and family
    python -m nanoverify.evaluate --model out/rl --json             # one JSON object
    python -m nanoverify.evaluate --model out/rl --responses r.jsonl   # every graded response
    python -m nanoverify.evaluate --model out/rl --families both_sides shopping tickets   # transfer: families no stage trains on

Greedy by default. Accuracies are shares of questions; the others are shares of verifications or responses as said in
`metrics`. None where nothing is counted (a model that never verifies has no verification accuracy).
"""
import argparse
import json
from dataclasses import replace

from nanoverify.files import run, write_jsonl
from nanoverify.kernels import autocast
from nanoverify.problems import SOLVE_PROMPT, Problem, read_problems
from nanoverify.puzzles import FAMILIES, HELD_OUT, TRAINED, make_puzzles
from nanoverify.sampler import generate
from nanoverify.trajectory import Trajectory, as_row, parse, well_formed
from nanoverify.verifier import agreement


def respond(model, tokenizer, problems: list[Problem], samples_per_prompt: int, max_new_tokens: int, temperature: float,
            seed: int = 0, batch_size: int = 512, progress: str = "") -> list[list[Trajectory]]:
    """Ask each question and parse what comes: [problem][sample]. Each response keeps the log-probs it was drawn with."""
    prompts = [tokenizer.prompt(SOLVE_PROMPT.format(question=problem.question)) for problem in problems]
    with autocast(model.lm_head.weight.device):
        samples = generate(model, prompts, samples_per_prompt, max_new_tokens, tokenizer.stop_ids, tokenizer.vocab_size,
                           temperature=temperature, seed=seed, batch_size=batch_size, progress=progress)
    return [[replace(parse(problem, sample.ids, sample.finished, tokenizer), logprobs=sample.logprobs) for sample in row]
            for problem, row in zip(problems, samples)]


def share(hits) -> float | None:
    hits = list(hits)
    return sum(hits) / len(hits) if hits else None


def metrics(trajectories: list[Trajectory]) -> dict:
    """All metrics of one group of responses. A verify is judged against the solve just before it.

    first_accuracy, final_accuracy      the first, the last solve is right
    verification_accuracy               verdict agrees with the rule, of all verifications (no verdict: disagrees)
    error_recall                        wrong solves called incorrect, of wrong solves verified
    correct_precision                   right solves, of solves called correct
    incorrect_to_correct                last solve right, of responses whose first is wrong
    correct_to_incorrect                last solve wrong, of responses whose first is right
    tpr, tnr                            first verifications alone: right solves called correct, wrong ones called incorrect
    trials                              mean number of solves
    repeats                             of solves after the first, those that give an answer called incorrect before
    well_formed                         solve, verify, ..., end, and the next move agrees with the verdict
    follows_verdict                     of all verifications with a verdict: incorrect -> next solve, correct -> end
    within_2, within_4, within_8        the last of the first 2, 4, 8 solves is right: accuracy if cut after so many
    tokens_per_response, truncated      mean length; share cut by the token limit
    """
    pairs = [(action.verdict, action.right) for t in trajectories for action in t.verifies]
    first = agreement([(t.verifies[0].verdict, t.verifies[0].right) for t in trajectories if t.verifies])
    moves = []  # does what follows a verify agree with its verdict? a cut response says nothing about its last one
    for t in trajectories:
        followers = [action.kind for action in t.actions[1:]] + (["end"] if t.finished else [])
        moves += [follower == ("end" if action.verdict else "solve")
                  for action, follower in zip(t.actions, followers) if action.verdict is not None]
    retries = []  # is it an answer that the response has called incorrect?
    for t in trajectories:
        answer, rejected = None, set()
        for action in t.actions:
            if action.kind == "solve":
                retries += [action.answer in rejected] * (answer is not None)
                answer = action.answer
            elif action.verdict is False:
                rejected.add(answer)
    return {
        "count": len(trajectories),
        "first_accuracy": share(t.solves[0].right for t in trajectories),
        "final_accuracy": share(t.solves[-1].right for t in trajectories),
        "verification_accuracy": share(said is right for said, right in pairs),
        "error_recall": share(said is False for said, right in pairs if not right),
        "correct_precision": share(right for said, right in pairs if said is True),
        "incorrect_to_correct": share(t.solves[-1].right for t in trajectories if not t.solves[0].right),
        "correct_to_incorrect": share(not t.solves[-1].right for t in trajectories if t.solves[0].right),
        "tpr": first["tpr"],
        "tnr": first["tnr"],
        "trials": share(len(t.solves) for t in trajectories),
        "repeats": share(retries),
        "well_formed": share(well_formed(t) for t in trajectories),
        "follows_verdict": share(moves),
        **{f"within_{k}": share(t.solves[:k][-1].right for t in trajectories) for k in (2, 4, 8)},
        "tokens_per_response": share(len(t.ids) for t in trajectories),
        "truncated": share(not t.finished for t in trajectories),
    }


def by(trajectories: list[Trajectory], attribute: str) -> dict[str, dict]:
    """metrics() for each value of problem.level or problem.family."""
    values = sorted({getattr(t.problem, attribute) for t in trajectories} - {None})
    return {str(value): metrics([t for t in trajectories if getattr(t.problem, attribute) == value]) for value in values}


def report(trajectories: list[Trajectory]) -> dict:
    return {**metrics(trajectories), "by_level": by(trajectories, "level"), "by_family": by(trajectories, "family")}


COLUMNS = ("first_accuracy", "final_accuracy", "verification_accuracy", "error_recall", "correct_precision", "incorrect_to_correct",
           "correct_to_incorrect", "tpr", "tnr", "trials", "repeats", "well_formed", "follows_verdict", "tokens_per_response",
           "truncated")


def cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if name.startswith("trials") else f"{value:,.0f}" if name in ("tokens_per_response", "trained_tokens", "seconds") else f"{100 * value:.1f}%"


def table(columns: dict[str, dict], rows=COLUMNS) -> str:
    """Metrics downwards, one column for each entry: {"base": metrics, "SFT": metrics}."""
    lines = [f"{'':22}" + "".join(f"{name:>16}" for name in columns)]
    lines += [f"{row:22}" + "".join(f"{cell(row, values[row]):>16}" for values in columns.values()) for row in rows]
    return "\n".join(lines)


def evaluate(model, tokenizer, problems: list[Problem], args) -> list[Trajectory]:
    """One greedy response for each question."""
    rows = respond(model, tokenizer, problems, 1, args.max_new_tokens, 0.0, args.seed, args.batch_size, "evaluate")
    return [row[0] for row in rows]


def correction(trajectories: list[Trajectory]) -> Trajectory | None:
    """The shortest response in which the model rejects two different wrong answers of its own and finds the right one;
    one, where no response has two."""
    found = [t for t in trajectories if well_formed(t) and not t.solves[0].right and t.solves[-1].right]
    twice = [t for t in found if len({solve.answer for solve in t.solves}) == len(t.solves) > 2]
    return min(twice or found, key=lambda t: len(t.ids), default=None)


def main(argv=None):
    from nanoverify.stage import TEST_DRAW, add_model_flags, bad_lines, fitting, load, positive
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_model_flags(parser)
    parser.add_argument("--questions", nargs="+", metavar="FILE", help="JSONL: GSM8K, MATH or plain (default: test puzzles)")
    parser.add_argument("--families", nargs="+", choices=tuple(FAMILIES), default=TRAINED, metavar="NAME",
                        help=f"of the puzzles; {', '.join(HELD_OUT)} are never trained on (default: all others)")
    parser.add_argument("--split", choices=("test", "valid"), default="test", help="of the puzzles (default: test)")
    parser.add_argument("--skip-bad-lines", action="store_true",
                        help="leave out and count what cannot be used")
    parser.add_argument("--test-count", type=positive, default=1000, help="at most so many questions (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--responses", metavar="FILE", help="write every graded response as a JSON line")
    args = parser.parse_args(argv)

    model, tokenizer = load(args)
    problems = (read_problems(args.questions, bad_lines(args))[: args.test_count] if args.questions
                else make_puzzles(args.split, args.test_count, TEST_DRAW, args.families, fewer=True))
    problems = fitting(args, problems)
    rows = respond(model, tokenizer, problems, 1, args.max_new_tokens, args.temperature, args.seed, args.batch_size, "evaluate")
    trajectories = [t for row in rows for t in row]
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
            cells = [cell(key, values[key]) for key in ("first_accuracy", "final_accuracy", "verification_accuracy", "trials")]
            print(f"{name:22}{values['count']:8}{cells[0]:>8}{cells[1]:>8}{cells[2]:>10}{cells[3]:>8}")


if __name__ == "__main__":
    run(main)
