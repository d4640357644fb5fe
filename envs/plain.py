"""What environments and agents report, as JSON values: what a store can hold, and every program can read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

# `json` of Python itself gives up at about 1,000; records of other programs nest a few levels.
_DEPTH = 100
# Python refuses to print integers of more decimal digits than 4,300.
_BITS = 14_000


def plain(value: Any, where: str = "info") -> Any:
    """A copy made of dictionaries, lists, text, numbers, booleans and None.

    Numpy's numbers become Python's, arrays and tuples lists, and keys that are numbers or booleans text, as in JSON.

    Args:
        value: What was reported.
        where: Its name in messages.

    Raises:
        ValueError: Something in it is no JSON value; the message says where it stands and what it is.
    """
    return _plain(value, where, 0)


def _plain(value: Any, where: str, depth: int) -> Any:
    if value is None or isinstance(value, bool | str):
        return value if value is None or isinstance(value, bool) else str(value)
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist(), where, depth) if value.dtype.kind in "biufU" else _refuse(value, where)
    if isinstance(value, int):
        return int(value) if value.bit_length() <= _BITS else _refuse(value, where, "an integer of thousands of digits")
    if isinstance(value, float):
        return float(value)
    if depth >= _DEPTH:
        return _refuse(value, where[:80], f"values nested more than {_DEPTH} deep")
    if isinstance(value, Mapping):
        made: dict[str, Any] = {}
        for key, each in value.items():
            name = _key(key, where)
            if name in made:
                raise ValueError(f"{where}: expected keys that differ as text, got two that are {name!r}")
            made[name] = _plain(each, f"{where}[{name!r}]", depth + 1)
        return made
    if isinstance(value, list | tuple):
        return [_plain(each, f"{where}[{index}]", depth + 1) for index, each in enumerate(value)]
    return _refuse(value, where)


def _key(key: Any, where: str) -> str:
    if isinstance(key, str):
        return str(key)
    if isinstance(key, bool | np.bool_):
        return "true" if key else "false"
    if isinstance(key, int | np.integer):
        return str(int(key))
    if isinstance(key, float | np.floating) and math.isfinite(key):
        return repr(float(key))
    raise ValueError(f"{where}: expected text as keys, got {key!r:.80} ({type(key).__name__})")


def _refuse(value: Any, where: str, what: str = "") -> Any:
    shown = what or (f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__)
    raise ValueError(
        f"{where}: expected a JSON value (text, a number, a boolean, None, or lists and dictionaries of them), got "
        f"{shown}; convert it, or leave it out"
    )
