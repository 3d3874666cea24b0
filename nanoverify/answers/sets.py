"""Sets of reals: intervals, inequalities and their combinations.

A set is the sorted tuple of its cuts, where membership changes: (3, 0) just below 3, (3, 1) just
above it. So (-3, 5] is ((-3, 1), (5, 1)), the point 2 is ((2, 0), (2, 1)), and two sets are equal
when their cuts are.
"""
import operator
from bisect import bisect_right
from decimal import Context
from functools import partial, reduce

from .tree import Node, children, is_inequality
from .values import INFINITY, constant, decimal
from .words import meaning_of

LOW, HIGH = (-INFINITY, 1), (INFINITY, 0)
COMBINED = {"\\cup": operator.or_, "\\cap": operator.and_, "\\setminus": operator.gt}


def combined(op, a, b):
    """The union, intersection or difference of two sets: walk along the cuts of both."""
    cuts = []
    for cut in sorted({*a, *b}):
        inside = COMBINED[op](bisect_right(a, cut) % 2, bisect_right(b, cut) % 2)
        if inside != len(cuts) % 2:
            cuts.append(cut)
    return tuple(cuts)


def region(node):
    """The set of reals meant by an interval, an inequality, a list or a combination of these; None
    if it is no such set.
    """
    op, args = node
    if op == "said":
        return None if meaning_of(args[1]) else region(args[0])
    if op == "interval" or op == "tuple" and len(args) == 2:
        low, high = map(limit, args[:2])
        left, right = args[2] if op == "interval" else "()"
        if low is None or high is None or low > high:
            return None  # [2, -1] is a vector
        cuts = (low, int(left == "(")), (high, int(right == "]"))
        return cuts if cuts[0] < cuts[1] else ()

    # everything else is made of smaller sets
    if op == "relation":
        sets, op = list(map(solutions, args[0], args[2:], args[3:])), "\\cap"
    elif op in ("set", "list", *COMBINED):
        sets, op = [region(arg) for arg in args], op if op in COMBINED else "\\cup"
    else:
        end = limit(node)
        return None if end is None else ((end, 0), (end, 1))
    if None in sets:
        return None
    result = reduce(partial(combined, op), sets) if sets else ()
    if not result and node.op == "\\cap" and all(map(is_inequality, args)):
        return reduce(partial(combined, "\\cup"), sets)  # x < 1, x > 6: nothing is both
    return result


def is_subject(node):
    return node.op in ("name", "call")


def is_size(node):
    """|x|"""
    return node.op == "\\abs" and is_subject(node.args[0])


def sizes(sign, bound, below):
    """The numbers with |x| < 2 (below) or with 2 < |x| (not below)."""
    open_end = int((sign == "<") == below)
    inner = (-bound, open_end), (bound, 1 - open_end)
    if bound <= 0 or sign not in ("<", "<="):
        return None
    return inner if below else (LOW, *inner, HIGH)


def solutions(sign, left, right):
    """The numbers for which x < 3, 3 < x or x in [1, 3] holds; None if that cannot be told."""
    if sign == "\\in":
        return region(right) if is_subject(left) else None
    if is_size(left) != is_size(right):
        bound = limit(right if is_size(left) else left)
        return None if bound is None else sizes(sign, bound, is_size(left))
    if is_subject(left) == is_subject(right):
        return None
    end = limit(right if is_subject(left) else left)
    if end is None:
        return None
    if sign in ("<", "<="):
        if is_subject(left):
            return LOW, (end, int(sign == "<="))
        return (end, int(sign == "<")), HIGH
    return {"=": ((end, 0), (end, 1)), "!=": (LOW, (end, 0), (end, 1), HIGH)}.get(sign)


def subjects(node):
    """The variables of a relation: {x} of 2 < x < 5, also within "or" and "and"."""
    if node.op == "relation":
        sides = [side.args[0] if is_size(side) else side for side in node.args[2:]]
        return set(filter(is_subject, sides))
    inner = children(node) if node.op in ("said", "list", "set", *COMBINED) else ()
    return set().union(*map(subjects, inner))


def regions(a, b):
    """The two sets of reals, if both are about one variable of the same name."""
    names = [subjects(node) - {Node("name", ("\\bound",))} for node in (a, b)]
    if any(len(side) > 1 for side in names) or all(names) and names[0] != names[1]:
        return None, None
    return region(a), region(b)


def limit(node):
    """An end of an interval as a Decimal; None if it is no real number."""
    value = None if node.op in ("said", "modulo") else constant(node)
    if value is None or type(value) is complex:
        return None
    return decimal(value).normalize(Context(prec=40))
