"""A multi-turn tabular game as an environment, as an oracle for groups, and as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from polyturn.envs.games.choices import choice
from polyturn.envs.games.seeding import SeededGame
from polyturn.envs.games.tabular_games import Array, TabularGame, detour_game, random_game
from polyturn.envs.preference import Annotator, Preference
from polyturn.envs.settings import check_count
from polyturn.envs.spaces import UnicodeText
from polyturn.envs.suggest import did_you_mean
from polyturn.envs.trajectory import Group

Games = str | TabularGame | Sequence[TabularGame]
"""A built-in family ("detour", "random"), one game, or several."""

NAMES = ("detour", "random")


def tabular_games(
    games: Games, *, count: int = 16, game_seed: int = 0, states: Sequence[int] = (3, 4), answers: int = 3
) -> tuple[TabularGame, ...]:
    """The games of a family.

    Args:
        games: "detour" is one game made by hand, "random" is `count` random ones; or your own.
        count: Random games: how many.
        game_seed: Random games: game i is made from (game_seed, i).
        states: Random games: states after each turn.
        answers: Random games: answers in every state.

    Raises:
        ValueError: An unknown name, or no game.
    """
    if isinstance(games, TabularGame):
        return (games,)
    if not isinstance(games, str):
        if not games:
            raise ValueError("games: expected at least one game, got none")
        return tuple(games)
    if games == "detour":
        return (detour_game(),)
    if games == "random":
        sources = (np.random.default_rng([game_seed, index]) for index in range(count))
        return tuple(random_game(source, states=tuple(states), actions=answers) for source in sources)
    raise ValueError(f"games: expected one of {', '.join(NAMES)}, got {games!r}.{did_you_mean(games, NAMES)}")


def by_final_state(games: Sequence[TabularGame]) -> Annotator:
    """An oracle for groups of `polyturn/TabularGame-v0`: P(i beats j) by the states their episodes ended in.

    Members that are invalid or did not end in a state are never compared.

    Args:
        games: The environment's games, `tabular_games(...)` of the same options.
    """

    def annotate(group: Group) -> Preference:
        preference = games[int(group[0].task_id.removeprefix("game-"))].preference
        ends = [int(m.info["final_state"]) if m.valid and "final_state" in m.info else -1 for m in group]
        index = np.array(ends, np.int64)
        wins = preference[index[:, None], index[None, :]]
        wins[index < 0, :] = np.nan
        wins[:, index < 0] = np.nan
        return Preference(wins, "oracle")

    return annotate


@dataclass(frozen=True, eq=False)
class TabularPlays:
    """Many episodes of a tabular game as arrays.

    Attributes:
        states: `[N, H + 1]` int, the state before each turn and the final one.
        answers: `[N, H]` int.
        logps: `[N, H]` log-probability of each answer under the policy that gave it.
    """

    states: NDArray[np.int64]
    answers: NDArray[np.int64]
    logps: Array


def play_games(game: TabularGame, policy: Sequence[Array], count: int, rng: np.random.Generator) -> TabularPlays:
    """Plays `count` episodes at once.

    Args:
        game: The game.
        policy: One `[S_h, A]` array a turn.
        count: Number of episodes.
        rng: Source of randomness.
    """
    states = np.zeros((count, game.turns + 1), np.int64)
    answers = np.zeros((count, game.turns), np.int64)
    logps = np.zeros((count, game.turns))
    for h, (layer, probabilities) in enumerate(zip(game.transitions, policy, strict=True)):
        answers[:, h] = _draw(probabilities[states[:, h]], rng)
        logps[:, h] = np.log(probabilities[states[:, h], answers[:, h]])
        states[:, h + 1] = _draw(layer[states[:, h], answers[:, h]], rng)
    return TabularPlays(states, answers, logps)


def _draw(probabilities: Array, rng: np.random.Generator) -> NDArray[np.int64]:
    """One index from each row."""
    cumulative = np.cumsum(probabilities, axis=1)
    # Scaled by the row's own sum: rounding of the last entry must not lead to an index of probability 0.
    return np.asarray((cumulative <= rng.random((len(cumulative), 1)) * cumulative[:, -1:]).sum(axis=1), np.int64)


class TabularGameEnv(SeededGame):
    """Play a tabular game; at the end you are paid the probability to beat an opponent that answers at random.

    That reward only gives lone agents something to see: the game itself is a comparison of two players, which
    `by_final_state` makes of a group. The last number in the text is the answer. Text without a valid one ends the
    episode with reward 0.

    Options of `reset`: `noise`, an int: another number gives other noise from the identical start.

    Args:
        games: "detour", "random", a `TabularGame`, or several; one of them is drawn each episode.
        count: Random games: how many.
        game_seed: Random games: which.
        states: Random games: states after each turn.
        answers: Random games: answers in every state.

    Raises:
        ValueError: An unknown family, or no game.
    """

    blocking = False
    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium declares it an instance variable)
    reward_bounds = (0.0, 1.0)
    takes_noise = True

    def __init__(
        self,
        games: Games = "random",
        count: int = 16,
        game_seed: int = 0,
        states: Sequence[int] = (3, 4),
        answers: int = 3,
    ) -> None:
        check_count("TabularGame(count)", count)
        check_count("TabularGame(game_seed)", game_seed, 0)
        check_count("TabularGame(answers)", answers)
        for size in states:
            check_count("TabularGame(states): each", size)
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self.games = tabular_games(games, count=count, game_seed=game_seed, states=states, answers=answers)
        self._worth = [game.preference @ _uniform_ends(game) for game in self.games]
        self._index = self._state = 0
        self._draws: list[float] = []  # one number for each turn that is left; empty without an episode

    def _question(self, turn: int) -> str:
        game = self.games[self._index]
        return (
            f"Game {self._index}, turn {turn + 1} of {game.turns}, state {self._state}. "
            f"Answer with a number from 0 to {game.transitions[turn].shape[1] - 1}."
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draws a game and starts in its first state; all of the environment's noise is drawn here.

        Raises:
            ValueError: An option other than `noise`.
        """
        super().reset(seed=seed)
        chosen = dict(options or {})
        noise = int(chosen.pop("noise", 0))
        if chosen:
            got = ", ".join(map(repr, chosen))
            raise ValueError(f"TabularGame: expected no option of reset but 'noise', got {got}")
        self._index, self._state = int(self.np_random.integers(len(self.games))), 0
        self._draws = self.np_random.random(self.games[self._index].turns).tolist()
        if noise:
            self._draw_noise(int(self.np_random.integers(2**63)), noise)
        return self._question(0), {"task_id": f"game-{self._index}"}

    def renew_noise(self, noise: int) -> None:
        """Draws the noise of the turns that are left anew; another number gives other noise.

        Raises:
            ResetNeeded: The episode is over, or none was started.
        """
        if not self._draws:
            raise ResetNeeded("the episode is over: call reset() first")
        self._draw_noise(int(self._draws[0] * 2**53), noise)

    def _draw_noise(self, source: int, noise: int) -> None:
        numbers = np.random.default_rng([source, abs(noise), *([1] if noise < 0 else [])])
        self._draws = numbers.random(len(self._draws)).tolist()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Takes one answer.

        Raises:
            ResetNeeded: The episode is over, or none was started.
        """
        if not self._draws:
            raise ResetNeeded("the episode is over: call reset() first")
        game = self.games[self._index]
        turn = game.turns - len(self._draws)
        draw = self._draws.pop(0)
        layer = game.transitions[turn]
        answer = choice(action, layer.shape[1])
        if answer is None:
            self._draws = []
            return "That is no answer.", 0.0, True, False, {}
        cumulative = np.cumsum(layer[self._state, answer])
        before, self._state = self._state, int((cumulative <= draw * cumulative[-1]).sum())
        info = {"state": before, "answer": answer}
        if self._draws:
            return self._question(turn + 1), 0.0, False, False, info
        info["final_state"] = self._state
        return f"You end in state {self._state}.", float(self._worth[self._index][self._state]), True, False, info

    def snapshot(self) -> dict[str, Any]:
        """The state between two turns."""
        return {"game": self._index, "state": self._state, "draws": list(self._draws)}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Goes on from a snapshot."""
        self._index, self._state, self._draws = snapshot["game"], snapshot["state"], list(snapshot["draws"])


def _uniform_ends(game: TabularGame) -> Array:
    """Where answering at random ends."""
    ends = np.ones(1)
    for layer in game.transitions:
        ends = np.einsum("s,sat->t", ends, layer) / layer.shape[1]
    return ends
