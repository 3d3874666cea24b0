"""The paper's findings on a laptop: the whole pipeline for several seeds, with the paper's variants
and with controls that it lacks.

    python -m nanoverify.study                             # every arm -> results/study.csv
    python -m nanoverify.study --arms main --seeds 0 1 2   # the three scripts only
    python -m nanoverify.findings results/study.csv        # its tables and verdicts

Arms. `main` is the three scripts with their defaults; its rows are base, SFT and both. The others
start from the data or from the SFT model of main with the same seed.

    outcome, process    RL with one of the two rewards
    gae                 GAE and a value head instead of leave-one-out and contexts
    no-kl               without the KL to the SFT model
    filter              without questions that are always or never solved
    offline             sampled once; questions of which 10 to 70% are right
    plain-outcome, plain-process     as in the paper, except learning rate, steps, questions a step
    weak                stage 1 stopped after 150 steps, when one check in six is still wrong;
                        weak-outcome, weak-process: RL from there
    problem-solving, both-styles     SFT on trajectories with verifications of this style, of both
    gold                SFT on the puzzles' own solutions; correct-only: on the base's right ones;
                        as many as there are trajectories
  controls:
    majority            the base's most frequent answer; it samples as many tokens as main's RL
    best-of-n           its first answer that its own check accepts; the same number of tokens, with
                        those of the checks
    no-sft              RL from the base
    shuffled            RL with randomly permuted rewards: nothing may rise
    lr0                 5 steps of RL with learning rate 0: nothing may move

An arm with an arguments.json in its folder is not run again. A row is written as soon as it is
known; rows of other arms and seeds stay. `seconds` are those of the stage that made the row (base:
stage 0), and depend on the other load of the machine.
"""
import csv
import importlib
import random
import subprocess
import sys
import time
from pathlib import Path

from nanoverify.checkpoint import load_model
from nanoverify.evaluate import COLUMNS, evaluate, metrics, respond, share
from nanoverify.lessons import next_trial, solve_text
from nanoverify.puzzles import HELD_OUT, LEVELS, make_puzzles, puzzles_with_numbers
from nanoverify.sampler import Sampling
from nanoverify.study.arms import ARMS
from nanoverify.support.files import (
    InputError,
    output_folder,
    read_json,
    read_jsonl,
    run,
    write_json,
    write_jsonl,
    writing,
)
from nanoverify.support.flags import Parser
from nanoverify.support.stage import POLICY, TEST_DRAW, TEST_TEMPERATURE
from nanoverify.tokenizer import Tokenizer
from nanoverify.verifier import verify

PAPER = ["--plain", "--beta", 0.05, "--temperature", 0.7, "--samples", 4]
VARIANTS = {  # flags of RL from main's SFT model; weak-...: from that of arm weak
    "outcome": ["--reward", "outcome"],
    "process": ["--reward", "process"],
    "weak-outcome": ["--reward", "outcome"],
    "weak-process": ["--reward", "process"],
    "gae": ["--advantage", "gae"],
    "offline": ["--beta", 0.1],
    "no-sft": ["--model", POLICY],
    "shuffled": [],
    "lr0": ["--lr", 0, "--steps", 5],
    "no-kl": ["--beta", 0],
    "filter": [],
    "plain-outcome": ["--reward", "outcome", *PAPER],
    "plain-process": ["--reward", "process", *PAPER]}
STYLES = {"problem-solving": ["problem-solving"],
          "both-styles": ["problem-solving", "confirmative"]}
FIVE_SEEDS = ("main", "outcome", "process")
THREE_SEEDS = ("weak", "weak-process", "weak-outcome", "problem-solving", "both-styles", "gold",
               "correct-only", "gae", "offline", "plain-outcome", "plain-process", "majority",
               "best-of-n", "no-sft", "shuffled", "lr0")
SEEDS = {  # {arm: number of seeds}, in the order of the table
    **dict.fromkeys(FIVE_SEEDS, 5), **dict.fromkeys(THREE_SEEDS, 3),
    **dict.fromkeys(("no-kl", "filter"), 1)}
SOLVE_TOKENS, CHECK_TOKENS = 96, 128  # longest answer and longest check of the base
LONG = 900  # tokens of a response with many attempts; the context of the shipped policy has room
ALLOWED = (1, 2, 4, 8, 16)  # attempts after which such a response is cut
SHORT = {  # of the unseen families: {name in the table: name in the evaluation}
    "first": "first_accuracy", "final": "final_accuracy", "VA": "verification_accuracy"}
FAILURES = ("failed_missed", "failed_rejected", "failed_otherwise")
HEADER = ("arm", "seed", *COLUMNS, "always_correct", *FAILURES, "trained_tokens", "seconds",
          *(f"{key}_level_{level}" for key in COLUMNS for level in LEVELS),
          *(f"{short}_{family}" for family in HELD_OUT for short in SHORT),
          *(f"final_within_{k}" for k in ALLOWED))


def stage(script: str, out: Path, *flags, arm: str = ""):
    """Run one script, or resume it, unless its output is complete. The wall-clock seconds of this
    call are saved in the output. InputError: the output was made with other flags.

    arm: the variant of train_rl.py in arms.py that is run.
    """
    flags = ["--out", str(out), *map(str, flags)]
    if (out / "arguments.json").exists():
        refuse_other_flags(out, vars(importlib.import_module(script).flags(flags)))
        return
    began, begun = time.time(), out.with_name(out.name + ".part").exists()
    command = ["-m", "nanoverify.study.arms", arm] if arm else [f"{script}.py"]
    subprocess.run([sys.executable, *command, *flags, *["--resume"] * begun], check=True)
    write_json(out / "seconds.json", {"seconds": round(time.time() - began, 1)})


def refuse_other_flags(out: Path, wanted: dict):
    """InputError if the finished output `out` was made with other flags than `wanted`."""
    def plain(value):  # the study's folder may have been moved
        return Path(value).parts[-2:] if isinstance(value, str) else value
    saved = read_json(out / "arguments.json")
    # a run without --micro-tokens saves the number that it chose
    free = {"out", "resume", "overwrite", "allow_changes", "device", "micro_tokens"}
    for key in sorted(wanted.keys() - free):
        if plain(saved.get(key)) != plain(wanted[key]):
            raise InputError(f"{out}: was made with {key} {saved.get(key)}, not {wanted[key]}; "
                             "remove it, and what was made from it")


# ---- data of the arms that learn from solutions only ---------------------------------------------

def correct_only(data: Path, out: Path, seed: int):
    """As many right solutions of the base as there are trajectories. Each question gives one
    before any question gives a second one.
    """
    count = sum(1 for _ in read_jsonl(data / "trajectories.jsonl"))
    rights = [row for _, row in read_jsonl(data / "samples.jsonl")
              if row["actions"][-1]["right"] and row["finished"]]
    random.Random(seed).shuffle(rights)
    seen, first, more = set(), [], []
    for row in rights:
        (more if row["id"] in seen else first).append(row)
        seen.add(row["id"])
    write_solutions(out, (first + more)[:count])


def gold(data: Path, out: Path):
    """The puzzles' own solutions to the questions of the trajectories."""
    arguments = read_json(data / "arguments.json")
    puzzles = puzzles_with_numbers("train", arguments["count"], arguments["seed"])
    numbers = {problem.id: numbers for numbers, problem in puzzles}

    def solution(row):
        family, n = row["family"], numbers[row["id"]]
        return solve_text(family, n, n["x"], next_trial(random.Random(row["id"]), family, n, []))
    write_solutions(out, [{**row, "response": solution(row)}
                          for _, row in read_jsonl(data / "trajectories.jsonl")])


def write_solutions(out: Path, rows: list[dict]):
    with output_folder(out) as folder:
        write_jsonl(folder / "trajectories.jsonl", rows)
        write_json(folder / "arguments.json", {"rows": len(rows)})


# ---- answers chosen among samples of the base; nothing is trained --------------------------------

def majority(main: Path, seed: int) -> dict:
    """The base's most frequent answer, on a tie the earliest. RL's tokens decide the number of
    samples.
    """
    problems, columns = evaluated(main)
    tokens = columns["RL"]["tokens_per_response"] / columns["base"]["tokens_per_response"]
    rows = sampled(problems, max(round(tokens), 1), seed)
    chosen = [most_frequent([t.solves[-1].answer for t in row]) for row in rows]
    return choice_row(rows, chosen, [sum(len(t.ids) for t in row) for row in rows])


def most_frequent(answers: list[str]) -> int:
    """The place of the first of the most frequent answers; no answer does not count."""
    counts = [answers.count(answer) if answer else 0 for answer in answers]
    return counts.index(max(counts))


def best_of_n(main: Path, seed: int) -> dict:
    """The first of the base's samples that its own confirmative check calls correct; if there is
    none, the first sample. RL's tokens pay for samples and checks.
    """
    problems, columns = evaluated(main)
    tokenizer, base = Tokenizer.load(POLICY), load_model(POLICY, "cpu")

    def checked(rows):
        claims = [(t.problem.question, t.solves[-1].answer) for row in rows for t in row]
        sampling = Sampling(CHECK_TOKENS, TEST_TEMPERATURE)
        rows = verify(base, tokenizer, claims, "confirmative", sampling)
        return [row[0] for row in rows]

    def tokens_of(t, check):
        return len(t.ids) + len(tokenizer.encode(check.text))

    # 1. the tokens of one sample with its check
    pilot = sampled(problems[:100], 1, seed)
    spent = [tokens_of(row[0], check) for row, check in zip(pilot, checked(pilot))]
    count = max(round(columns["RL"]["tokens_per_response"] / share(spent)), 1)

    # 2. the choice
    rows = sampled(problems, count, seed)
    checks = iter(checked(rows))
    chosen, tokens = [], []
    for row in rows:
        its_checks = [next(checks) for _ in row]
        verdicts = [check.verdict is True for check in its_checks]
        chosen.append(verdicts.index(True) if any(verdicts) else 0)
        tokens.append(sum(map(tokens_of, row, its_checks)))
    return choice_row(rows, chosen, tokens)


def evaluated(main: Path) -> tuple[list, dict]:
    """The questions that a main run was evaluated on, and its evaluations."""
    saved = read_json(main / "evaluation.json")
    problems = make_puzzles("test", saved["asked"]["test_count"], TEST_DRAW, fewer=True)
    return problems, saved["columns"]


def sampled(problems: list, count: int, seed: int) -> list:
    """`count` answers of the base to each question."""
    sampling = Sampling(SOLVE_TOKENS, TEST_TEMPERATURE, samples=count, seed=seed)
    return respond(load_model(POLICY, "cpu"), Tokenizer.load(POLICY), problems, sampling)


def choice_row(rows: list, chosen: list[int], tokens: list[int]) -> dict:
    """first_accuracy: of the first sample; final_accuracy: of the chosen one; also by level."""
    def accuracies(level=None):
        pairs = [(row[0], row[i]) for row, i in zip(rows, chosen)
                 if level in (None, row[0].problem.level)]
        return {"first_accuracy": share(first.solves[0].right for first, _ in pairs),
                "final_accuracy": share(choice.solves[-1].right for _, choice in pairs)}
    by_level = {str(level): accuracies(level) for level in LEVELS}
    return {**accuracies(), "tokens_per_response": share(tokens), "by_level": by_level}


# ---- what the evaluation at the end of a stage does not contain ----------------------------------

def always_correct(folder: Path) -> float | None:
    """The verification accuracy of a judge that calls everything correct: the right solutions
    among those verified.
    """
    return share(action["right"] for _, row in read_jsonl(folder / "responses.jsonl")
                 for action in row["actions"] if action["kind"] == "verify")


def failures(folder: Path) -> dict[str, float]:
    """Fractions of all responses that fail. A response fails if it is cut, whatever it said last,
    or if it ends with a wrong answer.

    missed       a wrong answer was called correct
    rejected     else: a right one was called incorrect
    otherwise    no verdict was wrong: the search repeated itself or ended early
    """
    counts = dict.fromkeys(FAILURES, 0)
    rows = [row for _, row in read_jsonl(folder / "responses.jsonl")]
    for row in rows:
        solves = [action for action in row["actions"] if action["kind"] == "solve"]
        verdicts = {(action["right"], action["verdict"])
                    for action in row["actions"] if action["kind"] == "verify"}
        if row["finished"] and solves[-1]["right"]:
            continue
        if (False, True) in verdicts:
            counts["failed_missed"] += 1
        elif (True, False) in verdicts:
            counts["failed_rejected"] += 1
        else:
            counts["failed_otherwise"] += 1
    return {name: count / len(rows) for name, count in counts.items()}


def trained_tokens(folder: Path) -> int:
    """In all steps: tokens that the loss mask selects (stage 1), response tokens of the rollouts
    (stage 2).
    """
    return sum(line.get("learned_tokens", line.get("tokens", 0))
               for _, line in read_jsonl(folder / "metrics.jsonl"))


def seconds(folder: Path) -> float | None:
    path = folder / "seconds.json"
    return read_json(path)["seconds"] if path.exists() else None


def beyond(model: str, at: Path) -> dict:
    """Results on families that no stage trains on, and on test puzzles with more attempts.

    They are cached in the file `at`, until the model is newer than the file.
    """
    if at.exists() and at.stat().st_mtime >= (Path(model) / "model.safetensors").stat().st_mtime:
        return read_json(at)
    policy, tokenizer = load_model(model, "cpu"), Tokenizer.load(model)

    def answers(problems, longest):
        return evaluate(policy, tokenizer, problems, Sampling(longest, TEST_TEMPERATURE))
    results = {}
    for family in HELD_OUT:
        values = metrics(answers(make_puzzles("test", 100, TEST_DRAW, [family]), 400))
        results |= {f"{short}_{family}": values[key] for short, key in SHORT.items()}
    long = answers(make_puzzles("test", 1000, TEST_DRAW), LONG)
    results |= {f"final_within_{k}": share(t.solves[:k][-1].right for t in long) for k in ALLOWED}
    write_json(at, results)
    return results


# ---- arms and their rows -------------------------------------------------------------------------

CHOICES = {"majority": majority, "best-of-n": best_of_n}


def row_of(values: dict, **more) -> dict:
    """One row of the table, from an evaluation and further values."""
    levels = {f"{key}_level_{level}": at_level.get(key)
              for level, at_level in values["by_level"].items() for key in COLUMNS}
    return {**{key: values.get(key) for key in COLUMNS}, **levels, **more}


def row_of_folder(out: Path, values: dict) -> dict:
    return row_of(values, always_correct=always_correct(out), **failures(out),
                  trained_tokens=trained_tokens(out), seconds=seconds(out))


def run_arm(arm: str, root: Path, seed: int) -> dict[str, dict]:
    """{name: row of the table} of one arm and seed."""
    main, data, sft, out = root / "rl", root / "data", root / "sft", root / arm
    trajectories = "--data", data / "trajectories.jsonl"
    if arm == "main":
        stage("build_data", data, "--seed", seed)
        stage("train_sft", sft, "--seed", seed, *trajectories)
        stage("train_rl", main, "--seed", seed, "--model", sft)
        return rows_of_main(root, data, sft, main)
    if arm in CHOICES:
        return {arm: row_of(CHOICES[arm](main, seed))}
    if arm in VARIANTS:
        start = root / "weak" if arm.startswith("weak-") else sft
        stage("train_rl", out, "--seed", seed, "--model", start, *VARIANTS[arm],
              arm=arm if arm in ARMS else "")
    elif arm == "weak":
        stage("train_sft", out, "--seed", seed, *trajectories, "--steps", 150)
    else:
        folder = root / f"{arm}-data"
        if arm in STYLES:
            stage("build_data", folder, "--seed", seed, "--styles", *STYLES[arm])
        elif not folder.exists():
            gold(data, folder) if arm == "gold" else correct_only(data, folder, seed)
        stage("train_sft", out, "--seed", seed, "--data", folder / "trajectories.jsonl")
    more = beyond(str(out), out / "beyond.json") if arm in ("outcome", "process") else {}
    *_, last = read_json(out / "evaluation.json")["columns"].values()
    return {arm: {**row_of_folder(out, last), **more}}


def rows_of_main(root: Path, data: Path, sft: Path, rl: Path) -> dict[str, dict]:
    columns = read_json(rl / "evaluation.json")["columns"]
    base = row_of(columns["base"], seconds=seconds(data))
    return {"base": {**base, **beyond(POLICY, root / "base-beyond.json")},
            "SFT": {**row_of_folder(sft, columns["SFT"]), **beyond(str(sft), sft / "beyond.json")},
            "both": {**row_of_folder(rl, columns["RL"]), **beyond(str(rl), rl / "beyond.json")}}


def read_table(path: Path) -> dict[tuple[str, int], dict]:
    """{(arm, seed): row} of a table; {} if there is no such file. InputError: not such a table."""
    if not path.exists():
        return {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames == list(HEADER):
                return {(row["arm"], int(row["seed"])): row for row in reader}
    except (OSError, ValueError, csv.Error) as error:  # a UnicodeDecodeError is a ValueError
        raise InputError(f"{path}: cannot be read: {error}")
    raise InputError(f"{path}: has other columns than this version writes; "
                     "give another file with --results")


def write_table(path: Path, rows: dict[tuple[str, int], dict]):
    """Write the rows in the order of SEEDS and of the seeds; completely or not at all."""
    order = ["base", "SFT", "both", *SEEDS]
    keys = sorted(rows, key=lambda key: (order.index(key[0]), key[1]))
    part = path.with_name(path.name + ".part")
    with writing(part):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, HEADER)
            writer.writeheader()
            writer.writerows(rows[key] for key in keys)
        part.replace(path)


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--arms", nargs="+", choices=tuple(SEEDS), default=list(SEEDS),
                        metavar="ARM", help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N",
                        help="default: 0 to 4 for main, outcome and process; 0 to 2, or 0, for "
                             "the others")
    parser.add_argument("--out", default="out/study", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--results", default="results/study.csv", metavar="FILE",
                        help="one row per arm and seed (default: %(default)s)")
    args = parser.parse_args(argv)
    path = Path(args.results)
    read_table(path)  # a table of another version is refused before any work
    for arm in args.arms:
        for seed in args.seeds or range(SEEDS[arm]):
            new = run_arm(arm, Path(args.out) / f"seed{seed}", seed)
            rows = {(name, seed): {"arm": name, "seed": seed, **row} for name, row in new.items()}
            write_table(path, read_table(path) | rows)
            print(f"{arm}, seed {seed} -> {path}")


if __name__ == "__main__":
    run(main)
