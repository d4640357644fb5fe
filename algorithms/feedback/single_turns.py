"""Feedback on single turns, for the baselines that multi-turn methods are measured against.

Two answers are given at the same point of the same conversation (`collect(..., branch_at=...)`), an annotator says
which is better, and a reward model learns to score an answer after what was said before it. Single-turn RLHF maximises
that score turn by turn (`PPO(over="turn", reward="turns", discount=0.0)` with `online(turn_reward=...)`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from polyturn.envs.preference import Annotator, Preference
from polyturn.envs.trajectory import Group, Trajectory

Look = Literal["now", "end"]


def upto(trajectory: Trajectory, turns: int) -> Trajectory:
    """The conversation as it was after the agent's first `turns` turns, without what came later.

    What the environment noted of the last of them (`info`) stands for the whole. What it answered is left out, so that
    the last words are the agent's.

    Raises:
        ValueError: It has fewer turns, or none were asked for.
    """
    if not 1 <= turns <= len(trajectory.turns):
        raise ValueError(f"upto: expected 1 to {len(trajectory.turns)} turns, got {turns}")
    kept = trajectory.turns[:turns]
    return replace(
        trajectory,
        turns=kept,
        final_observation="",
        terminated=True,
        truncated=False,
        info={**trajectory.info, **kept[-1].info},
        segment_starts=tuple(start for start in trajectory.segment_starts if start < turns),
    )


def turn_feedback(groups: Sequence[Group], judge: Annotator, *, look: Look) -> list[tuple[Group, Preference]]:
    """Which answer at the branching point was better: as `fit` takes it for a reward model of single turns.

    Args:
        groups: Branched: all members of one share everything before turn `branched_at`; of a tree, each turn is one.
        judge: Compares conversations.
        look: "now": the judge sees the conversations up to the answer and its immediate effect, single-turn RLHF on
            rewards (arXiv 2405.14655, section 6); "end": it sees how they went on to the end, played by the agent
            that collected them, single-turn RLHF on values.

    Returns:
        The conversations cut after the turn that was compared, and the preference. Groups with fewer than two valid
        members are left out.

    Raises:
        ValueError: A group that was not branched.
    """
    found = []
    for group in itertools.chain.from_iterable(each.branches() if each.parted else [each] for each in groups):
        if group.branched_at is None:
            raise ValueError("turn_feedback: expected branched groups, got one from a start; collect(branch_at=...)")
        after = group.branched_at + 1
        whole = [member for member in group if member.valid and len(member.turns) >= after]
        if len(whole) < 2:
            continue
        cut = Group(tuple(upto(member, after) for member in whole), group.branched_at)
        found.append((cut, judge(cut if look == "now" else Group(tuple(whole), group.branched_at))))
    return found
