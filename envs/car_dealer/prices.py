"""Amounts of money in English text: "$9,500", "9.5k", "nine thousand five hundred", and which of several is offered."""

from __future__ import annotations

import re
from dataclasses import dataclass

LARGEST = 10_000_000
"""Amounts above this are not read as prices."""

_UNITS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19,
}  # fmt: skip
_TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90
}  # fmt: skip
_SCALES = {"hundred": 100, "thousand": 1_000, "grand": 1_000, "k": 1_000, "million": 1_000_000}
_WORD = "|".join(sorted([*_UNITS, *_TENS, "hundred", "thousand", "million", "grand"], key=len, reverse=True))

# Bounded repetitions everywhere: a hostile text of 100,000 digits must cost no more than reading it.
_PRICE = re.compile(
    rf"""
    (?<![\w.,])(?P<currency>[$€£]|usd\s?|us\$)?\s?
    (?P<digits>\d{{1,3}}(?:,\d{{3}}){{1,2}}(?:\.\d{{1,2}})?|\d{{1,8}}(?:\.\d{{1,3}})?)(?![\d,]*\d)
    (?:\s?(?P<scale>k|thousand|grand|hundred|million)\b)?
    (?P<after>\s?(?:dollars?|bucks|usd|euros?|[€£]))?
    |
    (?<![\w-])(?P<words>(?:a\s+)?(?:{_WORD})(?:(?:[\s-]+|\s+and\s+)(?:{_WORD}|half|a\s+half)){{0,9}})(?![\w-])
    (?P<money>\s?(?:dollars?|bucks|usd|euros?))?
    """,
    re.VERBOSE,
)
_NOT_MONEY = re.compile(
    r"\s*-?\s*(?:%|percent|per\s?cent|miles?|mph|mpg|km|kilometers?|kilometres?|hp|horsepower|cc|liters?|litres?|years?"
    r"|months?|weeks?|days?|hours?|doors?|seats?|seater|times|cylinders?|people|features|cars?|options)\b|\s*%"
)
# Amounts that are named but not asked for.
_OTHER_BEFORE = re.compile(
    r"(?:down from|instead of|rather than|forget|not|was|were|normally|usually|originally|worth|valued at"
    r"|(?:list(?:ed)? (?:price|at|for)|sticker price|budget|your offer)(?: (?:is|of|was))?|saves?(?: you)?"
    r"|(?:discount|rebate|deposit|down payment) of|(?:less|more) than|under|over|below|above|plus|another|extra|spend"
    r"|elsewhere for|sells? for|you (?:said|offered|asked for|wanted|proposed))\s*(?:about |only |around |up to )?\Z"
)
_OTHER_AFTER = re.compile(
    r"\s*(?:off\b|discount|less\b|(?:a|per|each|every)\s*/?\s*(?:month|week|year)|/\s*mo|monthly|down\b|deposit"
    r"|down payment|extra|in (?:savings|tax|fees|cash back)|(?:is|was|would be|'s) (?:too|not|impossible)|list price"
    r"|won't|will not|or (?:more|less))"
)
_SIGN = re.compile("[0-9]|hundred|thousand|grand|million")
_RANGE = re.compile(r"\s*(?:-|\u2013|\u2014|to|and|or)\s*\Z")


@dataclass(frozen=True)
class Amount:
    """An amount of money in a text.

    Attributes:
        value: In whole currency units, rounded.
        start: Where it begins in the text.
        end: Where it ends.
        offered: False where the words around it say that it is not what is asked for ("down from ...", "$300 off",
            "$200 a month").
    """

    value: int
    start: int
    end: int
    offered: bool


def prices(text: str, *, limit: int = 4_000) -> list[Amount]:
    """Every amount of money in order.

    A number without any sign of money counts from 1,000 up, unless it looks like a year (1900 to 2099) or a unit
    follows (miles, years, %...). "9.500" is nine thousand five hundred. In a range such as "9-10k" or "between 9k and
    10k" both are found. Other currencies are taken at face value.

    Args:
        text: Any text.
        limit: Characters that are read.
    """
    text = text[:limit].lower()
    found: list[Amount] = []
    if not _SIGN.search(text):
        return found
    for match in _PRICE.finditer(text):
        value = _worded(match) if match["words"] else _written(match, text)
        if value is None or not 0 < value <= LARGEST:
            continue
        begin, end = match.span()
        offered = not _OTHER_BEFORE.search(text, max(0, begin - 48), begin + 1 if text[begin].isspace() else begin)
        offered = offered and not _OTHER_AFTER.match(text, end)
        found.append(Amount(round(value), begin, end, offered))
    return found


def offered_price(text: str) -> int | None:
    """The price a turn puts forward, or None: of the amounts that are offered the last; of a range its lower end."""
    amounts = [amount for amount in prices(text) if amount.offered]
    if not amounts:
        return None
    last = amounts[-1]
    if len(amounts) > 1 and _RANGE.fullmatch(text[:4_000], amounts[-2].end, last.start):
        return min(last.value, amounts[-2].value)
    return last.value


def _written(match: re.Match[str], text: str) -> float | None:
    digits, scale = match["digits"], match["scale"]
    money = bool(match["currency"] or match["after"])
    whole, point, fraction = digits.replace(",", "").partition(".")
    if not digits.isascii() or (match["currency"] is None and text[max(0, match.start() - 1) : match.start()] == "#"):
        return None
    grouped = len(fraction) == 3 and not scale  # "9.500": a point between thousands, as on the European mainland
    value = float(whole + fraction if grouped else whole + point + fraction)
    if scale:
        return value * _SCALES[scale]
    if money:
        # "$9 to $10k" and "between $9 and 10k" mean thousands, but that is not certain: small amounts stay small.
        return value
    if _NOT_MONEY.match(text, match.end()):
        following = re.match(r"\s*-\s*\d", text[match.end() : match.end() + 4])
        if not following:
            return None
    if text[match.end() : match.end() + 1] in ("-", "\u2013"):
        upper = re.match(r"[-\u2013]\d{1,3}(?:\.\d)?\s?k\b", text[match.end() : match.end() + 10])
        if upper and value < 1_000:
            return value * 1_000  # "9-10k"
    if value < 1_000 or (1_900 <= value < 2_100 and "," not in digits):
        return None
    return value


def _worded(match: re.Match[str]) -> float | None:
    total, part, last_scale = 0.0, 0.0, 1
    words = re.findall("[a-z]+", match["words"])
    for index, word in enumerate(words):
        if word in ("a", "and"):
            continue
        if word in _UNITS:
            if part % 10 and words[index + 1 : index + 2] == ["hundred"]:
                total, part = total + 1_000 * part, 0.0  # "twenty-eight five hundred"
            part += _UNITS[word]
        elif word in _TENS:
            part += _TENS[word]
        elif word == "half":
            # "nine and a half thousand" adds to what is being counted, "nine thousand and a half" is half a thousand.
            if part:
                part += 0.5
            else:
                total += 0.5 * last_scale
        elif word == "hundred":
            part = (part or 1.0) * 100
        else:
            last_scale = _SCALES[word]
            total += (part or 1.0) * last_scale
            part = 0.0
    value = total + part
    return value if value >= 1_000 or match["money"] else None
