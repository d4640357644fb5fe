"""One running supervisor seen from the host, and the sessions on it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import struct
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from polyturn.sandbox.link import MARGIN_S, Link
from polyturn.sandbox.sandbox import (
    BOUNDS,
    Limits,
    Result,
    SandboxError,
    SandboxLost,
    SandboxUnavailable,
    Status,
    Timings,
    check_number,
)

# Every file of `inside`, each after those that it imports.
INSIDE = (
    "capture",
    "loop",
    "processes",
    "isolation",
    "forks",
    "survey",
    "outbox",
    "held",
    "surroundings",
    "episode",
    "zygote",
    "interpreter",
    "interpreters",
    "sessions",
    "watch",
    "supervisor",
)
SILENCE_S = 24 * 3600.0  # after which a supervisor takes its host for dead; a pool asks every ten seconds
FORK_S = 10.0  # what an interpreter may take to fork and its copy to copy the files, before both are ended
LARGEST_SEED = (1 << 128) - 1
_dropped: queue.SimpleQueue[tuple[Server, int, Callable[[], None]]] = queue.SimpleQueue()
_closer: threading.Thread | None = None

INHERITED = (
    "this sandbox belongs to the parent of this process, which was forked from it: call open_sandbox(...) and open "
    "sessions in the process that uses them"
)

BOOT = """\
import json, os, struct, sys, types
def take(size):
    parts = b""
    while len(parts) < size:
        part = os.read(0, min(size - len(parts), 65536))
        if not part: sys.exit("no program came")
        parts += part
    return parts
boot = json.loads(take(struct.unpack(">I", take(4))[0]))
package = None
for part in ("polyturn", "polyturn.sandbox", "polyturn.sandbox.inside"):
    outer, package = package, types.ModuleType(part)
    package.__path__ = []; sys.modules[part] = package
    if outer: setattr(outer, part.rpartition(".")[2], package)
for name, source in boot["modules"].items():
    module = types.ModuleType("polyturn.sandbox.inside." + name)
    sys.modules[module.__name__] = module; setattr(package, name, module)
    exec(compile(source, name + ".py", "exec"), module.__dict__)
sys.modules["polyturn.sandbox.inside.supervisor"].main(boot["config"])
"""
# No site folder, no user folder, no current folder on the path. Not -I: that would ignore PYTHONHASHSEED, and the
# order of sets should be the same in every run. The environment is the sandbox's own and holds nothing else.
PYTHON_FLAGS = ("-s", "-P", "-S", "-u", "-c")


def boot_frame(config: dict[str, Any]) -> bytes:
    """What the boot program reads first: the supervisor's source and its configuration."""
    inside = Path(__file__).parent / "inside"
    modules = {name: (inside / f"{name}.py").read_text(encoding="utf-8") for name in INSIDE}
    body = json.dumps({"modules": modules, "config": config}).encode()
    return struct.pack(">I", len(body)) + body


_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufff9-\ufffb]"
)


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def safe_text(text: str) -> str:
    """Text that can be printed: control characters, direction overrides and lone surrogates become escapes."""
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return _UNSAFE.sub(_escape, text.replace("\r\n", "\n"))


class Server:
    """A supervisor that answers.

    Attributes:
        name: For messages: the container's name, or "local".
        inherited: Whether this process is a fork of the one that the server belongs to.
        lost: Why it is gone, or "".
        ready: What the supervisor said of its kernel when it was ready.
    """

    def __init__(
        self, name: str, link: Link, stop: Callable[[], None], sessions: int, ready: dict[str, Any] | None = None
    ) -> None:
        self.name, self.capacity = name, sessions
        self.ready = ready or {}
        self._link, self._stop = link, stop
        self.lost = ""
        self.inherited = False
        self.sessions: weakref.WeakSet[ServerSession] = weakref.WeakSet()
        self._lock = threading.Lock()

    def call(self, request: dict[str, Any], timeout: float = MARGIN_S) -> dict[str, Any]:
        """One request; raises SandboxLost, after which the server is marked lost."""
        self.check()
        try:
            return self._link.call(request, timeout)
        except SandboxLost as error:
            raise self._mark(error) from None

    async def acall(self, request: dict[str, Any], timeout: float = MARGIN_S) -> dict[str, Any]:
        """`call` for asyncio."""
        self.check()
        try:
            return await self._link.acall(request, timeout)
        except SandboxLost as error:
            raise self._mark(error) from None

    def check(self) -> None:
        """Raises an error where no request can be sent."""
        if self.inherited:
            raise SandboxError(INHERITED)
        if self.lost:
            raise SandboxLost(f"{self.name}: {self.lost}")

    def disown(self) -> None:
        """In a forked child: the server is the parent's, so nothing here uses it or ends it."""
        self.inherited = True
        self._stop = None  # type: ignore[assignment]

    def _mark(self, error: SandboxLost) -> SandboxLost:
        self.lost = self.lost or str(error)
        return SandboxLost(f"{self.name}: {error}")

    def open(self, limits: Limits, seed: int, ended: Callable[[], None]) -> ServerSession:
        """Opens a session; `ended` is called once when it closes."""
        seed = check_number("seed", seed, -LARGEST_SEED, LARGEST_SEED)
        if not isinstance(limits, Limits):
            raise TypeError(f"limits are Limits(...) or None, not {limits!r}")
        answer = self.call({"op": "open", "limits": asdict(limits), "seed": seed})
        return self.opened(answer, limits, ended)

    def opened(self, answer: dict[str, Any], limits: Limits, ended: Callable[[], None]) -> ServerSession:
        """The session of an answer to open or fork."""
        if "fail" in answer:
            raise (SandboxUnavailable if answer["fail"] == "full" else SandboxError)(f"{self.name}: {answer['fail']}")
        session = ServerSession(self, int(answer["s"]), limits, ended)
        self.sessions.add(session)
        return session

    def ping(self, timeout: float = 30.0) -> dict[str, Any]:
        """The supervisor's own figures; raises SandboxLost when it does not answer in time."""
        return self.call({"op": "ping"}, timeout)

    def figures(self) -> dict[str, Any]:
        """How the supervisor itself does: its own faults so far, and the longest it worked at a stretch (s of cpu)."""
        return self.call({"op": "figures"}, 30.0)

    def close(self) -> None:
        """Ends the supervisor and everything in it; safe to call twice."""
        if self.inherited:
            return
        with self._lock:
            if self._stop is None:
                return
            stop, self._stop = self._stop, None  # type: ignore[assignment]
        self.lost = self.lost or "closed"
        self._link.close()
        stop()


class ServerSession:
    """A session on a server; see `polyturn.sandbox.sandbox.Session`."""

    def __init__(self, server: Server, number: int, limits: Limits, ended: Callable[[], None]) -> None:
        self._server, self._number, self.limits, self._ended = server, number, limits, ended
        self._busy = threading.Lock()
        self._closed = False
        # A session that is dropped without `close` is closed all the same. By another thread: the collector of garbage
        # may come at any moment, also while this thread holds a lock that closing needs.
        self._finalizer = weakref.finalize(self, _dropped.put, (server, number, ended))
        self._finalizer.atexit = False
        _start_closer()

    def _request(self, code: str, wall_s: float | None) -> tuple[dict[str, Any], float] | Result:
        if self._closed:
            raise SandboxError("the session is closed: open another one")
        self._server.check()
        if not isinstance(code, str):
            raise TypeError(f"a program is a text (str), not {type(code).__name__}")
        limits = self.limits
        # no character takes more than four bytes: only doubtful sizes are measured
        if len(code) > limits.source_bytes // 4 and len(code.encode("utf-8", "surrogatepass")) > limits.source_bytes:
            return Result(Status.ERROR, error=f"SyntaxError: the program is longer than {limits.source_bytes} bytes")
        wall = check_number("wall_s", limits.wall_s if wall_s is None else wall_s, *BOUNDS["wall_s"], whole=False)
        cpu = wall if limits.cpu_s is None else limits.cpu_s
        return {"op": "run", "s": self._number, "code": code, "wall": wall, "cpu": cpu}, wall + MARGIN_S

    def run(self, code: str, *, wall_s: float | None = None) -> Result:
        """Runs a program and waits for it; see `Session.run`."""
        request = self._request(code, wall_s)
        if isinstance(request, Result):
            return request
        start = time.perf_counter()
        self._take()
        try:
            answer = self._server.call(*request)
        except SandboxLost:
            raise
        except BaseException:  # Ctrl-C in the host: the program must not go on
            self.interrupt()
            raise
        finally:
            self._busy.release()
        return self._result(answer, start)

    async def arun(self, code: str, *, wall_s: float | None = None) -> Result:
        """`run` for asyncio."""
        request = self._request(code, wall_s)
        if isinstance(request, Result):
            return request
        start = time.perf_counter()
        self._take()
        try:
            answer = await self._server.acall(*request)
        except SandboxLost:
            raise
        except BaseException:  # cancelled
            self.interrupt()
            raise
        finally:
            self._busy.release()
        return self._result(answer, start)

    def _take(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise SandboxError("one run at a time per session: fork it or open another one for parallel runs")

    def _result(self, answer: dict[str, Any], start: float) -> Result:
        if "fail" in answer:
            if answer["fail"] == "busy":
                raise SandboxError("the session still runs an abandoned program: close it and open another one")
            if answer.get("refused"):
                raise SandboxError(f"{self._server.name}: {answer['fail']}")
            raise SandboxLost(f"{self._server.name}: {answer['fail']}")
        return Result(
            status=Status(answer["status"]),
            stdout=safe_text(answer.get("out", "")),
            stderr=safe_text(answer.get("err", "")),
            value=safe_text(answer["value"]) if answer.get("value") else None,
            error=safe_text(answer["error"]) if answer.get("error") else None,
            truncated=answer.get("cut", False),
            state_lost=answer.get("lost", False),
            timings=Timings(time.perf_counter() - start, answer.get("run", 0.0), answer.get("cpu", 0.0)),
        )

    def fork(self) -> ServerSession:
        """A second session that starts from this one's present state.

        Raises:
            SandboxError: The state is lost, the program has started threads, or the process limit is reached.
        """
        if self._closed:
            raise SandboxError("the session is closed: open another one")
        self._take()
        try:
            answer = self._server.call({"op": "fork", "s": self._number})
        finally:
            self._busy.release()
        return self._server.opened(answer, self.limits, _nothing)

    def interrupt(self) -> None:
        """Interrupts a run in progress; harmless when nothing runs."""
        if not self._closed and not self._server.lost and not self._server.inherited:
            self._server.call({"op": "interrupt", "s": self._number})

    def close(self) -> None:
        """Ends the interpreter and everything it started; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._finalizer.detach()
        try:
            if not self._server.lost and not self._server.inherited:
                self._server.call({"op": "close", "s": self._number})
        except SandboxLost:
            pass  # it went with its server
        finally:
            self._ended()

    def __enter__(self) -> ServerSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _start_closer() -> None:
    """Starts the one thread of this process that closes dropped sessions."""
    global _closer
    if _closer is None or not _closer.is_alive():
        _closer = threading.Thread(target=_close_dropped, name="polyturn-sandbox-dropped", daemon=True)
        _closer.start()


def _close_dropped() -> None:
    while True:
        server, number, ended = _dropped.get()
        with contextlib.suppress(SandboxError):  # it went with its server
            if not server.lost and not server.inherited:
                server.call({"op": "close", "s": number})
        ended()


def _after_fork() -> None:
    """The thread is the parent's, and so are the sessions."""
    global _closer, _dropped
    _closer, _dropped = None, queue.SimpleQueue()


os.register_at_fork(after_in_child=_after_fork)


def _nothing() -> None:
    return
