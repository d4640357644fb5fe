"""Environments with numbered actions through text: `polyturn/GymnasiumText-v0` and `polyturn/PettingZoo-v0`.

The agent reads the state as text and names an action by its number; the last whole number of its turn counts. A turn
without the number of a legal action costs the turn and changes nothing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete

from polyturn.envs.adapters.replayed import Replayed, global_numbers_kept
from polyturn.envs.plugins import attribute

_NUMBER = re.compile(r"(?<![\w.])-?[0-9]{1,6}(?![\w]|\.[0-9])")
_MOST_VALUES = 2000


def action_of(text: str, legal: Sequence[int]) -> int | None:
    """The last whole number of a text, if it is a legal action."""
    found = _NUMBER.findall(text)
    return int(found[-1]) if found and int(found[-1]) in legal else None


def shown(observation: Any) -> str:
    """An observation as text: arrays as nested lists, numbers to four places."""
    if isinstance(observation, dict):
        return "\n".join(f"{key}: {shown(value)}" for key, value in observation.items())
    array = np.asarray(observation)
    if array.dtype.kind in "biuf" and array.size <= _MOST_VALUES:
        return str(np.round(array, 4).tolist() if array.dtype.kind == "f" else array.tolist())
    return str(observation)


class GymnasiumText(Replayed):
    """An environment of Gymnasium with discrete actions, its observations (or its "ansi" rendering) as text.

    Args:
        game: Id of the environment.
        reward_bounds: Smallest and largest return of an episode; Gymnasium's environments do not declare them.
        names: What each action is called.
        describe: From an observation to text; by default its rendering where it has "ansi", else its numbers.
        max_turns: Turns after which an episode is truncated.
        options: Keyword arguments of the environment.

    Raises:
        ValueError: The actions are not discrete, or there are not as many names.
    """

    other_side = "the environment of Gymnasium"

    def __init__(
        self,
        game: str = "FrozenLake-v1",
        *,
        reward_bounds: tuple[float, float] = (0.0, 1.0),
        names: Sequence[str] | None = None,
        describe: Callable[[Any], str] | None = None,
        max_turns: int = 100,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(max_turns, reward_bounds)
        modes = getattr(gymnasium.envs.registration.load_env_creator(_entry(game)), "metadata", {})
        self._drawn = describe is None and "ansi" in modes.get("render_modes", ())
        settings: dict[str, Any] = {"render_mode": "ansi"} if self._drawn else {}
        self._env: gymnasium.Env[Any, Any] = gymnasium.make(game, **{**settings, **(options or {})})
        space = self._env.action_space
        if not isinstance(space, Discrete):
            raise ValueError(f"GymnasiumText: expected discrete actions, got {space} of {game}")
        self._legal = range(int(space.start), int(space.start + space.n))
        if names is not None and len(names) != len(self._legal):
            raise ValueError(f"GymnasiumText: expected {len(self._legal)} names of actions, got {len(names)}")
        named = names or [""] * len(self._legal)
        listed = ", ".join(f"{n} {name}".strip() for n, name in zip(self._legal, named, strict=True))
        self._how = f"Actions: {listed}. Answer with the number of one."
        self._describe = describe

    def _begin(self, seed: int) -> tuple[str, dict[str, Any]]:
        observation, _ = self._env.reset(seed=seed)
        self._state = observation
        return f"{self._seen_now()}\n{self._how}", {}

    def _turn(self, action: str) -> tuple[str, float, bool, dict[str, Any]]:
        chosen = action_of(action, self._legal)
        if chosen is None:
            return f"No action. {self._how}\n{self._seen_now()}", 0.0, False, {"valid": False}
        self._state, reward, terminated, truncated, _ = self._env.step(chosen)
        return self._seen_now(), float(reward), bool(terminated or truncated), {"valid": True}

    def _seen_now(self) -> str:
        if self._drawn:
            return re.sub(r"\x1b\[(\d+)m(.)\x1b\[0m", r"(\2)", str(self._env.render())).strip("\n")
        return self._describe(self._state) if self._describe else shown(self._state)

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()


def _entry(env_id: str) -> Any:
    return gymnasium.spec(env_id).entry_point


class PettingZoo(Replayed):
    """A turn-based (AEC) game of PettingZoo with discrete actions; the agent is one player, the others are scripted.

    Args:
        game: A function that makes the game, or where one stands, such as "pettingzoo.classic.tictactoe_v3:env".
        player: Which of the game's players the agent is.
        opponent: From what it sees, the legal actions and random numbers to an action; by default any legal one.
        describe: From an observation to text; by default its numbers.
        reward_bounds: Smallest and largest return of an episode.
        max_turns: Turns after which an episode is truncated.
        options: Keyword arguments of the game.

    Raises:
        PluginError: The game cannot be loaded.
    """

    other_side = "PettingZoo"

    def __init__(
        self,
        game: str | Callable[..., Any],
        *,
        player: int = 0,
        opponent: Callable[[Any, Sequence[int], random.Random], int] | None = None,
        describe: Callable[[Any], str] = shown,
        reward_bounds: tuple[float, float] = (-1.0, 1.0),
        max_turns: int = 100,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(max_turns, reward_bounds)
        with global_numbers_kept():
            make = attribute(game, "a game of PettingZoo") if isinstance(game, str) else game
            self._game = make(**(options or {}))
        self._player, self._describe = player, describe
        self._opponent = opponent or (lambda seen, legal, numbers: numbers.choice(list(legal)))
        self._numbers_of_others = random.Random(0)
        self._me = ""
        self._legal: list[int] = []

    def _begin(self, seed: int) -> tuple[str, dict[str, Any]]:
        self._game.reset(seed=seed)
        for place, name in enumerate(self._game.possible_agents):
            self._game.action_space(name).seed(seed + place)
        self._numbers_of_others = random.Random(seed + 1)
        self._me = self._game.possible_agents[self._player]
        seen, _, ended = self._until_agent()
        if ended:
            raise RuntimeError("the game ended before the agent's first turn")
        return seen, {}

    def _turn(self, action: str) -> tuple[str, float, bool, dict[str, Any]]:
        chosen = action_of(action, self._legal)
        if chosen is None:
            return f"No legal action. Legal: {', '.join(map(str, self._legal))}.", 0.0, False, {"valid": False}
        self._game.step(chosen)
        seen, reward, ended = self._until_agent()
        return seen, reward, ended, {"valid": True}

    def _until_agent(self) -> tuple[str, float, bool]:
        """Plays the others until it is the agent's turn: what it sees, its reward since, whether its game is over."""
        for name in self._game.agent_iter():
            observation, cumulative, terminated, truncated, info = self._game.last()
            over = bool(terminated or truncated)
            if name == self._me:
                # `last` adds up the rewards since this player's own last action.
                if over:
                    return self._describe(self._state_of(observation)), float(cumulative), True
                self._legal = self._legal_actions(name, observation, info)
                legal = ", ".join(map(str, self._legal))
                seen = f"{self._describe(self._state_of(observation))}\nLegal actions: {legal}. Answer with one."
                return seen, float(cumulative), False
            if over:
                self._game.step(None)
                continue
            legal_actions = self._legal_actions(name, observation, info)
            self._game.step(self._opponent(self._state_of(observation), legal_actions, self._numbers_of_others))
        return "", 0.0, True

    def _legal_actions(self, name: str, observation: Any, info: dict[str, Any]) -> list[int]:
        mask = observation.get("action_mask") if isinstance(observation, dict) else info.get("action_mask")
        if mask is not None:
            return [int(action) for action in np.flatnonzero(mask)]
        space = self._game.action_space(name)
        return list(range(int(space.start), int(space.start + space.n)))

    @staticmethod
    def _state_of(observation: Any) -> Any:
        if isinstance(observation, dict):
            return observation.get("observation", observation)
        return observation

    def close(self) -> None:
        """Closes the game."""
        self._game.close()
