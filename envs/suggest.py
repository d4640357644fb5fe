"""The did-you-mean of every error that names something unknown."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The end of an error message: the choice that was probably meant, or nothing.

    Case does not count, and neither does a missing namespace: "toolmath-v0" finds "polyturn/ToolMath-v0".

    Args:
        word: What was written.
        choices: What exists.

    Returns:
        " Did you mean 'X'?" with its leading space, or "" when nothing is near.
    """
    known: dict[str, str] = {}
    for choice in sorted(choices):
        known.setdefault(choice.lower(), choice)
        known.setdefault(choice.rpartition("/")[2].lower(), choice)
    near = get_close_matches(word.lower(), known, n=1)
    return f" Did you mean {known[near[0]]!r}?" if near else ""
