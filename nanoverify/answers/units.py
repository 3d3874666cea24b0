"""Units of measurement: a scale and what it measures. "5 m" is 500 cm, and 5; it is not 5 kg.

    unit("km/h")            # (Fraction(5, 18), (("length", 1), ("time", -1)))
    with_units("5 km / h")  # '5 \\\\unit{km/h}'
"""
import re
from fractions import Fraction
from functools import lru_cache, partial

from .spelling import SPACES
from .words import NUM

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
UNCONVERTED = ("euro", "yen", "rupee", "acre", "hectare")  # each measures only itself


def unit_table():
    """{word: (scale, measure)}, with the plurals of words."""
    table = {}
    for measure, entries in MEASURES.items():
        for entry in entries.split("|"):
            scale, *words = entry.split()
            kind = words[0] if words[0] in UNCONVERTED else measure
            for word in words:
                table.setdefault(word, (Fraction(scale), kind))
                if len(word) > 2 and word not in ("feet", "inches", "usd", "mph"):
                    table.setdefault(word + "s", (Fraction(scale), kind))
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
            entry = UNIT_TABLE.get(word) or len(word) > 2 and UNIT_TABLE.get(word.lower())
            if not entry:
                return None
            factor, measure = entry
            power = sign * prefix * int(part["power"] or 1)
            if abs(power) > 9:
                return None
            scale *= factor ** power
            powers[measure] = powers.get(measure, 0) + power
            prefix, sign, last = 1, 1, word  # a slash divides by one unit: J/kg K
        elif not part["number"]:
            return None
    if powers == {LENGTH: 3}:  # a cubic metre is 10^6 millilitres
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
    """A text with each unit in one mark.

    letters: "5 m" (with the space) is five metres, not five times m.
    """
    if "\\" in text:
        text = SPACES.sub(" ", UNIT_TEXT.sub(mark_command, text))
        text = UNIT_FRACTION.sub(r"\\unit{\1/\2}", text)
    text = AFTER_NUMBER.sub(partial(mark_words, letters=letters), text)
    for _ in range(2 if text.count("\\unit") > 1 else 0):
        text = COMPOUND.sub(compound, text, count=1)
    return text


def mark_command(m):
    """\\text{km} -> \\unit{km}, if it is a unit."""
    inner = re.sub(r"[{}~\\]", "", m[1].replace("\\cdot", "*")).strip()
    power = re.sub(r"[{} ]", "", m[2])
    return rf" \unit{{{inner}{power}}}" if unit(inner + power) else m[0]


def mark_words(m, letters):
    """Words after a number: 5 km, 5 people/km, 5 cm wide. Words that are no unit stay."""
    before, marked = m.string[:m.start()], "\\unit" in m[0]
    inner = re.sub(r"\\unit\{([^{}]*)\}", r"\1", m[0])
    inner = re.sub(r"[{}]", "", inner.replace("\\cdot", "*")).strip()
    words = re.findall("[A-Za-z]+", inner)

    # not within \text{...}, nor the letters of a product or of a command
    if before.rfind("{") > before.rfind("}") and IN_UNIT.search(before[-99:]):
        return m[0]
    one_letter = bool(words) and len(words[0]) == 1
    if before[-1:].islower() and (one_letter or not COMMAND_END.search(before[-30:])):
        return m[0]
    if len(words) == 1 and one_letter and not marked:
        end = m.string[m.end():].lstrip()[:1]
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


def compound(m):
    """2 hours and 30 minutes -> 150 minutes; two units of different kinds stay."""
    large, small = unit(m[2]), unit(m[4])
    if not large or not small or large[1] != small[1] or large[0] <= small[0]:
        return m[0]
    value = Fraction(m[1].replace(",", "")) * large[0] / small[0] + Fraction(m[3].replace(",", ""))
    return rf"{value} \unit{{{m[4]}}}"
