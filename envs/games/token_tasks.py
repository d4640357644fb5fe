"""Synthetic language tasks of arXiv 2404.14367, whose true reward is known: bandits over sequences, and lengths.

Tokens are words here: what an agent writes is split at blanks. A vocabulary in which every token is one word makes an
environment's words and the model's tokens the same thing.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import ArrayLike, NDArray

from polyturn.envs.games.bandits import Reward, reward_table
from polyturn.envs.games.seeding import SeededGame
from polyturn.envs.settings import check_count, check_reset_options
from polyturn.envs.spaces import UnicodeText
from polyturn.envs.suggest import did_you_mean

Array = NDArray[np.float64]
Task = Literal["minimum", "mode", "skew"]
TASKS = ("minimum", "mode", "skew")
MODE = 203
"""The length that the mode task rewards most in the paper."""

_TOKEN = re.compile(r"[0-9]{1,9}")
_WORD = re.compile(r"[A-Za-z0-9]+[.,;:!?]?")


def token_rewards(tokens: ArrayLike, values: Array) -> Array:
    """Mean reward of GENERATED tokens, `[..., L]` -> `[...]`; the prompt token does not count.

    Args:
        tokens: `[..., L]` int, numbers outside 0 to V - 1 are worth the lowest value.
        values: `[V]` what each token is worth.
    """
    ids = np.asarray(tokens, np.int64)
    known = (ids >= 0) & (ids < len(values))
    return np.asarray(np.where(known, values[np.where(known, ids, 0)], values.min()).mean(axis=-1), np.float64)


class TokenBandit(SeededGame):
    """The bandit as a sequence: one prompt token is given, nine are written, the reward is their mean worth.

    The answer is whole numbers separated by blanks. A word that is no token of the vocabulary, and every one that is
    missing, is worth the lowest value; what is beyond the length does not count.

    Args:
        reward: What each token is worth: "R1", "R2", values, or a function of (context, token) with context 0.
        vocabulary: Number of tokens V.
        length: Tokens to write.

    Raises:
        ValueError: Options that make no task; all tokens worth the same.
    """

    blocking = False
    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium declares it an instance variable)

    def __init__(self, reward: Reward = "R1", vocabulary: int = 100, length: int = 9) -> None:
        check_count("TokenBandit(vocabulary)", vocabulary, 2)
        check_count("TokenBandit(length)", length)
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self.length = length
        self.values = reward_table(reward, contexts=1, arms=vocabulary)[0]
        self.reward_bounds = float(self.values.min()), float(self.values.max())
        if self.reward_bounds[0] == self.reward_bounds[1]:
            raise ValueError("TokenBandit: expected values that differ, got the same for every token")
        self._worth: list[float] = self.values.tolist()
        self._running = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Gives a prompt token, which the reward ignores."""
        super().reset(seed=seed)
        check_reset_options(self, options)
        self._running = True
        prompt = int(self.np_random.integers(len(self.values)))
        return str(prompt), {"task_id": f"prompt-{prompt}"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Pays the mean worth of the tokens written.

        Raises:
            ResetNeeded: The episode is over, or none was started.
        """
        if not self._running:
            raise ResetNeeded("the episode is over: call reset() first")
        self._running = False
        words = action.split(None, self.length)[: self.length]
        # Plain numbers, of which there are few, added up as `token_rewards` does, to the last bit: by numpy.
        worth, valid = [self.reward_bounds[0]] * self.length, 0
        for place, word in enumerate(words):
            if _TOKEN.fullmatch(word) and (token := int(word)) < len(self._worth):
                worth[place] = self._worth[token]
                valid += 1
        return "", float(np.add.reduce(worth)) / self.length, True, False, {"valid_tokens": valid}

    def snapshot(self) -> dict[str, bool]:
        """The state before the turn; the prompt is in the observation."""
        return {"running": self._running}

    def restore(self, snapshot: dict[str, bool]) -> None:
        """Goes on from a snapshot."""
        self._running = snapshot["running"]


def length_rewards(lengths: ArrayLike, task: Task, *, mode: int = MODE) -> Array:
    """The true reward of answers of these lengths: -length, or -|length - mode|.

    "skew" rewards the minimum length as "minimum" does; what differs is the data (`skewed_lengths`).

    Raises:
        ValueError: An unknown task.
    """
    size = np.asarray(lengths, np.float64)
    if task not in TASKS:
        raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {task!r}.{did_you_mean(task, TASKS)}")
    return -np.abs(size - mode) if task == "mode" else -size


def skewed_lengths(size: int, rng: np.random.Generator, *, limit: int, scale: float) -> NDArray[np.int64]:
    """Lengths of data in which short answers are rare: `limit` minus an exponential, rounded, within 1 to `limit`.

    Offline pairs drawn from it hardly ever show the lengths that the reward likes best. The paper skews its preference
    data to long or rare lengths by a truncated exponential; the scale here is the caller's.

    Args:
        size: How many.
        rng: Source of randomness.
        limit: Longest length, and the commonest.
        scale: Mean distance from the limit; the share of lengths below `limit - d` is about exp(-d / scale).
    """
    return np.clip(np.rint(limit - rng.exponential(scale, size)), 1, limit).astype(np.int64)


class TokenLength(SeededGame):
    """Write an answer whose length is right; what it says does not matter.

    Words are ASCII letters or digits, with at most one mark of punctuation at their end, separated by blanks. An empty
    answer, one with anything else in it, and one beyond the limit earn the lowest reward, or else silence and noise
    would be the shortest answers.

    Args:
        task: "minimum" and "skew" reward -length, "mode" rewards -|length - mode|.
        limit: Longest answer, in words.
        mode: The best length of the mode task.
        prompts: Number of different prompts; the reward ignores them.

    Raises:
        ValueError: Options that make no task.
    """

    blocking = False
    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium declares it an instance variable)

    def __init__(self, task: Task = "minimum", limit: int = 512, mode: int = MODE, prompts: int = 64) -> None:
        for name, value, low in (("limit", limit, 2), ("prompts", prompts, 1), ("mode", mode, 1)):
            check_count(f"TokenLength({name})", value, low)
        if task == "mode" and mode > limit:
            raise ValueError(
                f"TokenLength: expected limit >= 2, prompts >= 1 and mode within 1 to limit, got limit={limit}, "
                f"prompts={prompts}, mode={mode}"
            )
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self.task: Task = task
        self.limit, self.mode, self.prompts = limit, mode, prompts
        possible = length_rewards(np.arange(1, limit + 1), task, mode=mode)
        # Worse than any answer: an invalid one must not tie with a valid attempt.
        self.reward_bounds = float(possible.min()) - 1.0, float(possible.max())
        self._running = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draws a prompt."""
        super().reset(seed=seed)
        check_reset_options(self, options)
        self._running = True
        prompt = int(self.np_random.integers(self.prompts))
        return f"Prompt {prompt}.", {"task_id": f"prompt-{prompt}"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Pays for the length.

        Raises:
            ResetNeeded: The episode is over, or none was started.
        """
        if not self._running:
            raise ResetNeeded("the episode is over: call reset() first")
        self._running = False
        words = action.split()
        length = len(words)
        if not 1 <= length <= self.limit or not all(map(_WORD.fullmatch, words)):
            return "", self.reward_bounds[0], True, False, {}
        return "", float(length_rewards(length, self.task, mode=self.mode)), True, False, {"length": length}

    def snapshot(self) -> dict[str, bool]:
        """The state before the turn; the prompt is in the observation."""
        return {"running": self._running}

    def restore(self, snapshot: dict[str, bool]) -> None:
        """Goes on from a snapshot."""
        self._running = snapshot["running"]
