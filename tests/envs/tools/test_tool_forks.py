"""Snapshots of tools in the sandbox: an episode goes on from a fork, as it would have by running its programs again."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from polyturn.agents.agent import Episode, ScriptedAgent
from polyturn.agents.collecting.collect import collect
from polyturn.envs.checking.checker import check_text_env
from polyturn.envs.registration import make
from polyturn.envs.tool_math.problems import Problem, Problems
from polyturn.envs.tools.env import NotRepeatable, ToolEnv
from polyturn.envs.tools.held import HELD, Held, HeldStates
from polyturn.envs.tools.kits import Kept, Opened
from polyturn.envs.tools.sandboxed import InSandbox
from polyturn.sandbox import open_sandbox

SANDBOXES = ["local", pytest.param("docker", marks=pytest.mark.docker)]
PROBLEMS = Problems([Problem("a", "What is 6 * 7?", "42")], name="one")
TASKS = [{"question": "What is 6 * 7?", "answer": "42", "files": {"in.txt": "six"}}]
# It tells how often it ran, which a replay would say again, and draws a number, which both must draw alike.
STATEFUL = (
    "import random, os\nruns = globals().get('runs', 0) + 1\nopen(f'{runs}.txt', 'w').close()\nprint(random.random())"
)
LOOK = "print(runs, sorted(os.listdir()), random.random())"


@pytest.fixture(autouse=True)
def kept_before() -> Iterator[int]:
    """Nothing that a test kept stays."""
    before = len(HELD)
    yield before
    assert len(HELD) == before


@pytest.fixture(params=SANDBOXES)
def sandbox(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if not open_sandbox(name).capabilities.fork:
        pytest.skip("this sandbox declares that it cannot fork")
    return name


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


def tool_math(sandbox: str) -> Any:
    env = make("polyturn/ToolMath-v0", problems=PROBLEMS, sandbox=sandbox).unwrapped
    env.reset(seed=0, options={"task": 0})
    return env


def test_a_restored_episode_runs_no_program_again_and_goes_on_alike(sandbox: str) -> None:
    """The original, a fork, and a replay (in which nothing is kept) answer alike; each has a state of its own."""
    env, forked, replayed = (tool_math(sandbox) for _ in range(3))
    env.step(fenced(STATEFUL))
    env.step(fenced(STATEFUL))
    saved = json.loads(json.dumps(env.snapshot()))
    assert env.snapshot() == saved
    forked.restore(saved)
    assert forked.restored_by_fork
    env.forget(saved)
    replayed.restore(saved)
    assert not replayed.restored_by_fork
    said = [each.step(fenced(LOOK))[0] for each in (env, forked, replayed)]
    assert said[0] == said[1] == said[2]
    assert "2 ['1.txt', '2.txt']" in said[0]
    forked.step(fenced("runs = 'mine'"))
    assert "2 ['1.txt'" in env.step(fenced(LOOK))[0]
    assert forked.snapshot()["said"][-1] == fenced("runs = 'mine'")
    forked.forget(forked.snapshot())
    for each in (env, forked, replayed):
        assert each.step("\\boxed{42}")[1] == 1.0
        each.close()


def test_what_a_clock_said_is_kept_by_a_fork(sandbox: str) -> None:
    """Where a replay would see another time, the fork has what the original saw."""
    env, other = tool_math(sandbox), tool_math(sandbox)
    env.step(fenced("import time\nseen = time.perf_counter_ns()"))
    saved = env.snapshot()
    for _ in range(3):
        other.restore(saved)
        assert other.step(fenced("print(seen)"))[0] == env.step(fenced("print(seen)"))[0]
    env.forget(saved)
    env.close()
    other.close()


def test_a_fork_outlives_its_original_s_episode(sandbox: str) -> None:
    env, other = tool_math(sandbox), tool_math(sandbox)
    env.step(fenced("x = 42"))
    saved = env.snapshot()
    env.reset(seed=1)
    other.restore(saved)
    assert other.restored_by_fork
    assert "42" in other.step(fenced("print(x)"))[0]
    env.close()
    other.restore(saved)
    assert not other.restored_by_fork  # closing lets go of what was kept
    assert "42" in other.step(fenced("print(x)"))[0]
    other.close()


def test_shell_and_files_are_forked_with_the_interpreter(sandbox: str) -> None:
    """The folder is copied: what either side writes, the other does not see."""
    env = ToolEnv(TASKS, ["python", "shell", "files", "calculator"], sandbox=sandbox, calls="fenced", max_turns=20)
    env.reset(seed=0)
    env.step('```write_file\n{"path": "a.txt", "text": "mine"}\n```')
    saved = env.snapshot()
    other = ToolEnv(TASKS, ["python", "shell", "files", "calculator"], sandbox=sandbox, calls="fenced", max_turns=20)
    other.restore(saved)
    assert other.restored_by_fork
    env.step('```write_file\n{"path": "a.txt", "text": "changed"}\n```')
    assert "mine" in other.step("```shell\ncat a.txt in.txt\n```")[0]
    env.forget(saved)
    env.close()
    other.close()


def test_tools_with_state_outside_the_sandbox_are_replayed(sandbox: str) -> None:
    class Counter:
        count = 0

        def more(self) -> int:
            """Counts."""
            self.count += 1
            return self.count

    env = ToolEnv(TASKS, ["python", Counter], sandbox=sandbox, calls="fenced")
    env.reset(seed=0)
    env.step("```more\n{}\n```")
    other = copy.deepcopy(env)
    other.restore(env.snapshot())
    assert not other.restored_by_fork
    assert "2" in other.step("```more\n{}\n```")[0]
    env.close()
    other.close()


def test_programs_that_may_not_be_run_again_have_snapshots_as_long_as_their_fork_is_kept(sandbox: str) -> None:
    kit = InSandbox(("python",), open_sandbox(sandbox), replay="refused")
    env, other = ToolEnv(TASKS, kit, calls="fenced"), ToolEnv(TASKS, kit, calls="fenced")
    env.reset(seed=0)
    env.step(fenced("x = 42"))
    saved = env.snapshot()
    other.restore(saved)
    assert "42" in other.step(fenced("print(x)"))[0]
    env.forget(saved)
    with pytest.raises(NotRepeatable, match="does not keep the snapshot's state any more"):
        other.restore(saved)
    env.step(fenced("import threading, time\nt = threading.Thread(target=time.sleep, args=(60,))\nt.start()"))
    with pytest.raises(NotRepeatable, match="no snapshots"):
        env.snapshot()  # a session with threads cannot be forked
    env.close()
    other.close()


def test_a_group_that_parts_at_a_turn_forks_its_prefix_and_frees_it(sandbox: str) -> None:
    """`collect` plays the prefix's programs once, not once a member."""
    ran: list[str] = []

    class Watched(ToolEnv):
        def _call(self, call: Any) -> Any:
            ran.append(call.arguments["code"])
            return super()._call(call)

    def act(episode: Episode) -> str:
        turn = len(episode.turns)
        return fenced("x = 40") if turn == 0 else fenced(f"print(x + {episode.member})") if turn == 1 else "42"

    def env() -> ToolEnv:
        return Watched(TASKS, ["python"], sandbox=sandbox, calls="fenced")

    (group,) = collect(ScriptedAgent(act), env, group_size=4, branch_at=1, progress=False)
    assert ran.count("x = 40") == 1
    assert [member.turns[2].observation for member in group] == [f"```output\n{40 + n}\n```" for n in range(4)]
    assert all(member.total_reward == 1.0 for member in group)


def test_the_contract_holds_with_forks(sandbox: str) -> None:
    actions = [fenced(STATEFUL), fenced(LOOK), "42"]
    tasks = [*TASKS, {"question": "What is 7 * 7?", "answer": "49"}]
    env = lambda: ToolEnv(tasks, ["python"], sandbox=sandbox, calls="fenced", max_turns=5)  # noqa: E731
    assert (
        check_text_env(
            env, actions=lambda rng, seen: actions[("output" in seen) + ("in.txt" in seen)], seeds=range(2)
        ).longest
        > 2
    )


def test_no_more_states_are_kept_than_there_is_room_for() -> None:
    states, closed = HeldStates(2), []

    def state(name: str) -> Held:
        return Held([Kept(lambda: Opened([]), lambda: closed.append(name))], [], 0)

    for name in ("a", "b", "c"):
        states.put(name, state(name))
    assert (closed, len(states), states.get("a")) == (["a"], 2, None)
    states.put("c", state("c again"))
    states.drop("b")
    states.drop("never there")
    assert closed == ["a", "c", "b"]
