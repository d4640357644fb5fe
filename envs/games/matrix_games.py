"""Matrix games: one answer each, and a matrix of win probabilities, which need not follow any order."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import ArrayLike, NDArray

from polyturn.envs.games.choices import choice
from polyturn.envs.games.seeding import SeededGame
from polyturn.envs.preference import Annotator, Preference
from polyturn.envs.settings import check_count, check_reset_options
from polyturn.envs.spaces import UnicodeText
from polyturn.envs.suggest import did_you_mean
from polyturn.envs.trajectory import Group

Array = NDArray[np.float64]

GAMES: Mapping[str, tuple[tuple[str, ...], tuple[tuple[float, ...], ...]]] = MappingProxyType(
    {
        "rock-paper-scissors": (
            ("rock", "paper", "scissors"),
            ((0.5, 0.0, 1.0), (1.0, 0.5, 0.0), (0.0, 1.0, 0.5)),
        ),
        # a beats b beats c beats a, unevenly: no order, and no symmetry that would make the start the solution
        "near-cycle": (
            ("a", "b", "c"),
            ((0.5, 0.96, 0.24), (0.04, 0.5, 0.79), (0.76, 0.21, 0.5)),
        ),
    }
)
"""Built-in games: names of the answers, and P(row beats column)."""


def payoff_matrix(payoff: str | ArrayLike) -> tuple[Array, tuple[str, ...]]:
    """P(row beats column) and the names of the answers.

    Raises:
        ValueError: An unknown name, not a square matrix in [0, 1], or P + P^T that is not 1.
    """
    if isinstance(payoff, str):
        if payoff not in GAMES:
            raise ValueError(
                f"payoff: expected one of {', '.join(GAMES)}, got {payoff!r}.{did_you_mean(payoff, GAMES)}"
            )
        names, rows = GAMES[payoff]
        return np.array(rows), names
    matrix = np.array(payoff, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise ValueError(f"payoff: expected [A, A] with A >= 2, got shape {matrix.shape}")
    if not (np.all((matrix >= 0) & (matrix <= 1)) and np.allclose(matrix + matrix.T, 1.0, atol=1e-9)):
        raise ValueError("payoff: expected P(row beats column) in [0, 1] with P + P^T = 1")
    return matrix, tuple(str(answer) for answer in range(len(matrix)))


def by_payoff(payoff: str | ArrayLike, *, key: str = "answer") -> Annotator:
    """An oracle for groups of a matrix game: P(i beats j) is the matrix's entry for their answers.

    Members that are invalid, or that gave no valid answer, are never compared.

    Args:
        payoff: As for `MatrixGame`.
        key: Where a trajectory's info holds its answer's number; "arm" annotates bandits.
    """
    matrix, _ = payoff_matrix(payoff)

    def annotate(group: Group) -> Preference:
        answers = [int(m.info[key]) if m.valid and key in m.info else -1 for m in group]
        index = np.array(answers, np.int64)
        wins = matrix[index[:, None], index[None, :]]
        unknown = index < 0
        wins[unknown, :] = np.nan
        wins[:, unknown] = np.nan
        return Preference(wins, "oracle")

    return annotate


def duels(payoff: Array, answers: ArrayLike, opponents: ArrayLike, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Outcomes of many duels at once: whether `answers [N]` beat `opponents [N]`, a tie or doubt decided by chance."""
    own, other = np.asarray(answers, np.int64), np.asarray(opponents, np.int64)
    return rng.random(own.shape) < payoff[own, other]


class MatrixGame(SeededGame):
    """Answer once against a hidden opponent; the reward is the probability that your answer beats theirs.

    The answer's name, or its number as the last one in the text, is the answer. Text that is neither loses: reward 0.

    Args:
        payoff: A built-in game ("rock-paper-scissors", "near-cycle") or P(row beats column) `[A, A]`.
        opponent: `[A]` probabilities the opponent answers with; uniform by default.
        rounds: Rounds an episode, the opponent's answer drawn anew each time; the reward is averaged over them.

    Raises:
        ValueError: No preference matrix, no distribution, or fewer than one round.
    """

    blocking = False
    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium declares it an instance variable)
    reward_bounds = (0.0, 1.0)

    def __init__(
        self,
        payoff: str | Sequence[Sequence[float]] | Array = "rock-paper-scissors",
        opponent: Sequence[float] | None = None,
        rounds: int = 1,
    ) -> None:
        self.payoff, self.names = payoff_matrix(payoff)
        size = len(self.names)
        probabilities = np.full(size, 1.0 / size) if opponent is None else np.asarray(opponent, np.float64)
        if probabilities.shape != (size,) or np.any(probabilities < 0) or abs(probabilities.sum() - 1.0) > 1e-9:
            raise ValueError(f"MatrixGame: expected an opponent [{size}] >= 0 that adds to 1, got {probabilities}")
        check_count("MatrixGame(rounds)", rounds)
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self.opponent, self.rounds = probabilities / probabilities.sum(), rounds
        cumulative = self.opponent.cumsum()
        self._cumulative: list[float] = (cumulative / cumulative[-1]).tolist()
        self._opponents: list[int] = []  # what the opponent will answer; empty without an episode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Fixes what the opponent will answer."""
        super().reset(seed=seed)
        check_reset_options(self, options)
        # As `Generator.choice` with probabilities draws, without its checks of them, which take longer than an episode.
        self._opponents = [bisect_right(self._cumulative, draw) for draw in self.np_random.random(self.rounds).tolist()]
        return f"Choose one of: {', '.join(self.names)}.", {}

    def read(self, action: str) -> int | None:
        """The number of the answer that the text names, or None."""
        word = action.strip().casefold()
        return self.names.index(word) if word in self.names else choice(action, len(self.names))

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Plays one round.

        Raises:
            ResetNeeded: The episode is over, or none was started.
        """
        if not self._opponents:
            raise ResetNeeded("the episode is over: call reset() first")
        theirs = self._opponents.pop(0)
        done = not self._opponents
        said = f"I chose {self.names[theirs]}."
        answer = self.read(action)
        if answer is None:
            return f"{said} You chose nothing.", 0.0, done, False, {"opponent": theirs}
        reward = float(self.payoff[answer, theirs]) / self.rounds
        return said, reward, done, False, {"answer": answer, "opponent": theirs}

    def snapshot(self) -> dict[str, list[int]]:
        """The state between two rounds."""
        return {"opponents": list(self._opponents)}

    def restore(self, snapshot: dict[str, list[int]]) -> None:
        """Goes on from a snapshot."""
        self._opponents = list(snapshot["opponents"])
