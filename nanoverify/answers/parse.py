"""Tokens to a tree, by recursive descent. Each rule of the grammar is one method of `Parser`:

    statement = relation {("," | ";" | "and" | "or") relation}
    relation  = side {("=" | "<" | "in" | ...) side} ["(mod" operation ")"]
    side      = words | [words] operation
    operation = product {("+" | "-") product}, and looser than these: "cup", "cap", "over", ...
    product   = factor {["*" | "/" | ":" | "mod"] factor | unit | word}
    factor    = "-" factor | postfix ["^" factor]
    postfix   = atom {"!" | "%" | "degree" | "_" index | "'"}
    atom      = number | name | function | fraction | root | bracket | |absolute value| | matrix
"""
import itertools
import re
from fractions import Fraction
from functools import lru_cache

from .limits import MAX_ITEMS, Unreadable
from .spelling import SPACES, TEXT
from .tokens import SHORT_WORDS, SPELLED, is_word, tokenize
from .tree import (
    Node,
    both_hold,
    choose,
    either,
    is_inequality,
    is_relation,
    number,
    plus,
    times,
    to_power,
)
from .units import with_units
from .words import CLOCK, LIMITING, OPPOSITES, UNNAMED, spoken, word_list

WORDS = re.compile(r"[^\W\d_][^\W\d_'’ ,.-]*(?:[ '’,.-]+[^\W\d_]+)*[.!]?")
ARTICLE = re.compile(r"^(?:on|in|at)\b|\b(?:the|a|an)\b|[^\w]+")
LETTERS_LISTED = re.compile(r"[A-Z](?:(?:, ?| and |, and | or )[A-Z])+")
ITEMS = re.compile(r",? and |, ?|,? or ")
MONTH = (r"(january|february|march|april|may|june|july|august|september|october|november|december)")
DATE = re.compile(rf"{MONTH} (\d{{1,2}})(?:st|nd|rd|th)?(?:,? (\d{{4}}))?"
                  rf"|(?:the )?(\d{{1,2}})(?:st|nd|rd|th)? (?:of )?{MONTH}(?:,? (\d{{4}}))?", re.I)
LEADING = UNNAMED | OPPOSITES.keys() | LIMITING | frozenset(
    "rs point points pair ordered interval set value number equation line vector matrix".split())
RELATIONS = ("=", "~", "<", ">", "<=", ">=", "!=", "\\in", "->")
OPERATORS = (("\\cup", "\\cap", "\\setminus"), ("+", "-"))
FUNCTIONS, UNKNOWN, LETTERS = (frozenset("\\" + word for word in words.split()) for words in (
    "sin cos tan cot sec csc arcsin arccos arctan ln log exp sinh cosh tanh max min gcd lcm floor "
    "ceil abs cbrt",
    "overline vec hat bar overrightarrow widehat tilde underline mathcal lim sum prod int det",
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell ldots "
    "integers bound jmath"))
CLOSERS = {"(": (")", "]"), "[": ("]", ")"), "\\{": ("\\}",), "{": ("}",),
           "\\langle": ("\\rangle",)}
AROUND = {"\\lfloor": ("\\floor", "\\rfloor"), "\\lceil": ("\\ceil", "\\rceil"),
          "|": ("\\abs", "|"), "\\|": ("\\abs", "\\|")}
INFINITE, INTEGERS, E = Node("infinity", ()), Node("name", ("\\integers",)), Node("e", ())
REALS = Node("interval", (Node("*", (number(-1), INFINITE)), INFINITE, "()"))
CONSTANTS = {"\\pi": Node("pi", ()), "e": E, "i": Node("i", ()), "\\infty": INFINITE,
             "\\emptyset": Node("set", ()), "\\reals": REALS, "...": Node("name", ("...",))}
STARTERS = FUNCTIONS | UNKNOWN | LETTERS | AROUND.keys() | {
    "(", "[", "{", "\\langle", "\\frac", "\\sqrt", "\\binom", "\\beginmatrix", "\\begincases",
    "\\pi", "\\infty"}

# The left side of a definition: x, a_{10}, f'(x), f^{-1}(3), P(X <= 2), AB, |AB|, mA, dy/dx, ...
LETTER = (r"(?:\\[A-Za-z]+|m?[A-Z]{2,4}|m[A-Z]|[A-Za-z])(?:_(?:\w|\{[^{}]*\}|\\[A-Za-z]+))?'*"
          r"(?:\^\{?-1\}?)?(?:\((?:[\w,|.]|-|\\cup|\\cap)*\))?")
NAME = re.compile(
    rf"{LETTER}(?::{LETTER})*|\({LETTER}(?:,{LETTER})*\)|\|{LETTER}\|"
    r"|(?:[A-Zfgh]|\\Pr)'*(?:\^\{?-1\}?)?(?:\([^=]{1,60}\)|\[[^=]{1,60}\])"
    r"|P\((?:[^=]|(?<=[<>])=){1,60}\)|\([fgh](?:\*[fgh])+\)\([^=]{1,60}\)"
    r"|(?:\\frac\{d(?:\^\d)?[a-z]?\}\{d[a-z](?:\^\d)?\}|d[a-z]/d[a-z])"
    r"(?:[a-z](?:\([a-z]\))?|\([a-z]\))?"
    rf"|\\(?:sin|cos|tan|cot|sec|csc)\(?{LETTER}\)?")


@lru_cache(4096)
def read(text: str, marks=True, letters=True) -> Node:
    """The tree of a cleaned answer; raises Unreadable unless the grammar covers all of it.

    read("x + 1")   # Node("+", (Node("name", ("x",)), Node("number", (Fraction(1), 0))))

    marks: keep % and degree signs. letters: "5 m" is five metres.
    """
    if not text:
        raise Unreadable("empty")
    text = spoken(text)
    plain = SPACES.sub(" ", TEXT.sub(r"\1", text)).strip()
    words = phrase(plain)
    if words is not None:
        return Node("text", (words,))
    tokens = tokenize(with_units(plain if TEXT.fullmatch(text) else text, letters))
    tokens = [token for token in tokens if marks or token not in ("%", "\\degree")]

    # plus-minus is read twice: once with + first and once with - first
    trees = []
    for first, second in ("+-", "-+") if {"\\pm", "\\mp"} & set(tokens) else ("+-",):
        parser = Parser([{"\\pm": first, "\\mp": second}.get(token, token) for token in tokens])
        trees.append(parser.statement(("",)))
        parser.expect("")
    versions = both(trees[0], trees[-1])
    if all(version.op == "relation" and version.args[0] == ("!=",) for version in versions):
        return both_hold(versions)  # x is neither 2 nor -2
    return versions[0] if len(versions) == 1 else Node("list", tuple(versions))


def phrase(text):
    """A time of day, a date or words in one spelling; None of anything else.

    phrase("the 4th of July")   # 'july 4'
    """
    if clock := CLOCK.fullmatch(text):
        return f"{int(clock[1])}:{clock[2] or '00'} {clock[3].lower()}m"
    if date := DATE.fullmatch(text):
        month, day, year = date[1] or date[5], date[2] or date[4], date[3] or date[6] or ""
        return f"{month.casefold()} {int(day)} {year}".strip()
    wordy = " " in text or len(text) > 3 or text.lower() in SHORT_WORDS
    if not WORDS.fullmatch(text) or not wordy:
        return None
    if text.lower() in SPELLED or LETTERS_LISTED.fullmatch(text):
        return None
    items = [ARTICLE.sub(" ", item).strip() for item in ITEMS.split(text.casefold())]
    listed = len(items) > 1 and all(len(item.split()) in (1, 2) for item in items)
    return " , ".join(sorted(items) if listed else items)


def both(upper, lower):
    """The values of a tree read with the upper and with the lower signs of plus-minus. The signs
    within (+-1, +-2) are independent."""
    if upper == lower:
        return [upper]
    if upper.op in ("list", "set"):
        values = itertools.chain(*map(both, upper.args, lower.args))
        return [Node(upper.op, tuple(values))]
    if upper.op == "tuple":
        tuples = itertools.product(*map(both, upper.args, lower.args))
        return [Node("tuple", values) for values in itertools.islice(tuples, MAX_ITEMS)]
    return [upper, lower]


class Parser:
    """Reads a list of tokens from left to right; `at` is the place of the next one."""

    def __init__(self, tokens):
        self.tokens, self.at = [*tokens, ""], 0
        self.bars = False  # inside |...|, where the next bar closes
        self.words = []  # within the side of the relation that is being read

    def peek(self):
        return self.tokens[self.at]

    def take(self, *wanted):
        """The next token if it is one of `wanted`, else ''."""
        token = self.peek() if self.peek() in wanted else ""
        self.at += bool(token)
        return token

    def expect(self, *wanted):
        if self.peek() not in wanted:
            token = self.peek()
            raise Unreadable(f"{token!r} was not expected" if token else
                             f"{wanted[0]!r} is missing at the end")
        return self.take(*wanted)

    def statement(self, closers):
        """Relations with a comma, "and" or "or" between them: x = 1, y = 2 or x = 2, y = 1"""
        items, joints, alternatives = [self.relation()], set(), []
        while joint := self.take(",", ";", "and", "or"):
            here = {joint}  # ", and" is one joint of two tokens
            while joint:
                here.add(joint)
                joint = self.take(",", "and", "or")
            if self.peek() in closers and not here & {"and", "or"}:
                break
            if "or" in here:
                alternatives.append(len(items))
            joints |= here
            items.append(self.relation())
        kept = [item for item in items if not is_integer_condition(item)]
        if len(kept) < len(items):  # x = 2k, k in Z
            items, alternatives = kept or items, []
        if len(items) > 1 and all(map(is_inequality, items)):
            return either(items) if "or" in joints else both_hold(items)
        if alternatives and all(map(is_relation, items)):
            items = grouped_by_names(items, [0, *alternatives, len(items)])
        return Node("list", tuple(items)) if len(items) > 1 else items[0]

    def relation(self):
        """2 < x = y; without a sign it is only the side."""
        signs, names, sides = [], [], []
        while True:
            side, name = self.side()
            sides.append(side)
            names.append(name)
            sign = self.take(*RELATIONS)
            if not sign and name and self.peek() == ":":
                sign = self.take(":") and "="
            if not sign:
                break
            signs.append(sign)

        # 5 (mod 7); a > b is read as b < a
        if self.take("\\pmod"):
            side = sides[-1] = Node("modulo", (side, self.atom()))
        if set(signs) <= {">", ">="}:
            signs = [sign.replace(">", "<") for sign in signs[::-1]]
            names, sides = names[::-1], sides[::-1]
        if not signs:
            return side

        # words and units of a side are said of the relation
        words = [word for side in sides if side.op == "said" for word in side.args[1]]
        sides = [side.args[0] if side.op == "said" else side for side in sides]
        node = Node("relation", (tuple(signs), tuple(names), *sides))
        return Node("said", (node, tuple(words))) if words else node

    def side(self):
        """(one side of a relation; its name if it is one, as f(x), AB or boys; else "")"""
        start, outer = self.at, self.words
        while is_word(self.peek()):
            self.at += 1
        words = [token.strip('"“') for token in self.tokens[start:self.at]]
        follows = self.peek() not in (*RELATIONS, ",", ";", "and", "or", ":", "", ")", "]", "}",
                                      "\\}", "\\\\", "&", "\\endmatrix")
        in_text = all(token[0] == "“" for token in self.tokens[start:self.at])
        known = all(word in LEADING for word in word_list(words))
        if words and not (follows and (in_text or known)):
            return Node("text", (" ".join(words).casefold(),)), " ".join(words).casefold()
        self.words = words
        begin = self.at
        side = self.operation()
        spelled = "".join(self.tokens[begin:self.at])
        name = spelled if side.op == "call" or NAME.fullmatch(spelled) else ""
        if self.words:
            side = Node("said", (side, tuple(self.words)))
        self.words = outer
        return side, name

    def operation(self, level=0):
        if level == len(OPERATORS):
            return self.product()
        node = self.operation(level + 1)
        while sign := self.take(*OPERATORS[level]):
            combine = plus if level else lambda a, b, sign: Node(sign, (a, b))
            node = combine(node, self.operation(level + 1), sign)
        if not level and (sign := self.take("\\over", "\\choose")):
            below = self.operation()
            return Node("/", (node, below)) if sign == "\\over" else choose(node, below)
        return node

    def product(self):
        node, ratio = self.factor(), []
        while True:
            if sign := self.take("*", "/", "\\bmod"):
                if is_word(self.peek()):  # people / km
                    continue
                node = times(node, self.factor(), sign)
            elif self.peek() == ":" and not is_word(self.tokens[self.at - 1]) and self.take(":"):
                ratio.append(node)
                node = self.factor()
            elif is_word(self.peek()):
                self.words.append(self.peek().strip("“") if self.peek()[0] == "“"
                                  else self.peek()[1:])
                self.at += 1
                if self.take("^"):
                    self.atom()
            elif self.goes_on():
                node = times(node, self.factor())
            else:
                break
        if not ratio:
            return node
        parts = (*ratio, node)
        return Node("ratio", parts) if len(parts) > 2 else times(*parts, "/")

    def goes_on(self):
        """Whether another factor follows without a sign: 2x, 3(x + 1), x \\sin x."""
        token = self.peek()
        if token == "|" or token[:1].isdigit():
            return not self.bars if token == "|" else self.tokens[self.at - 1] in ("!", ")")
        return token in STARTERS or len(token) == 1 and token.isalpha()

    def factor(self):
        if sign := self.take("-", "+"):
            node = self.factor()
            if node.op == "number" and sign == "-":
                return number(-node.args[0], node.args[1])
            return times(number(-1), node) if sign == "-" else node
        node = self.postfix()
        return to_power(node, self.factor()) if self.take("^") else node

    def postfix(self):
        token, node = self.peek(), self.atom()
        while sign := self.take("!", "%", "\\degree", "_", "'"):
            if sign in "_'" and node.op not in ("name", "call"):
                raise Unreadable(f"{sign!r} without a name")
            index = self.index() if sign == "_" else node
            node = Node("call", (token + sign, index)) if sign in "_'" else Node(sign, (node,))
        return node

    def index(self):
        """a_1, a_{n+1}, x_{max}"""
        if self.peek() in FUNCTIONS or is_word(self.peek()):
            self.at += 1
            return Node("name", (self.tokens[self.at - 1].strip('"“\\').lower(),))
        opener, word, closer = (*self.tokens[self.at:self.at + 3], "", "")[:3]
        if opener == "{" and (is_word(word) or word in FUNCTIONS) and closer == "}":
            self.at += 3
            return Node("name", (word.strip('"“\\').lower(),))
        return self.atom()

    def atom(self, digits=None):
        """digits: take only this number of digits, as \\frac12 does."""
        token = self.peek()
        if digits and token.isdigit() and len(token) > digits:
            self.tokens[self.at] = token[digits:]
            return number(token[:digits])
        self.at += 1
        if token in CONSTANTS:
            return CONSTANTS[token]
        if token[:1].isdigit() or token[:1] == "." or "_" in token[1:]:
            return literal(token)
        if token == "-":
            return times(number(-1), self.atom())
        if token in CLOSERS:
            return self.bracket(token)
        if token in AROUND:
            return self.between_bars(token)
        if token in ("f", "g", "h") and self.take("("):
            return Node("call", (token, self.bracket("(")))
        if len(token) == 1 and token.isalpha() or token in LETTERS:
            return Node("name", (token,))
        return self.command(token)

    def between_bars(self, opener):
        """|x|, \\lfloor x \\rfloor, \\lceil x \\rceil"""
        function, closer = AROUND[opener]
        outer, self.bars = self.bars, opener == "|"
        node = Node(function, (self.operation(),))
        self.bars = outer
        self.expect(closer)
        return node

    def command(self, token):
        """What starts with a backslash: fractions, roots, functions, matrices."""
        if token in ("\\frac", "\\binom"):
            a, b = self.atom(1), self.atom(1)
            return times(a, b, "/") if token == "\\frac" else choose(a, b)
        if token == "\\sqrt":
            degree = self.bracket("[") if self.take("[") else number(2)
            return Node("^", (self.atom(), Node("/", (number(1), degree))))
        if token in FUNCTIONS:
            return self.function(token)
        if token in UNKNOWN:
            return self.unknown(token)
        if token == "\\beginmatrix":
            return self.matrix()
        if token == "\\begincases":
            self.expect("\\beginmatrix")
            return self.matrix(cases=True)
        raise Unreadable(f"{token!r} was not expected" if token else "something is missing")

    def unknown(self, name):
        """\\sum_{k=1}^{10} k^2 and \\prod are computed; \\lim, \\int, \\vec are only compared."""
        if self.tokens[self.at:self.at + 4] == ["_", "{", "i", "="]:  # here i is an index
            self.tokens[self.at:] = ["\\jmath" if t == "i" else t for t in self.tokens[self.at:]]
        bounds = {sign: self.atom() for _ in range(2) if (sign := self.take("_", "^"))}
        body = self.product() if bounds else self.atom()
        low, high = bounds.get("_"), bounds.get("^")
        if name in ("\\sum", "\\prod") and low and high and low.op == "relation":
            signs, _, running, first = low.args
            if signs == ("=",) and running.op == "name":
                return Node(name, (running, first, high, body))
        return Node("call", (name, *bounds.values(), body))

    def function(self, name):
        """\\sin x, \\sin^2 x, \\sin(x + 1), \\log_2 8, \\max(2, 3)"""
        scripts = {}
        while mark := self.take("_", "^"):
            scripts[mark] = self.atom()

        # without brackets the operand ends at the next function or bracket: \\sin 2x (x + 1)
        bracketed = self.peek() in CLOSERS
        inside = self.atom() if bracketed else self.factor()
        while not bracketed and self.goes_on() and self.peek() not in FUNCTIONS \
                and self.peek() not in CLOSERS:
            inside = Node("*", (inside, self.factor()))
        if scripts.get("^") == number(-1):
            del scripts["^"]
            name = "\\arc" + name[1:]
        if name == "\\log":
            base = Node("\\ln", (scripts.get("_", number(10)),))
            node = Node("/", (Node("\\ln", (inside,)), base))
        elif name in ("\\exp", "\\cbrt"):
            third = number(Fraction(1, 3))
            node = Node("^", (E, inside) if name == "\\exp" else (inside, third))
        else:
            node = Node(name, inside.args if inside.op == "tuple" else (inside,))
        return Node("^", (node, scripts["^"])) if "^" in scripts else node

    def bracket(self, opener):
        """(a), (a, b), [a, b), {a, b}, {x | x > a}"""
        # 1. what is inside
        outer, self.bars = self.bars, False
        if opener == "\\{" and (bar := self.builder_bar()):
            inside = self.builder(bar)
        elif opener == "\\{" and self.peek() == "\\}":
            inside = Node("list", ())
        else:
            inside = self.statement(CLOSERS[opener])
        closer = self.expect(*CLOSERS[opener])
        self.bars = outer

        # 2. what the brackets make of it
        items = inside.args if inside.op == "list" else (inside,)
        if inside.op in ("builder", "holding"):
            return inside if inside.op == "builder" else inside.args[0]
        if opener == "\\{" or opener == "{" and len(items) > 1:
            return Node("set", items)
        kinds = {item.op for item in items}
        if opener == "[" and len(items) > 1 and kinds == {"tuple"}:
            return Node("list", items)  # [(1, 2), (3, 4)]
        if opener == "[" and len(items) > 1 and kinds == {"interval"} and all(
                item.args[2] == "[]" for item in items):  # [[1, 2], [3, 4]]
            return Node("matrix", tuple(Node("tuple", item.args[:2]) for item in items))
        if len(items) == 2 and opener + closer in ("[]", "[)", "(]"):
            return Node("interval", (*items, opener + closer))
        if opener + closer in ("[)", "(]"):
            raise Unreadable("brackets of two kinds")
        return Node("tuple", items) if len(items) > 1 else inside

    def builder_bar(self):
        """The place of the bar or colon of {x | x > 2}; 0 if this is no such set."""
        depth, bars = 0, []
        for place in range(self.at, len(self.tokens)):
            token = self.tokens[place]
            if token in CLOSERS:
                depth += 1
            elif depth == 0 and token == "\\}":
                break
            elif token in (")", "]", "}", "\\}", "\\rangle"):
                depth -= 1
            elif depth == 0 and token in ("|", "\\mid", ":"):
                bars.append(place)
        mids = [place for place in bars if self.tokens[place] == "\\mid"]
        return (mids or bars or [0])[0] if mids or len(bars) % 2 else 0

    def builder(self, bar):
        """{x in R | 1 < x} is that interval; {2n : n in Z} keeps both sides, with n renamed
        "bound"."""
        end = next(i for i in range(bar, len(self.tokens)) if self.tokens[i] in ("\\}", ""))
        letters = {token for token in self.tokens[self.at:bar]
                   if len(token) == 1 and token.isalpha()}
        if len(letters) == 1:
            self.tokens[self.at:end] = ["\\bound" if token in letters else token
                                        for token in self.tokens[self.at:end]]
        self.tokens[bar] = "\\mid"
        what = self.relation()
        self.expect("\\mid")
        conditions = self.statement(("\\}",))
        name = Node("name", ("\\bound",))
        if what == name:
            return Node("holding", (conditions,))
        if what.op == "relation" and what.args[0] == ("\\in",) and what.args[2] == name:
            if what.args[3] == REALS:
                return Node("holding", (conditions,))
            return Node("holding", (Node("\\cap", (what, conditions)),))
        return Node("builder", (what, conditions))

    def matrix(self, cases=False):
        """\\begin{pmatrix} a & b \\\\ c & d \\end{pmatrix}. One column is a tuple; of equations it
        is a list. In cases, "5, & x > 0" is a value with its condition.
        """
        rows = [[]]
        while not self.take("\\endmatrix"):
            if self.take("\\\\"):
                rows.append([])
            elif not self.take("&", ",", ";") or not rows[-1]:
                while rows[-1] and cases and self.peek()[1:] in ("if", "for", "when"):
                    self.at += 1
                rows[-1].append(self.relation())
        rows = [Node("tuple", tuple(row)) for row in rows if row]
        if len({len(row.args) for row in rows}) != 1:
            raise Unreadable("rows of different lengths")
        if len(rows[0].args) > 1:
            return Node("cases" if cases else "matrix", tuple(rows))
        column = tuple(row.args[0] for row in rows)
        if len(column) == 1:
            return column[0]
        return Node("list" if all(map(is_relation, column)) else "tuple", column)


def is_integer_condition(node):
    """k in Z"""
    return node.op == "relation" and node.args[-1] == INTEGERS


def grouped_by_names(items, borders):
    """x = 1, y = 2 or x = 2, y = 1 is a list of two lists; x = 1 or x = 2 stays one list.

    borders: the places of the items after each "or", with both ends.
    """
    groups = [tuple(items[a:b]) for a, b in zip(borders, borders[1:])]
    if len(groups) < 2 or len(groups[0]) < 2 or len({len(group) for group in groups}) != 1:
        return items
    return [Node("list", group) for group in groups]


def literal(token):
    """12, 3.50, 1e3, 0.1(6), 101_2; keeps the number of digits after the point, for rounding."""
    if token.isdecimal():
        return number(int(token))
    if "_" in token:
        digits, base = token.split("_")
        return number(int(digits, int(base.strip("{} "))))
    if repeating := re.match(r"(\d*)\.(\d*)[\\(]\D*(\d+)", token):
        whole, fixed, period = repeating.groups()
        tail = Fraction(int(fixed + period) - int(fixed or 0),
                        10 ** len(fixed) * (10 ** len(period) - 1))
        return number(int(whole or 0) + tail)
    mantissa, _, exponent = token.lower().partition("e")
    if len(exponent) > 4:
        raise Unreadable("too large an exponent")
    decimals = 0 if exponent else len(mantissa.partition(".")[2])
    return number(Fraction(mantissa.rstrip(".")) * Fraction(10) ** int(exponent or 0), decimals)
