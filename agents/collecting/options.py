"""The settings of collecting groups for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from polyturn.agents.collecting.branching import BranchAt, branch_turns
from polyturn.agents.transformer.engines.settings import EngineChoice, TokenServers, chosen_engine
from polyturn.agents.transformer.generation import Sampling
from polyturn.envs.settings import check_count, record


@dataclass(frozen=True, kw_only=True)
class CollectOptions:
    """What a training run collects at a time, and how its policies sample; checked when made.

    Attributes:
        groups: Starts at a time.
        group_size: Trajectories per start.
        tasks: Task indices to draw from, without repetition until all were used; None: the environment draws.
        env_options: Keyword arguments of the environment.
        branch_at: The agent's turn at which the members of a group part, or "every", as in `collect`; None: at the
            start.
        sampling: How a policy's tokens are drawn.
        max_tokens: Tokens of an episode.
        slots: Episodes sampled at once.
        engine: What samples, as in `TransformerAgent`; servers are handed the policy's weights after every change.

    Raises:
        ValueError: A value out of range; the message names the field.
    """

    groups: int = 64
    group_size: int = 8
    tasks: Sequence[int] | None = None
    env_options: Mapping[str, Any] = field(default_factory=dict)
    branch_at: BranchAt | None = None
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 2048
    slots: int = 64
    engine: EngineChoice = "exact"

    def __post_init__(self) -> None:
        for name in ("groups", "group_size", "max_tokens", "slots"):
            check_count(name, getattr(self, name))
        if not callable(self.branch_at):
            branch_turns(self.branch_at, 1)
        if self.tasks is not None and not len(self.tasks):
            raise ValueError("tasks: expected at least one task to draw from, or None, got an empty sequence")
        engine = chosen_engine(self.engine, weights="handed")
        if isinstance(engine, TokenServers) and engine.weights != "handed":
            raise ValueError(
                f"engine: expected servers that are handed the weights that training changes, got weights="
                f"{engine.weights!r}; pass TokenServers(weights='handed')"
            )
        object.__setattr__(self, "engine", engine)

    def with_changes(self, **changed: Any) -> CollectOptions:
        """The same options with some changed, and checked again."""
        return replace(self, **changed)

    def recorded(self) -> dict[str, Any]:
        """What decides the episodes, as JSON values; of the tasks only how many there are, of servers that they are."""
        engine = "servers" if isinstance(self.engine, TokenServers) else self.engine
        tasks = None if self.tasks is None else len(self.tasks)
        return record(self, without=("tasks", "engine")) | {"tasks": tasks, "engine": engine}

    @property
    def acting(self) -> dict[str, Any]:
        """What an agent made of a policy takes: sampling, max_tokens, slots and the engine."""
        return {
            "sampling": self.sampling, "max_tokens": self.max_tokens, "slots": self.slots, "engine": self.engine
        }  # fmt: skip
