"""Runs of agent programs as groups: functions and commands, failures, stores, and methods that train on them."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from polyturn.agents import (
    AgentProgram,
    AgentServer,
    Policy,
    Sampling,
    TransformerAgent,
    collect,
    collect_program,
    tiny_policy,
)
from polyturn.agents.collecting.collect import CollectError
from polyturn.agents.collecting.resuming import SameNameWarning
from polyturn.agents.serving.programs import Endpoint, ProgramOutcome, Task, printed_score, read_tasks
from polyturn.envs import Group, Store, Turn, group_by_start, read

PROGRAM = """
import json, os, subprocess, sys, time, openai
task = json.loads(sys.stdin.readline())
api = openai.OpenAI(max_retries=0)
how = task["how"]
if how == "crash":
    sys.exit("it broke with " + os.environ["OPENAI_API_KEY"])
if how == "slow":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    time.sleep(60)
answer = api.chat.completions.create(model="m", messages=[{"role": "user", "content": how}])
print("said", answer.choices[0].message.content)
print(json.dumps({"score": "high"} if how == "unscored" else {"score": 2.5}))
"""


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy(["a town by the sea"], seed=3, hidden=32, layers=2, heads=2, context=256)


@pytest.fixture
def agent(policy: Policy) -> TransformerAgent:
    return TransformerAgent(policy, sampling=Sampling(max_new_tokens=6), max_tokens=200, slots=4)


async def two_turns(task: Task, endpoint: Endpoint) -> str:
    async with openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as api:
        messages: list[Any] = [{"role": "user", "content": task["town"]}]
        for _ in range(2):
            answer = await api.chat.completions.create(model="m", messages=messages)
            messages += [{"role": "assistant", "content": answer.choices[0].message.content}]
            messages += [{"role": "user", "content": "and"}]
    return "".join(message["content"] for message in messages[1::2])


def length(outcome: ProgramOutcome) -> float:
    return float(len(outcome.result))


def test_runs_of_a_function_are_groups_with_scores_and_the_seed_fixes_them(agent: TransformerAgent) -> None:
    tasks = [{"town": "Ulm", "id": "u"}, {"town": "Bonn"}]

    def run(concurrency: int) -> Any:
        return collect_program(
            two_turns, tasks, agent=agent, score=length, groups=3, group_size=2, seed=5, concurrency=concurrency,
            progress=False,
        )  # fmt: skip

    groups = run(1)
    assert [[member.task_id for member in group] for group in groups] == [["u"] * 2, ["1"] * 2, ["u"] * 2]
    assert all(member.valid and len(member.turns) == 2 and member.segment_starts == () for g in groups for member in g)
    assert groups[0][0].total_reward == len(groups[0][0].info["result"])
    assert groups[0][0].turns != groups[0][1].turns
    again = run(6)
    assert [[m.turns for m in group] for group in groups] == [[m.turns for m in group] for group in again]


def test_what_goes_wrong_in_a_run_makes_it_invalid_and_names_the_reason(
    agent: TransformerAgent, tmp_path: Path
) -> None:
    """Crashes (with the key in their complaint), slow programs with children, no score: never a reward of 0."""
    file = tmp_path / "agent.py"
    file.write_text(PROGRAM)
    tasks = [{"how": how} for how in ("good", "crash", "slow", "unscored")]
    path = tmp_path / "runs.jsonl"
    with Store(path) as store:
        groups = AgentProgram([sys.executable, str(file)], tasks, timeout=20.0).collect(
            [agent], seed=0, store=store, progress=False
        )
    good, crash, slow, unscored = (group[0] for group in groups)
    assert good.valid, good.error
    assert good.total_reward == 2.5
    assert good.info["result"].startswith("said")
    assert "code 1: it broke with ***" in str(crash.error)
    assert "more than 20 s" in str(slow.error)
    assert "no score" in str(unscored.error)
    assert [each.valid for each in (crash, slow, unscored)] == [False] * 3
    assert all(each.total_reward == 0.0 for each in (crash, slow, unscored))
    assert "pt-" not in path.read_text()
    assert len(list(read(path))) == 4


def test_a_run_without_a_call_and_one_that_leaves_a_call_are_invalid(
    agent: TransformerAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = AgentServer._draw

    async def slow(*args: Any) -> Any:
        await asyncio.sleep(1.0)
        return await draw(*args)

    monkeypatch.setattr(AgentServer, "_draw", slow)

    async def leaves(task: Task, endpoint: Endpoint) -> str:
        api = openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key, max_retries=0)
        asking = api.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asking, 0.5)
        return "done"

    async def silent(task: Task, endpoint: Endpoint) -> str:
        return "done"

    for program, reason in ((silent, "no call"), (leaves, "abandoned: 1 of 1 calls")):
        with pytest.raises(CollectError, match=reason):
            collect_program(program, [{}], agent=agent, score=lambda outcome: 1.0, progress=False)


def test_a_plain_function_runs_in_a_thread_and_a_score_may_be_awaited(agent: TransformerAgent) -> None:
    def plain(task: Task, endpoint: Endpoint) -> str:
        with openai.OpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as api:
            answer = api.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        return answer.choices[0].message.content or ""

    async def score(outcome: ProgramOutcome) -> float:
        assert outcome.messages[0] == {"role": "user", "content": "x"}
        return 0.25

    (group,) = collect_program(plain, [{}], agent=agent, score=score, group_size=3, progress=False)
    assert [member.total_reward for member in group] == [0.25] * 3


def test_valid_runs_in_the_store_are_not_run_again(agent: TransformerAgent, tmp_path: Path) -> None:
    ran: list[str] = []

    async def counted(task: Task, endpoint: Endpoint) -> str:
        ran.append(task["town"])
        if len(ran) == 1:
            raise RuntimeError("the first fails")
        return await two_turns(task, endpoint)

    for expected in (4, 5, 5):
        with Store(tmp_path / "s.jsonl") as store:
            groups = collect_program(
                counted, [{"town": "a"}, {"town": "b"}], agent=agent, score=length, group_size=2, store=store,
                concurrency=1, progress=False,
            )  # fmt: skip
        assert len(ran) == expected
    assert all(member.valid for group in groups for member in group)


def test_runs_say_which_start_of_the_collection_they_are_as_those_of_environments_do(
    agent: TransformerAgent, tmp_path: Path
) -> None:
    """Stored, read, grouped again, and resumed: two starts of one task are two groups."""

    def run(path: Path) -> list[Group]:
        with Store(path) as store:
            return collect_program(
                two_turns,
                [{"town": "a"}],
                agent=agent,
                score=length,
                groups=3,
                group_size=2,
                store=store,
                progress=False,
            )

    groups = run(tmp_path / "whole.jsonl")
    assert [[member.group for member in group] for group in groups] == [[0, 0], [1, 1], [2, 2]]
    stored = list(read(tmp_path / "whole.jsonl"))
    assert sorted((each.group, each.member) for each in stored) == [(g, m) for g in range(3) for m in range(2)]
    again = group_by_start(sorted(stored, key=lambda each: (each.group, each.member)))
    assert [[m.turns for m in group] for group in again] == [[m.turns for m in group] for group in groups]
    with Store(tmp_path / "part.jsonl") as store:
        for each in stored[1:4]:
            store.append(each)
    assert [[m.turns for m in g] for g in run(tmp_path / "part.jsonl")] == [[m.turns for m in g] for g in groups]
    assert len(list(read(tmp_path / "part.jsonl"))) == 6
    with Store(tmp_path / "old.jsonl") as store:  # of versions that kept the group only in `info`
        for each in stored:
            store.append(replace(each, group=None))
    assert [[m.group for m in g] for g in run(tmp_path / "old.jsonl")] == [[0, 0], [1, 1], [2, 2]]
    assert len(list(read(tmp_path / "old.jsonl"))) == 6


def test_a_store_gives_back_no_run_of_other_weights_or_of_a_task_that_has_changed(tmp_path: Path) -> None:
    async def once(task: Task, endpoint: Endpoint) -> str:
        async with openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as api:
            answer = await api.chat.completions.create(model="m", messages=[{"role": "user", "content": task["town"]}])
        return answer.choices[0].message.content or ""

    def run(seed: int, town: str) -> Turn:
        policy = tiny_policy(["a town by the sea"], seed=seed, hidden=32, layers=2, heads=2, context=256)
        agent = TransformerAgent(policy, sampling=Sampling(max_new_tokens=6), max_tokens=200, slots=4)
        with Store(tmp_path / "s.jsonl") as store:
            tasks = [{"id": "t", "town": town}]
            ((member,),) = collect_program(once, tasks, agent=agent, score=length, store=store, progress=False)
        return member.turns[0]

    first = run(3, "Ulm")
    assert run(3, "Ulm") == first
    assert len(list(read(tmp_path / "s.jsonl"))) == 1
    with pytest.warns(SameNameWarning, match="1 of these episodes"):
        assert run(4, "Ulm").action_ids.tolist() != first.action_ids.tolist()
    assert run(4, "Bonn").observation == "Bonn"


def test_fewer_starts_than_tasks_have_tasks_that_the_seed_decides(agent: TransformerAgent) -> None:
    """A run that collects again and again comes to all of them."""

    async def short(task: Task, endpoint: Endpoint) -> str:
        async with openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key) as api:
            await api.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], max_tokens=1)
        return ""

    program = AgentProgram(short, [{"id": str(n)} for n in range(6)], lambda outcome: 0.0)
    drawn = [[g[0].task_id for g in collect(agent, program, groups=2, seed=s, progress=False)] for s in (0, 1, 2, 3, 0)]
    assert all(len(set(each)) == 2 for each in drawn)
    assert drawn[0] == drawn[4]
    assert len({task for each in drawn for task in each}) > 3


def test_an_agent_program_stands_where_collect_takes_an_environment(agent: TransformerAgent) -> None:
    program = AgentProgram(two_turns, [{"town": "a"}], length)
    groups = collect(agent, program, groups=2, group_size=2, progress=False)
    assert [len(group) for group in groups] == [2, 2]
    with pytest.raises(ValueError, match="no environment"):
        collect(agent, program, branch_at=1)


@pytest.mark.parametrize(
    ("printed", "expected"),
    [("x\n3", 3.0), ('{"reward": -1}', -1.0), ("true", None), ("", None), ("done", None), ('{"score": true}', None)],
)
def test_the_score_a_program_prints(printed: str, expected: float | None) -> None:
    outcome = ProgramOutcome({}, printed)
    if expected is None:
        with pytest.raises(RuntimeError, match="expected a last line with a number"):
            printed_score(outcome)
    else:
        assert printed_score(outcome) == expected


def test_programs_and_tasks_are_checked_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shlex\.split"):
        AgentProgram("python agent.py", [{}])
    with pytest.raises(ValueError, match="at least one task"):
        AgentProgram(["python"], [])
    file = tmp_path / "t.jsonl"
    file.write_text('{"a": 1}\n\n[2]\n')
    with pytest.raises(ValueError, match="line 3: expected a JSON object"):
        read_tasks(file)


def test_the_children_of_a_run_end_with_it(agent: TransformerAgent, tmp_path: Path) -> None:
    mark = tmp_path / "alive"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(mark)!r}).touch()"
    body = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]); print(1)"
    with pytest.raises(CollectError, match="no call"):
        collect_program([sys.executable, "-c", body], [{}], agent=agent, timeout=30, progress=False)
    time.sleep(4)
    assert not mark.exists()


def test_the_command_trains_on_a_program(policy: Policy, tmp_path: Path) -> None:
    """`polyturn train mdpo --program ... --tasks ...`: collect runs, compare them, train, save."""
    from polyturn.cli import main

    policy.save_pretrained(tmp_path / "policy")
    (tmp_path / "agent.py").write_text(
        "import json, sys, openai\ntask = json.loads(input())\n"
        "answer = openai.OpenAI().chat.completions.create(model='m', messages=[{'role': 'user', 'content': 'x'}])\n"
        "print(len(answer.choices[0].message.content or ''))\n"
    )
    (tmp_path / "tasks.jsonl").write_text(json.dumps({"id": "a"}) + "\n")
    out = tmp_path / "run"
    program = f"{sys.executable} '{tmp_path / 'agent.py'}'"
    arguments = ["--model", str(tmp_path / "policy"), "--program", program, "--tasks", str(tmp_path / "tasks.jsonl")]
    settings = ["--iterations", "1", "--groups", "1", "--group-size", "8", "--slots", "4", "--max-new-tokens", "6"]
    assert main(["train", "mdpo", *arguments, "--out", str(out), "--quiet", "--max-tokens", "200", *settings]) == 0
    assert (out / "iteration-1" / "policy").is_dir()
    runs = list(read(out / "iteration-1" / "trajectories.jsonl"))
    assert [run.env_options["program"].endswith("agent.py") for run in runs] == [True] * 8
