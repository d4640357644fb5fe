"""Reading a choice out of an agent's text."""

from __future__ import annotations

import re

# ASCII digits only, and few of them: int() accepts other scripts' digits and refuses very long numbers.
_NUMBER = re.compile(r"(?<![0-9])[0-9]{1,9}(?![0-9])")


def numbers(text: str) -> list[int]:
    """The whole numbers written in the text, in order, up to nine digits each."""
    return [int(found) for found in _NUMBER.findall(text)]


def choice(text: str, count: int) -> int | None:
    """The last whole number in the text if it is one of 0 to `count` - 1, else None."""
    found = numbers(text)
    return found[-1] if found and found[-1] < count else None
