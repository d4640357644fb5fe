"""From a judge of two conversations to a preference over a group: one interface for every kind of judge.

A pair judge is asked "is the first better than the second?" for many pairs at once (so that one behind a server can
work on them together) and answers with probabilities; nan means that it did not or could not say.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from polyturn.envs.preference import Preference, Source
from polyturn.envs.trajectory import Group, Trajectory

Pair = tuple[Trajectory, Trajectory]


class PairJudge(Protocol):
    """Compares pairs of conversations."""

    def __call__(self, pairs: Sequence[Pair], /) -> Sequence[float] | NDArray[np.float64]:
        """`[P]` probabilities in [0, 1] that the first of each pair is better; 1/2 is a tie, nan unasked."""


@dataclass(frozen=True)
class Judged:
    """An `Annotator` made of a pair judge.

    Every pair of valid members is shown in both orders, and P(a beats b) is the mean of P(a, b) and 1 - P(b, a)
    (Shani et al. 2024, arXiv 2405.14655), which removes a preference for the first or second place. If either order
    remains unanswered, so does the pair: half an answer would bring the bias back. Invalid members are never asked
    about.

    Attributes:
        judge: Who compares.
        source: Recorded in the preference.
        both_orders: False asks once a pair, in index order: for judges that are antisymmetric already.

    Raises:
        ValueError: The judge gave another number of answers, or one outside [0, 1].
    """

    judge: PairJudge
    source: Source = "judge"
    both_orders: bool = True

    def __call__(self, group: Group) -> Preference:
        """`[K, K]` preference over the members."""
        valid = [index for index, member in enumerate(group) if member.valid]
        asked = list(itertools.combinations(valid, 2))
        pairs: list[Pair] = [(group[i], group[j]) for i, j in asked]
        if self.both_orders:
            pairs += [(group[j], group[i]) for i, j in asked]
        answers = np.asarray(self.judge(pairs) if pairs else [], np.float64)
        if answers.shape != (len(pairs),):
            raise ValueError(f"Judged: expected {len(pairs)} answers, one a pair, got shape {answers.shape}")
        if np.any((answers < 0) | (answers > 1)):
            raise ValueError("Judged: expected probabilities in [0, 1] or nan")
        if self.both_orders:
            answers = (answers[: len(asked)] + 1.0 - answers[len(asked) :]) / 2.0
        matrix = np.full((len(group), len(group)), np.nan)
        for (i, j), answer in zip(asked, answers, strict=True):
            matrix[i, j], matrix[j, i] = answer, 1.0 - answer
        return Preference(matrix, self.source)
