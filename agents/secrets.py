"""Keys stay out of everything that is kept or said: texts are searched for them before they are cut or stored."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import quote

MASK = "***"
# A piece of a key of this many characters is masked too: servers and cuts leave pieces, and a piece narrows a search.
_PIECE = 8
# A word such as EMPTY, none or dummy that local servers take for a key; as it stands in ordinary texts, it stays there.
_PLACEHOLDER = re.compile(r"[A-Za-z]{1,11}")


def masked(text: str, key: str) -> str:
    """The text with every occurrence of the key, and of 8 or more of its characters in a row, masked.

    A key of less than 12 letters and nothing else is taken for a placeholder, not for a secret, and is left.

    Args:
        text: Of any length; mask before cutting it.
        key: The secret; "" where there is none.
    """
    made, end = [], 0
    for begin, stop in _spans(text, key):
        made += [text[end:begin], MASK]
        end = stop
    return "".join([*made, text[end:]]) if made else text


def masked_value(value: Any, key: str) -> Any:
    """As `masked`, for every text and name in a JSON value."""
    if isinstance(value, str):
        return masked(value, key)
    if isinstance(value, Mapping):
        return {masked_value(name, key): masked_value(each, key) for name, each in value.items()}
    return [masked_value(each, key) for each in value] if isinstance(value, list | tuple) else value


def masked_pieces(pieces: Sequence[str], key: str) -> list[str]:
    """The pieces of one text (its tokens), with those masked that hold a part of the key."""
    found = [(begin, stop) for begin, stop in _spans("".join(pieces), key)]
    made, place = [], 0
    for piece in pieces:
        end = place + len(piece)
        hit = any(begin < end and place < stop for begin, stop in found)
        made.append(MASK if hit else piece)
        place = end
    return made


def _spans(text: str, key: str) -> list[tuple[int, int]]:
    """Where the key or pieces of it stand: (begin, end), in order, apart from each other."""
    if not key or _PLACEHOLDER.fullmatch(key):
        return []
    size, pieces = _pieces(key)
    if not any(piece in text for piece in pieces):  # the usual case, and texts may be long
        return []
    found: list[tuple[int, int]] = []
    for place in range(len(text) - size + 1):
        if text[place : place + size] in pieces:
            if found and place <= found[-1][1]:
                found[-1] = (found[-1][0], place + size)
            else:
                found.append((place, place + size))
    return found


@lru_cache(maxsize=8)
def _pieces(key: str) -> tuple[int, frozenset[str]]:
    forms = {key, quote(key, safe="")}
    size = min(_PIECE, *(len(form) for form in forms))
    return size, frozenset(form[at : at + size] for form in forms for at in range(len(form) - size + 1))
