"""What goes wrong in environments and agents is recorded on the episode or said; none of it ends a collection, and
none of it passes for a valid episode. What waits, waits beside others."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from polyturn.agents.agent import Action, Episode, ScriptedAgent
from polyturn.agents.collecting.collect import CollectError, collect, derived_seed
from polyturn.agents.collecting.playing import RewardBoundsWarning
from polyturn.agents.collecting.roles import AgentPartner
from polyturn.agents.judging import agent_judge
from polyturn.envs.plain import plain
from polyturn.envs.registration import EnvOptionError, UnknownEnv
from polyturn.envs.spaces import UnicodeText
from polyturn.envs.store import Store, read, read_groups
from polyturn.envs.trajectory import Group, Trajectory, Turn, group_by_start


class Count(gymnasium.Env[str, str]):
    """Two turns, each with a reward of 1."""

    reward_bounds = (0.0, 2.0)

    def __init__(self) -> None:
        self.observation_space = self.action_space = UnicodeText()
        self.turn = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.turn = 0
        return f"start {seed}", {}

    def step(self, action: str) -> tuple[str, Any, bool, bool, dict[str, Any]]:
        self.turn += 1
        return f"turn {self.turn}", 1.0, self.turn == 2, False, {}


def with_step(change: Any) -> type[Count]:
    """`Count` whose step returns what `change` makes of (observation, reward, terminated, truncated, info)."""

    class Changed(Count):
        def step(self, action: str) -> Any:
            return change(*super().step(action))

    return Changed


X = ScriptedAgent(["x"])


# ---- constructors


def test_a_constructor_that_fails_now_and_then_costs_its_episodes_only(tmp_path: Path) -> None:
    made = []

    class Rare(Count):
        def __init__(self) -> None:
            made.append(1)
            if len(made) in (2, 3):
                raise ConnectionError("no room on the cluster")
            super().__init__()

    with Store(tmp_path / "s.jsonl") as store:
        groups = collect(X, Rare, groups=3, concurrency=2, store=store, progress=False)
    errors = [m.error for group in groups for m in group]
    assert errors.count(None) == 2
    assert "ConnectionError: no room on the cluster" in errors
    assert len(list(read(tmp_path / "s.jsonl"))) == 3


@pytest.mark.parametrize("error", [ValueError("high must be positive"), ImportError("no module named x")])
def test_wrong_use_of_a_constructor_is_raised_as_it_is(error: Exception) -> None:
    class Wrong(Count):
        def __init__(self) -> None:
            raise error

    with pytest.raises(type(error), match=str(error)):
        collect(X, Wrong, groups=40, progress=False)
    with pytest.raises(EnvOptionError, match="hihg"):
        collect(X, "polyturn/Guess-v0", env_options={"hihg": 3}, progress=False)
    with pytest.raises(UnknownEnv):
        collect(X, "polyturn/Gues-v0", progress=False)


def test_a_constructor_that_always_fails_is_one_error_with_its_cause() -> None:
    class Down(Count):
        def __init__(self) -> None:
            raise OSError("the simulator is not running")

    with pytest.raises(CollectError, match="OSError: the simulator is not running"):
        collect(X, Down, groups=3, progress=False)


# ---- what environments return


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda o, r, d, t, i: (o, -math.inf, d, t, i), "expected a finite reward .* got -inf"),
        (lambda o, r, d, t, i: (o, np.float32("nan"), d, t, i), "expected a finite reward"),
        (lambda o, r, d, t, i: (o, "1", d, t, i), "expected a number as reward .* got '1'"),
        (lambda o, r, d, t, i: (o, None, d, t, i), "expected a number as reward .* got None"),
        (lambda o, r, d, t, i: (o, r, d, i), "expected .observation, reward, .* got a tuple of str, float, bool, dict"),
        (lambda o, r, d, t, i: (o, r, "done", t, i), "expected True or False as terminated"),
        (lambda o, r, d, t, i: ({"text": o}, r, d, t, i), "expected text .* as observation .*step, got dict"),
        (lambda o, r, d, t, i: (o, r, d, t, {"seen": {1, 2}}), r"info of step\['seen'\]: expected a JSON value .*set"),
        (lambda o, r, d, t, i: (o, r, d, t, {(1, 2): 3}), "expected text as keys"),
        (lambda o, r, d, t, i: (o, r, d, t, {"n": 10**5000}), "thousands of digits"),
    ],
)
def test_what_no_episode_can_be_learned_from_is_invalid(change: Any, said: str, tmp_path: Path) -> None:
    """In a group whose first member is sound, so that the collection goes on."""
    broken = with_step(change)

    class Sometimes(broken):  # type: ignore[misc, valid-type]
        def step(self, action: str) -> Any:
            return Count.step(self, action) if action == "0" else super().step(action)

    with Store(tmp_path / "s.jsonl") as store:
        agent = ScriptedAgent(lambda episode: str(episode.member))
        (group,) = collect(agent, Sometimes, group_size=2, store=store, progress=False)
    assert [m.valid for m in group] == [True, False]
    with pytest.raises(ValueError, match=said):
        raise ValueError(group[1].error)
    assert [m.valid for m in read(tmp_path / "s.jsonl")].count(True) == 1


def test_numpy_in_infos_is_stored_as_plain_numbers(tmp_path: Path) -> None:
    info = {"a": np.float32(0.5), "b": np.bool_(True), "c": np.arange(3), "d": (1, np.int64(2)), 5: "five"}
    environment = with_step(lambda o, r, d, t, i: (o, np.float64(r), np.bool_(d), t, info))
    with Store(tmp_path / "s.jsonl") as store:
        (group,) = collect(X, environment, store=store, progress=False)
    assert group[0].turns[0].info == {"a": 0.5, "b": True, "c": [0, 1, 2], "d": [1, 2], "5": "five"}
    assert list(read(tmp_path / "s.jsonl")) == list(group)


def test_plain_says_where_and_what() -> None:
    with pytest.raises(ValueError, match=r"info\['a'\]\[1\]: expected a JSON value .* got complex"):
        plain({"a": [1, 2j]})
    with pytest.raises(ValueError, match="two that are '1'"):
        plain({1: "a", "1": "b"})
    nested: list[Any] = []
    for _ in range(5000):
        nested = [nested]
    with pytest.raises(ValueError, match="nested more than"):
        plain(nested)


def test_rewards_beyond_the_declared_bounds_are_said_once() -> None:
    beyond = with_step(lambda o, r, d, t, i: (o, -3.0, d, t, i))
    with pytest.warns(RewardBoundsWarning, match=r"reward_bounds \[0, 2\], got -6") as caught:
        collect(X, beyond, groups=5, progress=False)
    assert len([w for w in caught if w.category is RewardBoundsWarning]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collect(X, Count, groups=5, progress=False)


# ---- what agents return


@pytest.mark.parametrize("reply", [None, b"bytes", 5, Action(b"bytes"), Action(None)])  # type: ignore[arg-type]
@pytest.mark.parametrize("blocking", [True, False])
def test_an_action_that_is_no_text_is_named(reply: Any, blocking: bool) -> None:
    class Odd:
        name = "odd"

        def __init__(self) -> None:
            self.blocking = blocking

        def act(self, episode: Episode) -> Any:
            return reply

    with pytest.raises(CollectError, match=r"TypeError: expected text \(str\) or an Action"):
        collect(Odd(), Count, progress=False)


# ---- waiting


class Meter:
    """Counts how many calls are waiting at the same time."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.lock = threading.Lock()

    def __enter__(self) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.now -= 1

    def wait(self) -> None:
        with self:
            time.sleep(0.1)

    async def sleep(self) -> None:
        with self:
            await asyncio.sleep(0.1)


def waiting_environment(meter: Meter, place: str) -> type[Count]:
    class Waits(Count):
        def __init__(self) -> None:
            if place == "constructor":
                meter.wait()
            super().__init__()

        def reset(self, **options: Any) -> Any:
            if place == "reset":
                meter.wait()
            return super().reset(**options)

        def step(self, action: str) -> Any:
            if place == "step":
                meter.wait()
            return super().step(action)

    class Awaited(Count):
        async def reset(self, **options: Any) -> Any:  # type: ignore[override]
            await meter.sleep()
            return super().reset(**options)

        async def step(self, action: str) -> Any:  # type: ignore[override]
            await meter.sleep()
            return super().step(action)

    return Awaited if place == "awaited" else Waits


@pytest.mark.parametrize("place", ["constructor", "reset", "step", "awaited", "agent"])
def test_what_waits_waits_side_by_side(place: str) -> None:
    meter = Meter()

    class Slow:
        name = "slow"

        def act(self, episode: Episode) -> str:
            meter.wait()
            return "x"

    agent, env = (Slow(), Count) if place == "agent" else (X, waiting_environment(meter, place))
    groups = collect(agent, env, groups=24, progress=False)
    assert meter.most > 8
    assert all(member.valid and len(member.turns) == 2 for group in groups for member in group)


def test_a_limit_on_turns_holds_for_steps_that_are_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    gymnasium.register(
        "waits/Awaited-v0", entry_point=lambda: waiting_environment(Meter(), "awaited")(), max_episode_steps=1
    )
    try:
        (group,) = collect(X, "waits/Awaited-v0", progress=False)
    finally:
        del gymnasium.registry["waits/Awaited-v0"]
    assert (len(group[0].turns), group[0].terminated, group[0].truncated) == (1, False, True)


def test_an_environment_lives_in_one_thread() -> None:
    """SQLite, like browsers, refuses to be used in another thread than the one that opened it."""

    class Database(Count):
        def __init__(self) -> None:
            super().__init__()
            self.db = sqlite3.connect(":memory:")

        def step(self, action: str) -> Any:
            self.db.execute("select 1").fetchall()
            return super().step(action)

        def close(self) -> None:
            self.db.close()

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # closing failed
        groups = collect(X, Database, groups=20, concurrency=4, progress=False)
    assert all(member.valid for group in groups for member in group)


def test_an_agent_in_a_thread_keeps_its_time_limit() -> None:
    class Stuck:
        name = "stuck"

        def act(self, episode: Episode) -> str:
            if episode.member == 1:
                time.sleep(30)
            return "x"

    begun = time.monotonic()
    (group,) = collect(Stuck(), Count, group_size=2, timeout=0.5, progress=False)
    assert time.monotonic() - begun < 20
    assert [m.valid for m in group] == [True, False]
    assert group[1].error == "TimeoutError: the agent did not answer within 0.5 s"


def test_an_environment_that_leaves_by_sys_exit_costs_its_episode_only() -> None:
    class Leaves(Count):
        def step(self, action: str) -> Any:
            if action == "1":
                raise SystemExit(3)
            return super().step(action)

    (group,) = collect(ScriptedAgent(lambda e: str(e.member)), Leaves, group_size=2, progress=False)
    assert [m.valid for m in group] == [True, False]
    assert "SystemExit(3)" in str(group[1].error)


def test_partners_and_judges_that_wait_are_asked_side_by_side() -> None:
    meter = Meter()

    class Waits:
        name = "waits"

        def act(self, episode: Episode) -> str:
            meter.wait()
            return "1"

    options = {"student": AgentPartner(Waits()), "turns": 1}
    collect(X, "polyturn/EducationDialogue-v0", groups=8, env_options=options, progress=False)
    assert meter.most > 2
    meter.most = 0
    members = tuple(Trajectory("e", 0, (Turn("o", str(n)),), terminated=True, member=n) for n in range(4))
    agent_judge(Waits())(Group(members))
    assert meter.most > 2


# ---- starts


def test_seeds_of_starts_are_wide_and_a_group_knows_its_number(tmp_path: Path) -> None:
    """With 32 bits among 300,000 starts about ten pairs would be equal."""
    assert len({derived_seed(5, n) for n in range(300_000)}) == 300_000
    assert max(derived_seed(5, n) for n in range(100)) > 2**60
    assert all(0 <= derived_seed(5, n) < 2**63 for n in range(100))


def test_two_groups_with_one_seed_stay_two_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyturn.agents.collecting.collect.derived_seed", lambda seed, group: 7)
    with Store(tmp_path / "s.jsonl") as store:
        groups = collect(X, Count, groups=3, group_size=2, store=store, concurrency=1, progress=False)
        assert [len(group) for group in read_groups(store.path)] == [2, 2, 2]
        # The store has episodes in the order in which they ended.
        by_number = sorted(read(store.path), key=lambda member: (member.group, member.member))
        assert group_by_start(by_number) == groups
        assert collect(X, Count, groups=3, group_size=2, store=store, concurrency=1, progress=False) == groups
        assert len(collect(X, Count, groups=4, group_size=2, store=store, concurrency=1, progress=False)) == 4
        assert len(list(read(store.path))) == 8
