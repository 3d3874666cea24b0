"""The built-in world: number puzzles that are hard to solve and easy to check, in five levels.

    27 increased by 2 times a number is 39. What is the number?
    Make 19 from 3, 5 and 8, each once, with +, - and *.

Nothing lists answers to choose from. To check a number is to put it back into the question, a few
small calculations. To find it is harder: suppose a number, see how far off the question it is, and
work out from that where the right one must be. This is the rule of false position, and a second
attempt can begin with another number. Countdown asks for an expression: hard to find, easy to
compute.

A family says how its puzzles are drawn and worded, and how an answer is put back. The stages use
only the questions. `lessons.py` writes solutions and checks of other puzzles for the base.

Who may see a puzzle is decided by its equation and its numbers alone. So two wordings of one
puzzle, or two families that ask the same thing in other words, never end up on different sides.

    >>> make_puzzles("train", 1, seed=0)[0]
    Problem(id='square-...', question='A number times itself plus 9 is 58. ...', answer='7', ...)
"""
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

from nanoverify.problems import Problem, split_of
from nanoverify.support.files import InputError

LEVELS = (1, 2, 3, 4, 5)
# from and to, by level: the number to be found; what is added or taken away
UNKNOWN = {1: (2, 7), 2: (2, 9), 3: (2, 12), 4: (3, 15), 5: (4, 18)}
SMALL = {1: (1, 9), 2: (1, 15), 3: (1, 20), 4: (1, 30), 5: (1, 40)}
NAMES = ("Ann", "Bob", "Eva", "Tom", "Mia", "Sam")
TRIALS = (2, 4, 6, 8, 10)  # numbers that a solution begins with: "Suppose 4."


# ---- sentences of solutions and checks ---------------------------------------------------------

def add(a, b):
    return f"{a} + {b} = {a + b}."


def minus(a, b):
    return f"{a} - {b} = {a - b}."


def times(a, b):
    """'17 * 8 = 136.'; of two factors, one with two digits comes first."""
    if a < 10:
        a, b = b, a
    return f"{a} * {b} = {a * b}."


def compare(found, wanted):
    """The end of a check.

    'It should be 39, as it is.' or, where 41 came out, 'It should be 39, 2 less.'
    """
    if found == wanted:
        return f"It should be {wanted}, as it is."
    side = "more" if wanted > found else "less"
    return f"It should be {wanted}, {abs(wanted - found)} {side}."


# ---- families ----------------------------------------------------------------------------------

def nowhere_the_same(n):
    """The slope of an equation that is not linear."""
    return None


def any_trial(n):
    return TRIALS


@dataclass(frozen=True)
class Family:
    """One kind of puzzle. n: the numbers of a puzzle by name, as its wordings use them.

    equation    families with the same equation and the same numbers ask for the same thing
    draw        (rng, level) -> (n, the answer)
    wordings    questions with places for n; each shows all numbers that the answer depends on
    check       (n, any answer) -> the sentences that put this answer back into the question
    slope       n -> how far the result moves if the answer moves by 1; None: that depends on it
    trials      n -> the numbers that a solution may begin with
    """
    equation: str
    draw: Callable
    wordings: tuple[str, ...]
    check: Callable
    slope: Callable = nowhere_the_same
    trials: Callable = any_trial


def number(rng, level):
    return rng.randint(*UNKNOWN[level])


def small(rng, level):
    return rng.randint(*SMALL[level])


def factor(rng, level, least=2):
    return rng.randint(least, min(9, 3 + level))


def draw_linear(rng, level):
    x, a, b = number(rng, level), small(rng, level), factor(rng, level)
    return {"a": a, "b": b, "c": a + b * x}, x


def check_linear(n, x):
    bx = n["b"] * x
    return [times(n["b"], x), add(n["a"], bx), compare(n["a"] + bx, n["c"])]


linear = Family(
    "a + b x = c", draw_linear,
    ("{a} increased by {b} times a number is {c}. What is the number?",
     "If you multiply a number by {b} and add {a}, you get {c}. What is the number?",
     "{name} thinks of a number. {b} times the number plus {a} is {c}. What is the number?"),
    check_linear, slope=lambda n: n["b"])


def draw_both_sides(rng, level):
    x, b = number(rng, level), factor(rng, level, 3)
    d = rng.randint(2, b - 1)
    a = rng.randint(1, min((b - d) * x - 1, SMALL[level][1]))
    return {"a": a, "b": b, "d": d, "e": (b - d) * x - a}, x


def check_both_sides(n, x):
    bx, dx = n["b"] * x, n["d"] * x
    return [times(n["d"], x), add(dx, n["e"]), times(n["b"], x), minus(bx, n["a"]),
            compare(bx - n["a"], dx + n["e"])]


both_sides = Family(
    "b x - a = d x + e", draw_both_sides,
    ("{b} times a number minus {a} is the same as {d} times the number plus {e}. "
     "What is the number?",
     "{name} thinks of a number. {b} times it less {a} equals {d} times it plus {e}. "
     "What is the number?"),
    check_both_sides, slope=lambda n: n["b"] - n["d"])

# Two kinds of things: x of them at p each and the rest of n at q each come to v.

TWO_KINDS = "p x + q (n - x) = v"
LEGS = {"chickens": 2, "rabbits": 4, "beetles": 6}


def draw_rabbits(rng, level):
    x, y = number(rng, level), rng.randint(2, 3 * level)
    few, many = sorted(rng.sample(sorted(LEGS), 2), key=LEGS.get)
    p, q = LEGS[many], LEGS[few]
    return {"many": many, "few": few, "p": p, "q": q, "n": x + y, "v": p * x + q * y}, x


def draw_stamps(rng, level):
    x, y, p = number(rng, level), rng.randint(2, 3 * level), factor(rng, level, 3)
    q = rng.randint(2, p - 1)
    return {"n": x + y, "p": p, "q": q, "v": p * x + q * y}, x


def check_two_kinds(n, x):
    y = n["n"] - x
    if y < 0:
        return [f"{x} is more than {n['n']}."]
    px, qy = n["p"] * x, n["q"] * y
    return [minus(n["n"], x), times(n["p"], x), times(n["q"], y), add(px, qy),
            compare(px + qy, n["v"])]


def slope_two_kinds(n):
    return n["p"] - n["q"]


def fewer_than_all(n):
    """Trials of which some of the other kind are left."""
    return (1, 2, 3) if n["n"] <= 6 else tuple(trial for trial in TRIALS if trial < n["n"])


def two_kinds(draw, wordings):
    return Family(TWO_KINDS, draw, wordings, check_two_kinds, slope_two_kinds, fewer_than_all)


rabbits = two_kinds(
    draw_rabbits,
    ("A farm has {many} and {few} with {n} heads and {v} legs. How many {many} are there?",
     "{name} counts {n} heads and {v} legs of {many} and {few}. How many {many} are there?"))

stamps = two_kinds(
    draw_stamps,
    ("{name} buys {n} stamps, some for {p} cents and the rest for {q} cents, and pays {v} cents. "
     "How many cost {p} cents?",
     "Of {n} stamps some cost {p} cents and the rest {q} cents, {v} cents in all. "
     "How many cost {p} cents?"))

tickets = two_kinds(
    draw_stamps,
    ("A show sells {n} tickets, some to adults for {p} and the rest to children for {q}, "
     "and takes {v}. How many adults are there?",))


def draw_ages(rng, level):
    x, d, t = number(rng, level), rng.randint(1, 3 * level), rng.randint(1, 3 * level)
    return {"d": d, "t": t, "s": 2 * x + d + 2 * t}, x


def check_ages(n, x):
    younger, older = x + n["t"], x + n["d"] + n["t"]
    return [add(x, n["d"]), add(x, n["t"]), add(x + n["d"], n["t"]), add(younger, older),
            compare(younger + older, n["s"])]


ages = Family(
    "2 x + d + 2 t = s", draw_ages,
    ("{name} is {d} years older than {friend}. In {t} years their ages will add up to {s}. "
     "How old is {friend}?",
     "{friend} is {d} years younger than {name}. In {t} years they will be {s} years old "
     "together. How old is {friend}?"),
    check_ages, slope=lambda n: 2)


def draw_sum_product(rng, level):
    x, b = number(rng, level), small(rng, level)
    y = rng.randint(2, x)
    return {"s": x + y, "b": b, "p": x * y + b}, x


def check_sum_product(n, x):
    y = n["s"] - x
    if y < 0:
        return [f"{x} is more than {n['s']}."]
    if y > x:
        return [minus(n["s"], x), f"{y} is more than {x}."]
    return [minus(n["s"], x), times(x, y), add(x * y, n["b"]), compare(x * y + n["b"], n["p"])]


def not_the_smaller(n):
    """Trials that can be the larger of two numbers."""
    half = (n["s"] + 1) // 2
    return tuple(range(half, min(half + 5, n["s"])))


sum_product = Family(
    "x (s - x) + b = p", draw_sum_product,
    ("Two numbers add up to {s} and their product plus {b} is {p}. What is the larger number?",
     "The sum of two numbers is {s}. If you add {b} to their product, you get {p}. "
     "What is the larger number?"),
    check_sum_product, trials=not_the_smaller)


def draw_rectangle(rng, level):
    x, d, b = number(rng, level), rng.randint(1, 2 * level), small(rng, level)
    return {"d": d, "b": b, "a": x * (x + d) + b}, x


def check_rectangle(n, x):
    area = x * (x + n["d"])
    return [add(x, n["d"]), times(x + n["d"], x), add(area, n["b"]),
            compare(area + n["b"], n["a"])]


rectangle = Family(
    "x (x + d) + b = a", draw_rectangle,
    ("A garden is {d} m longer than it is wide. With a yard of {b} square m it has an area "
     "of {a}. How wide is the garden?",
     "The length of a garden is {d} more than its width. Its area plus {b} is {a}. "
     "How wide is it?"),
    check_rectangle)


def draw_square(rng, level):
    x, b = number(rng, level), small(rng, level)
    return {"b": b, "c": x * x + b}, x


def check_square(n, x):
    return [times(x, x), add(x * x, n["b"]), compare(x * x + n["b"], n["c"])]


square = Family(
    "x x + b = c", draw_square,
    ("A number times itself plus {b} is {c}. What is the number?",
     "{name} adds {b} to the square of a number and gets {c}. What is the number?"),
    check_square)


def draw_consecutive(rng, level):
    x, b = number(rng, level), small(rng, level)
    return {"b": b, "c": 3 * x + 3 + b}, x


def check_consecutive(n, x):
    three = 3 * x + 3
    return [add(x, x + 1), add(2 * x + 1, x + 2), add(three, n["b"]),
            compare(three + n["b"], n["c"])]


consecutive = Family(
    "3 x + 3 + b = c", draw_consecutive,
    ("Three consecutive numbers and {b} add up to {c}. What is the smallest of the three?",
     "{name} adds three consecutive numbers and {b} and gets {c}. "
     "What is the smallest of the three?"),
    check_consecutive, slope=lambda n: 3)


def draw_shopping(rng, level):
    x, d = number(rng, level), rng.randint(1, 3 * level)
    a, b = rng.randint(2, 2 + level), rng.randint(2, 2 + level)
    return {"d": d, "a": a, "b": b, "c": a * x + b * (x + d)}, x


def check_shopping(n, x):
    pens, books = n["a"] * x, n["b"] * (x + n["d"])
    return [add(x, n["d"]), times(n["a"], x), times(n["b"], x + n["d"]), add(pens, books),
            compare(pens + books, n["c"])]


shopping = Family(
    "a x + b (x + d) = c", draw_shopping,
    ("A book costs {d} more than a pen. {a} pens and {b} books cost {c}. How much is a pen?",),
    check_shopping, slope=lambda n: n["a"] + n["b"])

# ---- Countdown: the answer is an expression ----------------------------------------------------

HOW_MANY = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}  # numbers to be used, by level
UP_TO = {1: 9, 2: 12, 3: 9, 4: 14, 5: 20}  # each of them, from 2 on
SIGNS = {1: "+-*", 2: "+-*", 3: "+-", 4: "+-", 5: "+-"}  # that the target is made with
LARGEST = 120  # of all that is computed on the way


def calculate(a: int, sign: str, b: int) -> int:
    return a + b if sign == "+" else a - b if sign == "-" else a * b


def result(step: str) -> int:
    """'3 + 5 = 8.' -> 8"""
    return int(step[:-1].split(" = ")[1])


def combine(rng, numbers, signs):
    """A random expression that uses each number once: (text, value, the sign it was joined with).

    The larger side comes first, so that a + b and b + a are one expression.
    """
    if len(numbers) == 1:
        return str(numbers[0]), numbers[0], ""
    cut = rng.randint(1, len(numbers) - 1)
    left, right = combine(rng, numbers[:cut], signs), combine(rng, numbers[cut:], signs)
    sign = rng.choice(signs)
    if left[1] < right[1]:
        left, right = right, left
    text = f"{inside(left, sign, False)} {sign} {inside(right, sign, True)}"
    return text, calculate(left[1], sign, right[1]), sign


def inside(part, sign: str, on_the_right: bool) -> str:
    """The text of a part, in brackets if it needs them beside this sign."""
    text, _, own = part
    if sign == "*":
        needed = own in ("+", "-") or on_the_right and own == "*"
    else:
        needed = on_the_right and sign == "-" and own in ("+", "-")
    return f"({text})" if needed else text


def expression(rng, numbers, signs="+-*"):
    """(text, value) of a random expression of these numbers.

    Nothing that is computed on the way is above LARGEST.
    """
    while True:
        text, value, _ = combine(rng, rng.sample(numbers, len(numbers)), signs)
        if all(result(step) <= LARGEST for step in steps_of(text)):
            return text, value


def draw_countdown(rng, level):
    value = 0
    while value < 1:
        numbers = [rng.randint(2, UP_TO[level]) for _ in range(HOW_MANY[level])]
        text, value = expression(rng, numbers, SIGNS[level])
    numbers.sort()
    return {"listed": list_of(numbers), "target": value, "numbers": tuple(numbers)}, text


def list_of(numbers):
    """'3, 5 and 8'"""
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def steps_of(text: str) -> list[str]:
    """The steps that compute an expression with spaces between its parts, in reading order."""
    steps, values, signs = [], [], []

    def reduce():
        sign, b, a = signs.pop(), values.pop(), values.pop()
        values.append(calculate(a, sign, b))
        steps.append(f"{a} {sign} {b} = {values[-1]}.")

    for part in text.replace("(", "( ").replace(")", " )").split():
        if part.isdigit():
            values.append(int(part))
        elif part == "(":
            signs.append(part)
        elif part == ")":
            while signs[-1] != "(":
                reduce()
            signs.pop()
        else:
            while signs and signs[-1] != "(" and (signs[-1] == "*" or part != "*"):
                reduce()
            signs.append(part)
    while signs:
        reduce()
    return steps


def check_countdown(n, text):
    parts = text.replace("(", "").replace(")", "").split()
    used = sorted(int(part) for part in parts if part.isdigit())
    if tuple(used) != n["numbers"]:
        return [f"It should use {n['listed']}."]
    steps = steps_of(text)
    return [*steps, compare(result(steps[-1]), n["target"])]


countdown = Family(
    "expression", draw_countdown,
    ("Make {target} from {listed}, each once, with +, - and *.",
     "Use {listed}, each once, with +, - and * to get {target}."),
    check_countdown)

# ---- puzzles -----------------------------------------------------------------------------------

FAMILIES = {
    "linear": linear, "both_sides": both_sides, "rabbits": rabbits, "stamps": stamps, "ages": ages,
    "sum_product": sum_product, "rectangle": rectangle, "square": square,
    "consecutive": consecutive, "shopping": shopping, "tickets": tickets, "countdown": countdown}
# For measuring transfer: the stages never train on these three, and the base has never met
# `tickets` in any form.
HELD_OUT = ("both_sides", "shopping", "tickets")
TRAINED = tuple(name for name in FAMILIES if name not in HELD_OUT)


def puzzle(rng: random.Random, family: str, level: int) -> tuple[str, dict, Problem]:
    """One random puzzle: (its split, its numbers, the problem)."""
    kind = FAMILIES[family]
    n, answer = kind.draw(rng, level)
    numbers = sorted((key, value) for key, value in n.items() if not isinstance(value, str))
    key = f"{kind.equation}: {numbers}"
    name, friend = rng.sample(NAMES, 2)
    question = rng.choice(kind.wordings).format(name=name, friend=friend, **n)
    identity = f"{family}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    gold = str(n["target"]) if "target" in n else str(answer)
    problem = Problem(identity, question, gold, family, level, n.get("numbers"))
    return split_of(key), {**n, "x": answer}, problem


def make_puzzles(split: str, count: int, seed: int, families=TRAINED,
                 fewer: bool = False) -> list[Problem]:
    """`count` distinct puzzles of one split, in equal shares of families and levels if possible.

    `fewer`: where no more exist, take what there is. InputError otherwise.
    """
    return [problem for _, problem in puzzles_with_numbers(split, count, seed, families, fewer)]


def puzzles_with_numbers(split: str, count: int, seed: int, families=TRAINED,
                         fewer=False) -> list[tuple[dict, Problem]]:
    """As `make_puzzles`, each with the numbers it is made of and its answer, `x`."""
    rng = random.Random(f"{split} {seed}")
    cells = [(family, level) for level in LEVELS for family in families]
    chosen, misses = {}, 0
    while len(chosen) < count:
        cell = cells[len(chosen) % len(cells)]
        where, numbers, problem = puzzle(rng, *cell)
        if where == split and problem.id not in chosen:
            chosen[problem.id], misses = (numbers, problem), 0
            continue
        misses += 1
        if misses > 300:  # this cell is used up
            cells.remove(cell)
            misses = 0
            if not cells:
                if fewer:
                    break
                raise InputError(f"only {len(chosen)} distinct {split} puzzles exist for "
                                 f"{', '.join(families)}; {count} were asked for")
    drawn = list(chosen.values())
    rng.shuffle(drawn)
    return drawn
