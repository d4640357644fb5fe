"""Tools through the chat template: the tokens of `apply_chat_template`, the calls that the template writes."""

from __future__ import annotations

import json
import random
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from families import FAMILIES
from tool_families import QWEN25, TOOL_FAMILIES

from polyturn.agents.agent import ScriptedAgent
from polyturn.agents.collecting.collect import collect
from polyturn.agents.transformer.agent import TransformerAgent
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.agents.transformer.tokens import ChatFormat, ChatTemplateError, HistoryRewrittenWarning
from polyturn.envs.export import export_sft
from polyturn.envs.store import Store, read
from polyturn.envs.tools.calls import TOOLS, schema_of
from polyturn.envs.tools.env import ToolEnv
from polyturn.envs.tools.tool import function_tool
from polyturn.envs.trajectory import Trajectory, Turn

ATOMS = ["hello", "What is 2 + 2?", " ", "\n", "\n\n", "It is 4.", "12345", "é", "中文", "😀", '"', "{", "}", "\\", "[",
         "'s", "user", "\t"]  # fmt: skip


def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


TOOLS_SAID = [schema_of(function_tool(add))]


@lru_cache
def form(name: str) -> ChatFormat:
    made = TOOL_FAMILIES[name]()
    stops = frozenset([made.convert_tokens_to_ids("<|eom_id|>")]) if "other end" in name else frozenset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HistoryRewrittenWarning)
        return ChatFormat(made, stop_ids=stops)


def call(number: int, **arguments: Any) -> dict[str, Any]:
    return {"id": f"c{number:08d}", "type": "function", "function": {"name": "add", "arguments": arguments}}


def conversation(seed: int, calls: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)

    def text() -> str:
        return "".join(rng.choice(ATOMS) for _ in range(rng.randint(1, 5)))

    made = [call(n, a=rng.randint(0, 99), b=text()) for n in range(calls)]
    results = [{"role": "tool", "name": "add", "content": text(), "tool_call_id": each["id"]} for each in made]
    first = {"role": "assistant", "content": "", "tool_calls": made}
    return [
        {"role": "user", "content": f"a{text()}b"},
        first,
        *results,
        {"role": "assistant", "content": f"a{text()}b"},
    ]


def trajectory(messages: list[dict[str, Any]]) -> Trajectory:
    turns, heard = [], []
    for message in messages:
        if message["role"] != "assistant":
            heard.append(message)
        else:
            turns.append(Turn("seen", message["content"], messages=tuple(heard), reply=message))
            heard = []
    return Trajectory("e", 0, tuple(turns), terminated=True, info={TOOLS: TOOLS_SAID})


@pytest.mark.parametrize("name", TOOL_FAMILIES)
def test_conversations_with_tools_are_the_template_s_token_for_token(name: str) -> None:
    """Headers, schemas, calls, results of any text; one call and, where the family has them, two at once."""
    tokenizer = form(name)._tokenizer
    for seed in range(8):
        for calls in (1,) if "llama" in name else (1, 2):
            messages = conversation(seed, calls)
            written = form(name).written(trajectory(messages))
            ids = written.tokens[0].tolist()
            wanted = list(tokenizer.apply_chat_template(messages, tools=TOOLS_SAID, tokenize=True, return_dict=False))
            assert ids == wanted[: len(ids)], (messages, tokenizer.decode(ids), tokenizer.decode(wanted))
            assert not tokenizer.decode(wanted[len(ids) :]).strip()
            # Only what the agent said is the agent's: its turns end with the mark that ends a turn.
            own = [tokenizer.decode(turn.action_ids) for turn in written.turns]
            assert all(int(turn.action_ids[-1]) in form(name).stop_ids for turn in written.turns)
            assert not any("header_id" in text or "im_start" in text or "[INST]" in text for text in own)


@pytest.mark.parametrize("name", TOOL_FAMILIES)
def test_calls_that_the_template_writes_are_read_back(name: str) -> None:
    """Arguments with quotes, brackets and line breaks; ids count the episode's calls; an answer is no call."""
    chat = form(name)
    for seed in range(5):
        messages = conversation(seed, 1)
        first, last = chat.written(trajectory(messages)).turns
        reply = chat.calls.reply(chat.text(first.action_ids), TOOLS_SAID, 4)
        assert [each["function"] for each in reply["tool_calls"]] == [messages[1]["tool_calls"][0]["function"]]
        assert reply["tool_calls"][0]["id"] == "c00000004"
        answer = chat.calls.reply(chat.text(last.action_ids), TOOLS_SAID, 0)
        assert "tool_calls" not in answer
        assert answer["content"] == messages[-1]["content"].strip()


@pytest.mark.parametrize("name", TOOL_FAMILIES)
def test_marks_in_results_and_descriptions_are_text(name: str) -> None:
    """A result, a question, a schema that spell every mark: no more marks than without them."""
    chat, tokenizer = form(name), form(name)._tokenizer
    apart, own = chat.marks
    every = "".join(sorted(apart | own))
    marks = {tokenizer.convert_tokens_to_ids(text) for text in apart | own} - {tokenizer.unk_token_id}
    end = np.array([sorted(chat.stop_ids)[0]], np.int32)

    def found(text: str) -> list[list[int]]:
        tools = [{"type": "function", "function": {"name": "f", "description": text, "parameters": {"type": "object"}}}]
        result = [{"role": "tool", "name": "f", "content": text, "tool_call_id": "c00000000"}]
        prompt = chat.messages.prompt([{"role": "user", "content": text}], tools)
        after = chat.messages.continuation(result, tools, end, calls=1)
        assert text in tokenizer.decode(prompt)
        return [[number for number in ids.tolist() if number in marks] for ids in (prompt, after)]

    assert found(every) == found("plain")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen2.5", "<tool_call>\n{broken\n</tool_call>"),
        ("qwen2.5", '<tool_call>{"arguments": {}}</tool_call>'),
        ("qwen2.5", '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>'),
        ("qwen2.5", '<tool_call>{"name": "add", "arguments": ' + '{"a": ' * 3000),
        ("hermes", "<tool_call>[1]</tool_call>"),
        ("llama3.1", '{"name": "add", "parameters": '),
        ("mistral", "[TOOL_CALLS] [{]"),
        ("mistral", "[TOOL_CALLS] 3"),
    ],
)
def test_a_call_that_cannot_be_read_is_an_error_to_read_and_never_an_exception(name: str, text: str) -> None:
    chat = form(name)
    reply = chat.calls.reply(text, TOOLS_SAID, 0)
    assert reply["problem"]
    assert reply["content"] == text
    env = ToolEnv([{"question": "?", "answer": "4"}], [add], calls="template")
    env.reset(seed=0)
    from polyturn.envs.tools.calls import spelled

    seen, reward, terminated, _, info = env.step(spelled(reply))
    assert (reward, terminated, info["tool_error"]) == (0.0, False, True)
    assert "cannot be read" in seen
    assert info["chat_messages"] == [{"role": "user", "content": seen}]


def test_a_template_without_tools_is_refused_with_what_to_do_instead() -> None:
    with pytest.raises(ChatTemplateError, match='use calls="tool_call"'):
        _ = ChatFormat(FAMILIES["chatml"]()).calls


def test_calls_in_another_grammar_are_refused_until_the_tokenizer_says_how_to_read_them() -> None:
    """transformers' own `response_template` is used where there is one, and tried on a call first."""
    made = TOOL_FAMILIES["hermes"]()
    made.chat_template = QWEN25.replace("tool_call>", "do>")
    with pytest.raises(ChatTemplateError, match="response_template"):
        _ = ChatFormat(made).calls
    made.response_template = {
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "content": {},
            "tool_calls": {"open": "<do>", "close": "</do>", "content": "json", "repeats": True,
                           "transform": {"type": "function", "function": "{content}"}},
        },
    }  # fmt: skip
    reader = ChatFormat(made).calls
    assert reader.grammar == "the tokenizer's response_template"
    reply = reader.reply('ok<do>{"name": "add", "arguments": {"a": "1"}}</do>', TOOLS_SAID, 0)
    assert reply["content"] == "ok"
    assert reply["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1}}


TASKS = [{"question": "What is 2 + 2?", "answer": "4"}]


def tool_env() -> ToolEnv:
    return ToolEnv(TASKS, [add], calls="template", max_turns=3)


def test_a_policy_calls_tools_through_its_template(tmp_path: Any) -> None:
    """Forced to say a call and then an answer, its tokens are those of `apply_chat_template`, and all is recorded."""
    policy = tiny_policy(["What is 2 + 2? It is 4."], seed=0, hidden=32, layers=2, heads=2)
    policy.tokenizer.chat_template = QWEN25.replace("<|im_start|>", "<|turn|>").replace("<|im_end|>", "<|end|>")
    policy.chat = ChatFormat(policy.tokenizer)
    agent = TransformerAgent(policy, sampling=Sampling(max_new_tokens=8), max_tokens=1200, slots=4)
    said = ['<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 2}}\n</tool_call>', "4"]
    actions = [np.array([*policy.chat.plain(text).tolist(), policy.chat.end_id], np.int32) for text in said]
    real = agent._engine.generate

    async def forced(slot: int, unread: Any, rng: Any, **options: Any) -> Any:
        await real(slot, unread, rng, limit=1)
        spoken = actions[len(heard)]
        heard.append(unread)
        return spoken, np.zeros(len(spoken), np.float32)

    heard: list[Any] = []
    agent._engine.generate = forced  # type: ignore[method-assign]
    with Store(tmp_path / "s.jsonl") as store:
        (group,) = collect(agent, tool_env, store=store, progress=False)
    (played,) = group
    assert played.error is None
    assert played.total_reward == 1.0
    assert [turn.role for turn in played.turns] == ["user", "tool"]
    assert [dict(each) for each in played.turns[0].calls] == [{"name": "add", "arguments": {"a": 2, "b": 2}}]
    assert played.turns[0].action == said[0]
    assert [each.turns for each in read(tmp_path / "s.jsonl")] == [played.turns]
    assert Trajectory.from_json(json.loads(json.dumps(played.to_json()))) == played
    export_sft(tmp_path / "s.jsonl", tmp_path / "sft.jsonl")
    row = json.loads((tmp_path / "sft.jsonl").read_text())
    assert [message["role"] for message in row["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert (row["messages"], row["tools"]) == (played.messages(), played.info[TOOLS])
    ids, owner = played.tokens
    wanted = policy.tokenizer.apply_chat_template(
        played.messages(), tools=played.info[TOOLS], tokenize=True, return_dict=False
    )
    assert ids.tolist() == list(wanted)[: len(ids)]
    assert [int((owner == turn).sum()) for turn in (0, 1)] == [len(action) for action in actions]


def test_an_agent_without_a_template_reads_how_to_call_and_calls_in_tags() -> None:
    agent = ScriptedAgent(['<tool_call>{"name": "add", "arguments": {"a": 2, "b": 2}}</tool_call>', "4"])
    ((played,),) = collect(agent, tool_env, progress=False)
    assert played.total_reward == 1.0
    assert "<tools>" in played.turns[0].observation
    assert "<tool_response>" in played.turns[1].observation


def test_what_a_policy_says_is_never_taken_for_a_call_that_its_template_does_not_have() -> None:
    """To a Llama the tags of another family are words."""
    from polyturn.envs.tools.calls import spelled

    text = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 2}}</tool_call>'
    reply = form("llama3.1").calls.reply(text, TOOLS_SAID, 0)
    env = tool_env()
    env.reset(seed=0)
    _, _, terminated, _, info = env.step(spelled(reply))
    assert terminated
    assert info["answer"] == text
