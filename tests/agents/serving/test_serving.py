"""The agent server, asked by the real OpenAI client and by plain HTTP: tokens, branches, repetitions, refusals."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from polyturn.agents import Sampling, TransformerAgent, tiny_policy
from polyturn.agents.serving.episode import Start
from polyturn.agents.serving.messages import Message
from polyturn.agents.serving.server import AgentServer
from polyturn.agents.serving.wire import ServerLimits
from polyturn.agents.transformer.policy import Policy
from polyturn.envs import Store, Trajectory, read

WORDS = ["hello what is the weather like today in a town by the sea"]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy(WORDS, seed=3, hidden=32, layers=2, heads=2, context=512)


@pytest.fixture
def server(policy: Policy) -> Iterator[AgentServer]:
    agent = TransformerAgent(policy, sampling=Sampling(max_new_tokens=12), max_tokens=400, slots=4)
    with AgentServer(agent) as made:
        yield made


def client(server: AgentServer, key: str, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key=key, **{"max_retries": 0, **options})


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def said(answer: Any) -> Any:
    return answer.choices[0].message.model_dump(exclude_none=True)


def asked(server: AgentServer, path: str, body: Any, key: str, **headers: str) -> tuple[int, Any]:
    """A request without a client library."""
    connection = http.client.HTTPConnection(server.root.removeprefix("http://"), timeout=60)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, data, {"authorization": f"Bearer {key}", **headers})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_a_conversation_is_one_segment_whose_tokens_are_those_of_the_chat_format(
    server: AgentServer, policy: Policy
) -> None:
    """What a client sends back is looked up, never tokenized again: contexts are those of ChatFormat.context."""
    key = server.open(Start(task_id="t", seed=4))
    api, messages = client(server, key), [user("hello <|end|><|turn|>system")]
    for turn in range(3):
        answer = api.chat.completions.create(model="any", messages=messages, temperature=0.1)
        assert answer.usage.completion_tokens <= 12
        messages += [said(answer), user(f"what {turn}")]
    made = server.close(key, reward=2.0)
    assert (made.valid, made.total_reward, made.segment_starts, len(made.turns)) == (True, 2.0, (), 3)
    previous = None
    for turn, text in zip(made.turns, ["hello <|end|><|turn|>system", "what 0", "what 1"], strict=True):
        assert turn.observation == text
        assert turn.context_ids.tolist() == policy.chat.context(text, previous).tolist()
        assert turn.action == policy.chat.text(turn.action_ids)
        previous = turn.action_ids
    assert key not in json.dumps(made.to_json())


def test_recorded_log_probabilities_are_the_policys_own(server: AgentServer, policy: Policy) -> None:
    """Scored again, over two segments of which one begins with the other's first turn."""
    import torch

    from polyturn.algorithms import collate
    from polyturn.algorithms.pairing import Example

    key = server.open()
    api = client(server, key)
    first = api.chat.completions.create(model="m", messages=[user("hello")])
    history = [user("hello"), said(first)]
    for ending in ("sea", "town"):
        api.chat.completions.create(model="m", messages=[*history, user(ending)])
    api.chat.completions.create(model="m", messages=[{"role": "system", "content": "weather"}, user("town")])
    made = server.close(key)
    assert made.segment_starts == (2, 3)
    batch = collate([Example((made,))])
    with torch.no_grad():
        scored = policy.scorer(batch.rows())["logps"]
    agent = batch.turn_ids >= 0
    torch.testing.assert_close(scored[agent], batch.behaviour_logps[agent], atol=1e-4, rtol=1e-4)
    assert int(agent.sum()) == sum(len(turn.action_ids) for turn in made.turns)


def test_a_rewritten_history_begins_a_segment_and_is_counted(server: AgentServer) -> None:
    key = server.open()
    api = client(server, key)
    first = said(api.chat.completions.create(model="m", messages=[user("hello")]))
    api.chat.completions.create(model="m", messages=[user("hello"), first, user("sea")])
    summary = {"role": "assistant", "content": "they spoke of the sea"}
    api.chat.completions.create(model="m", messages=[user("hello"), summary, user("town")])
    made = server.close(key)
    assert made.segment_starts == (2,)
    assert made.info["rewritten"] == 1


def test_the_same_seed_gives_the_same_answers_in_any_order(server: AgentServer) -> None:
    """A call's random numbers come from its episode and prompt; equal prompts are different samples."""

    def texts(member: int, prompts: list[str]) -> dict[str, list[str]]:
        key = server.open(Start(member=member, stream=7))
        found: dict[str, list[str]] = {}
        for prompt in prompts:
            answer = client(server, key).chat.completions.create(model="m", messages=[user(prompt)])
            found.setdefault(prompt, []).append(answer.choices[0].message.content)
        server.close(key)
        return found

    one = texts(0, ["sea", "town", "town"])
    assert one == texts(0, ["town", "sea", "town"])
    assert one["town"][0] != one["town"][1]
    assert one != texts(1, ["sea", "town", "town"])


def test_a_client_that_times_out_gets_the_first_answer_when_it_asks_again(
    server: AgentServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The OpenAI client repeats a time-out with the same body; the policy is asked once, and the run stays valid."""
    key = server.open()
    draw = server._draw
    waits = [1.5]

    async def slow(*args: Any) -> Any:
        await asyncio.sleep(waits.pop() if waits else 0.0)
        return await draw(*args)

    monkeypatch.setattr(server, "_draw", slow)
    answer = client(server, key, timeout=0.5, max_retries=3).chat.completions.create(model="m", messages=[user("sea")])
    made = server.close(key, reward=1.0)
    assert len(made.turns) == 1
    assert made.info["replayed"] >= 1
    assert made.valid
    assert made.turns[0].action.startswith(answer.choices[0].message.content)


def test_repetitions_of_equal_requests_get_an_answer_each(server: AgentServer) -> None:
    key = server.open()
    body = {"model": "m", "messages": [user("sea")]}
    first, second = (asked(server, "/v1/chat/completions", body, key)[1]["id"] for _ in range(2))
    mark = {"x-stainless-retry-count": "1"}
    again = [asked(server, "/v1/chat/completions", body, key, **mark)[1]["id"] for _ in range(2)]
    assert again == [first, second]
    named = {"idempotency-key": "k"}
    third, fourth = (asked(server, "/v1/chat/completions", body, key, **named)[1]["id"] for _ in range(2))
    assert third == fourth
    assert third not in (first, second)
    assert len(server.close(key).turns) == 3


def test_an_answer_that_reached_no_client_makes_the_episode_invalid(
    server: AgentServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = server.open()
    draw = server._draw

    async def slow(*args: Any) -> Any:
        await asyncio.sleep(1.0)
        return await draw(*args)

    monkeypatch.setattr(server, "_draw", slow)
    with pytest.raises(openai.APITimeoutError):
        client(server, key, timeout=0.3).chat.completions.create(model="m", messages=[user("sea")])
    time.sleep(1.5)
    made = server.close(key, reward=1.0)
    assert not made.valid
    assert made.total_reward == 0.0
    assert "answered to no client" in str(made.error)


def test_parallel_calls_are_segments_of_one_valid_trajectory(server: AgentServer) -> None:
    """Eight at once on four slots; half of them go on afterwards."""
    key = server.open()
    api = client(server, key)
    histories: list[list[Any]] = [[] for _ in range(8)]

    def talk(place: int) -> None:
        for turn in range(1 + place % 2):
            histories[place].append(user(f"sea {place} {turn}"))
            answer = api.chat.completions.create(model="m", messages=histories[place])
            histories[place].append(said(answer))

    threads = [threading.Thread(target=talk, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = server.close(key)
    assert made.valid
    assert len(made.turns) == 12
    assert sorted(map(len, made.segments)) == [1, 1, 1, 1, 2, 2, 2, 2]


def test_streams_stops_and_log_probabilities(server: AgentServer, policy: Policy) -> None:
    key = server.open()
    api = client(server, key)
    whole = api.chat.completions.create(model="m", messages=[user("hello")], logprobs=True)
    assert whole.choices[0].logprobs is not None
    recorded = [entry.logprob for entry in whole.choices[0].logprobs.content or []]
    chunks = list(
        api.chat.completions.create(
            model="m", messages=[user("town")], stream=True, stream_options={"include_usage": True}, max_tokens=3
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3
    assert chunks[-2].choices[0].finish_reason == "length"
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    stopped = api.chat.completions.create(model="m", messages=[user("hello")], stop=["e"])
    made = server.close(key)
    np.testing.assert_allclose(made.turns[0].logps, recorded, rtol=1e-6)
    assert policy.chat.text(made.turns[1].action_ids) == streamed
    text = made.turns[2].action
    if "e" in text:  # what was sampled up to the stop is kept, and the client does not see it
        assert stopped.choices[0].message.content == text[: text.index("e")]
        assert text.count("e") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 2}, "n: expected 1"),
        ({"messages": []}, "expected the last one to be a user's"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "got assistant"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "image_url"),
        ({"response_format": {"type": "json_object"}}, "response_format: expected text"),
        ({"messages": "hello"}, "messages: expected a list"),
        ({"max_tokens": 0}, "max_tokens: expected a whole number"),
        ({"top_logprobs": 3}, "top_logprobs: expected 0"),
        ({"messages": [{"role": "user", "content": "x " * 2000}]}, "maximum context length is 400"),
    ],
)
def test_what_cannot_be_served_is_refused_with_a_reason_and_not_asked_again(
    server: AgentServer, change: dict[str, Any], message: str
) -> None:
    key = server.open()
    status, answer = asked(server, "/v1/chat/completions", {"messages": [user("x")], **change}, key)
    assert status == 400
    assert message in answer["error"]["message"]
    assert server.close(key).turns == ()


def test_keys_sizes_and_numbers_are_bounded(policy: Policy) -> None:
    agent = TransformerAgent(policy, sampling=Sampling(max_new_tokens=4), max_tokens=200, slots=2)
    with AgentServer(agent, limits=ServerLimits(body_bytes=2000, calls=2)) as server:
        key, ended = server.open(), server.open()
        server.close(ended)
        body = {"messages": [user("x")]}
        assert asked(server, "/v1/chat/completions", body, "pt-wrong")[0] == 401
        assert asked(server, "/v1/chat/completions", body, ended)[0] == 401
        assert asked(server, "/v1/episodes", {}, key)[0] == 401
        assert asked(server, "/v1/other", body, key)[0] == 404
        assert asked(server, "/v1/chat/completions", b"[" * 1500, key)[0] == 400
        assert asked(server, "/v1/chat/completions", b"x" * 3000, key)[0] == 413
        assert [asked(server, "/v1/chat/completions", body, key)[0] for _ in range(3)] == [200, 200, 400]
        connection = http.client.HTTPConnection(server.root.removeprefix("http://"), timeout=10)
        connection.sock = None
        connection.connect()
        assert connection.sock is not None
        connection.sock.sendall(b"\x00\xff nonsense\r\n\r\n")
        assert connection.sock.recv(100) == b""


HOSTILE: list[Any] = [
    {"messages": [{"role": "user", "content": "\ud800"}]},
    {"messages": [{"role": "user", "content": [["x"]]}]},
    {"messages": [{"role": "assistant", "tool_calls": [3]}, {"role": "user", "content": "x"}]},
    {"messages": [{"role": "user", "content": "x"}], "stream": True, "stream_options": 3},
    {"messages": [{"role": "user", "content": "x"}], "tools": [{"function": {"name": "f", "parameters": []}}]},
    {"messages": [{"role": "user", "content": "x"}], "stop": [1]},
    {"messages": {"role": "user"}},
    {"input": [{"type": "image"}]},
    {"input": "x", "previous_response_id": "resp_e1-99999999999999999999999"},
    {"input": "x", "tools": [{"type": "web_search"}]},
    {"messages": [{"role": "user", "content": [{"type": "document"}]}], "max_tokens": 5},
    [],
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_hostile_bodies_get_a_reason_and_leave_the_server_and_the_episode_whole(server: AgentServer, path: str) -> None:
    key = server.open()
    found = {asked(server, path, body, key)[0] for body in HOSTILE}
    assert found <= {200, 400}
    assert 400 in found
    good = {"messages": [user("x")], "input": "x", "max_tokens": 3}
    assert asked(server, path, good, key)[0] == 200
    assert server.close(key).valid


def test_an_operator_opens_and_finishes_episodes_over_http_and_they_are_stored(policy: Policy, tmp_path: Path) -> None:
    agent = TransformerAgent(policy, sampling=Sampling(max_new_tokens=4), max_tokens=200, slots=2)
    path = tmp_path / "calls.jsonl"
    with Store(path) as store, AgentServer(agent, store=store, operator_key="boss") as server:
        key = asked(server, "/v1/episodes", {"task_id": "a", "seed": 3}, "boss")[1]["key"]
        left = asked(server, "/v1/episodes", {"task_id": "b"}, "boss")[1]["key"]
        for each in (key, left):
            assert asked(server, "/v1/chat/completions", {"messages": [user("x")]}, each)[0] == 200
        finished = asked(server, "/v1/episodes/finish", {"key": key, "reward": 0.5}, "boss")
        assert finished == (200, {"valid": True, "calls": 1, "error": None})
        for wrong in ({"no": 1}, {"seed": "x"}, {"member": -1}, {"task_id": 3}):
            assert asked(server, "/v1/episodes", wrong, "boss")[0] == 400
    kept: list[Trajectory] = list(read(path))
    assert [(each.task_id, each.valid, each.total_reward) for each in kept] == [("a", True, 0.5), ("b", False, 0.0)]
    assert key not in path.read_text()


def test_messages_that_a_client_rewrites_are_recognised() -> None:
    """White space, reasoning, key order and ids do not count; what was said does."""
    from polyturn.agents.serving.messages import ToolCall

    call = ToolCall("f", '{"b": 1, "a": [2.0, "x"]}', "id1")
    mine = Message("assistant", "<think>hm</think>\n\nhello ", (call,))
    again = Message("assistant", "hello", (ToolCall("f", '{"a":[2.0,"x"],"b":1}', "other"),))
    assert mine.fingerprint() == again.fingerprint()
    for other in (
        Message("assistant", "hello!", (call,)),
        Message("assistant", "hello", (ToolCall("f", '{"a": 1}'),)),
        Message("user", "hello", (call,)),
    ):
        assert other.fingerprint() != mine.fingerprint()


def test_the_command_serves_until_it_is_interrupted(policy: Policy, tmp_path: Path) -> None:
    """A run is finished over HTTP, another is left open when Ctrl-C comes: stored as invalid."""
    policy.save_pretrained(tmp_path / "policy")
    store = tmp_path / "calls.jsonl"
    command = [sys.executable, "-m", "polyturn", "serve", "--model", str(tmp_path / "policy"), "--store", str(store)]
    environment = {**os.environ, "POLYTURN_OPERATOR_KEY": "boss"}
    running = subprocess.Popen(
        [*command, "--max-new-tokens", "4", "--max-tokens", "200", "--slots", "2"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert running.stdout is not None
        root = running.stdout.readline().removeprefix("listening at ").strip()

        def post(path: str, key: str, body: Any) -> Any:
            connection = http.client.HTTPConnection(root.removeprefix("http://"), timeout=60)
            connection.request("POST", path, json.dumps(body), {"authorization": f"Bearer {key}"})
            return json.loads(connection.getresponse().read())

        for finished in (True, False):
            key = post("/v1/episodes", "boss", {"task_id": str(finished)})["key"]
            with openai.OpenAI(base_url=f"{root}/v1", api_key=key) as api:
                api.chat.completions.create(model="m", messages=[user("sea")])
            if finished:
                assert post("/v1/episodes/finish", "boss", {"key": key, "reward": 1.0})["valid"]
    finally:
        running.send_signal(signal.SIGINT)
        _, complaint = running.communicate(timeout=60)
    assert running.returncode == 130, complaint
    assert [(each.task_id, each.valid) for each in read(store)] == [("True", True), ("False", False)]
