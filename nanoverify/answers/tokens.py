"""Text to tokens. A token is a string:

    12   x   \\frac   +     a number, a letter, a command, a symbol
    "north                  a word starts with a quote
    “north                  a word within \\text{} starts with a curly quote
    ""km                    a unit starts with two quotes

    tokenize("5 \\unit{km}")   # ['5', '""km']
"""
import re

from .limits import MAX_TOKENS, Unreadable
from .words import BASES, COUNTING, OPPOSITES, PARTS

TOKEN = re.compile(r"""
    \d*\.\d*(?:\\(?:overline|bar|dot)\s*(?:\{\d+\}|\d)|\(\d+\))             # repeating decimal
  | \d[\dA-F]*_(?:\d|\{\ ?\d+\ ?\})                                         # in some base
  | [A-F]{1,9}\d[\dA-F]*_\{\ ?1[1-6]\ ?\}
  | (?:\d+(?:\.(?!\.)\d*)?|\.\d+)(?:[eE][-+]?\d+(?![\w.]))?
  | \\unit\{(?P<unit>[^{}]*)\}
  | \\(?:text\w*|mbox|mathrm|operatorname\*?|mathit|mathsf|emph)
    \s*\{(?P<text>(?:[^{}]|\{[^{}]*\})*)\}
  | \\[A-Za-z]+ | \\\\(?:\[[^\]]*\])? | \\[^A-Za-z]
  | (?P<word> [A-Za-z]+)
  | <=|>=|!=|==|:=|<>|\*\*|\.\.\.|\S""", re.X | re.ASCII)

SAME = dict(pair.split() for pair in r"""** ^|\cdot *|\times *|\ast *|\div /|\colon :|== =|:= =
    |\equiv =|\lt <|\gt >|\le <=|\leq <=|\leqslant <=|\ge >=|\geq >=|\geqslant >=|\ne !=|\neq !=
    |<> !=|\approx ~|\simeq ~|\dfrac \frac|\tfrac \frac|\cfrac \frac|\dbinom \binom|\tbinom \binom
    |\lbrace \{|\rbrace \}|\lbrack [|\rbrack ]|\cupdot \cup|\bigcup \cup|\backslash \setminus
    |\varnothing \emptyset|\oslash \emptyset|\ldots ...|\dots ...|\cdots ...|\% %|\lg \log
    |\mod \bmod|\prime '|\varphi \phi|\varepsilon \epsilon|\to ->|\rightarrow ->|\& and|\_ _
    |\circ *|\pod \pmod|\overrightarrow \vec|\widehat \hat|\widetilde \tilde
    """.split("|")) | dict.fromkeys(("\\lvert", "\\rvert", "\\vert"), "|")
SPELLED = {  # a word: the token that it stands for
    "and": "and", "or": "or", "percent": "%", "percentage": "%", "pct": "%", "oo": "\\infty",
    "degrees": "\\degree", "degree": "\\degree", "infinity": "\\infty", "inf": "\\infty",
    "union": "\\cup", "mod": "\\bmod", "modulo": "\\bmod", "in": "\\in",
    **{word: "\\" + word for word in "sqrt cbrt pi infty sin cos tan cot sec csc arcsin arccos "
       "arctan log ln exp max min gcd lcm floor ceil abs binom alpha beta gamma delta theta lambda "
       "mu phi omega sigma rho tau".split()}}
JOINT = re.compile(r"(?:(?<= )|^)(and|or)(?= |$)")
UNITS = frozenset("mph kph usd am pm sq cu".split())
SHORT_WORDS = frozenset(
    "so to it by at my we he she are was has but its yes no bc ad bce ce up red hot cold "
    "odd even non not one if an the for is of to each per day men boy win".split())
KNOWN_WORDS = frozenset(  # an answer with these words is no prose
    "all any real reals number numbers except other than no solution solutions real out of to base "
    "square cubic per for hundred thousand million billion a an the if frac dfrac set empty"
    .split()) | COUNTING | PARTS.keys() | OPPOSITES.keys() | BASES.keys()
AFTER_CHRIST = re.compile(r" ?\d")


def tokenize(text):
    """The tokens of a text; raises Unreadable if there are more than MAX_TOKENS."""
    tokens = []
    for m in TOKEN.finditer(text):
        token = m[0]
        if m.lastgroup == "unit":
            tokens.append('""' + m["unit"])
        elif m.lastgroup == "text":
            tokens += text_tokens(re.sub(r"[{}]", "", m["text"]))
        elif m.lastgroup == "word":
            last = tokens[-1] if tokens else ""
            tokens += word_tokens(token, m, last[:1].isdigit() or is_word(last))
        else:
            tokens.append("\\\\" if token[:2] == "\\\\" else SAME.get(token, token))
    if len(tokens) > MAX_TOKENS:
        raise Unreadable(f"more than {MAX_TOKENS} tokens")
    return tokens


def text_tokens(text):
    """The content of \\text{}: words between "and" and "or"."""
    words = [word.strip(" ,") for word in JOINT.split(text)]
    return [SPELLED.get(word.lower(), word if word in ("e", "i") else "“" + word)
            for word in words if word]


def word_tokens(word, m, after_value):
    """A run of letters: a spelled symbol, a word, or single letters.

    after_value: it follows a number or another word.
    """
    spaced = m.string[m.start() - 1:m.start()] == " "
    if word.lower() in SPELLED and not (after_value and word == "in"):
        return [SPELLED[word.lower()]]
    whole = len(word) > 1 and word.lower() in SHORT_WORDS and (
        spaced or not m.start() or after_value)
    if word in ("BC", "AD", "CE") and not after_value:  # BC = 7, but AD 44
        whole = bool(AFTER_CHRIST.match(m.string, m.end()))
    unit_like = after_value and (word.lower() in UNITS or spaced and len(word) > 2)
    return ['"' + word] if len(word) > 3 or whole or unit_like else list(word)


def is_word(token):
    return token[:1] in ('"', "“")
