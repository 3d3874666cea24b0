"""Words in an answer: formulas said in words, words that change the meaning, names.

    in_figures("two hundred and five")       # '205'
    spoken("all real numbers except 3")      # '\\reals \\setminus \\{3\\}'
    meaning_of(["5 north"])                  # the side of a pair that excludes "5 south"

A word is rewritten as a formula, or it is a unit (units.py), or it changes the meaning. Other words
only name what is counted.
"""
import re
from fractions import Fraction

from .spelling import SPACES, TEXT

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
    """'two hundred and five' -> '205', 'three quarters' -> '3/4'; None if it is no number.

    group: the number below the last "thousand" or "million".
    """
    total, group, seen = 0, 0, []
    for word in re.findall(r"[a-z]+", words.lower()):
        if word == "and":
            continue
        if word in PARTS and seen:
            return f"{total + group}/{PARTS[word]}"
        tens, ones = group % 100 // 10, group % 10
        fits = not ones and (not tens or tens >= 2 and SMALL.get(word) in range(1, 10))
        if word in SMALL and fits:
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
    """A cleaned text with its words rewritten as formulas."""
    plain = SPACES.sub(" ", TEXT.sub(r" \1 ", text) if "\\" in text else text).strip()
    if not WORD.search(plain):
        return text
    for pattern, replacement in SENTENCES:
        if m := pattern.fullmatch(plain):
            text = plain = m.expand(replacement) if isinstance(replacement, str) else replacement(m)
    for pattern, replacement in IN_TEXT:
        if pattern.search(plain):
            text = plain = pattern.sub(replacement, plain)

    # a number in words at the beginning: minus twenty-three apples
    sign = re.match("(?:minus|negative) (?=[a-z])|", plain, re.I)
    words = NUMBER_WORDS.match(plain, sign.end())
    if words and (value := in_figures(words[0])):
        text = f"{'-' if sign[0] else ''}{value} {plain[words.end():]}".strip()
    return text


# Words that change the meaning: one side of a pair excludes the other.
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


def opposites():
    """{word: (number of its pair, 0 or 1 for its side)}"""
    table = {}
    for pair, line in enumerate(PAIRS.replace("\n    ", " ").split("\n")):
        for side, words in enumerate(line.split("/")):
            for word in words.split():
                table.setdefault(word, (pair, side))
    return table


OPPOSITES = opposites()
LIMITING = frozenset("if unless when not no never least most than except without negative minus "
                     "nor neither even odd bc bce ad ce between".split())
UNNAMED = frozenset("the a an of in is are and total answer about approximately only exactly each "
                    "every per by at on for with more his her their all left has have was there "
                    "were remaining altogether".split())


def word_list(words):
    """The words of a value in lower case, without its units."""
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
    nouns = (word for word in word_list(words) if word not in UNNAMED and word not in OPPOSITES)
    return frozenset(word[:-1] if len(word) > 3 and word[-1] == "s" else word for word in nouns)
