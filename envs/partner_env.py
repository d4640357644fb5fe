"""What environments with a partner share: reset, the exchange of turns, noise, snapshots and the end of an episode.

An environment adds what is its own: how a scene starts, what a turn of the agent means, which words of the partner end
the conversation, and what is paid.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded

from polyturn.envs.conversation import Line, Partner, PartnerFull, Scene, own_words
from polyturn.envs.settings import check_count
from polyturn.envs.spaces import UnicodeText
from polyturn.envs.suggest import did_you_mean

TIME_UP = "turns"
"""How a conversation ended that reached the agent's last turn."""

_PLAIN = frozenset([str, int, float, bool, type(None)])

Step = tuple[str, float, bool, bool, dict[str, Any]]


@dataclass(frozen=True)
class Start:
    """How an episode starts.

    Attributes:
        task_id: Names the task that was drawn.
        facts: The partner's hidden attributes.
        opening: What the partner says first.
        table: What the environment keeps for the episode.
        note: A line for the agent before the opening; the partner does not see it.
    """

    task_id: str
    facts: dict[str, Any]
    opening: str
    table: dict[str, Any] = field(default_factory=dict)
    note: str = ""


class PartnerEnv(gymnasium.Env[str, str]):
    """A conversation with a partner: scripted, or any `polyturn.envs.conversation.Partner`.

    A subclass defines `_start`, `_brief`, `_heard`, `_answer` and `_settle`, and `_agent_ends` where the agent may end
    the conversation.

    Options of `reset`: `task`, which task to start from; the partner's role (`roles[0]`), a dict that fixes hidden
    attributes; `noise`, an int: another number gives other noise from the identical start. Starts and noise 0 depend
    on the seed only.

    Args:
        partner: "scripted" or a partner.
        scripted: The scripted partner.
        turns: Turns of the agent.
        draws_per_turn: Numbers that the scripted partner draws in a turn.

    Raises:
        ValueError: `turns` below 1, or a name that is not "scripted".
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium declares it an instance variable)
    reward_bounds = (0.0, 1.0)
    takes_noise = True
    roles = ("partner", "agent")
    """The partner's role, which is also the name of its option in `reset`, and the agent's role."""

    def __init__(self, partner: str | Partner, scripted: Partner, turns: int, draws_per_turn: int) -> None:
        check_count(f"{type(self).__name__}(turns)", turns)
        if isinstance(partner, str):
            self._one_of(self.roles[0], partner, ("scripted",))
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self.turns = turns
        self._draws_per_turn = draws_per_turn
        self.partner: Partner = scripted if isinstance(partner, str) else partner
        self.blocking = not isinstance(partner, str)  # a step waits for an answer from outside the environment
        self._scene: Scene | None = None

    # What a subclass defines.

    def _start(self, task: int | None, given: Any) -> Start:
        """Draws how an episode starts, from `np_random` only.

        Args:
            task: The option `task`, or None where the task is drawn.
            given: The option named after the partner's role: hidden attributes that are fixed, or None.
        """
        raise NotImplementedError

    def _brief(self, facts: dict[str, Any]) -> str:
        """The brief of a partner that is not scripted."""
        raise NotImplementedError

    def _heard(self, scene: Scene, action: str) -> str:
        """What the partner hears of the agent's turn; may change `scene.table`."""
        raise NotImplementedError

    def _answer(self, scene: Scene, said: str) -> tuple[str, str]:
        """The partner's turn as the agent sees it, and how its words end the conversation ("" where they do not)."""
        raise NotImplementedError

    def _settle(self, scene: Scene, info: dict[str, Any], ended: str) -> float:
        """The reward of the last exchange; adds to `info` what the environment reports.

        Args:
            scene: With the last exchange in `lines`.
            info: The partner's record of it.
            ended: How the conversation ended: as `_answer` said, the agent's role, or `TIME_UP`; "" while it goes on.
        """
        raise NotImplementedError

    def _agent_ends(self, action: str) -> bool:
        """Whether the agent's turn ends the conversation before the partner hears it."""
        return False

    # What Gymnasium calls.

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draws a task and a partner.

        Raises:
            ValueError: Options that do not exist.
        """
        super().reset(seed=seed)
        chosen = dict(options or {})
        for name in chosen:
            self._one_of("options of reset", name, ("task", self.roles[0], "noise"))
        start = self._start(int(chosen["task"]) if "task" in chosen else None, chosen.get(self.roles[0]))
        noise = int(chosen.get("noise", 0))
        draws, partner_seed = self._draws(noise)
        self._finish()
        self._scene = Scene(
            role=self.roles[0],
            other=self.roles[1],
            brief=self._brief(start.facts) if self.blocking else "",
            opening=start.opening,
            facts=start.facts,
            turns=self.turns,
            seed=partner_seed,
            draws=draws,
            table=start.table,
        )
        shown = f"{start.note}\n{start.opening}" if start.note else start.opening
        return shown, {"task_id": start.task_id, "noise": noise}

    def step(self, action: str) -> Step:
        """One turn of the agent and the partner's answer.

        Raises:
            ResetNeeded: The episode is over, or none was started.
        """
        scene = self._running()
        if self._agent_ends(action):
            # The last exchange's record stands, without the tokens that a model sampled in it.
            last = scene.lines[-1].record if scene.lines else {}
            info = _json_copy({key: value for key, value in last.items() if key != "partner"})
            return self._closed("", self._settle(scene, info, self.roles[1]), info)
        heard = self._heard(scene, action)
        try:
            spoken = self.partner(scene, heard)
        except PartnerFull as full:
            self._finish()
            return "", 0.0, False, True, {"truncated_by": "partner", "partner_error": str(full)}
        # A scripted partner writes only its own words.
        said = own_words(spoken.text, *self.roles) if self.blocking else spoken.text
        said, ended = self._answer(scene, said)
        scene.lines.append(Line(heard, said, dict(spoken.record)))
        if not ended and len(scene.lines) >= scene.turns:
            ended = TIME_UP
        info = _json_copy(spoken.record)
        reward = self._settle(scene, info, ended)
        return self._closed(said, reward, info) if ended else (said, reward, False, False, info)

    def renew_noise(self, noise: int) -> None:
        """Draws the noise of the remaining turns again; another number gives other noise.

        Raises:
            ResetNeeded: The episode is over, or none was started.
        """
        scene = self._running()
        numbers = _generator(scene.seed, noise)
        used = self._draws_per_turn * len(scene.lines)
        scene.draws[used:] = numbers.random(len(scene.draws[used:])).tolist()
        scene.seed = int(numbers.integers(2**63))

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

    # What both sides use.

    def _draws(self, noise: int) -> tuple[list[float], int]:
        """The scripted partner's random numbers and a seed for other partners, from `np_random` and `noise`."""
        numbers = _generator(int(self.np_random.integers(2**63)), noise)
        draws = [] if self.blocking else numbers.random(self._draws_per_turn * self.turns).tolist()
        return draws, int(numbers.integers(2**63))

    def _running(self) -> Scene:
        if self._scene is None:
            raise ResetNeeded("the episode is over: call reset() first")
        return self._scene

    def _closed(self, said: str, reward: float, info: dict[str, Any]) -> Step:
        self._finish()
        return said, reward, True, False, info

    def _finish(self) -> None:
        """Lets the partner forget the scene; the episode is over."""
        release = getattr(self.partner, "release", None)
        if release is not None and self._scene is not None:
            release(self._scene)
        self._scene = None

    def _one_of(self, name: str, value: Any, known: tuple[Any, ...]) -> None:
        if value in known:
            return
        hint = did_you_mean(value, known) if isinstance(value, str) and isinstance(known[0], str) else ""
        shown = ", ".join(map(repr, known[:8])) + (", ..." if len(known) > 8 else "")
        raise ValueError(f"{type(self).__name__}: {name}: expected one of {shown}, got {value!r}.{hint}")

    def _attributes(self, draws: list[float], legal: dict[str, tuple[Any, ...]], given: Any) -> dict[str, Any]:
        """Hidden attributes: one of the values of each name in `legal`, drawn, then replaced by what is given."""
        facts = {key: values[int(draw * len(values))] for draw, (key, values) in zip(draws, legal.items(), strict=True)}
        for key, value in dict(given or {}).items():
            self._one_of(self.roles[0], key, tuple(legal))
            self._one_of(key, value, legal[key])
            facts[key] = value
        return facts


def _json_copy(record: Mapping[str, Any]) -> dict[str, Any]:
    """A copy as JSON would give it back; JSON is written only for a record of more than texts and numbers."""
    copied = dict(record)
    for name, value in copied.items():
        if type(name) is not str or type(value) not in _PLAIN:
            parsed: dict[str, Any] = json.loads(json.dumps(copied))
            return parsed
    return copied


def _generator(seed: int, noise: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, abs(noise), int(noise < 0)]))
