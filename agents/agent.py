"""The agent protocol, and the agents that need no model.

An agent is anything with `act(episode)`, returning text, an `Action`, or an awaitable of either. It keeps nothing
between episodes: all that it may know is in the `Episode`, and its random numbers come from `episode.rng`.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO, runtime_checkable

import numpy as np

from polyturn.envs.trajectory import Logps, TokenIds, Turn


class ContextFull(Exception):
    """The conversation no longer fits the agent's context: the episode is truncated here, not failed."""


class AgentFailed(Exception):
    """An agent failed for reasons outside the conversation, after its own retries: it is not asked again."""


@dataclass(frozen=True)
class Action:
    """What an agent wrote, with the tokens if it works on tokens; fields as in `Turn`.

    `info` (JSON values) is what the agent reports of itself; the turn's info holds it as "agent". `reply` is the action
    as a chat message, for an agent that takes its calls of tools apart itself; the environment is then told the message
    (`polyturn.envs.tools.calls.spelled`), which only one that offers tools understands. `forced` are places of tokens
    that were put there instead of sampled.
    """

    text: str
    context_ids: TokenIds = field(default_factory=lambda: np.zeros(0, np.int32))
    action_ids: TokenIds = field(default_factory=lambda: np.zeros(0, np.int32))
    logps: Logps = field(default_factory=lambda: np.zeros(0, np.float32))
    info: Mapping[str, Any] = field(default_factory=dict)
    reply: Mapping[str, Any] | None = None
    forced: tuple[int, ...] = ()


@dataclass
class Episode:
    """One running episode as its agent sees it.

    Attributes:
        env_id: Registered id of the environment.
        seed: Seed the environment was reset with.
        task_id: Which problem or topic this is.
        member: Position in its group.
        rng: The episode's own generator; the only source of randomness an agent may use.
        observation: What the environment just said.
        turns: The exchanges so far.
        info: The environment's info at reset; `tools`, where it is there, are the tools it offers to chat templates.
        messages: The observation as chat messages, as in `Turn`.
    """

    env_id: str
    seed: int
    task_id: str
    member: int
    rng: np.random.Generator
    observation: str
    turns: list[Turn] = field(default_factory=list)
    info: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Mapping[str, Any], ...] = ()


Reply = str | Action


@runtime_checkable
class Agent(Protocol):
    """Anything that acts. Optional, looked up by name:

    `name` and `version` (str) are recorded in trajectories; `max_concurrency` (int) is how many episodes it can hold
    at once; `release(episode)` is called when an episode it acted in has ended. Many episodes run at once, so an `act`
    that is no coroutine function is called in threads, several at a time, and may wait; an agent that never waits says
    `blocking = False` and is called in the event loop, which saves about 0.1 ms a turn.
    """

    def act(self, episode: Episode) -> Reply | Awaitable[Reply]:
        """Answers `episode.observation`.

        Raises:
            ContextFull: The conversation is too long for this agent; the episode is truncated.
        """


class ScriptedAgent:
    """Answers from a function or from a list of actions.

    Args:
        script: Maps the episode to the next action; or a sequence of actions said in order, the last one repeated.
        name: Recorded in trajectories.

    Attributes:
        blocking: Whether it may wait: a function may, a sequence does not.
    """

    def __init__(self, script: Callable[[Episode], str] | Sequence[str], *, name: str = "scripted") -> None:
        if not callable(script) and not script:
            raise ValueError("ScriptedAgent: expected at least one action, got none")
        self._script = script
        self.blocking = callable(script)
        self.name = name

    def act(self, episode: Episode) -> str:
        """Answers from the script."""
        if callable(self._script):
            return self._script(episode)
        return self._script[min(len(episode.turns), len(self._script) - 1)]


class RandomAgent:
    """Picks uniformly among given actions, or writes random printable text where none are given."""

    blocking = False

    def __init__(self, actions: Sequence[str] | None = None, *, max_length: int = 40) -> None:
        if actions is not None and not actions:
            raise ValueError("RandomAgent: expected at least one action, got none")
        self._actions = actions
        self._max_length = max_length
        self.name = "random"

    def act(self, episode: Episode) -> str:
        """A random action from the episode's own generator."""
        if self._actions is not None:
            return self._actions[int(episode.rng.integers(len(self._actions)))]
        length = int(episode.rng.integers(self._max_length + 1))
        return "".join(chr(code) for code in episode.rng.integers(32, 127, size=length))


class HumanAgent:
    """A person at the terminal. An empty line ends the message; end of input (Ctrl-D) ends the session, like Ctrl-C.

    Args:
        read: Where lines come from; default standard input.
        write: Where the observation goes; default standard output.
    """

    max_concurrency = 1
    blocking = False  # it is the only one; a thread that reads from a terminal could not be ended

    def __init__(self, read: TextIO | None = None, write: TextIO | None = None) -> None:
        self._read = sys.stdin if read is None else read
        self._write = sys.stdout if write is None else write
        self.name = "human"

    def act(self, episode: Episode) -> str:
        """Shows the observation and reads lines up to an empty one.

        Raises:
            KeyboardInterrupt: The input ended.
        """
        safe = "".join(c if c.isprintable() or c in "\n\t" else f"\\u{ord(c):04x}" for c in episode.observation)
        self._write.write(f"\n[turn {len(episode.turns) + 1}]\n{safe}\n> ")
        self._write.flush()
        lines: list[str] = []
        for line in self._read:
            if not line.strip() and lines:
                break
            if line.strip():
                lines.append(line.rstrip("\n"))
        if not lines:
            # Recorded as a failed episode it would only be asked again.
            raise KeyboardInterrupt("end of input")
        return "\n".join(lines)
