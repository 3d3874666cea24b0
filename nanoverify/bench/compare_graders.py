"""Ours against Math-Verify: how often right, and how fast, in one run.

    pip install 'math-verify[antlr4_13_2]'
    python -m nanoverify.bench.compare_graders      # our own cases
    python -m nanoverify.bench.compare_graders CASES.jsonl ...

Rows: {"gold", "answer" or "response", "expected": true, false, or null where the answer is
unreadable}. A row counts as right if equal answers are accepted and others are not.
"""
import json
import random
import sys
import time
from pathlib import Path

from nanoverify.answers import grade

OWN_CASES = Path(__file__).parents[2] / "tests" / "grading_cases.jsonl"
HEAD = ("| cases | grader | right | right answers refused | wrong answers accepted "
        "| shuffled pairs per CPU second |\n|---|---|---|---|---|---|")


def math_verify(gold, text):
    """As its README says; a bare answer is wrapped as a formula, since it extracts from text."""
    from math_verify import parse, verify
    marked = "\\boxed" in text or "$" in text or "answer" in text.lower()
    gold = gold if "\\boxed" in gold or "$" in gold else f"${gold}$"
    return verify(parse(gold), parse(text if marked else f"${text}$"))


def cases(path):
    """(gold, text, expected) of each row; contested rows are left out."""
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows = [row for row in rows if row.get("tier", "core") == "core"]
    return [(row["gold"], row.get("response", row.get("answer")), row["expected"] is True)
            for row in rows]


def judged(judge, rows):
    """[(accepted, expected)]; a crash counts as the wrong answer."""
    results = []
    for gold, text, expected in rows:
        try:
            results.append((judge(gold, text) is True, expected))
        except Exception:
            results.append((not expected, expected))
    return results


def pairs_per_second(judge, rows, count):
    """Measured on golds and answers of different rows: no shortcut for equal texts helps."""
    golds = [gold for gold, _, _ in rows]
    random.Random(0).shuffle(golds)
    pairs = list(zip(golds, (text for _, text, _ in rows)))[:count]
    began = time.process_time()
    for gold, text in pairs:
        try:
            judge(gold, text)
        except Exception:
            pass
    return len(pairs) / (time.process_time() - began)


def main(argv):
    print(HEAD)
    for path in argv or [OWN_CASES]:
        rows = cases(path)
        for name, judge, count in (("nanoverify", grade, 1000), ("Math-Verify", math_verify, 200)):
            results = judged(judge, rows)
            right = sum(got == expected for got, expected in results)
            refused = sum(expected and not got for got, expected in results)
            accepted = sum(got and not expected for got, expected in results)
            speed = pairs_per_second(judge, rows, count)
            print(f"| {Path(path).name} ({len(rows)}) | {name} | {100 * right / len(rows):.1f}% "
                  f"| {refused} | {accepted} | {speed:,.0f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
