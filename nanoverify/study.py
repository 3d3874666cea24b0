"""Beside the path: the paper's findings on a laptop: the whole pipeline for several seeds, with the paper's variants and the controls it lacks.

    python -m nanoverify.study                             # every arm -> out/study/..., results/study.csv
    python -m nanoverify.study --arms main --seeds 0 1 2   # the three scripts alone
    python -m nanoverify.findings results/study.csv        # its tables and verdicts

Arms: `main` is the three scripts with their defaults, rows base, SFT and both; the others start from main's data or SFT model of the same seed.
    outcome, process    RL with one of the two rewards
    gae                 GAE and a value head instead of leave-one-out and contexts
    kl                  with the KL to the SFT model
    filter              without questions that are always or never solved
    offline             sampled once, questions of which 10 to 70% are right
    plain-outcome, plain-process     as in the paper, but for learning rate, steps and questions a step
    weak                stage 1 stopped after 150 steps, when one check in six is still wrong; weak-outcome, weak-process: RL from there
    problem-solving, both-styles     SFT on trajectories whose verifications are in this style, in either
    gold                SFT on the puzzles' own solutions; correct-only: on the base's right ones; as many as there are trajectories
  controls:
    majority            the base's most frequent answer among as many samples as the tokens of main's RL model pay for
    best-of-n           its first answer that its own check accepts, of as many as those tokens pay for, checks counted
    no-sft              RL from the base
    shuffled            RL whose rewards are dealt out at random: nothing may rise
    lr0                 5 steps of RL with learning rate 0: nothing may move
What is there already (an arguments.json in its folder) is not run again. A row is written as soon as it is known; those of other arms and seeds stay.
`seconds` are those of the stage that made the row (base: stage 0), on whatever else the machine did.
"""
import argparse
import csv
import importlib
import random
import subprocess
import sys
import time
from pathlib import Path

from nanoverify.checkpoint import load_model
from nanoverify.evaluate import COLUMNS, metrics, respond, share
from nanoverify.files import InputError, output_folder, read_json, read_jsonl, run, write_json, write_jsonl, writing
from nanoverify.pretrain import solve_text
from nanoverify.puzzles import HELD_OUT, LEVELS, make_puzzles, puzzles_with_numbers
from nanoverify.stage import POLICY, TEST_DRAW
from nanoverify.tokenizer import Tokenizer
from nanoverify.verifier import verify

PAPER = ["--plain", "--beta", 0.05, "--temperature", 0.7, "--samples", 4]
VARIANTS = {  # of RL, from main's SFT model; weak-...: from that of arm weak
    "outcome": ["--reward", "outcome"], "process": ["--reward", "process"],
    "weak-outcome": ["--reward", "outcome"], "weak-process": ["--reward", "process"],
    "gae": ["--advantage", "gae"], "offline": ["--offline", 2000, "--beta", 0.1],
    "no-sft": ["--model", POLICY], "shuffled": ["--shuffle-rewards"], "lr0": ["--lr", 0, "--steps", 5],
    "kl": ["--beta", 0.05], "filter": ["--filter", 4, "--count", 3000],
    "plain-outcome": ["--reward", "outcome", *PAPER], "plain-process": ["--reward", "process", *PAPER]}
STYLES = {"problem-solving": ["problem-solving"], "both-styles": ["problem-solving", "confirmative"]}
SEEDS = {  # every arm, in the order of the table: how many seeds it is run with
    **dict.fromkeys(("main", "outcome", "process"), 5),
    **dict.fromkeys(("weak", "weak-process", "weak-outcome", "problem-solving", "both-styles", "gold", "correct-only", "gae", "offline"), 3),
    **dict.fromkeys(("plain-outcome", "plain-process", "majority", "best-of-n", "no-sft", "shuffled", "lr0"), 3), **dict.fromkeys(("kl", "filter"), 1)}
SOLVE_TOKENS, CHECK_TOKENS = 64, 128  # longest answer and longest check of the base
LONG, ALLOWED = 900, (1, 2, 4, 8, 16)  # tokens of the long responses, for which the policy's context has room; attempts after which they are cut
SHORT = {"first": "first_accuracy", "final": "final_accuracy", "VA": "verification_accuracy"}  # of the unseen families: name in the table, in the evaluation
FAILURES = ("failed_missed", "failed_rejected", "failed_otherwise")
HEADER = ("arm", "seed", *COLUMNS, "always_correct", *FAILURES, "trained_tokens", "seconds", *(f"{key}_level_{level}" for key in COLUMNS for level in LEVELS),
          *(f"{short}_{family}" for family in HELD_OUT for short in SHORT), *(f"final_within_{k}" for k in ALLOWED))


def stage(script: str, out: Path, *flags):
    """Run one script, or go on with it, unless its output is complete; its wall-clock seconds (of the last part) are kept beside it.
    InputError: the output is of other flags."""
    if (out / "arguments.json").exists():
        saved, wanted = read_json(out / "arguments.json"), vars(importlib.import_module(script).flags(["--out", str(out), *map(str, flags)]))
        plain = lambda value: Path(value).parts[-2:] if isinstance(value, str) else value  # the study's folder may have been moved
        other = sorted(key for key in wanted.keys() - {"out", "resume", "overwrite", "allow_changes", "device"} if plain(saved.get(key)) != plain(wanted[key]))
        if other:
            raise InputError(f"{out}: was made with {other[0]} {saved.get(other[0])}, not {wanted[other[0]]}; remove it, and what was made from it")
        return
    began, begun = time.time(), out.with_name(out.name + ".part").exists()
    subprocess.run([sys.executable, f"{script}.py", "--out", str(out), *map(str, flags), *["--resume"] * begun], check=True)
    write_json(out / "seconds.json", {"seconds": round(time.time() - began, 1)})


# ---- data of the arms that learn solutions alone ---------------------------------------------------------------------

def correct_only(data: Path, out: Path, seed: int):
    """As many right solutions of the base, one a question first, as there are trajectories."""
    count = sum(1 for _ in read_jsonl(data / "trajectories.jsonl"))
    rights = [row for _, row in read_jsonl(data / "samples.jsonl") if row["actions"][-1]["right"] and row["finished"]]
    random.Random(seed).shuffle(rights)
    seen, first, more = set(), [], []
    for row in rights:
        (more if row["id"] in seen else first).append(row)
        seen.add(row["id"])
    write_solutions(out, (first + more)[:count])


def gold(data: Path, out: Path):
    """The puzzles' own solutions to the questions of the trajectories."""
    arguments = read_json(data / "arguments.json")
    numbers = {problem.id: numbers for numbers, problem in puzzles_with_numbers("train", arguments["count"], arguments["seed"])}
    def solution(row):
        return solve_text(row["family"], numbers[row["id"]], numbers[row["id"]]["x"])
    write_solutions(out, [{**row, "response": solution(row)} for _, row in read_jsonl(data / "trajectories.jsonl")])


def write_solutions(out: Path, rows: list[dict]):
    with output_folder(out) as folder:
        write_jsonl(folder / "trajectories.jsonl", rows)
        write_json(folder / "arguments.json", {"rows": len(rows)})


# ---- what the evaluation at the end of a stage does not tell ------------------------------------------------------------

def majority(main: Path, seed: int) -> dict:
    """The base's most frequent answer, the earliest of these on a tie, of as many samples as RL's tokens pay for."""
    problems, columns = evaluated(main)
    tokens = columns["RL"]["tokens_per_response"] / columns["base"]["tokens_per_response"]
    rows = sampled(problems, max(round(tokens), 1), seed)
    chosen = []
    for row in rows:
        answers = [t.solves[-1].answer for t in row]
        chosen.append(answers.index(max(answers, key=lambda answer: (answer != "") * answers.count(answer))))
    return choice_row(rows, chosen, [sum(len(t.ids) for t in row) for row in rows])


def best_of_n(main: Path, seed: int) -> dict:
    """The first of the base's samples that its own confirmative check calls correct, or the first of all where none is.

    Each sample is checked, greedily. There are as many as RL's tokens pay for, checks counted.
    """
    problems, columns = evaluated(main)
    tokenizer, base = Tokenizer.load(POLICY), load_model(POLICY, "cpu")

    def checked(rows):
        claims = [(t.problem.question, t.solves[-1].answer) for row in rows for t in row]
        found = verify(base, tokenizer, claims, "confirmative", 1, CHECK_TOKENS, 0.0)
        return [checks[0] for checks in found]

    pilot = sampled(problems[:100], 1, seed)
    spent = [len(row[0].ids) + len(tokenizer.encode(check.text)) for row, check in zip(pilot, checked(pilot))]
    count = max(round(columns["RL"]["tokens_per_response"] / share(spent)), 1)
    rows = sampled(problems, count, seed)
    checks = iter(checked(rows))
    chosen, tokens = [], []
    for row in rows:
        its_checks = [next(checks) for _ in row]
        verdicts = [check.verdict is True for check in its_checks]
        chosen.append(verdicts.index(True) if any(verdicts) else 0)
        tokens.append(sum(len(t.ids) + len(tokenizer.encode(c.text)) for t, c in zip(row, its_checks)))
    return choice_row(rows, chosen, tokens)


def evaluated(main: Path) -> tuple[list, dict]:
    """The questions that a main run was evaluated on, and its evaluations."""
    saved = read_json(main / "evaluation.json")
    return make_puzzles("test", saved["asked"]["test_count"], TEST_DRAW, fewer=True), saved["columns"]


def sampled(problems: list, count: int, seed: int) -> list:
    """`count` answers of the base to each question, at temperature 1."""
    return respond(load_model(POLICY, "cpu"), Tokenizer.load(POLICY), problems, count, SOLVE_TOKENS, 1.0, seed)


def choice_row(rows: list, chosen: list[int], tokens: list[int]) -> dict:
    """first_accuracy: of the first sample; final_accuracy: of the chosen one; both by level, too."""
    def accuracies(level=None):
        pairs = [(row[0], row[i]) for row, i in zip(rows, chosen) if level in (None, row[0].problem.level)]
        return {"first_accuracy": share(first.solves[0].right for first, _ in pairs),
                "final_accuracy": share(choice.solves[-1].right for _, choice in pairs)}
    by_level = {str(level): accuracies(level) for level in LEVELS}
    return {**accuracies(), "tokens_per_response": share(tokens), "by_level": by_level}


def always_correct(folder: Path) -> float | None:
    """The verification accuracy of somebody who calls everything correct: the share of right solutions among those that were verified."""
    return share(action["right"] for _, row in read_jsonl(folder / "responses.jsonl") for action in row["actions"] if action["kind"] == "verify")


def failures(folder: Path) -> dict[str, float]:
    """Shares of all responses that fail, that is, are cut (whatever they said last) or end with a wrong answer. missed: a wrong answer was called
    correct; rejected: else, a right one was called incorrect; otherwise: no verdict was wrong, the search went in circles or ended early."""
    counts, rows = dict.fromkeys(FAILURES, 0), [row for _, row in read_jsonl(folder / "responses.jsonl")]
    for row in rows:
        verdicts = {(action["right"], action["verdict"]) for action in row["actions"] if action["kind"] == "verify"}
        if not row["finished"] or not [action["right"] for action in row["actions"] if action["kind"] == "solve"][-1]:
            counts["failed_missed" if (False, True) in verdicts else "failed_rejected" if (True, False) in verdicts else "failed_otherwise"] += 1
    return {name: count / len(rows) for name, count in counts.items()}


def trained_tokens(folder: Path) -> int:
    """Of all steps together: tokens that the loss mask selects (stage 1), response tokens of the rollouts (stage 2)."""
    return sum(line.get("learned_tokens", line.get("tokens", 0)) for _, line in read_jsonl(folder / "metrics.jsonl"))


def seconds(folder: Path) -> float | None:
    return read_json(folder / "seconds.json")["seconds"] if (folder / "seconds.json").exists() else None


def beyond(model: str, at: Path) -> dict:
    """Families that no stage trains on; and test puzzles with room for more attempts: the last of at most 1, 2, 4, ... Kept in the file `at`, which is
    made anew where it is older than the model."""
    if at.exists() and at.stat().st_mtime >= (Path(model) / "model.safetensors").stat().st_mtime:
        return read_json(at)
    policy, tokenizer = load_model(model, "cpu"), Tokenizer.load(model)
    greedy = lambda problems, longest: [row[0] for row in respond(policy, tokenizer, problems, 1, longest, 0.0)]
    found = {}
    for family in HELD_OUT:
        values = metrics(greedy(make_puzzles("test", 100, TEST_DRAW, [family]), 320))
        found |= {f"{short}_{family}": values[key] for short, key in SHORT.items()}
    long = greedy(make_puzzles("test", 1000, TEST_DRAW), LONG)
    found |= {f"final_within_{k}": share(t.solves[:k][-1].right for t in long) for k in ALLOWED}
    write_json(at, found)
    return found


CHOICES = {"majority": majority, "best-of-n": best_of_n}  # among samples of the base; nothing is trained

# ---- arms and their rows ----------------------------------------------------------------------------------------------

def row_of(values: dict, **more) -> dict:
    """One row of the table from an evaluation and what else is known."""
    levels = {f"{key}_level_{level}": found.get(key) for level, found in values["by_level"].items() for key in COLUMNS}
    return {**{key: values.get(key) for key in COLUMNS}, **levels, **more}


def row_of_folder(out: Path, values: dict) -> dict:
    return row_of(values, always_correct=always_correct(out), **failures(out), trained_tokens=trained_tokens(out), seconds=seconds(out))


def run_arm(arm: str, root: Path, seed: int) -> dict[str, dict]:
    """{name: row of the table} of one arm and seed."""
    main, data, sft, out = root / "rl", root / "data", root / "sft", root / arm
    trained = "--data", data / "trajectories.jsonl"
    if arm == "main":
        stage("build_data", data, "--seed", seed)
        stage("train_sft", sft, "--seed", seed, *trained)
        stage("train_rl", main, "--seed", seed, "--model", sft)
        columns = read_json(main / "evaluation.json")["columns"]
        return {"base": {**row_of(columns["base"], seconds=seconds(data)), **beyond(POLICY, root / "base-beyond.json")},
                "SFT": {**row_of_folder(sft, columns["SFT"]), **beyond(str(sft), sft / "beyond.json")},
                "both": {**row_of_folder(main, columns["RL"]), **beyond(str(main), main / "beyond.json")}}
    if arm in CHOICES:
        return {arm: row_of(CHOICES[arm](main, seed))}
    if arm in VARIANTS:
        stage("train_rl", out, "--seed", seed, "--model", root / "weak" if arm.startswith("weak-") else sft, *VARIANTS[arm])
    elif arm == "weak":
        stage("train_sft", out, "--seed", seed, *trained, "--steps", 150)
    else:
        folder = root / f"{arm}-data"
        if arm in STYLES:
            stage("build_data", folder, "--seed", seed, "--styles", *STYLES[arm])
        elif not folder.exists():
            gold(data, folder) if arm == "gold" else correct_only(data, folder, seed)
        stage("train_sft", out, "--seed", seed, "--data", folder / "trajectories.jsonl")
    more = beyond(str(out), out / "beyond.json") if arm in ("outcome", "process") else {}
    return {arm: {**row_of_folder(out, list(read_json(out / "evaluation.json")["columns"].values())[-1]), **more}}


def read_table(path: Path) -> dict[tuple[str, int], dict]:
    """(arm, seed) -> row of a table written before; {} where there is none."""
    if not path.exists():
        return {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = {(row["arm"], int(row["seed"])): row for row in reader} if reader.fieldnames == list(HEADER) else None
    except (OSError, ValueError, csv.Error) as error:  # a UnicodeDecodeError is a ValueError
        raise InputError(f"{path}: cannot be read: {error}")
    if rows is None:
        raise InputError(f"{path}: has other columns than this version writes; give another file with --results")
    return rows


def write_table(path: Path, rows: dict[tuple[str, int], dict]):
    """Sorted by arm, as in SEEDS, and seed; complete or not at all."""
    order = ["base", "SFT", "both", *SEEDS]
    part = path.with_name(path.name + ".part")
    with writing(part):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, HEADER)
            writer.writeheader()
            writer.writerows(rows[key] for key in sorted(rows, key=lambda key: (order.index(key[0]), key[1])))
        part.replace(path)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=tuple(SEEDS), default=list(SEEDS), metavar="ARM", help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="default: 0 to 4 for main, outcome and process; 0 to 2, or 0, for the others")
    parser.add_argument("--out", default="out/study", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--results", default="results/study.csv", metavar="FILE", help="one row per arm and seed (default: %(default)s)")
    args = parser.parse_args(argv)
    path = Path(args.results)
    read_table(path)  # a table of another version is refused before any work
    for arm in args.arms:
        for seed in args.seeds or range(SEEDS[arm]):
            found = run_arm(arm, Path(args.out) / f"seed{seed}", seed)
            write_table(path, read_table(path) | {(name, seed): {"arm": name, "seed": seed, **row} for name, row in found.items()})
            print(f"{arm}, seed {seed} -> {path}")


if __name__ == "__main__":
    run(main)
