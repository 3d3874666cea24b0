"""The number that a tree stands for.

It is a Fraction if it can be, else a Decimal of 50 digits, else a complex. A sum that nearly
cancels is zero. That is the only tolerance, and it is relative to the numbers added.
"""
import cmath
import math
import operator
import random
import threading
import zlib
from decimal import (
    Context,
    Decimal,
    DecimalException,
    DivisionByZero,
    InvalidOperation,
    Overflow,
    Underflow,
)
from fractions import Fraction
from functools import lru_cache, partial

from .limits import MAX_BITS, MAX_FACTORIAL, MAX_STEPS, MAX_TERMS, Exhausted, Unreadable
from .tree import Node, children, show, variables

CONTEXT = Context(prec=50, Emin=-10**6, Emax=10**6,
                  traps=[InvalidOperation, DivisionByZero, Overflow, Underflow])
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494")
INFINITY = Decimal("Infinity")
NOTHING = {Fraction: 0, Decimal: Decimal("1e-40"), complex: 1e-9}
FAILURES = (Unreadable, ArithmeticError, DecimalException, ValueError, TypeError, LookupError,
            AttributeError, RecursionError)
RANGES = ((1, 4), (0, 1), (2, 9), (0, 1), (-4, -1), (-1, 0), (1, 30))
COSTS = {"^": 12, "!": 12} | dict.fromkeys(("\\ln", "e"), 12) | dict.fromkeys(
    ("\\sin", "\\cos"), 20) | dict.fromkeys(("\\tan", "\\cot", "\\sec", "\\csc"), 40)
STEPS = threading.local()


def spend(cost):
    """Counts the operations of one grade, not the time: so it is the same on any machine."""
    STEPS.left = getattr(STEPS, "left", MAX_STEPS) - cost
    if STEPS.left < 0:
        raise Exhausted(f"more than {MAX_STEPS} steps")


def decimal(x):
    return Decimal(x.numerator) / Decimal(x.denominator) if type(x) is Fraction else x


def bits(x):
    return max(x.numerator.bit_length(), x.denominator.bit_length()) if type(x) is Fraction else 0


def widened(operate):
    """The operation on two numbers, both in the wider of their types. A fraction beyond MAX_BITS
    becomes a decimal.
    """
    def apply(a, b):
        if type(a) is not type(b):
            a, b = map(complex if complex in (type(a), type(b)) else decimal, (a, b))
        result = operate(a, b)
        return decimal(result) if bits(result) > MAX_BITS else result
    return apply


@widened
def add(a, b):
    total = a + b
    return Fraction(0) if abs(total) < NOTHING[type(a)] * max(abs(a), abs(b)) else total


multiply, divide = widened(operator.mul), widened(operator.truediv)


def subtract(a, b):
    return add(a, -b)


def power(a, b):
    if type(b) is Fraction and b.denominator == 1 and type(a) is not Decimal:
        if type(a) is complex or abs(b) * bits(a) <= MAX_BITS:
            return a ** int(b)
        return decimal(a) ** int(b)
    if complex in (type(a), type(b)):
        return complex(a) ** complex(b)
    if a < 0:  # where there is a real root it is meant, not the principal one
        odd = type(b) is Fraction and b.denominator % 2
        return multiply(power(-a, b), Fraction(-1) ** b.numerator) if odd else \
            complex(a) ** complex(b)
    if not a:
        return Fraction(0) ** (1 if b > 0 else -1)
    return integral(decimal(a).sqrt() if b == Fraction(1, 2) else decimal(a) ** decimal(b))


def integral(x):
    """A decimal as a fraction if it is a whole number, except for its last digits."""
    if type(x) is Decimal and x < 10**15 and not subtract(x, nearest := x.to_integral_value()):
        return Fraction(int(nearest))
    return x


def factorial(x):
    if type(x) is Fraction and x.denominator == 1 and 0 <= x <= MAX_FACTORIAL:
        return Fraction(math.factorial(int(x)))
    return complex(math.gamma(float(x) + 1))  # overflows for large numbers: those have no value


def real(exact, otherwise):
    return lambda x: otherwise(x) if type(x) is complex else exact(decimal(x))


def sine(x):
    if abs(x) > 10**9:
        raise Unreadable("the sine of a large number")
    turns = (x / PI).to_integral_value()
    x = decimal(add(x, -turns * PI))
    term = total = -x if turns % 2 else x
    for n in range(2, 60, 2):
        term = -term * x * x / (n * (n + 1))
        total += term
    return total


def hyperbolic(sign, x):
    """cosh (sign 1) or sinh (sign -1). Of large numbers they differ too little for 50 digits."""
    if abs(x) > 10:
        raise Unreadable("a hyperbolic function of a large number")
    return (x.exp() + sign * (-x).exp()) / 2


def whole(x):
    if type(x) is not Fraction or x.denominator != 1:
        raise Unreadable("no whole number")
    return int(x)


SIN, COS, ONE = real(sine, cmath.sin), real(lambda x: sine(x + PI / 2), cmath.cos), Fraction(1)
OPERATIONS = {
    "+": add, "-": subtract, "*": multiply, "/": divide, "^": power, "!": factorial, "\\abs": abs,
    "%": lambda x: divide(x, Fraction(100)), "\\degree": lambda x: multiply(x, PI / 180),
    "pi": lambda: PI, "e": lambda: Decimal(1).exp(), "i": lambda: 1j, "infinity": lambda: INFINITY,
    "\\sin": SIN, "\\cos": COS, "\\tan": lambda x: divide(SIN(x), COS(x)),
    "\\cot": lambda x: divide(COS(x), SIN(x)), "\\sec": lambda x: divide(ONE, COS(x)),
    "\\csc": lambda x: divide(ONE, SIN(x)), "\\ln": real(Decimal.ln, cmath.log),
    "\\arcsin": cmath.asin, "\\arccos": cmath.acos, "\\arctan": cmath.atan,
    "\\sinh": real(partial(hyperbolic, -1), cmath.sinh), "\\tanh": cmath.tanh,
    "\\cosh": real(partial(hyperbolic, 1), cmath.cosh),
    "\\max": lambda *x: max(x, key=decimal), "\\min": lambda *x: min(x, key=decimal),
    "\\floor": lambda x: Fraction(math.floor(integral(x))),
    "\\ceil": lambda x: Fraction(math.ceil(integral(x))), "\\bmod": widened(operator.mod),
    "\\gcd": lambda *x: Fraction(math.gcd(*map(whole, x))),
    "\\lcm": lambda *x: Fraction(math.lcm(*map(whole, x))),
    "said": lambda x: x, "modulo": lambda x, modulus: x}


def evaluate(node, point):
    """The number that a tree stands for with its variables at `point`: {"name x": Fraction(3)}"""
    if node.op == "number":
        return node.args[0]
    if node.op == "name":
        return point["name " + node.args[0]]
    spend(COSTS.get(node.op, 1))
    if node.op in ("\\sum", "\\prod"):
        return series(node, point)
    operands = [evaluate(child, point) for child in children(node)]
    if node.op in ("call", "relation", "tuple", "matrix"):  # an unknown function
        return arbitrary(node, point, operands)
    if node.op not in OPERATIONS:
        raise Unreadable(f"{node.op} is not a number")
    result = OPERATIONS[node.op](*operands)
    spend(bits(result) // 64)
    return result


def arbitrary(node, point, operands):
    """Some number; the same for the same function of the same operands."""
    own = [arg for arg in node.args if not isinstance(arg, Node)]
    key = (node.op, own, point.get(""), *(f"{complex(x):.9g}" for x in operands))
    return Fraction(zlib.crc32(repr(key).encode()) % 99991 + 1, 9973)


def series(node, point):
    """A finite sum or product."""
    name, low, high, body = node.args
    low, high = (whole(evaluate(bound, point)) for bound in (low, high))
    if high - low > MAX_TERMS:
        raise Unreadable(f"more than {MAX_TERMS} terms")
    spend(2 * max(0, high - low))
    terms = (evaluate(body, point | {"name " + name.args[0]: Fraction(k)})
             for k in range(low, high + 1))
    result, operate = (Fraction(0), add) if node.op == "\\sum" else (ONE, multiply)
    for term in terms:
        result = operate(result, term)
        spend(bits(result) // 128)
    return result


@lru_cache(4096)
def measured(node):
    """(the value of a tree without variables, or None; the steps that it took)"""
    if variables(node):
        return None, 1
    before, STEPS.left = getattr(STEPS, "left", MAX_STEPS), MAX_STEPS
    try:
        value = evaluate(node, {})
    except FAILURES:
        value = None
    cost, STEPS.left = MAX_STEPS - STEPS.left, before
    return value, cost


def constant(node):
    """The value of a tree without variables; None if there is none."""
    value, cost = measured(node)
    spend(cost)
    return value


def points(a, b, count, integers=False):
    """Places for the variables of two trees: random, but the same for the same trees. The
    denominator is a prime, so that no two values are related by accident.
    """
    rng = random.Random(" ".join(sorted(map(show, (a, b)))))
    names = ["", *sorted(variables(a) | variables(b))]
    for i in range(count):
        low, high = RANGES[i % len(RANGES)]
        if integers:
            yield {name: Fraction(rng.randint(1, 4 + i)) for name in names}
        else:
            yield {name: Fraction(rng.randint(97 * low + 1, 97 * high - 1), 97) for name in names}
