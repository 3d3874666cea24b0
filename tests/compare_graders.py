"""Ours against Math-Verify: how often right, and how fast, in one run.

    pip install -e '.[test,compare]' && python tests/compare_graders.py             # our own pairs, from test_answers.py
    python tests/compare_graders.py CASES.jsonl      # rows {"gold", "answer" or "response", "expected": true/false}
"""
import json
import random
import sys
import time

from math_verify import parse, verify

from nanoverify.answers import grade
from test_answers import DIFFERENT, SAME


def math_verify(gold, text):
    """As its README says; a bare answer is wrapped as a formula, since it extracts from text."""
    boxed = text if "\\boxed" in text or "$" in text or "answer" in text.lower() else f"${text}$"
    gold = gold if "\\boxed" in gold or "$" in gold else f"${gold}$"
    return verify(parse(gold), parse(boxed))


def cases(argv):
    if argv:
        with open(argv[0], encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        rows = [row for row in rows if row.get("tier", "core") == "core"]
        return [(row["gold"], row.get("response", row.get("answer")), row["expected"]) for row in rows]
    same = [(spellings[0], other, True) for spellings in SAME.values() for other in spellings[1:]]
    return same + [(gold, answer, False) for gold, answer in DIFFERENT]


def main():
    rows = cases(sys.argv[1:])
    rng = random.Random(0)
    golds = [gold for gold, _, _ in rows]
    shuffled = list(zip(rng.sample(golds, len(golds)), (text for _, text, _ in rows)))
    print(f"{len(rows)} cases\n\n| | right | right answers refused | wrong answers accepted | shuffled pairs per CPU second |\n|---|---|---|---|---|")
    for name, judge, count in (("nanoverify", grade, len(rows)), ("Math-Verify", math_verify, min(200, len(rows)))):
        results = []
        for gold, text, expected in rows:
            try:
                results.append((judge(gold, text) is True, expected))
            except Exception:  # a crash is a wrong answer here
                results.append((not expected, expected))
        right = sum(got == expected for got, expected in results) / len(results)
        began = time.process_time()
        for gold, text in shuffled[:count]:
            judge(gold, text)
        speed = count / (time.process_time() - began)
        print(f"| {name} | {100 * right:.1f}% | {sum(e and not g for g, e in results)} | {sum(g and not e for g, e in results)} | {speed:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
