"""GEM (arXiv 2510.01051): `polyturn/Gem-v0` plays its environments, `as_gem` gives one of ours to its users."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from polyturn.envs.adapters.quiet import logging_kept
from polyturn.envs.adapters.replayed import Replayed, global_numbers_kept
from polyturn.envs.registration import make
from polyturn.envs.suggest import did_you_mean


class Gem(Replayed):
    """An environment of GEM with text; its rewards are passed on as they are.

    GEM seeds the global generators of Python and numpy; here every episode has its own. An observation is followed by
    GEM's `suffix`, as its own wrappers show it; the other JSON values of its info are in `info`. An environment that
    says both "terminated" and "truncated" is terminated.

    Args:
        game: GEM's id, such as "game:GuessTheNumber-v0-easy" or "rg:chain_sum".
        reward_bounds: Smallest and largest return of an episode; GEM does not declare them.
        max_turns: Turns after which an episode is truncated.
        options: Keyword arguments of the environment.

    Raises:
        ImportError: GEM is not installed.
        ValueError: There is no such environment.
    """

    other_side = "GEM"
    success_return = 1.0

    def __init__(
        self,
        game: str = "game:GuessTheNumber-v0-easy",
        *,
        reward_bounds: tuple[float, float] = (-1.0, 1.0),
        max_turns: int = 100,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(max_turns, reward_bounds)
        _package()
        from gem.envs.registration import ENV_REGISTRY

        if game not in ENV_REGISTRY:
            raise ValueError(f"Gem: expected the id of an environment, got {game!r}.{did_you_mean(game, ENV_REGISTRY)}")
        self.game, self._options = game, dict(options or {})
        with global_numbers_kept():
            self._make()  # says at once what is wrong with the options
        self._env: Any = None

    def _make(self) -> Any:
        import gem

        return gem.make(self.game, **self._options)

    def _begin(self, seed: int) -> tuple[str, dict[str, Any]]:
        # A new one for each episode: many keep something of the episode before.
        self._env = self._make()
        observation, info = self._env.reset(seed=seed)
        return _shown(observation, info), _plain(info)

    def _turn(self, action: str) -> tuple[str, float, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self._env.step(action)
        ended = bool(terminated or truncated)
        # What GEM says at the end asks for nothing any more.
        seen = str(observation) if ended else _shown(observation, info)
        return seen, float(reward), ended, _plain(info)

    def _stop(self) -> None:
        self._env = None


def as_gem(env_id: str, /, *, seed: int | None = None, **options: Any) -> Any:
    """A polyturn environment as a `gem.Env`.

    `gem.register("mine:Guess", functools.partial(as_gem, "polyturn/Guess-v0"))` gives it a name for `gem.make` and
    `gem.make_vec`. It has GEM's `get_state`, `set_state` and `spawn`, through snapshots.

    Args:
        env_id: The id of an environment.
        seed: Of the first reset that is given none, as `gem.make_vec` tells it; later ones draw the starts after it.
        **options: Keyword arguments of the environment.

    Raises:
        ImportError: GEM is not installed.
        UnknownEnv, EnvOptionError: As `make`.
    """
    return _exported()(env_id, options, seed)


def _package() -> Any:
    try:
        # It sets the root logger up when it is imported, and reasoning-gym draws random numbers.
        with global_numbers_kept(), logging_kept():
            import gem
            import gem.envs  # registers what there is
    except ImportError as error:
        raise ImportError("Gem needs gem-llm: pip install gem-llm==0.1.0") from error
    return gem


@cache
def _exported() -> Any:
    gem = _package()

    class PolyturnInGem(gem.Env):  # type: ignore[misc, name-defined]
        """A polyturn environment behind GEM's interface."""

        def __init__(self, env_id: str, options: Mapping[str, Any], seed: int | None) -> None:
            self._id, self._options, self._first = env_id, dict(options), seed
            self._env = make(env_id, **self._options)

        def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
            first, self._first = self._first, None
            return self._env.reset(seed=first if seed is None else seed)

        def step(self, action: str) -> Any:
            return self._env.step(action)

        def get_state(self) -> Any:
            return self._env.snapshot()

        def set_state(self, state: Any) -> None:
            self._env.restore(state)

        def spawn(self, same_state: bool = False, **changes: Any) -> Any:
            child = PolyturnInGem(self._id, {**self._options, **changes}, self._first)
            if same_state:
                child.set_state(self.get_state())
            return child

        def close(self) -> None:
            self._env.close()

    return PolyturnInGem


def _shown(observation: Any, info: Mapping[str, Any]) -> str:
    suffix = info.get("suffix")
    return f"{observation}\n{suffix}" if isinstance(suffix, str) and suffix else str(observation)


def _plain(info: Mapping[str, Any]) -> dict[str, Any]:
    """What of GEM's info is JSON; its suffix is part of the observation."""
    kept = {}
    for key, value in info.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            continue
        if key != "suffix":
            kept[str(key)] = value
    return kept
