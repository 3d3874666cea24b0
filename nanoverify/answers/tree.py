"""The tree of an answer: its nodes, questions about its form, sums and products of trees.

    read("x + 1")   # Node("+", (Node("name", ("x",)), Node("number", (Fraction(1), 0))))

    number                     (Fraction, digits after the point)
    name                       ("x",)
    + - * / ^ ! \\sin ...       (tree, ...)
    call                       ("f", tree): an unknown function
    said                       (tree, words): a value with words or a unit
    relation                   (signs, names of the sides, *sides); the name "" is none, as of x + 1
    interval                   (low, high, "[)")
    list, set, tuple, matrix   (tree, ...)
    text                       ("tuesday",)
"""
from fractions import Fraction
from functools import lru_cache, reduce
from typing import NamedTuple

from .limits import MAX_MATRIX, MAX_TOKENS, Unreadable


class Node(NamedTuple):
    op: str
    args: tuple


def number(value, decimals=0):
    return Node("number", (Fraction(value), decimals))


def children(node):
    return [arg for arg in node.args if isinstance(arg, Node)]


@lru_cache(4096)
def variables(node):
    """The names in a tree, and its unknown functions."""
    own = {node.op + " " + node.args[0]} if node.op in ("name", "call") else ()
    names = frozenset(own).union(*map(variables, children(node)))
    return names - {"name " + node.args[0].args[0]} if node.op in ("\\sum", "\\prod") else names


def size(node):
    """The number of nodes of a tree, or at least MAX_TOKENS: counting stops beyond it."""
    count, waiting = 0, [node]
    while waiting and count <= MAX_TOKENS:
        count += 1
        waiting += children(waiting.pop())
    return count


def is_relation(node):
    return node.op == "relation" or node.op == "said" and is_relation(node.args[0])


def is_inequality(node):
    return node.op == "relation" and not {"=", "~"} & set(node.args[0])


def either(items):
    return reduce(lambda a, b: Node("\\cup", (a, b)), items)


def both_hold(items):
    return reduce(lambda a, b: Node("\\cap", (a, b)), items)


def times(a, b, sign="*"):
    """The product or quotient. A number multiplies a matrix or a vector entry by entry."""
    if sign == "*" and a.op == b.op == "matrix":
        if len(a.args[0].args) != len(b.args) or len(b.args) > MAX_MATRIX:
            raise Unreadable("matrices that cannot be multiplied")
        columns = list(zip(*(row.args for row in b.args)))
        rows = ([dot(row.args, column) for column in columns] for row in a.args)
        return Node("matrix", tuple(Node("tuple", tuple(row)) for row in rows))
    if sign == "*" and a.op == "matrix" and b.op == "tuple" and len(a.args[0].args) == len(b.args):
        return Node("tuple", tuple(dot(row.args, b.args) for row in a.args))
    if b.op in ("tuple", "matrix") and a.op not in ("tuple", "matrix") and sign == "*":
        return Node(b.op, tuple(times(a, x) for x in b.args))
    if a.op in ("tuple", "matrix") and b.op not in ("tuple", "matrix") and sign in "*/":
        return Node(a.op, tuple(times(x, b, sign) for x in a.args))
    return Node(sign, (a, b))


def dot(these, those):
    """The scalar product; a number if all entries are numbers."""
    if all(x.op == "number" for x in (*these, *those)):
        return number(sum(x.args[0] * y.args[0] for x, y in zip(these, those)))
    result = reduce(lambda a, b: Node("+", (a, b)), map(times, these, those))
    if size(result) > MAX_TOKENS:
        raise Unreadable("too large a product of matrices")
    return result


def plus(a, b, sign="+"):
    """The sum or difference; of matrices and vectors entry by entry, of sets their difference."""
    if a.op == b.op and a.op in ("tuple", "matrix") and len(a.args) == len(b.args):
        return Node(a.op, tuple(plus(x, y, sign) for x, y in zip(a.args, b.args)))
    if sign == "-" and b.op == "set" and a.op in ("interval", "set", "\\cup"):
        sign = "\\setminus"
    return Node(sign, (a, b))


def choose(a, b):
    """The binomial coefficient."""
    below = Node("*", (Node("!", (b,)), Node("!", (Node("-", (a, b)),))))
    return Node("/", (Node("!", (a,)), below))


def to_power(node, exponent):
    """A power; of a matrix by multiplying."""
    if node.op == "matrix":
        if exponent.op != "number" or exponent.args[0] not in range(1, MAX_MATRIX + 1):
            raise Unreadable("this power of a matrix")
        return reduce(times, [node] * int(exponent.args[0]))
    return Node("^", (node, exponent))


def show(node):
    """A tree as text: (+ x (number 1 0))."""
    if isinstance(node, Node):
        return f"({' '.join([node.op, *map(show, node.args)])})"
    return str(node)
