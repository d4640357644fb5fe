"""Win rates between agents by a judge of whole conversations, with intervals over starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyturn.agents.agent import Agent
from polyturn.agents.collecting.collect import EnvironmentSource, collect
from polyturn.agents.transformer.agent import TransformerAgent
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.policy import Policy
from polyturn.envs.preference import Annotator
from polyturn.envs.store import Store
from polyturn.envs.trajectory import Group


@dataclass(frozen=True, eq=False)
class Duels:
    """Win rates between agents.

    Attributes:
        names: The agents.
        rate: `[A, A]` P(row beats column), mean over starts; 1/2 on the diagonal, nan where no pair was judged.
        half: `[A, A]` half width of the 95% interval over starts (normal); nan with fewer than two starts.
        starts: Starts in which at least one pair was judged.
        groups: The conversations, all agents' members of a start together.
    """

    names: tuple[str, ...]
    rate: NDArray[np.float64]
    half: NDArray[np.float64]
    starts: int
    groups: Sequence[Group]

    def __getitem__(self, pair: tuple[str, str]) -> float:
        """P(first beats second).

        Raises:
            KeyError: An agent that is not there.
        """
        for name in pair:
            if name not in self.names:
                raise KeyError(f"expected agents out of {', '.join(self.names)}, got {name!r}")
        first, second = (self.names.index(name) for name in pair)
        return float(self.rate[first, second])


def duel(
    agents: Mapping[str, Agent],
    env: EnvironmentSource,
    judge: Annotator,
    *,
    starts: int,
    each: int = 1,
    seed: int = 0,
    tasks: Sequence[int] | None = None,
    env_options: Mapping[str, Any] | None = None,
    concurrency: int = 64,
    store: Store | None = None,
    progress: bool = True,
    label: str = "duel",
) -> Duels:
    """Lets agents act from the same starts and compares every two of them.

    All members of a start are one group, so conversations are compared as the methods compare them: from the identical
    start, each with its own noise after it.

    Args:
        agents: By name; at least two.
        env: Registered id, or a function that makes the environment.
        judge: The annotator of a group; only pairs of different agents are looked at.
        starts: How many.
        each: Conversations of each agent from each start; all pairs of two agents' are compared.
        seed: Fixes everything.
        tasks: Task of each start; default: the environment draws.
        env_options: Keyword arguments of the environment.
        concurrency: Episodes under way at once.
        store: Where to append the conversations, and to go on from.
        progress: Show a bar.
        label: What the bar says.

    Raises:
        ValueError: Fewer than two agents.
    """
    names = tuple(agents)
    if len(names) < 2:
        raise ValueError(f"duel: expected at least two agents, got {len(names)}")
    groups = collect(
        [agent for agent in agents.values() for _ in range(each)],
        env,
        groups=starts,
        group_size=each * len(names),
        seed=seed,
        tasks=tasks,
        env_options=env_options,
        concurrency=concurrency,
        store=store,
        progress=progress,
        label=label,
    )
    return duels_of(names, groups, judge)


def duels_of(names: Sequence[str], groups: Sequence[Group], judge: Annotator) -> Duels:
    """Win rates from groups that hold the same number of conversations of each agent, in the order of `names`."""
    count = len(names)
    found = np.full((len(groups), count, count), np.nan)
    for index, group in enumerate(groups):
        each, rest = divmod(len(group), count)
        if rest:
            raise ValueError(f"duels_of: expected groups of a multiple of {count} members, got {len(group)}")
        matrix = judge(group).matrix
        matrix = np.where(np.isnan(matrix), 1.0 - matrix.T, matrix)
        blocks = matrix.reshape(count, each, count, each)
        asked = ~np.isnan(blocks)
        known = asked.sum((1, 3))
        won = np.where(asked, blocks, 0.0).sum((1, 3))
        found[index] = np.divide(won, known, out=np.full((count, count), np.nan), where=known > 0)
    found[:, range(count), range(count)] = np.nan
    judged = ~np.isnan(found)
    tried = judged.sum(0)
    rate = np.divide(np.where(judged, found, 0.0).sum(0), tried, out=np.full((count, count), np.nan), where=tried > 0)
    squares = np.where(judged, (found - rate) ** 2, 0.0).sum(0)
    variance = np.divide(squares, tried - 1, out=np.full((count, count), np.nan), where=tried > 1)
    half = 1.96 * np.sqrt(variance / np.maximum(tried, 1))
    np.fill_diagonal(rate, 0.5)
    np.fill_diagonal(half, 0.0)
    return Duels(tuple(names), rate, half, int(judged.any((1, 2)).sum()), groups)


class Rivals:
    """For `train(..., evaluate=...)`: how often the policy beats the reference, and itself at the last evaluation.

    Reports "win_reference" and, from the second evaluation of a process on, "win_previous". Every evaluation has the
    same starts.

    Args:
        reference: The agent that it is compared with throughout, for example the SFT policy.
        env: Registered id, or a function that makes the environment.
        judge: The annotator of a group.
        starts: Conversations of each.
        seed: Fixes the starts and the sampling; take another than the training's.
        tasks: Task of each start; default: the environment draws.
        env_options: Keyword arguments of the environment.
        sampling: How tokens are drawn.
        max_tokens: Tokens of a conversation.
        slots: Conversations sampled at once.
        progress: Show a bar for each evaluation.
    """

    def __init__(
        self,
        reference: Policy,
        env: EnvironmentSource,
        judge: Annotator,
        *,
        starts: int = 64,
        seed: int = 1,
        tasks: Sequence[int] | None = None,
        env_options: Mapping[str, Any] | None = None,
        sampling: Sampling | None = None,
        max_tokens: int = 2048,
        slots: int = 64,
        progress: bool = False,
    ) -> None:
        self._how: dict[str, Any] = {"sampling": sampling, "max_tokens": max_tokens, "slots": slots}
        self._duel: dict[str, Any] = {
            "starts": starts, "seed": seed, "tasks": tasks, "env_options": env_options, "concurrency": slots,
            "progress": progress,
        }  # fmt: skip
        self._env, self._judge = env, judge
        self._reference = TransformerAgent(reference, **self._how)
        self._previous: Policy | None = None

    def __call__(self, policy: Any, step: int) -> dict[str, float]:
        """The win rates now. `policy` may be what holds one, as an `ActorCritic` does."""
        acting: Policy = policy if isinstance(policy, Policy) else policy.policy
        agents: dict[str, Agent] = {"policy": TransformerAgent(acting, **self._how), "reference": self._reference}
        if self._previous is not None:
            agents["previous"] = TransformerAgent(self._previous, **self._how)
        found = duel(agents, self._env, self._judge, label=f"duel at {step}", **self._duel)
        self._previous = acting.copy(version=f"{acting.version}-at-{step}")
        return {f"win_{name}": found["policy", name] for name in agents if name != "policy"}
