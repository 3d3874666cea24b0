"""Whether two answers are equal.

    grade("1/2", "The answer is 0.5.")          # True
    compare("1/2", "The answer is 0.5.")        # (True, "the same value", "1/2", "0.5")

`grade` and `compare` take texts, `compare_answers` two extracted answers, `equal` two trees.
"""
import re
from contextlib import suppress
from decimal import Decimal, localcontext

from .equations import definition, equal_equations, name_of, one_argument, same_name
from .extraction import beside, boxes, extract
from .limits import MAX_ANSWER, MAX_ITEMS, MAX_STEPS, Exhausted, Unreadable
from .parse import read
from .sets import COMBINED, regions
from .spelling import TEXT, clean
from .tree import Node, number, times, variables
from .units import unit
from .values import CONTEXT, FAILURES, STEPS, constant, decimal, evaluate, points, subtract, whole
from .words import LIMITING, meaning_of, word_list

ALTERNATIVE = re.compile(r",? or ", re.I)
LOOSE = re.compile(r"(?<![0-9]) +| +(?![0-9])")
CHOICE = re.compile(r"(option|choice)?(\()?([a-j])(?:[.:)]+(.*))?", re.S | re.I)
FURTHER = re.compile(r"\s*(?:[,;&]|and\b|or\b)\s*\W?[A-Ja-j]\b")  # (A), (C)
LETTER_UNIT = re.compile(r"[\d)}] [A-Za-z](?![A-Za-z])")
MARK = re.compile(r"%|degree|percent|pct|per cent")


def equal(a, b):
    """Whether two trees are the same answer; raises Unreadable if that cannot be told."""
    ops = {a.op, b.op}
    if a == b:
        return True
    if "said" in ops:
        return equal_said(a, b)
    if "list" in ops and "relation" in ops:
        a, b = (taken_apart(a), b) if a.op == "relation" else (a, taken_apart(b))
        ops = {a.op, b.op}
    if "relation" in ops:
        return equal_relations(a, b)
    if "text" in ops:
        return differing_texts(a, b)
    if "modulo" in ops:
        return equal_remainders(a, b)
    if "ratio" in ops:
        return a.op == b.op and equal_ratios(a.args, b.args)
    if ops & {"matrix", "builder"}:  # [[1, 2], [3, 4]] is a matrix as well
        rows = ops == {"matrix", "tuple"} and len(a.args) > 1
        return (a.op == b.op or rows) and in_order(a.args, b.args)
    if "cases" in ops:
        return a.op == b.op and in_any_order(a.args, b.args)
    if ops & {"interval", *COMBINED}:
        return equal_sets(a, b)
    return equal_lists(a, b) if ops & {"list", "set", "tuple"} else equal_numbers(a, b)


def equal_relations(a, b):
    """By what they define, by the numbers they allow, or as equations."""
    a, b = one_argument(a, b)
    x, y = definition(a), definition(b)
    if x is not None and y is not None and same_name(a, b) and equal(x, y):
        return True
    cuts = regions(a, b)
    if None not in cuts or a.op != b.op:
        return None not in cuts and cuts[0] == cuts[1]
    (signs, _, *sides), (others, _, *their_sides) = a.args, b.args
    if signs != others or len(sides) > 2 or in_order(sides, their_sides):
        return signs == others and in_order(sides, their_sides)
    if x is not None and y is not None and not variables(x) | variables(y):
        return False  # two definitions of numbers
    return equal_equations(signs[0], *(Node("-", tuple(pair)) for pair in (sides, their_sides)))


def differing_texts(a, b):
    """Two different texts, or a word and a value. A longer phrase may contain that value, so it is
    unreadable.
    """
    phrase = a if a.op == "text" else b
    if a.op != b.op and len(phrase.args[0].split()) > 2:
        raise Unreadable("words against a value")
    return False


def equal_said(a, b):
    """Values with units or words: 5 m is 500 cm and 5, but not 5 kg; 5 north is not 5 south."""
    (x, words), (y, others) = (node.args if node.op == "said" else (node, ()) for node in (a, b))

    # 1. words that exclude each other; the gold may lack them, the response not
    mine, theirs = meaning_of(words), meaning_of(others)
    limiting = LIMITING & {*word_list(words), *word_list(others)}
    if mine != theirs and (mine or limiting or word_list(words)):
        return False

    # 2. units of one measure are converted
    units = [{unit(word[1:]) for word in side if word[:1] == '"'} for side in (words, others)]
    if all(len(side) == 1 for side in units):
        (scale, measure), (other, measured_too) = (side.pop() for side in units)
        if measure != measured_too and not any("unit" in pair for pair in measure + measured_too):
            return False
        if scale != other and measure == measured_too:
            x, y = definition(x), definition(y)
            return None not in (x, y) and equal(times(number(scale), x), times(number(other), y))
    return equal(x, y)


def taken_apart(node):
    """(x, y) = (1, 2) -> x = 1, y = 2; and x = y = 2 -> x = 2, y = 2"""
    signs, names, *sides = node.args
    if set(signs) != {"="}:
        return node
    if len(sides) == 2 and sides[0].op == sides[1].op == "tuple" and names[0]:
        pairs = zip(sides[0].args, sides[1].args)
        return Node("list", tuple(
            Node("relation", (("=",), (left.args[0], ""), left, right))
            for left, right in pairs if left.op == "name"))
    if len(sides) > 2 and all(names[:-1]) and not names[-1]:
        return Node("list", tuple(Node("relation", (("=",), (name, ""), side, sides[-1]))
                                  for name, side in zip(names[:-1], sides)))
    return node


def equal_remainders(a, b):
    """3 (mod 7) is 10 (mod 7), and 3."""
    if a.op != b.op:
        return equal(*(node.args[0] if node.op == "modulo" else node for node in (a, b)))
    if not equal(a.args[1], b.args[1]):
        return False
    x, y, modulus = constant(a.args[0]), constant(b.args[0]), constant(a.args[1])
    if None in (x, y, modulus):
        return equal(a.args[0], b.args[0])
    return whole(subtract(x, y)) % whole(modulus) == 0


def equal_ratios(these, those):
    """2:3:5 is 4:6:10."""
    if len(these) != len(those):
        return False
    return all(equal(times(x, those[0]), times(y, these[0])) for x, y in zip(these, those))


def equal_sets(a, b):
    """Intervals and their combinations. x < 4, y > 2 has two variables, so it is a list."""
    cuts = regions(a, b)
    if None not in cuts:
        return cuts[0] == cuts[1]
    if a.op == b.op == "\\cap":
        return in_any_order(a.args, b.args)
    return a.op == b.op and in_order(a.args, b.args)


def in_order(these, those):
    return len(these) == len(those) and all(
        equal(x, y) if isinstance(x, Node) else x == y for x, y in zip(these, those))


def in_any_order(these, those):
    left = list(those)
    if len(these) != len(left) or len(left) > MAX_ITEMS:
        return False
    for x in these:
        for y in left:
            if comparable(x, y):
                left.remove(y)
                break
        else:
            return False
    return True


def comparable(x, y):
    """Whether two elements are equal. Those that cannot be compared are not."""
    try:
        return equal(x, y)
    except Exhausted:
        raise
    except FAILURES:
        return False


def equal_lists(a, b):
    """Tuples in their order, lists and sets in any order; named values by their names."""
    these, those = (x.args if x.op in ("list", "set", "tuple") else (x,) for x in (a, b))
    if "tuple" in (a.op, b.op):
        return len(these) > 1 and in_order(these, those)

    # elements may be repeated in sets and in lists of points
    if a.op == b.op == "set" or all(item.op == "tuple" for item in these + those):
        these, those = tuple(dict.fromkeys(these)), tuple(dict.fromkeys(those))
    if len(these) != len(those):
        if {x.op for x in these} ^ {x.op for x in those} == {"text"}:
            raise Unreadable("words in a list")
        return False

    # x = 1, y = 2 against y = 2, x = 1
    names, other = list(map(name_of, these)), list(map(name_of, those))
    distinct = [None not in side and len(set(side)) == len(side) > 1 for side in (names, other)]
    if all(distinct) and set(names) == set(other):
        by_name = dict(zip(other, those))
        return all(equal(x, by_name[name]) for x, name in zip(these, names))
    if any(distinct):
        return in_order(these, those)
    return in_any_order(these, those)


def rounds_to(node, exact):
    """A decimal of at least six digits, four after the point, is equal to what rounds to it."""
    if node.op != "number" or node.args[1] < 4 or abs(node.args[0]) * 10 ** node.args[1] < 10**5:
        return False
    is_real = type(exact) is complex and not exact.imag
    exact = Decimal(exact.real) if is_real else decimal(exact)
    return type(exact) is Decimal and \
        abs(exact - decimal(node.args[0])) < Decimal(1).scaleb(-node.args[1])


def equal_numbers(a, b):
    """Exactly, or to 50 digits; where there are variables, at random points."""
    # 1. without variables
    x, y = constant(a), constant(b)
    if x is not None and y is not None:
        return not subtract(x, y) or rounds_to(a, y) or rounds_to(b, x)
    if not variables(a) and x is None or not variables(b) and y is None:
        raise Unreadable("it has no value")

    # 2. at random points; at whole numbers if there is no value between them, as of n!
    for integers in (False, True):
        same = []
        for point in points(a, b, 10, integers):
            try:
                x, y = evaluate(a, point), evaluate(b, point)
            except Exhausted:
                raise
            except FAILURES:
                continue
            imaginary = any(type(v) is complex and abs(v.imag) > 1e-9 * abs(v) for v in (x, y))
            same.append((imaginary, not subtract(x, y)))
            if same[-1] == (False, False):
                return False
        if same:
            real_points = sum(not imaginary for imaginary, _ in same)
            return real_points >= 3 or all(agree for _, agree in same)
    raise Unreadable("it has no value at the points tried")


def compare(gold: str, response: str):
    """(True, False or None; the reason; the extracted gold; the extracted answer)"""
    if not gold or not gold.strip():
        return False, "there is no gold answer", "", ""
    a, b = extract(gold, join_boxes=True), extract(response)
    if not a or not b:
        return None, "no answer found", a, b
    if a == b:
        return True, "the same text", a, b
    if a.isdecimal() and b.isdecimal() and len(a) < MAX_ANSWER > len(b):
        return int(a) == int(b), "integers", a, b

    # several boxes, several spellings of one value
    STEPS.left = MAX_STEPS
    with suppress(*FAILURES):
        a, b = one_spelling(one_of_equals(gold, a)), one_spelling(b)
        if response.count("box") > 1 and read(clean(a)).op in ("list", "set"):
            b = extract(response, join_boxes=True)
    try:
        return *compare_answers(a, b), a, b
    except FAILURES as error:
        return None, f"unreadable: {error}", a, b


def one_of_equals(gold, joined):
    """Boxes that give one value in several spellings are one answer: the last."""
    if gold.count("box") < 2 or (last := extract(gold)) == joined:
        return joined
    with localcontext(CONTEXT):
        trees = [read(clean(content)) for content in beside(gold, boxes(gold))]
        return last if all(equal(tree, trees[-1]) for tree in trees) else joined


def one_spelling(text):
    """"0.75 or 3/4" is one answer."""
    spellings = ALTERNATIVE.split(text)
    if len(text) > 200 or not 2 <= len(spellings) <= 3:
        return text
    with localcontext(CONTEXT):
        trees = [read(clean(spelling)) for spelling in spellings]
        same = all(equal(tree, trees[0]) for tree in trees)
    return spellings[0] if same else text


def choice(text):
    """("B", what follows) of "(B)", "B. 5", "Option B"; None if it is no letter of a choice."""
    m = CHOICE.fullmatch(text)
    if not m or not (m[3].isupper() or m[1] or m[2]) or FURTHER.match(m[4] or ""):
        return None
    return m[3].upper(), m[4]


def compare_answers(a, b):
    """(whether two extracted answers are equal, the reason)"""
    x, y = clean(a), clean(b)

    # 1. as texts
    plain = [LOOSE.sub("", TEXT.sub(r"\1", s)) for s in (x, y)]
    words = len(plain[0]) > 1 and (TEXT.fullmatch(x) or TEXT.fullmatch(y))
    if plain[0] == plain[1] or words and plain[0].casefold() == plain[1].casefold():
        return True, "the same text but for spaces and fonts"
    letters = [choice(s) for s in plain]
    if all(letters) and not all(m[1] for m in letters):
        return letters[0][0] == letters[1][0], "letters of a choice"

    # 2. as trees; then in the other meanings of %, of "5 m" and of 100,200
    with localcontext(CONTEXT):
        if equal(read(x), read(y)):
            return True, "the same value"
        if bool(MARK.search(x)) != bool(MARK.search(y)):  # 28% is 28 and 0.28; 60 degrees pi/3
            trees = [read(text, marks=False) for text in (x, y)]
            why = "compared without percent and degree signs"
            return not any(map(has_unit, trees)) and equal(*trees), why
        if LETTER_UNIT.search(x) or LETTER_UNIT.search(y):  # 5 m may be 5 * m
            if equal(*(read(text, letters=False) for text in (x, y))):
                return True, "the same value"
        lists = [clean(text, grouped=False) for text in (a, b)
                 if "," in text and not re.search(r", ?0\d", text)]
        if len(lists) == 2 and lists != [x, y]:  # 100,200 may be one number or two
            return equal(*map(read, lists)), "compared as values"
        return False, "compared as values"


def has_unit(node):
    """Whether it has a unit such as metres: 5 m is neither 5% nor 5 degrees."""
    return node.op == "said" and any(word[:1] == '"' for word in node.args[1])


def grade(gold: str, response: str):
    """True: the response's answer equals the gold's. False: it does not. None: it cannot be read.

    gold: an answer, or a whole solution with one.
    """
    return compare(gold, response)[0]
