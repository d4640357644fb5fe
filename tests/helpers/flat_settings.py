"""`train`, `iterate` and `online` with their settings as plain keyword arguments, for tables of cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from polyturn.agents import CollectOptions
from polyturn.algorithms import TrainOptions


def flat(given: Mapping[str, Any], *, train: bool = False, collect: bool = False) -> dict[str, Any]:
    """The same arguments, with the fields of `TrainOptions` as `options` and those of `CollectOptions` as `collect`."""
    left, made = dict(given), {}
    kinds: list[tuple[str, type]] = [("options", TrainOptions)] * train + [("collect", CollectOptions)] * collect
    for name, kind in kinds:
        known = {field.name for field in fields(kind)} - ({"seed"} if collect else set())  # the run's own seed
        made[name] = kind(**{key: left.pop(key) for key in list(left) if key in known})
    return {**left, **made}
