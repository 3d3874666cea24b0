"""Stage 0: from a policy and questions to trial-and-error trajectories.

    1. answer    K samples for each question; the rule marks them, the share of wrong ones is the
                 question's difficulty, and the difficulty says how many attempts are chosen
    2. verify    a model verifies the chosen attempts; what the rule confirms is kept
    3. compose   attempts and verifications become one text: wrong attempts first, a right one last

(Numbers as in the README's method; 4 is in train_sft.py, 5 to 7 are in train_rl.py.)

Differs from the paper: the policy writes the verifications itself. The paper asks a larger model,
as --verifier-model does. Of the easy questions --keep-easy keeps a random part.

    python build_data.py                             # built-in puzzles and policy -> out/data
    python build_data.py --model DIR --questions gsm8k_train.jsonl    # your model, real questions
"""
from nanoverify.support.start import run  # isort: skip  (before torch)

import random
import shutil
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from nanoverify.answers import extract
from nanoverify.checkpoint import checkpoint_files, load_model
from nanoverify.evaluate import respond, share
from nanoverify.problems import Problem
from nanoverify.sampler import Sampling
from nanoverify.support.alarms import say_of_data
from nanoverify.support.files import InputError, output_folder, write_json, write_jsonl
from nanoverify.support.flags import above_0, at_least_0, from_0_to_1, positive
from nanoverify.support.stage import (
    add_model_flags,
    add_output_flags,
    add_question_flags,
    load,
    new_parser,
    parse_with_recipe,
    print_memory,
    print_time,
    prompt_check,
    train_problems,
)
from nanoverify.support.state import identity, parts, same_run
from nanoverify.tokenizer import Tokenizer
from nanoverify.trajectory import (
    Trajectory,
    as_row,
    attempts_for,
    choose_attempts,
    compose,
    loss_mask,
    parse,
    usable,
    well_formed,
)
from nanoverify.verifier import VERIFY_PROMPTS, Verification, agreement, verify

PAPER = {"samples": 5, "temperature": 0.7}
MEASURED = 500  # verifications that measure a style which is not in --styles
PART = 1000  # questions between two saves; each part has a seed of its own
SEEDS = 1_000_003  # between the first seeds of answers and of styles


def flags(argv):
    parser = new_parser(__doc__)
    add_output_flags(parser, "out/data")
    add_model_flags(parser)
    add_question_flags(parser)
    group = parser.add_argument_group("stage 0")
    add = group.add_argument
    add("--count", type=positive, default=4000, help="questions (default: %(default)s)")
    add("--samples", type=int, default=8, metavar="K",
        help="answers per question (default: %(default)s)")
    add("--temperature", type=above_0, default=1.0,
        help="of answers (default: %(default)s)")
    add("--verify-temperature", type=at_least_0, default=0.5,
        help="of verifications; 0 is greedy (default: %(default)s)")
    add("--verifier-model", metavar="DIR",
        help="model that writes the verifications (default: --model)")
    add("--verifications", type=positive, default=1,
        help="tries per answer and style (default: %(default)s)")
    add("--styles", nargs="+", choices=tuple(VERIFY_PROMPTS), default=["confirmative"],
        help="styles that go into the trajectories; all are measured (default: %(default)s)")
    add("--attempts", type=int, default=4, metavar="N",
        help="of the longest trajectories, for the hardest questions (default: %(default)s)")
    add("--keep-easy", type=from_0_to_1, default=0.1,
        help="share kept of questions never answered wrong; paper's code: 0.24 "
             "(default: %(default)s)")
    args = parse_with_recipe(parser, argv, PAPER)
    if args.samples < 2:
        raise InputError(f"--samples {args.samples}: "
                         "difficulty needs at least 2 answers per question")
    if args.attempts < 2:
        raise InputError(f"--attempts {args.attempts}: a correction needs at least 2")
    return args


@dataclass
class Attempt:
    """One solution, and what was written about it."""
    text: str
    right: bool
    checks: list[Verification] = field(default_factory=list)  # those that the rule confirms


@dataclass
class Draft:
    """A trajectory in the making."""
    problem: Problem
    difficulty: float  # share of wrong answers among the samples
    attempts: list[Attempt]  # wrong ones first, a right one last


# ---- 1. answer and choose ----------------------------------------------------------------------

def answer(folder: Path, model, tokenizer, problems: list[Problem],
           sampling: Sampling) -> list[list[Trajectory]]:
    """Answers to each question, marked by the rule. Finished parts are kept in `folder`."""
    def work(number, part):
        own = replace(sampling, seed=sampling.seed + number)
        rows = respond(model, tokenizer, part, own, "answer")
        return [[(t.ids, t.finished) for t in row] for row in rows]

    rows = parts(folder, "answers", problems, PART, work)
    return [[parse(problem, ids, finished, tokenizer) for ids, finished in row]
            for problem, row in zip(problems, rows)]


def choose(answers: list[list[Trajectory]], longest: int, keep_easy: float, rng,
           dropped: Counter) -> list[Draft]:
    """The attempts of each trajectory, from one answer up to `longest` by difficulty."""
    drafts = []
    for row in answers:
        difficulty = share(not t.solves[-1].right for t in row)
        whole = [t for t in row if t.finished and len(t.actions) == 1 and t.actions[0].answer]
        solves = [t.actions[0] for t in whole]
        texts = choose_attempts([solve.text for solve in solves], [solve.right for solve in solves],
                                attempts_for(difficulty, longest), rng)
        if not texts:
            dropped["no right answer among the samples"] += 1
        elif difficulty == 0 and rng.random() > keep_easy:
            dropped["easy, thinned by --keep-easy"] += 1
        else:
            last = len(texts) - 1
            attempts = [Attempt(text, right=(j == last)) for j, text in enumerate(texts)]
            drafts.append(Draft(row[0].problem, difficulty, attempts))
    return drafts


# ---- 2. verify ---------------------------------------------------------------------------------

def claims_of(drafts: list[Draft], misfit) -> list[tuple[str, Attempt]]:
    """(question, attempt) to verify. misfit(question, answer): why a prompt is too long, or ''.

    A sampled answer can be far longer than the gold one; such an attempt is not verified.
    """
    pairs = [(draft.problem.question, attempt) for draft in drafts for attempt in draft.attempts]
    return [(question, attempt) for question, attempt in pairs
            if not misfit(question, extract(attempt.text))]


def verify_in_style(folder: Path, judge, tokenizer, claims, style: str,
                    sampling: Sampling) -> list[list[Verification]]:
    """Verifications of each claim. Finished parts are kept in `folder`."""
    def work(number, part):
        own = replace(sampling, seed=sampling.seed + number)
        rows = verify(judge, tokenizer, part, style, own, style)
        return [[(v.text, v.verdict, v.finished) for v in row] for row in rows]

    pairs = [(question, extract(attempt.text)) for question, attempt in claims]
    rows = parts(folder, style, pairs, 4 * PART, work)
    return [[Verification(*v) for v in row] for row in rows]


def verify_all(folder: Path, judge, tokenizer, claims, styles: list[str],
               sampling: Sampling) -> dict[str, dict]:
    """Verify in every style, and keep what the rule confirms of `styles`. -> agreement by style."""
    agreements = {}
    for number, style in enumerate(VERIFY_PROMPTS, 1):
        wanted = style in styles
        asked = claims if wanted else claims[:MEASURED]
        own = replace(sampling, seed=sampling.seed + number * SEEDS)
        rows = verify_in_style(folder, judge, tokenizer, asked, style, own)
        verdicts = []
        for (_, attempt), row in zip(asked, rows):
            verdicts += [(v.verdict, attempt.right) for v in row]
            if wanted:
                attempt.checks += [v for v in row if usable(v, attempt.right)]
        agreements[style] = agreement(verdicts)
    return agreements


# ---- 3. compose --------------------------------------------------------------------------------

def compose_rows(drafts: list[Draft], tokenizer, rng, dropped: Counter) -> list[dict]:
    """Lines of trajectories.jsonl, in random order."""
    rows = []
    for draft in drafts:
        attempts = [attempt for attempt in draft.attempts if attempt.checks]
        if not draft.attempts[-1].checks:
            dropped["no verification of the right answer was kept"] += 1
            continue
        unchecked = len(draft.attempts) - len(attempts)
        dropped["wrong attempts without a kept verification"] += unchecked
        text = compose([attempt.text for attempt in attempts],
                       [rng.choice(attempt.checks) for attempt in attempts])
        ids = tokenizer.encode(text) + [tokenizer.end_id]
        trajectory = parse(draft.problem, ids, True, tokenizer)
        if not well_formed(trajectory):
            dropped["not well-formed after composing"] += 1
            continue
        rows.append({**trained_row(trajectory, tokenizer), "difficulty": draft.difficulty})
    rng.shuffle(rows)
    return rows


def trained_row(trajectory: Trajectory, tokenizer) -> dict:
    """`as_row`, and for each action whether SFT learns it."""
    row, mask = as_row(trajectory, tokenizer), loss_mask(trajectory)
    for action in row["actions"]:
        action["trained"] = bool(mask[action["start"]])
    return row


# ---- save and report ---------------------------------------------------------------------------

def statistics_of(answers: list[list[Trajectory]], rows: list[dict], agreements: dict,
                  dropped: Counter) -> dict:
    """The content of statistics.json."""
    wrong = Counter(sum(not t.solves[-1].right for t in row) for row in answers)
    solves = [[action for action in row["actions"] if action["kind"] == "solve"] for row in rows]
    attempts = Counter(map(len, solves))
    return {
        "questions": len(answers),
        "trajectories": len(rows),
        "first_accuracy": share(t.solves[-1].right for row in answers for t in row),
        "wrong_answers_histogram": {w: wrong[w] for w in range(len(answers[0]) + 1)},
        "verifier": agreements,
        "attempts": dict(sorted(attempts.items())),
        "dropped": dict(dropped),
    }


def print_report(statistics: dict, samples: int):
    s = statistics
    print(f"{s['questions']} questions, {samples} answers each, "
          f"{100 * s['first_accuracy']:.1f}% right")
    wrong = s["wrong_answers_histogram"].items()
    print("difficulty    " + "  ".join(f"{w} wrong: {n}" for w, n in wrong))
    for style, values in s["verifier"].items():
        shown = {key: "-" if values[key] is None else f"{100 * values[key]:.1f}%"
                 for key in ("accuracy", "tpr", "tnr")}
        cells = "  ".join(f"{key} {text}" for key, text in shown.items())
        print(f"{style:16}  {cells}  of {values['count']} verifications")
    attempts = "  ".join(f"{k}: {n}" for k, n in s["attempts"].items())
    print(f"{s['trajectories']} trajectories; attempts: {attempts}")
    reasons = "; ".join(f"{n} {why}" for why, n in s["dropped"].items() if n)
    print(f"dropped: {reasons or 'nothing'}")


def load_judge(name: str, device: str):
    return load_model(name, device), Tokenizer.load(name)


def main(argv=None):
    args = flags(argv)
    print_memory(args)
    model, tokenizer = load(args)
    problems = train_problems(args, args.count)
    print(f"{len(problems)} questions x {args.samples} answers; at most {args.attempts} of each "
          f"are verified, {args.verifications} times in each style")
    checks = args.attempts * args.verifications * len(args.styles)
    print_time(model, args, tokenizer.vocab_size, len(problems) * (args.samples + checks))
    answering = Sampling(args.max_new_tokens, args.temperature, args.samples,
                         seed=3 * args.seed * SEEDS, batch_size=args.batch_size)
    checking = replace(answering, temperature=args.verify_temperature, samples=args.verifications)
    files = {*checkpoint_files(args.model), *checkpoint_files(args.verifier_model or args.model)}
    rng, dropped = random.Random(args.seed), Counter()
    with output_folder(args.out, args.resume, args.overwrite) as folder:
        state = folder / "state"
        same_run(state, identity(args, *files), args.allow_changes)
        # 1. answer each question several times, and choose attempts by its difficulty
        answers = answer(state, model, tokenizer, problems, answering)
        drafts = choose(answers, args.attempts, args.keep_easy, rng, dropped)
        # 2. a model verifies the attempts; the rule says which verifications are kept
        judge, its_tokenizer = model, tokenizer
        if args.verifier_model:
            judge, its_tokenizer = load_judge(args.verifier_model, args.device)
        claims = claims_of(drafts, prompt_check(args))
        agreements = verify_all(state, judge, its_tokenizer, claims, args.styles, checking)
        # 3. compose
        rows = compose_rows(drafts, tokenizer, rng, dropped)
        if not rows:
            shutil.rmtree(state)  # other flags are needed
            raise InputError(f"no trajectory could be composed: {dict(dropped)}; try more "
                             "--samples, more --count or another --model")
        statistics = statistics_of(answers, rows, agreements, dropped)
        samples = (as_row(t, tokenizer) for row in answers for t in row)
        write_jsonl(folder / "trajectories.jsonl", rows)
        write_jsonl(folder / "samples.jsonl", samples)
        write_json(folder / "statistics.json", statistics)
        write_json(folder / "arguments.json", vars(args))
    shutil.rmtree(Path(args.out) / "state")  # the files above hold all of it
    print_report(statistics, args.samples)
    say_of_data(statistics)
    print(f"-> {args.out}/trajectories.jsonl, samples.jsonl, statistics.json")


if __name__ == "__main__":
    run(main)
