"""Groups that part at turn k: one shared prefix is played, and every member of the group goes on from where it
stands."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import gymnasium

from polyturn.agents.agent import Agent
from polyturn.envs.trajectory import Trajectory, Turn

BranchAt = int | Callable[[int], int] | Literal["every"]
"""The agent's turn at which a group parts, counted from 0; a function of the group's index that gives it; or every."""

_J = TypeVar("_J")


@dataclass(frozen=True)
class SharedPrefix:
    """The shared beginning of a group.

    Attributes:
        asked: The turn at which the group was to part.
        agent: Name of the agent that played it.
        version: Which weights played it.
        turns: The shared turns, at most `asked`: a shared prefix that ends before is left at its last turn.
        observation: What the environment said then.
        task_id: Which problem or topic this is.
        info: The environment's info at reset.
        snapshot: The environment's state then, a JSON value.
        error: Why it could not be played, or None.
        messages: What it said then as chat messages, as in `Turn`.
        tree: Name of the tree, where it is the beginning of an episode that is a member of the group too.
    """

    asked: int
    agent: str
    version: str
    turns: tuple[Turn, ...] = ()
    observation: str = ""
    task_id: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    snapshot: Any = None
    error: str | None = None
    messages: tuple[Mapping[str, Any], ...] = ()
    tree: str | None = None

    def record(self) -> dict[str, Any]:
        """What members keep of it besides its turns, so that a killed collection goes on from the same state."""
        return {
            "asked": self.asked,
            "agent": self.agent,
            "version": self.version,
            "turns": len(self.turns),
            "observation": self.observation,
            "info": dict(self.info),
            "snapshot": self.snapshot,
            **({"messages": list(self.messages)} if self.messages else {}),
            **({} if self.tree is None else {"tree": self.tree}),
        }

    @classmethod
    def of(cls, member: Trajectory) -> SharedPrefix:
        """The shared prefix of a member that has one."""
        kept = dict(member.info["shared_prefix"])
        shared = member.turns[: kept.pop("turns")]
        return cls(**kept, turns=shared, task_id=member.task_id)


def branch_turns(branch_at: BranchAt | None, groups: int) -> list[int | None]:
    """Where each group parts; None where its members are played from the start.

    Raises:
        ValueError: A turn that is no whole number or negative.
    """
    turns: list[int | None] = []
    if branch_at == "every":
        return [None] * groups
    for group in range(groups):
        turn = branch_at(group) if callable(branch_at) else branch_at
        if turn is not None and (isinstance(turn, bool) or not isinstance(turn, int) or turn < 0):
            raise ValueError(
                f"collect(branch_at): expected 'every' or the agent's turn, 0 or more, got {turn!r} (group {group})"
            )
        turns.append(turn)
    return turns


def check_branching(
    env: gymnasium.Env[str, str], env_id: str, prefix: Agent, members: Sequence[Agent], *, same_noise: bool
) -> None:
    """Says before any work what cannot branch.

    Raises:
        ValueError: The environment has no snapshots, or cannot renew the noise it says it takes; or the shared prefix's
            tokens mean something else to a member.
    """
    needed = ["snapshot", "restore"]
    if getattr(env.unwrapped, "takes_noise", False) and not same_noise:
        needed.append("renew_noise")
    if missing := [name for name in needed if not env.has_wrapper_attr(name)]:
        raise ValueError(
            f"collect(branch_at): expected an environment with {', '.join(needed)}, got {env_id} without "
            f"{' and '.join(missing)}; add them (polyturn.envs.text_env says what they promise) or leave branch_at out"
        )
    tokenizers = {id(found): found for agent in (prefix, *members) if (found := _tokenizer(agent)) is not None}
    words = [tokenizer.get_vocab() for tokenizer in tokenizers.values()] if len(tokenizers) > 1 else []
    if any(other != words[0] for other in words[1:]):
        raise ValueError(
            "collect(branch_at): expected agents that share one tokenizer, got several: the tokens of the shared turns "
            "would be read as other words; let policies of one family play the shared prefix and go on from it"
        )


def _tokenizer(agent: Agent) -> Any:
    return getattr(getattr(agent, "policy", None), "tokenizer", None)


class Todo(Generic[_J]):
    """What is left to play, in an order in which few shared prefixes are held at once.

    Members come as soon as their shared prefix has been played and before any other shared prefix is begun, so that no
    more shared prefixes are held than are being worked on.

    Args:
        ready: Jobs that may be played at once.
        after: For every shared prefix that is still to be played: the shared prefix's own job, and those that follow
            it.
    """

    def __init__(self, ready: Iterable[_J], after: Iterable[tuple[_J, Sequence[_J]]] = ()) -> None:
        self._ready = deque(ready)
        self._after = deque(after)
        self._growing: dict[_J, Sequence[_J]] = {}
        self._changed = asyncio.Condition()

    async def next(self) -> _J | None:
        """The next job; None when all are done or under way and none will follow."""
        async with self._changed:
            while True:
                if self._ready:
                    return self._ready.popleft()
                if self._after:
                    prefix, members = self._after.popleft()
                    self._growing[prefix] = members
                    return prefix
                if not self._growing:
                    return None
                await self._changed.wait()

    async def stands(self, prefix: _J, more: Iterable[_J] = ()) -> None:
        """A shared prefix has been played: its members may go on, and those that it turned out to have."""
        async with self._changed:
            self._ready.extend([*self._growing.pop(prefix), *more])
            self._changed.notify_all()
