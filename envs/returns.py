"""Sums of rewards without rounding errors, and which differences between sums are rounding.

0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ in floating point, and neither episode was better. Rewards are therefore
summed exactly and rounded once (`math.fsum`), and two numbers that differ by no more than the rounding that is in the
rewards themselves are equal: 0.1 is no number that a computer has, so three of them are not to the last bit 0.3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

# Rounding of a reward, relative to its size: a few units in the last place, as of a short computation.
_ROUNDING = 8 * np.finfo(np.float64).eps


def total(rewards: Iterable[float]) -> float:
    """The sum, rounded once; nan or infinite where the rewards are, or where the sum is too large."""
    values = list(rewards)
    try:
        return math.fsum(values)
    except (ValueError, OverflowError):  # infinities of both signs; a sum beyond the largest number
        return float(sum(values))


def rounding(rewards: Iterable[float]) -> float:
    """How far the sum may be from what was meant; 0 for whole numbers, which are what they are."""
    inexact = [abs(value) for value in rewards if math.isfinite(value) and not value.is_integer()]
    return float(_ROUNDING) * total(inexact)


def at_least(value: float, bound: float) -> bool:
    """Whether `value` reaches `bound`, up to rounding."""
    return value >= bound or abs(value - bound) <= rounding((value, bound))


def settled(values: NDArray[np.float64], slack: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """The values with those that differ by rounding made equal, so that every comparison finds them equal.

    Args:
        values: `[K]`; nan and infinite ones stay as they are.
        slack: `[K]` how far each may be from what was meant; default a few units in the last place.

    Returns:
        `[K]`: of values that are equal up to rounding all have the lowest.
    """
    given = np.asarray(values, np.float64)
    slack = np.array([rounding((value,)) for value in given.tolist()]) if slack is None else slack
    made = given.copy()
    order = [int(index) for index in np.argsort(given, kind="stable") if math.isfinite(given[index])]
    for before, here in itertools.pairwise(order):
        if given[here] - given[before] <= slack[here] + slack[before]:
            made[here] = made[before]
    return made
