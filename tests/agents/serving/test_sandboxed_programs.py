"""Agent programs as generators in the sandbox: what they ask is asked outside, and the run's key stays there."""

from __future__ import annotations

from typing import Any

import pytest

from polyturn.agents import AgentProgram, Sampling, SandboxedProgram, TransformerAgent, collect, tiny_policy
from polyturn.agents.collecting.collect import CollectError

SANDBOXES = ["local", pytest.param("docker", marks=pytest.mark.docker)]
TWO_CALLS = """
import os, sys
def agent(task):
    messages = [{"role": "user", "content": task["question"]}]
    first = yield messages
    messages += [first, {"role": "user", "content": "and?"}]
    second = yield {"messages": messages, "max_tokens": 2}
    print("anything may be printed\\npolyturn:{}")
    leaked = [name for name in os.environ if "KEY" in name]
    return {"said": [first["content"], second["content"]], "leaked": leaked}
"""
WAYS = {
    "raises": ("def agent(task):\n    yield []\n    1 / 0", "error"),
    "crashes": ("def agent(task):\n    import os\n    os._exit(3)\n    yield", "crash"),
    "no JSON": ("def agent(task):\n    yield {1, 2}", "TypeError"),
    "no request": ("def agent(task):\n    yield 3", "expected the program to yield messages"),
    "no generator": ("def agent(task):\n    return 3", "AttributeError"),
    "without end": (
        "def agent(task):\n    while True:\n        yield [{'role': 'user', 'content': 'x'}]", "more than 3 times"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def agent() -> TransformerAgent:
    policy = tiny_policy(["a town by the sea"], seed=3, hidden=32, layers=2, heads=2, context=256)
    return TransformerAgent(policy, sampling=Sampling(max_new_tokens=6), max_tokens=200, slots=4)


@pytest.mark.parametrize("sandbox", SANDBOXES)
def test_runs_in_the_sandbox_are_groups_like_any(sandbox: str, agent: TransformerAgent) -> None:
    """One segment of two turns a run, tokens as sampled, the result for the score, and no key inside."""
    results: list[Any] = []

    def score(outcome: Any) -> float:
        results.append(outcome.result)
        return float(len(outcome.result["said"][0]))

    program = AgentProgram(SandboxedProgram(TWO_CALLS, sandbox), [{"question": "Where?"}], score)
    (group,) = collect(agent, program, group_size=3, progress=False)
    for run in group:
        assert run.valid, run.error
        assert [len(part) for part in run.segments] == [2]
        assert len(run.turns[1].action_ids) <= 2
    assert all(result["leaked"] == [] for result in results)
    assert {result["said"][0] for result in results} == {turn.action for run in group for turn in run.turns[:1]}
    assert group == collect(agent, program, group_size=3, progress=False)[0]


@pytest.mark.parametrize("how", WAYS)
def test_what_goes_wrong_inside_makes_the_run_invalid(how: str, agent: TransformerAgent) -> None:
    source, reason = WAYS[how]
    program = AgentProgram(SandboxedProgram(source, "local", calls=3), [{}], lambda outcome: 1.0)
    with pytest.raises(CollectError, match=reason):
        collect(agent, program, progress=False)


def test_a_source_without_an_agent_is_refused_and_another_source_is_another_program() -> None:
    with pytest.raises(ValueError, match="def agent"):
        SandboxedProgram("print(1)")
    names = {SandboxedProgram(f"def agent(task):\n    yield {n}").name for n in (1, 2)}
    assert len(names) == 2
