"""Agent programs in the sandbox, which has no network: a program yields what it asks its model, and is sent the answer.

A client of HTTP cannot run there, since no socket can be opened; so a command line is not run in the sandbox. A
generator needs none: what it asks leaves by the way on which every program's output leaves, the request is made
outside, and the run's key never enters the sandbox.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from polyturn.agents.serving.programs import Endpoint, ProgramError, Task
from polyturn.envs.tools.calls import read_json
from polyturn.sandbox import open_sandbox
from polyturn.sandbox.sandbox import MOST_OUTPUT_BYTES, Limits, Result, Sandbox, Session

_SHOWN = 500
_ANSWER_S = 600.0
_PASSED = ("messages", "tools", "max_tokens", "stop")
_HARNESS = """\
import json as _json
def _step(text):
    try:
        asked = {"ask": _agent.send(None if text is None else _json.loads(text))}
    except StopIteration as end:
        asked = {"result": end.value}
    print("\\npolyturn:" + _json.dumps(asked))
_agent = agent(_json.loads(%r))
"""


@dataclass(frozen=True)
class SandboxedProgram:
    """An agent program for `AgentProgram` that runs in the sandbox.

    Attributes:
        source: Python text that defines `agent(task)`, a generator. It yields a list of messages, or an object with
            "messages" and perhaps "tools", "max_tokens" and "stop", and is sent the assistant's message, as chat
            completions have it; or {"error": text} where the model could not be asked. What it returns is the run's
            result, a JSON value.
        sandbox: "auto", "docker", "local", or an open `Sandbox`.
        limits: Of the session; `wall_s` is for the time between two calls of the model.
        calls: Calls of the model that a run may make.

    Raises:
        ValueError: The source defines no `agent`.
    """

    source: str
    sandbox: str | Sandbox = "auto"
    limits: Limits = field(default_factory=lambda: Limits(wall_s=60.0, output_bytes=MOST_OUTPUT_BYTES))
    calls: int = 64

    def __post_init__(self) -> None:
        if "def agent(" not in self.source:
            raise ValueError(
                "SandboxedProgram.source: expected Python with `def agent(task)`, a generator that yields messages, "
                f"got {self.source[:80]!r}"
            )

    @property
    def name(self) -> str:
        """What trajectories call the program: another one for another source."""
        return f"sandboxed {hashlib.sha256(self.source.encode()).hexdigest()[:12]}"

    async def __call__(self, task: Task, endpoint: Endpoint) -> Any:
        """One run.

        Raises:
            ProgramError: It raised, was stopped at a limit, or yielded what is no request.
        """
        place = await asyncio.to_thread(open_sandbox, self.sandbox) if isinstance(self.sandbox, str) else self.sandbox
        session = await asyncio.to_thread(place.open, self.limits)
        try:
            started = await session.arun(self.source + "\n" + _HARNESS % json.dumps(dict(task)))
            _check(started)
            answer: str | None = None
            for _ in range(self.calls + 1):
                said = await _stepped(session, answer)
                if "result" in said:
                    return said["result"]
                answer = json.dumps(await asyncio.to_thread(_asked, said["ask"], endpoint))
        finally:
            await asyncio.to_thread(session.close)
        raise ProgramError(f"the program asked its model more than {self.calls} times")


async def _stepped(session: Session, answer: str | None) -> dict[str, Any]:
    """What the program asks next, or its result."""
    result = await session.arun(f"_step({answer!r})")
    _check(result)
    _, mark, text = result.stdout.rpartition("\npolyturn:")
    value, problem = read_json(text) if mark else (None, "no line of the program's protocol")
    if problem or not isinstance(value, dict) or not value.keys() & {"ask", "result"}:
        raise ProgramError(f"expected the program to yield JSON values, got {problem or 'another value'}")
    return value


def _check(result: Result) -> None:
    if not result.ok:
        raise ProgramError(f"the program ended with {result.status}: {(result.error or '')[-_SHOWN:]}")


def _asked(request: Any, endpoint: Endpoint) -> dict[str, Any]:
    """Makes a request of a program outside of the sandbox, with the run's key.

    Raises:
        ProgramError: It is no request.
    """
    body = {"messages": request} if isinstance(request, list) else request
    if not isinstance(body, Mapping) or not isinstance(body.get("messages"), list):
        raise ProgramError(f"expected the program to yield messages, got {str(request)[:80]!r}")
    kept = {name: body[name] for name in _PASSED if name in body} | {"model": "policy"}
    asked = urllib.request.Request(
        f"{endpoint.base_url}/chat/completions",
        json.dumps(kept).encode(),
        {"Authorization": f"Bearer {endpoint.api_key}", "Content-Type": "application/json"},
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(asked, timeout=_ANSWER_S) as response:
            message: dict[str, Any] = json.load(response)["choices"][0]["message"]
            return message
    except urllib.error.HTTPError as error:
        return {"error": error.read().decode("utf-8", "replace")[:_SHOWN]}
