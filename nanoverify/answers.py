"""Does this answer equal that one? A verifier by rules, for rewards: exact where it can be, silent
where it cannot read.

    grade("\\frac{1}{2}", "17 * 8 = 136. The answer is 0.5.")   # True, False, or None: unreadable
    extract("x = 9, so the answer is $9$.")                       # '9'
    verdict("39 is 39. Therefore, the answer is correct.")        # True, False, or None: no verdict

    python -m nanoverify.answers '[-2, 7]' 'So $-2 \\le x \\le 7$.'   # the verdict, and why

Four steps: extract (the last \\boxed{}, `#### n`, <answer>, "the answer is ...", formula or
number), read, compare, verdict. Reading turns LaTeX or plain text into tokens, and by recursive
descent into a tree. Each rule is one method of `Parser`:

    statement = relation {("," | ";" | "and" | "or") relation}
    relation  = side {("=" | "<" | "in" | ...) side} ["(mod" operation ")"]
    side      = words | [words] operation
    operation = product {("+" | "-") product}, and looser than these: "cup", "cap", "over", ...
    product   = factor {["*" | "/" | ":" | "mod"] factor | unit | word}
    factor    = "-" factor | postfix ["^" factor]
    postfix   = atom {"!" | "%" | "degree" | "_" index | "'"}
    atom      = number | name | function | fraction | root | bracket | |absolute value| | matrix

Limits. Complex numbers, inverse trigonometry and factorials of fractions are compared to 9 digits
only. `28%` reads as 28 and as 0.28, `60` degrees as 60 and as pi/3. A decimal of six digits or more
(four after the point) also equals what rounds to it. Limits, integrals and determinants are unknown
functions. Work is bounded by the MAX_ constants below, counted in steps, not in seconds; beyond
them an answer is unreadable. What each kind of answer may look like: docs/grading.md.
"""
import cmath
import itertools
import math
import operator
import random
import re
import sys
import threading
import unicodedata
import zlib
from bisect import bisect_right
from contextlib import suppress
from decimal import (Context, Decimal, DecimalException, DivisionByZero, InvalidOperation, Overflow,
                     Underflow, localcontext)
from fractions import Fraction
from functools import lru_cache, partial, reduce
from typing import NamedTuple

MAX_RESPONSE, MAX_VERIFICATION = 10_000, 4_000  # characters: only the end of more is searched
MAX_ANSWER, MAX_TOKENS = 2_000, 300  # of an answer that is read; nor can its tree be deeper
MAX_ITEMS = 64  # parts of a list in any order
MAX_BITS = 20_000  # of an exact number; larger ones become decimals
MAX_STEPS = 6_000  # operations in one comparison
MAX_FACTORIAL = 2_500
MAX_TERMS = 1_000  # of a sum or product
MAX_MATRIX = 6  # rows of a product of matrices
MAX_MENTIONS = 100  # of "answer": the last ones are tried
MAX_WORDS = 2  # beside each part of an answer; more are prose
PRONOUNS = frozenset("that this it which what he she there here not".split())


class Unreadable(ValueError):
    """This text, or this number, is beyond the grammar or the limits."""


class Exhausted(Unreadable):
    """It takes more than MAX_STEPS."""


# ---- 1. extract: the final answer within a text -------------------------------------------------

SPACES = re.compile(r"[^\S\n]+")
LINES = re.compile(r"(?: ?\n)+ ?")
TURN = re.compile(r"<\|[^|<>\n]{1,40}\|>|</s>")
BRACE = re.compile(r"\\.|[{}]", re.S)
BOX = re.compile(r"\\(?:f|frame)?box(?:ed)?\s*(?=\{)")
OPEN_BOX = re.compile(r"\\(?:f|frame)?box(?:ed)?\s*\{?([^\n$]*)")
BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;&]|\\[()\[\],;!:]|\\q?quad|\\text\w*\{\s*(?:and|or)\s*\}|and|or"
    r"|[A-Za-z](?:_\{?\w+\}?)? ?=)*")
HEADING = re.compile(r"^ ?####+ ?([^\n]*)", re.M)
STEP = re.compile(
    r"(?:step|part|case|section|method|problem|question|example|solution|check\w*|verif\w+)\b"
    r"|\d{1,2}[.):] [A-Za-z]", re.I)
TAG = re.compile(r"<((?:final_)?answer)>", re.I)
FILLER = (r"(?:[\s*:}]|\b(?:indeed|therefore|thus|simply|just|clearly|exactly|equal to"
          r"|approximately|about)\b)*")
PHRASE = re.compile(rf"""
    (?: (?<!you\ )(?<!they\ )(?<!who\ )(?<!to\ )\banswers?\b  # the answer
        (?: \s[^.\n:=]{{1,80}}? )??                                # to the question
        (?: \s(?:is|are|was|be|equals|becomes|comes(?:\ out)?\ to)\b | \s?(?:=>|->|[:=→])
          | (?<=answer)(?:\s?[-–—]|\])\s )
      | \bans(?:\.\s | \b\.?\s?(?:[:=]|-\s|is\b))                 # Ans: 5
      | \b(?:correct|right|best|my)\s(?:option|choice)(?:\sis\b|:)  # the correct option is (B)
      | \b(?:choose|pick|select)\s(?:option\s|choice\s|answer\s)?(?=\(?(?-i:[A-J])\b)
      | ^[\ \t]*A:
      | (?P<heading> ^[\#*\s]*(?:the\s)?(?:final\s)?answer[\s*]*$ )  # ## Final answer
    ) {FILLER}
    (?! \s | (?:\w+\ )?(?:not\ |in)?(?:correct|right|wrong|valid|verified)\b )
""", re.I | re.M | re.X)
TURNED = re.compile(  # 80 is the answer, option (B) is correct
    r"(?:\b(?:option|choice) |^)(\(?[A-J]\)?) is (?:the )?(?:correct|right)\b"
    r"|(?<!\S)([^\s,;]{1,60}) (?:is|are) (?:indeed |then |therefore )?(?:the|our|my) "
    r"(?:final |correct |right )*(?:answer|option|choice)\b", re.I)
KEYWORD = re.compile(r"nswer|\bans\b|option|choice|choose|pick|select|correct|right|\bA:", re.I)
CHECKING = re.compile(  # let me check my answer: 2 * 5 = 10
    r"\b(?:check|verif|confirm|test|substitut|plug|prov|try|express|multipl"
    r"|convert|divid)\w*\b[^.!?\n]{0,40}$", re.I)
CHECK_LINE = re.compile(
    r"(?:^[#* ]*|(?<=[.!?] ))(?:check(?:ing)?\b|verif|proof\b"
    r"|(?:to|let(?:'s| us| me)|we(?: can| may)?|now,?)"
    r" (?:double-?)?(?:check|verify|confirm)\b)", re.I | re.M)
SENTENCE_END = re.compile(
    r"(?<!\bsq)(?<!\bcu)(?<!\bapprox)(?<!\bi\.e)(?<!\be\.g)[.?](?=\s|$|[A-Z][a-z])"
    r"|(?<![\\)!])!+(?= ?(?:[^\s=*/+-]|$))(?=\s|$)|\n|</")
REASON = re.compile(  # what follows explains; the answer is over
    r",? (?:(?:\d+ |some |half |out )?of (?:which|whom|them|these)|including|such as|due to)\b"
    r"|, (?:the|an?) (?=[a-z]{2})|[,;] (?:note|leaving|namely|using|given|followed by|recall)\b"
    r"|,? \(?(?:because|since|as|so|which|where|whereas|when|while|but|for|after|thus"
    r"|hence|therefore|giving|meaning|making|instead of|rather than|in total|in all|altogether"
    r"|that is|i\.e\.|e\.g\.)(?![\w.])|,? (?:and )?not\b", re.I)
PAUSE = re.compile(r"(?<!\\); | -- | [–—] | - (?=[A-Za-z]{3})")  # perhaps an explanation
BRACKETED = re.compile(r" [(\[]([^()\[\]]{3,200})[)\]][*. ]*$")
ASIDE_SUM = re.compile(  # 8 apples (12 - 4); 70 minutes (1 hour and 10 minutes)
    r"(?<=[a-z]{3}) \((?:[^()]{1,60}\d ?[-+*/×] ?\d[^(),]{0,60}"
    r"|\d+ [a-z]+,? (?:and )?\d+ [a-z]+)\)"
    r"[. ]*$")
EXPLAINS = re.compile(r"=|[A-Za-z]{2,}[^A-Za-z]+[A-Za-z]{2,}"
                      r"|^(?:using|by|from|since|because|as|after|at|or|with|for"
                      r"|given|see)\b", re.I)
NOT_BUT = re.compile(  # not 36 but 42; not 10, it's 12
    r"not [^\n]{1,60}?(?: but (?:rather )?|[,;] (?:it's|it is|rather|instead) )", re.I)
CANNOT = re.compile(r"\b(?:cannot|can't|could not|never) be\W*$", re.I)
CONNECTIVE = re.compile(
    r"(?:so|thus|hence|therefore|then|finally|consequently|overall|in conclusion)\b[,:]? +"
    r"|= ?", re.I)
DURATION = re.compile(  # a total of $240 in 3 days
    r" (?:in|over|within|during) (?:the )?(?:last |first |next )?\d+ "
    r"(?:second|minute|hour|day|week|month|year)s?\b[. ]*$", re.I)
PAID_FOR = re.compile(  # $450 for 3 nights
    r"(?<=\d) for (?:the |all )?\d+ [a-z]+(?: [a-z]+)?[. ]*$")
ODDS = re.compile(r"\d+ (?:in|out of|to) \d+")
ALTERNATIVE = re.compile(r",? or ", re.I)
SAID_OF = re.compile(  # the larger is 5
    r"(?:the )?([A-Za-z]+) (?:one |number |value )?(?:is|are|was) ([^\n]{1,60})", re.I)
YES = re.compile(r"(yes|no|true|false)\b(?:[,.;:!][^\d\\$]*$|,? (?:because|since|as)\b)", re.I)
THE_ROOTS = re.compile(  # x = 2 and x = 3 are the solutions
    r"(?:^|[.\n] ?|\b(?:so|thus|hence|therefore),? )([^.\n]{1,120}?) (?:is|are) (?:the|our|all) "
    r"(?:only |real ){0,2}(?:solutions?|roots?|zeros?|answers)\b[^.\n]{0,40}\.?$", re.I)
IS_NOT = re.compile(r"\b(is|are|was)n['’]t\b", re.I)
OPENER = re.compile(r"\\\[|\\\(|\$\$|(?<!\\)\$")
CLOSER = {"\\[": "\\]", "\\(": "\\)", "$$": "$$", "$": "$"}
COMMAND = re.compile(r"\\(?:text\w*|mbox|mathrm|operatorname|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+")
VERB = re.compile(
    r"\b(?:is|are|was|be|equals|we|there|they|has|have|had|will|gets?|got|gives?|finds?|obtains?"
    r"|costs?|earns?|saves?|pays?|paid|makes?|buys|spends?|needs?|takes?)\b", re.I)
AMOUNT = r"(?:\d{1,3}(?:[ ,]\d{3})+(?![\d,])|\d[\d,]*\d|\d)(?:\.\d+)?|\.\d+"
PLAIN = rf"(?:(?<![\w)])[-+])?(?:\\?\$|€|£)?(?:{AMOUNT})(?:/\d+)?%?"
NUMBER = re.compile(rf"(?<![A-Za-z0-9_.,{{^\\]){PLAIN}(?![_^{{}}\\])")
ENDINGS = ((ASIDE_SUM, NUMBER), (DURATION, NUMBER), (PAID_FOR, re.compile(r"\$ ?[\d,.]*\d$")))
RESULT = re.compile(rf"= ?(-?(?:\\?\$|€|£)? ?-?(?:{AMOUNT})%?)(?! ?[-+*/] ?\d)")
SOLVED = re.compile(rf"(?<![\d.,])({PLAIN}) ?= ?[A-Za-z][.]?$")  # 20 = x
PARTING = re.compile(r"[,;]|\band\b|\bor\b")
STOP = re.compile(r"[.!?] +(?=[A-Z])")
PROSE = re.compile(r"[A-Za-z]{2}|:|^\$?[\d.].*=|^[^A-Za-z(\[]*$")
BECAUSE = re.compile(r",? because\b|,? (?:\d+ |some |half |out )?of (?:which|whom)\b"
                     r"|,? (?:and )?(?:not|instead of|rather than) (?=\W{0,2}\d)", re.I)
MATH = re.compile(r"[\d\\$]")


def extract(response: str, join_boxes=False) -> str:
    """The final answer of a text, '' if there is none.

    extract("The answer is 5. Let me check my answer: 2 * 5 + 3 = 13.")   # '5'

    `join_boxes`: \\boxed{1} and \\boxed{2} side by side are one list.
    """
    text = SPACES.sub(" ", (response or "")[-MAX_RESPONSE:])
    text = IS_NOT.sub(r"\1 not", LINES.sub("\n", text).strip())
    if "<" in text:
        text = next((part for part in TURN.split(text) if part.strip()), "").strip()
        text = text.rpartition("</think>")[2].strip() or text
    if "\\box" in text or "\\fbox" in text or "\\framebox" in text:
        return boxed(text, join_boxes)
    return headed(text) or tagged(text) or after_phrase(text) or final(text)


def boxed(text, join=False):
    """The content of the last box; of the boxes side by side, where they are joined."""
    found = boxes(text)
    if not found:
        return OPEN_BOX.findall(text)[-1].strip()
    end = found[-1][1]
    later = after_phrase(text[end:])
    if MATH.search(later):
        return later
    return ", ".join(dict.fromkeys(beside(text, found) if join else [found[-1][2]]))


def beside(text, found):
    """The contents of the last boxes with nothing but "and" or a comma between them."""
    contents, (start, _, content) = [found[-1][2]], found[-1]
    for left, right, content in reversed(found[:-1]):
        if right > start or not BETWEEN_BOXES.fullmatch(text[right:start]):
            break
        contents.insert(0, content)
        start = left
    return contents


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


def headed(text):
    """The answer after the last `####`, unless that is the heading of a section."""
    for heading in reversed(list(HEADING.finditer("\n" + text if text[:4] == "####" else text))):
        line = heading[1].strip("# *")
        last = heading.end() >= len(text)
        if line and not STEP.match(line) and (MATH.search(line) or last):
            return after_phrase(line) or final(line)
    _, mark, line = text.rpartition("####")
    line = line.strip("# *")  # 6 * 7 = 42 #### 42
    return final(line) if mark and "\n" not in line and MATH.match(line.lstrip("-")) else ""


def tagged(text):
    """The content of the last <answer>...</answer>."""
    for tag in reversed(list(TAG.finditer(text))):
        inside, closed, _ = text[tag.end():].partition(f"</{tag[1]}>")
        if closed:
            return after_phrase(inside) or final(inside, stated=True)
    return ""


def after_phrase(text):
    """What follows the last "the answer is", up to the end of its sentence; '' if never said."""
    mentions = [keyword.start() for keyword in KEYWORD.finditer(text)]
    if not mentions:
        return ""
    if len(mentions) > MAX_MENTIONS:
        text = text[mentions[-MAX_MENTIONS]:]
    for phrase in reversed(list(PHRASE.finditer(text))):
        tail = text[phrase.end():]
        if not tail or CHECKING.search(text, max(0, phrase.start() - 60), phrase.start()):
            continue
        if phrase["heading"]:
            lines = [line for line in tail.split("\n") if line.strip("-= *")]  # no ruler
            first = lines[0].strip("* ") if lines else ""
            return first.rstrip(".") if bare(first) else final(tail)
        span = next(iter(formulas(tail[:MAX_ANSWER])), None)
        start = span[1] if span and span[0] == 0 else 0
        end = SENTENCE_END.search(tail, start)
        negated = "not " if CANNOT.search(phrase[0]) else ""
        return final(negated + (tail[:end.start()] if end else tail), stated=True)
    turned = list(TURNED.finditer(text))
    if not turned:
        return ""
    spans = formulas(text[:turned[-1].end(2)]) if turned[-1][2] else []
    if spans and spans[-1][1] >= turned[-1].end(2) - 1:
        return spans[-1][2].strip()
    found = (turned[-1][1] or turned[-1][2]).strip("*$")
    return "" if found.lower() in PRONOUNS else found


def formulas(text):
    """(start, end, content) of what stands between formula signs. Currency opens no formula:

    list(formulas("4 cost 4*4 = $16.00, so $x$ is $4 each"))   # [(24, 27, 'x')]
    """
    found, at = [], 0
    dollars = [m.start() for m in OPENER.finditer(text) if m[0] == "$"]
    while opener := OPENER.search(text, at):
        sign, start = opener[0], opener.end()
        if sign == "$" and text[opener.start() - 1:opener.start()].isdigit():
            end = -1  # 20$
        elif sign == "$":
            index = bisect_right(dollars, opener.start())
            end = dollars[index] if index < len(dollars) else -1
        else:
            end = text.find(CLOSER[sign], start)
        content = text[start:end] if end >= 0 else ""
        if end < 0 and sign != "$" or content and sign == "$" and is_currency(content, text[end:]):
            content = ""
        if content:
            found.append((opener.start(), end + len(sign), content))
            at = found[-1][1]
        else:
            at = start
    return found


def is_currency(content, rest):
    """Whether "$5 and 3$..." is an amount of money, with another one after it."""
    if not re.match(r" ?-?\.?\d", content):
        return False
    words = re.search(r"[A-Za-z]{3}", COMMAND.sub("", content))
    even = content[0].isspace() and content.rstrip()[-1] not in "+-*/=x"  # $ 2x $
    return content[-1].isspace() and not even or rest[1:2].isdigit() or bool(words)


def final(text, stated=False):
    """The answer in a text without a marker: the whole of it, or in prose what stands last.

    `stated`: it follows "the answer is", so that words may be an answer, too.
    """
    text = text.replace('\\"', '"').strip(' \n*`"✓✔✅')
    if len(text) > MAX_ANSWER:
        return last_value(text)
    for opener, closer in (("\\[", "\\]"), ("\\(", "\\)")):
        if text.endswith(closer) and opener not in text:  # \\[\\text{Answer: } 5\\]
            text = text.removesuffix(closer).rstrip()
    claim = NOT_BUT.sub("", text, count=1) if NOT_BUT.match(text) else text
    if opening := CONNECTIVE.match(claim):
        claim = claim[opening.end():]
    if said := YES.match(claim):
        return said[1]
    if (roots := THE_ROOTS.search(claim[-300:])) and bare(roots[1]):
        return roots[1]
    head = before_reason(claim)
    first = REASON.search(claim)
    if not stated and ("\n" in claim or first and first[0].strip(" ,").lower() in ("so", "thus")):
        head = claim
    for candidate in (head, claim, *(after_verbs(head, stated) if stated else ())):
        known = stated and candidate is head or candidate in (text, claim)
        if candidate and bare(candidate) and (known or MATH.search(candidate)):
            return candidate
    if len(claim) < 80 and in_words(claim):
        return claim
    return last_value(head if stated and MATH.search(head) else claim, stated)


def in_words(claim):
    """3 feet below sea level; x can be any real number except 3."""
    whole = claim.strip(" .")
    if (said := SAID_OF.fullmatch(whole)) and said[1].lower() in OPPOSITES and bare(said[2]):
        return True
    if any(pattern.fullmatch(whole) for pattern, _ in SETS):
        return True
    return not re.search(r"[.\n=]|\bso\b", claim) and not VERB.search(claim) and meaning_of([claim])


def after_verbs(line, stated=False):
    """What follows the last verbs: "so x is $5$" -> "$5$". In prose only if it has no words."""
    tails = [line[verb.end():].strip(" *.:") for verb in reversed(list(VERB.finditer(line))[-4:])]
    if stated:
        return [tail for tail in (*tails, *map(before_reason, tails)) if ":" not in tail]
    return [tail for tail in tails
            if ODDS.fullmatch(tail) or not PROSE.search(COMMAND.sub("z", tail))]


def before_reason(text):
    """A text up to "because ...", "of which ...", "(that is ...)"."""
    cut = REASON.search(text)
    head = text[:cut.start()] if cut and cut.start() else text
    if head.count("{") != head.count("}"):
        return text
    if head.count("(") > head.count(")") and cut and " (" in head:
        head = head[:head.rindex(" (")]
    for pause in itertools.islice(PAUSE.finditer(head), 8):
        if pause.start() and (pause[0] != "; " or not bare(head[pause.end():])):
            head = head[:pause.start()]
            break
    aside = BRACKETED.search(head)
    if aside and aside.start() and (
            EXPLAINS.search(COMMAND.sub("", aside[1])) or in_figures(aside[1])):  # 4 (four)
        head = head[:aside.start()]
    return head.strip(" *,;—–")


def last_value(text, stated=False):
    """The last formula or number of a prose text; in "10*30 = 300 m in 30 min" the result."""
    check = CHECK_LINE.search(text)
    if check and NUMBER.search(text[:check.start()]):
        text = text[:check.start()]
    text = text[-MAX_ANSWER:]
    for start, end, _ in formulas(text) if "\n" in text else ():
        if text[start:start + 2] in CLOSER:  # a displayed formula of several lines
            text = text[:start] + text[start:end].replace("\n", " ") + text[end:]
    lines = [line for line in text.split("\n") if MATH.search(line)]
    if not lines:
        return text
    line = lines[-1].strip()
    if not stated and (tail := next(filter(bare, after_verbs(line)), "")):
        return tail
    cut = BECAUSE.search(line)
    if cut and NUMBER.search(line[:cut.start()]):
        line = line[:cut.start()]
    for pattern, needed in ENDINGS:
        ending = pattern.search(line)
        if ending and needed.search(line[:ending.start()]):
            line = line[:ending.start()]
    spans, numbers = formulas(line), list(NUMBER.finditer(line))
    if spans and (not numbers or numbers[-1].start() < spans[-1][1]):
        return spans[-1][2].strip()
    if not numbers:
        return line if len(lines) > 1 or line == text else text
    sentence = last_sentence(line, numbers[-1].start(), spans[-1][1] if spans else 0)
    if " round" in sentence:
        return numbers[-1][0]
    if solved := SOLVED.search(sentence):
        return solved[1]
    if results := RESULT.findall(sentence):
        return results[-1].strip()
    results = RESULT.findall(text)
    said_again = [n[0] for n in NUMBER.finditer(sentence)
                  if results and n[0].strip("$") == results[-1].strip("$ ")]
    return said_again[-1] if said_again else numbers[-1][0]


def last_sentence(line, place, earliest=0):
    """The sentence of a line in which a place is; what begins at `earliest` if that is later."""
    start = max((stop.end() for stop in STOP.finditer(line, 0, place)), default=0)
    start = max(start, earliest)
    end = STOP.search(line, place)
    return line[start:end.start() if end else len(line)]


def bare(text):
    """No prose: one line, no verb, few words, and none in front of a formula in dollars."""
    text_only = COMMAND.sub(" ", text)
    words = [word for word in re.findall(r"[A-Za-z]{2,}", text_only)
             if word.lower() not in SPELLED and word.lower() not in KNOWN_WORDS
             and word not in UNIT_TABLE]
    parts = 1 + len(PARTING.findall(text_only))
    if "\n" in text or VERB.search(text_only) or len(words) > MAX_WORDS * parts:
        return False
    spans = formulas(text) if words else []
    return not spans or spans[0][0] == 0


# ---- 2a. read: one spelling ---------------------------------------------------------------------

class Node(NamedTuple):
    """A tree. Operations: ("+", (tree, tree)); numbers: ("number", (Fraction, digits after the
    point)); ("name", ("x",)); unknown functions: ("call", ("f", tree)); a value with words or a
    unit: ("said", (tree, words)); answers with parts: list, set, tuple, matrix, interval, relation.
    """
    op: str
    args: tuple


def number(value, decimals=0):
    return Node("number", (Fraction(value), decimals))


GREEK = dict(zip("αβγδεζηθικλμνξρστυφχψωΓΔΘΛΞΣΦΨΩϕϵµ", (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega "
    "phi epsilon mu").split()))
CHARACTERS = str.maketrans(
    dict(zip("−–—×·∙⋅÷⁄∕∶′’∣º", "---****///:''|°")) | dict.fromkeys("\u200b\ufeff", "")
    | dict.fromkeys("€£¥₹", " ") | {letter: f"\\{name} " for letter, name in GREEK.items()} | {
        "≤": "\\le ", "≥": "\\ge ", "⩽": "\\le ", "⩾": "\\ge ", "≠": "\\ne ", "≈": "\\approx ",
        "≡": "\\equiv ", "π": "\\pi ", "∞": "\\infty ", "√": "\\sqrt ", "∛": "\\cbrt ",
        "±": "\\pm ", "∓": "\\mp ", "∪": "\\cup ", "∩": "\\cap ", "∖": "\\setminus ",
        "∈": "\\in ", "∅": "\\emptyset ", "°": "\\degree ", "ℝ": "\\reals ", "ℤ": "\\integers ",
        "ℕ": "\\integers ", "∠": "", "△": "", "→": "\\to ", "∘": "\\circ ", "′": "'", "″": "''",
        "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ", "∑": "\\sum ",
        "∏": "\\prod ", "⟨": "\\langle ", "⟩": "\\rangle ", "…": "\\ldots "})
RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱˣ", "0123456789+-nix"))
LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ₙᵢₓₖ", "0123456789+-nixk"))
RAISED_RUN = re.compile(f"[{''.join(RAISED)}]+")
LOWERED_RUN = re.compile(f"[{''.join(LOWERED)}]+")
VULGAR = re.compile(r"[¼-¾⅐-⅞]")

SIZES = (r"(?:displaystyle|textstyle|scriptstyle|limits|tiny|small|normalsize|large|Large"
         r"|LARGE|huge|Huge|boldsymbol|mathbf|bf|rm|it|bm|pmb"
         r"|phantom\{\}|hline|boxed|fbox|angle|triangle"
         r"|circledcirc|nobreak|strut)(?![a-zA-Z])")
REWRITTEN = [(needle, re.compile(pattern), replacement) for needle, pattern, replacement in (
    # (what a text must contain to be worth a look, pattern, replacement)
    ("", r"\s+", " "),
    (".", r"\b([A-Z])\.([A-Z])\.?(?![A-Za-z])", r"\1\2"),  # 44 B.C.
    ("'", r"(?<![\w.])\d{1,3}(?:'\d{3})+(?!\d)", lambda m: m[0].replace("'", "")),  # 10'000
    ("_", r"(?<![\w.])\d{1,3}(?:_\d{3})+(?!\d)", lambda m: m[0].replace("_", "")),
    ("\\mu", r"\\mu ?\\(?:text|mathrm) ?\{ ?([msg]) ?\}", r"\\unit{u\1}"),
    ("color", r"\\fcolorbox ?\{[^{}]*\} ?\{[^{}]*\}", ""),
    ("color", r"\\(?:text)?color ?(?:box)? ?(?:\[[a-zA-Z]*\] ?)?\{[^{}]*\}"
     r"|\\color ?[a-z]+(?= )", ""),
    ("\\underline", r"\\underline ?\{([^{}]*)\}", r"{\1}"),
    (",", r"(?<=\d)(?: ?\{ ?, ?\} ?|,\\! ?|\\, ?)(?=\d{3}(?!\d))", ""),  # 1{,}234
    ("\\!", r"(?<=\d),?\\! ?(?=\d{3}(?!\d))", ""),  # 1,\!234
    ("!=", r"(?<=\d)!=(?!=)", "! = "),  # 5!=120
    ("**", r"(?<=[\w)}\]])\*\*(?=[\w(\\{-])|(?<=[\w)}\]]) \*\* (?=[\w(\\{-])", "^"),  # 2**3
    ("\\left", r"\\left ?\\\{ ?\\begin ?\{array\}", r"\\begin{cases}"),
    ("", r"\\(?:left|right|middle) ?\.|\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])|\\"
     + SIZES + r"|\\?\$|(?<!\\)\\[()\[\]!]|\*\*|`", ""),
    ("quad", r"(?<=\d) ?\\q?quad ?(?=-?\d)", ", "),  # 5 \\quad 7
    ("", r"(?<!\\)\\(?:[,;:> ]|q?quad\b|h?space\{[^{}]*\})|~", " "),
    ("^", r"\^ ?\{? ?((?:\\prime ?|')+) ?\}?",
     lambda m: "'" * len(re.findall(r"'|\\prime", m[1]))),
    ("^", r"\^ ?\{? ?\\(?:circ|degree) ?\}?", r"\\degree "),
    ("\\textdegree", r"\\textdegree(?![a-z])", r"\\degree "),
    ("egree", r"(?<![a-z\\])(?i:degrees?) ?((?i:c)(?i:elsius)|C\b|(?i:f)(?i:ahrenheit)|F\b)",
     lambda m: rf"\unit{{deg{m[1][0].upper()}}}"),
    ("egree", r"\\degree ?(?:\\(?:text|mathrm) ?\{ ?)?([CF])\b(?: ?\})?", r"\\unit{deg\1}"),  # 5 °C
    ("\\Omega", r"(?<=\d) ?\\Omega(?=$|[ ,;])", r" \\unit{ohm}"),
    ("\\begin", r"\\begin ?\{cases\}(?: ?\{[lcr| ]*\})?", r"\\begincases\\beginmatrix "),
    ("\\begin", r"\\begin ?\{vmatrix\}", r"\\det\\beginmatrix "),
    ("&", r"& ?(?==|<|>|\\[lg]e|\\approx)", ""),
    ("{", r"\\(begin|end) ?\{(?:[pbBv]?(?:small)?matrix|array|cases|aligned|align\*?|gathered"
     r"|split)\}(?: ?\{[lcr| ]*\})?", r"\\\1matrix "),
    ("\\mathbb", r"\\mathbb ?\{? ?R ?\}?", r"\\reals "),
    ("\\mathbb", r"\\mathbb ?\{? ?[ZNQC] ?\}?", r"\\integers "),
    ("\\math", r"\\math(?:bb|cal|sf|it) ?\{ ?([A-Z]) ?\}", r"\1"),
    ("C", r"C ?_ ?\{? ?(\d+) ?\}? ?\^ ?\{? ?(\d+) ?\}?", r"\\binom{\1}{\2}"),
    ("C", r"(?:\{ ?\} ?)?[_^] ?\{? ?(\d+) ?\}? ?C ?_ ?\{? ?(\d+) ?\}?", r"\\binom{\1}{\2}"),
    ("mod", r"\( ?\\?mod(?![a-z]) ?([^()]{1,40})\)", r"\\pmod{\1}"),
    (")_", r"\( ?([0-9A-F]{1,40}) ?\)_ ?(?=\d|\{)", r"\1_"),  # (23)_7
    ("", r"(?<![\w.^}])(\d+)(?: (\d+/\d+)(?![\d^])| ?(\\[dtc]?frac ?(?:\d ?\d|\{\d+\} ?\{\d+\})))",
     r"(\1+\2\3)"))]  # 1 1/2
ENDS = r"-?[^\[\](){},;<>=]{0,60}(?:\{[^\[\](){},;]{0,30}\}){0,2}[^\[\](){},;<>=]{0,20}"
TURNED_ENDS = re.compile(rf"([\[\]])({ENDS}[,;]{ENDS})([\[\]])")  # ]0, 1[
PAIR = r"(?:(?<=[(\[])|(?<=[(\[]-)|(?<=\\\{)|(?<=\\\{-))[\d,]+(?:[)\]]|\\\})"  # (1,234) is a point
GROUPED = re.compile(rf"(?<![\d.,])(?!{PAIR})\d{{1,3}}(?:,\d{{3}})+(?![\d,])")
SPACED = re.compile(r"(?<![\d.,_^/}] )(?<![\d.,_^/])\b\d{1,3}(?: \d{3})+(?![\d,/^]| \d)")  # 1 234
MONEY_SIGN = re.compile(r"\\?([$€¥₹]) ?(\d[\d,]*(?:\.\d+)?)")
TEXT = re.compile(r"\\(?:text\w*|mbox|mathrm|emph)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")


def clean(text, grouped=True):
    """One spelling for what looks alike: no dollar signs, sizes, spaces, fancy characters.

    clean(r"\\left( 1{,}234,\\; −½ \\right)")   # '( 1234,  - 1/2 )'

    `grouped`: 1,234 is one number.
    """
    if len(text) > MAX_ANSWER:
        raise Unreadable(f"longer than {MAX_ANSWER} characters")
    raw = text.strip(" .")
    if not text.isascii():
        text = RAISED_RUN.sub(lambda m: "^{" + "".join(map(RAISED.get, m[0])) + "}", text)
        text = LOWERED_RUN.sub(lambda m: "_{" + "".join(map(LOWERED.get, m[0])) + "}", text)
        text = VULGAR.sub(lambda m: " " + unicodedata.normalize("NFKC", m[0]), text)
        text = unicodedata.normalize("NFKC", text.translate(CHARACTERS)).translate(CHARACTERS)
    if len(text) > 2 * MAX_ANSWER:  # fractions in one character become four
        raise Unreadable("too long in plain characters")
    if "\\\\" in text and "\\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)  # escaped once too often
    for needle, pattern, replacement in REWRITTEN:
        if needle in text:
            text = pattern.sub(replacement, text)
    text = text.strip().rstrip(" .,;:")
    if "[" in text or "]" in text:
        text = outward(text)
    if money := MONEY_SIGN.fullmatch(raw):
        text = f"{money[2]} \\unit{{{SIGNS[money[1]]}}}"
    text = SPACED.sub(lambda m: m[0].replace(" ", ""), text)
    return GROUPED.sub(lambda m: m[0].replace(",", ""), text) if grouped else text


def outward(text):
    """]0, 1[ is (0, 1), where all square brackets of a text pair up so."""
    def usual(m):
        return ("(" if m[1] == "]" else "[") + m[2] + (")" if m[3] == "[" else "]")
    rest = TURNED_ENDS.sub("", text)
    return text if "[" in rest or "]" in rest else TURNED_ENDS.sub(usual, text)


# ---- 2b. read: words ----------------------------------------------------------------------------
# Words are either rewritten as formulas (all real numbers except 3), or units, or words that change
# the meaning, or else they only name what is counted.

WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2}|\d[a-z]{2}")
SMALL = {word: value for value, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen".split())}
TENS = {word: 20 + 10 * i for i, word in enumerate(
    "twenty thirty forty fifty sixty seventy eighty ninety".split())}
LARGE = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
PARTS = {"half": 2, "halves": 2, "quarter": 4} | {part: i for i, part in enumerate(
    "third fourth fifth sixth seventh eighth ninth tenth".split(), 3)}
PARTS |= {part + "s": value for part, value in PARTS.items() if part[-1] != "s" and value > 2}
COUNTING = SMALL.keys() | TENS.keys() | LARGE.keys()
BASES = {"binary": 2, "octal": 8, "hexadecimal": 16} | {
    word: value for word, value in SMALL.items() if value > 1} | {"sixteen": 16}
NUM = r"\d+(?:,\d{3})*(?:\.\d+)?"
NUMBER_WORDS = re.compile(  # twenty-three, five hundred and six, three quarters
    rf"(?:(?:{'|'.join(sorted(COUNTING, key=len, reverse=True))})\b[ -]?(?:and (?=\w))?){{1,12}}"
    rf"(?:(?:{'|'.join(PARTS)})\b)?", re.I)
CLOCK = re.compile(r"(\d{1,2})(?::(\d\d))? ?([ap])\.? ?m\.?", re.I)
ALL = r"(?:[a-z] (?:is|can be) )?(?:the set of )?(?:(?:all|any|every|an?) )?(?:the )?"
SIGNED = {"positive": "x > 0", "negative": "x < 0", "nonzero": "x != 0",
          "nonnegative": "x >= 0", "nonpositive": "x <= 0"}
BOUNDS = {"greater than": ">", "more than": ">", "less than": "<", "smaller than": "<",
          "at least": ">=", "at most": "<="}
SETS = [(re.compile(pattern, re.I), replacement) for pattern, replacement in (
    (rf"{ALL}(positive|negative|non-?(?:zero|negative|positive)) (?:reals?|real numbers?)"
     r"(?: [a-z])?",
     lambda m: SIGNED[m[1].lower().replace("-", "")]),
    (r"(?:the set of )?(?:all|any) (?:the )?integers", r"\\integers"),
    (rf"(?:{ALL}(?:reals?|real numbers?|numbers?) (?:[a-z] )?|[a-z] (?:is )?)?(?:that (?:is|are) )?"
     rf"({'|'.join(BOUNDS)})( or equal to)? ((?:\\[a-z]+|[^A-Za-z])+)",
     lambda m: f"x {BOUNDS[m[1].lower()]}{'=' if m[2] else ''} {m[3]}"),
    (r"(?:there (?:is|are) |has |have )?no (?:real )?(?:solutions?|roots?)(?: exists?)?"
     r"|(?:the )?(?:empty|null) set", r"\\emptyset"),
    (r"(?:[a-z] (?:is|can be) )?(?:the set of )?(?:all|any|every) (?:the )?(?:reals?|real numbers?)"
     r"(?: [a-z])?", r"\\reals"),
    (r"(?:[a-z] (?:is|can be) )?(?:the set of )?(?:all|any|every) (?:the )?(?:reals?|real numbers?)"
     r"(?: [a-z])?,? (?:except(?: for)?|but|other than|excluding|without|not equal to"
     r"|(?:such that |with )?(?:[a-z] )?(?:\\ne|\\neq|!=)) ?(?:[a-z] ?= ?)?(.+)",
     r"\\reals \\setminus \\{\1\\}"),
)]
SENTENCES = SETS + [(re.compile(pattern, re.I), replacement) for pattern, replacement in (
    (r"none", r"\\emptyset"),
    (r"d\.?n\.?e|(?:the limit )?(?:does not|doesn't) exist", "does not exist"),
    (r"(?:there (?:are|is) )?(?:infinitely many|an infinite number of|infinite(?= solution))"
     r"(?: [a-z]+){0,2}", "infinitely many"),
    (r"half", "1/2"),
    (rf"(?:an?|one|1)[ -]({'|'.join(PARTS)})", lambda m: f"1/{PARTS[m[1].lower()]}"),
    (rf"({NUM}) (?:out of|of every) (?:a total of )?({NUM})", r"\1/\2"),
    (rf"(1) in ({NUM})", r"\1/\2"),
    (rf"({NUM}) to ({NUM})(?: to ({NUM}))?",
     lambda m: ":".join(part for part in m.groups() if part)),
    (r"(.*?[^ ,]),? (?:for (?:all|any|every|each|some)|where|with) (?:real |integers? |positive )*"
     r"(?:numbers? |values? of )?(?:[a-z]\b|\\[a-z]+).*", r"\1"),
    (r"((?:.{0,60}[ =])?-?)([0-9A-Fa-f]{1,60}),? (?:(?:in |\()?base[ -]?(\d+|[a-z]+)\)?"
     r"|(?:in |\()(binary|octal|hexadecimal)\)?)",
     lambda m: f"{m[1]}{m[2]}_{{{BASES.get((m[3] or m[4]).lower(), m[3])}}}"),
    (r"an? (?=\\?\$? ?-?\d)(.*)|an? (?=[a-z]{3,} )(.*\d.*)", lambda m: m[1] or m[2]),
    (r"(?:the )?(?:(?:correct|right|best) )?(?:answer|option|choice) (?:is )?(?![=:])(.+)", r"\1"),
)]
IN_TEXT = [(re.compile(pattern, re.I), replacement) for pattern, replacement in (
    (rf"\b({NUM}|{'|'.join(SMALL)}) and (?:an?|one)[ -](half|third|quarter)\b",
     lambda m: f"({SMALL.get(m[1].lower(), m[1])}+1/{PARTS[m[2].lower()]})"),
    (r"\bhalf an? (?=[a-z])", "1/2 "),
    (r"(?<![^ (,=])(?:minus|negative) (?=[\d\\.(])", "-"),
    (rf"\ban? (?={'|'.join(LARGE)})", "one "),
    (rf"(?<![\d.,])({NUM}) ?(hundred|thousand|million|billion|trillion)\b",
     lambda m: str(Fraction(m[1].replace(",", "")) * LARGE[m[2].lower()])),
    (rf"\b({NUM}|one|two|three|four|five|six|ten|a)? ?dozen\b",
     lambda m: str(12 * Fraction(str(SMALL.get((m[1] or "a").lower(), m[1]))
                                 if m[1] and m[1].lower() != "a" else "1"))),
    (r"\b(\d*(?:1st|2nd|3rd|[04-9]th|1[1-3]th))\b", lambda m: m[1][:-2]),  # 21st
    (r"_ ?\{ ?(two|three|four|five|six|seven|eight|nine|ten|twelve|sixteen) ?\}",
     lambda m: f"_{BASES[m[1].lower()]}"))]


def in_figures(words):
    """'two hundred and five' -> 205, 'three quarters' -> 3/4; None if it is no number."""
    total, group, seen = 0, 0, []
    for word in re.findall(r"[a-z]+", words.lower()):
        if word == "and":
            continue
        if word in PARTS and seen:
            return f"{total + group}/{PARTS[word]}"
        if word in SMALL and not group % 100 // 10 and not group % 10 \
                or word in SMALL and 20 <= group % 100 and SMALL[word] in range(1, 10) \
                and not group % 10:
            group += SMALL[word]
        elif word in TENS and not group % 100:
            group += TENS[word]
        elif word == "hundred" and 0 < group < 100:
            group *= 100
        elif word in LARGE and word != "hundred" and group:
            total, group = total + group * LARGE[word], 0
        else:
            return None
        seen.append(word)
    return str(total + group) if seen else None


def spoken(text):
    """A cleaned text with what it says in words turned into formulas.

    spoken("all real numbers except 3")   # '\\\\reals \\\\setminus \\\\{3\\\\}'
    """
    plain = SPACES.sub(" ", TEXT.sub(r" \1 ", text) if "\\" in text else text).strip()
    if not WORD.search(plain):
        return text
    for pattern, replacement in SENTENCES:
        if m := pattern.fullmatch(plain):
            text = plain = m.expand(replacement) if isinstance(replacement, str) else replacement(m)
    for pattern, replacement in IN_TEXT:
        if pattern.search(plain):
            text = plain = pattern.sub(replacement, plain)
    sign = re.match("(?:minus|negative) (?=[a-z])|", plain, re.I)
    words = NUMBER_WORDS.match(plain, sign.end())
    if words and (value := in_figures(words[0])):
        text = f"{'-' if sign[0] else ''}{value} {plain[words.end():]}".strip()
    return text


# Units: a scale and what it measures. "5 m" is 500 cm, and 5; but it is not 5 kg.

LENGTH, MASS, TIME, MONEY = "length", "mass", "time", "money"
MEASURES = {
    LENGTH: "1e-9 nm nanometer|1e-6 um micrometer micron|1/1000 mm millimeter millimetre"
            "|1/100 cm centimeter centimetre|1/10 dm decimeter|1 m meter metre"
            "|1000 km kilometer kilometre|0.0254 in inch inches"
            "|0.3048 ft foot feet|0.9144 yd yard|1609.344 mi mile",
    MASS: "1e-9 ug microgram|1e-6 mg milligram|1/1000 g gram|1 kg kilogram kilo|1000 tonne"
          "|0.45359237 lb lbs pound|0.028349523125 oz ounce",
    TIME: "1e-6 us microsecond|1/1000 ms millisecond|1 s sec second|60 min minute"
          "|3600 h hr hour|86400 d day|604800 week wk",
    "year": "1 yr year|1/12 month|10 decade|100 century centuries",
    MONEY: "1/100 cent ¢|1 dollar usd buck|1 euro eur|1 yen|1 rupee",
    "volume": "1 ml mL milliliter millilitre|1000 L l liter litre|3785 gal gallon|946 qt quart"
              "|473 pt pint",
    "current": "1 A amp ampere|1/1000 mA", "voltage": "1 V volt|1000 kV", "kelvin": "1 K kelvin",
    "force": "1 N newton|1000 kN", "energy": "1 J joule|1000 kJ kilojoule",
    "food": "1 cal calorie|1000 kcal kilocalorie", "electron": "1 eV|1000 keV|1000000 MeV",
    "power": "1 W watt|1000 kW kilowatt", "hertz": "1 Hz hertz|1000 kHz|1000000 MHz",
    "pressure": "1 Pa pascal|1000 kPa|1 atm", "charge": "1 C coulomb", "mole": "1 mol mole",
    "resistance": "1 ohm Ω", "celsius": "1 degC celsius", "fahrenheit": "1 degF fahrenheit",
    "angle": "1 rad radian", "area": "1 acre|1 hectare ha",
    "data": "1 bit|8 byte|8000 kB|8000000 MB|8000000000 GB", "unit": "1 unit"}
DIFFERENT_MONEY = {name: name for name in ("euro", "yen", "rupee")}
SIGNS = {"$": "dollar", "€": "euro", "¥": "yen", "₹": "rupee"}


def unit_table():
    """{word: (scale, measure)}; the plurals of words, too."""
    table = {}
    for measure, entries in MEASURES.items():
        for entry in entries.split("|"):
            scale, *words = entry.split()
            areas = measure == "area"  # no conversions
            measure_of = words[0] if areas else DIFFERENT_MONEY.get(words[0], measure)
            for word in words:
                table.setdefault(word, (Fraction(scale), measure_of))
                if len(word) > 2 and word not in ("feet", "inches", "usd", "mph"):
                    table.setdefault(word + "s", (Fraction(scale), measure_of))
    return table | {"hrs": table["h"], "mins": table["min"], "secs": table["s"], "yrs": table["yr"],
                    "centimeters": table["cm"], "square": None, "sq": None, "cubic": None,
                    "cu": None}


UNIT_TABLE = unit_table()
UNIT_PART = re.compile(
    r"(?P<sign>[/*]|\bper\b|\\cdot(?![a-z]))|(?P<open>[()])|(?P<word>[A-Za-z]+|¢|Ω)\.?"
    r" ?(?:\^ ?\{? ?(?P<power>-?\d) ?\}?)?|(?P<number>1)(?= ?/)|(?P<other>\S)")


SPEEDS = re.compile(r"\b(m|k|km)ph\b")


@lru_cache(1024)
def unit(text):
    """(scale, ((measure, power), ...)) of "km/h", "square feet", "m s^{-2}"; None if it is none."""
    scale, powers, sign, prefix, last = Fraction(1), {}, 1, 1, ""
    text = SPEEDS.sub(lambda m: f"{'mi' if m[1] == 'm' else 'km'}/h", text)
    for part in UNIT_PART.finditer(text):
        if part["sign"]:
            if not last and part["sign"] != "/":
                return None
            sign = 1 if part["sign"] in ("*", "\\cdot") else -1
        elif part["word"]:
            word = part["word"]
            if word.lower() in ("square", "sq", "cubic", "cu"):
                prefix = 3 if word[0] in "cC" else 2
                continue
            known = UNIT_TABLE.get(word) or len(word) > 2 and UNIT_TABLE.get(word.lower())
            if not known:
                return None
            power = sign * prefix * int(part["power"] or 1)
            if abs(power) > 9:
                return None
            scale *= known[0] ** power
            powers[known[1]] = powers.get(known[1], 0) + power
            prefix, sign, last = 1, 1, word  # in "J/kg K" the K is not below: nor need it be
        elif not part["number"]:
            return None
    cubed = powers.get(LENGTH, 0) == 3 and len(powers) == 1
    if cubed:
        scale, powers = scale * 10**6, {"volume": 1}
    return (scale, tuple(sorted(item for item in powers.items() if item[1]))) if last else None


LETTER_UNITS = frozenset("msghLNJWVAKC")
UNIT_WORD = r"(?:[A-Za-z]{1,12}\.?|¢|Ω)(?: ?\^ ?(?:\{ ?-?\d ?\}|-?\d))?"
AFTER_NUMBER = re.compile(
    rf"(?<=[\d)}}\]a-z]) ?(?:\\unit\{{[^{{}}]*\}}|(?<=[\d)}}\] ]){UNIT_WORD})"
    rf"(?:(?: ?(?:/|\*|\\cdot) ?| per | )(?:\\unit\{{[^{{}}]*\}}|{UNIT_WORD})){{0,4}}"
    r"(?![A-Za-z\\])")
UNIT_TEXT = re.compile(
    r"\\(?:text\w*|mathrm|mbox|operatorname|rm) ?\{ ?((?:[^{}]|\{[^{}]*\})*?)[ .]*\}"
    r"((?: ?\^ ?(?:\{ ?-?\d ?\}|-?\d))?)")
IN_UNIT = re.compile(r"\\(?:unit|text\w*) ?\{[^{]*$")
COMMAND_END = re.compile(r"\\[a-z]+$")
UNIT_FRACTION = re.compile(r"\\frac ?\{ ?\\unit\{([^{}]*)\} ?\} ?\{ ?\\unit\{([^{}]*)\} ?\}")
RATE = re.compile(r"([A-Za-z]{3,}) ?/ ?([A-Za-z]{1,12})")  # people/km
COMPOUND = re.compile(rf"(?<![\d.,])({NUM}) ?\\unit\{{([^{{}}]+)\}}"
                      rf"(?: |,|and\b|\\text ?\{{ ?and ?\}})*({NUM}) ?\\unit\{{([^{{}}]+)\}}")


def with_units(text, letters=True):
    """A text with each unit in one mark: "5 km / h" -> "5 \\unit{km/h}".

    `letters`: "5 m" (with the space) is five metres, not five times m.
    """
    def in_text(m):
        inner = re.sub(r"[{}~\\]", "", m[1].replace("\\cdot", "*")).strip()
        power = re.sub(r"[{} ]", "", m[2])
        return rf" \unit{{{inner}{power}}}" if unit(inner + power) else m[0]

    def after_number(m):
        inner = re.sub(r"\\unit\{([^{}]*)\}", r"\1", m[0])
        inner = re.sub(r"[{}]", "", inner.replace("\\cdot", "*")).strip()
        words = re.findall("[A-Za-z]+", inner)
        before = text[:m.start()]
        if before.rfind("{") > before.rfind("}") and IN_UNIT.search(before[-99:]):
            return m[0]
        one_letter = bool(words) and len(words[0]) == 1
        if before[-1:].islower() and (one_letter or not COMMAND_END.search(before[-30:])):
            return m[0]
        marked = "\\unit" in m[0]
        if len(words) == 1 and len(words[0]) == 1 and not marked:
            end = text[m.end():].lstrip()[:1]
            spaced = m[0][0] == " " and letters and words[0] in LETTER_UNITS
            if not spaced or end and not end.isdigit() and end not in ",;)]}\\":  # 2 h 30 min
                return m[0]
        elif not marked and len(words) > 1 and max(map(len, words)) == 1 and not letters:
            return m[0]
        if unit(inner):
            return rf" \unit{{{inner}}}"
        if rate := RATE.fullmatch(inner):
            return rf" \text{{{rate[1]} per {rate[2]}}}"
        head, _, rest = m[0].lstrip().partition(" ")  # "5 cm wide"
        if rest and not marked and len(re.match("[A-Za-z]*", head)[0]) > 1 and unit(head):
            return rf" \unit{{{re.sub('[{}]', '', head)}}} {rest}"
        return m[0]

    if "\\" in text:
        text = SPACES.sub(" ", UNIT_TEXT.sub(in_text, text))
        text = UNIT_FRACTION.sub(r"\\unit{\1/\2}", text)
    text = AFTER_NUMBER.sub(after_number, text)
    for _ in range(2 if text.count("\\unit") > 1 else 0):
        text = COMPOUND.sub(compound, text, count=1)
    return text


def compound(m):
    """2 hours and 30 minutes -> 150 minutes; two units of different kinds stay."""
    large, small = unit(m[2]), unit(m[4])
    if not large or not small or large[1] != small[1] or large[0] <= small[0]:
        return m[0]
    value = Fraction(m[1].replace(",", "")) * large[0] / small[0] + Fraction(m[3].replace(",", ""))
    return rf"{value} \unit{{{m[4]}}}"


# Words that change the meaning: one of a pair against the other.
PAIRS = """increase increased rise rose gain gained growth / decrease decreased fall fell reduction
    drop dropped decline lost
profit gain / loss
north northern / south southern / east eastern / west western
above over / below under
bc bce / ad ce
leftward / rightward
discount / surcharge markup
richer / poorer
heavier / lighter
longer / shorter
deeper / shallower
inner / outer
up upward upwards / down downward downwards
clockwise / counterclockwise anticlockwise
before earlier ago / after later now
even / odd
inside / outside
forward forwards ahead / backward backwards behind back
credit deposit / debit withdrawal
surplus / deficit
maximum max / minimum min
positive / negative minus
true / false
hotter warmer / colder cooler
taller / shorter
faster / slower
older / younger
greater larger bigger more / smaller fewer less
win won / lose losses"""
OPPOSITES = {}
for line_number, line_of_pairs in enumerate(PAIRS.replace("\n    ", " ").split("\n")):
    for side_number, words_of_side in enumerate(line_of_pairs.split("/")):
        for one_word in words_of_side.split():
            OPPOSITES.setdefault(one_word, (line_number, side_number))
LIMITING = frozenset("if unless when not no never least most than except without negative minus "
                     "nor neither only even odd bc bce ad ce approximately between".split()) \
    - {"approximately", "only"}
UNNAMED = frozenset("the a an of in is are and total answer about approximately only exactly each "
                    "every per by at on for with more his her their all left has have was there "
                    "were remaining altogether".split())


def word_list(words):
    text = " ".join(word for word in words if word[:1] != '"').casefold()
    if not text:
        return []
    return re.findall(r"[a-z]+", re.sub(r"\bto the (left|right)\b", r"\1ward", text))


def meaning_of(words):
    """The words that change a meaning, each as (pair, side) or as itself."""
    listed = {word if word in OPPOSITES else word.removesuffix("s") for word in word_list(words)}
    return {OPPOSITES.get(word, word) for word in listed if word in OPPOSITES or word in LIMITING}


def nouns_of(words):
    """What is counted: {'boy'} of "12 boys"."""
    found = (word for word in word_list(words) if word not in UNNAMED and word not in OPPOSITES)
    return frozenset(word[:-1] if len(word) > 3 and word[-1] == "s" else word for word in found)


# ---- 2c. read: tokens ---------------------------------------------------------------------------

WORDS = re.compile(r"[^\W\d_][^\W\d_'’ ,.-]*(?:[ '’,.-]+[^\W\d_]+)*[.!]?")
ARTICLE = re.compile(r"^(?:on|in|at)\b|\b(?:the|a|an)\b|[^\w]+")
LETTERS_LISTED = re.compile(r"[A-Z](?:(?:, ?| and |, and | or )[A-Z])+")
ITEMS = re.compile(r",? and |, ?|,? or ")
MONTH = (r"(january|february|march|april|may|june|july|august|september|october|november|december)")
DATE = re.compile(rf"{MONTH} (\d{{1,2}})(?:st|nd|rd|th)?(?:,? (\d{{4}}))?"
                  rf"|(?:the )?(\d{{1,2}})(?:st|nd|rd|th)? (?:of )?{MONTH}(?:,? (\d{{4}}))?", re.I)
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
SPELLED = {  # words -> the token they stand for
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
LEADING = UNNAMED | OPPOSITES.keys() | LIMITING | frozenset(
    "rs point points pair ordered interval set value number equation line vector matrix".split())
KNOWN_WORDS = frozenset(  # that do not make prose of an answer
    "all any real reals number numbers except other than no solution solutions real out of to base "
    "square cubic per for hundred thousand million billion a an the if frac dfrac set empty"
    .split()) | COUNTING | PARTS.keys() | OPPOSITES.keys() | BASES.keys()
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


AFTER_CHRIST = re.compile(r" ?\d")


def tokenize(text):
    """Tokens are strings: numbers, letters, \\commands, symbols. Words start with a quote, a unit
    with two, words within \\text{} with a curly one: "5 \\unit{km}" -> ['5', '""km'].
    """
    tokens = []
    for m in TOKEN.finditer(text):
        token = m[0]
        if m.lastgroup == "unit":
            tokens.append('""' + m["unit"])
        elif m.lastgroup == "text":
            for word in JOINT.split(re.sub(r"[{}]", "", m["text"])):
                if word := word.strip(" ,"):
                    letter = word in ("e", "i")
                    tokens.append(SPELLED.get(word.lower(), word if letter else "“" + word))
        elif m.lastgroup == "word":
            after_value = bool(tokens) and (tokens[-1][0].isdigit() or is_word(tokens[-1]))
            spaced = text[m.start() - 1:m.start()] == " "
            whole = len(token) > 1 and token.lower() in SHORT_WORDS and (
                spaced or not m.start() or after_value)
            if token in ("BC", "AD", "CE") and not after_value:  # BC = 7, but AD 44
                whole = bool(AFTER_CHRIST.match(text, m.end()))
            if token.lower() in SPELLED and not (after_value and token == "in"):
                tokens.append(SPELLED[token.lower()])
            elif len(token) > 3 or whole or after_value and (
                    token.lower() in UNITS or spaced and len(token) > 2):
                tokens.append('"' + token)
            else:
                tokens += token
        else:
            tokens.append("\\\\" if token[:2] == "\\\\" else SAME.get(token, token))
    if len(tokens) > MAX_TOKENS:
        raise Unreadable(f"more than {MAX_TOKENS} tokens")
    return tokens


def is_word(token):
    return token[:1] in ('"', "“")


# ---- 2d. read: tree -----------------------------------------------------------------------------

@lru_cache(4096)
def read(text: str, marks=True, letters=True) -> Node:
    """The tree of a cleaned answer. Unreadable if the grammar does not cover all of it.

    read("x + 1")   # Node("+", (Node("name", ("x",)), Node("number", (Fraction(1), 0))))

    `marks`: keep % and degree signs. `letters`: "5 m" are metres.
    """
    if not text:
        raise Unreadable("empty")
    text = spoken(text)
    plain = SPACES.sub(" ", TEXT.sub(r"\1", text)).strip()
    if clock := CLOCK.fullmatch(plain):
        return Node("text", (f"{int(clock[1])}:{clock[2] or '00'} {clock[3].lower()}m",))
    if date := DATE.fullmatch(plain):
        month, day, year = date[1] or date[5], date[2] or date[4], date[3] or date[6] or ""
        return Node("text", (f"{month.casefold()} {int(day)} {year}".strip(),))
    spelled = plain.lower() in SPELLED
    wordy = " " in plain or len(plain) > 3 or plain.lower() in SHORT_WORDS
    if WORDS.fullmatch(plain) and wordy and not spelled and not LETTERS_LISTED.fullmatch(plain):
        items = [ARTICLE.sub(" ", item).strip() for item in ITEMS.split(plain.casefold())]
        listed = len(items) > 1 and all(len(item.split()) in (1, 2) for item in items)
        return Node("text", (" , ".join(sorted(items) if listed else items),))
    tokens = tokenize(with_units(plain if TEXT.fullmatch(text) else text, letters))
    tokens = [token for token in tokens if marks or token not in ("%", "\\degree")]
    trees = []
    for plus, minus in ("+-", "-+") if {"\\pm", "\\mp"} & set(tokens) else ("+-",):
        parser = Parser([{"\\pm": plus, "\\mp": minus}.get(token, token) for token in tokens])
        trees.append(parser.statement(("",)))
        parser.expect("")
    versions = both(trees[0], trees[-1])
    if all(version.op == "relation" and version.args[0] == ("!=",) for version in versions):
        return both_hold(versions)  # x is neither 2 nor -2
    return versions[0] if len(versions) == 1 else Node("list", tuple(versions))


def both(plus, minus):
    """The values of a tree read with + and with - for plus-minus. In (+-1, +-2) each is free."""
    if plus == minus:
        return [plus]
    if plus.op in ("list", "set"):
        parts = itertools.chain(*map(both, plus.args, minus.args))
        return [Node(plus.op, tuple(parts))]
    if plus.op == "tuple":
        parts = itertools.product(*map(both, plus.args, minus.args))
        return [Node("tuple", part) for part in itertools.islice(parts, MAX_ITEMS)]
    return [plus, minus]


def times(a, b, sign="*"):
    """The product, or quotient; of matrices and vectors as usual, by a number entry by entry."""
    if sign == "*" and a.op == b.op == "matrix":
        if len(a.args[0].args) != len(b.args) or len(b.args) > MAX_MATRIX:
            raise Unreadable("matrices that cannot be multiplied")
        columns = list(zip(*(row.args for row in b.args)))
        return Node("matrix", tuple(
            Node("tuple", tuple(dot(row.args, column) for column in columns)) for row in a.args))
    if sign == "*" and a.op == "matrix" and b.op == "tuple" and len(a.args[0].args) == len(b.args):
        return Node("tuple", tuple(dot(row.args, b.args) for row in a.args))
    if b.op in ("tuple", "matrix") and a.op not in ("tuple", "matrix") and sign == "*":
        return Node(b.op, tuple(times(a, x) for x in b.args))
    if a.op in ("tuple", "matrix") and b.op not in ("tuple", "matrix") and sign in "*/":
        return Node(a.op, tuple(times(x, b, sign) for x in a.args))
    return Node(sign, (a, b))


def dot(these, those):
    """The sum of the products; as a number where all are numbers."""
    if all(x.op == "number" for x in (*these, *those)):
        return number(sum(x.args[0] * y.args[0] for x, y in zip(these, those)))
    result = reduce(lambda a, b: Node("+", (a, b)), map(times, these, those))
    if size(result) > MAX_TOKENS:
        raise Unreadable("too large a product of matrices")
    return result


def size(node):
    """How many nodes a tree has, at least: counting stops beyond MAX_TOKENS."""
    count, waiting = 0, [node]
    while waiting and count <= MAX_TOKENS:
        count += 1
        waiting += children(waiting.pop())
    return count


def plus(a, b, sign="+"):
    """The sum, or difference; of matrices and vectors entry by entry."""
    if a.op == b.op and a.op in ("tuple", "matrix") and len(a.args) == len(b.args):
        return Node(a.op, tuple(plus(x, y, sign) for x, y in zip(a.args, b.args)))
    if sign == "-" and b.op == "set" and a.op in ("interval", "set", "\\cup"):
        sign = "\\setminus"
    return Node(sign, (a, b))


class Parser:
    def __init__(self, tokens):
        self.tokens, self.at = [*tokens, ""], 0
        self.bars = False  # inside |...|, where the next bar closes
        self.words = []  # said within the side that is being read

    def peek(self):
        return self.tokens[self.at]

    def take(self, *wanted):
        """The next token, if it is one of the wanted; '' if not."""
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
            these = {joint}
            while joint:
                these.add(joint)
                joint = self.take(",", "and", "or")
            if self.peek() in closers and not these & {"and", "or"}:
                break
            if "or" in these:
                alternatives.append(len(items))
            joints |= these
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
        """Node("relation", (signs, names of the sides, *sides)); "" is no name, as of x + 1"""
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
        if self.take("\\pmod"):
            side = sides[-1] = Node("modulo", (side, self.atom()))
        if set(signs) <= {">", ">="}:
            signs = [sign.replace(">", "<") for sign in signs[::-1]]
            names, sides = names[::-1], sides[::-1]
        if not signs:
            return side
        words = [word for side in sides if side.op == "said" for word in side.args[1]]
        sides = [side.args[0] if side.op == "said" else side for side in sides]
        node = Node("relation", (tuple(signs), tuple(names), *sides))
        return Node("said", (node, tuple(words))) if words else node

    def side(self):
        """(one side of a relation; what it is called if it is a name: f(x), AB, boys)"""
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
        """`digits`: take only so many of a number, as \\frac12 does."""
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
            outer, self.bars = self.bars, token == "|"
            node = Node(AROUND[token][0], (self.operation(),))
            self.bars = outer
            self.expect(AROUND[token][1])
            return node
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
        if token in ("f", "g", "h") and self.take("("):
            return Node("call", (token, self.bracket("(")))
        if token in ("\\beginmatrix", "\\begincases"):
            if token == "\\begincases":
                self.expect("\\beginmatrix")
            return self.matrix(cases=token == "\\begincases")
        if len(token) == 1 and token.isalpha() or token in LETTERS:
            return Node("name", (token,))
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
        given = {}
        while mark := self.take("_", "^"):
            given[mark] = self.atom()
        bracketed = self.peek() in CLOSERS
        inside = self.atom() if bracketed else self.factor()
        while not bracketed and self.goes_on() and self.peek() not in FUNCTIONS \
                and self.peek() not in CLOSERS:
            inside = Node("*", (inside, self.factor()))
        if given.get("^") == number(-1):
            name = "\\arc" + name[1:] if given.pop("^") else name
        if name == "\\log":
            base = Node("\\ln", (given.get("_", number(10)),))
            node = Node("/", (Node("\\ln", (inside,)), base))
        elif name in ("\\exp", "\\cbrt"):
            third = number(Fraction(1, 3))
            node = Node("^", (E, inside) if name == "\\exp" else (inside, third))
        else:
            node = Node(name, inside.args if inside.op == "tuple" else (inside,))
        return Node("^", (node, given["^"])) if "^" in given else node

    def bracket(self, opener):
        """(a), (a, b), [a, b), {a, b}, {x | x > a}"""
        outer, self.bars = self.bars, False
        if opener == "\\{" and (bar := self.builder_bar()):
            inside = self.builder(bar)
        elif opener == "\\{" and self.peek() == "\\}":
            inside = Node("list", ())
        else:
            inside = self.statement(CLOSERS[opener])
        closer = self.expect(*CLOSERS[opener])
        self.bars = outer
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
        """Where the bar or colon of {x | x > 2} is; 0 if this is no such set."""
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
        """{x in R | 1 < x} is that interval; {2n : n in Z} keeps its parts, n called "bound"."""
        end = next(i for i in range(bar, len(self.tokens)) if self.tokens[i] in ("\\}", ""))
        before = [token for token in self.tokens[self.at:bar]
                  if len(token) == 1 and token.isalpha()]
        if len(set(before)) == 1:
            self.tokens[self.at:end] = ["\\bound" if token == before[0] else token
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
        """\\begin{pmatrix} a & b \\\\ c & d \\end{pmatrix}; a column is a tuple, of equations a
        list. In cases "5, & x > 0" is a value with its condition.
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


def is_integer_condition(node):
    """k in Z"""
    return node.op == "relation" and node.args[-1] == INTEGERS


def is_relation(node):
    return node.op == "relation" or node.op == "said" and is_relation(node.args[0])


def is_inequality(node):
    return node.op == "relation" and not {"=", "~"} & set(node.args[0])


def either(items):
    return reduce(lambda a, b: Node("\\cup", (a, b)), items)


def both_hold(items):
    return reduce(lambda a, b: Node("\\cap", (a, b)), items)


def grouped_by_names(items, borders):
    """x = 1, y = 2 or x = 2, y = 1: a list of two lists; x = 1 or x = 2 stays one of numbers."""
    groups = [tuple(items[a:b]) for a, b in zip(borders, borders[1:])]
    if len(groups) < 2 or len(groups[0]) < 2 or len({len(group) for group in groups}) != 1:
        return items
    return [Node("list", group) for group in groups]


def literal(token):
    """12, 3.50, 1e3, 0.1(6), 101_2. Keeps the digits after the point, for rounding."""
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


def children(node):
    return [part for part in node.args if isinstance(part, Node)]


@lru_cache(4096)
def variables(node):
    """The names in a tree, and its unknown functions."""
    own = {node.op + " " + node.args[0]} if node.op in ("name", "call") else ()
    names = frozenset(own).union(*map(variables, children(node)))
    return names - {"name " + node.args[0].args[0]} if node.op in ("\\sum", "\\prod") else names


# ---- 3a. compare: numbers -----------------------------------------------------------------------
# A number is a Fraction as long as it can be, else a Decimal of 50 digits, else a complex. Where a
# sum nearly cancels, it is zero: that is the only tolerance, and it is relative to what was added.

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
    """Counts the work of one grade, by operations rather than by time: the same on any machine."""
    STEPS.left = getattr(STEPS, "left", MAX_STEPS) - cost
    if STEPS.left < 0:
        raise Exhausted(f"more than {MAX_STEPS} steps")


def decimal(x):
    return Decimal(x.numerator) / Decimal(x.denominator) if type(x) is Fraction else x


def bits(x):
    return max(x.numerator.bit_length(), x.denominator.bit_length()) if type(x) is Fraction else 0


def widened(operate):
    """The operation on two numbers of one type, the wider of theirs. Too large a fraction becomes a
    decimal."""
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


def hyperbolic(sign, x):
    """cosh or sinh; of large numbers they differ too little for 50 digits."""
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
    """The number a tree stands for, its variables at `point`: {"name x": Fraction(3)}"""
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
    """Some number, the same one for the same function of the same operands."""
    own = [part for part in node.args if not isinstance(part, Node)]
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
    """(the value of a tree without variables, or None; what it cost)"""
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
    """Places for the variables of two trees, random but the same for the same trees: prime
    denominators, so that no two of them are related by accident."""
    rng = random.Random(" ".join(sorted(map(show, (a, b)))))
    names = ["", *sorted(variables(a) | variables(b))]
    for i in range(count):
        low, high = RANGES[i % len(RANGES)]
        if integers:
            yield {name: Fraction(rng.randint(1, 4 + i)) for name in names}
        else:
            yield {name: Fraction(rng.randint(97 * low + 1, 97 * high - 1), 97) for name in names}


# ---- 3b. compare: sets of reals -----------------------------------------------------------------
# A set of reals is the sorted tuple of its cuts, where membership changes: (3, 0) just below 3,
# (3, 1) just above it. So (-3, 5] is ((-3, 1), (5, 1)), the point 2 is ((2, 0), (2, 1)), and two
# sets are equal when their cuts are.

LOW, HIGH = (-INFINITY, 1), (INFINITY, 0)
COMBINED = {"\\cup": operator.or_, "\\cap": operator.and_, "\\setminus": operator.gt}


def combined(op, a, b):
    """The union, intersection or difference of two sets: walk along the cuts of both."""
    cuts = []
    for cut in sorted({*a, *b}):
        inside = COMBINED[op](*(bisect_right(side, cut) % 2 for side in (a, b)))
        if inside != len(cuts) % 2:
            cuts.append(cut)
    return tuple(cuts)


def region(node):
    """The set of reals that an interval, an inequality, a list or a combination of these means;
    None if it is none."""
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
    if op == "relation":
        sets, op = list(map(solutions, args[0], args[2:], args[3:])), "\\cap"
    elif op in ("set", "list", *COMBINED):
        sets, op = [region(part) for part in args], op if op in COMBINED else "\\cup"
    else:
        end = limit(node)
        return None if end is None else ((end, 0), (end, 1))
    if None in sets:
        return None
    result = reduce(partial(combined, op), sets) if sets else ()
    if not result and node.op == "\\cap" and all(is_inequality(part) for part in args):
        return reduce(partial(combined, "\\cup"), sets)  # x < 1, x > 6 cannot both be meant
    return result


def is_subject(node):
    return node.op in ("name", "call")


def is_size(node):
    """|x|"""
    return node.op == "\\abs" and is_subject(node.args[0])


def sizes(sign, bound, below):
    """The numbers with |x| < 2 or, unless `below`, with 2 < |x|."""
    open_end = int((sign == "<") == below)
    inner = (-bound, open_end), (bound, 1 - open_end)
    if bound <= 0 or sign not in ("<", "<="):
        return None
    return inner if below else (LOW, *inner, HIGH)


def solutions(sign, left, right):
    """The numbers of which x < 3, 3 < x or x in [1, 3] holds."""
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
    """What a relation is about: {x} of 2 < x < 5, also within "or" and "and"."""
    if node.op == "relation":
        sides = [side.args[0] if is_size(side) else side for side in node.args[2:]]
        return set(filter(is_subject, sides))
    parts = children(node) if node.op in ("said", "list", "set", *COMBINED) else ()
    return set().union(*map(subjects, parts))


def regions(a, b):
    """The two sets of reals, if both are sets in one variable and it has one name."""
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


# ---- 3c. compare: equations ---------------------------------------------------------------------

def definition(node):
    """What "x = 5", "f(x) = 5" or "2 + 3 = 5" defines; None if it only restricts, as x + y = 5."""
    if node.op != "relation":
        return node
    signs, names, *sides = node.args
    if signs == ("\\in",):
        return sides[1]
    if signs[-1] == "~" and not names[-2]:
        sides, names = sides[:-1], names[:-1]  # "22/7 = 3.14...": before "about" it is exact
    values = [side for side, name in zip(sides, names) if not name]
    exact = any(names) or None not in map(constant, values)
    return values[-1] if values and set(signs) <= {"=", "~"} and exact else None


def name_of(node):
    """The one name that is defined: "x" of x = 5, {"boy"} of "12 boys" and "boys: 12"; else None"""
    if node.op == "said":
        return name_of(node.args[0]) or nouns_of(node.args[1]) or None
    if node.op != "relation" or node.args[0] != ("=",):
        return None
    names = [name for name in node.args[1] if name]
    if len(names) != 1:
        return None
    return nouns_of(names) if " " in names[0] or is_noun(names[0]) else names[0]


ARGUMENT = re.compile(r"([A-Za-z]'*)\(([a-z])\)")


def one_argument(a, b):
    """f(x) = x + 1 and f(t) = t + 1 in one variable."""
    matches = [ARGUMENT.fullmatch(name_of(node) or "") if node.op == "relation" and
               isinstance(name_of(node), str) else None for node in (a, b)]
    if all(matches) and matches[0][1] == matches[1][1] and matches[0][2] != matches[1][2]:
        b = renamed(b, matches[1][2], matches[0][2])
    return a, b


def renamed(node, old, new):
    """A tree with another letter for one of its variables."""
    if node == Node("name", (old,)):
        return Node("name", (new,))
    return Node(node.op, tuple(renamed(part, old, new) if isinstance(part, Node) else part
                               for part in node.args))


def is_noun(name):
    return len(name) > 2 and name.isalpha() and name.islower()


def same_name(a, b):
    """Whether two definitions may be of one thing: x and y may, f(1) and f(2) or AB and CD not."""
    a, b = name_of(a), name_of(b)
    if not a or not b or a == b:
        return True
    if type(a) is not type(b):
        return True
    if type(a) is frozenset:
        return bool(a & b)
    if any(map(re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)").match, (a, b))):
        return False
    bases = [re.match(r"\\?[A-Za-z]+|\W", name)[0] for name in (a, b)]
    rests = [re.sub(r"\([a-z]\)", "", name[len(base):]) for name, base in zip((a, b), bases)]
    if bases[0] == bases[1]:
        return rests[0] == rests[1]
    particular = any(map(re.compile(r"\d|['|]|[A-Z]").search, rests))
    return not particular and not all(len(base) > 1 and base[-1].isupper() for base in bases)


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
    """The quotient of two trees where it is the same at random places; None where it is not."""
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
    """Whether some x makes both zero, so that clearing the denominator would change the equation;
    also True if that cannot be told."""
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


# ---- 3d. compare: answers -----------------------------------------------------------------------

LOOSE = re.compile(r"(?<![0-9]) +| +(?![0-9])")
CHOICE = re.compile(r"(option|choice)?(\()?([a-j])(?:[.:)]+(.*))?", re.S | re.I)
FURTHER = re.compile(r"\s*(?:[,;&]|and\b|or\b)\s*\W?[A-Ja-j]\b")  # (A), (C)
LETTER_UNIT = re.compile(r"[\d)}] [A-Za-z](?![A-Za-z])")
MARK = re.compile(r"%|degree|percent|pct|per cent")


def equal(a, b):
    """Whether two trees are the same answer."""
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
    if ops & {"matrix", "builder"}:  # [[1, 2], [3, 4]] is a matrix, too
        rows = ops == {"matrix", "tuple"} and len(a.args) > 1
        return (a.op == b.op or rows) and in_order(a.args, b.args)
    if "cases" in ops:
        return a.op == b.op and in_any_order(a.args, b.args)
    if ops & {"interval", *COMBINED}:
        return equal_sets(a, b)
    return equal_lists(a, b) if ops & {"list", "set", "tuple"} else equal_numbers(a, b)


def differing_texts(a, b):
    """Two different texts, or a word against a value. A whole phrase may contain that value."""
    phrase = a if a.op == "text" else b
    if a.op != b.op and len(phrase.args[0].split()) > 2:
        raise Unreadable("words against a value")
    return False


def equal_said(a, b):
    """Values with units or words: 5 m is 500 cm and 5, but not 5 kg; 5 north is not 5 south."""
    (x, words), (y, others) = (node.args if node.op == "said" else (node, ()) for node in (a, b))
    mine, theirs = meaning_of(words), meaning_of(others)
    limiting = LIMITING & {*word_list(words), *word_list(others)}
    if mine != theirs and (mine or limiting or word_list(words)):
        return False
    units = [{unit(word[1:]) for word in side if word[:1] == '"'} for side in (words, others)]
    if all(len(side) == 1 for side in units):
        (scale, measure), (other, measured_too) = (side.pop() for side in units)
        if measure != measured_too and not any("unit" in part for part in measure + measured_too):
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
    """Intervals and their combinations. x < 4, y > 2 is about two variables: a list."""
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
    """Whether they are equal; what cannot be compared differs."""
    try:
        return equal(x, y)
    except Exhausted:
        raise
    except FAILURES:
        return False


def equal_lists(a, b):
    """Tuples in their order, lists and sets in any; but what has names by its names."""
    these, those = (x.args if x.op in ("list", "set", "tuple") else (x,) for x in (a, b))
    if "tuple" in (a.op, b.op):
        return len(these) > 1 and in_order(these, those)
    if a.op == b.op == "set" or all(part.op == "tuple" for part in these + those):  # told twice
        these, those = tuple(dict.fromkeys(these)), tuple(dict.fromkeys(those))
    if len(these) != len(those):
        if {x.op for x in these} ^ {x.op for x in those} == {"text"}:
            raise Unreadable("words in a list")
        return False
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
    x, y = constant(a), constant(b)
    if x is not None and y is not None:
        return not subtract(x, y) or rounds_to(a, y) or rounds_to(b, x)
    if not variables(a) and x is None or not variables(b) and y is None:
        raise Unreadable("it has no value")
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
            plain = sum(not imaginary for imaginary, _ in same)
            return plain >= 3 or all(agree for _, agree in same)
    raise Unreadable("it has no value at the points tried")


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
    """Two boxes with one value, in two spellings, are one answer."""
    if gold.count("box") < 2 or (last := extract(gold)) == joined:
        return joined
    found = beside(gold, boxes(gold))
    with localcontext(CONTEXT):
        trees = [read(clean(content)) for content in found]
        return last if all(equal(tree, trees[-1]) for tree in trees) else joined


def one_spelling(text):
    """0.75 or 3/4 is one answer."""
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
    x, y = clean(a), clean(b)
    plain = [LOOSE.sub("", TEXT.sub(r"\1", s)) for s in (x, y)]
    words = len(plain[0]) > 1 and (TEXT.fullmatch(x) or TEXT.fullmatch(y))
    if plain[0] == plain[1] or words and plain[0].casefold() == plain[1].casefold():
        return True, "the same text but for spaces and fonts"
    letters = [choice(s) for s in plain]
    if all(letters) and not all(m[1] for m in letters):
        return letters[0][0] == letters[1][0], "letters of a choice"
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
    """Whether it is said in metres or the like: then it is no 5%, no 5 degrees."""
    return node.op == "said" and any(word[:1] == '"' for word in node.args[1])


def grade(gold: str, response: str):
    """True: the response's answer equals the gold's. False: it does not. None: it cannot be read.

    grade("1/2", "The answer is 0.5.")   # True
    """
    return compare(gold, response)[0]


# ---- 4. verdict: what a verification concludes --------------------------------------------------

MARKUP = re.compile(r"\\text\w*\{|\\boxed\{|[*_`$]")
SUBJECT = r"(?:answer|solution|result|calculation|conclusion|problem|response)"
FAULT = (r"(?:contains?|has|have|makes?|made)\s+(?:an?|some|several|the)\s+(?:\w+\s+)?"
         r"(?:error|mistake)s?")
GOOD = r"correct(?:ly)?|right|accurate|valid|verified|confirmed|true|sound"
BAD = r"incorrect(?:ly)?|wrong|inaccurate|invalid|false|mistaken|erroneous|flawed|fails?"
VERDICT = re.compile(rf"""
    (?P<doubt> \b(?:can(?:\s?not|'t)|could\s?n[o']t|unable\s+to|not\s+able\s+to)\s+(?:be\s+)?
              (?:verify|verified|confirm|confirmed)\b (?:[^.!?\n]|\.\d){{0,200}}
             | \bcorrect\s+{SUBJECT}\s+(?:is|should\s+be|would\s+be)\b[^.!?\n]{{1,40}}?
               (?:,\s+not\b|\binstead\s+of\b|\brather\s+than\b) )
  | (?P<flawless> (?: \bnothing\s+(?:is\s+)?(?:{BAD})\s+(?:with|in|about)\b
                    | \bno\s+(?:mistakes?|errors?|faults?)\s+(?:in|with)\b )
                  [^.!?\n]{{0,20}}?\b{SUBJECT}\b )
  | \b{SUBJECT}\b                                               # the answer, 12, is (not) correct
    (?P<middle> (?: [^.!?\n,;] | \.\d | ,\d | ,\s[^,.!?;\n]{{1,40}},
                  | ,\s+(?=which|but|indeed|therefore|in\s+fact) ){{0,80}}? )
    \b(?: (?P<good>{GOOD} | checks?\s+out | holds?(?:\s+up)?(?=\W*(?:[.!\n]|$))
                 | indeed(?=\s+[-\d\\(]) )
      | (?:{BAD}|{FAULT}) )\b
  | (?P<it> (?:\b(?:but|so|hence|thus|therefore|yet|and)\b|;),?\s+(?:it|this|that)\s?(?:is|'s)\s+)
    (?P<it_not> not\s+|n't\s+ )? \b(?:(?P<it_good>correct|right|valid)|incorrect|wrong|invalid)\b
    (?=\s*(?:[.!,;\n]|$))
  | (?P<before> \b(?:is|are|was|be|n[o']t|seems|being)\s+(?:\w+\s+){{0,2}}?)
    (?:(?P<good_one>correct|right|valid)|incorrect|wrong|invalid)\s+(?:final\s+)?{SUBJECT}\b
""", re.I | re.X)
NEGATION = re.compile(
    r"(?:\balmost|\bnearly),?\s+but\s+not\b|(?:n't|\bnot)\s+(?:even\s+)?close\s+to\b"
    r"|\b(?:not|never|no\s+longer|cannot|neither|hardly|fails?\s+to|far\s+from|almost|nearly|partly"
    r"|partially|only\s+half|close\s+to|by\s+no\s+means|in\s+no\s+way|anything\s+but"
    r"|nowhere\s+near)\b|n't\b", re.I)
DISBELIEF = re.compile(
    r"(?:\b(?:do|does|did|ca|can|could|would)(?:n't|\s+not)|\bcannot)\s+(?:\w+\s+)?"
    r"(?:think|believe|agree|say|see|find|accept)\b[^.!?\n,;]{0,20}$"
    r"|(?<!\bno )(?<!\bnot )(?<!n't )\bdoubt\b[^.!?\n,;]{0,20}$", re.I)
CONDITION = re.compile(r"\b(?:if|whether|is|suppose|assum\w+|unless|was|check|verify|see|does)\s+"
                       r"(?:that\s+|if\s+)?"
                       r"(?:(?:the|my|this|your|our|given|final|proposed)\s+)*$", re.I)
UNREAL = re.compile(r"\b(?:would|could|might|may|should)\s+(?:\w+\s+)?be\b", re.I)
ASIDE = re.compile(r"\b(?:which|what|that)\s+$", re.I)
QUESTION = re.compile(r"[^.!?\n]{0,200}\?")


def verdict(text: str):
    """The last "the answer is (in)correct" of a text: True, False, or None without any.

    verdict("I don't think the answer is correct.")   # False
    """
    text = SPACES.sub(" ", MARKUP.sub("", (text or "")[-MAX_VERIFICATION:]).replace("’", "'"))
    last, mentioned = None, False
    for m in VERDICT.finditer(text):
        said = judged(text, m, mentioned)
        last = last if said is None else said
        mentioned = True
    return last


def judged(text, m, mentioned):
    """What one match of VERDICT says; None if it is a question, a condition or an aside."""
    if m["doubt"] or m["flawless"]:
        return bool(m["flawless"])
    if m["it"]:
        about = mentioned or re.search(rf"\b{SUBJECT}\b", text[:m.start()], re.I)
        return bool(m["it_good"]) != bool(m["it_not"]) if about else None
    before = max(0, m.start() - 60)
    if CONDITION.search(text, before, m.start()) or QUESTION.match(text, m.end()):
        return None
    if UNREAL.search(m["middle"] or m["before"] or ""):
        return None
    if m["before"] and ASIDE.search(text, before, m.start()):
        return None
    negations = len(NEGATION.findall(m["middle"] or m["before"] or ""))
    negations += bool(DISBELIEF.search(text, before, m.start()))
    return bool(m["good"] or m["good_one"]) == (negations % 2 == 0)


# ---- command line -------------------------------------------------------------------------------

def show(node):
    """A tree as text: (+ x (number 1 0))."""
    if isinstance(node, Node):
        return f"({' '.join([node.op, *map(show, node.args)])})"
    return str(node)


def main(argv):
    """0: equal, 1: not equal, 2: unreadable, or wrong usage."""
    if len(argv) != 2:
        print("usage: python -m nanoverify.answers GOLD ANSWER", file=sys.stderr)
        return 2
    result, why, *answers = compare(*argv)
    for name, answer in zip(("gold", "answer"), answers):
        print(f"{name:8s} {answer}")
        with suppress(*FAILURES):
            print(f"{'read as':8s} {show(read(clean(answer)))}")
    said = {True: "equal", False: "not equal", None: "unreadable"}[result]
    print(f"{'verdict':8s} {said} ({why})")
    return {True: 0, False: 1, None: 2}[result]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))


