"""Which trajectories of a group a method compares: random pairs by outcome, winners, and rows enough for them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from polyturn.envs.preference import Preference
from polyturn.envs.trajectory import Group, Trajectory

Pairs = NDArray[np.int64]


class ExampleError(ValueError):
    """An example that must not be learned from: an invalid or empty trajectory, or numbers that do not fit."""


def _empty() -> NDArray[np.float32]:
    return np.zeros(0, np.float32)


@dataclass(frozen=True, eq=False)
class Example:
    """One group's share of a batch: some of its trajectories, and what is said about them.

    Attributes:
        trajectories: The N rows, all from the identical start.
        pairs: `[P, 2]` row indices (winner, loser); with soft labels (first, second).
        probability: `[P]` P(first beats second); left empty: 1 for all, hard labels.
        weight: `[P]` how much each pair counts; left empty: 1.
        scores: `[N]` unary feedback, nan where there is none; left empty: nan.
        desirable: `[N]` 1 desirable, 0 undesirable, nan unknown; left empty: nan.

    Raises:
        ExampleError: A trajectory is invalid, has no turns or a turn without tokens, rows start differently, or shapes
            do not fit.
    """

    trajectories: tuple[Trajectory, ...]
    pairs: Pairs = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    probability: NDArray[np.float32] = field(default_factory=_empty)
    weight: NDArray[np.float32] = field(default_factory=_empty)
    scores: NDArray[np.float32] = field(default_factory=_empty)
    desirable: NDArray[np.float32] = field(default_factory=_empty)

    def __post_init__(self) -> None:
        rows = tuple(self.trajectories)
        pairs = np.asarray(self.pairs, np.int64).reshape(-1, 2)
        if not rows:
            raise ExampleError("Example: expected at least one trajectory, got none")
        for index, row in enumerate(rows):
            if not row.valid:
                raise ExampleError(
                    f"Example: trajectory {index} is invalid ({row.error or 'it never ended'}) and must not reach a "
                    "loss; select from group.valid"
                )
            # One turn without tokens would be missing from what the model reads, and put later turns out of step.
            if (empty := next((h for h, turn in enumerate(row.turns) if not len(turn.action_ids)), None)) is not None:
                raise ExampleError(
                    f"Example: trajectory {index} holds no action tokens in turn {empty}; collect with an agent that "
                    "works on tokens, or give a text its tokens with policy.chat.written(trajectory)"
                )
            if not row.turns:
                raise ExampleError(f"Example: trajectory {index} holds no turn, so nothing that an agent wrote")
            if row.start != rows[0].start:
                raise ExampleError("Example: expected trajectories with identical starts; make one example per group")
        if len(pairs) and (pairs.min() < 0 or pairs.max() >= len(rows) or bool(np.any(pairs[:, 0] == pairs[:, 1]))):
            raise ExampleError(f"Example.pairs: expected two different rows below {len(rows)}, got {pairs.tolist()}")
        object.__setattr__(self, "trajectories", rows)
        object.__setattr__(self, "pairs", pairs)
        for name, size, default in (
            ("probability", len(pairs), 1.0),
            ("weight", len(pairs), 1.0),
            ("scores", len(rows), np.nan),
            ("desirable", len(rows), np.nan),
        ):
            value = np.asarray(getattr(self, name), np.float32)
            value = value if len(value) else np.full(size, default, np.float32)
            if value.shape != (size,):
                raise ExampleError(f"Example.{name}: expected [{size}], got shape {value.shape}")
            object.__setattr__(self, name, value)
        if wrong := [float(label) for label in self.desirable if label not in (0, 1) and not np.isnan(label)]:
            raise ExampleError(
                f"Example.desirable: expected 1 (desirable), 0 (undesirable) or nan (unknown), got {wrong[0]:g}; put "
                "graded feedback into scores"
            )
        if bool(np.any(~((self.probability >= 0) & (self.probability <= 1)))):
            raise ExampleError("Example.probability: expected numbers in [0, 1]; leave out unjudged pairs")

    @property
    def lengths(self) -> NDArray[np.int64]:
        """`[N]` tokens of each trajectory that are read at once: those of its longest segment."""
        return np.array([max(row.segment_lengths) for row in self.trajectories], np.int64)

    def keep(self, rows: NDArray[np.bool_]) -> Example | None:
        """The example of only the rows marked `[N]`; where there were pairs, of only those still in one."""
        pairs = np.asarray(rows[self.pairs].all(1))
        if len(self.pairs):
            rows = np.isin(np.arange(len(rows)), self.pairs[pairs])
        if not rows.any():
            return None
        return Example(
            tuple(row for row, kept in zip(self.trajectories, rows, strict=True) if kept),
            (np.cumsum(rows) - 1)[self.pairs[pairs]],
            self.probability[pairs],
            self.weight[pairs],
            self.scores[rows],
            self.desirable[rows],
        )


def pairs_by_outcome(
    group: Group,
    preference: Preference,
    rng: np.random.Generator,
    *,
    pairs_per_group: int | None = 1,
    drop_error_winners: bool = True,
) -> Pairs:
    """Random (winner, loser) pairs among the group's valid members; one a prompt in M-DPO (arXiv 2409.02392).

    Args:
        group: The trajectories that were compared.
        preference: `[K, K]` over all members of `group`; ties and unasked pairs are never drawn.
        rng: Where the choice comes from.
        pairs_per_group: How many, without repetition; None for every pair.
        drop_error_winners: Leave out winners whose last observation is a tool error: right answers that ignored it.

    Returns:
        `[P, 2]` member indices, in index order; P is 0 where nothing can be compared.

    Raises:
        ValueError: The preference is not over this group.
    """
    _check_size(group, preference)
    usable = usable_members(group)
    allowed = [
        (int(winner), int(loser))
        for winner, loser in preference.pairs()
        if usable[winner] and usable[loser] and not (drop_error_winners and ends_in_error(group[winner]))
    ]
    pairs = np.array(allowed, np.int64).reshape(-1, 2)
    if pairs_per_group is None or len(pairs) <= pairs_per_group:
        return pairs
    chosen = rng.choice(len(pairs), size=pairs_per_group, replace=False)
    return pairs[np.sort(chosen)]


def judged_pairs(
    group: Group, preference: Preference, rng: np.random.Generator, *, pairs_per_group: int | None = None
) -> Pairs:
    """Pairs of valid members that were compared, ties included, for methods that read the probability.

    Args:
        group: The trajectories that were compared.
        preference: `[K, K]` over all members of `group`.
        rng: Where the choice comes from.
        pairs_per_group: How many, without repetition; None for every pair.

    Returns:
        `[P, 2]` member indices, the lower first.

    Raises:
        ValueError: The preference is not over this group.
    """
    _check_size(group, preference)
    known, usable = ~np.isnan(preference.matrix), usable_members(group)
    rows, columns = np.triu_indices(len(group), 1)
    allowed = [
        (int(i), int(j))
        for i, j in zip(rows, columns, strict=True)
        if (known[i, j] or known[j, i]) and usable[i] and usable[j]
    ]
    pairs = np.array(allowed, np.int64).reshape(-1, 2)
    if pairs_per_group is None or len(pairs) <= pairs_per_group:
        return pairs
    return pairs[np.sort(rng.choice(len(pairs), size=pairs_per_group, replace=False))]


def unary(group: Group, preference: Preference, *, scores: bool) -> NDArray[np.float64]:
    """`[K]` each member's score, or its win rate over usable ones; nan for unusable members and where nothing is known.

    Raises:
        ValueError: The preference is not over this group.
    """
    _check_size(group, preference)
    usable = usable_members(group)
    values = preference.scores if scores else _among(preference, usable).win_rate()
    assert values is not None
    return np.where(usable, values, np.nan)


def winners(
    group: Group, preference: Preference, rng: np.random.Generator, *, count: int | None, above: float | None
) -> Pairs:
    """Members worth imitating.

    Args:
        group: The trajectories that were compared.
        preference: Over all members of `group`.
        rng: Where the choice comes from.
        count: How many at most, drawn without repetition; None for all.
        above: Members whose score is greater than this win, so a group that is right throughout counts in full; with
            None the members with the highest win rate do, if it is above 1/2.

    Returns:
        `[W]` member indices in order; empty where no member won.

    Raises:
        ValueError: The preference is not over this group, or `above` is given and it has no scores.
    """
    _check_size(group, preference)
    if above is not None and preference.scores is None:
        raise ValueError("winners: expected a preference with scores to compare with `above`, got one without")
    rate = unary(group, preference, scores=above is not None)
    if bool(np.all(np.isnan(rate))):
        return np.zeros(0, np.int64)
    # Win rates are means, which come out differently by the order of their parts.
    best = exceeds(rate, above) if above is not None else (rate >= np.nanmax(rate) - 1e-9) & exceeds(rate, 0.5)
    members = np.flatnonzero(best).astype(np.int64)
    if count is not None and len(members) > count:
        members = np.sort(rng.choice(members, size=count, replace=False))
    return members


def against_opponents(group: Group, preference: Preference) -> Example | None:
    """The policy's members, each with its mean probability to beat the opponents it was compared with as its score.

    Members of the same agent and version as the first are the policy's, all others are opponents. Where all are the
    policy's (self-play) each has the other members for opponents.

    Returns:
        None where no valid member of the policy was compared.

    Raises:
        ValueError: The preference is not over this group.
    """
    _check_size(group, preference)
    mine, usable = own_members(group), usable_members(group)
    known = _among(preference, usable).matrix
    matrix = np.where(np.isnan(known), 1.0 - known.T, known)
    np.fill_diagonal(matrix, np.nan)
    if not mine.all():
        matrix[:, mine] = np.nan
    asked = (~np.isnan(matrix)).sum(1)
    rows = np.flatnonzero(mine & (asked > 0) & usable)
    if not len(rows):
        return None
    rate = np.nansum(matrix[rows], 1) / asked[rows]
    return Example(tuple(group[int(row)] for row in rows), scores=rate.astype(np.float32))


def usable_members(group: Group) -> NDArray[np.bool_]:
    """`[K]` members that can be learned from: valid, and with at least one action.

    An episode whose first prompt leaves no room for an answer is valid and has none: the agent was cut off, rightly,
    and there is no agent token to learn from.
    """
    return np.array([member.valid and len(member.turns) > 0 for member in group])


def exceeds(values: NDArray[np.float64], bound: float) -> NDArray[np.bool_]:
    """`[K]` whether each value is above `bound` by more than the rounding of a sum; False for nan."""
    with np.errstate(invalid="ignore"):
        return np.asarray(values - bound > 1e-12 * np.maximum(np.abs(values), abs(bound)))


def _among(preference: Preference, members: NDArray[np.bool_]) -> Preference:
    """The preference with only comparisons between these members known."""
    both = members[:, None] & members[None]
    return Preference(np.where(both, preference.matrix, np.nan), preference.source)


def own_members(group: Group) -> NDArray[np.bool_]:
    """`[K]` the policy's members: those of the same agent and version as the first. All others are opponents."""
    return np.array([(m.agent, m.policy_version) == (group[0].agent, group[0].policy_version) for m in group])


def ends_in_error(trajectory: Trajectory) -> bool:
    """Whether the last thing the environment said, before or after the last action, was a tool error.

    A turn's `info["tool_error"]` says what its action caused, which is the observation of the next turn.
    """
    return any(bool(turn.info.get("tool_error", False)) for turn in trajectory.turns[-2:])


def compare(group: Group, preference: Preference, pairs: Pairs, *, soft: bool = False) -> Example | None:
    """An example of exactly the members that `pairs` names; None without pairs.

    Args:
        group: The trajectories.
        preference: Over all members of `group`.
        pairs: `[P, 2]` member indices (winner, loser).
        soft: Keep P(winner beats loser) of the preference; otherwise the label is hard.
    """
    if not len(pairs):
        return None
    members, rows = np.unique(pairs, return_inverse=True)
    matrix = np.where(np.isnan(preference.matrix), 1.0 - preference.matrix.T, preference.matrix)
    return Example(
        tuple(group[int(member)] for member in members),
        rows.reshape(-1, 2).astype(np.int64),
        probability=matrix[pairs[:, 0], pairs[:, 1]].astype(np.float32) if soft else _empty(),
        scores=_empty() if preference.scores is None else preference.scores[members].astype(np.float32),
    )


def _check_size(group: Group, preference: Preference) -> None:
    if len(preference) != len(group):
        raise ValueError(f"expected a preference over {len(group)} members, got one over {len(preference)}")
