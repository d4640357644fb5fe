"""Environments that wait, in threads or as coroutines, hold up neither each other nor the sampling of others."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import gymnasium
import pytest

from polyturn.agents.agent import Episode
from polyturn.agents.collecting.collect import collect
from polyturn.envs.spaces import UnicodeText

TOGETHER = 4


class Meeting(gymnasium.Env[str, str]):
    """Nobody's reset or step ends before as many are in one: an environment that waits for a tool, a judge, a server.

    Args:
        calls: Where all instances meet.
    """

    def __init__(self, calls: threading.Barrier) -> None:
        self.calls = calls
        self.observation_space = self.action_space = UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.calls.wait()
        return "begin", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.calls.wait()
        return "end", 1.0, True, False, {}


class Awaited(gymnasium.Env[str, str]):
    """The same with coroutines."""

    blocking = False

    def __init__(self, calls: asyncio.Barrier) -> None:
        self.calls = calls
        self.observation_space = self.action_space = UnicodeText()

    async def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # type: ignore[override]
        await self.calls.wait()
        return "begin", {}

    async def step(self, action: str) -> Any:  # type: ignore[override]
        await self.calls.wait()
        return "end", 1.0, True, False, {}


class Sampler:
    """An agent in the event loop."""

    name = "sampler"

    async def act(self, episode: Episode) -> str:
        await asyncio.sleep(0)
        return "x"


@pytest.mark.parametrize("made", [lambda: threading.Barrier(TOGETHER, timeout=60), lambda: asyncio.Barrier(TOGETHER)])
def test_as_many_wait_at_once_as_episodes_are_under_way(made: Any) -> None:
    calls = made()
    env: Any = Meeting if isinstance(calls, threading.Barrier) else Awaited
    groups = collect(Sampler(), lambda: env(calls), groups=3 * TOGETHER, concurrency=TOGETHER, progress=False)
    assert [member.total_reward for group in groups for member in group] == [1.0] * 3 * TOGETHER


def test_sampling_goes_on_while_an_environment_waits() -> None:
    """One episode's step ends only after another episode's later turn was sampled."""
    sampled = threading.Event()

    class Slow(gymnasium.Env[str, str]):
        def __init__(self) -> None:
            self.observation_space = self.action_space = UnicodeText()

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
            super().reset(seed=seed)
            self.task = (options or {})["task"]
            self.turns = 0
            return "begin", {}

        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            self.turns += 1
            held_up = self.task == 0 and not sampled.wait(60)
            return "more", float(not held_up), self.turns == 3, False, {}

    class Noting(Sampler):
        async def act(self, episode: Episode) -> str:
            if len(episode.turns) == 2:
                sampled.set()
            return await super().act(episode)

    groups = collect(Noting(), Slow, groups=2, tasks=[0, 1], concurrency=2, progress=False)
    assert [member.total_reward for group in groups for member in group] == [3.0, 3.0]
