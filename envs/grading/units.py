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
    "gram": "grams g",
    "kilogram": "kilograms kg kgs",
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
    "am": "am",
    "pm": "pm",
    "radian": "radians rad",
}
_CANONICAL = {word: unit for unit, words in _SYNONYMS.items() for word in (*words.split(), unit)}

SHORT_UNITS = frozenset(word for word in _CANONICAL if len(word) == 2) | {"sq", "th", "st", "nd", "rd", "am", "pm"}
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

NUMBER_WORDS = {
    word: number
    for number, word in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())  # noqa: SIM905
}

LEADING = frozenset(_LEADING.split())
"""Words that may stand before an answer without changing it. Behind any other (not, minus, at least) it is not read."""

MEANINGFUL = frozenset(_MEANINGFUL.split())
"""Words that are no unit: behind a number they change it, so the answer is not read as that number."""


def canonical_unit(text: str) -> str | None:
    """One name for a unit's spellings, powers included ("square feet" is "foot^2"), or None for words unknown here."""
    words = text.replace("^", " ^").split()
    power, names = 1, []
    index = 0
    while index < len(words):
        word = words[index]
        if word in ("square", "sq"):
            power = 2
        elif word == "cubic":
            power = 3
        elif word.startswith("^"):
            power = int(word[1:]) if word[1:] in ("2", "3") else 0
        elif word == "per":
            names.append("/")
        elif word in _CANONICAL:
            names.append(_CANONICAL[word])
        else:
            return None
        index += 1
    return "".join(names) + (f"^{power}" if power != 1 else "") if names else None


def units_agree(first: str, second: str) -> bool:
    """False only where both are units known here and differ; an absent or unknown one says nothing."""
    known_first, known_second = canonical_unit(first), canonical_unit(second)
    return known_first is None or known_second is None or known_first == known_second
