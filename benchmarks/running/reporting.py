"""What the suites' reports share: figures with intervals, and sentences that claim no more than the intervals allow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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


def fall_from_peak(curves: Sequence[Sequence[float]]) -> list[float]:
    """How far each run ends below its highest point, `[runs, moments]` to one number a run.

    The highest point of a run is read at the moment at which the mean of the OTHER runs is highest, so that choosing
    the moment makes no fall by itself.

    Raises:
        ValueError: Fewer than two runs.
    """
    values = np.asarray(curves, np.float64)
    if len(values) < 2:
        raise ValueError(f"fall_from_peak: expected at least two runs, got {len(values)}")
    others = (values.sum(axis=0) - values).argmax(axis=1)
    return [float(run[place] - run[-1]) for run, place in zip(values, others, strict=True)]


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


class Comparison(NamedTuple):
    """Two quantities, paired run by run.

    Attributes:
        first: Name of the first.
        a: One value a run.
        second: Name of the second.
        b: The other's, in the same order.
    """

    first: str
    a: Sequence[float]
    second: str
    b: Sequence[float]


def compare_all(comparisons: Sequence[Comparison], digits: int = 3) -> list[str]:
    """Sentences as `compare` writes, for comparisons that are read together.

    An ordering is claimed only where Holm's rule tells the two apart at 5% for all of the comparisons together; the
    interval is the one of a single comparison.
    """
    verdicts = told_apart([paired_p(paired_difference(each.a, each.b)) for each in comparisons])
    text = []
    for (first, a, second, b), apart in zip(comparisons, verdicts, strict=True):
        sentence = compare(first, a, second, b, digits)
        if not apart and " are not distinguishable" not in sentence and "one seed" not in sentence:
            shown = sentence.rpartition(": ")[2]
            sentence = f"{first} and {second} are not told apart once all {len(comparisons)} are counted: {shown}"
        text.append(sentence)
    return text


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided p-value of a mean of 0, by Student's t; nan for fewer than two differences."""
    if len(differences) < 2:
        return math.nan
    from scipy import stats  # type: ignore[import-untyped]  # slow to import, and only needed here

    array = np.asarray(differences, np.float64)
    spread = float(array.std(ddof=1)) / len(array) ** 0.5
    mean = abs(float(array.mean()))
    if spread == 0.0:
        return 0.0 if mean > 0.0 else 1.0
    return float(2.0 * stats.t.sf(mean / spread, len(array) - 1))


def told_apart(p: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which of several comparisons are significant at a level that holds for all of them together.

    Holm's step-down rule (Scandinavian Journal of Statistics 6, 1979, page 65); nan counts as not significant.
    """
    order = sorted(range(len(p)), key=lambda at: math.inf if math.isnan(p[at]) else p[at])
    found = [False] * len(p)
    for rank, at in enumerate(order):
        if not p[at] <= level / (len(p) - rank):
            break
        found[at] = True
    return found
