"""Beside the path: the whole pipeline for several seeds, with controls and variants, as one table.

    python -m nanoverify.study --seeds 0 1 2        # -> out/study/..., results/study.csv and the README's table
    python -m nanoverify.study --arms main process both --seeds 0 1 2 3 4

Arms: `main` is the three scripts with their defaults; the others start from main's data or SFT model of the same seed.
    shuffled         RL whose rewards are dealt out at random: nothing may rise
    lr0              5 steps of RL with learning rate 0: nothing may move
    correct-only     SFT on as many right solutions without any verification, as many steps
    majority         the base's most frequent answer among as many samples as RL's tokens pay for
    process, both    RL with other rewards; gae: with a value head; per-action: one ratio for each action; offline: sampled once
    no-sft           RL from the base
    problem-solving, both-styles     SFT on trajectories whose verifications are in this style, in either
What is there already (an arguments.json in its folder) is not run again; the vote, which has no folder, is.
"""
import argparse
import csv
import random
import subprocess
import sys
import time
from pathlib import Path

from nanoverify.checkpoint import load_model
from nanoverify.evaluate import COLUMNS, cell, respond, share
from nanoverify.files import output_folder, read_json, read_jsonl, run, write_json, write_jsonl
from nanoverify.problems import LEVELS, make_puzzles
from nanoverify.stage import POLICY
from nanoverify.tokenizer import Tokenizer

VARIANTS = {  # of RL, from main's SFT model
    "shuffled": ["--shuffle-rewards"], "lr0": ["--lr", 0, "--steps", 5], "process": ["--reward", "process"], "both": ["--reward", "both"],
    "gae": ["--advantage", "gae"], "per-action": ["--ratio", "action"], "offline": ["--offline", 2000, "--beta", 0.1], "no-sft": ["--model", POLICY]}
STYLES = {"problem-solving": ["problem-solving"], "both-styles": ["problem-solving", "confirmative"]}
LEVELLED = {"first": "first_accuracy", "final": "final_accuracy", "trials": "trials"}  # metrics by level: name in the table, name in the evaluation
CONTROLS = ("main", "shuffled", "lr0", "correct-only")
ARMS = (*CONTROLS, "majority", *[arm for arm in VARIANTS if arm not in CONTROLS], *STYLES)


def stage(script: str, out: Path, *flags):
    """Run one script, or go on with it, unless its output is complete; its wall-clock seconds (of the last part) are kept beside it."""
    if (out / "arguments.json").exists():
        return
    began, begun = time.time(), out.with_name(out.name + ".part").exists()
    subprocess.run([sys.executable, f"{script}.py", "--out", str(out), *map(str, flags), *["--resume"] * begun], check=True)
    write_json(out / "seconds.json", {"seconds": round(time.time() - began, 1)})


def correct_only(data: Path, out: Path, seed: int):
    """As many right solutions, one a question first, as there are trajectories."""
    if out.exists():
        return
    count = sum(1 for _ in read_jsonl(data / "trajectories.jsonl"))
    rights = [row for _, row in read_jsonl(data / "samples.jsonl") if row["actions"][-1]["right"] and row["finished"]]
    random.Random(seed).shuffle(rights)
    seen, first, more = set(), [], []
    for row in rights:
        (more if row["id"] in seen else first).append(row)
        seen.add(row["id"])
    with output_folder(out) as folder:
        write_jsonl(folder / "trajectories.jsonl", (first + more)[:count])
        write_json(folder / "arguments.json", {"from": str(data), "seed": seed})


def majority(main: Path, seed: int) -> dict:
    """first_accuracy: of one sample; final_accuracy: of the answer given most often, the earliest of these on a tie; by level, too."""
    saved = read_json(main / "evaluation.json")
    problems, columns = make_puzzles("test", saved["asked"]["test_count"], seed=0), saved["columns"]
    votes = max(round(columns["RL"]["tokens_per_response"] / columns["base"]["tokens_per_response"]), 1)
    rows = respond(load_model(POLICY, "cpu"), Tokenizer.load(POLICY), problems, votes, 64, 1.0, seed)
    chosen = []
    for row in rows:
        answers = [t.solves[-1].answer for t in row]
        chosen.append(row[answers.index(max(answers, key=answers.count))])

    def accuracies(level=None):
        pairs = [(row[0], winner) for row, winner in zip(rows, chosen) if level in (None, winner.problem.level)]
        return {"first_accuracy": share(first.solves[0].right for first, _ in pairs), "final_accuracy": share(winner.solves[-1].right for _, winner in pairs)}
    return {**dict.fromkeys(COLUMNS), **accuracies(), "tokens_per_response": share(sum(len(t.ids) for t in row) for row in rows),
            "by_level": {level: accuracies(level) for level in LEVELS}, "seconds": None}


def run_arm(arm: str, root: Path, seed: int) -> dict[str, dict]:
    """{row name: evaluation} of one arm and seed."""
    main, data, sft, out = root / "rl", root / "data", root / "sft", root / arm
    trained = "--data", data / "trajectories.jsonl"
    if arm == "main":
        stage("build_data", data, "--seed", seed)
        stage("train_sft", sft, "--seed", seed, *trained)
        stage("train_rl", main, "--seed", seed, "--model", sft)
        columns = read_json(main / "evaluation.json")["columns"]
        seconds = {name: read_json(folder / "seconds.json")["seconds"] for name, folder in (("base", data), ("SFT", sft), ("RL", main))}
        return {name: {**values, "seconds": seconds[name]} for name, values in columns.items()}
    if arm == "majority":
        return {arm: majority(main, seed)}
    if arm in VARIANTS:
        stage("train_rl", out, "--seed", seed, "--model", sft, *VARIANTS[arm])
    else:
        folder = root / f"{arm}-data"
        if arm in STYLES:
            stage("build_data", folder, "--seed", seed, "--styles", *STYLES[arm])
        else:
            correct_only(data, folder, seed)
        stage("train_sft", out, "--seed", seed, "--data", folder / "trajectories.jsonl")
    return {arm: {**list(read_json(out / "evaluation.json")["columns"].values())[-1], "seconds": read_json(out / "seconds.json")["seconds"]}}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=CONTROLS, metavar="ARM", help=f"{', '.join(ARMS)} (default: {' '.join(CONTROLS)})")
    parser.add_argument("--out", default="out/study")
    parser.add_argument("--results", default="results/study.csv", help="one row per arm and seed (default: %(default)s)")
    args = parser.parse_args(argv)

    rows = []
    for arm in args.arms:
        for seed in args.seeds:
            for name, values in run_arm(arm, Path(args.out) / f"seed{seed}", seed).items():
                rows.append({"arm": name, "seed": seed, **{key: values[key] for key in (*COLUMNS, "seconds")},
                             **{f"{short}_level_{level}": v.get(key) for short, key in LEVELLED.items() for level, v in values["by_level"].items()}})
    Path(args.results).parent.mkdir(parents=True, exist_ok=True)
    with open(args.results, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)

    names = list(dict.fromkeys(row["arm"] for row in rows))
    print(f"mean of {len(args.seeds)} seeds (lowest to highest)\n")
    print("| | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    for key in [key for key in rows[0] if key not in ("arm", "seed", "seconds")]:
        cells = []
        for name in names:
            found = [row[key] for row in rows if row["arm"] == name and row[key] is not None]
            span = f" ({cell(key, min(found))} to {cell(key, max(found))})" if found and min(found) < max(found) else ""
            cells.append(cell(key, sum(found) / len(found)) + span if found else "-")
        print(f"| `{key}` | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    run(main)
