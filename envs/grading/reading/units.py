"""Words that stand around a number: units, multipliers, and phrases that carry no meaning."""

from __future__ import annotations

_SYNONYMS = {
    "dollar": "dollars usd buck bucks",
    "cent": "cents",
    "percent": "% pct",
    "degree": "degrees deg",
    "meter": "meters metre metres m",
    "centimeter": "centimeters centimetre centimetres cm",
    "millimeter": "millimeters millimetre millimetres mm",
    "kilometer": "kilometers kilometre kilometres km",
    "inch": "inches in",
    "foot": "feet ft",
    "yard": "yards yd yds",
    "mile": "miles mi",
    "gram": "grams g gm gms",
    "kilogram": "kilograms kg kgs kilo kilos",
    "milligram": "milligrams mg",
    "pound": "pounds lb lbs",
    "ounce": "ounces oz",
    "ton": "tons",
    "liter": "liters litre litres l",
    "milliliter": "milliliters millilitre millilitres ml",
    "gallon": "gallons gal",
    "quart": "quarts",
    "pint": "pints",
    "cup": "cups",
    "second": "seconds sec secs s",
    "minute": "minutes min mins",
    "hour": "hours hr hrs h",
    "day": "days",
    "week": "weeks wk wks",
    "month": "months",
    "year": "years yr yrs",
    "mile/hour": "mph",
    "kilometer/hour": "kph kmh",
    "am": "am",
    "pm": "pm",
    "radian": "radians rad rads",
    "acre": "acres",
    "hectare": "hectares ha",
    "newton": "newtons",
    "joule": "joules",
    "watt": "watts",
    "volt": "volts",
    "ampere": "amperes amp amps",
    "hertz": "hz",
    "calorie": "calories",
    "pascal": "pascals",
    "mole": "moles mol",
    "point": "points pt pts",
    "mile/gallon": "mpg",
    "revolution/minute": "rpm",
}
_CANONICAL = {word: unit for unit, words in _SYNONYMS.items() for word in (*words.split(), unit)}

SHORT_UNITS = frozenset(word for word in _CANONICAL if len(word) == 2) | {
    "sq",
    "cu",
    "th",
    "st",
    "nd",
    "rd",
    "am",
    "pm",
}
"""Two-letter words that are units rather than products of two variables."""

LETTER_UNITS = "mgslLh"
"""Single letters that may be a unit when a space parts them from a number."""

MULTIPLIERS = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

_LEADING = """
the final answer result is are equals equal to therefore thus so hence total value of approximately about approx exactly
roughly solution solutions option choice only a an
"""
_MEANINGFUL = """
not no non nor or more less least most than over under squared cubed factorial half minus plus times negative remainder
modulo mod divided multiplied except without greater fewer double twice triple dozen base if when tenths hundredths
thousandths
"""

_NUMBERS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty
"""
NUMBER_WORDS = {word: number for number, word in enumerate(_NUMBERS.split())}

LEADING = frozenset(_LEADING.split())
"""Words that may stand before an answer without changing it. After any other (not, minus, at least) it is not read."""

MEANINGFUL = frozenset(_MEANINGFUL.split())
"""Words that are no unit: after a number they change it, so the answer is not read as that number."""

KNOWN_WORDS = (
    frozenset(_CANONICAL)
    | {"and", "all", "any"}
    | SHORT_UNITS
    | set(MULTIPLIERS)
    | set(NUMBER_WORDS)
    | LEADING
    | MEANINGFUL
)
"""Words that are never a product of variables."""


def canonical_unit(text: str) -> tuple[str, int] | None:
    """A unit's name and power: "square feet" is ("foot", 2); "units" is ("", 1), any units; None if unknown."""
    words = text.replace("^", " ^").split()
    power, names = 1, []
    for word in words:
        if word in ("square", "sq"):
            power = 2
        elif word in ("cubic", "cu"):
            power = 3
        elif word.startswith("^"):
            power = int(word[1:]) if word[1:].isdigit() else 0
        elif word == "per":
            names.append("/")
        elif word in _CANONICAL:
            names.append(_CANONICAL[word])
        elif word not in ("unit", "units"):
            return None
    return ("".join(names), power) if words else None


def units_agree(first: str, second: str) -> bool:
    """False only where both are units known here and differ; an absent or unknown one says nothing."""
    if first.startswith("mod ") and second.startswith("mod "):
        return first == second
    one, other = canonical_unit(first), canonical_unit(second)
    if one is None or other is None:
        return True
    if ("", 1) in (one, other) and one[0] + other[0]:  # "units", whatever they are
        return True
    return one[1] == other[1] and (one[0] == other[0] or "" in (one[0], other[0]))
