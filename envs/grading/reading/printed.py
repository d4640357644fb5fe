"""What Python, sympy and numpy print for numbers, sets and solutions, rewritten as mathematics is typed."""

from __future__ import annotations

import re

# An array of numbers as numpy prints it: "[[1 2]\n [3 4]]".
_ARRAY = re.compile(r"\[[\[\]\s\d.eE+-]*\d[.]?\s+[-\d.\[\]][\[\]\s\d.eE+-]*\]")
_COLUMN = re.compile(r"\[\[[-+\d.eE]{1,40}\](?:\s+\[[-+\d.eE]{1,40}\]){1,64}\s*\]")
_GAP = re.compile(r"(?<=[\d.\]])\s+(?=[-\d.\[])")
_QUOTED_NUMBER = re.compile(r"\b(?:Decimal|Float)\('([-+\d.eE]{1,200})'(?:, precision=\d+)?\)")
_DICTIONARY = re.compile(r"\{('?[A-Za-z]\w*'?: [^:{}<>=|\\]+?(?:, '?[A-Za-z]\w*'?: [^:{}<>=|\\]+?)*)\}")
_ENTRY = re.compile(r"(?:^|, )'?([A-Za-z]\w*)'?: ")
_JOINED = re.compile(r"\)\s*([&|])\s*\(")
_RELATION = re.compile(r"[<>=]")
_NAMES = (
    (re.compile(r"\bInterval\.(open|Lopen|Ropen)\("), r"Interval\1("),
    (re.compile(r"\bEq\("), "Equation("),
    (re.compile(r"\bNe\("), "Unequal("),
    (re.compile(r"\bInteger\("), "("),
    (re.compile(r"\bfrozenset\("), "set("),
    (re.compile(r"\bset\(\s*\)|\bEmptySet\b(?:\(\))?"), r"\\emptyset "),
    (re.compile(r"(?<![\w\\{])Reals\b"), r"\\mathbb{R}"),
)
_MOST_ENTRIES = 64


def rewritten(text: str) -> str:
    """The text with Python's ways of writing replaced; any other text stays as it is."""
    if _ARRAY.fullmatch(text) or _COLUMN.fullmatch(text):
        text = _GAP.sub(", ", text)
    for pattern, replacement in _NAMES:
        text = pattern.sub(replacement, text)
    text = _QUOTED_NUMBER.sub(r"\1", text)
    text = _DICTIONARY.sub(lambda match: _named(match.group(1), whole=match.group() == text.strip()), text)
    return _with_words(text)


def _named(entries: str, *, whole: bool) -> str:
    """`x: 3, y: 5` as `x=3, y=5`; next to others, or in a list, as a point, its coordinates in the order of names."""
    _, *pieces = _ENTRY.split(entries)
    values = dict(zip(pieces[::2], pieces[1::2], strict=True))
    if len(values) != len(pieces) // 2 or len(values) > _MOST_ENTRIES:
        return "{" + entries + "}"
    named = ", ".join(f"{name} = {values[name]}" for name in sorted(values))
    return named if whole or len(values) == 1 else f"({named})"


def _with_words(text: str) -> str:
    """`(x > 1) & (x < 3)` with "and", and `|` with "or", where relations stand on both sides of every sign."""
    pieces = _JOINED.split(text)
    if len(pieces) < 3 or not all(_RELATION.search(piece) for piece in pieces[::2]):
        return text
    return _JOINED.sub(lambda match: r") \text{ and } (" if match.group(1) == "&" else r") \text{ or } (", text)
