"""Trees: one episode of a group is played through, and others part from it at every one of its turns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from polyturn.agents.collecting.branching import SharedPrefix
from polyturn.agents.collecting.playing import Job
from polyturn.envs.trajectory import TREE, Trajectory


def branch_jobs(trunk: Job, played: Trajectory | None, branches: int) -> list[Job]:
    """What parts from an episode that was played: as many members at each of its turns.

    Args:
        trunk: The episode's job.
        played: The episode; None where it is still to be played.
        branches: Members a turn.
    """
    if played is None or not played.valid:
        return []
    name = played.info[TREE]["name"]
    return [
        replace(trunk, member=1 + turn * branches + place, branch_at=turn, kind="episode", slot=1 + place, tree=name)
        for turn in range(len(played.turns))
        for place in range(branches)
    ]


def trunk_prefix(trunk: Trajectory, turn: int) -> SharedPrefix:
    """What the members that part from an episode at a turn share."""
    kept = trunk.info[TREE]
    return SharedPrefix(
        asked=turn,
        agent=trunk.agent,
        version=trunk.policy_version,
        turns=trunk.turns[:turn],
        observation=trunk.turns[turn].observation,
        task_id=trunk.task_id,
        info=kept["info"],
        snapshot=kept["snapshots"][turn],
        messages=trunk.turns[turn].messages,
        tree=kept["name"],
    )


def tree_members(done: Iterable[tuple[tuple[int, int], Trajectory]], group: int) -> list[Trajectory]:
    """A group's members by group and member: the episode that was played through, then what parts from it, by turn."""
    return [played for (at, _), played in sorted(done, key=lambda each: each[0]) if at == group]
