"""Records of episodes: turns, trajectories, and groups of trajectories that may be compared.

Everything here is text and numpy arrays. Tokens and log-probabilities are kept exactly as they were sampled;
nothing in this project ever tokenizes an action a second time.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyturn.envs.returns import total

TokenIds = NDArray[np.int32]
Logps = NDArray[np.float32]

Start = tuple[str, int, str, str, int | None]
"""What comparable trajectories share: environment, seed, task, environment options, number of the group."""

TREE = "tree"
"""Where the info of a tree's trunk says so: an episode that was played through and from which others part."""

_INT32 = np.iinfo(np.int32)
_NO_TOKENS: TokenIds = np.zeros(0, np.int32)
_NO_LOGPS: Logps = np.zeros(0, np.float32)
_NO_TOKENS.flags.writeable = _NO_LOGPS.flags.writeable = False


class GroupError(ValueError):
    """Trajectories that do not start from the identical state were put into one group."""


def _one_dimension(name: str, value: ArrayLike) -> NDArray[Any]:
    array = np.asarray(value)
    if array.ndim != 1:
        raise ValueError(f"Turn.{name}: expected one dimension, got shape {array.shape}")
    return array


def _frozen(given: NDArray[Any], array: NDArray[Any]) -> NDArray[Any]:
    """A read-only `array` that shares no memory the caller could still write to."""
    if array is given and array.flags.writeable:
        array = array.copy()
    array.flags.writeable = False
    return array


def _token_ids(name: str, value: ArrayLike) -> TokenIds:
    array = _one_dimension(name, value)
    if not array.size:
        return _NO_TOKENS
    if array.dtype == np.int32:
        return _frozen(array, array)
    # A silent wrap or rounding here would train on tokens that were never sampled.
    if array.dtype.kind not in "iu":
        raise ValueError(f"Turn.{name}: expected whole numbers, got {array.dtype}")
    if array.min() < _INT32.min or array.max() > _INT32.max:
        raise ValueError(f"Turn.{name}: expected token ids that fit int32, got {array.min()} to {array.max()}")
    return _frozen(array, array.astype(np.int32))


def _logps(name: str, value: ArrayLike) -> Logps:
    array = _one_dimension(name, value)
    if not array.size:
        return _NO_LOGPS
    if array.dtype.kind not in "fiu":
        raise ValueError(f"Turn.{name}: expected real numbers, got {array.dtype}")
    return _frozen(array, array.astype(np.float32, copy=False))


def _canonical(value: object) -> str:
    """Text that is equal for equal JSON values with keys in any order; nan equals nan."""
    return json.dumps(value, sort_keys=True, default=repr)


def _check_fields(owner: str, data: Mapping[str, Any], known: Iterable[str], needed: Iterable[str]) -> None:
    if unknown := set(data) - set(known):
        raise ValueError(f"{owner}: unknown fields {sorted(unknown)}; this version knows {sorted(known)}")
    if missing := set(needed) - set(data):
        raise ValueError(f"{owner}: missing fields {sorted(missing)}")


@dataclass(frozen=True, eq=False)
class Turn:
    """One exchange: what the environment said and what the agent answered.

    Two turns are equal if every field is, arrays and rewards bit by bit (so nan equals nan).

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
        messages: The observation as chat messages, where it is other than one message of a user: results of tools, for
            example, each with the role "tool". JSON values only.
        reply: The action as one message, where the agent's chat template takes it apart: `content`, perhaps
            `reasoning_content` and `tool_calls`. None: the action is text. JSON values only.
        forced: Which of the action's tokens were put there instead of sampled, such as the closing mark of a thought
            that reached its budget: their places, rising. They are not the agent's, and their log-probabilities are 0.

    Raises:
        ValueError: Text that is no `str`, tokens that are not whole numbers within int32, an array of another shape,
            or log-probs that do not match the action's tokens.
    """

    observation: str
    action: str
    reward: float = 0.0
    context_ids: TokenIds = field(default_factory=lambda: _NO_TOKENS)
    action_ids: TokenIds = field(default_factory=lambda: _NO_TOKENS)
    logps: Logps = field(default_factory=lambda: _NO_LOGPS)
    info: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Mapping[str, Any], ...] = ()
    reply: Mapping[str, Any] | None = None
    forced: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", tuple(self.messages))
        for name in ("observation", "action"):
            if not isinstance(text := getattr(self, name), str):
                raise ValueError(f"Turn.{name}: expected text (str), got {type(text).__name__}")
        object.__setattr__(self, "reward", float(self.reward))
        for name in ("context_ids", "action_ids"):
            object.__setattr__(self, name, _token_ids(name, getattr(self, name)))
        object.__setattr__(self, "logps", _logps("logps", self.logps))
        if len(self.logps) not in (0, len(self.action_ids)):
            raise ValueError(
                f"Turn.logps: expected one per action token ({len(self.action_ids)}) or none, got {len(self.logps)}"
            )
        object.__setattr__(self, "forced", tuple(operator.index(place) for place in self.forced))
        bounds = (-1, *self.forced, len(self.action_ids))
        if any(after <= before for before, after in itertools.pairwise(bounds)):
            raise ValueError(
                f"Turn.forced: expected rising places from 0 to {len(self.action_ids) - 1}, got {list(self.forced)}"
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Turn):
            return NotImplemented
        return (
            (self.observation, self.action) == (other.observation, other.action)
            and repr(self.reward) == repr(other.reward)
            and self.context_ids.tobytes() == other.context_ids.tobytes()
            and self.action_ids.tobytes() == other.action_ids.tobytes()
            and self.logps.tobytes() == other.logps.tobytes()
            and _canonical([dict(self.info), self.structure]) == _canonical([dict(other.info), other.structure])
        )

    @property
    def role(self) -> str:
        """Whose the observation is: "user", or "tool" for results of calls."""
        return str(self.messages[0]["role"]) if self.messages else "user"

    @property
    def calls(self) -> tuple[Mapping[str, Any], ...]:
        """Calls of tools in the action, each with `name` and `arguments`; none where the action is text."""
        return tuple(call["function"] for call in (self.reply or {}).get("tool_calls", ()))

    @property
    def structure(self) -> dict[str, Any]:
        """`messages`, `reply` and `forced` as JSON values, those that there are: turns of text have none."""
        found: dict[str, Any] = {"messages": [dict(message) for message in self.messages]} if self.messages else {}
        found |= {"forced": list(self.forced)} if self.forced else {}
        return found if self.reply is None else found | {"reply": dict(self.reply)}

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
            **self.structure,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Turn:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: A field is missing or unknown; the message names it.
        """
        _check_fields("Turn", data, cls.__dataclass_fields__, ("observation", "action"))
        return cls(**data)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The turns of one episode of one agent; equal to another if every field is.

    An episode that failed for reasons outside the agent (sandbox lost, server down) carries its `error`, is not
    `valid`, and must never reach a loss or an average: it is not a zero reward.

    Attributes:
        env_id: Registered id of the environment.
        seed: Seed the environment was reset with; together with `env_id` and `env_options` it fixes the start.
        turns: The exchanges in order.
        task_id: Which problem or topic of the environment this was ("" where there is only one).
        agent: Name of the agent that acted.
        policy_version: Which weights acted, for example "iteration-2" ("" for agents without weights).
        member: Position in its group; together with the run's seed it fixes the agent's random numbers.
        final_observation: What the environment said after the last action.
        terminated: The environment reached its own end.
        truncated: A limit ended the episode.
        error: Why the episode failed, or None.
        env_options: Keyword arguments the environment was made with; JSON values only.
        info: The environment's info at reset updated by its info at the end; JSON values only.
        segment_starts: Indices of turns, above 0 and rising, at which a new segment begins; see `segments`. Empty for
            an episode whose context only grew.
        group: Number of its group in the run that collected it, a part of the start; None where there was no such run.

    Raises:
        ValueError: Segments that begin at no turn.
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
    segment_starts: tuple[int, ...] = ()
    group: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "turns", tuple(self.turns))
        object.__setattr__(self, "segment_starts", tuple(operator.index(start) for start in self.segment_starts))
        bounds = (0, *self.segment_starts, max(len(self.turns), 1))
        if self.segment_starts and any(after <= before for before, after in itertools.pairwise(bounds)):
            raise ValueError(
                f"Trajectory.segment_starts: expected rising indices of turns from 1 to {len(self.turns) - 1}, got "
                f"{list(self.segment_starts)}"
            )
        # Environments hand out numpy scalars; plain numbers compare, print and serialise the same everywhere.
        for name in ("seed", "member"):
            object.__setattr__(self, name, operator.index(getattr(self, name)))
        if self.group is not None:
            object.__setattr__(self, "group", operator.index(self.group))
        for name in ("terminated", "truncated"):
            object.__setattr__(self, name, bool(getattr(self, name)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Trajectory):
            return NotImplemented
        return all(
            _canonical(dict(mine)) == _canonical(dict(theirs)) if isinstance(mine, Mapping) else mine == theirs
            for mine, theirs in ((getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__)
        )

    @property
    def valid(self) -> bool:
        """Whether the episode may be learned from and counted: it ended, and nothing outside the agent failed."""
        return self.error is None and (self.terminated or self.truncated)

    @property
    def total_reward(self) -> float:
        """Undiscounted sum of the rewards, rounded once; meaningless unless `valid`.

        Compare two of them with `polyturn.envs.by_return`, which knows which differences are rounding.
        """
        return total(turn.reward for turn in self.turns)

    @property
    def start(self) -> Start:
        """What two trajectories must share to be comparable: environment, seed, task, options, number of the group."""
        return (self.env_id, self.seed, self.task_id, _canonical(dict(self.env_options)), self.group)

    @property
    def segments(self) -> tuple[tuple[Turn, ...], ...]:
        """The turns of each segment.

        Within a segment tokens only grow: a turn's context follows the turn before it. A new segment begins where an
        agent program rewrote its history (a summary, a sub-agent, a parallel call): the first context of the segment
        holds all that the model then read, and none of it counts as the agent's. An action is in one segment only, so
        a sum over the agent's tokens of all segments counts each sampled token once.
        """
        bounds = (0, *self.segment_starts, len(self.turns))
        return tuple(self.turns[start:end] for start, end in itertools.pairwise(bounds))

    @property
    def segment_lengths(self) -> tuple[int, ...]:
        """Tokens of each segment."""
        return tuple(sum(len(turn.context_ids) + len(turn.action_ids) for turn in part) for part in self.segments)

    @property
    def tokens(self) -> tuple[TokenIds, NDArray[np.int16]]:
        """The whole episode as tokens, segment after segment (`segment_lengths` says where each ends).

        Returns:
            `ids [T]` int32, and `turn [T]` int16 (so at most 32,767 turns): the index of the turn whose action wrote
            the token, -1 where the agent did not write it (observations, template headers, `Turn.forced`).
        """
        ids: list[TokenIds] = []
        owner: list[NDArray[np.int16]] = []
        for index, turn in enumerate(self.turns):
            ids += [turn.context_ids, turn.action_ids]
            wrote = np.full(len(turn.action_ids), index, np.int16)
            wrote[list(turn.forced)] = -1
            owner += [np.full(len(turn.context_ids), -1, np.int16), wrote]
        if not ids:
            return np.zeros(0, np.int32), np.zeros(0, np.int16)
        return np.concatenate(ids), np.concatenate(owner)

    def messages(self) -> list[dict[str, Any]]:
        """The conversation as chat messages: observations as "user" (or as they are), actions as "assistant"."""
        result: list[dict[str, Any]] = []
        for turn in self.turns:
            result += [dict(each) for each in turn.messages] or [{"role": "user", "content": turn.observation}]
            result.append({"role": "assistant", "content": turn.action} if turn.reply is None else dict(turn.reply))
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
        _check_fields("Trajectory", data, cls.__dataclass_fields__, ("env_id", "seed", "turns"))
        return cls(**{**data, "turns": tuple(Turn.from_json(turn) for turn in data["turns"])})


@dataclass(frozen=True)
class Group:
    """Trajectories that start from the identical state: the unit of comparison.

    Raises:
        GroupError: The members differ in environment, options, seed, task or group number, or there are none; or, with
            `branched_at=k`, their first k turns differ or k is negative.
    """

    trajectories: tuple[Trajectory, ...]
    branched_at: int | None = None

    def __post_init__(self) -> None:
        members = tuple(self.trajectories)
        object.__setattr__(self, "trajectories", members)
        if not members:
            raise GroupError("Group: expected at least one trajectory, got none")
        names = ("environment", "seed", "task", "environment options", "group number")
        for member in members[1:]:
            for name, mine, first in zip(names, member.start, members[0].start, strict=True):
                if mine != first:
                    raise GroupError(
                        f"Group: expected identical starts, got {name} {first!r} and {mine!r}; "
                        "put trajectories with different starts into different groups"
                    )
        if self.branched_at is not None:
            if self.branched_at < 0:
                raise GroupError(f"Group: expected branched_at >= 0, got {self.branched_at}")
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
    def parted(self) -> tuple[int | None, ...]:
        """In a tree (`collect(branch_at="every")`), the turn at which each member parts; None for the trunk itself.

        Empty for groups that are no tree.
        """
        if any(tree_of(member) is None for member in self.trajectories):
            return ()
        return tuple(None if TREE in m.info else int(m.info["shared_prefix"]["turns"]) for m in self.trajectories)

    def branches(self) -> list[Group]:
        """A tree's groups by turn: at each, the trunk and those that part from it there, with `branched_at`.

        Raises:
            GroupError: It is no tree.
        """
        parted = self.parted
        if not parted:
            raise GroupError('Group.branches: expected a tree, got another group; collect(branch_at="every")')
        turns = sorted({turn for turn in parted if turn is not None})
        return [
            Group(tuple(m for m, at in zip(self.trajectories, parted, strict=True) if at in (None, turn)), turn)
            for turn in turns
        ]

    @property
    def valid(self) -> Group | None:
        """The group of its valid members, or None if no member is valid."""
        kept = tuple(member for member in self.trajectories if member.valid)
        return Group(kept, self.branched_at) if kept else None


def tree_of(member: Trajectory) -> str | None:
    """The name of the tree that a trajectory belongs to, or None."""
    trunk, prefix = member.info.get(TREE), member.info.get("shared_prefix")
    if isinstance(trunk, Mapping):
        return str(trunk["name"])
    name = prefix.get("tree") if isinstance(prefix, Mapping) else None
    return None if name is None else str(name)


def tree_name(trunk: Iterable[Turn]) -> str:
    """The name of a tree: a digest of its trunk's turns."""
    return hashlib.sha256(_canonical([turn.to_json() for turn in trunk]).encode()).hexdigest()[:16]


def group_by_start(trajectories: Iterable[Trajectory]) -> list[Group]:
    """Gathers trajectories into groups by identical start, in order of first appearance.

    Those that share a prefix (`collect(..., branch_at=...)`) make a separate group, which says where it parted.
    """
    buckets: dict[Start, list[Trajectory]] = {}
    for trajectory in trajectories:
        buckets.setdefault(trajectory.start, []).append(trajectory)
    return [group for members in buckets.values() for group in by_shared_prefix(members)]


def by_shared_prefix(members: Iterable[Trajectory]) -> Iterator[Group]:
    """Groups of trajectories with one start: those that were played from it, trees, and those that share a prefix."""
    found: dict[int | None, list[list[Trajectory]]] = {}
    trees: dict[str, list[Trajectory]] = {}
    for member in members:
        if (tree := tree_of(member)) is not None:
            trees.setdefault(tree, []).append(member)
            continue
        prefix = member.info.get("shared_prefix")
        shared = prefix["turns"] if isinstance(prefix, Mapping) and "turns" in prefix else None
        buckets = found.setdefault(shared, [])
        same = (each for each in buckets if shared is None or each[0].turns[:shared] == member.turns[:shared])
        bucket = next(same, None)
        if bucket is None:
            buckets.append([member])
        else:
            bucket.append(member)
    yield from (Group(tuple(tree)) for tree in trees.values())
    for shared, buckets in found.items():
        yield from (Group(tuple(bucket), shared) for bucket in buckets)
