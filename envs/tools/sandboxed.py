"""Tools in the sandbox: Python whose variables stay, a shell, and files of the episode's folder, in one session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from polyturn.envs.tools.kits import Kept, Opened, Replay
from polyturn.envs.tools.limited import Caller
from polyturn.envs.tools.tool import Output, Tool, ToolError
from polyturn.sandbox import open_sandbox
from polyturn.sandbox.sandbox import Limits, Result, Sandbox, SandboxError, SandboxLost, Session, Status

PARTS = ("python", "shell", "files")

_TEXT: dict[str, Any] = {"type": "string"}

_SHELL = """\
import subprocess as _p
_r = _p.run(["/bin/sh", "-c", {command!r}], stdin=_p.DEVNULL, stdout=_p.PIPE, stderr=_p.STDOUT)
print(_r.stdout.decode("utf-8", "replace"), end="")
if _r.returncode: print(f"(exit code {{_r.returncode}})")
del _p, _r"""
_READ = "print(open({path!r}, encoding='utf-8', errors='replace').read(), end='')"
_WRITE = """\
import os as _o
_o.makedirs(_o.path.dirname({path!r}) or '.', exist_ok=True)
with open({path!r}, 'w', encoding='utf-8') as _f: _n = _f.write({text!r})
print(f'wrote {{_n}} characters')
del _o, _f, _n"""
_LIST = """\
import os as _o
for _d, _s, _n in _o.walk('.'):
    _s.sort()
    for _f in sorted(_n): print(_o.path.relpath(_o.path.join(_d, _f), '.'))
del _o"""


def worded(result: Result, wall_s: float) -> str:
    """How a program's result is worded for an agent."""
    parts = [result.stdout.rstrip("\n"), result.value or "", result.error or ""]
    if result.status is Status.TIMEOUT:
        parts.append(f"TimeoutError: stopped after {wall_s:g} s")
    elif result.status not in (Status.OK, Status.ERROR):
        parts.append(f"{str(result.status).replace('-', ' ')}: the program was stopped")
    if result.state_lost:
        parts.append("(the interpreter was restarted; its variables are gone)")
    return "\n".join(part for part in parts if part)


@dataclass(frozen=True)
class InSandbox:
    """Tools that run in one sandbox session an episode, started at the first call.

    `python` runs a program whose variables stay; `shell` a command; `read_file`, `write_file` and `list_files` work in
    the session's folder. Files of the task (`task["files"]`, a mapping from path to text) are there at the start. All
    of them share the session: what a program does to its own interpreter, the file tools see, and a scorer must not
    trust it.

    Attributes:
        parts: Which of "python", "shell" and "files".
        sandbox: "auto", "docker", "local", or an open `Sandbox`.
        limits: Of the session. With "shell", other programs may run.
    """

    parts: tuple[str, ...] = ("python",)
    sandbox: str | Sandbox = "auto"
    limits: Limits = field(default_factory=Limits)
    replay: Replay = "trusted"

    def open(self, task: Mapping[str, Any], seed: int, caller: Caller, limit_s: float) -> Opened:
        """The tools; the session starts at the first call."""
        limits = replace(self.limits, programs=True) if "shell" in self.parts else self.limits
        return self._opened(_Live(self.sandbox, limits, seed, task.get("files") or {}))

    def _opened(self, live: _Live) -> Opened:
        tools = []
        if "python" in self.parts:
            tools.append(
                _tool("python", "Runs Python and shows what it prints; variables are kept", live.python, "code")
            )
        if "shell" in self.parts:
            tools.append(_tool("shell", "Runs a shell command and shows what it prints", live.shell, "command"))
        if "files" in self.parts:
            tools += [
                _tool("read_file", "Shows a file of the folder", live.read, "path"),
                _tool("write_file", "Writes a file of the folder", live.write, "path", "text"),
                _tool("list_files", "Lists the files of the folder", live.listing),
            ]
        return Opened(tools, close=live.close, keep=lambda: self._kept(live))

    def _kept(self, live: _Live) -> Kept | None:
        """The session's state as a fork of it; None where it cannot be forked."""
        try:
            twin = live.fork()
        except SandboxLost:
            raise
        except SandboxError:
            return None
        return Kept(lambda: self._opened(twin.fork()), twin.close)


def _tool(name: str, description: str, call: Any, *arguments: str) -> Tool:
    schema = {
        "type": "object",
        "properties": {argument: dict(_TEXT) for argument in arguments},
        "required": list(arguments),
        "additionalProperties": False,
    }

    def checked(given: Mapping[str, Any]) -> Output:
        if set(given) != set(arguments) or not all(isinstance(value, str) for value in given.values()):
            got = ", ".join(f"{key}: {type(value).__name__}" for key, value in given.items())
            raise ToolError(
                f"{name}: expected {', '.join(arguments) or 'no arguments'} as text, got {got or 'nothing'}"
            )
        output: Output = call(*(given[argument] for argument in arguments))
        return output

    return Tool(name, description, schema, checked, arguments[0] if len(arguments) == 1 else "", bounded=True)


class _Live:
    """The session of one episode."""

    def __init__(self, sandbox: str | Sandbox, limits: Limits, seed: int, files: Mapping[str, str]) -> None:
        self._sandbox, self._limits, self._seed, self._files = sandbox, limits, seed, files
        self._session: Session | None = None
        self._place: Sandbox  # where the session is, once there is one

    def python(self, code: str) -> Output:
        return self._run(code)

    def shell(self, command: str) -> Output:
        return self._run(_SHELL.format(command=command))

    def read(self, path: str) -> Output:
        return self._run(_READ.format(path=path))

    def write(self, path: str, text: str) -> Output:
        return self._run(_WRITE.format(path=path, text=text))

    def listing(self) -> Output:
        return self._run(_LIST)

    def fork(self) -> _Live:
        """Another session in this one's state; of one that never started, another that has not.

        Raises:
            SandboxError: It cannot be forked.
        """
        if self._session is not None and not self._place.capabilities.fork:
            raise SandboxError(f"{self._place.capabilities.name} forks no sessions")
        twin = _Live(self._sandbox, self._limits, self._seed, self._files)
        if self._session is not None:
            twin._session, twin._place = self._session.fork(), self._place
        return twin

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _run(self, code: str) -> Output:
        if self._session is None:
            self._place = open_sandbox(self._sandbox) if isinstance(self._sandbox, str) else self._sandbox
            self._session = self._place.open(self._limits, seed=self._seed)
            for path, text in self._files.items():
                placed = self._session.run(_WRITE.format(path=str(path), text=str(text)))
                if not placed.ok:
                    raise ValueError(f"the task's file {path!r} cannot be written: {placed.error or placed.status}")
        result = self._session.run(code)
        return Output(worded(result, self._limits.wall_s), str(result.status))
