"""Does this answer equal that one? A verifier by rules, for rewards: exact where it can be, silent where it cannot read.

    grade("\\\\frac{1}{2}", "17 * 8 = 136. The answer is 0.5.")   # True, False, or None: unreadable
    extract("x = 9, so the answer is $9$.")                       # '9'
    verdict("39 is 39. Therefore, the answer is correct.")        # True, False, or None: no verdict

    python -m nanoverify.answers '[-2, 7]' 'So $-2 \\\\le x \\\\le 7$.'   # what was extracted, how it was read, the verdict, why

Four steps, in this order below:

1. extract: the last \\boxed{}, `#### n`, <answer>, "the answer is ...", the last formula, the last number.
2. read: LaTeX or plain text -> tokens -> a tree, by recursive descent. Each rule of the grammar is one function:

       statement = relation {("," | ";" | "and" | "or") relation}
       relation  = union {("=" | "<" | "in" | ...) union}
       union     = sum {("cup" | "cap" | "minus") sum}
       sum       = product {("+" | "-" | "+-") product}
       product   = factor {["*" | "/" | ":" | "mod"] factor | unit}
       factor    = "-" factor | postfix ["^" factor]
       postfix   = atom {"!" | "%" | "degree" | "_" index | "'"}
       atom      = number | name | function | fraction | root | bracket | |absolute value| | matrix

3. compare: trees by kind (lists in any order, intervals as sets of points, equations up to a factor). Numbers are
   fractions as long as that is possible, else decimals of 50 digits; what has variables is put to the test at random
   points, fresh ones each time.
4. verdict: the last "the answer is (in)correct" of a verification.

Limits. Units are dropped, not converted. Complex numbers and factorials of fractions are compared to 9 digits only.
`28%` reads as 28 and as 0.28, `60` degrees as 60 and as pi/3. A decimal of six digits or more (four after the point)
also equals what rounds to it. No calculus: limits, sums and integrals equal only themselves. Work is bounded by the
capitals below; beyond them an answer is unreadable.
"""
import cmath
import functools
import itertools
import math
import operator
import random
import re
import sys
import unicodedata
from decimal import Context, Decimal, DecimalException, DivisionByZero, InvalidOperation, Overflow, Underflow, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

MAX_RESPONSE = 10_000  # characters: only the end of a longer response is searched
MAX_VERIFICATION = 4_000  # characters: the end of a longer verification
MAX_ANSWER = 2_000  # characters of an answer that is read
MAX_TOKENS = 300  # so a tree is at most that deep, and evaluating it stays within the recursion limit
MAX_DEPTH = 24  # brackets within brackets
MAX_ITEMS = 64  # parts of a list
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
BETWEEN_BOXES = re.compile(r"(?:[\s$,;&]|\\[()\[\],;!:]|\\q?quad|\\text\w*\{\s*(?:and|or)\s*\}|and|or|[A-Za-z](?:_\{?\w+\}?)?\s*=)*")
PHRASE = re.compile(
    r"(?:\banswers?\b(?:\s[^.\n:=]{1,80}?)??(?:\s(?:is|are|was|be|equals|becomes)\b|\s*[:=])|^[ \t]*A:)"
    r"(?:[\s*:]|\b(?:indeed|therefore|thus|simply|just|clearly|exactly|approximately|about|equal to)\b)*"
    r"(?!\s|(?:\w+ )?(?:not |in)?(?:correct|right|wrong|valid|verified)\b)", re.I | re.M)
SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n|</")
REASON = re.compile(r",?\s+(?:because|since|as|so|which|where|when|but|for)\b|,\s+not\b", re.I)
CAUSE = re.compile(r",?\s+(?:because|since)\b", re.I)
SPAN = re.compile(r"\$\$([^$]+)\$\$|\\\[((?:[^\\]|\\[^\[\]])*)\\\]|\\\(((?:[^\\]|\\[^()])*)\\\)|(?<!\\)\$((?:[^$\\]|\\.)+)\$", re.S)
WRAPPED = re.compile(r"\\(?:text\w*|mbox|mathrm|operatorname|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+")
PROSE_WORD = re.compile(r"[A-Za-z]{2,}")
VERB = re.compile(r"\b(?:is|are|was|be|equals|we|there)\b", re.I)
PLAIN = r"[-+]?\\?\$?\d[\d,]*(?:\.\d+)?%?"
NUMBER = re.compile(rf"(?<![A-Za-z0-9_.,{{^\\]){PLAIN}(?:\s*[-+*/]\s*{PLAIN})*(?![A-Za-z0-9_^{{}}\\])")
STARTS_WITH_NUMBER = re.compile(rf"{PLAIN}[A-Za-z\s,'-]*\Z")


def extract(response: str) -> str:
    """The final answer of a text, '' if there is none."""
    return find(response)


def find(response, join_boxes=False):
    """As `extract`; where boxes stand side by side, as in \\boxed{1} and \\boxed{2}, it may take them as one list."""
    text = (response or "")[-MAX_RESPONSE:].strip()
    if len(text) < 16 and text.isalnum():
        return text
    if "<" in text:
        text = next((part for part in TURN.split(text) if part.strip()), "").strip()
        text = text.rpartition("</think>")[2].strip() or text
    if "\\" in text and ("\\box" in text or "\\fbox" in text):
        found = boxes(text)
        if not found:
            return OPEN_BOX.findall(text)[-1].strip()
        answer, start = found[-1][2], found[-1][0]
        for left, right, content in reversed(found[:-1] if join_boxes else []):
            if not right <= start <= right + 60 or not BETWEEN_BOXES.fullmatch(text, right, start):
                break
            answer, start = answer if content == found[-1][2] else f"{content}, {answer}", left
        later = after_phrase(text[found[-1][1]:])
        return later if any(c in "0123456789\\$" for c in later) else answer
    _, mark, tail = text.rpartition("####")
    line, _, rest = tail.lstrip("# \t").partition("\n")
    if mark and line and (any(c in "0123456789$\\" for c in line) or not rest.strip()):
        return final(line)
    inside, mark, _ = text.rpartition("</answer>")
    if mark and "<answer>" in inside:
        return final(inside.rpartition("<answer>")[2])
    return after_phrase(text) or final(text)


def after_phrase(text):
    """What follows the last "the answer is", up to the end of its sentence; '' if it is never said."""
    for phrase in reversed(list(PHRASE.finditer(text))):
        tail = text[phrase.end():]
        span = SPAN.match(tail)
        end = SENTENCE_END.search(tail, span.end() if span else 0)
        if tail:
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
    head = CAUSE.split(text, 1)[0].strip(" *")
    if head and head != text and bare(head):
        return head
    if bare(text) or STARTS_WITH_NUMBER.match(text):
        return text
    head = REASON.split(text, 1)[0].strip(" *")
    if head != text and head[:1] in "0123456789-$\\(" and bare(head):
        return head
    for verb in reversed(list(VERB.finditer(text))[-4:]):
        tail = text[verb.end():].strip(" *.:")
        if any(c in "0123456789$\\" for c in tail) and bare(tail):
            return tail
    spans, numbers = list(SPAN.finditer(text)), list(NUMBER.finditer(text))
    if spans and (not numbers or numbers[-1].start() < spans[-1].end()):
        return next(group for group in spans[-1].groups() if group is not None).strip()
    return numbers[-1][0] if numbers else text


def bare(text):
    """No prose: one line, no verb, at most two words, and none in front of a formula between dollar signs."""
    words = WRAPPED.sub(" ", text)
    found = [word for word in PROSE_WORD.findall(words) if word.lower() not in SPELLED]
    if "\n" in text or VERB.search(words) or len(found) > 2:
        return False
    return not found or bool(SPAN.match(text)) or not SPAN.search(text)


# ---- 2. read: text -> tokens -> tree --------------------------------------------------------------------------------

class Node(NamedTuple):
    """Every value. Numbers: ("number", (Fraction, digits after the point)); names: ("name", (text,)); operations:
    (what, operands); answers with parts: tuple, list, set, interval, relation, matrix, text."""
    kind: str
    parts: tuple


CHARACTERS = str.maketrans({
    "−": "-", "–": "-", "—": "-", "×": "*", "·": "*", "∙": "*", "⋅": "*", "÷": "/", "⁄": "/", "∕": "/", "∶": ":", "≤": "\\le ", "≥": "\\ge ",
    "≠": "\\ne ", "≈": "\\approx ", "π": "\\pi ", "∞": "\\infty ", "√": "\\sqrt ", "±": "\\pm ", "∓": "\\mp ", "∪": "\\cup ",
    "∩": "\\cap ", "∈": "\\in ", "∅": "\\emptyset ", "ø": "\\emptyset ", "°": "\\degree ", "′": "'", "θ": "\\theta ", "ℝ": "\\mathbb{R}",
    "…": "\\ldots ", "€": "", "£": "", "¥": "", "₹": "", "⟨": "\\langle ", "⟩": "\\rangle ", "⌊": "\\lfloor ", "⌋": "\\rfloor ",
    "⌈": "\\lceil ", "⌉": "\\rceil ", "\u200b": "", "\ufeff": "", "∣": "|",
    **{c: f"^{i}" for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}, **{c: f"_{i}" for i, c in enumerate("₀₁₂₃₄₅₆₇₈₉")}})
VULGAR = re.compile(r"[¼-¾⅐-⅞]")
THOUSANDS = re.compile(r"(?<=\d)(?:\s*\{,\s*\}|,?\\!|\\,)\s*(?=\d{3}(?!\d))")
GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
NOISE = re.compile(r"\\(?:left|right|middle)\s*\.|\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|limits|boldsymbol|mathbf|bf|rm"
                   r"|phantom\{\}|hline|boxed|fbox)(?![a-zA-Z])|\\?\$|(?<!\\)\\[()\[\]!]|\*\*|`")
SPACE = re.compile(r"(?<!\\)\\(?:[,;:> ]|q?quad\b|hspace\{[^{}]*\})|~|\s+")
DEGREE = re.compile(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![a-zA-Z])|\\textdegree(?![a-zA-Z])")
WHOLE_TEXT = re.compile(r"\\(?:text\w*|mbox|mathrm|emph)\s*\{([^{}]*)\}")
LOOSE = re.compile(r"(?<![0-9]) +| +(?![0-9])")
CHOICE = re.compile(r"\(?([A-J])(?:[.:)]+(?:\s+(.*))?)?", re.S)
WORDS = re.compile(r"[^\W\d_][^\W\d_'’ ,.-]*(?:[ '’,.-]+[^\W\d_]+)*[.!]?")
ARTICLE = re.compile(r"\b(?:the|a|an)\b|[^\w]+")

TOKEN = re.compile(r"""
    (?P<repeating> \d*\.\d*(?:\\(?:overline|bar|dot)\s*(?:\{\d+\}|\d)|\(\d+\)))
  | (?P<number> (?:\d+(?:\.(?!\.)\d*)?|\.\d+)(?:[eE][-+]?\d+(?![\w.]))?)
  | \\(?P<how>text\w*|mbox|mathrm|operatorname\*?|mathit|mathsf|emph)\s*\{(?P<text>[^{}]*)\}
  | \\(?:begin|end)\s*\{(?P<matrix>[a-z]*)\*?\}(?:\{[lcr|\s]*\})?
  | \\mathbb\s*\{?\s*(?P<field>[A-Z])\s*\}?
  | (?P<command> \\[A-Za-z]+|\\\\(?:\[[^\]]*\])?|\\[^A-Za-z])
  | (?P<word> [A-Za-z]+)
  | (?P<symbol> <=|>=|!=|==|:=|<>|\*\*|\.\.\.|\S)
""", re.X | re.ASCII)

SAME = {  # spellings -> the one token the parser knows
    "**": "^", "\\cdot": "*", "\\times": "*", "\\ast": "*", "\\div": "/", "\\colon": ":", "==": "=", ":=": "=", "\\equiv": "=", "\\lt": "<", "\\gt": ">",
    "\\le": "<=", "\\leq": "<=", "\\leqslant": "<=", "\\ge": ">=", "\\geq": ">=", "\\geqslant": ">=", "\\ne": "!=", "\\neq": "!=",
    "<>": "!=", "\\not=": "!=", "\\approx": "~", "\\simeq": "~", "\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\cfrac": "\\frac", "\\dbinom": "\\binom",
    "\\tbinom": "\\binom", "\\lbrace": "\\{", "\\rbrace": "\\}", "\\lvert": "|", "\\rvert": "|", "\\vert": "|", "\\mid": "|", "\\lbrack": "[",
    "\\rbrack": "]", "\\cupdot": "\\cup", "\\bigcup": "\\cup", "\\backslash": "\\setminus", "\\varnothing": "\\emptyset", "\\ldots": "...",
    "\\dots": "...", "\\cdots": "...", "\\dotsc": "...", "\\%": "%", "\\lg": "\\log", "\\mod": "\\bmod", "\\prime": "'", "\\varphi": "\\phi",
    "\\varepsilon": "\\epsilon", "\\&": "and", "\\to": "->", "\\rightarrow": "->", "\\_": "_", "\\#": "#"}
SPELLED = {  # words -> the token they stand for
    "and": "and", "or": "or", "percent": "%", "percentage": "%", "pct": "%", "degrees": "\\degree", "degree": "\\degree", "deg": "\\degree",
    "infinity": "\\infty", "inf": "\\infty", "oo": "\\infty", "union": "\\cup", "mod": "\\bmod", "times": "*", "in": "\\in", "asin": "\\arcsin",
    "acos": "\\arccos", "atan": "\\arctan", "cosec": "\\csc", "reals": "\\mathbb R",
    **{word: "\\" + word for word in "sqrt cbrt pi infty sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan log ln exp max min gcd lcm floor "
       "ceil abs binom alpha beta gamma delta theta lambda mu phi omega sigma rho tau".split()}}
UNITS = frozenset("mm cm km dm kg mg lb oz ft in yd mi ml min hr hrs sec mph kph usd am pm cents cent sq cu rad".split())
RELATIONS = frozenset(("=", "~", "<", ">", "<=", ">=", "!=", "\\in"))
FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
FUNCTIONS = frozenset("sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan ln log exp max min gcd lcm floor ceil abs cbrt det".split())
OPAQUE = frozenset(("\\lim", "\\sum", "\\prod", "\\int"))
CLOSERS = {"(": (")", "]"), "[": ("]", ")"), "\\{": ("\\}",), "{": ("}",), "\\langle": ("\\rangle",)}
ROUND = {"\\lfloor": ("floor", "\\rfloor"), "\\lceil": ("ceil", "\\rceil"), "|": ("abs", "|"), "\\|": ("abs", "\\|")}
DECORATIONS = frozenset(("\\overline", "\\vec", "\\hat", "\\bar", "\\overrightarrow", "\\widehat",
                          "\\angle", "\\triangle", "\\mathcal", "\\tilde", "\\underline"))
LETTERS = frozenset("\\" + w for w in "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega "
                    "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell".split())
LETTER = r"(?:\\[A-Za-z]+|[A-Z]{2,4}|[A-Za-z])(?:_(?:\w|\{[^{}]*\}|\\[A-Za-z]+))?'*(?:\^\{?-1\}?)?(?:\((?:[\w,|]|\\cup|\\cap)*\))?"
NAME = re.compile(rf'".*|{LETTER}(?::{LETTER})+|\({LETTER}(?:,{LETTER})*\)|'
                  rf'\|?(?:\\(?:angle|triangle|overline|overrightarrow|vec|hat|bar)\{{?)?{LETTER}\}}?\|?')
ZERO, MINUS_ONE = Node("number", (Fraction(0), 0)), Node("number", (Fraction(-1), 0))


def clean(text):
    """One spelling for what looks alike: no dollar signs, sizes, spacing commands or fancy characters."""
    if not text.isascii():
        text = VULGAR.sub(lambda m: " " + unicodedata.normalize("NFKC", m[0]), text).translate(CHARACTERS)
        text = unicodedata.normalize("NFKC", text)
    if "\\\\" in text and "\\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)  # escaped once too often
    text = THOUSANDS.sub("", text)
    text = SPACE.sub(" ", NOISE.sub("", text)) if "\\" in text or "$" in text or "*" in text else SPACE.sub(" ", text)
    return (DEGREE.sub(r"\\degree ", text) if "\\" in text else text).strip().rstrip(" .,;:")


@lru_cache(4096)
def read(text: str, grouped=True) -> Node:
    """The tree of a cleaned answer. Unreadable if the grammar does not cover all of it."""
    whole = WHOLE_TEXT.fullmatch(text)
    plain = whole[1].strip() if whole else WHOLE_TEXT.sub(r"\1", text)
    if WORDS.fullmatch(plain) and (" " in plain or len(plain) > 3) and plain.lower() not in SPELLED:
        return Node("text", (ARTICLE.sub(" ", plain.casefold()).strip(),))
    if len(text) > MAX_ANSWER or not text:
        raise Unreadable("empty" if not text else f"longer than {MAX_ANSWER} characters")
    try:
        cursor = Cursor(tokenize(plain if whole else text, grouped))
        node = statement(cursor, ())
        if cursor.tokens[cursor.at]:
            raise Unreadable(f"{cursor.tokens[cursor.at]!r} was not expected")
        return spread(node) if {"\\pm", "\\mp"} & set(cursor.tokens) else node
    except (IndexError, OverflowError, ZeroDivisionError, RecursionError) as error:
        raise Unreadable(str(error)) from None


def tokenize(text, grouped=True):
    """Tokens are strings: numbers, letters, \\commands, symbols; what is words, such as a unit, starts with a quote."""
    if grouped:
        opened = lambda m: sum(text.count(a, 0, m.start()) - text.count(b, 0, m.start()) for a, b in ("()", "[]", ("\\{", "\\}")))
        text = GROUPED.sub(lambda m: m[0] if opened(m) > 0 else m[0].replace(",", ""), text)
    tokens = []
    for m in TOKEN.finditer(text):
        kind, token = m.lastgroup, m[0]
        if kind == "text":
            word = m["text"].strip()
            if word.lower() in SPELLED or m["how"][0] in "mo" and word in ("e", "i"):
                tokens.append(SPELLED.get(word.lower(), word))
            elif word:
                tokens += ["and"] if word.strip(", ") in ("and", "or") else ['"' + word]
        elif kind == "matrix":
            tokens += [token[:4].replace("\\beg", "\\begin"), m["matrix"] or "matrix"]
        elif kind == "field":
            tokens.append("\\mathbb " + m["field"])
        elif kind == "word":
            after_number = bool(tokens) and (tokens[-1][0].isdigit() or tokens[-1][0] == '"')
            spaced = text[m.start() - 1:m.start()] == " "
            if token.lower() in SPELLED and not (after_number and token == "in"):
                tokens.append(SPELLED[token.lower()])
            elif len(token) > 3 or after_number and (token.lower() in UNITS or spaced and len(token) > 2):
                tokens.append('"' + token)
            else:
                tokens += token
        elif kind == "command":
            tokens.append("\\\\" if token[1] == "\\" else SAME.get(token, token))
        else:
            tokens.append(SAME.get(token, token))
    if len(tokens) > MAX_TOKENS:
        raise Unreadable(f"more than {MAX_TOKENS} tokens")
    return tokens + [""]


class Cursor:
    """How far the tokens are read. `bars`: inside |...|, where the next bar closes."""

    def __init__(self, tokens):
        self.tokens, self.at, self.depth, self.bars = tokens, 0, 0, False

    def peek(self):
        return self.tokens[self.at]

    def take(self, *wanted):
        """The next token, if it is one of the wanted; '' if not."""
        token = self.tokens[self.at]
        if token and token in wanted:
            self.at += 1
            return token
        return ""

    def expect(self, *wanted):
        if not self.take(*wanted):
            raise Unreadable(f"{wanted[0]!r} expected, {self.peek()!r} found")


def statement(c, closers):
    """relation {("," | ";" | "and" | "or") relation}"""
    items, joints = [relation(c)], set()
    while joint := c.take(",", ";", "and", "or"):
        joints.add(joint)
        while c.take("and", "or", ","):
            joints.add(c.tokens[c.at - 1])
        if c.peek() in ("", *closers):
            break
        items.append(relation(c))
    if len(items) > MAX_ITEMS:
        raise Unreadable(f"more than {MAX_ITEMS} items")
    if len(items) == 1:
        return items[0]
    told = [i for i in items if not (i.kind == "relation" and i.parts[1][-1].kind == "field" and i.parts[1][-1].parts[0] in "ZN")]
    if 0 < len(told) < len(items):  # "x = 2k, k in Z": the condition is left out
        return told[0] if len(told) == 1 else Node("list", tuple(told))
    if all(i.kind == "relation" and not {"=", "~"} & set(i.parts[0]) for i in items):
        return Node("union" if "or" in joints else "meet", tuple(items))
    return Node("tuple" if any(i == Node("name", ("...",)) for i in items) else "list", tuple(items))


def relation(c):
    """[label (":" | "=")] union {("=" | "<" | "in" | ...) union} [pmod]"""
    start, sides, signs, named = c.at, [], [], []
    while True:
        if c.peek().startswith('"'):
            words = [c.tokens[c.at]]
            c.at += 1
            while c.peek().startswith('"'):
                words.append(c.tokens[c.at])
                c.at += 1
            side = Node("text", (" ".join(w[1:] for w in words).casefold(),))
            sign = "=" if c.take(":") else c.take(*RELATIONS)
        else:
            side = union(c)
            sign = c.take(*RELATIONS)
        end = c.at - 1 if sign else c.at
        sides.append(side)
        named.append(bool(NAME.fullmatch("".join(c.tokens[start:end]))) or side.kind == "opaque")
        if not sign:
            break
        signs.append(sign)
        start = c.at
    return Node("relation", (tuple(signs), tuple(sides), tuple(named))) if signs else sides[0]


def union(c):
    """sum {("cup" | "cap" | "minus") sum}"""
    node = sum_(c)
    while sign := c.take("\\cup", "\\cap", "\\setminus"):
        node = Node({"\\cup": "union", "\\cap": "meet", "\\setminus": "without"}[sign], (node, sum_(c)))
    return node


def sum_(c):
    """product {("+" | "-" | "+-") product}"""
    node = product(c)
    while sign := c.take("+", "-", "\\pm", "\\mp"):
        node = Node(sign, (node, product(c)))
    return node


def product(c):
    """factor {["*" | "/" | ":" | "mod"] factor | unit}"""
    node = factor(c)
    while True:
        token = c.peek()
        if sign := c.take("*", "/", ":", "\\bmod"):
            if c.peek().startswith('"'):  # km / h
                c.at += 1
            else:
                parts = node.parts if sign == ":" and node.kind == "ratio" else (node,)
                node = Node("ratio" if sign == ":" else sign, (*parts, factor(c)))
        elif token.startswith('"'):
            c.at += 1
            if c.take("^"):
                argument(c)
        elif c.take("\\pmod"):
            node = Node("call pmod", (node, argument(c)))
        elif starts_atom(c, token):
            if c.tokens[c.at - 1].startswith('"'):
                raise Unreadable("a unit in the middle")
            node = Node("*", (node, factor(c)))
        else:
            return node


def starts_atom(c, token):
    """Whether a product goes on without a sign: 2x, 3(x + 1), x \\sin x."""
    if token == "|":
        return not c.bars
    if token[:1].isdigit():
        return c.tokens[c.at - 1] in ("!", ")")
    return token in CLOSERS and token != "\\{" or token in ROUND or len(token) == 1 and token.isalpha() or token[:1] == "\\" and (
        token[1:] in FUNCTIONS or token in LETTERS or token in DECORATIONS or token in OPAQUE or token in (
            "\\frac", "\\sqrt", "\\binom", "\\pi", "\\begin", "\\infty"))


def factor(c):
    """("-" | "+" | "+-") factor | postfix ["^" factor]"""
    c.depth += 1
    if c.depth > MAX_DEPTH:
        raise Unreadable(f"deeper than {MAX_DEPTH} brackets")
    if sign := c.take("-", "+", "\\pm", "\\mp"):
        node = factor(c)
        if sign == "-":
            node = Node(node.kind, (negative(node.parts[0]),)) if node.kind in ("percent", "degrees") else negative(node)
        elif sign != "+":
            node = Node(sign, (ZERO, node))
    else:
        node = postfix(c)
        if c.take("^"):
            if c.take("'"):
                node = Node("name", ("".join(map(str, node.parts)) + "'",))
            else:
                node = Node("^", (node, factor(c)))
    c.depth -= 1
    return node


def negative(node):
    return Node("number", (-node.parts[0], node.parts[1])) if node.kind == "number" else Node("-", (ZERO, node))


def postfix(c):
    """atom {"!" | "%" | "degree" | "_" index | "'"}"""
    token, node = c.peek(), atom(c)
    while sign := c.take("!", "%", "\\degree", "_", "'"):
        if sign == "_":
            index = argument(c)
            if token.isdigit() and index.kind == "number" and 2 <= index.parts[0] <= 36:
                node = Node("number", (in_base(token, int(index.parts[0])), 0))
            elif variables(index):
                node = Node(f"call {token}", (index,))
            else:
                node = Node("name", (f"{token}_{show(index)}",))
        elif sign == "'":
            if node.kind != "name":
                raise Unreadable("a prime without a name")
            node = Node("name", (node.parts[0] + "'",))
        else:
            node = Node({"!": "!", "%": "percent", "\\degree": "degrees"}[sign], (node,))
    return node


def in_base(digits, base):
    try:
        return Fraction(int(digits, base))
    except ValueError:
        raise Unreadable(f"{digits} in base {base}") from None


def atom(c):
    """number | name | function | fraction | root | bracket | |absolute value| | matrix"""
    token = c.peek()
    c.at += 1
    if token[:1].isdigit() or token[:1] == ".":
        if token != "...":
            return number(c, token)
    if token in CLOSERS:
        return bracket(c, token)
    if token in ROUND:
        kind, closer = ROUND[token]
        outer, c.bars = c.bars, token == "|"
        node = Node(kind, (sum_(c),))
        c.bars = outer
        c.expect(closer)
        return node
    if token in ("\\frac", "\\binom"):
        return Node({"\\frac": "/", "\\binom": "binom"}[token], (argument(c, 1), argument(c, 1)))
    if token in ("\\sqrt", "\\cbrt"):
        degree = Node("number", (Fraction(2 if token == "\\sqrt" else 3), 0))
        if c.take("["):
            degree = sum_(c)
            c.expect("]")
        return Node("root", (argument(c), degree))
    if token[1:] in FUNCTIONS and token[0] == "\\":
        return function(c, token[1:])
    if token in OPAQUE:
        bounds = tuple(relation_argument(c) for _ in range(2) if c.take("_", "^"))
        return Node("opaque", (token, *bounds, product(c)))
    if token == "\\begin":
        return matrix(c)
    if token in DECORATIONS:
        inner = argument(c)
        return inner if inner.kind == "number" else Node("name", (token + show(inner),))
    if token in ("f", "g", "h") and c.peek() == "(":
        inside = bracket(c, c.take("("))
        return Node(f"call {token}", inside.parts if inside.kind == "tuple" else (inside,))
    if token in CONSTANTS:
        return CONSTANTS[token]
    if token.startswith("\\mathbb "):
        return Node("field", (token[-1],))
    if len(token) == 1 and token.isalpha() or token in LETTERS or token == "...":
        return Node("name", (token,))
    raise Unreadable(f"{token!r} was not expected" if token else "something is missing at the end")


CONSTANTS = {"\\pi": Node("pi", ()), "e": Node("e", ()), "i": Node("i", ()), "\\infty": Node("infinity", ()), "\\emptyset": Node("set", ())}


def number(c, token):
    """Decimals, repeating decimals, mixed numbers. Keeps the digits after the point, for rounding."""
    whole, point, decimals = token.partition(".")
    repeated = re.search(r"[\\(]\D*(\d+)", decimals)
    if repeated:
        fixed, period = decimals[:repeated.start()], repeated[1]
        tail = Fraction(int((fixed or "0") + period) - int(fixed or 0), 10 ** len(fixed) * (10 ** len(period) - 1))
        return Node("number", (Fraction(int(whole or 0)) + tail, 0))
    mantissa, _, exponent = token.lower().partition("e")
    if len(exponent) > 4:
        raise Unreadable("too large an exponent")
    value = Fraction(mantissa + "0" if mantissa.endswith(".") else mantissa) * Fraction(10) ** int(exponent or 0)
    if point or exponent:
        return Node("number", (value, len(decimals) if not exponent else 0))
    ahead = c.tokens[c.at:c.at + 3]
    if len(ahead) == 3 and ahead[0].isdigit() and ahead[1] == "/" and ahead[2].isdigit():  # 1 1/2
        c.at += 3
        return Node("number", (value + Fraction(int(ahead[0]), int(ahead[2])), 0))
    if ahead[0] == "\\frac":  # 1\frac{1}{2}
        start, part = c.at, atom(c)
        if all(p.kind == "number" for p in part.parts) and part.parts[1].parts[0]:
            return Node("number", (value + part.parts[0].parts[0] / part.parts[1].parts[0], 0))
        c.at = start
    return Node("number", (value, 0))


def argument(c, digits=None):
    """What a command applies to: a group, or one token; \\frac takes the digits of \\frac12 one by one."""
    if c.take("{"):
        return bracket(c, "{")
    token = c.peek()
    if digits and token.isdigit() and len(token) > 1:
        c.tokens[c.at] = token[digits:]
        return Node("number", (Fraction(int(token[:digits])), 0))
    return factor(c) if token == "-" else atom(c)


def relation_argument(c):
    """A bound of a sum or a limit: k = 0, x -> 0, n - 1."""
    if not c.take("{"):
        return atom(c)
    sides = [sum_(c)]
    while c.take("=", "->"):
        sides.append(sum_(c))
    c.expect("}")
    return Node("tuple", tuple(sides))


def function(c, name):
    """\\sin x, \\sin^2 x, \\sin(x + 1), \\log_2 8, \\max(2, 3)"""
    base = argument(c) if c.take("_") else None
    power = argument(c) if c.take("^") else None
    if base is None and c.take("_"):
        base = argument(c)
    if c.peek() in ("(", "{", "["):
        inside = atom(c)
        parts = inside.parts if inside.kind == "tuple" and name in ("max", "min", "gcd", "lcm") else (inside,)
    else:
        inside = factor(c)
        while starts_atom(c, c.peek()) and c.peek()[1:] not in FUNCTIONS and c.peek() not in CLOSERS:
            inside = Node("*", (inside, factor(c)))
        parts = (inside,)
    if power == MINUS_ONE and name in ("sin", "cos", "tan"):
        name, power = "arc" + name, None
    if name == "log":
        node = Node("/", (Node("ln", parts), Node("ln", (base or Node("number", (Fraction(10), 0)),))))
    else:
        node = Node("root", (*parts, Node("number", (Fraction(3), 0)))) if name == "cbrt" else Node(name, parts)
    return node if power is None else Node("^", (node, power))


def bracket(c, opener):
    """(a), (a, b), [a, b), {a, b}, {x | condition}"""
    c.depth += 1
    if c.depth > MAX_DEPTH:
        raise Unreadable(f"deeper than {MAX_DEPTH} brackets")
    outer, c.bars = c.bars, False
    closers, items = CLOSERS[opener], []
    if opener == "\\{" and (bar := builder(c)):
        c.at = bar + 1
        items = [statement(c, closers)]
        c.expect(*closers)
        c.bars, c.depth = outer, c.depth - 1
        return items[0]
    while c.peek() not in closers:
        if items and not c.take(",", ";", "and"):
            raise Unreadable(f"{c.peek()!r} was not expected")
        if c.peek() == "and":
            c.at += 1
        items.append(relation(c) if opener in ("\\{", "{") else union(c))
        if len(items) > MAX_ITEMS:
            raise Unreadable(f"more than {MAX_ITEMS} items")
    closer = c.take(*closers)
    c.bars, c.depth = outer, c.depth - 1
    if opener == "\\{" or opener == "{" and len(items) > 1:
        return Node("set", tuple(items))
    if not items:
        raise Unreadable("an empty bracket")
    if len(items) == 1:
        return items[0]
    if len(items) == 2 and opener + closer != "()" and opener in "([":
        return Node("interval", (*items, opener + closer))
    return Node("tuple", tuple(items))


def builder(c):
    """Where the bar of {x | ...} or {x in R : ...} stands; 0 if this is no such set."""
    ahead = c.tokens[c.at + 1:c.at + 4]
    if ahead[:1] and ahead[0] in ("|", ":"):
        return c.at + 1
    return c.at + 3 if len(ahead) == 3 and ahead[0] == "\\in" and ahead[2] in ("|", ":") else 0


def matrix(c):
    """\\begin{pmatrix} a & b \\\\ c & d \\end{pmatrix}; with v in front its determinant."""
    name = c.tokens[c.at]
    c.at += 1
    if name not in ("matrix", "pmatrix", "bmatrix", "vmatrix", "array", "smallmatrix", "Bmatrix"):
        raise Unreadable(f"no reading for {name}")
    rows = [[]]
    while not c.take("\\end"):
        if c.take("\\\\"):
            rows.append([])
        elif not c.take("&"):
            rows[-1].append(sum_(c))
    c.at += 1
    rows = tuple(Node("tuple", tuple(row)) for row in rows if row)
    if not rows or len({len(row.parts) for row in rows}) > 1:
        raise Unreadable("rows of different lengths")
    return Node("det" if name == "vmatrix" else "matrix", rows)


def children(node):
    """The nodes among the parts; a relation keeps its sides one level down."""
    return node.parts[1] if node.kind == "relation" else [p for p in node.parts if isinstance(p, Node)]


def spread(node):
    """Every plus-minus as two values: 1 +- 2 -> the list 1 + 2, 1 - 2. Within (+-1, +-2) each sign is free."""
    values = versions(node)
    if node.kind in ("list", "set"):
        return Node(node.kind, tuple(itertools.chain(*map(versions, node.parts))))
    return node if len(values) == 1 else Node("list", tuple(values))


def versions(node):
    used = signs_in(node)
    if not used:
        return [node]
    if node.kind == "tuple" and "\\mp" not in used:
        choices = [versions(p) for p in node.parts]
        if math.prod(map(len, choices)) > MAX_ITEMS:
            raise Unreadable("too many signs")
        return [Node("tuple", parts) for parts in itertools.product(*choices)]
    return [signed(node, "+", "-"), signed(node, "-", "+")]


def signs_in(node):
    return {node.kind} & {"\\pm", "\\mp"} | set().union(*map(signs_in, children(node)))


def signed(node, plus, minus):
    change = lambda part: signed(part, plus, minus) if isinstance(part, Node) else tuple(map(change, part)) if type(part) is tuple else part
    return Node({"\\pm": plus, "\\mp": minus}.get(node.kind, node.kind), tuple(map(change, node.parts)))


@lru_cache(4096)
def variables(node):
    """The names in a tree, and its unknown functions."""
    found, left = set(), [node]
    while left:
        node = left.pop()
        if node.kind == "name" or node.kind.startswith("call "):
            found.add(node.parts[0] if node.kind == "name" else node.kind)
        left += children(node)
    return frozenset(found)


def show(node):
    """A tree as text: (+ 1 (root 2 2))."""
    if not isinstance(node, Node):
        return " ".join(map(show, node)) if type(node) is tuple else str(node)
    if node.kind in ("number", "name"):
        return str(node.parts[0])
    return f"({' '.join([node.kind, *map(show, node.parts)])})" if node.parts else node.kind


# ---- 3a. compare: numbers -------------------------------------------------------------------------------------------
# A number is a Fraction as long as it can be, else a Decimal of 50 digits, else a complex. Where a sum nearly cancels,
# it is zero: that is the only tolerance, and it is relative to what was added.

CONTEXT = Context(prec=50, Emin=-10**6, Emax=10**6, traps=[InvalidOperation, DivisionByZero, Overflow, Underflow])
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494")
NOTHING = {Decimal: Decimal("1e-40"), complex: 1e-9}
FAILURES = (Unreadable, ArithmeticError, DecimalException, ValueError, TypeError, RecursionError)
RANDOM = random.Random()
RANGES = ((1, 4), (0, 1), (2, 9), (0, 1), (-4, -1), (-1, 0), (1, 30))


def decimal(x):
    return Decimal(x.numerator) / Decimal(x.denominator) if isinstance(x, Fraction) else x


def alike(a, b):
    """Both as the wider type of the two."""
    if type(a) is type(b):
        return a, b
    if complex in (type(a), type(b)):
        return complex(a), complex(b)
    return decimal(a), decimal(b)


def bounded(x):
    if type(x) is Fraction and max(x.numerator.bit_length(), x.denominator.bit_length()) > MAX_BITS:
        return decimal(x)
    return x


def add(a, b):
    a, b = alike(a, b)
    if type(a) is Fraction:
        return bounded(a + b)
    total = a + b
    return Fraction(0) if abs(total) <= NOTHING[type(a)] * max(abs(a), abs(b)) else total


def subtract(a, b):
    return add(a, -b)


def multiply(a, b):
    a, b = alike(a, b)
    return bounded(a * b)


def divide(a, b):
    a, b = alike(a, b)
    return bounded(a / b)


def power(a, b):
    if type(b) is Fraction and b.denominator == 1 and type(a) is not Decimal:
        n = int(b)
        if type(a) is complex:
            return a ** n
        if abs(n) * max(a.numerator.bit_length(), a.denominator.bit_length()) <= MAX_BITS:
            return a ** n
        sign = -1 if a < 0 and n % 2 else 1
        return sign * decimal(abs(a)) ** n
    if complex in (type(a), type(b)):
        return complex(a) ** complex(b)
    if a == 0:
        return Fraction(0) if b > 0 else 1 / Fraction(0)
    if a < 0 and type(b) is Fraction and b.denominator % 2 and b.denominator < 10:  # the real root, not the principal one
        return power(-a, b) * (-1 if b.numerator % 2 else 1)
    if a < 0:
        return complex(a) ** complex(b)
    result = decimal(a) ** decimal(b)
    nearest = result.to_integral_value() if result < 10**15 else result
    return Fraction(int(nearest)) if nearest and result < 10**15 and subtract(result, nearest) == 0 else result


def root(x, degree):
    if type(x) is Fraction and degree == 2 and x >= 0:
        exact = Fraction(math.isqrt(x.numerator), math.isqrt(x.denominator))
        return exact if exact * exact == x else decimal(x).sqrt()
    return power(x, divide(Fraction(1), degree))


def real(exact, otherwise):
    """A function of real numbers; complex ones, and those outside its domain, go to cmath."""
    def apply(x):
        try:
            if type(x) is not complex:
                return exact(decimal(x))
        except InvalidOperation:
            pass
        return otherwise(complex(x))
    return apply


def sine(x):
    if abs(x) > 10**9:
        raise Unreadable("the sine of a large number")
    turns = (x / PI).to_integral_value()
    x = decimal(add(x, -turns * PI))
    term = total = x
    for n in range(2, 80, 2):
        term = -term * x * x / (n * (n + 1))
        total += term
        if not total or abs(term) < abs(total) * Decimal("1e-52"):
            break
    return -total if turns % 2 else total


def cosine(x):
    return sine(x + PI / 2)


def arctangent(x):
    for _ in range(4):
        x = x / (1 + (1 + x * x).sqrt())
    return 16 * sum((-1) ** n * x ** (2 * n + 1) / (2 * n + 1) for n in range(24))


def arcsine(x):
    return (PI / 2).copy_sign(x) if abs(x) == 1 else arctangent(x / (1 - x * x).sqrt())


def inverse(x):
    return divide(Fraction(1), x)


def whole(rounding):
    def apply(x):
        nearest = x if type(x) is Fraction else decimal(x).to_integral_value()
        return Fraction(rounding(nearest if subtract(x, nearest) == 0 else x))
    return apply


def factorial(x):
    if type(x) is Fraction and x.denominator == 1 and x >= 0:
        if x > MAX_FACTORIAL:
            raise Unreadable("too large a factorial")
        return Fraction(math.factorial(int(x)))
    return complex(math.gamma(float(x) + 1))


def binomial(n, k):
    if all(type(x) is Fraction and x.denominator == 1 and 0 <= x <= MAX_FACTORIAL for x in (n, k)):
        return Fraction(math.comb(int(n), int(k)))
    return divide(factorial(n), multiply(factorial(k), factorial(subtract(n, k))))


def determinant(*rows):
    if any(len(row) != len(rows) for row in rows) or len(rows) > 4:
        raise Unreadable("no determinant")
    if len(rows) == 1:
        return rows[0][0]
    total = Fraction(0)
    for i, x in enumerate(rows[0]):
        term = multiply(x, determinant(*(row[:i] + row[i + 1:] for row in rows[1:])))
        total = subtract(total, term) if i % 2 else add(total, term)
    return total


def of_integers(function):
    def apply(*numbers):
        if any(type(x) is not Fraction or x.denominator != 1 for x in numbers):
            raise Unreadable("no integer")
        return Fraction(function(*map(int, numbers)))
    return apply


SIN, COS, LN, EXP = real(sine, cmath.sin), real(cosine, cmath.cos), real(Decimal.ln, cmath.log), real(Decimal.exp, cmath.exp)
TAN = lambda x: divide(SIN(x), COS(x))
OPERATIONS = {
    "+": add, "-": subtract, "*": multiply, "/": divide, "ratio": divide, "^": power, "root": root, "abs": abs, "!": factorial, "binom": binomial,
    "\\bmod": of_integers(lambda a, b: a % b), "gcd": of_integers(math.gcd), "lcm": of_integers(math.lcm), "floor": whole(math.floor),
    "ceil": whole(math.ceil), "max": lambda *x: max(map(decimal, x)), "min": lambda *x: min(map(decimal, x)),
    "percent": lambda x: divide(x, Fraction(100)), "degrees": lambda x: multiply(x, PI / 180), "sin": SIN, "cos": COS, "tan": TAN,
    "cot": lambda x: divide(COS(x), SIN(x)), "sec": lambda x: inverse(COS(x)), "csc": lambda x: inverse(SIN(x)), "ln": LN, "exp": EXP,
    "sinh": lambda x: divide(subtract(EXP(x), EXP(-x)), Fraction(2)), "cosh": lambda x: divide(add(EXP(x), EXP(-x)), Fraction(2)),
    "tanh": lambda x: divide(subtract(EXP(2 * x), EXP(-2 * x)), add(add(EXP(2 * x), EXP(-2 * x)), Fraction(2))) if x else x,
    "arcsin": real(arcsine, cmath.asin), "arctan": real(arctangent, cmath.atan),
    "arccos": real(lambda x: PI / 2 - arcsine(x), cmath.acos), "pi": lambda: PI, "e": lambda: Decimal(1).exp(), "i": lambda: 1j}


def evaluate(node, point, steps):
    """The number a tree stands for, its variables at `point`. `steps`: [how many operations are left]."""
    kind = node.kind
    if kind == "number":
        return node.parts[0]
    if kind == "name":
        return point[node.parts[0]]
    steps[0] -= 1
    if steps[0] < 0:
        raise Unreadable(f"more than {MAX_STEPS} operations")
    if kind == "^" and node.parts[0].kind == "e":
        return EXP(evaluate(node.parts[1], point, steps))
    if kind == "opaque" or kind.startswith("call "):  # an unknown function: any number, the same one for the same operands
        operands = itertools.chain.from_iterable(p.parts if isinstance(p, Node) and p.kind == "tuple" else (p,) for p in node.parts)
        key = [p if isinstance(p, str) else f"{complex(evaluate(p, point, steps)):.9g}" for p in operands]
        return Fraction(hash((kind, *key)) % 99991 + 1, 9973)
    if kind == "det":
        return determinant(*(tuple(evaluate(p, point, steps) for p in row.parts) for row in node.parts))
    if kind not in OPERATIONS:
        raise Unreadable(f"{kind} is not a number")
    return OPERATIONS[kind](*[evaluate(p, point, steps) for p in node.parts])


@lru_cache(4096)
def constant(node):
    """The value of a tree without variables; None if there is none."""
    try:
        return None if variables(node) else evaluate(node, {}, [MAX_STEPS])
    except FAILURES:
        return None


# ---- 3b. compare: answers -------------------------------------------------------------------------------------------

def equal(a, b):
    """Whether two trees are the same answer. Symmetric."""
    if a == b:
        return True
    if a.kind in ("*", "-", "matrix") and b.kind in ("*", "-", "matrix") and (rows := entries(a)) and (others := entries(b)):
        return len(rows) == len(others) and all(len(p) == len(q) and all(map(equal, p, q)) for p, q in zip(rows, others))
    for kinds, compare in COMPARISONS:
        if a.kind in kinds or b.kind in kinds:
            return compare(a, b) if a.kind in kinds else compare(b, a)
    return equal_numbers(a, b)


def equal_texts(a, b):
    return a.kind == b.kind and a.parts == b.parts


def meaning(relation):
    """What "x = 5", "f(x) = 5" or "2 + 3 = 5" defines; None if it only restricts, as "x + y = 5" does."""
    signs, sides, named = relation.parts
    if signs == ("\\in",):
        return sides[1]
    if not set(signs) <= {"=", "~"}:
        return None
    if signs[-1] == "~" and not named[-2]:
        sides, named = sides[:-1], named[:-1]  # "22/7 = 3.14...": what stands before "about" is exact
    values = [side for side, name in zip(sides, named) if not name]
    return values[-1] if values and (any(named) or all(constant(v) is not None for v in values)) else None


def equal_relations(a, b):
    if b.kind != "relation":
        value = meaning(a)
        if value is not None:
            return equal(value, b)
        if region(a) and b.kind in ("interval", "tuple", "union", "meet", "set", "without"):
            return equal_regions(a, b)
        return solves(a, b)
    x, y = meaning(a), meaning(b)
    if x is not None and y is not None:
        (name, _, *_), (other, _, *_) = a.parts[1], b.parts[1]
        single = [len(r.parts[1]) == 2 and r.parts[0] == ("=",) and r.parts[2][0] for r in (a, b)]
        if not all(single) or name == other or {name.kind, other.kind} != {"name"}:
            return equal(x, y)
    return bool(region(a) and region(b) and equal_regions(a, b)) or equal_chains(a, b)


def equal_chains(a, b):
    """Relations up to order, flip and scale: -x >= -1 is x <= 1, and 2y = 4x is y - 2x = 0."""
    (signs, sides, _), (others, their_sides, _) = (upward(r) for r in (a, b))
    if signs != others:
        return False
    if all(map(equal, sides, their_sides)) or signs == ("!=",) and all(map(equal, sides, their_sides[::-1])):
        return True
    if len(sides) > 2:
        return set(signs) == {"="} and match(sides, their_sides)
    difference, theirs = (Node("-", pair) for pair in (sides, their_sides))
    names = variables(difference)
    if names != variables(theirs) or not names:
        return False
    ratios = []
    for point in points(names, 4):
        x, y = (evaluate(d, point, [MAX_STEPS]) for d in (difference, theirs))
        if x == 0 or y == 0:
            return x == y
        ratios.append(divide(x, y))
    return all(subtract(r, ratios[0]) == 0 for r in ratios) and (signs[0] in ("=", "!=") or type(ratios[0]) is not complex and ratios[0] > 0)


def upward(relation):
    """The same with the signs < and <= only, where it has but > and >=."""
    signs, sides, named = relation.parts
    if set(signs) <= {">", ">="}:
        return tuple(FLIPPED[s] for s in reversed(signs)), sides[::-1], named[::-1]
    return relation.parts


def solves(relation, value):
    """2x + 4y = 3 against 3/4 - x/2: the one name that the value lacks, here y, must be linear, and be the value."""
    signs, sides, _ = relation.parts
    if signs != ("=",) or value.kind not in OPERATIONS and value.kind not in ("number", "name"):
        return False
    difference = Node("-", sides)
    unknown = variables(difference) - variables(value)
    if len(unknown) != 1 or not variables(value) <= variables(difference):
        return False
    name, = unknown
    for point in points(variables(difference), 3):
        v = evaluate(value, point, [MAX_STEPS])
        at, near, far = (evaluate(difference, {**point, name: add(v, Fraction(k))}, [MAX_STEPS]) for k in (0, 1, 2))
        if at != 0 or near == 0 or subtract(multiply(near, Fraction(2)), far) != 0:
            return False
    return True


def equal_lists(a, b):
    """Tuples in their order, lists and sets in any; a tuple against a list in its order."""
    lists = ("list", "set", "tuple")
    for one, other in ((a, b), (b, a)):
        if one.kind in lists and len(one.parts) == 1 and other.kind not in lists:
            return equal(one.parts[0], other)
    if a.kind not in lists or b.kind not in lists:
        return False
    if "tuple" not in (a.kind, b.kind) and all(p.kind == "tuple" for p in a.parts + b.parts):  # a solution told twice is one
        a, b = (Node("set", tuple(dict.fromkeys(x.parts))) for x in (a, b))
    if len(a.parts) != len(b.parts):
        return False
    return all(map(equal, a.parts, b.parts)) if "tuple" in (a.kind, b.kind) else match(a.parts, b.parts)


def equal_ratios(a, b):
    """1:2:3 against 2:4:6; a ratio of two is a fraction."""
    if a.kind != b.kind or len(a.parts) == len(b.parts) == 2:
        return equal_numbers(a, b)
    return len(a.parts) == len(b.parts) and all(
        equal(Node("*", (x, b.parts[0])), Node("*", (y, a.parts[0]))) for x, y in zip(a.parts, b.parts))


def match(these, those):
    """Each has its partner, in any order. Two that cannot be compared are no partners."""
    def partners(x, y):
        try:
            return equal(x, y)
        except FAILURES:
            return False

    left = list(those)
    for x in these:
        partner = next((i for i, y in enumerate(left) if partners(x, y)), None)
        if partner is None:
            return False
        del left[partner]
    return not left


def entries(node):
    """The rows of a matrix, of a multiple of one, or of a product of two; None for anything else."""
    if node.kind == "matrix":
        return [row.parts for row in node.parts]
    if node.kind not in ("*", "-"):
        return None
    a, b = map(entries, node.parts)
    if a is None and b is not None:
        return [tuple(Node(node.kind, (node.parts[0], x)) for x in row) for row in b]
    if a is None or b is None or len(a[0]) != len(b) or node.kind == "-" or max(map(len, a + b)) > 4:
        return None
    return [tuple(functools.reduce(lambda s, t: Node("+", (s, t)), (Node("*", pair) for pair in zip(row, column)))
                  for column in zip(*b)) for row in a]


def equal_matrices(a, b):
    flat = lambda m: m.parts[0].parts if len(m.parts) == 1 else tuple(row.parts[0] for row in m.parts if len(row.parts) == 1)
    if b.kind == "tuple":
        return len(flat(a)) == len(b.parts) and all(map(equal, flat(a), b.parts))
    return False


SETS = ("interval", "union", "meet", "without", "field")
INFINITY = Decimal("Infinity")
HOLDS = {"<": operator.lt, "<=": operator.le, "=": operator.eq, "!=": operator.ne}


def region(node):
    """A set of reals as (its boundaries, a test of membership); None if it is none."""
    kind, parts = node.kind, node.parts
    if kind == "field":
        return ([], lambda x: True) if parts[0] == "R" else None
    if kind in ("set", "list"):
        ends = [limit(p) for p in parts]
        return None if None in ends else (ends, lambda x: x in ends)
    if kind == "interval" or kind == "tuple" and len(parts) == 2:
        low, high = map(limit, parts[:2])
        if low is None or high is None:
            return None
        left, right = parts[2] if kind == "interval" else "()"
        return [low, high], lambda x: low < x < high or left == "[" and x == low or right == "]" and x == high
    if kind in ("union", "meet", "without"):
        inner = [region(p) for p in parts]
        if None in inner:
            return None
        tests = [test for _, test in inner]
        combined = {"union": lambda x: any(t(x) for t in tests), "meet": lambda x: all(t(x) for t in tests),
                    "without": lambda x: tests[0](x) and not any(t(x) for t in tests[1:])}[kind]
        return [end for ends, _ in inner for end in ends], combined
    return region_of(*upward(node)) if kind == "relation" else None


def region_of(signs, sides, named):
    """x < 3, 2x + 1 <= 9, x != 5, x = 5, x in a set; and between two ends: 1 <= x < 2."""
    if signs == ("\\in",):
        return region(sides[1])
    if not set(signs) <= set(HOLDS):
        return None
    if len(sides) == 3:
        ends = limit(sides[0]), limit(sides[2])
        if sides[1].kind != "name" or None in ends:
            return None
        return list(ends), lambda x: HOLDS[signs[0]](ends[0], x) and HOLDS[signs[1]](x, ends[1])
    names = variables(Node("-", sides))
    if len(sides) != 2 or len(names) != 1 or any(side.kind == "text" for side in sides):
        return None
    try:  # the difference of the sides at 0, 1 and 2: is it linear?
        at = [evaluate(Node("-", sides), dict.fromkeys(names, Fraction(i)), [MAX_STEPS]) for i in (0, 1, 2)]
        slope = subtract(at[1], at[0])
        if slope == 0 or complex in map(type, at) or subtract(slope, subtract(at[2], at[1])) != 0:
            return None
    except FAILURES:
        return None
    end = decimal(-divide(at[0], slope))
    return [end], lambda x: HOLDS[signs[0]](x, end) if slope > 0 else HOLDS[signs[0]](end, x)


def limit(node):
    """An end of an interval as a Decimal; None if it is no real number."""
    if node.kind == "infinity":
        return INFINITY
    if node.kind in "+-" and node.parts[1].kind == "infinity":
        return INFINITY if node.kind == "+" else -INFINITY
    value = constant(node)
    return None if value is None or type(value) is complex else decimal(value)


def outline(node):
    """A region's canonical form: boundaries in order, and membership below, at and above each, where it changes."""
    ends, test = region(node)
    distinct = []
    for end in sorted(end for end in ends if abs(end) != INFINITY):
        if not distinct or subtract(end, distinct[-1]) != 0:
            distinct.append(end)
    gaps = [(a + b) / 2 for a, b in zip(distinct, distinct[1:])]
    between = [distinct[0] - 1, *gaps, distinct[-1] + 1] if distinct else [Decimal(0)]
    inside = [test(x) for x in between]
    edges = [(end, (inside[i], test(end), inside[i + 1])) for i, end in enumerate(distinct)]
    return inside[0], [(end, pattern) for end, pattern in edges if len(set(pattern)) > 1]


def equal_regions(a, b):
    if b.kind == "relation" and (value := meaning(b)) is not None:
        return equal(a, value)
    if region(a) and region(b):
        (first, edges), (other_first, others) = outline(a), outline(b)
        return first == other_first and len(edges) == len(others) and all(
            p == q and subtract(x, y) == 0 for (x, p), (y, q) in zip(edges, others))
    if a.kind == "interval" and b.kind == "tuple" and a.parts[2] == "()" and len(b.parts) == 2:
        return all(map(equal, a.parts[:2], b.parts))
    if a.kind != b.kind:
        return False
    if a.kind == "interval":
        return a.parts[2] == b.parts[2] and all(map(equal, a.parts[:2], b.parts[:2]))
    return match(a.parts, b.parts) if all(isinstance(p, Node) for p in a.parts + b.parts) else a.parts == b.parts


COMPARISONS = ((("relation",), equal_relations), (("text",), equal_texts), (SETS, equal_regions),
               (("matrix",), equal_matrices), (("list", "set", "tuple"), equal_lists), (("ratio",), equal_ratios))


def points(names, count):
    """Random places for the variables: prime denominators, so that no two of them are related by accident."""
    for i in range(count):
        low, high = RANGES[i % len(RANGES)]
        yield {name: Fraction(RANDOM.randint(97 * low + 1, 97 * high - 1), 97) for name in sorted(names)}


def readings(node):
    """28% is 28 and 0.28; 60 degrees are 60 and pi/3."""
    return (node.parts[0], node) if node.kind in ("percent", "degrees") else (node,)


def equal_numbers(a, b):
    if a.kind == b.kind and a.kind in ("percent", "degrees"):
        return equal_values(a.parts[0], b.parts[0])
    return any(equal_values(x, y) for x, y in itertools.product(readings(a), readings(b)))


def equal_values(a, b):
    x, y = constant(a), constant(b)
    if x is not None and y is not None:
        return subtract(x, y) == 0 or rounds_to(a, x, y) or rounds_to(b, y, x)
    if "infinity" in (a.kind, b.kind) or variables(a) != variables(b):
        return limit(a) is not None and limit(a) == limit(b)
    if not variables(a):
        raise Unreadable("it has no value")
    return equal_functions(a, b, variables(a))


def rounds_to(node, written, exact):
    """A decimal of at least six digits, four after the point, is equal to what rounds to it."""
    if node.kind != "number" or node.parts[1] < 4 or abs(written.numerator) * 10 ** node.parts[1] < 10**5 * written.denominator:
        return False
    return type(exact) is not complex and abs(decimal(exact) - decimal(written)) < Decimal(1).scaleb(-node.parts[1])


def equal_functions(a, b, names):
    """At random points, where both are real; where they hardly ever are, as complex numbers."""
    steps, real_ones, others = [MAX_STEPS], 0, []
    for point in points(names, 10):
        try:
            x, y = evaluate(a, point, steps), evaluate(b, point, steps)
        except FAILURES as error:
            if steps[0] < 0:
                raise Unreadable(str(error)) from None
            continue
        same = subtract(x, y) == 0
        if all(type(v) is not complex or abs(v.imag) <= 1e-9 * abs(v) for v in (x, y)):
            if not same:
                return False
            real_ones += 1
        else:
            others.append(same)
    if real_ones < 3 and not others:
        if not real_ones:
            raise Unreadable("it has no value at any point tried")
    return real_ones >= 3 or all(others)


def compare(gold: str, response: str):
    """(True, False or None; why; the two extracted answers)"""
    if not gold or not gold.strip():
        return False, "there is no gold answer", "", ""
    a, b = find(gold, join_boxes=True), find(response)
    if not a or not b:
        return None, "no answer found", a, b
    if a == b:
        return True, "the same text", a, b
    if a.isdecimal() and b.isdecimal() and len(a) < MAX_ANSWER > len(b):
        return int(a) == int(b), "integers", a, b
    x, y = clean(a), clean(b)
    result, why = compare_cleaned(x, y)
    if result is not True and "box" in (response or "") and (joined := find(response, join_boxes=True)) != b:
        try:
            if read(x).kind in ("list", "set", "tuple"):
                return *compare_cleaned(x, clean(joined)), a, joined
        except Unreadable:
            pass
    return result, why, a, b


def compare_cleaned(x, y):
    if LOOSE.sub("", x) == LOOSE.sub("", y):
        return True, "the same text but for spaces"
    plain = [LOOSE.sub("", WHOLE_TEXT.sub(r"\1", s)) for s in (x, y)]
    words = len(plain[0]) > 1 and (WHOLE_TEXT.fullmatch(x) or WHOLE_TEXT.fullmatch(y))
    if plain[0] == plain[1] or words and plain[0].casefold() == plain[1].casefold():
        return True, "the same words"
    letters = [CHOICE.fullmatch(WHOLE_TEXT.sub(r"\1", s)) for s in (x, y)]
    if all(letters) and not all(m[2] for m in letters):
        return letters[0][1] == letters[1][1], "letters of a choice"
    try:
        with localcontext(CONTEXT):
            same = equal(read(x), read(y))
            if not same and "," in x and "," in y and (GROUPED.search(x) or GROUPED.search(y)):
                same = equal(read(x, False), read(y, False))  # 100,200 may be one number or two
    except FAILURES as error:
        return None, f"unreadable: {error}"
    return same, "compared as values"


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
      | (?P<bad>incorrect(?:ly)?|wrong|inaccurate|invalid|false|mistaken|erroneous|flawed|fails?) )\b
  | (?P<before> \b(?:is|are|was|be|n[o']t|seems|being)\s+(?:\w+\s+){{0,2}}?)
    (?:(?P<good_one>correct|right|valid)|(?P<bad_one>incorrect|wrong|invalid))\s+(?:final\s+)?{SUBJECT}\b
""", re.I | re.X)
NEGATION = re.compile(r"\b(?:not|never|no\s+longer|cannot|neither|hardly|fails?\s+to|far\s+from)\b|n't\b", re.I)
CONDITION = re.compile(r"\b(?:if|whether|is|suppose|assum\w+|unless|was|check|verify|see|does)\s+(?:that\s+|if\s+)?"
                       r"(?:(?:the|my|this|your|our|given|final|proposed)\s+)*$", re.I)
QUESTION = re.compile(r"[^.!?\n]{0,200}\?")


def verdict(text: str):
    """The last "the answer is (in)correct" of a text, in its usual wordings: True, False, or None without any.

    >>> verdict("Is the answer correct? 6 * 7 = 42, as it should. The answer is not wrong.")
    True
    """
    text = MARKUP.sub("", (text or "")[-MAX_VERIFICATION:])
    last = None
    for m in VERDICT.finditer(text):
        if m["doubt"]:
            last = False
        elif not CONDITION.search(text, max(0, m.start() - 60), m.start()) and not QUESTION.match(text, m.end()):
            said = bool(m["good"] or m["good_one"])
            negations = len(NEGATION.findall(m["middle"] or m["before"] or ""))
            last = said if negations % 2 == 0 else not said
    return last


# ---- command line ---------------------------------------------------------------------------------------------------

def main(argv):
    if len(argv) != 2:
        print("usage: python -m nanoverify.answers GOLD ANSWER", file=sys.stderr)
        return 2
    result, why, *answers = compare(*argv)
    for name, answer in zip(("gold", "answer"), answers):
        try:
            tree = show(read(clean(answer)))
        except FAILURES as error:
            tree = f"unreadable: {error}"
        print(f"{name:8s} {answer}\n{'read as':8s} {tree}")
    print(f"{'verdict':8s} { {True: 'equal', False: 'not equal', None: 'unreadable'}[result]} ({why})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
