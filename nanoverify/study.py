"""Beside the path: the whole pipeline for several seeds, with controls, as one table.

    python -m nanoverify.study --seeds 0 1 2        # -> out/study/..., results/study.csv and the README's table

Arms: `main` is the three scripts with their defaults; the others start from main's data or SFT model of the same seed.
    shuffled      RL whose rewards are dealt out at random: nothing may rise
    lr0           5 steps of RL with learning rate 0: nothing may move
    correct-only  SFT on as many right solutions without any verification, as many steps
What is there already (an evaluation.json in its folder) is not run again.
"""
import argparse
import csv
import random
import subprocess
import sys
import time
from pathlib import Path

from nanoverify.evaluate import COLUMNS, cell
from nanoverify.files import output_folder, read_json, read_jsonl, run, write_json, write_jsonl

ARMS = ("main", "shuffled", "lr0", "correct-only")


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


def run_arm(arm: str, root: Path, seed: int) -> dict[str, dict]:
    """{row name: evaluation} of one arm and seed."""
    main, data, sft = root / "rl", root / "data", root / "sft"
    trained = "--data", data / "trajectories.jsonl"
    if arm == "main":
        stage("build_data", data, "--seed", seed)
        stage("train_sft", sft, "--seed", seed, *trained)
        stage("train_rl", main, "--seed", seed, "--model", sft)
        columns = read_json(main / "evaluation.json")["columns"]
        seconds = {name: read_json(folder / "seconds.json")["seconds"] for name, folder in (("base", data), ("SFT", sft), ("RL", main))}
        return {name: {**values, "seconds": seconds[name]} for name, values in columns.items()}
    out = root / arm
    if arm == "correct-only":
        correct_only(data, root / "correct-only-data", seed)
        stage("train_sft", out, "--seed", seed, "--data", root / "correct-only-data" / "trajectories.jsonl")
        values = read_json(out / "evaluation.json")["columns"]["SFT"]
    else:
        stage("train_rl", out, "--seed", seed, "--model", sft, *(["--lr", 0, "--steps", 5] if arm == "lr0" else ["--shuffle-rewards"]))
        values = read_json(out / "evaluation.json")["columns"]["RL"]
    return {arm: {**values, "seconds": read_json(out / "seconds.json")["seconds"]}}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--out", default="out/study")
    parser.add_argument("--results", default="results/study.csv", help="one row per arm and seed (default: %(default)s)")
    args = parser.parse_args(argv)

    rows = []
    for arm in args.arms:
        for seed in args.seeds:
            for name, values in run_arm(arm, Path(args.out) / f"seed{seed}", seed).items():
                rows.append({"arm": name, "seed": seed, **{key: values[key] for key in (*COLUMNS, "seconds")},
                             **{f"{which}_level_{level}": v[f"{which}_accuracy"] for which in ("first", "final") for level, v in values["by_level"].items()}})
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
            cells.append(f"{cell(key, sum(found) / len(found))} ({cell(key, min(found))} to {cell(key, max(found))})" if found else "-")
        print(f"| `{key}` | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    run(main)
