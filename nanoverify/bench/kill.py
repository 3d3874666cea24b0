"""Kill -9 the three scripts at random moments, resume, and compare with undisturbed runs.

    python -m nanoverify.bench.kill --kills 30    # about ten minutes

Results are compared byte for byte. Half of the moments fall into a save. Small sizes, the shipped
policy, one thread. Prints one line per kill and exits with 1 if any result differs.
"""
import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL = ["--device", "cpu", "--test-count", "8", "--max-new-tokens", "120"]
STAGES = {
    "build_data": ["--count", "60", "--samples", "4", "--out", "data"],
    "train_sft": ["--data", "data/trajectories.jsonl", "--epochs", "1", "--batch", "4",
                  "--save-every", "2", "--out", "sft"],
    "train_rl": ["--model", "sft", "--steps", "4", "--prompts", "4", "--samples", "4",
                 "--save-every", "1", "--out", "rl"],
}
# a part of 20 questions, so that build_data.py saves several times
START = ("import build_data, {name}; from nanoverify.support.files import run; "
         "build_data.PART = 20; run({name}.main)")


def start(name: str, folder: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-c", START.format(name=name), *SMALL, *STAGES[name], *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE)


def finish(process, what: str):
    errors = process.communicate()[1].decode(errors="replace")
    if process.returncode:
        raise SystemExit(f"{what} ended with {process.returncode}: {errors[-2000:]}")


def result(folder: Path) -> dict[str, bytes]:
    """What a stage left, without times, by file name."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in ("arguments.json", "seconds.json"):
            found[path.name] = path.read_bytes()
    if "metrics.jsonl" in found:
        rows = [json.loads(line) for line in found["metrics.jsonl"].splitlines()]
        for row in rows:
            for key in [key for key in row if "seconds" in key]:
                del row[key]
        found["metrics.jsonl"] = json.dumps(rows).encode()
    return found


def kill_somewhere(process, part: Path, rng, seconds: float, in_save: bool):
    """kill -9 after a random part of the time, or as soon as the n-th file of a save appears.

    -> whether it was still running
    """
    wanted, seen = rng.randint(1, 12), set()
    limit = time.time() + seconds * (1.5 if in_save else rng.random())
    while process.poll() is None and time.time() < limit:
        if in_save:
            seen |= {path for path in part.glob("state/*") if ".tmp" in path.name}
            seen |= set(part.glob("state/*.tmp/*"))
            if len(seen) >= wanted:
                break
            time.sleep(0.0005)
        else:
            time.sleep(0.005)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return alive


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    rng, different = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as name:
        folder, wanted, seconds = Path(name), {}, {}
        for stage, flags in STAGES.items():
            began = time.time()
            finish(start(stage, folder), stage)
            wanted[stage], seconds[stage] = result(folder / flags[-1]), time.time() - began
            print(f"{stage}: {seconds[stage]:.1f} s undisturbed", flush=True)
        for number in range(1, args.kills + 1):
            stage, in_save = list(STAGES)[number % 3], rng.random() < 0.5
            flags = ["--out", f"killed{number}"]
            part = folder / f"killed{number}.part"
            process = start(stage, folder, *flags)
            alive = kill_somewhere(process, part, rng, seconds[stage], in_save)
            states = sorted(path.name for path in part.glob("state/*")) if part.exists() else []
            if not (folder / f"killed{number}").exists():  # killed at its very end, it has finished
                finish(start(stage, folder, *flags, "--resume"), f"resumed {stage}")
            same = result(folder / f"killed{number}") == wanted[stage]
            different += not same
            print(f"kill {number}: {stage}, {'in a save' if in_save else 'anywhere'}, "
                  f"{'killed' if alive else 'was done already'}, left {states}: "
                  f"{'equal' if same else 'DIFFERENT'}", flush=True)
    print(f"{args.kills - different} of {args.kills} equal")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
