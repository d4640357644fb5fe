"""The executable contract of a multi-turn text environment; `polyturn.envs.text_env` says it in prose.

`check_text_env` plays many short episodes with three kinds of agents: plausible ones (the caller's `actions`), agents
that write only garbage, and agents that write hostile text. It compares transcripts: everything that an episode gave
back, as canonical JSON, byte by byte. `polyturn.envs.checking.contract.RULES` lists what is checked; the first breach
is raised.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.env_match import check_environments_match

from polyturn.envs.checking.contract import (
    RULES,
    Agent,
    Breaches,
    ContractPlayer,
    ContractViolation,
    EpisodeRecord,
    agent_rng,
    canonical,
    shown,
)
from polyturn.envs.checking.hostile import HOSTILE
from polyturn.envs.registration import make


@dataclass(frozen=True)
class CheckReport:
    """What a successful check did.

    Attributes:
        name: The environment.
        episodes: Episodes played.
        turns: Turns played.
        longest: Turns of the longest episode of plausible actions; with 1, hardly anything of snapshots was checked.
        rules: The rules that hold.
    """

    name: str
    episodes: int
    turns: int
    longest: int
    rules: tuple[str, ...]


def check_text_env(
    env: str | Callable[..., Any],
    *,
    actions: Agent | None = None,
    seeds: Sequence[int] = range(8),
    max_turns: int = 100,
    **options: Any,
) -> CheckReport:
    """Checks that an environment keeps the contract of multi-turn text environments.

    Args:
        env: A registered id, or something that makes a new instance at every call (a class, say).
        actions: Writes plausible actions, so that episodes reach deep states; by default, words of the observation and
            small numbers. Must depend on its arguments only.
        seeds: Seeds to play, at least two.
        max_turns: Turns within which every episode must end.
        **options: Keyword arguments of the environment.

    Returns:
        What was done.

    Raises:
        ContractViolation: Rules are broken: of each the first breach, with what was expected, got, and a remedy
            (`breaches`), and what could not be checked because of them (`unchecked`).
        UnknownEnv, EnvOptionError: As `polyturn.envs.make`.
    """
    if len(set(seeds)) < 2:
        raise ValueError(f"check_text_env: expected at least two different seeds, got {list(seeds)}")

    def new() -> Any:
        return make(env, **options) if isinstance(env, str) else env(**options)

    name = env if isinstance(env, str) else getattr(env, "__name__", repr(env))
    return _Checker(name, new, actions or _words_and_numbers, tuple(seeds), max_turns).run()


def _words_and_numbers(rng: np.random.Generator, observation: str) -> str:
    words = observation.split()
    if words and rng.random() < 0.5:
        return words[int(rng.integers(len(words)))]
    return str(rng.integers(100))


def _garbage(rng: np.random.Generator, observation: str) -> str:
    """Box-drawing characters, blocks and arrows: no letter, digit or punctuation that could be an answer by chance."""
    del observation
    return "".join(map(chr, rng.integers(0x2500, 0x2600, size=int(rng.integers(1, 40)))))


def _silence(rng: np.random.Generator, observation: str) -> str:
    del rng, observation
    return ""


def _longest(plain: dict[int, EpisodeRecord]) -> list[int]:
    """Seeds, those of long episodes first: they reach the most states."""
    return sorted(plain, key=lambda seed: -len(plain[seed].actions))


def _part(env: Any, name: str) -> Any:
    """An attribute of an environment or of what it wraps; None if there is none."""
    return env.get_wrapper_attr(name) if env.has_wrapper_attr(name) else None


def _restore(env: Any, text: str) -> None:
    try:
        _part(env, "restore")(json.loads(text))
    except Exception as error:
        raise ContractViolation(
            "restore", "an instance to take over a snapshot", f"{error!r}", "let restore work without a reset before it"
        ) from error


class _Moving(gymnasium.Env[str, str]):
    """Plays one episode in many instances: before every turn, the state moves to another through JSON."""

    def __init__(self, new: Callable[[], Any]) -> None:
        self._here, self._other = new(), new()
        self.observation_space, self.action_space = self._here.observation_space, self._here.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        return cast("tuple[str, dict[str, Any]]", self._here.reset(seed=seed, options=options))

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        state = canonical(_part(self._here, "snapshot")())
        self._here, self._other = self._other, self._here
        _restore(self._here, state)
        return cast("tuple[str, float, bool, bool, dict[str, Any]]", self._here.step(action))

    def close(self) -> None:
        self._here.close()
        self._other.close()


class _Checker:
    def __init__(
        self, name: str, new: Callable[[], Any], actions: Agent, seeds: tuple[int, ...], max_turns: int
    ) -> None:
        self.name, self.actions, self.seeds = name, actions, seeds
        self.breaches = Breaches()
        self.player = ContractPlayer(max_turns, self.breaches)
        self.made: list[Any] = []

        def remembered() -> Any:
            self.made.append(new())
            return self.made[-1]

        self.new = remembered

    def run(self) -> CheckReport:
        of = self.breaches.of
        plain: dict[int, EpisodeRecord] = {}
        hostile: list[EpisodeRecord] = []
        try:
            before = random.getstate(), repr(np.random.get_state())  # noqa: NPY002  (looked at, not used)
            env = self.new()
            self._declarations(env)
            if isinstance(env, gymnasium.Env):
                self._order(env)
                hostile = self._hostile(env)
                with of("reproducible", "no-leak", "independent"):
                    plain = self._transcripts()
                if plain:
                    with of("seeds-differ"):
                        self._seeds(env, plain)
                else:
                    self.breaches.cut("seeds-differ", "snapshot", "restore")
                if (random.getstate(), repr(np.random.get_state())) != before:  # noqa: NPY002
                    self._breach(
                        "global-rng", "untouched global generators", "a changed state", "draw from self.np_random"
                    )
                with of("invalid-agent"):
                    self._garbage(env)
                if plain and all(callable(_part(env, name)) for name in ("snapshot", "restore")):
                    with of("snapshot", "restore"):
                        self._snapshots(plain, hostile)
                with of():
                    self._gymnasium()
                with of():
                    self._close()
        finally:
            for made in self.made:
                with contextlib.suppress(Exception):  # whether closing works is another rule
                    made.close()
        package = _part(env, "other_side") if isinstance(env, gymnasium.Env) else None
        self.breaches.raised(package if isinstance(package, str) else None)
        longest = max(len(episode.actions) for episode in plain.values())
        return CheckReport(self.name, self.player.episodes, self.player.turns, longest, tuple(RULES))

    def _breach(self, rule: str, expected: str, got: str, remedy: str) -> None:
        self.breaches.note(ContractViolation(rule, expected, got, remedy))

    def _declarations(self, env: Any) -> None:
        if not isinstance(env, gymnasium.Env):
            self._breach("gymnasium", "a gymnasium.Env", shown(env), "derive the class from gymnasium.Env[str, str]")
            self.breaches.cut(*RULES)
            return
        for name in ("observation_space", "action_space"):
            space = getattr(env, name, None)
            if not isinstance(space, gymnasium.Space) or not space.contains("Hello, world!"):
                self._breach("spaces", f"{name} to contain any text", shown(space), f"set self.{name} = UnicodeText()")
        bounds = _part(env, "reward_bounds")
        try:
            low, high = (float(bound) for bound in bounds)
        except (TypeError, ValueError):
            low = high = math.nan
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            self._breach(
                "reward-bounds",
                "reward_bounds = (low, high), finite, low < high",
                shown(bounds),
                "declare the range of an episode's total reward on the class",
            )
            low, high = -math.inf, math.inf
        self.player.bounds = low, high
        for name in ("snapshot", "restore"):
            if not callable(_part(env, name)):
                self._breach(name, f"a method {name}", "none", "see polyturn.envs.text_env")

    def _order(self, env: Any) -> None:
        if not self._raises(env):
            self._breach(
                "before-reset",
                "an exception",
                "an answer",
                "raise gymnasium.error.ResetNeeded in step without an episode",
            )
        with self.breaches.of("after-end"):
            self.player.play(env, self.seeds[0], self.actions)
            if not self._raises(env):
                remedy = "raise gymnasium.error.ResetNeeded in step after the end"
                raise ContractViolation("after-end", "an exception", "an answer", remedy)

    def _raises(self, env: Any) -> bool:
        try:
            env.step("Hello, world!")
        except Exception:
            return True
        return False

    def _hostile(self, env: Any) -> list[EpisodeRecord]:
        """Each hostile text as the first action and after a plausible one; returns the episodes of the latter."""
        episodes = []
        for name, text in HOSTILE.items():
            for turn in (0, 1):
                pending = iter([None] * turn + [text])

                def agent(rng: np.random.Generator, observation: str, pending: Iterator[str | None] = pending) -> str:
                    forced = next(pending, None)
                    return self.actions(rng, observation) if forced is None else forced

                with self.breaches.of():
                    episode = self.player.play(env, self.seeds[0], agent, f"after the hostile text {name!r}")
                    if turn:
                        episodes.append(episode)
        return episodes

    def _transcripts(self) -> dict[int, EpisodeRecord]:
        a, b = self.new(), self.new()
        first = self.seeds[0]
        plain = {first: self.player.play(b, first, self.actions)}
        self._same(
            "reproducible",
            plain[first].lines,
            self.player.play(a, first, plain[first].again()).lines,
            "draw everything random from self.np_random after super().reset(seed=seed), keep clocks and ids out of "
            "observations and infos, and keep nothing outside the instance",
        )
        # `b` plays one episode a seed; `a` leaves another one half-way before each of them.
        for seed in self.seeds:
            if seed not in plain:
                with self.breaches.of():
                    plain[seed] = self.player.play(b, seed, self.actions)
                if seed not in plain:
                    continue
            self._abandon(a, self.seeds[-1] + 1)
            self._same(
                "no-leak",
                plain[seed].lines,
                self.player.play(a, seed, plain[seed].again()).lines,
                "set every piece of an episode's state in reset",
            )
        for mine, theirs in self._interleaved(a, b, plain):
            self._same("independent", mine, theirs, "keep state in the instance, not in the class or the module")
        return plain

    def _seeds(self, env: Any, plain: dict[int, EpisodeRecord]) -> None:
        deterministic = bool(env.unwrapped.metadata.get("deterministic"))
        first = plain[self.seeds[0]]
        differ = any(self.player.play(env, seed, first.again()).lines != first.lines for seed in self.seeds[1:])
        if differ and deterministic:
            raise ContractViolation(
                "seeds-differ", "one transcript for every seed", "different ones", "remove metadata['deterministic']"
            )
        if not differ and not deterministic:
            raise ContractViolation(
                "seeds-differ",
                f"seeds {list(self.seeds)} to differ",
                "one transcript for all",
                "use the seed, check with more than one task, or declare metadata['deterministic'] = True",
            )

    def _abandon(self, env: Any, seed: int) -> None:
        observation, _ = self.player.reset(env, seed)
        self.player.step(env, self.actions(agent_rng(seed), observation), "")

    def _interleaved(self, a: Any, b: Any, plain: dict[int, EpisodeRecord]) -> Iterator[tuple[list[str], list[str]]]:
        """Plays two seeds in two instances in turns; yields expected and actual transcripts."""
        seeds = _longest(plain)[:2]
        lines: list[list[str]] = [[], []]
        for place, env in enumerate((a, b)):
            observation, info = self.player.reset(env, seeds[place])
            lines[place].append(canonical([observation, info]))
        for turn in range(max(len(plain[seed].actions) for seed in seeds)):
            for place, env in enumerate((a, b)):
                if turn < len(plain[seeds[place]].actions):
                    lines[place].append(canonical(list(self.player.step(env, plain[seeds[place]].actions[turn], ""))))
        for place, seed in enumerate(seeds):
            yield plain[seed].lines, lines[place]

    def _garbage(self, env: Any) -> None:
        for kind, agent in (("random symbols", _garbage), ("nothing", _silence)):
            for seed in self.seeds:
                total = self.player.play(env, seed, agent).total
                if total >= self.player.bounds[1]:
                    raise ContractViolation(
                        "invalid-agent",
                        f"less than the best return {self.player.bounds[1]:g} for an agent that writes {kind}",
                        f"{total:g} with seed {seed}",
                        "reward only what the agent did, not that the episode ended without complaint",
                    )

    def _snapshots(self, plain: dict[int, EpisodeRecord], hostile: list[EpisodeRecord]) -> None:
        longest = _longest(plain)
        episode, env = plain[longest[0]], self.new()
        taken: list[tuple[Any, str]] = []
        lines = [canonical(list(self.player.reset(env, longest[0])))]
        for action in episode.actions:
            taken.append(self._snapshot(env))
            lines.append(canonical(list(self.player.step(env, action, ""))))
        self._same("snapshot", episode.lines, lines, "taking a snapshot must not change the state")
        for turn, (state, text) in enumerate(taken):
            if canonical(state) != text:
                raise ContractViolation(
                    "snapshot",
                    "a value that does not change",
                    f"one that changed after turn {turn}",
                    "copy what is mutable",
                )
        remedy = "put everything the rest of the episode depends on into the snapshot, and all of it back in restore"
        for turn, (_, text) in enumerate(taken):
            for instance in (env,) if turn else (env, self.new()):
                _restore(instance, text)
                rest = [canonical(list(self.player.step(instance, action, ""))) for action in episode.actions[turn:]]
                self._same("restore", episode.lines[turn + 1 :], rest, remedy, turn + 1)
        moving = _Moving(self.new)
        for seed, kept in [
            *((seed, plain[seed]) for seed in longest[:3]),
            *((self.seeds[0], each) for each in hostile),
        ]:
            self._same("restore", kept.lines, self.player.play(moving, seed, kept.again()).lines, remedy)
        try:
            check_environments_match(self.new(), moving, num_steps=8, seed=longest[0])
        except ContractViolation:
            raise
        except AssertionError as error:
            raise ContractViolation("restore", "what the original gives", shown(str(error), 400), remedy) from error

    def _snapshot(self, env: Any) -> tuple[Any, str]:
        try:
            state = _part(env, "snapshot")()
        except Exception as error:
            raise ContractViolation(
                "snapshot", "the state of a running episode", f"{error!r}", "see the exception above"
            ) from error
        try:
            text = canonical(state)
            if json.loads(text) == state:
                return state, text
        except (TypeError, ValueError):
            pass
        raise ContractViolation(
            "snapshot",
            "a JSON value that reads back equal",
            shown(state),
            "use dict with text keys, list, str, int, finite float, bool and None only",
        )

    def _gymnasium(self) -> None:
        # The environment itself, not what limits it: Gymnasium objects to wrappers. Its warnings are advice.
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check_env(self.new().unwrapped, skip_render_check=True)
        except Exception as error:
            raise ContractViolation(
                "gymnasium", "to pass gymnasium.utils.env_checker.check_env", shown(str(error), 400), "see its message"
            ) from error

    def _close(self) -> None:
        for env in self.made:
            try:
                env.close()
                env.close()
            except Exception as error:
                raise ContractViolation(
                    "close", "two calls without complaint", f"{error!r}", "let close do nothing the second time"
                ) from error

    def _same(self, rule: str, expected: list[str], got: list[str], remedy: str, first_turn: int = 0) -> None:
        for turn, (mine, theirs) in enumerate(zip(expected, got, strict=False), first_turn):
            if mine != theirs:
                at = next(i for i, (a, b) in enumerate(zip(mine + "\0", theirs + "\1", strict=False)) if a != b)
                begin = max(0, at - 40)
                where = "at reset" if turn == 0 else f"at turn {turn}"
                self._breach(
                    rule,
                    f"{where} {shown(mine[begin : begin + 120], 200)}",
                    shown(theirs[begin : begin + 120], 200),
                    remedy,
                )
                return
        if len(expected) != len(got):
            self._breach(rule, f"{len(expected) - 1} turns", f"{len(got) - 1}", remedy)
