"""Many bandits at once, arms and contexts as whole numbers: for code that learns from millions of steps a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Discrete
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from polyturn.envs.games.bandits import Bandit
from polyturn.envs.settings import check_count, check_reset_options

Whole = NDArray[np.int64]
_DRAWN_AHEAD = 256
"""Contexts that each bandit draws at a time; a generator gives the same numbers one by one or as an array."""


class BanditVector(VectorEnv[Whole, Whole, NDArray[Any]]):
    """`num_envs` bandits without words: an observation is a context's number, an action an arm's.

    Given the same seeds, contexts and rewards are those that `num_envs` text environments `Bandit` give, each reset
    without a seed after its first episode. Every step ends an episode and begins the next (`AutoresetMode.SAME_STEP`):
    the observation is the next context, and the info `final_obs` holds the contexts that the arms were played in.

    Args:
        num_envs: Number of bandits N.
        **options: As for `Bandit`.

    Raises:
        ValueError: Options that make no bandit.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int, **options: Any) -> None:
        check_count("BanditVector(num_envs)", num_envs)
        self.bandit = Bandit(**options)
        self.num_envs = num_envs
        self.single_action_space = Discrete(self.bandit.arms)
        self.single_observation_space = Discrete(self.bandit.contexts, start=self.bandit.first_context)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._generators: list[np.random.Generator] = []
        self._ahead: Whole = np.zeros((0, num_envs), np.int64)  # [draws, N], rows of the table
        self._used = 0
        self._rows: Whole | None = None  # [N]; None before the first reset

    def reset(  # a seed for each bandit too, as Gymnasium's own vector environments take
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Whole, dict[str, Any]]:
        """Draws a context for every bandit.

        Args:
            seed: Of the first bandit, the i-th after it having `seed` + i; or N seeds, one each. None goes on with the
                generators there are.
            options: None are known.

        Returns:
            `[N]` contexts, and no infos.

        Raises:
            ValueError: Not one seed for each bandit, or an option.
        """
        check_reset_options(self, options)
        if seed is not None:
            seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else list(seed)
            if len(seeds) != self.num_envs:
                raise ValueError(f"BanditVector.reset(seed): expected {self.num_envs} seeds, got {len(seeds)}")
            self._generators = [seeding.np_random(each)[0] for each in seeds]
        elif not self._generators:
            self._generators = [seeding.np_random()[0] for _ in range(self.num_envs)]
        if seed is not None:
            self._ahead = self._ahead[:0]  # what was drawn ahead belongs to the generators before
            self._used = 0
        self._rows = self._next_rows()
        return self._rows + self.bandit.first_context, {}

    def step(self, actions: ArrayLike) -> tuple[Whole, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Pays every arm's reward and draws the next contexts.

        Args:
            actions: `[N]` whole numbers, the arms.

        Returns:
            `[N]` each: the next contexts, rewards, terminations (all True), truncations (none); and the infos
            `final_obs`, the contexts played, with its mask `_final_obs`.

        Raises:
            ResetNeeded: There was no reset yet.
            ValueError: Not N whole numbers, or one that is no arm.
        """
        if self._rows is None:
            raise ResetNeeded("no episode has begun: call reset() first")
        arms = np.asarray(actions)
        if arms.shape != (self.num_envs,) or arms.dtype.kind not in "iu":
            raise ValueError(
                f"BanditVector.step: expected {self.num_envs} whole numbers, got {arms.dtype} of shape {arms.shape}"
            )
        if arms.min() < 0 or arms.max() >= self.bandit.arms:
            raise ValueError(f"BanditVector.step: expected arms from 0 to {self.bandit.arms - 1}, got {arms}")
        rewards = self.bandit.table[self._rows, arms]
        ended = np.ones(self.num_envs, np.bool_)
        infos = {"final_obs": self._rows + self.bandit.first_context, "_final_obs": ended.copy()}
        self._rows = self._next_rows()
        return self._rows + self.bandit.first_context, rewards, ended, np.zeros(self.num_envs, np.bool_), infos

    def _next_rows(self) -> Whole:
        """`[N]` rows of the reward table for the next episodes."""
        if self.bandit.context is not None:
            return np.full(self.num_envs, self.bandit.context - self.bandit.first_context)
        if self._used == len(self._ahead):
            drawn = [each.integers(self.bandit.contexts, size=_DRAWN_AHEAD) for each in self._generators]
            self._ahead, self._used = np.stack(drawn, axis=1), 0
        self._used += 1
        rows: Whole = self._ahead[self._used - 1]
        return rows
