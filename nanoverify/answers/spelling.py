"""One spelling for what looks alike: no dollar signs, sizes, fancy characters.

    clean(r"\\left( 1{,}234,\\; −½ \\right)")   # '( 1234,  - 1/2 )'
"""
import re
import unicodedata

from .limits import MAX_ANSWER, Unreadable

SPACES = re.compile(r"[^\S\n]+")
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
CURRENCIES = {"$": "dollar", "€": "euro", "¥": "yen", "₹": "rupee"}
MONEY_SIGN = re.compile(r"\\?([$€¥₹]) ?(\d[\d,]*(?:\.\d+)?)")
TEXT = re.compile(r"\\(?:text\w*|mbox|mathrm|emph)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")


def clean(text, grouped=True):
    """The text in one spelling; raises Unreadable if it is longer than MAX_ANSWER.

    grouped: 1,234 is one number.
    """
    if len(text) > MAX_ANSWER:
        raise Unreadable(f"longer than {MAX_ANSWER} characters")
    raw = text.strip(" .")

    # 1. characters
    if not text.isascii():
        text = RAISED_RUN.sub(lambda m: "^{" + "".join(map(RAISED.get, m[0])) + "}", text)
        text = LOWERED_RUN.sub(lambda m: "_{" + "".join(map(LOWERED.get, m[0])) + "}", text)
        text = VULGAR.sub(lambda m: " " + unicodedata.normalize("NFKC", m[0]), text)
        text = unicodedata.normalize("NFKC", text.translate(CHARACTERS)).translate(CHARACTERS)
    if len(text) > 2 * MAX_ANSWER:  # fractions in one character become four
        raise Unreadable("too long in plain characters")

    # 2. commands
    if "\\\\" in text and "\\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)  # escaped once too often
    for needle, pattern, replacement in REWRITTEN:
        if needle in text:
            text = pattern.sub(replacement, text)

    # 3. brackets, money, digits in groups of three
    text = text.strip().rstrip(" .,;:")
    if "[" in text or "]" in text:
        text = outward(text)
    if money := MONEY_SIGN.fullmatch(raw):
        text = f"{money[2]} \\unit{{{CURRENCIES[money[1]]}}}"
    text = SPACED.sub(lambda m: m[0].replace(" ", ""), text)
    return GROUPED.sub(lambda m: m[0].replace(",", ""), text) if grouped else text


def outward(text):
    """]0, 1[ is (0, 1), if all square brackets of the text form such pairs."""
    def usual(m):
        return ("(" if m[1] == "]" else "[") + m[2] + (")" if m[3] == "[" else "]")
    rest = TURNED_ENDS.sub("", text)
    return text if "[" in rest or "]" in rest else TURNED_ENDS.sub(usual, text)
