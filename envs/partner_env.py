"""What environments with a partner share: one scene that is the whole state, noise, snapshots, letting go."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from polyturn.envs.conversation import Partner, Scene
from polyturn.envs.spaces import UnicodeText
from polyturn.envs.suggest import did_you_mean


class PartnerEnv(gymnasium.Env[str, str]):
    """A conversation with a partner: scripted, or any `polyturn.envs.conversation.Partner`.

    Args:
        partner: "scripted" or a partner.
        scripted: The scripted partner.
        turns: Turns of the agent.
        draws_per_turn: Numbers that the scripted partner draws a turn.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium declares it an instance variable)
    reward_bounds = (0.0, 1.0)
    takes_noise = True
    roles = ("partner", "agent")
    """Whom the partner plays, which is also the name of its option, and whom the agent plays."""

    def __init__(self, partner: str | Partner, scripted: Partner, turns: int, draws_per_turn: int) -> None:
        if turns < 1:
            raise ValueError(f"{type(self).__name__}: expected turns >= 1, got {turns}")
        if isinstance(partner, str):
            self._one_of(self.roles[0], partner, ("scripted",))
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self.turns = turns
        self._draws_per_turn = draws_per_turn
        self.partner: Partner = scripted if isinstance(partner, str) else partner
        self.blocking = not isinstance(partner, str)  # somebody else's answer is waited for
        self._scene: Scene | None = None

    def _draws(self, noise: int) -> tuple[list[float], int]:
        """The partner's random numbers, and a seed for others: from the environment's own, others for each `noise`."""
        numbers = _generator(int(self.np_random.integers(2**63)), noise)
        draws = [] if self.blocking else numbers.random(self._draws_per_turn * self.turns).tolist()
        return draws, int(numbers.integers(2**63))

    def renew_noise(self, noise: int) -> None:
        """Draws the noise of the turns that are left anew; another number gives other noise.

        Raises:
            ResetNeeded: The episode is over, or none was started.
        """
        scene = self._running()
        numbers = _generator(scene.seed, noise)
        used = self._draws_per_turn * len(scene.lines)
        scene.draws[used:] = numbers.random(len(scene.draws[used:])).tolist()
        scene.seed = int(numbers.integers(2**63))

    def _running(self) -> Scene:
        if self._scene is None:
            raise ResetNeeded("the episode is over: call reset() first")
        return self._scene

    def _finish(self) -> None:
        """Lets the partner forget the scene; the episode is over."""
        release = getattr(self.partner, "release", None)
        if release is not None and self._scene is not None:
            release(self._scene)
        self._scene = None

    def snapshot(self) -> dict[str, Any]:
        """The state between two turns."""
        return {"scene": None if self._scene is None else self._scene.to_json()}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Goes on from a snapshot."""
        self._finish()
        self._scene = None if snapshot["scene"] is None else Scene.from_json(snapshot["scene"])

    def close(self) -> None:
        """Lets go of the partner."""
        self._finish()

    def _one_of(self, name: str, value: Any, known: tuple[Any, ...]) -> None:
        if value in known:
            return
        hint = did_you_mean(value, known) if isinstance(value, str) and isinstance(known[0], str) else ""
        shown = ", ".join(map(repr, known[:8])) + (", ..." if len(known) > 8 else "")
        raise ValueError(f"{type(self).__name__}: {name}: expected one of {shown}, got {value!r}.{hint}")

    def _attributes(
        self, name: str, draws: list[float], legal: dict[str, tuple[Any, ...]], given: Any
    ) -> dict[str, Any]:
        """Hidden attributes: one for each of `legal`, drawn, then overwritten by those that are given."""
        facts = {key: values[int(draw * len(values))] for draw, (key, values) in zip(draws, legal.items(), strict=True)}
        for key, value in dict(given or {}).items():
            self._one_of(name, key, tuple(legal))
            self._one_of(key, value, legal[key])
            facts[key] = value
        return facts


def _generator(seed: int, noise: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, abs(noise), int(noise < 0)]))
