"""Collection: the result depends on the seed only, failures are data, and an interrupted run goes on."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from polyturn.agents.agent import Episode, HumanAgent, RandomAgent, ScriptedAgent
from polyturn.agents.collecting.collect import CollectError, collect, derived_seed
from polyturn.agents.collecting.playing import episode_rng
from polyturn.agents.transformer.agent import TransformerAgent
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.envs.spaces import UnicodeText
from polyturn.envs.store import Store, read
from polyturn.envs.trajectory import Trajectory
from polyturn.sandbox.sandbox import ImageMissing, SandboxLost, SandboxUnavailable

WORDS = ["the cat sat on the mat and counted 1 2 3 4 5 6 7 8 9 0 times\n"] * 20


class Chatter(gymnasium.Env[str, str]):
    """A few turns whose words and number come from the seed and the task; waits a little if `blocking`."""

    def __init__(self, blocking: bool = False) -> None:
        self.blocking, self.closed = blocking, False
        self.threads: set[str] = set()
        self.observation_space = self.action_space = UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.task = (options or {}).get("task", int(self.np_random.integers(100)))
        self.left = int(self.np_random.integers(1, 4))
        return self._say(), {"task_id": f"task-{self.task}"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return self._say(), float(len(action) % 7), self.left == 0, False, {"heard": len(action)}

    def close(self) -> None:
        self.closed = True

    def _say(self) -> str:
        self.threads.add(threading.current_thread().name)
        if self.blocking:
            time.sleep(hash((self.task, self.left)) % 7 * 0.001)  # so that episodes overtake each other
        return "the cat " * int(self.np_random.integers(1, 5)) + str(self.task)


def rng_words(episode: Episode) -> str:
    """Words of the episode's own generator, so that sharing one between episodes would show."""
    return " ".join(str(n) for n in episode.rng.integers(1000, size=3))


def model_agent(seed: int = 0, slots: int = 4, **options: Any) -> TransformerAgent:
    policy = tiny_policy(WORDS, seed=seed, vocab_size=280, hidden=32, layers=2, heads=2, version=f"weights-{seed}")
    return TransformerAgent(policy, sampling=Sampling(max_new_tokens=6), max_tokens=300, slots=slots, **options)


def test_members_share_their_start_and_differ_and_all_follows_from_the_seed() -> None:
    agent = ScriptedAgent(rng_words)
    groups = collect(agent, Chatter, groups=5, group_size=3, seed=7, progress=False)
    assert [group[0].seed for group in groups] == [derived_seed(7, index) for index in range(5)]
    assert [[m.member for m in group] for group in groups] == [[0, 1, 2]] * 5
    assert all(len({m.turns[0].observation for m in group}) == 1 for group in groups)
    said = [m.turns[0].action for group in groups for m in group]
    assert len(set(said)) == 15
    assert said[4] == " ".join(str(n) for n in episode_rng(7, 1, 1).integers(1000, size=3))
    assert collect(agent, Chatter, groups=5, group_size=3, seed=7, progress=False) == groups
    assert collect(agent, Chatter, groups=7, group_size=3, seed=7, progress=False)[:5] == groups
    assert collect(agent, Chatter, groups=5, group_size=3, seed=8, progress=False) != groups


@pytest.mark.parametrize("blocking", [False, True])
def test_concurrency_changes_nothing(blocking: bool) -> None:
    """Also where episodes overtake each other, in threads, and where more run than the model has slots."""
    expected = collect(model_agent(), Chatter, groups=4, group_size=2, seed=1, concurrency=1, progress=False)
    for concurrency in (3, 64):
        found = collect(
            model_agent(),
            lambda: Chatter(blocking),
            groups=4,
            group_size=2,
            seed=1,
            concurrency=concurrency,
            progress=False,
        )
        assert [[(m.turns, m.task_id) for m in g] for g in found] == [
            [(m.turns, m.task_id) for m in g] for g in expected
        ]
    assert expected[0][0].turns[0].logps.dtype == np.float32


def test_environments_that_wait_step_in_threads_and_others_do_not() -> None:
    made: list[Chatter] = []

    def factory(blocking: bool) -> Any:
        def make() -> Chatter:
            made.append(Chatter(blocking))
            return made[-1]

        return make

    collect(ScriptedAgent(["x"]), factory(True), groups=6, concurrency=3, progress=False)
    waiting, made[:] = list(made), []
    collect(ScriptedAgent(["x"]), factory(False), groups=6, concurrency=3, progress=False)
    assert all(name.startswith("polyturn-env") for env in waiting for name in env.threads)
    assert {name for env in made for name in env.threads} == {"MainThread"}
    assert 1 <= len(waiting) <= 3
    assert all(env.closed for env in waiting + made)


def test_each_member_may_have_another_agent() -> None:
    old, new = model_agent(seed=1), model_agent(seed=2)
    (group,) = collect([new, new, old], Chatter, group_size=3, progress=False)
    assert [m.policy_version for m in group] == ["weights-2", "weights-2", "weights-1"]
    with pytest.raises(ValueError, match="one agent for each of 2 members, got 3"):
        collect([new, new, old], Chatter, group_size=2, progress=False)


def test_asynchronous_agents_wait_side_by_side() -> None:
    class Remote:
        name = "remote"
        together = most = 0

        async def act(self, episode: Episode) -> str:
            self.together += 1
            self.most = max(self.most, self.together)
            await asyncio.sleep(0.01)
            self.together -= 1
            return rng_words(episode)

    agent = Remote()
    groups = collect(agent, Chatter, groups=8, concurrency=4, progress=False)
    assert agent.most == 4
    assert [[m.turns for m in g] for g in groups] == [
        [m.turns for m in g] for g in collect(ScriptedAgent(rng_words), Chatter, groups=8, progress=False)
    ]


def test_tasks_are_named_to_the_environment() -> None:
    groups = collect(ScriptedAgent(["x"]), Chatter, tasks=[5, 3, 5], group_size=2, progress=False)
    assert [[m.task_id for m in g] for g in groups] == [["task-5"] * 2, ["task-3"] * 2, ["task-5"] * 2]
    assert groups[0][0].seed != groups[2][0].seed
    with pytest.raises(ValueError, match=r"one task a group \(2\), got 3 tasks"):
        collect(ScriptedAgent(["x"]), Chatter, groups=2, tasks=[1, 2, 3], progress=False)
    with pytest.raises(ValueError, match=r"collect\(concurrency\): expected a whole number of at least 1, got 0"):
        collect(ScriptedAgent(["x"]), Chatter, concurrency=0, progress=False)


def test_what_cannot_act_or_is_one_environment_is_named_before_any_work() -> None:
    """A policy acts through an agent, a class is not yet one, and an environment holds one episode at a time."""
    with pytest.raises(ValueError, match=r"expected agents, .*of a Policy TransformerAgent\(policy\) makes one"):
        collect(tiny_policy(["a"], seed=0), "polyturn/Guess-v0")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expected agents, .*got <class .*RandomAgent"):
        collect([RandomAgent(), RandomAgent], "polyturn/Guess-v0", group_size=2)  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"a function that makes one, got .*lambda: gymnasium\.make"):
        collect(RandomAgent(), Chatter())  # type: ignore[arg-type]


class Fragile(Chatter):
    """Fails as its class says: at reset or step, for a member's first tries."""

    failures: Counter[str]
    where = "step"
    tries = 1
    victims: frozenset[str] = frozenset()
    error: Exception = SandboxLost("the container died")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        result = super().reset(seed=seed, options=options)
        if self.where == "reset":
            self._perhaps_fail(str(self.task))
        return result

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.where == "step":
            self._perhaps_fail(action)
        return super().step(action)

    def _perhaps_fail(self, key: str) -> None:
        if key in self.victims and self.failures[key] < self.tries:
            self.failures[key] += 1
            raise self.error


def fragile(**settings: Any) -> type[Fragile]:
    return type("Fragile", (Fragile,), {"failures": Counter(), **settings})


def member_name(episode: Episode) -> str:
    return f"member {episode.member}"


def test_a_failed_episode_is_tried_once_more_and_then_recorded_as_invalid() -> None:
    agent = ScriptedAgent(member_name)
    clean = collect(agent, Chatter, group_size=3, progress=False)
    once = collect(agent, fragile(victims={"member 1"}), group_size=3, progress=False)
    assert [m.turns for m in once[0]] == [m.turns for m in clean[0]]
    (twice,) = collect(agent, fragile(victims={"member 1"}, tries=2), group_size=3, progress=False)
    assert [m.valid for m in twice] == [True, False, True]
    assert twice[1].error == "SandboxLost: the container died"
    assert twice[1].total_reward == 0.0
    assert twice.valid is not None
    assert len(twice.valid) == 2


def test_a_group_survives_a_member_whose_reset_failed(tmp_path: Path) -> None:
    """It failed before the environment named the task, and still belongs to the group."""
    factory = fragile(where="reset", victims={"5"}, tries=2)
    with Store(tmp_path / "s.jsonl") as store:
        group, other = collect(
            ScriptedAgent(member_name), factory, tasks=[5, 6], group_size=3, concurrency=1, store=store, progress=False
        )
    assert [m.error is None for m in group] == [False, True, True]
    assert {m.task_id for m in group} == {"task-5"}
    assert all(m.valid for m in other)


def test_when_everything_fails_there_is_one_error_with_the_cause() -> None:
    for groups in (1, 40):
        with pytest.raises(CollectError, match="failed, the last with SandboxLost: the container died") as caught:
            collect(ScriptedAgent(["x"]), fragile(victims={"x"}, tries=10**9), groups=groups, progress=False)
        assert isinstance(caught.value.__cause__, SandboxLost)


@pytest.mark.parametrize("error", [SandboxUnavailable("start Docker"), ImageMissing("build it")])
@pytest.mark.parametrize("blocking", [False, True])
def test_a_sandbox_that_cannot_run_here_stops_the_collection(error: Exception, blocking: bool) -> None:
    factory = fragile(victims={"x"}, tries=10**9, error=error)
    with pytest.raises(type(error), match=str(error)):
        collect(ScriptedAgent(["x"]), lambda: factory(blocking), groups=8, progress=False)


def test_a_resumed_collection_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """Killed by signal 9 in the middle; what was finished is not run again, and nothing is missing or different."""
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    with Store(whole) as store:
        expected = _run(store)
    child = subprocess.run([sys.executable, __file__, str(cut)], env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120)
    assert child.returncode == -signal.SIGKILL
    finished = list(read(cut))
    assert len(finished) == 9
    ran = []
    with Store(cut) as store:
        assert _run(store, ran) == expected
    assert len(ran) == 24 - len(finished)
    assert len(list(read(cut))) == 24


def test_a_store_of_other_runs_is_not_taken_for_this_one(tmp_path: Path) -> None:
    """Another agent, other weights, other tasks: run anew. A failed episode: tried anew."""
    with Store(tmp_path / "s.jsonl") as store:

        def run(agent: Any, env: Any = Chatter, **options: Any) -> int:
            before = len(list(read(store.path)))
            collect(agent, env, group_size=2, store=store, progress=False, **options)
            return len(list(read(store.path))) - before

        assert run(ScriptedAgent(["x"])) == 2
        assert run(ScriptedAgent(["x"])) == 0
        assert run(ScriptedAgent(["x"], name="other")) == 2
        assert run(model_agent(seed=1)) == 2
        assert run(model_agent(seed=2)) == 2
        assert run(ScriptedAgent(["x"]), tasks=[3]) == 2
        assert run(ScriptedAgent(["x"]), tasks=[4]) == 2
        assert run(ScriptedAgent(["x"]), tasks=[3]) == 0
        assert run(ScriptedAgent(["x"]), seed=1) == 2
        broken = fragile(victims={"member 1"}, tries=2)
        assert run(ScriptedAgent(member_name), broken) == 2
        assert run(ScriptedAgent(member_name), broken) == 1


def test_an_interrupt_stops_at_once_and_keeps_what_is_finished(tmp_path: Path) -> None:
    def act(episode: Episode) -> str:
        if len(list(read(tmp_path / "s.jsonl"))) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return "x"

    with Store(tmp_path / "s.jsonl") as store:
        with pytest.raises(KeyboardInterrupt):
            collect(ScriptedAgent(act), Chatter, groups=50, concurrency=2, store=store, progress=False)
        assert 3 <= len(list(read(store.path))) < 10
        assert len(collect(ScriptedAgent(["x"]), Chatter, groups=50, store=store, progress=False)) == 50


def test_a_person_leaving_ends_the_collection_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    agent = HumanAgent(io.StringIO("one\n\n"), io.StringIO())
    with pytest.raises(KeyboardInterrupt, match="end of input"):
        collect(agent, Chatter, groups=9, progress=False)
    gc.collect()
    assert capfd.readouterr().err == ""


def test_it_runs_inside_a_running_event_loop() -> None:
    expected = collect(ScriptedAgent(rng_words), Chatter, groups=2, progress=False)

    async def notebook() -> Any:
        return collect(ScriptedAgent(rng_words), Chatter, groups=2, progress=False)

    assert asyncio.run(notebook()) == expected

    async def failing() -> Any:
        return collect(ScriptedAgent(["x"]), fragile(victims={"x"}, tries=9), progress=False)

    with pytest.raises(CollectError, match="the container died"):
        asyncio.run(failing())


def test_an_interrupt_in_a_notebook_does_not_wait_for_the_rest() -> None:
    done: list[int] = []

    class Slow:
        async def act(self, episode: Episode) -> str:
            done.append(1)
            if len(done) == 4:
                os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.01)
            return "x"

    async def notebook() -> None:
        collect(Slow(), Chatter, groups=300, concurrency=2, progress=False)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(notebook())
    assert len(done) < 100


def test_the_progress_bar_counts_episodes_and_what_was_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal; where errors go to a file it is left out."""
    with Store(tmp_path / "s.jsonl") as store:
        collect(ScriptedAgent(["x"]), Chatter, groups=1, label="trial")
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        collect(ScriptedAgent(["x"]), Chatter, groups=2, store=store, progress=False)
        assert capsys.readouterr().err == ""
        collect(ScriptedAgent(["x"]), Chatter, groups=5, store=store, label="trial")
    shown = capsys.readouterr().err
    assert "trial" in shown
    assert "2/5" in shown


def _run(store: Store, ran: list[int] | None = None) -> Any:
    def act(episode: Episode) -> str:
        if ran is not None and not episode.turns:
            ran.append(1)
        return rng_words(episode)

    return collect(
        ScriptedAgent(act), Chatter, groups=8, group_size=3, seed=3, concurrency=4, store=store, progress=False
    )


class _Mortal(Store):
    """Ends its process the hard way after nine trajectories."""

    def append(self, trajectory: Trajectory) -> None:
        super().append(trajectory)
        if len(list(read(self.path))) == 9:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    with _Mortal(sys.argv[1]) as opened:
        _run(opened)
