"""`polyturn/TextArena-v0`: the games of TextArena (arXiv 2504.11442) for one player, or for two with an opponent."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

from polyturn.envs.adapters.replayed import Replayed, global_numbers_kept
from polyturn.envs.extras import how_to_install
from polyturn.envs.plugins import attribute
from polyturn.envs.suggest import did_you_mean

Opponent = Callable[[str, random.Random], str]
"""Answers what it sees; random numbers come from the second argument only."""

_MOVES = re.compile(r"\[\w[\w ,]{0,20}\]")


def random_moves(seen: str, numbers: random.Random) -> str:
    """Plays one of the moves that stand in square brackets in the latest message, or a small number."""
    moves = _MOVES.findall(seen)
    return numbers.choice(moves) if moves else f"[{numbers.randrange(9)}]"


class TextArena(Replayed):
    """A game of TextArena; the return is what the game pays the agent's player at its end.

    Observations are the messages since the agent's last turn, without its own (TextArena's wrapper sends the whole
    history each turn). `info` at the end holds `success` (the game paid 1 or more) and the game's `reason`.

    Args:
        game: TextArena's id, such as "GuessTheNumber-v0" or "TicTacToe-v0".
        players: 1, or 2 with an opponent.
        seat: Which player the agent is: 0 or 1.
        opponent: "random", "module:attribute", or a function from what it sees and random numbers to its move.
        max_turns: Turns of the agent after which an episode is truncated.

    Raises:
        ImportError: TextArena is not installed.
        ValueError: There is no such game, or an option does not fit.
    """

    other_side = "TextArena"

    def __init__(
        self,
        game: str = "GuessTheNumber-v0",
        *,
        players: int = 1,
        seat: int = 0,
        opponent: str | Opponent = "random",
        max_turns: int = 100,
    ) -> None:
        super().__init__(max_turns, (-1.0, 1.0))
        try:
            with global_numbers_kept():
                import textarena
                from textarena.envs.registration import ENV_REGISTRY
        except ImportError as error:
            raise ImportError(f"TextArena needs textarena: {how_to_install('adapters')}") from error
        if players not in (1, 2) or not 0 <= seat < players:
            raise ValueError(f"TextArena: expected players 1 or 2 and 0 <= seat < players, got {players} and {seat}")
        raw = game if game.endswith("-raw") else f"{game}-raw"
        if raw not in ENV_REGISTRY:
            names = [name.removesuffix("-raw") for name in ENV_REGISTRY if name.endswith("-raw")]
            raise ValueError(f"TextArena: expected the id of a game, got {game!r}.{did_you_mean(game, names)}")
        with global_numbers_kept():
            textarena.make(raw)  # imports the game's module, which may draw random numbers
        self._textarena, self._game = textarena, raw
        self.players, self.seat = players, seat
        if isinstance(opponent, str):
            opponent = random_moves if opponent == "random" else attribute(opponent, "an opponent")
        self._opponent = opponent
        self._env: Any = None
        self._opponent_numbers = random.Random(0)

    def _begin(self, seed: int) -> tuple[str, dict[str, Any]]:
        self._env = self._textarena.make(self._game)
        self._env.reset(num_players=self.players, seed=seed)
        self._opponent_numbers = random.Random(seed + 1)
        seen, done = self._until_agent(False)
        if done:
            raise RuntimeError("the game ended before the agent's first turn")
        return seen, {}

    def _turn(self, action: str) -> tuple[str, float, bool, dict[str, Any]]:
        done, _ = self._env.step(action=action)
        seen, done = self._until_agent(bool(done))
        if not done:
            return seen, 0.0, False, {}
        rewards, infos = self._env.close()
        reward = float(rewards[self.seat])
        reason = str((infos or {}).get(self.seat, {}).get("reason", ""))
        return seen, reward, True, {"success": reward >= 1.0, "reason": reason}

    def _until_agent(self, done: bool) -> tuple[str, bool]:
        """Lets the opponent play until it is the agent's turn; what the agent sees, and whether the game is over."""
        while not done:
            player, messages = self._env.get_observation()
            # A player's own words come back to it, and are left out.
            text = "\n".join(
                str(text) for sender, text, kind in messages if sender != player or kind.name != "PLAYER_ACTION"
            )
            if player == self.seat:
                return text, False
            done, _ = self._env.step(action=self._opponent(text, self._opponent_numbers))
        return "", True

    def _stop(self) -> None:
        self._env = None
