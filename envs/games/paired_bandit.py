"""A duelling bandit: compare two arms at a time and learn only which one won."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded

from polyturn.envs.games.bandits import Reward, reward_table
from polyturn.envs.games.choices import numbers
from polyturn.envs.games.seeding import SeededGame
from polyturn.envs.settings import check_count, check_range, check_reset_options
from polyturn.envs.spaces import UnicodeText


class PairedBandit(SeededGame):
    """Several duels an episode: name two arms, hear the winner, and be paid their mean utility without seeing it.

    The first of the two wins with probability sigmoid((u_first - u_second) / temperature): Bradley-Terry on hidden
    utilities (Yue and Joachims 2009). The last two numbers in the agent's text are its arms; naming one arm twice is
    how to exploit; a single number challenges the last winner (at first: itself). Text without a valid number earns the
    lowest utility.

    Each episode hides its utilities under a random numbering of the arms, unless `shuffle` is False.

    Args:
        reward: Utilities: "R1", "R2", values for each arm, or a function of (context, arm) with context 0.
        arms: Number of arms.
        duels: Duels an episode.
        temperature: Spread of the noise; smaller is closer to certain.
        shuffle: Whether the arms are renumbered in every episode.

    Raises:
        ValueError: Options that make no bandit; all utilities equal.
    """

    blocking = False
    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium declares it an instance variable)

    def __init__(
        self,
        reward: Reward = "R1",
        arms: int = 10,
        duels: int = 10,
        temperature: float = 0.2,
        shuffle: bool = True,
    ) -> None:
        check_count("PairedBandit(arms)", arms, 2)
        check_count("PairedBandit(duels)", duels)
        check_range("PairedBandit(temperature)", temperature, 0, above=True)
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self.arms, self.duels, self.temperature, self.shuffle = arms, duels, temperature, shuffle
        self.utilities = reward_table(reward, contexts=1, arms=arms)[0]
        self.reward_bounds = float(self.utilities.min()), float(self.utilities.max())
        if self.reward_bounds[0] == self.reward_bounds[1]:
            raise ValueError("PairedBandit: expected utilities that differ, got the same for every arm")
        self._order: list[int] = list(range(arms))
        self._draws: list[float] = []  # one number for each duel that is left; empty without an episode
        self._winner: int | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Hides the utilities under a new numbering."""
        super().reset(seed=seed)
        check_reset_options(self, options)
        order = self.np_random.permutation(self.arms)
        self._order = order.tolist() if self.shuffle else list(range(self.arms))
        # All noise is drawn here: a duel's outcome then depends on its place in the episode, not on earlier answers.
        self._draws = self.np_random.random(self.duels).tolist()
        self._winner = None
        return (
            f"There are arms 0 to {self.arms - 1} of hidden worth. In each of {self.duels} duels name two of them, or "
            "one against the last winner: I say which one won. You are paid the mean worth of both."
        ), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Lets two arms duel.

        Raises:
            ResetNeeded: The episode is over, or none was started.
        """
        if not self._draws:
            raise ResetNeeded("the episode is over: call reset() first")
        draw = self._draws.pop(0)
        left = len(self._draws)
        rest = f"{left} {'duel is' if left == 1 else 'duels are'} left."
        named = numbers(action)[-2:]
        if not named or max(named) >= self.arms:
            reward = self.reward_bounds[0] / self.duels
            return f"Name two arms from 0 to {self.arms - 1}. {rest}", reward, not left, False, {}
        if len(named) == 1:
            named.append(named[0] if self._winner is None else self._winner)
        first, second = (float(self.utilities[self._order[arm]]) for arm in named)
        chance = float(0.5 * (1.0 + np.tanh(0.5 * (first - second) / self.temperature)))
        self._winner = winner = named[0] if draw < chance else named[1]
        reward = 0.5 * (first + second) / self.duels
        info = {"arms": named, "winner": winner, "probability": chance}
        return f"Arm {winner} won. {rest}", reward, not left, False, info

    def snapshot(self) -> dict[str, Any]:
        """The state between two duels."""
        return {"order": list(self._order), "draws": list(self._draws), "winner": self._winner}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Goes on from a snapshot."""
        self._order, self._draws, self._winner = list(snapshot["order"]), list(snapshot["draws"]), snapshot["winner"]
