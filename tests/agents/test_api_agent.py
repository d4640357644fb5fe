"""Agents served by a chat server that is slow, overloaded, broken or hostile; a stub on this machine plays it."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from polyturn.agents.agent import AgentFailed, ContextFull, Episode, ScriptedAgent
from polyturn.agents.api import ServerAgent, ServerChooser
from polyturn.agents.collecting.collect import CollectError, collect
from polyturn.agents.collecting.roles import AgentPartner, other_side
from polyturn.agents.http_client import BadAnswer, ServerError, ServerRefused, ServerUnreachable
from polyturn.agents.judging import JudgeFailed, PromptedJudge, agent_judge
from polyturn.agents.scripted.teachers import ScriptedTeacher
from polyturn.agents.secrets import masked
from polyturn.envs.store import Store
from polyturn.envs.trajectory import Group, Trajectory, Turn

KEY = "sk-very-secret-0123456789"
EDUCATION = "polyturn/EducationDialogue-v0"
Act = Callable[["Stub", BaseHTTPRequestHandler], None]


class Stub:
    """A chat server that answers as configured, request by request; the last behaviour is repeated."""

    def __init__(self) -> None:
        self.acts: list[Act] = [say("Hello.")]
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.now = self.most = 0
        self.lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stub.lock:
                    number = len(stub.bodies)
                    stub.bodies.append(body)
                    stub.headers.append(dict(self.headers))
                    stub.paths.append(self.path)
                    stub.now += 1
                    stub.most = max(stub.most, stub.now)
                try:
                    stub.acts[min(number, len(stub.acts) - 1)](stub, self)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client gave up
                finally:
                    with stub.lock:
                        stub.now -= 1

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


def send(handler: BaseHTTPRequestHandler, status: int, content: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(content)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


def answer(message: dict[str, Any], **choice: Any) -> bytes:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "details": {"cached": 1}}
    return json.dumps({"choices": [{"message": message, "finish_reason": "stop", **choice}], "usage": usage}).encode()


def say(text: str | None, **choice: Any) -> Act:
    return lambda stub, handler: send(handler, 200, answer({"role": "assistant", "content": text}, **choice))


def fail(status: int, text: str = "busy", **headers: str) -> Act:
    return lambda stub, handler: send(handler, status, text.encode(), **headers)


def hang_up(stub: Stub, handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    handler.connection.close()


def half(stub: Stub, handler: BaseHTTPRequestHandler) -> None:
    """Promises more than it sends."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    hang_up(stub, handler)


def sleep(seconds: float) -> Act:
    def act(stub: Stub, handler: BaseHTTPRequestHandler) -> None:
        time.sleep(seconds)
        send(handler, 200, answer({"content": "late"}))

    return act


def trickle(stub: Stub, handler: BaseHTTPRequestHandler) -> None:
    """Always says a little more, so that no single read ever takes long."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.02)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    stub = Stub()
    yield stub
    stub.server.shutdown()
    stub.server.server_close()


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def agent(stub: Stub, waits: list[float]) -> Iterator[Callable[..., ServerAgent]]:
    made: list[ServerAgent] = []

    async def pause(seconds: float) -> None:
        waits.append(seconds)

    def make(kind: type[ServerAgent] = ServerAgent, **options: Any) -> ServerAgent:
        made.append(kind("small", **{"base_url": stub.url, "sleep": pause, "timeout": 5.0, **options}))
        return made[-1]

    yield make
    for each in made:
        each.close()


def episode(observation: str = "Hi", *turns: Turn) -> Episode:
    return Episode("e", 0, "", 0, np.random.default_rng(0), observation, list(turns))


def ask(agent: ServerAgent, *given: Any) -> Any:
    return asyncio.run(agent.act(episode(*given)))


def test_a_conversation_is_sent_as_messages_and_the_answer_is_the_action(
    stub: Stub, agent: Callable[..., ServerAgent]
) -> None:
    options = {"system": "Be kind.", "temperature": 0.5, "top_p": 0.9, "max_tokens": 64, "stop": ["\n\n"]}
    model = agent(**options, body={"reasoning_effort": "low"})
    action = ask(model, "And?", Turn("Hi", "Hello"))
    assert action.text == "Hello."
    assert action.info == {"finish_reason": "stop", "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    body = stub.bodies[0]
    assert body.pop("seed") == int(np.random.default_rng(0).integers(2**31))
    assert body == {
        "model": "small", "temperature": 0.5, "top_p": 0.9, "max_tokens": 64, "stop": ["\n\n"],
        "reasoning_effort": "low",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "And?"},
        ],
    }  # fmt: skip
    assert stub.paths == ["/v1/chat/completions"]
    assert stub.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert model.name.startswith("small(max_tokens=64, ")
    ask(agent(temperature=None, max_tokens=None, seeded=False))
    assert set(stub.bodies[1]) == {"model", "messages"}


@pytest.mark.parametrize(
    "act", [fail(408), fail(409), fail(425), fail(429), fail(500), fail(503), fail(599), hang_up, half]
)
def test_what_may_pass_is_tried_again_after_growing_random_waits(
    stub: Stub, agent: Callable[..., ServerAgent], waits: list[float], act: Act
) -> None:
    """backoff 2: waits of 2, 4, 8 seconds less a random half, from the generator given."""
    stub.acts = [act, act, act, say("At last.")]
    assert ask(agent(backoff=2.0, jitter=np.random.default_rng(1))).text == "At last."
    random = np.random.default_rng(1)
    assert waits == [2.0 * 2**n * (0.5 + 0.5 * random.random()) for n in range(3)]
    assert stub.bodies[0] == stub.bodies[3]  # the same question with the same seed


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Retry_After": "17"}, 17.0),
        ({"retry_after_ms": "4500"}, 4.5),
        ({"Retry_After": "soon"}, 0.5),
        ({"Retry_After": "-3"}, 0.5),
        ({"Retry_After": "Mon, 01 Jan 2001 00:00:00 GMT"}, 0.5),
    ],
)
def test_the_server_says_how_long_to_wait(
    stub: Stub, agent: Callable[..., ServerAgent], waits: list[float], headers: dict[str, str], expected: float
) -> None:
    stub.acts = [fail(429, **headers), say("ok")]
    ask(agent(backoff=0.5))
    assert waits[0] == pytest.approx(expected, abs=0.25)


def test_a_date_to_come_back_at_is_understood(
    stub: Stub, agent: Callable[..., ServerAgent], waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyturn.agents.http_client.time", lambda: 1e9)
    stub.acts = [fail(503, Retry_After=formatdate(1e9 + 60, usegmt=True)), say("ok")]
    ask(agent())
    assert waits == [60.0]


def test_who_asks_to_wait_for_hours_is_given_up_at_once(
    stub: Stub, agent: Callable[..., ServerAgent], waits: list[float]
) -> None:
    stub.acts = [fail(429, Retry_After="7200")]
    with pytest.raises(ServerUnreachable, match=r"asks to wait 7200 s, longest_wait is 300"):
        ask(agent())
    assert (waits, len(stub.bodies)) == ([], 1)


def test_after_all_retries_there_is_one_clear_error(stub: Stub, agent: Callable[..., ServerAgent]) -> None:
    stub.acts = [fail(429, '{"error": {"message": "Rate limit reached"}}')]
    with pytest.raises(ServerUnreachable, match=r"small at http.*/v1: status 429: .*Rate limit.*\(3 attempts\)"):
        ask(agent(retries=2))
    assert len(stub.bodies) == 3
    with pytest.raises(ServerUnreachable, match=r"ConnectError.*\(2 attempts\)"):
        ask(agent(base_url="http://127.0.0.1:9/v1"))
    assert issubclass(ServerUnreachable, ServerError)
    assert issubclass(ServerError, AgentFailed)


@pytest.mark.parametrize("act", [sleep(5), trickle])
def test_a_server_that_is_too_slow_is_left(stub: Stub, agent: Callable[..., ServerAgent], act: Act) -> None:
    """Also one that always sends a little: what counts is the whole request, and that it hangs up does not."""
    stub.acts = [act, say("quick")]
    assert ask(agent(timeout=0.5)).text == "quick"
    stub.acts = [act]
    with pytest.raises(ServerUnreachable, match=r"no answer within 0.3 s|Timeout"):
        ask(agent(timeout=0.3, retries=0))


@pytest.mark.parametrize(
    ("status", "text", "remedy"),
    [
        (401, "Incorrect API key", "set OPENAI_API_KEY"),
        (403, "no", "set OPENAI_API_KEY"),
        (404, "The model `smal` does not exist", "check base_url"),
        (307, "elsewhere", "check base_url"),
        (400, "temperature must be below 2", "check model and settings"),
        (422, "extra field seed", "check model and settings"),
    ],
)
def test_a_refusal_is_not_asked_again(
    stub: Stub, agent: Callable[..., ServerAgent], status: int, text: str, remedy: str
) -> None:
    stub.acts = [fail(status, text, Location="http://127.0.0.1:9/evil")]
    with pytest.raises(ServerRefused, match=f"status {status}: {text}; .*{remedy}"):
        ask(agent())
    assert len(stub.bodies) == 1


@pytest.mark.parametrize(
    "text",
    [
        '{"error": {"code": "context_length_exceeded", "message": "too long"}}',
        '{"message": "This model\'s maximum context length is 4096 tokens, you requested 5000"}',
        '{"error": "the request exceeds the available context size"}',
    ],
)
def test_a_conversation_that_is_too_long_is_cut_off(stub: Stub, agent: Callable[..., ServerAgent], text: str) -> None:
    stub.acts = [say("Go on."), fail(400, text)]
    (group,) = collect(agent(), EDUCATION, progress=False)
    assert (group[0].valid, group[0].truncated, len(group[0].turns)) == (True, True, 1)
    assert group[0].info["truncated_by"] == "context"
    with pytest.raises(ContextFull):
        ask(agent())


@pytest.mark.parametrize(
    "content",
    [
        b"", b"<html>bad gateway</html>", b"[]", b"null", b'{"choices": []}', b'{"choices": [{}]}',
        b'{"error": "none"}', b'{"choices": [{"message": {"content": 7}}]}', b"\xff\xfe\x00", b"[" * 100_000,
        b'{"choices": "x"}', b'{"choices": [{"message": {"content": ["x"]}}]}',
    ],
)  # fmt: skip
def test_garbage_is_asked_again_and_never_taken_for_an_answer(
    stub: Stub, agent: Callable[..., ServerAgent], content: bytes
) -> None:
    stub.acts = [lambda stub, handler: send(handler, 200, content)]
    with pytest.raises(BadAnswer, match=r"expected a chat completion, got .*\(2 attempts\)"):
        ask(agent(retries=1))
    stub.acts = [stub.acts[0], stub.acts[0], stub.acts[0], say("ok")]
    assert ask(agent()).text == "ok"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "x" * 100_000}, "x" * 100_000),
        ({"content": ""}, ""),
        ({"content": None}, ""),
        ({"content": None, "refusal": "I will not."}, "I will not."),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab"),
        ({"content": "\0\x1b[2J\u202e\u4f60\ud800"}, "\0\x1b[2J\u202e\u4f60\ud800"),
    ],
)
def test_a_model_may_say_anything(
    stub: Stub, agent: Callable[..., ServerAgent], message: dict[str, Any], text: str
) -> None:
    stub.acts = [lambda stub, handler: send(handler, 200, answer(message))]
    model = agent()
    assert ask(model).text == text
    (group,) = collect(model, EDUCATION, env_options={"turns": 3}, progress=False)
    assert group[0].valid
    assert stub.bodies[-1]["messages"][1]["content"] == text.replace("\ud800", "\ufffd")


def test_an_endless_answer_is_cut_short(
    stub: Stub, agent: Callable[..., ServerAgent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyturn.agents.http_client._LONGEST_ANSWER", 10_000)
    stub.acts = [say("x" * 20_000)]
    with pytest.raises(BadAnswer, match="more than 10000 bytes"):
        ask(agent(retries=0))


def test_log_probabilities_are_recorded_where_there_are_any(stub: Stub, agent: Callable[..., ServerAgent]) -> None:
    listed = {"content": [{"token": "Go", "logprob": -0.25}, {"token": " on", "logprob": -1e308}]}
    stub.acts = [say("Go on", logprobs=listed)]
    (group,) = collect(agent(logprobs=True), EDUCATION, env_options={"turns": 2}, progress=False)
    said = group[0].turns[0].info["agent"]
    assert (said["tokens"], said["logprobs"]) == (["Go", " on"], [-0.25, -9999.0])
    assert stub.bodies[0]["logprobs"] is True
    assert "agent" not in group[0].info
    assert len(group[0].turns[0].action_ids) == 0


def test_an_agent_whose_server_fails_leaves_an_invalid_episode(stub: Stub, agent: Callable[..., ServerAgent]) -> None:
    """Never a reward of zero: it is in no average. Where all fail there is one error with the cause."""
    stub.acts = [say("Go on."), fail(500), fail(500), fail(500), fail(500), say("Go on.")]
    groups = collect(agent(retries=1), EDUCATION, groups=2, concurrency=1, progress=False)
    assert [group[0].valid for group in groups] == [False, True]
    assert "status 500" in str(groups[0][0].error)
    assert groups[0].valid is None
    stub.acts = [fail(401)]
    stub.bodies.clear()
    with pytest.raises(CollectError, match="set OPENAI_API_KEY"):
        collect(agent(), EDUCATION, groups=200, progress=False)
    assert len(stub.bodies) < 200


def test_it_plays_the_student_and_is_not_asked_by_two_parties_again(
    stub: Stub, agent: Callable[..., ServerAgent]
) -> None:
    stub.acts = [say("I see. [end of conversation]")]
    options = {"student": AgentPartner(agent(logprobs=True))}
    (group,) = collect(ScriptedTeacher(), EDUCATION, env_options=options, progress=False)
    assert group[0].terminated
    theirs = other_side(group[0])
    assert theirs.agent.startswith("small(")
    assert theirs.turns[0].info["agent"]["finish_reason"] == "stop"
    stub.acts = [fail(500)]
    stub.bodies.clear()
    options = {"student": AgentPartner(agent(retries=1), retries=5)}
    with pytest.raises(CollectError, match="status 500"):
        collect(ScriptedTeacher(), EDUCATION, env_options=options, progress=False)
    assert len(stub.bodies) == 4  # two requests, and the whole episode once more


def talk(*actions: str) -> Trajectory:
    return Trajectory("e", 0, tuple(Turn("Go on.", action) for action in actions), terminated=True)


PAIR = Group((talk("a"), talk("b")))


def test_a_judge_whose_server_fails_leaves_the_pair_unasked(stub: Stub, agent: Callable[..., ServerAgent]) -> None:
    stub.acts = [say("2")]
    assert agent_judge(agent())(PAIR).matrix[0, 1] == 0.5  # always the second: a tie
    for act in (fail(503), fail(401), say("Both are lovely."), hang_up, lambda s, h: send(h, 200, b"oops")):
        stub.acts = [act]
        stub.bodies.clear()
        judge = PromptedJudge(agent(retries=1), concurrency=1)
        assert np.isnan(judge([(PAIR[0], PAIR[1])])).all()
        assert len(judge.failures) == 1
        assert len(stub.bodies) <= 2
    for act in (fail(429), sleep(2)):
        stub.acts = [act]
        judge = PromptedJudge(agent(retries=1, timeout=0.2), concurrency=1)
        assert np.isnan(judge([(PAIR[0], PAIR[1])])).all()
        assert "ServerUnreachable" in judge.failures[0]
    stub.acts = [fail(503), say("1"), fail(503)]
    stub.bodies.clear()
    assert np.isnan(agent_judge(agent(retries=0), concurrency=1)(PAIR).matrix).all()  # half an answer is none


def likeliest(**logprobs: float) -> dict[str, Any]:
    top = [{"token": token.strip("_"), "logprob": value} for token, value in logprobs.items()]
    return {"content": [{"token": "1", "logprob": -0.1, "top_logprobs": top}]}


def test_a_judge_may_say_how_likely_each_answer_is(stub: Stub, agent: Callable[..., ServerAgent]) -> None:
    """First order: P = .6 / (.6 + .2) = .75. Second: .3 + .1 under two spellings against .4: 1/2. Mean: .625."""
    first = likeliest(_1=math.log(0.6), _2=math.log(0.2), The=math.log(0.1))
    second = likeliest(**{"_1": math.log(0.3), " 1": math.log(0.1), "2 ": math.log(0.4)})
    stub.acts = [say("1", logprobs=first), say("1", logprobs=second)]
    matrix = agent_judge(agent(ServerChooser), concurrency=1)(PAIR).matrix
    assert matrix[0, 1] == pytest.approx(0.625)
    assert stub.bodies[0] | {"logprobs": True, "top_logprobs": 20, "max_tokens": 1} == stub.bodies[0]
    # The second choice is not listed: at most as likely as the least that is, .6 / (.6 + .1).
    stub.acts = [say("1", logprobs=likeliest(_1=math.log(0.6), The=math.log(0.1)))]
    (answered,) = PromptedJudge(agent(ServerChooser))([(PAIR[0], PAIR[1])])
    assert answered == pytest.approx(0.6 / 0.7)
    for nothing in (likeliest(The=-0.1), None, {"content": None}, {"content": [{"top_logprobs": "x"}]}, 7):
        stub.acts = [say("1", logprobs=nothing)]
        judge = PromptedJudge(agent(ServerChooser))
        assert np.isnan(judge([(PAIR[0], PAIR[1])])).all()
        assert judge.failures


def test_concurrency_is_bounded_over_all_callers(stub: Stub, agent: Callable[..., ServerAgent]) -> None:
    """Three collections in three event loops share one agent of two places."""
    model = agent(concurrency=2)
    stub.acts = [sleep(0.02)]
    threads = [
        threading.Thread(
            target=collect,
            args=(model, EDUCATION),
            kwargs={"groups": 4, "progress": False, "env_options": {"turns": 2}},
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stub.bodies) >= 12
    assert stub.most == 2


def test_who_is_interrupted_does_not_wait_for_the_server(stub: Stub, agent: Callable[..., ServerAgent]) -> None:
    asked, over = threading.Event(), threading.Event()

    def hold(stub: Stub, handler: BaseHTTPRequestHandler) -> None:
        asked.set()
        over.wait(30)

    stub.acts = [hold]

    async def given_up() -> None:
        task = asyncio.ensure_future(agent(timeout=60.0).act(episode()))
        await asyncio.to_thread(asked.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(given_up())
    assert stub.now == 1  # it is still being served
    over.set()


def test_the_key_is_nowhere_but_in_the_request(
    stub: Stub,
    agent: Callable[..., ServerAgent],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
) -> None:
    caplog.set_level(logging.DEBUG)
    model = agent()
    (group,) = collect(model, EDUCATION, env_options={"turns": 2}, progress=False)
    assert KEY not in json.dumps(group[0].to_json()) + repr(model) + repr(vars(model)) + model.name
    for act in (fail(401, f"bad key {KEY}"), fail(500, KEY), lambda s, h: send(h, 200, KEY.encode())):
        stub.acts = [act]
        with pytest.raises(ServerError) as caught:
            ask(agent(retries=0))
        assert KEY not in str(caught.value)
        assert "***" in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nX-Evil: \xe9")
    with pytest.raises(ServerRefused, match="a key of plain characters in OPENAI_API_KEY") as caught:
        ask(agent())
    assert KEY not in str(caught.value)
    assert KEY not in caplog.text
    monkeypatch.delenv("OPENAI_API_KEY")
    stub.acts = [fail(401)]
    with pytest.raises(ServerRefused, match="it is not set, so none was sent"):
        ask(agent())
    assert "Authorization" not in stub.headers[-1]
    monkeypatch.setenv("MY_KEY", "other")
    stub.acts = [say("ok")]
    ask(agent(api_key_env="MY_KEY"))
    assert stub.headers[-1]["Authorization"] == "Bearer other"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://user:secret@host/v1", "http://"])
def test_a_bad_address_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match=r"expected http\(s\)://host") as caught:
        ServerAgent("m", base_url=url)
    assert "secret" not in str(caught.value)


def test_settings_out_of_range_are_refused_at_once() -> None:
    for wrong in (
        {"concurrency": 0}, {"retries": -1}, {"timeout": 0.0}, {"timeout": math.nan}, {"backoff": -1.0},
        {"temperature": math.inf}, {"top_p": 0.0}, {"max_tokens": -1}, {"longest_wait": math.nan}, {"retries": 1.5},
        {"stop": "END"},
    ):  # fmt: skip
        options: dict[str, Any] = dict(wrong)
        with pytest.raises(ValueError, match=rf"ServerAgent\({next(iter(wrong))}\): expected"):
            ServerAgent("m", base_url="http://localhost/v1", **options)


def test_the_address_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1/")
    assert ServerAgent("m").base_url == "http://localhost:8000/v1"
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert ServerAgent("m").base_url == "https://api.openai.com/v1"


def test_a_scripted_agent_tells_nothing_of_itself() -> None:
    (group,) = collect(ScriptedAgent(["x"]), EDUCATION, progress=False)
    assert "agent" not in group[0].turns[0].info


LONG_KEY = "sk-proj-0123456789-abcdefghijklmnopqrstuvwxyz-TAIL"


def pieces(key: str) -> set[str]:
    return {key[at : at + 8] for at in range(len(key) - 7)}


@pytest.mark.parametrize("at", [260, 290, 296, 299, 301])
def test_no_piece_of_the_key_is_left_where_a_message_is_cut(
    stub: Stub, agent: Callable[..., ServerAgent], monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", LONG_KEY)
    for status in (400, 503, 200):
        stub.acts = [fail(status, "x" * (at - len(LONG_KEY)) + LONG_KEY + " is bad")]
        with pytest.raises(ServerError) as caught:
            ask(agent(retries=0))
        assert not any(piece in str(caught.value) for piece in pieces(LONG_KEY))


def test_an_answer_that_echoes_the_key_is_stored_without_it(
    stub: Stub, agent: Callable[..., ServerAgent], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """In the text, the reason to finish, the names of the usage, and cut into tokens."""
    monkeypatch.setenv("OPENAI_API_KEY", LONG_KEY)
    tokens = [{"token": LONG_KEY[at : at + 5], "logprob": -1.0} for at in range(0, len(LONG_KEY), 5)]
    choice = {
        "message": {"content": f"Your key begins {LONG_KEY[:20]}, and is {LONG_KEY}."},
        "finish_reason": LONG_KEY,
        "logprobs": {"content": [{"token": "Hi ", "logprob": -0.5}, *tokens]},
    }
    content = json.dumps({"choices": [choice], "usage": {LONG_KEY: 1, "total_tokens": 10**30}}).encode()
    stub.acts = [lambda s, handler: send(handler, 200, content)]
    with Store(tmp_path / "s.jsonl") as store:
        (group,) = collect(agent(logprobs=True), EDUCATION, env_options={"turns": 1}, store=store, progress=False)
    kept = (tmp_path / "s.jsonl").read_text("utf-8") + json.dumps(group[0].to_json())
    assert not any(piece in kept for piece in pieces(LONG_KEY))
    turn = group[0].turns[0]
    assert turn.action == "Your key begins ***, and is ***."
    assert turn.info["agent"]["tokens"][:2] == ["Hi ", "***"]


def test_what_is_no_secret_is_left() -> None:
    assert masked("the cup is EMPTY", "EMPTY") == "the cup is EMPTY"
    assert masked("no key at all", "") == "no key at all"
    assert masked("ask 12345 now", "12345") == "ask *** now"
    assert masked(f"https://h/?k={'a%2Fb%2Bc' * 3}", "a/b+c" * 3) == "https://h/?k=***"


def test_what_a_server_writes_cannot_drive_the_terminal(stub: Stub, agent: Callable[..., ServerAgent]) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m done \u202e"
    for status in (400, 500, 200):
        stub.acts = [fail(status, evil)]
        with pytest.raises(ServerError) as caught:
            ask(agent(retries=0))
        assert all(character.isprintable() for character in str(caught.value))
    stub.acts = [fail(400, f"maximum context length {evil}")]
    with pytest.raises(ContextFull) as full:
        ask(agent())
    assert all(character.isprintable() for character in str(full.value))


def test_trouble_is_said_while_it_is_waited_for(
    stub: Stub, agent: Callable[..., ServerAgent], caplog: pytest.LogCaptureFixture
) -> None:
    stub.acts = [fail(503), fail(503), fail(503), say("back")]
    assert ask(agent()).text == "back"
    (record,) = [each for each in caplog.records if each.name == "polyturn.agents.api"]
    assert "status 503: busy; attempt 2 of 7 in" in record.getMessage()


def test_threads_and_descriptors_are_given_back(stub: Stub, agent: Callable[..., ServerAgent]) -> None:
    def held() -> tuple[int, int]:
        gc.collect()
        loops = [thread for thread in threading.enumerate() if thread.name == "polyturn-loop"]
        for thread in loops:
            thread.join(0.0 if thread.is_alive() and thread in known else 5.0)
        return len([thread for thread in loops if thread.is_alive()]), len(os.listdir("/proc/self/fd"))

    known = {thread for thread in threading.enumerate() if thread.name == "polyturn-loop"}
    before = held()
    for _ in range(5):
        dropped = ServerAgent("m", base_url=stub.url)
        ask(dropped)
        del dropped
        closed = ServerAgent("m", base_url=stub.url)
        ask(closed)
        closed.close()
        ask(closed)
        closed.close()
        del closed
    after = held()
    for _ in range(50):  # the stub's side of each connection ends on its own
        if after[1] <= before[1]:
            break
        time.sleep(0.1)
        after = held()
    assert after[0] <= before[0]
    assert after[1] <= before[1]


def test_a_forked_child_asks_by_itself(stub: Stub, agent: Callable[..., ServerAgent]) -> None:
    model = agent()
    assert ask(model).text == "Hello."
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if ask(model).text == "Hello." else 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + 30
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.02)
    if done == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert done[0] == child
    assert os.waitstatus_to_exitcode(done[1]) == 0
    assert ask(model).text == "Hello."


def test_a_judge_fails_when_nothing_answers_any_more(stub: Stub, agent: Callable[..., ServerAgent]) -> None:
    stub.acts = [fail(400, "no such model")]
    judge = PromptedJudge(agent(), patience=3, concurrency=1)
    pair = (Trajectory("e", 0, (), terminated=True), Trajectory("e", 0, (), terminated=True))
    assert all(math.isnan(value) for value in judge([pair, pair]))
    with pytest.raises(JudgeFailed, match="none to 3 questions in a row, the last with ServerRefused"):
        judge([pair, pair])
    stub.acts = [say("1")]
    assert PromptedJudge(agent(), patience=1)([pair]) == [1.0]


def test_a_judge_answers_or_fails_within_its_time() -> None:
    """Repetitions and the waits between them are a part of it."""

    class Never:
        name = "never"

        async def act(self, episode: Episode) -> str:
            await asyncio.sleep(0.05)
            raise ConnectionError("down")

    judge = PromptedJudge(Never(), timeout=0.3, retries=10**6, backoff=0.0)
    pair = (Trajectory("e", 0, (), terminated=True), Trajectory("e", 0, (), terminated=True))
    assert math.isnan(judge([pair])[0])
    assert judge.failures == ["TimeoutError: no answer within 0.3 s"]
