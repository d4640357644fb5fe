"""What the suites' reports share: figures with intervals, and sentences that claim no more than the intervals allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyturn.benchmarks.running.suite import Outcome, mean_interval


def by_name(outcomes: Sequence[Outcome]) -> dict[str, list[Mapping[str, Any]]]:
    """The results of all seeds of a cell, by the cell's name."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.cell.name, []).append(outcome.result)
    return found


def plus_minus(values: Sequence[float], digits: int = 3) -> str:
    """ "mean ± half width" of the 95% Student interval over seeds; only the mean where there is one seed."""
    mean, low, high = mean_interval(values)
    return f"{mean:.{digits}f}" if not np.isfinite(high) else f"{mean:.{digits}f} ± {(high - low) / 2:.{digits}f}"


def paired_difference(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """a - b, seed by seed."""
    return [x - y for x, y in zip(a, b, strict=True)]


def side_of_zero(low: float, high: float) -> str:
    """Where an interval lies: "above" or "below" zero, or "open" where it contains zero."""
    return "above" if low > 0 else "below" if high < 0 else "open"


def compare(first: str, a: Sequence[float], second: str, b: Sequence[float], digits: int = 3) -> str:
    """One sentence on a - b, paired by seed: an ordering only where the 95% interval excludes 0."""
    mean, low, high = mean_interval(paired_difference(a, b))
    if not np.isfinite(high):
        return f"{first} minus {second}: {mean:+.{digits}f}, one seed, which supports no ordering."
    shown = f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    side = side_of_zero(low, high)
    if side == "open":
        return f"{first} and {second} are not distinguishable: {shown}."
    return f"{first} is {side} {second}: {shown}."
