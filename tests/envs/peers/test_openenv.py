"""OpenEnv, the real package on loopback: its client against our server, our client against its server and bad ones."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from polyturn.envs import ContractViolation, EnvServer, OpenEnv, check_text_env, make
from polyturn.envs.adapters.replayed import OtherSideFailed, ReplayDiffers
from polyturn.envs.checking.contract import RULES

pytestmark = pytest.mark.peer(name="openenv")


def number(rng: np.random.Generator, observation: str) -> str:
    return str(rng.integers(1, 31))


@pytest.fixture(scope="module")
def served() -> Iterator[EnvServer]:
    with EnvServer("polyturn/Guess-v0", high=30, max_message=1 << 20) as server:
        yield server


def test_our_environment_served_and_played_keeps_the_contract(served: EnvServer) -> None:
    report = check_text_env("polyturn/OpenEnv-v0", url=served.url, actions=number, seeds=range(4))
    assert report.rules == tuple(RULES)
    assert report.longest > 2


def test_their_client_sees_what_we_see(served: EnvServer) -> None:
    from openenv.core.generic_client import GenericEnvClient

    ours = make("polyturn/Guess-v0", high=30)
    observation, info = ours.reset(seed=4)
    with GenericEnvClient(base_url=served.url).sync() as client:
        started = client.reset(seed=4)
        assert (started.observation["message"], started.metadata) == (observation, info)
        seen, reward, terminated, truncated, info = ours.step("15")
        result = client.step({"message": "15"})
        assert (result.observation["message"], result.reward, result.done) == (seen, reward, terminated or truncated)
        assert result.metadata == {**info, "truncated": truncated}
        assert client.state()["step_count"] == 1


def test_sessions_are_bounded() -> None:
    with EnvServer("polyturn/Guess-v0", sessions=1) as server:
        first, second = OpenEnv(server.url), OpenEnv(server.url)
        first.reset(seed=0)
        with pytest.raises(OtherSideFailed, match="capacity"):
            second.reset(seed=0)
        first.close()


def asked(url: str, body: bytes = b"{}", **headers: str) -> int:
    request = urllib.request.Request(f"{url}/reset", body, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_requests_that_are_too_large_or_of_a_web_page_are_refused(served: EnvServer) -> None:
    assert asked(served.url) == 200
    assert asked(served.url, b" " * (1 << 20) + b"{}") == 413
    assert asked(served.url, Origin="https://example.org") == 403
    env = OpenEnv(served.url)
    env.reset(seed=0)
    with pytest.raises(OtherSideFailed):
        env.step("9" * (1 << 20))


def test_a_key_is_demanded_for_other_machines_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"expected a key for 0\.0\.0\.0"):
        EnvServer("polyturn/Guess-v0", host="0.0.0.0")
    with EnvServer("polyturn/Guess-v0", key="secret") as server:
        assert asked(server.url) == 401
        assert asked(server.url, Authorization="Bearer secret") == 200
        with pytest.raises(OtherSideFailed):
            OpenEnv(server.url).reset(seed=0)
        monkeypatch.setenv("SERVER_KEY", "secret")
        OpenEnv(server.url, key="SERVER_KEY").reset(seed=0)


def test_the_command_serves_until_it_is_interrupted() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "polyturn", "serve-env", "polyturn/Guess-v0", "-o", "high=10"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
    assert found is not None
    env = OpenEnv(found[0])
    assert "from 1 to 10" in env.reset(seed=0)[0]
    env.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


@contextmanager
def their_server(environment: Any, action: Any, observation: Any) -> Iterator[str]:
    import uvicorn
    from openenv.core.env_server.http_server import create_fastapi_app

    app = create_fastapi_app(environment, action, observation, max_concurrent_envs=50)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def theirs() -> Iterator[str]:
    """Counts episodes whatever the seed is, and fails at one word: an environment as people write them."""
    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.types import Action, Observation, State

    class Word(Action):  # type: ignore[misc]
        word: str

    class Board(Observation):  # type: ignore[misc]
        board: str
        left: int

    class Counting(Environment):  # type: ignore[misc]
        SUPPORTS_CONCURRENT_SESSIONS = True
        episodes = 0

        def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Board:
            Counting.episodes += 1
            self.left = 3
            return Board(board=f"episode {Counting.episodes}", left=3)

        def step(self, action: Word, timeout_s: float | None = None, **_: Any) -> Board:
            if action.word == "crash":
                raise KeyError("lost")
            self.left -= 1
            return Board(board="\x1b[31mred", left=self.left, reward=float(action.word == "win"), done=self.left == 0)

        @property
        def state(self) -> State:
            return State()

    with their_server(Counting, Word, Board) as url:
        yield url


def test_an_environment_of_theirs_is_played(theirs: str) -> None:
    env = OpenEnv(theirs, field="word", max_turns=5)
    observation, _ = env.reset(seed=0)
    assert re.fullmatch(r"board: episode \d+\nleft: 3", observation)
    assert env.step("win") == ("board: \\x1b[31mred\nleft: 2", 1.0, False, False, {"valid": True})
    with pytest.raises(OtherSideFailed, match="lost"):
        env.step("crash")
    assert env.reset(seed=0)[0].endswith("left: 3")  # the next episode has a session of its own


def test_the_text_is_made_into_their_action(theirs: str) -> None:
    def worded(text: str) -> dict[str, str] | None:
        return {"word": text.split()[-1]} if text.split() else None

    env = OpenEnv(theirs, action=worded)
    env.reset(seed=0)
    assert env.step("I say win")[1] == 1.0
    assert env.step(" ") == ("That is no action here.", 0.0, False, False, {"valid": False})


def test_what_they_break_is_reported(theirs: str) -> None:
    """A seed that means nothing: no transcript comes twice, and no snapshot can be taken up again."""
    options: dict[str, Any] = {"url": theirs, "field": "word", "reward_bounds": (0, 3)}
    with pytest.raises(ContractViolation, match=r"reproducible: .*the OpenEnv server breaks this: it draws"):
        check_text_env("polyturn/OpenEnv-v0", actions=number, seeds=range(2), **options)
    with pytest.raises(ContractViolation, match=r"any-text: expected an answer, got OtherSideFailed: .*lost"):
        check_text_env("polyturn/OpenEnv-v0", actions=lambda rng, seen: "crash", seeds=range(2), **options)
    env = OpenEnv(theirs, field="word")
    env.reset(seed=0)
    with pytest.raises(ReplayDiffers):
        OpenEnv(theirs, field="word").restore(env.snapshot())


def told(**data: Any) -> str:
    return json.dumps({"type": "observation", "data": {"reward": 0.0, "done": False, **data}})


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("no JSON", "JSON"),
        ("[1]", "OpenEnv: "),
        (told(observation="text"), "expected an observation of named fields, got str"),
        (told(observation={"a": "b"}, done=True), "over when it began"),
        (told(observation={"a": "x" * 2_000_000}), "OpenEnv: "),
        ("[" * 100_000, "OpenEnv: "),
        ('{"type": "error", "data": {"message": "\\u001b[2J"}}', r"\\x1b\[2J"),
    ],
)
def test_a_hostile_server_makes_the_episode_invalid(answer: str, reason: str) -> None:
    with answering(answer) as url, pytest.raises(OtherSideFailed, match=reason) as raised:
        OpenEnv(url, timeout=5.0).reset(seed=0)
    assert "\x1b" not in str(raised.value)
    assert len(str(raised.value)) < 3000


def test_a_silent_server_is_not_waited_for_longer_than_said() -> None:
    with answering(None) as url, pytest.raises(OtherSideFailed):
        OpenEnv(url, timeout=0.5).reset(seed=0)


def test_long_answers_are_cut_and_infinite_rewards_refused() -> None:
    with answering(told(observation={"a": "b" * 50_000}, reward=float("inf"))) as url:
        env = OpenEnv(url)
        observation = env.reset(seed=0)[0]
        assert len(observation) < 20_001
        assert "characters cut" in observation
        with pytest.raises(OtherSideFailed, match="finite reward"):
            env.step("x")


@contextmanager
def answering(answer: str | None) -> Iterator[str]:
    """A WebSocket server that says one thing, or nothing."""
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.server import serve

    def handle(connection: Any) -> None:
        try:
            for _ in connection:
                if answer is not None:
                    connection.send(answer)
        except ConnectionClosed:
            pass

    with serve(handle, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()
