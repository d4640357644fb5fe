"""What adapters share: order of calls, a limit on turns, global random numbers kept apart, snapshots by replay.

Other packages draw from the global generators of Python and numpy, and few of their states can be copied. Here every
episode has states of these generators of its own, put in place while the other side runs and taken out afterwards; a
snapshot is the seed and the actions, which `restore` plays again and compares.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from polyturn.envs.spaces import UnicodeText
from polyturn.sandbox.server import safe_text

Step = tuple[str, float, bool, bool, dict[str, Any]]
_LONGEST_MESSAGE = 2000
_global_numbers = threading.Lock()


class OtherSideFailed(RuntimeError):
    """The adapted environment raised or broke its own interface: the episode is invalid."""


class ReplayDiffers(RuntimeError):
    """The adapted environment does not give the same for the same seed and actions, so it has no snapshots."""


@contextmanager
def global_numbers_kept() -> Iterator[None]:
    """Puts the global generators back as they were, after an import or a constructor of another package."""
    with _global_numbers:
        outside = random.getstate(), np.random.get_state()  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(outside[0])
            np.random.set_state(outside[1])  # noqa: NPY002


class Replayed(gymnasium.Env[str, str]):
    """An environment of another package; a subclass defines `_begin`, `_turn` and `_stop`.

    Args:
        max_turns: Turns after which an episode is truncated.
        reward_bounds: Smallest and largest return of an episode.

    Raises:
        ValueError: `max_turns` below 1.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium declares it an instance variable)
    other_side = "the adapted package"
    """Who is named where `check_text_env` finds a breach."""
    draws_global_numbers = True
    """Whether the other side runs in this process; False for servers, of which several may be waited for at once."""

    def __init__(self, max_turns: int, reward_bounds: tuple[float, float]) -> None:
        if max_turns < 1:
            raise ValueError(f"{type(self).__name__}: expected max_turns >= 1, got {max_turns}")
        self.max_turns = max_turns
        self.reward_bounds = (float(reward_bounds[0]), float(reward_bounds[1]))
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self._seed = 0
        self._actions: list[str] | None = None
        self._over = True
        self._seen = ""
        self._numbers: tuple[Any, Any] | None = None

    # What a subclass defines.

    def _begin(self, seed: int) -> tuple[str, dict[str, Any]]:
        """Starts an episode that depends on the seed only; the global generators are seeded with it."""
        raise NotImplementedError

    def _turn(self, action: str) -> tuple[str, float, bool, dict[str, Any]]:
        """One turn of the agent, up to its next one: what it sees, its reward, whether the episode ended, info."""
        raise NotImplementedError

    def _stop(self) -> None:
        """Lets go of the episode."""

    # What Gymnasium calls.

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts an episode.

        Raises:
            OtherSideFailed: The adapted environment raised.
        """
        super().reset(seed=seed)
        if options:
            raise ValueError(f"{type(self).__name__}: expected no options of reset, got {', '.join(options)}")
        return self._start(int(self.np_random.integers(2**31)))

    def step(self, action: str) -> Step:
        """Takes one turn.

        Raises:
            ResetNeeded: The episode is over, or none was started.
            OtherSideFailed: The adapted environment raised.
        """
        if self._over or self._actions is None:
            raise ResetNeeded("the episode is over: call reset() first")
        with self._own_numbers():
            observation, reward, ended, info = self._turn(action)
        self._actions.append(action)
        self._note([observation, reward, ended])
        cut = not ended and len(self._actions) >= self.max_turns
        if ended or cut:
            self._over = True
            self._stop()
        return observation, reward, ended, cut, json.loads(json.dumps(info))

    def snapshot(self) -> dict[str, Any]:
        """The seed and the actions so far."""
        return {
            "seed": self._seed,
            "actions": None if self._actions is None else list(self._actions),
            "over": self._over,
            "seen": self._seen,
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Plays the actions of a snapshot again.

        Raises:
            ReplayDiffers: They gave something else.
        """
        self._stop()
        self._actions, self._over, self._seen = None, True, snapshot["seen"]
        if snapshot["over"] or snapshot["actions"] is None:
            self._seed = snapshot["seed"]
            self._actions = None if snapshot["actions"] is None else list(snapshot["actions"])
            return
        self._start(snapshot["seed"])
        for action in snapshot["actions"]:
            self.step(action)
        if self._seen != snapshot["seen"]:
            raise ReplayDiffers(
                f"{type(self).__name__}: expected the same observations and rewards from one seed and its actions, "
                "got others; this environment draws random numbers that no seed reaches"
            )

    def close(self) -> None:
        """Lets go of the episode."""
        self._stop()

    def _start(self, seed: int) -> tuple[str, dict[str, Any]]:
        self._stop()
        self._seed, self._actions, self._over, self._seen = seed, [], False, ""
        python = random.Random(seed).getstate()
        self._numbers = python, np.random.RandomState(seed % 2**32).get_state()
        with self._own_numbers():
            observation, info = self._begin(seed)
        self._note([observation])
        return observation, json.loads(json.dumps(info))

    def _note(self, what: list[Any]) -> None:
        self._seen = hashlib.sha256(json.dumps([self._seen, what]).encode()).hexdigest()

    @contextmanager
    def _own_numbers(self) -> Iterator[None]:
        """Puts the episode's states into the global generators while the other side runs; one episode at a time."""
        if not self.draws_global_numbers:
            with self._failures_named():
                yield
            return
        with global_numbers_kept():
            assert self._numbers is not None
            random.setstate(self._numbers[0])
            np.random.set_state(self._numbers[1])  # noqa: NPY002
            try:
                with self._failures_named():
                    yield
            finally:
                self._numbers = random.getstate(), np.random.get_state()  # noqa: NPY002

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._over = True
            # The message may hold what a server said, and becomes part of a record.
            said = safe_text(str(error)[:_LONGEST_MESSAGE])
            raise OtherSideFailed(f"{type(self).__name__}: {type(error).__name__}: {said}") from error
