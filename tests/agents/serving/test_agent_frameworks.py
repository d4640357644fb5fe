"""An agent framework from PyPI (smolagents) against the server, as its users write it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import smolagents

from polyturn.agents import AgentProgram, Endpoint, Sampling, TransformerAgent, tiny_policy
from polyturn.agents.serving.programs import ProgramOutcome, Task
from polyturn.agents.serving.sampler import Sampler
from polyturn.envs.trajectory import TokenIds

CALLS = [
    'I ask. <tool_call>{"name": "weather", "arguments": {"town": "Ulm"}}</tool_call>',
    '<tool_call>{"name": "final_answer", "arguments": {"answer": "rain"}}</tool_call>',
]


@smolagents.tool
def weather(town: str) -> str:
    """The weather of a town.

    Args:
        town: Its name.
    """
    return f"In {town} it rains."


def program(task: Task, endpoint: Endpoint) -> str:
    model = smolagents.OpenAIModel("policy", api_base=endpoint.base_url, api_key=endpoint.api_key)
    agent = smolagents.ToolCallingAgent([weather], model, max_steps=4, verbosity_level=0, stream_outputs=task["stream"])
    return str(agent.run(task["question"]))


def score(outcome: ProgramOutcome) -> float:
    return float(outcome.result == "rain")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_tool_calling_agent_runs_and_its_run_is_a_valid_trajectory(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its second prompt holds what the tool said; a call that it demands is served as a free one and counted."""
    policy = tiny_policy(CALLS, seed=0, hidden=16, layers=1, heads=2, context=8192)
    prompts: list[str] = []

    async def sample(self: Sampler, prompt: TokenIds, *_: Any, **__: Any) -> Any:
        prompts.append(policy.tokenizer.decode(prompt))
        ids = np.append(policy.chat.plain(CALLS[len(prompts) - 1]), policy.chat.end_id).astype(np.int32)
        return ids, np.full(len(ids), -0.5, np.float32)

    monkeypatch.setattr(Sampler, "sample", sample)
    agent = TransformerAgent(policy, sampling=Sampling(max_new_tokens=100), max_tokens=8000, slots=1)
    tasks = [{"question": "Does it rain in Ulm?", "stream": stream}]
    ((run,),) = AgentProgram(program, tasks, score).collect([agent], progress=False)
    assert run.valid, run.error
    assert run.total_reward == 1.0
    assert [turn.action for turn in run.turns] == CALLS
    assert "In Ulm it rains." in prompts[1]
    assert run.info["unforced"] == 2
    assert run.info["replayed"] == 0


def test_an_agent_whose_policy_writes_nonsense_fails_in_its_own_way() -> None:
    """A random policy calls no tool: the framework asks until its steps are used up, and its last word is scored."""
    policy = tiny_policy(["a"], seed=0, hidden=16, layers=1, heads=2, context=8192)
    agent = TransformerAgent(policy, sampling=Sampling(max_new_tokens=8), max_tokens=8000, slots=1)
    tasks = [{"question": "Does it rain?", "stream": False}]
    ((run,),) = AgentProgram(program, tasks, score, timeout=200.0).collect([agent], progress=False)
    assert run.valid, run.error
    assert run.total_reward == 0.0
    assert len(run.turns) >= 4
