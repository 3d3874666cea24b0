"""The grade of one response, and why.

    python -m nanoverify.answers '[-2, 7]' 'So $-2 \\le x \\le 7$.'
"""
import sys
from contextlib import suppress

from .compare import compare
from .parse import read
from .spelling import clean
from .tree import show
from .values import FAILURES


def main(argv):
    """The exit status. 0: equal, 1: not equal, 2: unreadable, or wrong usage."""
    if len(argv) != 2:
        print("usage: python -m nanoverify.answers GOLD ANSWER", file=sys.stderr)
        return 2
    result, why, *answers = compare(*argv)
    for name, answer in zip(("gold", "answer"), answers):
        print(f"{name:8s} {answer}")
        with suppress(*FAILURES):
            print(f"{'read as':8s} {show(read(clean(answer)))}")
    grade = {True: "equal", False: "not equal", None: "unreadable"}[result]
    print(f"{'verdict':8s} {grade} ({why})")
    return {True: 0, False: 1, None: 2}[result]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
