"""Tools of real MCP servers, over stdio and over HTTP."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polyturn.envs import McpServer, NotRepeatable, ToolEnv, ToolUnavailable

SHOP = str(Path(__file__).parent / "mcp_shop.py")
TASKS = [{"question": "Buy two pens. How many are left?", "answer": "1 left"}]


def tagged(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


@pytest.fixture(params=["stdio", "http"])
def address(request: pytest.FixtureRequest) -> Iterator[str | list[str]]:
    if request.param == "stdio":
        yield [sys.executable, SHOP]
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, SHOP, str(port)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait()


def test_a_server_gives_tools_errors_and_outages(address: str | list[str]) -> None:
    """One episode: a result, the tool's own error, wrong arguments, a slow call, then the end of the server."""
    env = ToolEnv(TASKS, [McpServer(address, limit_s=6.0), "calculator"], max_turns=20)
    observation, _ = env.reset(seed=0)
    assert '"name": "buy", "description": "Buys things of the shop."' in observation
    assert env.step(tagged("buy", item="pen", count=2))[0] == "<tool_response>\n1 left\n</tool_response>"
    failed = env.step(tagged("buy", item="pen", count=2))
    assert "Error: buy:" in failed[0]
    assert "only 1 left" in failed[0]
    assert failed[4]["calls"][0]["status"] == "error"
    assert "Field required" in env.step(tagged("buy", item="pen"))[0]
    with pytest.raises(NotRepeatable, match="no snapshots"):
        env.snapshot()
    assert (
        env.step(tagged("wait", seconds=60))[0] == "<tool_response>\nError: wait: stopped after 6 s\n</tool_response>"
    )
    with pytest.raises(ToolUnavailable, match="has ended"):
        env.step(tagged("leave"))
    env.close()
    env.close()


def test_a_tool_that_the_server_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="has no tool sell; it has: buy, wait, leave"):
        ToolEnv(TASKS, [McpServer([sys.executable, SHOP], only=("sell",))]).reset(seed=0)


def test_each_episode_over_stdio_has_a_server_of_its_own_and_may_branch_where_that_is_declared() -> None:
    kit = McpServer([sys.executable, SHOP], only=("buy",), replay="checked")
    env = ToolEnv(TASKS, [kit])
    observation, _ = env.reset(seed=0)
    assert "wait" not in observation
    assert "1 left" in env.step(tagged("buy", item="pen", count=2))[0]
    other = ToolEnv(TASKS, [kit])
    other.restore(env.snapshot())
    assert "0 left" in other.step(tagged("buy", item="pen", count=1))[0]
    assert env.step("1 left")[1] == other.step("1 left")[1] == 1.0
    env.close()
    other.close()


@pytest.mark.parametrize(
    "server", [["/nowhere/at/all"], [sys.executable, "-c", "print('no protocol')"], "http://127.0.0.1:9/mcp"]
)
def test_a_server_that_does_not_answer_makes_the_episode_invalid(server: Any) -> None:
    env = ToolEnv(TASKS, [McpServer(server)])
    with pytest.raises(ToolUnavailable, match="cannot be reached"):
        env.reset(seed=0)
