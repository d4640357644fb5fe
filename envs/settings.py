"""Settings as values: frozen dataclasses that are checked when made, recorded with a run, and compared on resume.

Help texts of the command line come from the `Attributes:` section of such a class's docstring, so that each setting is
described once.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
import numbers
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from polyturn.envs.suggest import did_you_mean

_S = TypeVar("_S")


def check_range(what: str, value: float, low: float, high: float = math.inf, *, above: bool = False) -> None:
    """Raises ValueError unless `value` is a finite number in [low, high], or in (low, high] with `above`."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if number and low == -math.inf and value <= high:
        return
    if not number or not (low < value if above else low <= value) or not value <= high:
        wanted = f"a number above {low:g}" if above else "a finite number" if low == -math.inf else f"{low:g} or more"
        if high < math.inf:
            wanted = f"a number in {'(' if above else '['}{low:g}, {high:g}]"
        raise ValueError(f"{what}: expected {wanted}, got {value!r}")


def check_count(what: str, value: int | None, low: int = 1, *, optional: bool = False) -> None:
    """Raises ValueError unless `value` is a whole number of at least `low`, or None with `optional`."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < low:
        wanted = f"a whole number of at least {low}{', or None' if optional else ''}"
        raise ValueError(f"{what}: expected {wanted}, got {value!r}")


def check_flag(what: str, value: object) -> None:
    """Raises ValueError unless `value` is True or False: a text such as "no" would count as True."""
    if not isinstance(value, bool):
        raise ValueError(f"{what}: expected True or False, got {value!r}")


def check_choice(what: str, value: str, choices: Iterable[str]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    known = tuple(choices)
    if value not in known:
        hint = did_you_mean(value, known) if isinstance(value, str) else ""
        raise ValueError(f"{what}: expected one of {', '.join(known)}, got {value!r}.{hint}")


def check_reset_options(env: object, options: Mapping[str, Any] | None, known: Iterable[str] = ()) -> None:
    """Raises ValueError for an option of `reset` that an environment does not have.

    Args:
        env: The environment, whose class messages name.
        options: What `reset` was given.
        known: Names that it has.
    """
    names = tuple(known)
    for name in options or {}:
        if name not in names:
            hint = did_you_mean(name, names) if isinstance(name, str) else ""
            raise ValueError(
                f"{type(env).__name__}: options of reset: expected {', '.join(map(repr, names)) or 'none'}, got "
                f"{name!r}.{hint}"
            )


def record(settings: object, *, without: Iterable[str] = ()) -> dict[str, Any]:
    """A settings dataclass as JSON values; functions by their name, which is the same in every process."""
    left_out = set(without)
    names = [each.name for each in dataclasses.fields(settings) if each.name not in left_out]  # type: ignore[arg-type]
    return {name: _plain(getattr(settings, name)) for name in names}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__name__, **record(value)}
    name = getattr(value, "__qualname__", None) or getattr(value, "name", None)
    shown = str(name) if isinstance(name, str) else repr(value)
    # An object's default repr holds its address, which is another one in every process.
    return type(value).__qualname__ if " at 0x" in shown else shown


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two records, each as "name was X, is Y"."""
    names = list(dict.fromkeys([*now, *then]))
    return [f"{name} was {then.get(name)!r}, is {now.get(name)!r}" for name in names if then.get(name) != now.get(name)]


def help_of(settings: type) -> dict[str, str]:
    """The description of each field, from the class's docstring."""
    _, _, section = inspect.cleandoc(settings.__doc__ or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if line and not line.startswith(" "):  # the next section
            break
        if match := re.match(r"    (\w+): (.*)", line):
            name, found[match[1]] = match[1], match[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found


def add_arguments(
    parser: argparse.ArgumentParser, settings: type, names: Iterable[str], *, defaults: Mapping[str, Any] | None = None
) -> None:
    """Adds an option for each named field, in the order given; what the user leaves out is None.

    Args:
        parser: Where to.
        settings: A settings dataclass.
        names: Its fields.
        defaults: What the help shows in place of the class's own defaults.
    """
    hints, texts = get_type_hints(settings), help_of(settings)
    own = {each.name: each.default for each in dataclasses.fields(settings)}
    for name in names:
        default = (defaults or {}).get(name, own[name])
        shown = "" if default in (None, dataclasses.MISSING, False) else f" (default {default})"
        text = (texts[name].rstrip(".") + shown).replace("%", "%%").replace("`", "")
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, dest=name, default=None, help=text[0].lower() + text[1:], **_argument(hints[name]))


def _argument(hint: Any) -> dict[str, Any]:
    """What argparse must know of a field's type."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(each for each in get_args(hint) if each is not type(None))
    if hint is bool:
        return {"action": "store_true"}
    if get_origin(hint) is Literal:
        return {"choices": list(get_args(hint))}
    return {"type": hint}


def from_arguments(settings: type[_S], args: argparse.Namespace, names: Iterable[str], **more: Any) -> _S:
    """Settings from what the user gave; `more` holds what stands where the user gave nothing."""
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return settings(**{**more, **given})
