"""Wrappers that keep what makes an environment branchable."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from typing import Any, SupportsFloat

import gymnasium
from gymnasium.error import ResetNeeded

_Step = tuple[str, SupportsFloat, bool, bool, dict[str, Any]]


class TurnLimit(gymnasium.Wrapper[str, str, str, str]):
    """Truncates an episode after a number of turns; unlike Gymnasium's `TimeLimit`, the count is in the snapshot.

    An episode that ends by itself on its last turn is terminated, not truncated as well.

    Args:
        env: The environment.
        turns: Turns after which an episode is truncated.
    """

    def __init__(self, env: gymnasium.Env[str, str], turns: int) -> None:
        super().__init__(env)
        if turns < 1:
            raise ValueError(f"TurnLimit: expected at least one turn, got {turns}")
        self.turns = turns
        self._left = 0

    @property
    def reward_bounds(self) -> tuple[float, float]:
        """As the environment's."""
        low, high = self.env.get_wrapper_attr("reward_bounds")
        return low, high

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts an episode."""
        self._left = self.turns
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> _Step:
        """Takes one turn; where the environment's step must be awaited, so must this one.

        Raises:
            ResetNeeded: The episode is over, or none was started.
        """
        if self._left == 0:
            raise ResetNeeded("the episode is over: call reset() first")
        result: Any = super().step(action)
        return self._awaited(result) if inspect.isawaitable(result) else self._counted(result)  # type: ignore[return-value]

    async def _awaited(self, result: Awaitable[_Step]) -> _Step:
        return self._counted(await result)

    def _counted(self, result: _Step) -> _Step:
        observation, reward, terminated, truncated, info = result
        self._left -= 1
        if not terminated and self._left == 0:
            truncated = True
        if terminated or truncated:
            self._left = 0
        return observation, reward, terminated, truncated, info

    def snapshot(self) -> Any:
        """The environment's snapshot and the turns left."""
        return {"left": self._left, "env": self.env.get_wrapper_attr("snapshot")()}

    def restore(self, snapshot: Any) -> None:
        """Goes on from a snapshot."""
        self._left = int(snapshot["left"])
        self.env.get_wrapper_attr("restore")(snapshot["env"])
