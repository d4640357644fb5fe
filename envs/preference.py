"""Feedback on a group: a matrix of pairwise preferences, or unary scores; and judges of pairs, which make such a
matrix.

A pair judge is asked "is the first better than the second?" for many pairs at once (so that a served one can
work on them together) and answers with probabilities; nan means that it did not or could not say.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from polyturn.envs.returns import rounding, settled
from polyturn.envs.trajectory import Group, Trajectory

Matrix = NDArray[np.float64]
_TOLERANCE = 1e-9
_ROUNDING = 8 * float(np.finfo(np.float64).eps)
Source = Literal["oracle", "reward", "judge", "model", "human"]


@dataclass(frozen=True, eq=False)
class Preference:
    """The pairwise preferences of one group.

    Attributes:
        matrix: `[K, K]`, entry (i, j) is P(i beats j) in [0, 1]; nan where unasked. `matrix[i, j]` and
            `matrix[j, i]` add to 1 where both are known; the diagonal is 1/2 or nan.
        source: Where the preference comes from.
        scores: `[K]` unary feedback (for example the return), or None.

    Raises:
        ValueError: Wrong shape, a value outside [0, 1], an unknown source, or a pair whose two orders contradict each
            other.
    """

    matrix: Matrix
    source: Source
    scores: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if self.source not in get_args(Source):
            raise ValueError(f"Preference.source: expected one of {', '.join(get_args(Source))}, got {self.source!r}")
        matrix = np.array(self.matrix, np.float64)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"Preference.matrix: expected [K, K], got shape {matrix.shape}")
        known = ~np.isnan(matrix)
        if np.any((matrix[known] < 0) | (matrix[known] > 1)):
            raise ValueError("Preference.matrix: expected probabilities in [0, 1] or nan")
        both = known & known.T
        if not np.allclose((matrix + matrix.T)[both], 1.0, rtol=0.0, atol=_TOLERANCE):
            row, column = np.argwhere(both & ~np.isclose(matrix + matrix.T, 1.0, rtol=0.0, atol=_TOLERANCE))[0]
            raise ValueError(
                f"Preference.matrix: P({row} beats {column}) = {matrix[row, column]} and "
                f"P({column} beats {row}) = {matrix[column, row]} must add to 1; average the two orders first"
            )
        matrix.flags.writeable = False
        object.__setattr__(self, "matrix", matrix)
        if self.scores is not None:
            scores = np.array(self.scores, np.float64)
            if scores.shape != (matrix.shape[0],):
                raise ValueError(f"Preference.scores: expected [{matrix.shape[0]}], got shape {scores.shape}")
            scores.flags.writeable = False
            object.__setattr__(self, "scores", scores)

    def __len__(self) -> int:
        return int(self.matrix.shape[0])

    def pairs(self) -> NDArray[np.int64]:
        """`[P, 2]` index pairs (winner, loser) of every known comparison that is not a tie, in index order."""
        full = self._completed()
        # Both orders are compared, so that rounding within the tolerance can never make a pair beat each other.
        with np.errstate(invalid="ignore"):
            return np.argwhere(full > full.T + _TOLERANCE)

    def win_rate(self) -> NDArray[np.float64]:
        """`[K]` mean probability to beat the other members it was compared with; nan where there was none."""
        matrix = self._completed()
        np.fill_diagonal(matrix, np.nan)
        count = np.sum(~np.isnan(matrix), axis=1)
        return np.where(count > 0, np.nansum(matrix, axis=1) / np.maximum(count, 1), np.nan)

    def _completed(self) -> Matrix:
        """`[K, K]`: a comparison asked in one order only fills in the other."""
        return np.where(np.isnan(self.matrix), 1.0 - self.matrix.T, self.matrix)


Annotator = Callable[[Group], Preference]
"""Anything that turns a group into a preference over its members."""


def by_score(scores: NDArray[np.float64], *, source: Source = "reward", margin: float = 0.0) -> Preference:
    """Prefers the higher score; a difference of at most `margin` is a tie (1/2); nan scores are never compared.

    Differences within rounding (0.1 + 0.2 against 0.3) are ties too, and the preference's scores are then equal.

    Args:
        scores: `[K]`, higher is better; infinite ones are allowed.
        source: Where the scores come from.
        margin: Largest difference that is still a tie.

    Raises:
        ValueError: A negative margin, or scores of another shape.

    Examples:
        >>> import numpy as np
        >>> from polyturn.envs import by_score
        >>> preference = by_score(np.array([1.0, 0.0, 0.0]))
        >>> preference.pairs().tolist()  # (winner, loser); the tie is no pair
        [[0, 1], [0, 2]]
        >>> preference.win_rate().tolist()
        [1.0, 0.25, 0.25]
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1:
        raise ValueError(f"by_score: expected scores [K], got shape {scores.shape}")
    if not margin >= 0:
        raise ValueError(f"by_score: expected margin >= 0, got {margin}")
    scores = settled(scores)
    row, column = scores[:, None], scores[None, :]
    with np.errstate(invalid="ignore"):  # inf - inf; equal scores are ties before they are subtracted
        gap = np.abs(row - column)
        tie = (row == column) | (gap <= margin + (_ROUNDING * np.maximum(np.abs(row), np.abs(column)) if margin else 0))
    matrix = np.where(tie, 0.5, (row > column).astype(np.float64))
    matrix[np.isnan(row) | np.isnan(column)] = np.nan
    return Preference(matrix, source, scores)


def by_return(group: Group) -> Preference:
    """Prefers the trajectory with the higher total reward; invalid members are never compared.

    Totals that differ by no more than the rounding in their rewards are equal: a tie.
    """
    totals = np.array([member.total_reward if member.valid else np.nan for member in group], np.float64)
    slack = np.array([rounding(turn.reward for turn in member.turns) for member in group], np.float64)
    totals[np.abs(totals) <= slack] = 0.0  # what cancels is neither above nor below 0
    return by_score(settled(totals, slack))


@dataclass(frozen=True)
class AtBranches:
    """An `Annotator` of trees: only members that part at the same turn are compared, so each pair is about one step.

    In a tree (`collect(branch_at="every")`) the trunk and what parts from it at a turn differ from that turn on: what
    the rest of the episode came to says which of the two steps was better. Pairs that part at different turns are left
    out. Groups that are no tree are compared as `annotate` does.

    Attributes:
        annotate: Compares the members.
    """

    annotate: Annotator = by_return

    def __call__(self, group: Group) -> Preference:
        """`[K, K]` preference over the members, nan for pairs that do not part at one turn."""
        whole, parted = self.annotate(group), group.parted
        if not parted:
            return whole
        same = np.array([[a == b or None in (a, b) for b in parted] for a in parted])
        return Preference(np.where(same, whole.matrix, np.nan), whole.source, whole.scores)


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
        judge: The pair judge.
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
