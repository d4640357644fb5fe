"""Bandits: one turn, one arm. The coverage study of arXiv 2404.14367, and any other reward.

The numbers (rewards, the data policy, sampling) are plain numpy functions: `play` draws millions of arms a second and
`BanditPlays.groups` turns them into the same trajectories that an agent in the text environment makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import ArrayLike, NDArray

from polyturn.envs.games.choices import choice
from polyturn.envs.games.seeding import SeededGame
from polyturn.envs.settings import check_count, check_reset_options
from polyturn.envs.spaces import UnicodeText
from polyturn.envs.suggest import did_you_mean
from polyturn.envs.trajectory import Group, Trajectory, Turn

Array = NDArray[np.float64]
Reward = str | Sequence[float] | Sequence[Sequence[float]] | Callable[[int, int], float] | Array
"""A built-in name, a value for each arm, a `[contexts, arms]` table, or a function of (context, arm)."""

PEAKS = {"R1": 70, "R2": 20}
"""Arm (of 100) where the built-in rewards peak: R1 where the data policy rarely goes, R2 where it often does."""


def reward_table(reward: Reward, *, contexts: int, arms: int) -> Array:
    """Rewards as a table.

    Args:
        reward: "R1" or "R2" of arXiv 2404.14367, exp(-((arm - peak) / 10)^2) on 100 arms, stretched to other numbers of
            arms; or values; or a function.
        contexts: Number of contexts C.
        arms: Number of arms A.

    Returns:
        `[C, A]`; a view where all contexts share their rewards.

    Raises:
        ValueError: An unknown name, a wrong shape, or a value that is not finite.
    """
    if isinstance(reward, str):
        if reward not in PEAKS:
            raise ValueError(
                f"reward: expected one of {', '.join(PEAKS)}, got {reward!r}.{did_you_mean(reward, PEAKS)}"
            )
        position = np.arange(arms) * (100.0 / arms)
        table = np.exp(-(((position - PEAKS[reward]) / 10.0) ** 2))
    elif callable(reward):
        table = np.array([[float(reward(c, a)) for a in range(arms)] for c in range(contexts)])
    else:
        table = np.asarray(reward, np.float64)
    if table.shape not in ((arms,), (contexts, arms)):
        raise ValueError(f"reward: expected [{arms}] or [{contexts}, {arms}] values, got shape {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError("reward: expected finite values")
    return np.broadcast_to(table, (contexts, arms))


def data_policy(arms: int = 100, *, draws: int | None = None, rng: np.random.Generator | None = None) -> Array:
    """The policy that wrote the offline data in arXiv 2404.14367: tanh of a Cauchy(-0.7, 0.4) variable, in equal bins
    of [-1, 1].

    Most mass lies in the first bin and around bin 16 of 100; bin 70 has .002.

    Args:
        arms: Number of bins.
        draws: None for the exact mass of each bin. The paper uses a histogram of 10,000 draws.
        rng: Source of the draws.

    Returns:
        `[arms]` probabilities.

    Raises:
        ValueError: `draws` without `rng`.
    """
    edges = np.linspace(-1.0, 1.0, arms + 1)
    if draws is None:
        with np.errstate(divide="ignore"):
            below = 0.5 + np.arctan((np.arctanh(edges) + 0.7) / 0.4) / np.pi
        return np.asarray(np.diff(below), np.float64)
    if rng is None:
        raise ValueError("data_policy: expected rng with draws; randomness is always passed in")
    counts, _ = np.histogram(np.tanh(-0.7 + 0.4 * rng.standard_cauchy(draws)), bins=edges)
    return np.asarray(counts / counts.sum(), np.float64)


def context_features(contexts: int, *, dimension: int = 100, seed: int = 0, first: int = 0) -> Array:
    """`[contexts, dimension]` vectors from U[0, 1] that stand for contexts `first`, `first` + 1, ...

    The built-in rewards ignore them; a network has to find that out. Each context's vector depends on its number only,
    so evaluation contexts are had by a `first` beyond the training contexts.
    """
    rows = [np.random.default_rng([seed, context]).random(dimension) for context in range(first, first + contexts)]
    return np.array(rows).reshape(contexts, dimension)


@dataclass(frozen=True, eq=False)
class BanditPlays:
    """Many groups of one-turn episodes as arrays.

    Attributes:
        contexts: `[G]` int, the row of the reward table that each group was played in.
        arms: `[G, K]` int, the arm of each member.
        logps: `[G, K]` log-probability of each arm under the policy that drew it.
        rewards: `[G, K]`.
    """

    contexts: NDArray[np.int64]
    arms: NDArray[np.int64]
    logps: Array
    rewards: Array

    def groups(self, *, policy_version: str = "", **options: Any) -> list[Group]:
        """The plays as trajectories of `polyturn/Bandit-v0`; an arm is an action of one token, its own number.

        Args:
            policy_version: Which policy acted.
            **options: The environment's options, as it would be made with; the context is added to them.
        """
        env = Bandit(**options)
        result = []
        for row, arms, logps, rewards in zip(
            self.contexts.tolist(), self.arms.tolist(), self.logps, self.rewards.tolist(), strict=True
        ):
            context = env.first_context + row
            made_with = {**options, "context": context}
            members = [
                Trajectory(
                    env_id="polyturn/Bandit-v0",
                    seed=0,
                    task_id=f"context-{context}",
                    turns=(
                        Turn(
                            observation=env.question(context),
                            action=str(arm),
                            reward=reward,
                            action_ids=np.array([arm], np.int32),
                            logps=logps[k : k + 1],
                            info={"arm": arm},
                        ),
                    ),
                    policy_version=policy_version,
                    member=k,
                    final_observation=env.reply(arm),
                    terminated=True,
                    env_options=made_with,
                    info={"task_id": f"context-{context}", "arm": arm},
                )
                for k, (arm, reward) in enumerate(zip(arms, rewards, strict=True))
            ]
            result.append(Group(tuple(members)))
        return result


def play(
    policy: ArrayLike,
    table: Array,
    contexts: ArrayLike,
    *,
    group_size: int,
    rng: np.random.Generator,
) -> BanditPlays:
    """Plays `group_size` arms in each of the given contexts, all at once.

    Args:
        policy: `[C, A]` probabilities for each context, or `[A]` for all.
        table: `[C, A]` rewards, from `reward_table`.
        contexts: `[G]` int, rows of the table, one for each group.
        group_size: K.
        rng: Source of randomness.
    """
    chosen = np.asarray(contexts, np.int64)
    probabilities = np.asarray(policy, np.float64)
    if probabilities.shape not in (table.shape, table.shape[1:]):
        raise ValueError(f"play: expected a policy {table.shape} or {table.shape[1:]}, got {probabilities.shape}")
    rows = np.atleast_2d(probabilities)
    cumulative = np.cumsum(rows, axis=1)
    if np.any(rows < 0) or not np.allclose(cumulative[:, -1], 1.0, atol=1e-9):
        raise ValueError("play: expected probabilities >= 0 that add to 1 in every context")
    # Row r's distribution function is moved to [r, r + 1], so that one sorted search serves all rows.
    row = chosen if len(rows) > 1 else np.zeros_like(chosen)
    steps = (cumulative / cumulative[:, -1:] + np.arange(len(rows))[:, None]).ravel()
    draws = rng.random((len(chosen), group_size)) + row[:, None]
    arms = np.searchsorted(steps, draws, side="right") - row[:, None] * table.shape[1]
    # The sum r + u may round up to r + 1, past the last arm.
    arms = np.minimum(arms, table.shape[1] - 1)
    with np.errstate(divide="ignore"):
        logps = np.log(rows)[row[:, None], arms]
    return BanditPlays(chosen, arms, logps, table[chosen[:, None], arms])


class Bandit(SeededGame):
    """Choose an arm once; the reward depends on it and, if you want, on the context.

    The last number in the agent's text is the arm. Text without a valid one earns the lowest reward of all.

    Args:
        reward: "R1", "R2", values for each arm, a `[contexts, arms]` table, or a function of (context, arm).
        arms: Number of arms.
        contexts: Number of contexts, one drawn each episode.
        context: Always this context.
        first_context: Contexts are numbered from here: train from 0, evaluate from 100, say.

    Raises:
        ValueError: Options that make no bandit; all rewards equal.
    """

    blocking = False
    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium declares it an instance variable)

    def __init__(
        self,
        reward: Reward = "R1",
        arms: int = 100,
        contexts: int = 100,
        context: int | None = None,
        first_context: int = 0,
    ) -> None:
        check_count("Bandit(arms)", arms, 2)
        check_count("Bandit(contexts)", contexts)
        check_count("Bandit(first_context)", first_context, 0)
        check_count("Bandit(context)", context, 0, optional=True)
        if context is not None and not 0 <= context - first_context < contexts:
            raise ValueError(
                f"Bandit: expected context {first_context} to {first_context + contexts - 1}, got {context}"
            )
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self.arms, self.contexts, self.context, self.first_context = arms, contexts, context, first_context
        self.table = reward_table(reward, contexts=contexts, arms=arms)
        self.reward_bounds = float(self.table.min()), float(self.table.max())
        if self.reward_bounds[0] == self.reward_bounds[1]:
            raise ValueError("Bandit: expected rewards that differ, got the same for every arm and context")
        self._context: int | None = None  # None also means that no episode is running

    def question(self, context: int) -> str:
        """What the environment says at the start."""
        return f"Context {context}. Choose an arm: write a number from 0 to {self.arms - 1}."

    def reply(self, arm: int | None) -> str:
        """What the environment says at the end."""
        return "That is no arm." if arm is None else f"You chose arm {arm}."

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draws a context."""
        super().reset(seed=seed)
        check_reset_options(self, options)
        drawn = self.first_context + int(self.np_random.integers(self.contexts))
        self._context = drawn if self.context is None else self.context
        return self.question(self._context), {"task_id": f"context-{self._context}"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Pays the arm's reward and ends the episode.

        Raises:
            ResetNeeded: The episode is over, or none was started.
        """
        if self._context is None:
            raise ResetNeeded("the episode is over: call reset() first")
        row, self._context = self._context - self.first_context, None
        arm = choice(action, self.arms)
        reward = self.reward_bounds[0] if arm is None else float(self.table[row, arm])
        return self.reply(arm), reward, True, False, {} if arm is None else {"arm": arm}

    def snapshot(self) -> dict[str, int | None]:
        """The state before the turn."""
        return {"context": self._context}

    def restore(self, snapshot: dict[str, int | None]) -> None:
        """Goes on from a snapshot."""
        self._context = snapshot["context"]
