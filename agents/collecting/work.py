"""A collection as a value: what plays its episodes, in this process or in another one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from polyturn.agents.agent import Agent, Episode
from polyturn.agents.collecting.playing import EpisodePlayer, TextEnvironment
from polyturn.agents.shipping import Shipped, Ticket
from polyturn.envs.registration import make


@dataclass(frozen=True)
class Work:
    """What the episodes of a collection have in common; attributes as in `collect` and `EpisodePlayer`.

    Attributes:
        members: One agent a member.
        prefix_agent: The agent of the shared prefixes.
        env: Registered id, or a function that makes the environment.
        options: Keyword arguments of a registered one.
        env_id: What trajectories say of the environment.
        recorded: Its options, as recorded.
        seed: Of the collection.
        same_noise: Whether the members of a group share the environment's noise.
        timeout: Seconds for a turn of the agent, or None.
        width: Episodes under way at once in a process.
        branches: Members that part from an episode at each of its turns.
    """

    members: Sequence[Agent]
    prefix_agent: Agent
    env: str | Callable[[], TextEnvironment]
    options: Mapping[str, Any]
    env_id: str
    recorded: Mapping[str, Any]
    seed: int
    same_noise: bool
    timeout: float | None
    width: int
    branches: int = 0

    def player(self) -> EpisodePlayer:
        """What plays one of its episodes."""
        return EpisodePlayer(
            self.members, self.prefix_agent, self.env_id, self.recorded, self.seed, self.same_noise, self.timeout
        )

    def make(self) -> TextEnvironment:
        """A new environment."""
        return cast("TextEnvironment", make(self.env, **self.options)) if isinstance(self.env, str) else self.env()


class Pinned:
    """An agent, or an option, as it was when it was pinned, whatever is done to its weights afterwards.

    It acts in the processes that its ticket is sent to.

    Args:
        thing: What is pinned.
        ticket: Makes it.
    """

    def __init__(self, thing: Any, ticket: Ticket) -> None:
        self._ticket = ticket
        self.name, self.version = str(getattr(thing, "name", type(thing).__name__)), str(getattr(thing, "version", ""))
        self.max_concurrency = int(getattr(thing, "max_concurrency", sys.maxsize))
        self.policy = getattr(thing, "policy", None)

    def act(self, episode: Episode) -> str:
        """Not here.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(f"{self.name} is pinned for another process; it does not act in this one")

    def ship(self, root: Path) -> Ticket:
        """The ticket."""
        return self._ticket


def same(thing: Any) -> Any:
    """What is given; with a thing, a picklable way to make it."""
    return thing


@dataclass(frozen=True)
class Parcel:
    """A `Work` that can be pickled: agents and options stand in `things`, some as tickets, each of them once.

    Attributes:
        things: Agents and values of options, or tickets for them.
        members: Index of each member's agent.
        prefix_agent: Index of that agent.
        options: Index of each option's value.
        rest: The other attributes of the work.
    """

    things: tuple[Any, ...]
    members: tuple[int, ...]
    prefix_agent: int
    options: Mapping[str, int]
    rest: Mapping[str, Any]

    @property
    def folders(self) -> frozenset[str]:
        """The folders that its tickets read."""
        return frozenset(folder for thing in self.things if isinstance(thing, Ticket) for folder in thing.folders)

    @classmethod
    def of(cls, work: Work, root: Path) -> Parcel:
        """Packs a work; files go under `root`."""
        unique = {id(thing): thing for thing in (*work.members, work.prefix_agent, *work.options.values())}
        place = {key: index for index, key in enumerate(unique)}
        packed = {"members", "prefix_agent", "options"}
        return cls(
            tuple(thing.ship(root) if isinstance(thing, Shipped) else thing for thing in unique.values()),
            tuple(place[id(agent)] for agent in work.members),
            place[id(work.prefix_agent)],
            {name: place[id(value)] for name, value in work.options.items()},
            {name: value for name, value in vars(work).items() if name not in packed},
        )

    def open(self, kept: dict[str, Any]) -> Work:
        """The work.

        Args:
            kept: Things made earlier, by key; afterwards those of this work.
        """
        made: dict[str, Any] = {}
        things = []
        for thing in self.things:
            if not isinstance(thing, Ticket):
                things.append(thing)
            elif thing.key is None:
                things.append(thing.make())
            else:
                if thing.key not in made:
                    made[thing.key] = kept[thing.key] if thing.key in kept else thing.make()
                things.append(made[thing.key])
        kept.clear()
        kept.update(made)
        return Work(
            members=[things[index] for index in self.members],
            prefix_agent=things[self.prefix_agent],
            options={name: things[index] for name, index in self.options.items()},
            **self.rest,
        )
