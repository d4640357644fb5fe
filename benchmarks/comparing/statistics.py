"""Paired differences: their intervals and tests, exact where the outcome is a success on one episode a task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from polyturn.envs.outcomes import wilson

Test = Literal["exact McNemar", "sign-flip permutation"]
_RESAMPLES = 9999


@dataclass(frozen=True)
class Difference:
    """What a paired comparison says.

    Attributes:
        first: Mean of the first over the tasks that both have.
        second: Mean of the second.
        value: `second - first`.
        low: Lower end of its 95% interval; nan where there is none.
        high: Upper end.
        tasks: Number of pairs.
        better: Tasks on which the second is better.
        worse: Tasks on which it is worse.
        p: Two-sided p-value of no difference; nan for no pairs.
        test: Which test gave it.
    """

    first: float
    second: float
    value: float
    low: float
    high: float
    tasks: int
    better: int
    worse: int
    p: float
    test: Test

    @property
    def ties(self) -> int:
        """Tasks without a difference."""
        return self.tasks - self.better - self.worse


def paired(first: Sequence[float], second: Sequence[float], *, binary: bool) -> Difference:
    """Compares two policies on the same tasks.

    Args:
        first: `[n]` one value a task: an outcome, or the mean over a task's samples.
        second: `[n]` the other's, in the same order.
        binary: Every value is one success (1) or failure (0). Then the test is exact McNemar's (binomial over the
            tasks on which the two differ) and the interval Newcombe's for paired proportions (Statistics in Medicine
            17, 1998, page 2635, method 10). Otherwise the interval is the bias-corrected accelerated bootstrap over
            tasks, the test a sign-flip permutation; both with a fixed seed.

    Raises:
        ValueError: Unequal lengths, no pair, or values that are not finite, or not 0 or 1 where `binary`.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"paired: expected two equally long, non-empty lists, got shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("paired: expected finite values")
    if binary and not np.isin(np.concatenate([a, b]), (0.0, 1.0)).all():
        raise ValueError("paired: expected zeros and ones for binary outcomes")
    differences = b - a
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    low, high = _newcombe(a, b) if binary else _bootstrap(differences)
    return Difference(
        first=float(a.mean()),
        second=float(b.mean()),
        value=float(differences.mean()),
        low=low,
        high=high,
        tasks=len(a),
        better=better,
        worse=worse,
        p=_mcnemar(better, worse) if binary else _sign_flips(differences),
        test="exact McNemar" if binary else "sign-flip permutation",
    )


def _mcnemar(better: int, worse: int) -> float:
    """Two-sided binomial test that a task on which the two differ falls to either with probability 1/2."""
    differing, least = better + worse, min(better, worse)
    tail: float = sum(math.comb(differing, k) for k in range(least + 1)) / 2**differing
    return min(1.0, 2.0 * tail)


def _newcombe(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    count = len(a)
    first, second = wilson(float(a.sum()), count), wilson(float(b.sum()), count)
    both, neither = float((a * b).sum()), float(((1 - a) * (1 - b)).sum())
    only_first, only_second = float((a * (1 - b)).sum()), float(((1 - a) * b).sum())
    product = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    covariance = both * neither - only_first * only_second
    if covariance > 0:
        covariance = max(covariance - count / 2, 0.0)
    phi = covariance / math.sqrt(product) if product else 0.0
    value = second.value - first.value
    down = (second.value - second.low, first.high - first.value)
    up = (second.high - second.value, first.value - first.low)
    low = value - math.sqrt(max(0.0, down[0] ** 2 - 2 * phi * down[0] * down[1] + down[1] ** 2))
    high = value + math.sqrt(max(0.0, up[0] ** 2 - 2 * phi * up[0] * up[1] + up[1] ** 2))
    return max(-1.0, low), min(1.0, high)


def _bootstrap(differences: NDArray[np.float64]) -> tuple[float, float]:
    if len(differences) < 2 or np.ptp(differences) == 0:
        return math.nan, math.nan  # one task, or tasks that all say the same, show no spread
    from scipy import stats  # type: ignore[import-untyped]  # slow to import, and only needed here

    found = stats.bootstrap(
        (differences,), np.mean, n_resamples=_RESAMPLES, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(found.low), float(found.high)


def _sign_flips(differences: NDArray[np.float64]) -> float:
    """Share of sign patterns whose mean is at least as far from zero; all of them up to 12 tasks, else drawn."""
    count, seen = len(differences), abs(differences.mean())
    if count <= 12:
        signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * count)).reshape(count, -1).T
        return float((abs(signs @ differences) / count >= seen - 1e-12).mean())
    rng, beyond = np.random.default_rng(0), 0
    for _ in range(_RESAMPLES):
        beyond += abs((rng.integers(0, 2, count) * 2 - 1) @ differences) / count >= seen - 1e-12
    return (beyond + 1) / (_RESAMPLES + 1)
