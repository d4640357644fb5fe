"""An environment as a class for TRL's `environment_factory`; the other way round is `ToolEnv(tasks, TheirClass)`.

TRL (1.16) makes instances once and resets them for each rollout, offers public methods as tools, appends what `reset`
returns to the last message of the prompt, and asks `get_reward` at the end. It has no flag that ends an episode.
"""

from __future__ import annotations

import inspect
from typing import Any

from polyturn.envs.registration import check_options, make

OVER = "The episode is over; nothing more can be done. Finish with a short message."


def as_trl(env_id: str, /, **options: Any) -> type:
    """A class for `GRPOTrainer(environment_factory=...)` whose one tool, `act`, takes a turn in an environment.

    Each row of the data set needs a column "seed": the generations of a prompt are compared with each other, so they
    must start from the same state. The reward is the return of the episode, as far as it was played; where the
    environment itself failed it is None, which TRL leaves out of the update. A turn after the end changes nothing.

    Args:
        env_id: The id of an environment.
        **options: Its keyword arguments.

    Raises:
        UnknownEnv, EnvOptionError: As `make`.
    """
    check_options(env_id, options)

    class PolyturnInTRL:
        """Plays one episode at a time."""

        def __init__(self) -> None:
            self._env = make(env_id, **options)
            self._total: float | None = 0.0
            self._over = True

        def reset(self, *, seed: int | None = None, **row: Any) -> str:
            if seed is None:
                raise ValueError(
                    f'as_trl({env_id!r}): expected a column "seed" in the data set, got {", ".join(row) or "none"}; '
                    "the generations of a prompt must start from the same state"
                )
            self._total, self._over = 0.0, False
            try:
                observation, _ = _plain(self._env.reset(seed=int(seed)))
            except Exception:
                self._total, self._over = None, True
                raise
            return str(observation)

        def act(self, message: str) -> str:
            """
            Takes a turn in the environment and returns what it answers.

            Args:
                message: What you do or say, as the task asks for it.
            """
            if self._over:
                return OVER
            try:
                observation, reward, terminated, truncated, _ = _plain(self._env.step(message))
            except Exception:
                # TRL shows the error to the model and goes on; the rollout has no reward.
                self._total, self._over = None, True
                raise
            assert self._total is not None
            self._total += float(reward)
            self._over = terminated or truncated
            return f"{observation}\n{OVER}".lstrip("\n") if self._over else str(observation)

        def get_reward(self) -> float | None:
            return self._total

    # TRL logs the reward under the name of the class.
    PolyturnInTRL.__name__ = PolyturnInTRL.__qualname__ = env_id.rpartition("/")[2].replace("-", "_")
    return PolyturnInTRL


def _plain(result: Any) -> Any:
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise TypeError("as_trl: expected an environment whose calls need not be awaited; wrap it in one that waits")
    return result
