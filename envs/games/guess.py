"""Guess the number: the smallest complete text environment, and a template for others."""

from __future__ import annotations

import re
from typing import Any

from gymnasium.error import ResetNeeded

from polyturn.envs.games.seeding import SeededGame
from polyturn.envs.settings import check_count, check_reset_options
from polyturn.envs.spaces import UnicodeText

# ASCII digits only, and few of them: int() accepts other scripts' digits and refuses very long numbers.
_NUMBER = re.compile(r"(?<![0-9])[0-9]{1,9}(?![0-9])")


class Guess(SeededGame):
    """Find a hidden whole number; every guess is answered with "higher" or "lower".

    The last number in the agent's text is its guess. Text without one is a wasted turn. The return is 1.0 if the number
    is found and 0.0 if the turns run out, so halving the range always wins with the default options.

    Args:
        high: The number is drawn uniformly from 1 to `high`.
        turns: Guesses allowed.
    """

    blocking = False
    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium declares it an instance variable)
    reward_bounds = (0.0, 1.0)
    success_return = 1.0

    def __init__(self, high: int = 100, turns: int = 7) -> None:
        check_count("Guess(high)", high, 2)
        check_count("Guess(turns)", turns)
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self.high = high
        self.turns = turns
        self._secret = 0
        self._left = 0  # guesses left; 0 also means that no episode is running

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draws a number and says the rules."""
        super().reset(seed=seed)
        check_reset_options(self, options)
        self._secret = int(self.np_random.integers(1, self.high + 1))
        self._left = self.turns
        observation = (
            f"I am thinking of a whole number from 1 to {self.high}. You have {self._count()}. "
            "After each I say whether my number is higher or lower. Write one number."
        )
        return observation, {"task_id": f"number-{self._secret}"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Answers one guess.

        Raises:
            ResetNeeded: The episode is over, or none was started.
        """
        if self._left == 0:
            raise ResetNeeded("the episode is over: call reset() first")
        numbers = _NUMBER.findall(action)
        guess = int(numbers[-1]) if numbers else None
        self._left -= 1
        found = guess == self._secret
        if found:
            self._left = 0
            observation = "Correct!"
        else:
            if guess is None:
                hint = f"Write one whole number from 1 to {self.high}."
            else:
                hint = f"My number is {'higher' if self._secret > guess else 'lower'} than {guess}."
            rest = f"You have {self._count()} left." if self._left else f"You lose; it was {self._secret}."
            observation = f"{hint} {rest}"
        # Running out of guesses is a rule of the game that the agent knows, so it is an end, not a truncation.
        # A key without a value is left out: Gymnasium's vector environments cannot mix None with numbers.
        info = {} if guess is None else {"guess": guess}
        return observation, float(found), self._left == 0, False, info

    def _count(self) -> str:
        return f"{self._left} guess" if self._left == 1 else f"{self._left} guesses"

    def snapshot(self) -> dict[str, int]:
        """The state between two turns."""
        return {"secret": self._secret, "left": self._left}

    def restore(self, snapshot: dict[str, int]) -> None:
        """Goes on from a snapshot."""
        self._secret, self._left = snapshot["secret"], snapshot["left"]
