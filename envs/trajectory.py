"""What an episode leaves behind: turns, trajectories, and groups of trajectories that may be compared.

Everything here is text and numpy arrays. Tokens and log-probabilities are kept exactly as they were sampled;
nothing in this project ever tokenizes an action a second time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

TokenIds = NDArray[np.int32]
Logps = NDArray[np.float32]


class GroupError(ValueError):
    """Trajectories that do not start from the identical state were put into one group."""


@dataclass(frozen=True, eq=False)
class Turn:
    """One exchange: what the environment said and what the agent answered.

    Attributes:
        observation: Text from the environment that the agent saw before acting.
        action: Text the agent wrote.
        reward: Reward of this step.
        context_ids: `[C]` int32, tokens added to the agent's context before this action: the observation and the
            chat template's headers. Empty for agents that do not work on tokens.
        action_ids: `[A]` int32, tokens of the action exactly as sampled, the end-of-turn token included if sampled.
        logps: `[A]` float32, log-probability in nats of each action token under the distribution it was drawn from
            (after temperature and truncation, if any).
        info: What the environment reported for this step; JSON values only.
    """

    observation: str
    action: str
    reward: float = 0.0
    context_ids: TokenIds = field(default_factory=lambda: np.zeros(0, np.int32))
    action_ids: TokenIds = field(default_factory=lambda: np.zeros(0, np.int32))
    logps: Logps = field(default_factory=lambda: np.zeros(0, np.float32))
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, dtype in (("context_ids", np.int32), ("action_ids", np.int32), ("logps", np.float32)):
            array = np.asarray(getattr(self, name), dtype=dtype)
            if array.ndim != 1:
                raise ValueError(f"Turn.{name}: expected one dimension, got shape {array.shape}")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if len(self.logps) not in (0, len(self.action_ids)):
            raise ValueError(
                f"Turn.logps: expected one per action token ({len(self.action_ids)}) or none, got {len(self.logps)}"
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Turn) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]  # holds arrays and a mapping; compared by value, never a key

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary that `from_json` reads back without loss."""
        return {
            "observation": self.observation,
            "action": self.action,
            "reward": self.reward,
            "context_ids": self.context_ids.tolist(),
            "action_ids": self.action_ids.tolist(),
            "logps": self.logps.tolist(),
            "info": dict(self.info),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Turn:
        """Reads what `to_json` wrote."""
        return cls(
            observation=data["observation"],
            action=data["action"],
            reward=data["reward"],
            context_ids=np.asarray(data["context_ids"], np.int32),
            action_ids=np.asarray(data["action_ids"], np.int32),
            logps=np.asarray(data["logps"], np.float32),
            info=data["info"],
        )


@dataclass(frozen=True)
class Trajectory:
    """The turns of one episode of one agent.

    An episode that failed for reasons outside the agent (sandbox lost, server down) carries its `error`, is not
    `valid`, and must never reach a loss or an average: it is not a zero reward.

    Attributes:
        env_id: Registered id of the environment.
        seed: Seed the environment was reset with; together with `env_id` and `env_options` it fixes the start.
        turns: The exchanges in order.
        task_id: Which problem or topic of the environment this was ("" where there is only one).
        agent: Name of who acted.
        policy_version: Which weights acted, for example "iteration-2" ("" for agents without weights).
        member: Position in its group; together with the run's seed it fixes the agent's random numbers.
        final_observation: What the environment said after the last action.
        terminated: The environment reached an end of its own.
        truncated: A limit ended the episode.
        error: Why the episode failed, or None.
        env_options: Keyword arguments the environment was made with; JSON values only.
        info: The environment's info at reset updated by its info at the end; JSON values only.
    """

    env_id: str
    seed: int
    turns: tuple[Turn, ...]
    task_id: str = ""
    agent: str = ""
    policy_version: str = ""
    member: int = 0
    final_observation: str = ""
    terminated: bool = False
    truncated: bool = False
    error: str | None = None
    env_options: Mapping[str, Any] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "turns", tuple(self.turns))

    @property
    def valid(self) -> bool:
        """Whether the episode may be learned from and counted: it ended, and nothing outside the agent failed."""
        return self.error is None and (self.terminated or self.truncated)

    @property
    def total_reward(self) -> float:
        """Undiscounted sum of the rewards; meaningless unless `valid`."""
        return float(sum(turn.reward for turn in self.turns))

    @property
    def start(self) -> tuple[str, int, str, str]:
        """What two trajectories must share to be comparable: environment, its options, seed, and task."""
        options = json.dumps(dict(self.env_options), sort_keys=True, default=str)
        return (self.env_id, self.seed, self.task_id, options)

    @property
    def tokens(self) -> tuple[TokenIds, NDArray[np.int16]]:
        """The whole episode as tokens.

        Returns:
            `ids [T]` int32, and `turn [T]` int16: the index of the turn whose action wrote the token, -1 where the
            agent did not write it (observations, template headers).
        """
        ids: list[TokenIds] = []
        owner: list[NDArray[np.int16]] = []
        for index, turn in enumerate(self.turns):
            ids += [turn.context_ids, turn.action_ids]
            owner += [np.full(len(turn.context_ids), -1, np.int16), np.full(len(turn.action_ids), index, np.int16)]
        if not ids:
            return np.zeros(0, np.int32), np.zeros(0, np.int16)
        return np.concatenate(ids), np.concatenate(owner)

    def messages(self) -> list[dict[str, str]]:
        """The conversation as chat messages: observations as "user", actions as "assistant"."""
        result: list[dict[str, str]] = []
        for turn in self.turns:
            result.append({"role": "user", "content": turn.observation})
            result.append({"role": "assistant", "content": turn.action})
        return result

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary that `from_json` reads back without loss."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "turns"}
        data["env_options"], data["info"] = dict(self.env_options), dict(self.info)
        return data | {"turns": [turn.to_json() for turn in self.turns]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trajectory:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: A field is missing or unknown; the message names it.
        """
        known = set(cls.__dataclass_fields__)
        if unknown := set(data) - known:
            raise ValueError(f"Trajectory: unknown fields {sorted(unknown)}; this version knows {sorted(known)}")
        if missing := {"env_id", "seed", "turns"} - set(data):
            raise ValueError(f"Trajectory: missing fields {sorted(missing)}")
        return cls(**{**data, "turns": tuple(Turn.from_json(turn) for turn in data["turns"])})


@dataclass(frozen=True)
class Group:
    """Trajectories that start from the identical state: the unit of comparison.

    Raises:
        GroupError: The members differ in environment, options, seed or task, or there are none; or, with
            `branched_at=k`, their first k turns differ.
    """

    trajectories: tuple[Trajectory, ...]
    branched_at: int | None = None

    def __post_init__(self) -> None:
        members = tuple(self.trajectories)
        object.__setattr__(self, "trajectories", members)
        if not members:
            raise GroupError("Group: expected at least one trajectory, got none")
        names = ("environment", "seed", "task", "environment options")
        for member in members[1:]:
            for name, mine, first in zip(names, member.start, members[0].start, strict=True):
                if mine != first:
                    raise GroupError(
                        f"Group: expected identical starts, got {name} {first!r} and {mine!r}; "
                        "put trajectories with different starts into different groups"
                    )
        if self.branched_at is not None:
            shared = members[0].turns[: self.branched_at]
            if any(len(m.turns) < self.branched_at or m.turns[: self.branched_at] != shared for m in members):
                raise GroupError(f"Group: expected members that share their first {self.branched_at} turns")

    def __len__(self) -> int:
        return len(self.trajectories)

    def __iter__(self) -> Iterator[Trajectory]:
        return iter(self.trajectories)

    def __getitem__(self, index: int) -> Trajectory:
        return self.trajectories[index]

    @property
    def valid(self) -> Group | None:
        """The group of its valid members, or None if no member is valid."""
        kept = tuple(member for member in self.trajectories if member.valid)
        return Group(kept, self.branched_at) if kept else None


def group_by_start(trajectories: Sequence[Trajectory]) -> list[Group]:
    """Gathers trajectories into groups by identical start, in order of first appearance."""
    buckets: dict[tuple[str, int, str, str], list[Trajectory]] = {}
    for trajectory in trajectories:
        buckets.setdefault(trajectory.start, []).append(trajectory)
    return [Group(tuple(members)) for members in buckets.values()]

