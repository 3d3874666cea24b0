"""Equations: what one defines, and when two allow the same points."""
import re
from contextlib import suppress
from decimal import DecimalException
from fractions import Fraction
from functools import partial, reduce

from .tree import Node, times, variables
from .values import constant, divide, evaluate, points, subtract
from .words import nouns_of

ARGUMENT = re.compile(r"([A-Za-z]'*)\(([a-z])\)")
TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
PARTICULAR = re.compile(r"\d|['|]|[A-Z]")  # f(1), a_2, AB: not any name, but this one

def definition(node):
    """What "x = 5", "f(x) = 5" or "2 + 3 = 5" defines; None if it only restricts, as x + y = 5."""
    if node.op != "relation":
        return node
    signs, names, *sides = node.args
    if signs == ("\\in",):
        return sides[1]
    if signs[-1] == "~" and not names[-2]:
        sides, names = sides[:-1], names[:-1]  # "22/7 = 3.14...": the exact value
    values = [side for side, name in zip(sides, names) if not name]
    exact = any(names) or None not in map(constant, values)
    return values[-1] if values and set(signs) <= {"=", "~"} and exact else None


def name_of(node):
    """The name that is defined, if there is one: "x" of x = 5, {"boy"} of "12 boys" and "boys: 12".
    """
    if node.op == "said":
        return name_of(node.args[0]) or nouns_of(node.args[1]) or None
    if node.op != "relation" or node.args[0] != ("=",):
        return None
    names = [name for name in node.args[1] if name]
    if len(names) != 1:
        return None
    return nouns_of(names) if " " in names[0] or is_noun(names[0]) else names[0]


def one_argument(a, b):
    """f(x) = x + 1 and f(t) = t + 1 in one variable."""
    matches = []
    for node in (a, b):
        name = name_of(node) if node.op == "relation" else None
        matches.append(ARGUMENT.fullmatch(name) if isinstance(name, str) else None)
    if all(matches) and matches[0][1] == matches[1][1] and matches[0][2] != matches[1][2]:
        b = renamed(b, matches[1][2], matches[0][2])
    return a, b


def renamed(node, old, new):
    """A tree with another letter for one of its variables."""
    if node == Node("name", (old,)):
        return Node("name", (new,))
    return Node(node.op, tuple(renamed(arg, old, new) if isinstance(arg, Node) else arg
                               for arg in node.args))


def is_noun(name):
    return len(name) > 2 and name.isalpha() and name.islower()


def same_name(a, b):
    """Whether two definitions may define the same: x and y may; f(1) and f(2), AB and CD may not.
    """
    a, b = name_of(a), name_of(b)
    if not a or not b or a == b:
        return True
    if type(a) is not type(b):
        return True
    if type(a) is frozenset:
        return bool(a & b)
    if any(map(TRIGONOMETRIC.match, (a, b))):
        return False

    # the base letter and the rest: a and _1, f and (2), AB and nothing
    bases = [re.match(r"\\?[A-Za-z]+|\W", name)[0] for name in (a, b)]
    rests = [re.sub(r"\([a-z]\)", "", name[len(base):]) for name, base in zip((a, b), bases)]
    if bases[0] == bases[1]:
        return rests[0] == rests[1]
    particular = any(map(PARTICULAR.search, rests))
    return not particular and not all(len(base) > 1 and base[-1].isupper() for base in bases)

def equal_equations(sign, a, b):
    """a = 0 against b = 0: up to a factor, and without denominators. -x >= -y is x <= y."""
    if variables(a) != variables(b):
        return False
    factor = constant_ratio(a, b)
    if factor is not None:
        return sign in ("=", "!=") or type(factor) is not complex and factor > 0
    if sign != "=":
        return False
    (upper, lower), (other, below) = cleared(a), cleared(b)
    if not lower and not below or constant_ratio(upper, other) is None:
        return False
    return not any(map(partial(common_zero, upper), lower)) \
        and not any(map(partial(common_zero, other), below))


def constant_ratio(a, b):
    """The quotient of two trees if it is the same at all random places, else None."""
    ratios = []
    for point in points(a, b, 4):
        x, y = evaluate(a, point), evaluate(b, point)
        if not x or not y:
            return None
        ratios.append(divide(x, y))
        if subtract(ratios[-1], ratios[0]):
            return None
    return ratios[0]


def cleared(node):
    """(numerator, factors of the denominator): y - 1/x -> (x*y - 1, [x])"""
    if node.op in ("+", "-"):
        (a, below), (b, under) = map(cleared, node.args)
        common = [factor for factor in below if factor in under]
        a = reduce(times, [factor for factor in under if factor not in common], a)
        b = reduce(times, [factor for factor in below if factor not in common], b)
        return Node(node.op, (a, b)), list(dict.fromkeys(below + under))
    if node.op == "*":
        (a, below), (b, under) = map(cleared, node.args)
        return Node("*", (a, b)), below + under
    if node.op == "/":
        (a, below), (b, under) = map(cleared, node.args)
        return reduce(times, under, a), below + ([b] if variables(b) else [])
    return node, []


def common_zero(tree, factor):
    """Whether some x makes both zero: then clearing the denominator would add a solution. Also True
    if that cannot be told.
    """
    names = variables(factor)
    if len(names) != 1:
        return True
    places = {Fraction(n, d) for n in range(-12, 13) for d in (1, 2, 3)}
    for place in sorted(places):
        at = {name: Fraction(89, 97) for name in variables(tree)} | {min(names): place}
        with suppress(ArithmeticError, DecimalException):
            if not evaluate(factor, at) and not evaluate(tree, at):
                return True
    return False
