"""Does this answer equal that one? A verifier by rules, for rewards: exact where it can be, silent where it cannot read.

    grade("\\\\frac{1}{2}", "17 * 8 = 136. The answer is 0.5.")   # True, False, or None: unreadable
    extract("x = 9, so the answer is $9$.")                       # '9'
    verdict("39 is 39. Therefore, the answer is correct.")        # True, False, or None: no verdict

    python -m nanoverify.answers '[-2, 7]' 'So $-2 \\\\le x \\\\le 7$.'   # what was extracted, how it was read, the verdict, why

Four steps: extract (the last \\boxed{}, `#### n`, <answer>, "the answer is ...", formula or number), read, compare, verdict.
Reading turns LaTeX or plain text into tokens, and by recursive descent into a tree. Each rule is one method of `Parser`:

    statement = relation {("," | ";" | "and" | "or") relation}
    relation  = operation {("=" | "<" | "in" | ...) operation}
    operation = product {("+" | "-") product}, and looser than these: "cup", "cap", "minus"
    product   = factor {["*" | "/" | ":" | "mod"] factor | unit}
    factor    = "-" factor | postfix ["^" factor]
    postfix   = atom {"!" | "%" | "degree" | "_" index | "'"}
    atom      = number | name | function | fraction | root | bracket | |absolute value| | matrix

Limits. Units are dropped, not converted. Complex numbers, inverse trigonometry and factorials of fractions are compared
to 9 digits only. `28%` reads as 28 and as 0.28, `60` degrees as 60 and as pi/3. A decimal of six digits or more (four
after the point) also equals what rounds to it. Limits, sums, integrals and determinants are unknown functions, products
of matrices unreadable. Work is bounded by the MAX_ constants below; beyond them an answer is unreadable.
"""
import cmath
import itertools
import math
import operator
import random
import re
import sys
import unicodedata
from contextlib import suppress
from decimal import Context, Decimal, DecimalException, DivisionByZero, InvalidOperation, Overflow, Underflow, localcontext
from fractions import Fraction
from functools import lru_cache, partial, reduce
from typing import NamedTuple

MAX_RESPONSE, MAX_VERIFICATION = 10_000, 4_000  # characters: only the end of a longer text is searched
MAX_ANSWER, MAX_TOKENS = 2_000, 300  # of an answer that is read; nor can its tree be deeper
MAX_ITEMS = 64  # parts of a list in any order
MAX_BITS = 20_000  # of an exact number; larger ones become decimals
MAX_STEPS = 6_000  # operations in one comparison
MAX_FACTORIAL = 2_500


class Unreadable(ValueError):
    """This text, or this number, is beyond the grammar or the limits."""


# ---- 1. extract: the final answer within a text ---------------------------------------------------------------------

TURN = re.compile(r"<\|[^|<>\n]{1,40}\|>|</s>")
BRACE = re.compile(r"\\.|[{}]", re.S)
BOX = re.compile(r"\\f?box(?:ed)?\s*(?=\{)")
OPEN_BOX = re.compile(r"\\f?box(?:ed)?\s*\{?([^\n$]*)")
BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;&]|\\[()\[\],;!:]|\\q?quad|\\text\w*\{\s*(?:and|or)\s*\}|and|or|[A-Za-z](?:_\{?\w+\}?)?\s*=)*")
PHRASE = re.compile(
    r"(?:\banswers?\b(?:\s[^.\n:=]{1,80}?)??(?:\s(?:is|are|was|be|equals|becomes)\b|\s*[:=])|^[ \t]*A:)"
    r"(?:[\s*:]|\b(?:indeed|therefore|thus|simply|just|clearly|exactly|approximately|about|equal to)\b)*"
    r"(?!\s|(?:\w+ )?(?:not |in)?(?:correct|right|wrong|valid|verified)\b)", re.I | re.M)
SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n|</")
REASON = re.compile(r",?\s+(?:because|since|as|so|which|where|when|but|for)\b|,\s+not\b", re.I)
SPAN = re.compile(r"\$\$([^$]+)\$\$|\\\[((?:[^\\]|\\[^\[\]])*)\\\]|\\\(((?:[^\\]|\\[^()])*)\\\)|(?<!\\)\$((?:[^$\\]|\\.)+)\$", re.S)
COMMAND = re.compile(r"\\(?:text\w*|mbox|mathrm|operatorname|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+")
VERB = re.compile(r"\b(?:is|are|was|be|equals|we|there)\b", re.I)
PLAIN = r"[-+]?\\?\$?\d[\d,]*(?:\.\d+)?%?"
NUMBER = re.compile(rf"(?<![A-Za-z0-9_.,{{^\\]){PLAIN}(?:\s*[-+*/]\s*{PLAIN})*(?![A-Za-z0-9_^{{}}\\])")
MATH = re.compile(r"[\d\\$]")


def extract(response: str, join_boxes=False) -> str:
    """The final answer of a text, '' if there is none. `join_boxes`: \\boxed{1} and \\boxed{2} side by side are one list."""
    text = (response or "")[-MAX_RESPONSE:].strip()
    if "<" in text:
        text = next((part for part in TURN.split(text) if part.strip()), "").strip()
        text = text.rpartition("</think>")[2].strip() or text
    if "\\box" in text or "\\fbox" in text:
        found = boxes(text)
        if not found:
            return OPEN_BOX.findall(text)[-1].strip()
        start, end, answer = found[-1]
        for left, right, content in reversed(found[:-1] if join_boxes else []):
            if right > start or not BETWEEN_BOXES.fullmatch(text[right:start]):
                break
            answer, start = answer if content == found[-1][2] else f"{content}, {answer}", left
        later = after_phrase(text[end:])
        return later if MATH.search(later) else answer
    _, mark, tail = text.rpartition("####")
    line, _, rest = tail.lstrip("# \t").partition("\n")
    if mark and line and (MATH.search(line) or not rest.strip()):
        return final(line)
    inside, mark, _ = text.rpartition("</answer>")
    if mark and "<answer>" in inside:
        return final(inside.rpartition("<answer>")[2])
    return after_phrase(text) or final(text)


def after_phrase(text):
    """What follows the last "the answer is", up to the end of its sentence; '' if it is never said."""
    for phrase in reversed(list(PHRASE.finditer(text))):
        if tail := text[phrase.end():]:
            span = SPAN.match(tail)
            end = SENTENCE_END.search(tail, span.end() if span else 0)
            return final(tail[:end.start()] if end else tail)
    return ""


def boxes(text):
    """(start, end, content) of each box whose braces close."""
    opened, closed = [], {}
    for brace in BRACE.finditer(text):
        if brace[0] == "{":
            opened.append(brace.start())
        elif brace[0] == "}" and opened:
            closed[opened.pop()] = brace.start()
    return [(box.start(), closed[box.end()] + 1, text[box.end() + 1:closed[box.end()]].strip())
            for box in BOX.finditer(text) if box.end() in closed]


def final(text):
    """The answer in a text without a marker: the whole of it, or in prose what stands last."""
    text = text.replace('\\"', '"').strip(' \t\n*`"')
    head = REASON.split(text, maxsplit=1)[0].strip(" *")
    tails = [text[verb.end():].strip(" *.:") for verb in reversed(list(VERB.finditer(text))[-4:])]
    for claim in (head, text, *tails):
        if bare(claim) and (claim == text or MATH.search(claim)):
            return claim
    spans, numbers = list(SPAN.finditer(text)), list(NUMBER.finditer(text))
    if spans and (not numbers or numbers[-1].start() < spans[-1].end()):
        return spans[-1][spans[-1].lastindex].strip()
    return numbers[-1][0] if numbers else text


def bare(text):
    """No prose: one line, no verb, at most two words, and none in front of a formula between dollar signs."""
    text_only = COMMAND.sub(" ", text)
    words = [word for word in re.findall(r"[A-Za-z]{2,}", text_only) if word.lower() not in SPELLED]
    if "\n" in text or VERB.search(text_only) or len(words) > 2:
        return False
    return not words or bool(SPAN.match(text)) or not SPAN.search(text)


# ---- 2. read: text -> tokens -> tree --------------------------------------------------------------------------------

class Node(NamedTuple):
    """A tree. Operations: ("+", (tree, tree)); numbers: ("number", (Fraction, digits after the point)); ("name", ("x",));
    unknown functions: ("call", ("f", tree)); answers with parts: list, set, tuple, matrix, interval, relation."""
    op: str
    args: tuple


def number(value, decimals=0):
    return Node("number", (Fraction(value), decimals))


CHARACTERS = str.maketrans(dict(zip("−–—×·∙⋅÷⁄∕∶′∣", "---****///:'|")) | dict.fromkeys("€£¥₹\u200b\ufeff", "") | {
    "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "π": "\\pi ", "∞": "\\infty ", "√": "\\sqrt ", "±": "\\pm ",
    "∓": "\\mp ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "∅": "\\emptyset ", "°": "\\degree ", "ℝ": "\\reals ", "θ": "\\theta ",
    **{c: f"^{i}" for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}, **{c: f"_{i}" for i, c in enumerate("₀₁₂₃₄₅₆₇₈₉")}})
VULGAR = re.compile(r"[¼-¾⅐-⅞]")
REWRITTEN = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r"(?<=\d)(?:\s*\{,\s*\}|,?\\!|\\,)\s*(?=\d{3}(?!\d))", ""),  # 1{,}234
    (r"\\(?:left|right|middle)\s*\.|\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|limits|boldsymbol|mathbf|bf|rm"
     r"|phantom\{\}|hline|boxed|fbox|angle|triangle)(?![a-zA-Z])|\\?\$|(?<!\\)\\[()\[\]!]|\*\*|`", ""),
    (r"(?<!\\)\\(?:[,;:> ]|q?quad\b|hspace\{[^{}]*\})|~|\s+", " "),
    (r"\^ ?\{? ?\\(?:circ|degree) ?\}?|\\textdegree(?![a-z])", r"\\degree "),
    (r"\\begin ?\{vmatrix\}", r"\\det\\beginmatrix "),
    (r"\\(begin|end) ?\{(?:[pbBv]?(?:small)?matrix|array)\}(?:\{[lcr| ]*\})?", r"\\\1matrix "),
    (r"\\mathbb ?\{? ?(?:(R)|[ZN]) ?\}?", lambda m: r"\reals " if m[1] else r"\integers "),
    (r"(?<![\w.^}])(\d+)(?: (\d+/\d+)(?![\d^])| ?(\\[dtc]?frac ?(?:\d ?\d|\{\d+\} ?\{\d+\})))", r"(\1+\2\3)"),  # 1 1/2
    (r"\\\{ ?[A-Za-z] ?(?:\\in ?\\reals)? ?(?:\||:|\\mid)((?:(?!\\\}).)*)\\\}", r"(\1)"))]  # {x | ...}
PAIR = r"(?:(?<=[(\[])|(?<=\\\{))[\d,]+(?:[)\]]|\\\})"  # (1,234) is a point
GROUPED = re.compile(rf"(?<![\d.,])(?!{PAIR})\d{{1,3}}(?:,\d{{3}})+(?![\d,])")
TEXT = re.compile(r"\\(?:text\w*|mbox|mathrm|emph)\s*\{([^{}]*)\}")
WORDS = re.compile(r"[^\W\d_][^\W\d_'’ ,.-]*(?:[ '’,.-]+[^\W\d_]+)*[.!]?")
ARTICLE = re.compile(r"\b(?:the|a|an)\b|[^\w]+")
TOKEN = re.compile(r"""
    \d*\.\d*(?:\\(?:overline|bar|dot)\s*(?:\{\d+\}|\d)|\(\d+\))             # repeating decimal
  | \d+_(?:\d|\{\d+\})                                                      # in some base
  | (?:\d+(?:\.(?!\.)\d*)?|\.\d+)(?:[eE][-+]?\d+(?![\w.]))?
  | \\(?:text\w*|mbox|mathrm|operatorname\*?|mathit|mathsf|emph)\s*\{(?P<text>[^{}]*)\}
  | \\[A-Za-z]+ | \\\\(?:\[[^\]]*\])? | \\[^A-Za-z]
  | (?P<word> [A-Za-z]+)
  | <=|>=|!=|==|:=|<>|\*\*|\.\.\.|\S""", re.X | re.ASCII)

SAME = dict(pair.split() for pair in r"""** ^|\cdot *|\times *|\ast *|\div /|\colon :|== =|:= =|\equiv =|\lt <|\gt >|\le <=|\leq <=
    |\leqslant <=|\ge >=|\geq >=|\geqslant >=|\ne !=|\neq !=|<> !=|\approx ~|\simeq ~|\dfrac \frac|\tfrac \frac|\cfrac \frac
    |\dbinom \binom|\tbinom \binom|\lbrace \{|\rbrace \}|\lbrack [|\rbrack ]|\cupdot \cup|\bigcup \cup|\backslash \setminus
    |\varnothing \emptyset|\ldots ...|\dots ...|\cdots ...|\% %|\lg \log|\mod \bmod|\prime '|\varphi \phi|\varepsilon \epsilon
    |\to ->|\rightarrow ->|\& and|\_ _""".split("|")) | dict.fromkeys(("\\lvert", "\\rvert", "\\vert", "\\mid"), "|")
SPELLED = {  # words -> the token they stand for
    "and": "and", "or": "or", "percent": "%", "percentage": "%", "pct": "%", "degrees": "\\degree", "degree": "\\degree",
    "infinity": "\\infty", "inf": "\\infty", "oo": "\\infty", "union": "\\cup", "mod": "\\bmod", "in": "\\in",
    **{word: "\\" + word for word in "sqrt cbrt pi infty sin cos tan cot sec csc arcsin arccos arctan log ln exp max min gcd "
       "lcm floor ceil abs binom alpha beta gamma delta theta lambda mu phi omega sigma rho tau".split()}}
UNITS = frozenset("mm cm km dm kg mg lb oz ft in yd mi ml min hr hrs sec mph kph usd am pm cents cent sq cu rad".split())
RELATIONS = ("=", "~", "<", ">", "<=", ">=", "!=", "\\in", "->")
OPERATORS = (("\\cup", "\\cap", "\\setminus"), ("+", "-"))
FUNCTIONS, UNKNOWN, LETTERS = (frozenset("\\" + word for word in words.split()) for words in (
    "sin cos tan cot sec csc arcsin arccos arctan ln log exp max min gcd lcm floor ceil abs cbrt",
    "overline vec hat bar overrightarrow widehat tilde underline mathcal lim sum prod int det",
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell ldots integers"))
CLOSERS = {"(": (")", "]"), "[": ("]", ")"), "\\{": ("\\}",), "{": ("}",), "\\langle": ("\\rangle",)}
AROUND = {"\\lfloor": ("\\floor", "\\rfloor"), "\\lceil": ("\\ceil", "\\rceil"), "|": ("\\abs", "|"), "\\|": ("\\abs", "\\|")}
INFINITE, INTEGERS, E = Node("infinity", ()), Node("name", ("\\integers",)), Node("e", ())
CONSTANTS = {"\\pi": Node("pi", ()), "e": E, "i": Node("i", ()), "\\infty": INFINITE, "\\emptyset": Node("set", ()),
             "\\reals": Node("interval", (Node("*", (number(-1), INFINITE)), INFINITE, "()")), "...": Node("name", ("...",))}
STARTERS = FUNCTIONS | UNKNOWN | LETTERS | AROUND.keys() | {
    "(", "[", "{", "\\langle", "\\frac", "\\sqrt", "\\binom", "\\beginmatrix", "\\pi", "\\infty"}
LETTER = r"(?:\\[A-Za-z]+|[A-Z]{2,4}|[A-Za-z])(?:_(?:\w|\{[^{}]*\}|\\[A-Za-z]+))?'*(?:\^\{?-1\}?)?(?:\((?:[\w,|]|\\cup|\\cap)*\))?"
NAME = re.compile(rf"{LETTER}(?::{LETTER})*|\({LETTER}(?:,{LETTER})*\)|\|{LETTER}\|")  # the left side of a definition


def clean(text, grouped=True):
    """One spelling for what looks alike: no dollar signs, sizes, spaces, fancy characters. `grouped`: 1,234 is one number."""
    if not text.isascii():
        text = VULGAR.sub(lambda m: " " + unicodedata.normalize("NFKC", m[0]), text).translate(CHARACTERS)
        text = unicodedata.normalize("NFKC", text)
    if "\\\\" in text and "\\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)  # escaped once too often
    for pattern, replacement in REWRITTEN:
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(" .,;:")
    return GROUPED.sub(lambda m: m[0].replace(",", ""), text) if grouped else text


def tokenize(text):
    """Tokens are strings: numbers, letters, \\commands, symbols; what is words, such as a unit, starts with a quote."""
    tokens = []
    for m in TOKEN.finditer(text):
        token = m[0]
        if m.lastgroup == "text":
            if word := m["text"].strip(" ,"):
                tokens.append(SPELLED.get(word.lower(), word if word in "ei" else '"' + word))
        elif m.lastgroup == "word":
            after_number = bool(tokens) and (tokens[-1][0].isdigit() or tokens[-1][0] == '"')
            spaced = text[m.start() - 1:m.start()] == " "
            if token.lower() in SPELLED and not (after_number and token == "in"):
                tokens.append(SPELLED[token.lower()])
            elif len(token) > 3 or after_number and (token.lower() in UNITS or spaced and len(token) > 2):
                tokens.append('"' + token)
            else:
                tokens += token
        else:
            tokens.append("\\\\" if token[:2] == "\\\\" else SAME.get(token, token))
    if len(tokens) > MAX_TOKENS:
        raise Unreadable(f"more than {MAX_TOKENS} tokens")
    return tokens


@lru_cache(4096)
def read(text: str, marks=True) -> Node:
    """The tree of a cleaned answer. Unreadable if the grammar does not cover all of it. `marks`: keep % and degree signs."""
    plain = TEXT.sub(r"\1", text).strip()
    if WORDS.fullmatch(plain) and (" " in plain or len(plain) > 3) and plain.lower() not in SPELLED:
        return Node("text", (ARTICLE.sub(" ", plain.casefold()).strip(),))
    if len(text) > MAX_ANSWER or not text:
        raise Unreadable("empty" if not text else f"longer than {MAX_ANSWER} characters")
    tokens = tokenize(plain if TEXT.fullmatch(text) else text)
    tokens = [token for token in tokens if marks or token not in ("%", "\\degree")]
    trees = []
    for plus, minus in ("+-", "-+") if {"\\pm", "\\mp"} & set(tokens) else ("+-",):
        parser = Parser([{"\\pm": plus, "\\mp": minus}.get(token, token) for token in tokens])
        trees.append(parser.statement(("",)))
        parser.expect("")
    versions = both(trees[0], trees[-1])
    return versions[0] if len(versions) == 1 else Node("list", tuple(versions))


def both(plus, minus):
    """The values of a tree read with + and with - for plus-minus. Within (+-1, +-2) each sign is free."""
    if plus == minus:
        return [plus]
    if plus.op in ("list", "set"):
        return [Node(plus.op, tuple(itertools.chain(*map(both, plus.args, minus.args))))]
    if plus.op == "tuple":
        parts = itertools.product(*map(both, plus.args, minus.args))
        return [Node("tuple", part) for part in itertools.islice(parts, MAX_ITEMS)]
    return [plus, minus]


def times(a, b, sign="*"):
    """The product, or quotient; a vector or matrix entry by entry."""
    if b.op in ("tuple", "matrix") and a.op not in ("tuple", "matrix") and sign == "*":
        return Node(b.op, tuple(times(a, x) for x in b.args))
    return Node(sign, (a, b))


class Parser:
    def __init__(self, tokens):
        self.tokens, self.at = [*tokens, ""], 0
        self.bars = False  # inside |...|, where the next bar closes

    def peek(self):
        return self.tokens[self.at]

    def take(self, *wanted):
        """The next token, if it is one of the wanted; '' if not."""
        token = self.peek() if self.peek() in wanted else ""
        self.at += bool(token)
        return token

    def expect(self, *wanted):
        if self.peek() not in wanted:
            raise Unreadable(f"{self.peek()!r} was not expected" if self.peek() else f"{wanted[0]!r} is missing at the end")
        return self.take(*wanted)

    def statement(self, closers):
        items, joints = [self.relation()], set()
        while joint := self.take(",", ";", "and", "or"):
            while joint:
                joints.add(joint)
                joint = self.take(",", "and", "or")
            if self.peek() not in closers:
                items.append(self.relation())
        items = [i for i in items if i.op != "relation" or i.args[-1] != INTEGERS] or items  # x = 2k, k in Z
        if len(items) > 1 and all(i.op == "relation" and not {"=", "~"} & set(i.args[0]) for i in items):
            return reduce(lambda a, b: Node("\\cup" if "or" in joints else "\\cap", (a, b)), items)
        return Node("list", tuple(items)) if len(items) > 1 else items[0]

    def relation(self):
        """Node("relation", (signs, which sides are names such as f(x) or words, *sides))"""
        signs, named, sides = [], [], []
        while True:
            start = self.at
            while self.peek().startswith('"'):
                self.at += 1
            words = " ".join(self.tokens[start:self.at]).replace('"', "").casefold()
            side = Node("text", (words,)) if words else self.operation()
            named.append(side.op in ("call", "text") or bool(NAME.fullmatch("".join(self.tokens[start:self.at]))))
            sides.append(side)
            sign = self.take(*RELATIONS) or words and self.take(":") and "="
            if not sign:
                break
            signs.append(sign)
        if set(signs) <= {">", ">="}:
            signs, named, sides = [sign.replace(">", "<") for sign in signs[::-1]], named[::-1], sides[::-1]
        return Node("relation", (tuple(signs), tuple(named), *sides)) if signs else side

    def operation(self, level=0):
        if level == len(OPERATORS):
            return self.product()
        node = self.operation(level + 1)
        while sign := self.take(*OPERATORS[level]):
            node = Node(sign, (node, self.operation(level + 1)))
        return node

    def product(self):
        node, ratio = self.factor(), False
        while True:
            if sign := self.take("*", "/", ":", "\\bmod"):
                if ratio and sign == ":":
                    raise Unreadable("a ratio of three")
                ratio = sign == ":"
                if not self.peek().startswith('"'):  # km / h
                    node = times(node, self.factor(), "/" if ratio else sign)
            elif self.peek().startswith('"'):
                self.at += 1
                if self.take("^"):
                    self.atom()
            elif self.goes_on():
                node = times(node, self.factor())
            else:
                return node

    def goes_on(self):
        """Whether a product goes on without a sign: 2x, 3(x + 1), x \\sin x."""
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
        return Node("^", (node, self.factor())) if self.take("^") else node

    def postfix(self):
        token, node = self.peek(), self.atom()
        while sign := self.take("!", "%", "\\degree", "_", "'"):
            if sign in "_'" and node.op not in ("name", "call"):
                raise Unreadable(f"{sign!r} without a name")
            index = self.atom() if sign == "_" else node
            node = Node("call", (token + sign, index)) if sign in "_'" else Node(sign, (node,))
        return node

    def atom(self, digits=None):
        """`digits`: take only so many of a number, as \\frac12 does."""
        token = self.peek()
        if digits and token.isdigit() and len(token) > digits:
            self.tokens[self.at] = token[digits:]
            return number(token[:digits])
        self.at += 1
        if token in CONSTANTS:
            return CONSTANTS[token]
        if token[:1].isdigit() or token[:1] == ".":
            return literal(token)
        if token == "-":
            return times(number(-1), self.atom())
        if token in CLOSERS:
            return self.bracket(token)
        if token in AROUND:
            outer, self.bars = self.bars, token == "|"
            node = Node(AROUND[token][0], (self.operation(),))
            self.bars = outer
            self.expect(AROUND[token][1])
            return node
        if token in ("\\frac", "\\binom"):
            a, b = self.atom(1), self.atom(1)
            if token == "\\binom":
                a, b = Node("!", (a,)), Node("*", (Node("!", (b,)), Node("!", (Node("-", (a, b)),))))
            return Node("/", (a, b))
        if token == "\\sqrt":
            degree = self.bracket("[") if self.take("[") else number(2)
            return Node("^", (self.atom(), Node("/", (number(1), degree))))
        if token in FUNCTIONS:
            return self.function(token)
        if token in UNKNOWN:
            bounds = [self.atom() for _ in range(2) if self.take("_", "^")]
            return Node("call", (token, *bounds, self.product() if bounds else self.atom()))
        if token in ("f", "g", "h") and self.take("("):
            return Node("call", (token, self.bracket("(")))
        if token == "\\beginmatrix":
            return self.matrix()
        if len(token) == 1 and token.isalpha() or token in LETTERS:
            return Node("name", (token,))
        raise Unreadable(f"{token!r} was not expected" if token else "something is missing at the end")

    def function(self, name):
        """\\sin x, \\sin^2 x, \\sin(x + 1), \\log_2 8, \\max(2, 3)"""
        given = {}
        while mark := self.take("_", "^"):
            given[mark] = self.atom()
        bracketed = self.peek() in CLOSERS
        inside = self.atom() if bracketed else self.factor()
        while not bracketed and self.goes_on() and self.peek() not in FUNCTIONS and self.peek() not in CLOSERS:
            inside = Node("*", (inside, self.factor()))
        if given.get("^") == number(-1):
            name = "\\arc" + name[1:] if given.pop("^") else name
        if name == "\\log":
            node = Node("/", (Node("\\ln", (inside,)), Node("\\ln", (given.get("_", number(10)),))))
        elif name in ("\\exp", "\\cbrt"):
            node = Node("^", (E, inside) if name == "\\exp" else (inside, number(Fraction(1, 3))))
        else:
            node = Node(name, inside.args if inside.op == "tuple" else (inside,))
        return Node("^", (node, given["^"])) if "^" in given else node

    def bracket(self, opener):
        """(a), (a, b), [a, b), {a, b}"""
        outer, self.bars = self.bars, False
        empty = opener == "\\{" and self.peek() == "\\}"
        inside = Node("list", ()) if empty else self.statement(CLOSERS[opener])
        closer = self.expect(*CLOSERS[opener])
        self.bars = outer
        items = inside.args if inside.op == "list" else (inside,)
        if opener == "\\{" or opener == "{" and len(items) > 1:
            return Node("set", items)
        if len(items) == 2 and opener + closer in ("[]", "[)", "(]"):
            return Node("interval", (*items, opener + closer))
        return Node("tuple", items) if len(items) > 1 else inside

    def matrix(self):
        """\\begin{pmatrix} a & b \\\\ c & d \\end{pmatrix}; a column is a tuple."""
        rows = [[]]
        while not self.take("\\endmatrix"):
            if self.take("\\\\"):
                rows.append([])
            elif not self.take("&"):
                rows[-1].append(self.operation())
        rows = [Node("tuple", tuple(row)) for row in rows if row]
        if len({len(row.args) for row in rows}) != 1:
            raise Unreadable("rows of different lengths")
        return Node("matrix", tuple(rows)) if len(rows[0].args) > 1 else Node("tuple", tuple(row.args[0] for row in rows))


def literal(token):
    """12, 3.50, 1e3, 0.1(6), 101_2. Keeps the digits after the point, for rounding."""
    if "_" in token:
        digits, base = re.findall(r"\d+", token)
        return number(int(digits, int(base)))
    if repeating := re.match(r"(\d*)\.(\d*)[\\(]\D*(\d+)", token):
        whole, fixed, period = repeating.groups()
        tail = Fraction(int(fixed + period) - int(fixed or 0), 10 ** len(fixed) * (10 ** len(period) - 1))
        return number(int(whole or 0) + tail)
    mantissa, _, exponent = token.lower().partition("e")
    if len(exponent) > 4:
        raise Unreadable("too large an exponent")
    decimals = 0 if exponent else len(mantissa.partition(".")[2])
    return number(Fraction(mantissa.rstrip(".")) * Fraction(10) ** int(exponent or 0), decimals)


def children(node):
    return [part for part in node.args if isinstance(part, Node)]


@lru_cache(4096)
def variables(node):
    """The names in a tree, and its unknown functions."""
    own = {node.op + " " + node.args[0]} if node.op in ("name", "call") else ()
    return frozenset(own).union(*map(variables, children(node)))


# ---- 3a. compare: numbers -------------------------------------------------------------------------------------------
# A number is a Fraction as long as it can be, else a Decimal of 50 digits, else a complex. Where a sum nearly cancels,
# it is zero: that is the only tolerance, and it is relative to what was added.

CONTEXT = Context(prec=50, Emin=-10**6, Emax=10**6, traps=[InvalidOperation, DivisionByZero, Overflow, Underflow])
PI, INFINITY = Decimal("3.14159265358979323846264338327950288419716939937510582097494"), Decimal("Infinity")
NOTHING = {Fraction: 0, Decimal: Decimal("1e-40"), complex: 1e-9}
FAILURES = (Unreadable, ArithmeticError, DecimalException, ValueError, TypeError, LookupError, AttributeError, RecursionError)
RANDOM = random.Random()
RANGES = ((1, 4), (0, 1), (2, 9), (0, 1), (-4, -1), (-1, 0), (1, 30))


def decimal(x):
    return Decimal(x.numerator) / Decimal(x.denominator) if type(x) is Fraction else x


def widened(operate):
    """The operation on two numbers of one type, the wider of theirs. Too large a fraction becomes a decimal."""
    def apply(a, b):
        if type(a) is not type(b):
            a, b = map(complex if complex in (type(a), type(b)) else decimal, (a, b))
        result = operate(a, b)
        large = type(result) is Fraction and max(result.numerator.bit_length(), result.denominator.bit_length()) > MAX_BITS
        return decimal(result) if large else result
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
        if type(a) is complex or abs(b) * max(a.numerator.bit_length(), a.denominator.bit_length()) <= MAX_BITS:
            return a ** int(b)
        return decimal(a) ** int(b)
    if complex in (type(a), type(b)):
        return complex(a) ** complex(b)
    if a < 0:  # where there is a real root it is meant, not the principal one
        odd = type(b) is Fraction and b.denominator % 2
        return multiply(power(-a, b), Fraction(-1) ** b.numerator) if odd else complex(a) ** complex(b)
    if not a:
        return Fraction(0) ** (1 if b > 0 else -1)
    return integral(decimal(a).sqrt() if b == Fraction(1, 2) else decimal(a) ** decimal(b))


def integral(x):
    """As a fraction if it is a whole number, but for the last digits."""
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


SIN, COS, ONE = real(sine, cmath.sin), real(lambda x: sine(x + PI / 2), cmath.cos), Fraction(1)
OPERATIONS = {
    "+": add, "-": subtract, "*": multiply, "/": divide, "^": power, "!": factorial, "\\abs": abs,
    "%": lambda x: divide(x, Fraction(100)), "\\degree": lambda x: multiply(x, PI / 180),
    "pi": lambda: PI, "e": lambda: Decimal(1).exp(), "i": lambda: 1j, "infinity": lambda: INFINITY,
    "\\sin": SIN, "\\cos": COS, "\\tan": lambda x: divide(SIN(x), COS(x)), "\\cot": lambda x: divide(COS(x), SIN(x)),
    "\\sec": lambda x: divide(ONE, COS(x)), "\\csc": lambda x: divide(ONE, SIN(x)), "\\ln": real(Decimal.ln, cmath.log),
    "\\arcsin": cmath.asin, "\\arccos": cmath.acos, "\\arctan": cmath.atan,
    "\\max": lambda *x: max(x, key=decimal), "\\min": lambda *x: min(x, key=decimal),
    "\\floor": lambda x: Fraction(math.floor(integral(x))), "\\ceil": lambda x: Fraction(math.ceil(integral(x))),
    "\\bmod": widened(operator.mod), "\\gcd": lambda *x: Fraction(math.gcd(*(n.numerator for n in x))),
    "\\lcm": lambda *x: Fraction(math.lcm(*(n.numerator for n in x)))}


def evaluate(node, point, steps):
    """The number a tree stands for, its variables at `point`. `steps`: [how many operations are left]."""
    if node.op == "number":
        return node.args[0]
    if node.op == "name":
        return point["name " + node.args[0]]
    steps[0] -= 1
    if steps[0] < 0:
        raise Unreadable(f"more than {MAX_STEPS} operations")
    operands = [evaluate(child, point, steps) for child in children(node)]
    if node.op in ("call", "relation", "tuple", "matrix"):  # an unknown function: any number, the same one for the same operands
        key = (node.args[0] if node.op == "call" else node.op, point.get(""), *(f"{complex(x):.9g}" for x in operands))
        return Fraction(hash(key) % 99991 + 1, 9973)
    if node.op not in OPERATIONS:
        raise Unreadable(f"{node.op} is not a number")
    return OPERATIONS[node.op](*operands)


@lru_cache(4096)
def constant(node):
    """The value of a tree without variables; None if there is none."""
    try:
        return None if variables(node) else evaluate(node, {}, [MAX_STEPS])
    except FAILURES:
        return None


def points(names, count):
    """Random places for the variables: prime denominators, so that no two of them are related by accident."""
    for i in range(count):
        low, high = RANGES[i % len(RANGES)]
        yield {name: Fraction(RANDOM.randint(97 * low + 1, 97 * high - 1), 97) for name in ("", *sorted(names))}


# ---- 3b. compare: sets of reals -------------------------------------------------------------------------------------
# A set of reals is the sorted tuple of its cuts, where membership changes: (3, 0) just below 3, (3, 1) just above it.
# So (-3, 5] is ((-3, 1), (5, 1)), the point 2 is ((2, 0), (2, 1)), and two sets are equal when their cuts are.

LOW, HIGH = (-INFINITY, 1), (INFINITY, 0)
COMBINED = {"\\cup": operator.or_, "\\cap": operator.and_, "\\setminus": operator.gt}


def combined(op, a, b):
    """The union, intersection or difference of two sets: walk along the cuts of both."""
    cuts = []
    for cut in sorted({*a, *b}):
        inside = COMBINED[op](*(sum(other <= cut for other in side) % 2 for side in (a, b)))
        if inside != len(cuts) % 2:
            cuts.append(cut)
    return tuple(cuts)


def region(node):
    """The set of reals that an interval, an inequality, a list or a combination of these means; None if it is none."""
    op, args = node
    if op == "interval" or op == "tuple" and len(args) == 2:
        low, high = map(limit, args[:2])
        left, right = args[2] if op == "interval" else "()"
        if low is None or high is None:
            return None
        return ((low, int(left == "(")), (high, int(right == "]"))) if low < high else ()
    if op == "relation":
        sets, op = list(map(solutions, args[0], args[2:], args[3:])), "\\cap"
    elif op in ("set", "list", *COMBINED):
        sets, op = [region(part) for part in args], op if op in COMBINED else "\\cup"
    else:
        end = limit(node)
        return None if end is None else ((end, 0), (end, 1))
    return None if None in sets else reduce(partial(combined, op), sets) if sets else ()


def solutions(sign, left, right):
    """The numbers of which x < 3 or 3 < x holds."""
    end = limit(right if left.op == "name" else left)
    if end is None or "name" not in (left.op, right.op):
        return None
    if sign in ("<", "<="):
        return (LOW, (end, int(sign == "<="))) if left.op == "name" else ((end, int(sign == "<")), HIGH)
    return {"=": ((end, 0), (end, 1)), "!=": (LOW, (end, 0), (end, 1), HIGH)}.get(sign)


def limit(node):
    """An end of an interval as a Decimal; None if it is no real number."""
    value = constant(node)
    return None if value is None or type(value) is complex else decimal(value).normalize(Context(prec=40))


# ---- 3c. compare: answers -------------------------------------------------------------------------------------------

LOOSE = re.compile(r"(?<![0-9]) +| +(?![0-9])")
CHOICE = re.compile(r"\(?([A-J])(?:[.:)]+(.*))?", re.S)
MARK = re.compile(r"%|degree|percent|pct")


def equal(a, b):
    """Whether two trees are the same answer. Symmetric."""
    ops = {a.op, b.op}
    if a == b:
        return True
    if "relation" in ops:
        return equal_relations(a, b)
    if ops & {"text", "matrix"}:
        return a.op == b.op == "matrix" and in_order(a.args, b.args)
    if ops & {"interval", *COMBINED}:
        cuts = region(a), region(b)
        return a.op == b.op and in_order(a.args, b.args) if None in cuts else cuts[0] == cuts[1]
    return equal_lists(a, b) if ops & {"list", "set", "tuple"} else equal_numbers(a, b)


def in_order(these, those):
    return len(these) == len(those) and all(equal(x, y) if isinstance(x, Node) else x == y for x, y in zip(these, those))


def equal_lists(a, b):
    """Tuples in their order, lists and sets in any; a tuple against a list in its order."""
    these, those = (x.args if x.op in ("list", "set", "tuple") else (x,) for x in (a, b))
    if "tuple" in (a.op, b.op):
        return len(these) > 1 and in_order(these, those)
    if all(part.op == "tuple" for part in these + those):  # a solution told twice is one
        these, those = dict.fromkeys(these), dict.fromkeys(those)
    left = list(those)
    if len(these) != len(left) or len(left) > MAX_ITEMS:
        return False
    for x in these:
        for y in left:
            with suppress(*FAILURES):  # what cannot be compared differs
                if equal(x, y):
                    left.remove(y)
                    break
    return not left


def meaning(node):
    """What "x = 5", "f(x) = 5" or "2 + 3 = 5" defines; None if it only restricts, as "x + y = 5" does."""
    if node.op != "relation":
        return node
    signs, named, *sides = node.args
    if signs == ("\\in",):
        return sides[1]
    if signs[-1] == "~" and not named[-2]:
        sides, named = sides[:-1], named[:-1]  # "22/7 = 3.14...": what stands before "about" is exact
    values = [side for side, name in zip(sides, named) if not name]
    defines = values and set(signs) <= {"=", "~"} and (any(named) or None not in map(constant, values))
    return values[-1] if defines else None


def equal_relations(a, b):
    """By what they define, by the numbers they allow, or as equations: up to order, flip and scale."""
    x, y, cuts = meaning(a), meaning(b), (region(a), region(b))
    if x is not None and y is not None and equal(x, y):
        return True
    if None not in cuts or a.op != b.op:
        return None not in cuts and cuts[0] == cuts[1]
    (signs, _, *sides), (others, _, *their_sides) = a.args, b.args
    if signs != others or len(sides) > 2 or in_order(sides, their_sides):
        return signs == others and in_order(sides, their_sides)
    if variables(a) != variables(b):
        return False
    ratios = []  # -x >= -y is x <= y, and 2y = 4x is y - 2x = 0
    for point in points(variables(a), 4):
        x, y = (evaluate(Node("-", tuple(pair)), point, [MAX_STEPS]) for pair in (sides, their_sides))
        ratios.append(divide(x, y) if x and y else Fraction(0))
    if any(not ratio or subtract(ratio, ratios[0]) for ratio in ratios):
        return False
    return signs[0] in ("=", "!=") or type(ratios[0]) is not complex and ratios[0] > 0


def rounds_to(node, exact):
    """A decimal of at least six digits, four after the point, is equal to what rounds to it."""
    if node.op != "number" or node.args[1] < 4 or abs(node.args[0]) * 10 ** node.args[1] < 10**5:
        return False
    exact = Decimal(exact.real) if type(exact) is complex and not exact.imag else decimal(exact)
    return type(exact) is Decimal and abs(exact - decimal(node.args[0])) < Decimal(1).scaleb(-node.args[1])


def equal_numbers(a, b):
    """Exactly, or to 50 digits; where there are variables, at random points."""
    x, y = constant(a), constant(b)
    if x is not None and y is not None:
        return not subtract(x, y) or rounds_to(a, y) or rounds_to(b, x)
    if x is not None or y is not None or variables(a) != variables(b):
        return False
    steps, same = [MAX_STEPS], []
    for point in points(variables(a), 10):
        try:
            x, y = evaluate(a, point, steps), evaluate(b, point, steps)
        except FAILURES:
            continue
        same.append((any(type(v) is complex and abs(v.imag) > 1e-9 * abs(v) for v in (x, y)), not subtract(x, y)))
        if same[-1] == (False, False):
            return False
    if steps[0] < 0 or not same:
        raise Unreadable("it has no value at the points tried")
    return sum(not imaginary for imaginary, _ in same) >= 3 or all(agree for _, agree in same)


def compare(gold: str, response: str):
    """(True, False or None; why; the two extracted answers)"""
    if not gold or not gold.strip():
        return False, "there is no gold answer", "", ""
    a, b = extract(gold, join_boxes=True), extract(response)
    if not a or not b:
        return None, "no answer found", a, b
    if a == b:
        return True, "the same text", a, b
    if a.isdecimal() and b.isdecimal() and len(a) < MAX_ANSWER > len(b):
        return int(a) == int(b), "integers", a, b
    with suppress(*FAILURES):
        if response.count("box") > 1 and read(clean(a)).op in ("list", "set"):
            b = extract(response, join_boxes=True)
    try:
        return *compare_answers(a, b), a, b
    except FAILURES as error:
        return None, f"unreadable: {error}", a, b


def compare_answers(a, b):
    x, y = clean(a), clean(b)
    plain = [LOOSE.sub("", TEXT.sub(r"\1", s)) for s in (x, y)]
    words = len(plain[0]) > 1 and (TEXT.fullmatch(x) or TEXT.fullmatch(y))
    if plain[0] == plain[1] or words and plain[0].casefold() == plain[1].casefold():
        return True, "the same text but for spaces and fonts"
    letters = [CHOICE.fullmatch(s) for s in plain]
    if all(letters) and not all(m[2] for m in letters):
        return letters[0][1] == letters[1][1], "letters of a choice"
    with localcontext(CONTEXT):
        if equal(read(x), read(y)):
            return True, "the same value"
        if bool(MARK.search(x)) != bool(MARK.search(y)):  # 28% is 28 and 0.28; 60 degrees are 60 and pi/3
            return equal(read(x, marks=False), read(y, marks=False)), "compared without percent and degree signs"
        lists = [clean(text, grouped=False) for text in (a, b) if "," in text]  # 100,200 may be one number or two
        return len(lists) == 2 and lists != [x, y] and equal(*map(read, lists)), "compared as values"


def grade(gold: str, response: str):
    """True: the response's answer equals the gold's. False: it does not. None: it cannot be read."""
    return compare(gold, response)[0]


# ---- 4. verdict: what a verification concludes ----------------------------------------------------------------------

MARKUP = re.compile(r"\\text\w*\{|\\boxed\{|[*_`$]")
SUBJECT = r"(?:answer|solution|result|calculation|conclusion|problem|response)"
VERDICT = re.compile(rf"""
    (?P<doubt> \b(?:can(?:\s?not|'t)|could\s?n[o']t|unable\s+to|not\s+able\s+to)\s+(?:be\s+)?(?:verify|verified|confirm|confirmed)\b
              (?:[^.!?\n]|\.\d){{0,200}})
  | \b{SUBJECT}\b (?P<middle> (?:[^.!?\n,;]|\.\d|,\d|,\s+(?=which|indeed|therefore|in\s+fact)){{0,80}}?)
    \b(?: (?P<good>correct(?:ly)?|right|accurate|valid|verified|confirmed|true|sound
                |checks?\s+out|holds?(?:\s+up)?(?=\W*(?:[.!\n]|$))|indeed(?=\s+[-\d\\(]))
      | (?:incorrect(?:ly)?|wrong|inaccurate|invalid|false|mistaken|erroneous|flawed|fails?) )\b
  | (?P<before> \b(?:is|are|was|be|n[o']t|seems|being)\s+(?:\w+\s+){{0,2}}?)
    (?:(?P<good_one>correct|right|valid)|incorrect|wrong|invalid)\s+(?:final\s+)?{SUBJECT}\b
""", re.I | re.X)
NEGATION = re.compile(r"\b(?:not|never|no\s+longer|cannot|neither|hardly|fails?\s+to|far\s+from)\b|n't\b", re.I)
CONDITION = re.compile(r"\b(?:if|whether|is|suppose|assum\w+|unless|was|check|verify|see|does)\s+(?:that\s+|if\s+)?"
                       r"(?:(?:the|my|this|your|our|given|final|proposed)\s+)*$", re.I)
QUESTION = re.compile(r"[^.!?\n]{0,200}\?")


def verdict(text: str):
    """The last "the answer is (in)correct" of a text, in its usual wordings: True, False, or None without any."""
    text = MARKUP.sub("", (text or "")[-MAX_VERIFICATION:])
    last = None
    for m in VERDICT.finditer(text):
        if m["doubt"]:
            last = False
        elif not CONDITION.search(text, max(0, m.start() - 60), m.start()) and not QUESTION.match(text, m.end()):
            negations = len(NEGATION.findall(m["middle"] or m["before"] or ""))
            last = bool(m["good"] or m["good_one"]) == (negations % 2 == 0)
    return last


# ---- command line ---------------------------------------------------------------------------------------------------

def show(node):
    """A tree as text: (+ x (number 1 0))."""
    return f"({' '.join([node.op, *map(show, node.args)])})" if isinstance(node, Node) else str(node)


def main(argv):
    if len(argv) != 2:
        print("usage: python -m nanoverify.answers GOLD ANSWER", file=sys.stderr)
        return 2
    result, why, *answers = compare(*argv)
    for name, answer in zip(("gold", "answer"), answers):
        print(f"{name:8s} {answer}")
        with suppress(*FAILURES):
            print(f"{'read as':8s} {show(read(clean(answer)))}")
    print(f"{'verdict':8s} { {True: 'equal', False: 'not equal', None: 'unreadable'}[result]} ({why})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
