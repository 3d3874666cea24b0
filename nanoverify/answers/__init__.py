"""Does this answer equal that one? A verifier by rules: exact where it can be, silent where it
cannot read.

    grade("\\frac{1}{2}", "17 * 8 = 136. The answer is 0.5.")   # True, False, or None: unreadable
    extract("x = 9, so the answer is $9$.")                       # '9'
    verdict("39 is 39. Therefore, the answer is correct.")        # True, False, or None: no verdict

    python -m nanoverify.answers '[-2, 7]' 'So $-2 \\le x \\le 7$.'   # the grade, and why

It needs the standard library only, and this folder can be copied and used alone. It never executes
what it reads. The files in the order in which a response passes through them:

    extraction.py   the final answer within a text: \\boxed{}, `#### n`, "the answer is ...", ...
    spelling.py     one spelling for what looks alike
    words.py        formulas said in words; words that change the meaning
    units.py        units and their conversion
    tokens.py       text to tokens
    parse.py        tokens to a tree; the grammar
    tree.py         the tree
    values.py       the number that a tree stands for
    sets.py         the set of reals that it stands for
    equations.py    what an equation defines; equations up to a factor
    compare.py      whether two trees are the same answer
    verdicts.py     what a verification concludes
    limits.py       the bounds of all work

Limits:
- Complex numbers, inverse trigonometry and factorials of fractions are compared to 9 digits only.
- `28%` reads as 28 and as 0.28, `60` degrees as 60 and as pi/3.
- A decimal of six digits or more (four after the point) also equals what rounds to it.
- Limits, integrals and determinants are unknown functions.
- Work is counted in steps, not in seconds. An answer beyond the bounds is unreadable.

What each kind of answer may look like: docs/grading.md.
"""
from .compare import grade
from .extraction import extract
from .verdicts import verdict

__all__ = ["extract", "grade", "verdict"]
