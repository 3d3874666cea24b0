"""All three stages in about a minute: the real scripts, with far too little to learn from.

    python -m nanoverify.tour            # -> out/tour/data, out/tour/sft, out/tour/rl and a report
"""
import time
from pathlib import Path

import build_data
import train_rl
import train_sft
from nanoverify.support.flags import Parser
from nanoverify.tools import report

STAGES = [
    ("Stage 0. The base answers puzzles, checks its answers, and trial and error is put together.",
     build_data.main, "data", "--count 300 --samples 4"),
    ("Stage 1. It imitates these trajectories, and so learns to check and to try again.",
     train_sft.main, "sft", "--data {out}/data/trajectories.jsonl --test-count 200"),
    ("Stage 2. It answers, is rewarded for right answers and right checks, and is updated.",
     train_rl.main, "rl", "--model {out}/sft --steps 3 --prompts 16 --test-count 200"),
]
END = """
That took {seconds:.0f} seconds: enough to see how it works, too little to learn much.
Up to seven points between two columns can be chance, with 200 questions each. The three scripts
without flags take 22 minutes, and the README says what they reach. To read what the models wrote,
open {out}/report.html, or ask the last one:

    python -m nanoverify.ask --model {out}/rl
"""


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--out", default="out/tour", metavar="DIR",
                        help="folder; an earlier tour in it is replaced (default: %(default)s)")
    args = parser.parse_args(argv)
    began, out = time.time(), Path(args.out).as_posix()
    for title, stage, folder, flags in STAGES:
        print(f"\n==== {title}\n")
        words = [word.format(out=out) for word in flags.split()]
        stage([*words, "--out", f"{out}/{folder}", "--overwrite"])
    report.main([*(f"{out}/{folder}" for _, _, folder, _ in STAGES), "--out", f"{out}/report.html"])
    print(END.format(seconds=time.time() - began, out=out))
