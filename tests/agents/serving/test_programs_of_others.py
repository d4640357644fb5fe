"""Clients and frameworks from PyPI against the server, as their users write them: Anthropic's client, pydantic-ai, and
mini-swe-agent's loop. Run by `make programs`, which installs them."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from polyturn.agents import AgentProgram, Endpoint, Policy, Sampling, TransformerAgent, tiny_policy
from polyturn.agents.serving.programs import ProgramOutcome, Task
from polyturn.agents.serving.sampler import Sampler
from polyturn.envs.trajectory import TokenIds, Trajectory

pytestmark = pytest.mark.programs
CALL = '<tool_call>{"name": "weather", "arguments": {"town": "Ulm"}}</tool_call>'
TEMPLATE = (
    "{% if tools %}<|turn|>system\ntools: {% for tool in tools %}{{ tool | tojson }}{% endfor %}<|end|>{% endif %}"
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}<tool_call>\n{{ call['function'] | tojson }}\n</tool_call>"
    "{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
TOOL = {
    "name": "weather",
    "description": "The weather of a town.",
    "input_schema": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
}


def played(program: Any, said: list[str], monkeypatch: pytest.MonkeyPatch, score: Any) -> tuple[Trajectory, list[str]]:
    """One run of a program whose model says these things in order; and the prompts that it read."""
    made = tiny_policy(said, seed=0, hidden=16, layers=1, heads=2, context=16384)
    made.tokenizer.chat_template = TEMPLATE
    policy, prompts = Policy(made.model, made.tokenizer), list[str]()

    async def sample(self: Sampler, prompt: TokenIds, *_: Any, **__: Any) -> Any:
        prompts.append(policy.tokenizer.decode(prompt))
        ids = np.append(policy.chat.plain(said[len(prompts) - 1]), policy.chat.end_id).astype(np.int32)
        return ids, np.full(len(ids), -0.5, np.float32)

    monkeypatch.setattr(Sampler, "sample", sample)
    agent = TransformerAgent(policy, sampling=Sampling(max_new_tokens=100), max_tokens=16000, slots=1)
    ((run,),) = AgentProgram(program, [{"question": "Does it rain in Ulm?"}], score).collect([agent], progress=False)
    assert run.valid, run.error
    assert [turn.action for turn in run.turns] == said
    return run, prompts


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_anthropic_s_client_uses_tools_in_one_growing_history(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import anthropic

    async def program(task: Task, endpoint: Endpoint) -> str:
        messages: list[Any] = [{"role": "user", "content": task["question"]}]
        async with anthropic.AsyncAnthropic(base_url=endpoint.root, api_key=endpoint.api_key) as api:
            while True:
                asked: Any = {"model": "policy", "max_tokens": 200, "messages": messages, "tools": [TOOL]}
                if stream:
                    async with api.messages.stream(**asked) as coming:
                        answer = await coming.get_final_message()
                else:
                    answer = await api.messages.create(**asked)
                messages.append({"role": "assistant", "content": answer.content})
                calls = [block for block in answer.content if block.type == "tool_use"]
                if not calls:
                    assert answer.stop_reason == "end_turn"
                    return "".join(block.text for block in answer.content if block.type == "text")
                assert answer.stop_reason == "tool_use"
                results = [
                    {"type": "tool_result", "tool_use_id": call.id, "content": f"In {call.input['town']} it rains."}
                    for call in calls
                ]
                messages.append({"role": "user", "content": results})

    said = [f"I ask. {CALL}", "It rains."]
    run, prompts = played(program, said, monkeypatch, lambda outcome: float(outcome.result == "It rains."))
    assert run.total_reward == 1.0
    assert run.segment_starts == ()  # the second call went on with the first one's tokens
    assert "In Ulm it rains." in prompts[1]


def test_a_pydantic_ai_agent_runs_with_its_own_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    async def program(task: Task, endpoint: Endpoint) -> str:
        provider = OpenAIProvider(base_url=endpoint.base_url, api_key=endpoint.api_key)
        agent = Agent(OpenAIChatModel("policy", provider=provider), system_prompt="Be brief.")

        @agent.tool_plain
        def weather(town: str) -> str:
            """The weather of a town."""
            return f"In {town} it rains."

        return str((await agent.run(task["question"])).output)

    said = [f"I ask. {CALL}", "It rains."]
    run, prompts = played(program, said, monkeypatch, lambda outcome: float("rains" in outcome.result))
    assert run.total_reward == 1.0
    assert run.segment_starts == ()
    assert "The weather of a town." in prompts[0]
    assert "In Ulm it rains." in prompts[1]


def test_mini_swe_agent_s_loop_repairs_a_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its DefaultAgent and LocalEnvironment; the model is a function of messages, as any of its models is."""
    import openai
    from minisweagent.agents.default import DefaultAgent
    from minisweagent.environments.local import LocalEnvironment
    from minisweagent.exceptions import FormatError, Submitted

    file = tmp_path / "add.py"
    file.write_text("def add(a, b):\n    return a - b\n")

    class Model:
        def __init__(self, endpoint: Endpoint) -> None:
            self.api = openai.OpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key)

        def query(self, messages: list[dict[str, Any]], **_: Any) -> dict[str, Any]:
            told: Any = [{"role": each["role"], "content": each["content"]} for each in messages]
            content = self.api.chat.completions.create(model="policy", messages=told).choices[0].message.content or ""
            found = re.findall(r"```bash\n(.*?)\n```", content, re.DOTALL)
            if len(found) != 1:
                raise FormatError(self.format_message(role="user", content="Write one bash block."))
            return {"role": "assistant", "content": content, "extra": {"actions": [{"command": found[0]}], "cost": 0.0}}

        def format_message(self, **message: Any) -> dict[str, Any]:
            return message

        def format_observation_messages(self, message: Any, outputs: list[Any], _: Any = None) -> list[dict[str, Any]]:
            return [{"role": "user", "content": f"<output>\n{output['output']}</output>"} for output in outputs]

        def get_template_vars(self, **_: Any) -> dict[str, Any]:
            return {}

        def serialize(self) -> dict[str, Any]:
            return {}

    def program(task: Task, endpoint: Endpoint) -> str:
        agent = DefaultAgent(
            Model(endpoint), LocalEnvironment(cwd=str(tmp_path)), step_limit=6, cost_limit=0.0,
            system_template="You repair code.", instance_template="{{task}}",
        )  # fmt: skip
        return str(agent.run("add.py subtracts. Mend it.").get("exit_status"))

    def score(outcome: ProgramOutcome) -> float:
        space: dict[str, Any] = {}
        exec(file.read_text(), space)
        return float(space["add"](2, 2) == 4 and outcome.result == "Submitted")

    said = [
        "Let me look.\n```bash\ncat add.py\n```",
        "I forgot the block.",
        "```bash\nsed -i 's/a - b/a + b/' add.py\n```",
        "```bash\necho COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT\n```",
    ]
    run, prompts = played(program, said, monkeypatch, score)
    assert Submitted  # what ends its loop
    assert run.total_reward == 1.0
    assert run.info["calls"] == 4
    assert "return a - b" in prompts[1]
    assert "Write one bash block." in prompts[2]
    # A reply with a wrong format is not in its history, so what follows it is a segment of its own.
    assert len(run.segments) == 2
    assert json.dumps(run.to_json())
