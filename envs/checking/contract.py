"""One call and one episode at a time of `check_text_env`: plays, records, and holds each answer to the contract."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

Agent = Callable[[np.random.Generator, str], str]
"""Writes an action, given a generator and the observation."""

RULES = {
    "gymnasium": "it is a gymnasium.Env that passes Gymnasium's own check_env",
    "spaces": "observation_space and action_space contain text, every observation returned among it",
    "reward-bounds": "reward_bounds = (low, high) is declared, finite, low < high; every episode's total lies within",
    "before-reset": "a step before the first reset raises",
    "reset": "reset gives (text, info)",
    "step": "step gives (text, finite number, bool, bool, info)",
    "info": "info is a dict of JSON values; task_id, where there is one, is text",
    "fresh-info": "an info that was returned does not change later",
    "any-text": "every text is answered, never with an exception",
    "ends": "every episode ends within max_turns",
    "one-end": "an episode is terminated or truncated, never both",
    "after-end": "a step after the end raises",
    "reproducible": "the same seed and actions give the same transcript in another instance",
    "no-leak": "what was played before in an instance changes nothing after reset",
    "independent": "instances played in turns do not influence each other",
    "global-rng": "the random numbers of Python and numpy's global generators are neither drawn nor seeded",
    "seeds-differ": "some of the seeds give different transcripts (none, if metadata['deterministic'] is True)",
    "invalid-agent": "an agent that writes only garbage never gets the best return",
    "snapshot": "snapshot is a JSON value that does not change later, and taking it changes nothing",
    "restore": "an episode goes on from a snapshot in any instance exactly as the original would have",
    "close": "close may be called twice",
}


class ContractViolation(AssertionError):
    """An environment breaks a rule, or several.

    Attributes:
        rule: The name in `RULES` of the first rule that was found broken.
        breaches: The first breach of every broken rule, this one first.
        unchecked: Rules that could not be checked because of a breach of another.
    """

    def __init__(self, rule: str, expected: str, got: str, remedy: str) -> None:
        super().__init__(f"{rule}: expected {expected}, got {got}; {remedy}")
        self.rule, self.expected, self.got = rule, expected, got
        self.breaches: tuple[ContractViolation, ...] = (self,)
        self.unchecked: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Every breach on a line of its own, and what could not be checked."""
        lines = [str(each.args[0]) for each in self.breaches]
        return "\n".join([*lines, *([f"not checked: {', '.join(self.unchecked)}"] if self.unchecked else [])])


_UNREPEATABLE = (
    "it draws random numbers that no seed reaches, or remembers earlier episodes; episodes can be collected, but not "
    "repeated or branched, and members of a group do not start alike"
)
_MEANS = {
    "reset": "it cannot start an episode; such episodes are invalid",
    "any-text": "it raises at this text, and the episode is invalid; rewrite such turns before they reach it",
    "step": "its answer does not fit its own interface; the episode is invalid",
    "reward-bounds": "give reward_bounds that hold its rewards",
    "ends": "give max_turns",
    "reproducible": _UNREPEATABLE,
    "no-leak": _UNREPEATABLE,
    "independent": _UNREPEATABLE,
    "snapshot": _UNREPEATABLE,
    "restore": _UNREPEATABLE,
    "seeds-differ": "every seed has the same start; groups differ by what the agent does alone, so one start is enough",
    "global-rng": "it draws from global random numbers in a place that the adapter does not see",
    "invalid-agent": "it pays its best return for garbage; what is learned from it may be nothing but that",
}


def of_another_package(breach: ContractViolation, package: str) -> ContractViolation:
    """The same breach with what it means for a user of the package, instead of how its author mends it."""
    if breach.rule not in _MEANS:
        return breach
    return ContractViolation(breach.rule, breach.expected, breach.got, f"{package} breaks this: {_MEANS[breach.rule]}")


class Breaches:
    """What a check has found: the first breach of each rule, and the rules that a breach kept from being checked."""

    def __init__(self) -> None:
        self._found: dict[str, ContractViolation] = {}
        self._cut: list[str] = []

    def note(self, breach: ContractViolation) -> None:
        """Takes in a breach after which the check goes on."""
        self._found.setdefault(breach.rule, breach)

    @contextmanager
    def of(self, *rules: str) -> Iterator[None]:
        """A part of the check that is about these rules: a breach ends the part, not the check."""
        try:
            yield
        except ContractViolation as breach:
            self.note(breach)
            self._cut += [rule for rule in rules if rule != breach.rule]

    def cut(self, *rules: str) -> None:
        """Says that these rules could not be checked."""
        self._cut += rules

    def __bool__(self) -> bool:
        return bool(self._found)

    def raised(self, package: str | None = None) -> None:
        """Raises the first breach, which holds the others.

        Args:
            package: Whose environment it is, where its user cannot mend it; breaches then say what follows from them.

        Raises:
            ContractViolation: A rule is broken.
        """
        if not self._found:
            return
        found = self._found.values()
        first, *_ = breaches = tuple(each if package is None else of_another_package(each, package) for each in found)
        first.breaches = breaches
        first.unchecked = tuple(rule for rule in RULES if rule in self._cut and rule not in self._found)
        raise first


def agent_rng(seed: int) -> np.random.Generator:
    """The agent's random numbers; not the environment's own, which would make a guess at what it drew right."""
    return np.random.default_rng([seed, 1])


def canonical(value: Any) -> str:
    """JSON text that is equal for equal values; ValueError or TypeError for what is no JSON value."""
    return json.dumps(value, sort_keys=True, allow_nan=False)


def shown(value: object, length: int = 160) -> str:
    """A value for an error message: ASCII only, its middle cut out if it is long."""
    text = ascii(value)
    return text if len(text) <= length else f"{text[: length // 2]} ... {text[-length // 2 :]}"


@dataclass
class EpisodeRecord:
    """What was done in an episode, and everything it gave back, one line a call."""

    lines: list[str]
    actions: list[str]
    total: float = 0.0

    def again(self) -> Agent:
        """An agent that repeats the actions, and stays silent if more are asked for."""
        left = iter(self.actions)
        return lambda rng, observation: next(left, "")


class ContractPlayer:
    """Plays episodes and raises at the first answer that breaks a rule.

    Args:
        max_turns: Turns within which every episode must end.
        breaches: Where a breach is noted after which an episode can go on; others are raised.
    """

    def __init__(self, max_turns: int, breaches: Breaches) -> None:
        self.max_turns, self._breaches = max_turns, breaches
        self.bounds = (-math.inf, math.inf)
        self.episodes = self.turns = 0

    def play(self, env: Any, seed: int, agent: Agent, situation: str = "") -> EpisodeRecord:
        """Plays one episode to its end and judges it as a whole; `situation` explains an exception."""
        rng = agent_rng(seed)
        observation, info = self.reset(env, seed)
        infos = [info]
        episode = EpisodeRecord([canonical([observation, info])], [])
        for _ in range(self.max_turns):
            action = agent(rng, observation)
            observation, reward, terminated, truncated, info = self.step(env, action, situation)
            infos.append(info)
            episode.lines.append(canonical([observation, reward, terminated, truncated, info]))
            episode.actions.append(action)
            episode.total += reward
            if terminated or truncated:
                break
        else:
            raise ContractViolation(
                "ends",
                f"an end within {self.max_turns} turns",
                "none",
                "end the episode, register with max_episode_steps and make with polyturn.envs.make, or raise max_turns",
            )
        low, high = self.bounds
        if not low - 1e-9 <= episode.total <= high + 1e-9:
            self._breaches.note(
                ContractViolation(
                    "reward-bounds", f"a return in [{low:g}, {high:g}]", f"{episode.total:g}", "correct reward_bounds"
                )
            )
        for turn, (kept, line) in enumerate(zip(infos, episode.lines, strict=True)):
            if canonical(kept) != canonical(json.loads(line)[-1]):
                self._breaches.note(
                    ContractViolation(
                        "fresh-info",
                        f"the info of turn {turn} to stay",
                        "that it changed later",
                        "return a new dict each time",
                    )
                )
        return episode

    def reset(self, env: Any, seed: int) -> tuple[str, dict[str, Any]]:
        """Starts an episode and judges the answer."""
        self.episodes += 1
        remedy = "return (observation, info)"
        try:
            result = env.reset(seed=seed)
        except ContractViolation:
            raise
        except Exception as error:
            raise ContractViolation("reset", "an episode", f"{error!r}", "see the exception above") from error
        if not isinstance(result, tuple) or len(result) != 2:
            raise ContractViolation("reset", "a tuple of two", shown(result), remedy)
        observation, info = result
        if not isinstance(observation, str):
            raise ContractViolation("reset", "an observation of type str", shown(observation), remedy)
        self._observation(env, observation)
        info = self._info(info)
        if not isinstance(info.get("task_id", ""), str):
            self._breaches.note(ContractViolation("info", "task_id to be text", shown(info["task_id"]), "use str(...)"))
        return observation, info

    def step(self, env: Any, action: str, situation: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Takes a turn and judges the answer."""
        self.turns += 1
        remedy = "return (observation, reward, terminated, truncated, info)"
        try:
            result = env.step(action)
        except ContractViolation:
            raise
        except Exception as error:
            raise ContractViolation(
                "any-text",
                "an answer",
                f"{type(error).__name__}: {shown(str(error))} {situation or 'to ' + shown(action)}",
                "let meaningless text cost the turn; if something outside failed (a sandbox, a server), repair that",
            ) from error
        if not isinstance(result, tuple) or len(result) != 5:
            raise ContractViolation("step", "a tuple of five", shown(result), remedy)
        observation, reward, terminated, truncated, info = result
        if not isinstance(observation, str):
            raise ContractViolation("step", "an observation of type str", shown(observation), remedy)
        number = isinstance(reward, int | float | np.integer | np.floating) and not isinstance(reward, bool)
        if not number or not math.isfinite(reward):
            self._breaches.note(ContractViolation("step", "a finite number as reward", shown(reward), remedy))
            reward = 0.0
        if not isinstance(terminated, bool) or not isinstance(truncated, bool):
            self._breaches.note(
                ContractViolation(
                    "step", "terminated and truncated of type bool", shown((terminated, truncated)), "use bool(...)"
                )
            )
        self._observation(env, observation)
        info = self._info(info)
        if terminated and truncated:
            self._breaches.note(
                ContractViolation(
                    "one-end",
                    "terminated or truncated",
                    "both",
                    "the task's own end is terminated, also at the limit (polyturn.envs.make keeps to that)",
                )
            )
        return observation, float(reward), bool(terminated), bool(truncated), info

    def _observation(self, env: Any, observation: str) -> None:
        if not env.observation_space.contains(observation):
            self._breaches.note(
                ContractViolation(
                    "spaces", f"observations in {env.observation_space}", shown(observation), "widen the space"
                )
            )

    def _info(self, info: Any) -> dict[str, Any]:
        """The info, or an empty one in place of what breaks the rule, so that other rules can be checked."""
        try:
            if isinstance(info, dict) and json.loads(canonical(info)) == info:
                return info
        except (TypeError, ValueError):
            pass
        self._breaches.note(
            ContractViolation(
                "info",
                "a dict of JSON values that reads back equal",
                shown(info),
                "use text keys and dict, list, str, int, finite float, bool and None only",
            )
        )
        return {}
