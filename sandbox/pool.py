"""A pool of servers: sessions spread over them, replaced when sick, waited for when full."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence

from polyturn.sandbox.sandbox import (
    LONGEST_S,
    Capabilities,
    Limits,
    SandboxError,
    SandboxLost,
    SandboxUnavailable,
    check_number,
)
from polyturn.sandbox.server import INHERITED, Server, ServerSession

_HEALTH_EVERY_S = 10.0
_START_ATTEMPTS = 3
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _after_fork() -> None:
    """A forked child, however it ends, does not touch its parent's servers."""
    for pool in list(_pools):
        pool.disown()


os.register_at_fork(after_in_child=_after_fork)


class Pool:
    """A `Sandbox` over several servers.

    Sessions go to the fullest server with room, so that servers can empty and be closed; a new server is started
    when none has room; when no more may be started, callers wait in the order they came.

    Args:
        starters: One function per engine that starts a server there; a new server goes to the engine with fewest.
        capabilities: What every server of the pool protects.
        servers: How many may run at once.
        spare_s: Seconds an empty server is kept before it is closed; the last one is kept.
        wait_s: Longest wait for room before SandboxUnavailable.
    """

    def __init__(
        self,
        starters: Sequence[Callable[[], Server]],
        capabilities: Capabilities,
        *,
        servers: int = 1,
        spare_s: float = 60.0,
        wait_s: float = 600.0,
    ) -> None:
        if not starters:
            raise ValueError("a pool needs at least one engine")
        check_number("servers", servers, 1, 4096)
        check_number("spare_s", spare_s, 0, LONGEST_S, whole=False)
        check_number("wait_s", wait_s, 0, LONGEST_S, whole=False)
        self._starters, self._capabilities = list(starters), capabilities
        self._most, self._spare_s, self._wait_s = servers, spare_s, wait_s
        self._servers: list[Server] = []
        self._home: dict[int, int] = {}
        self._used: dict[int, int] = {}
        self._empty_since: dict[int, float] = {}
        self._starting = 0
        self._queue: deque[threading.Event] = deque()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._keeper: threading.Thread | None = None
        self.inherited = False
        _pools.add(self)

    def disown(self) -> None:
        """In a forked child: the servers are the parent's. Closing this pool then does nothing."""
        self.inherited = True
        for server in self._servers:
            server.disown()
        self._servers = []
        self._lock = threading.Lock()  # another thread of the parent may hold the old one
        self._stop = threading.Event()
        self._stop.set()

    @property
    def capabilities(self) -> Capabilities:
        """What this sandbox protects."""
        return self._capabilities

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._stop.is_set()

    @property
    def servers(self) -> list[Server]:
        """The servers running now."""
        with self._lock:
            return [server for server in self._servers if not server.lost]

    def start(self) -> None:
        """Starts the first server now, so that what is wrong shows now; harmless when one runs."""
        self._release(self._reserve())

    def open(self, limits: Limits | None = None, *, seed: int = 0) -> ServerSession:
        """Opens a session; see `Sandbox.open`."""
        limits = limits or Limits()
        problem: SandboxError | None = None
        for _ in range(_START_ATTEMPTS):
            server = self._reserve()
            try:
                return server.open(limits, seed, lambda server=server: self._release(server))  # type: ignore[misc]
            except SandboxLost as error:  # sick: dropped, and another one tried
                problem = error
                self._release(server)
            except SandboxUnavailable as error:  # branches filled it
                problem = error
                self._release(server)
                time.sleep(0.05)
            except BaseException:
                self._release(server)
                raise
        raise problem or SandboxLost("no server could be started")

    async def aopen(self, limits: Limits | None = None, *, seed: int = 0) -> ServerSession:
        """`open` for asyncio; a session that comes after its caller was cancelled is closed."""
        # Not a task, which the end of the loop would cancel: a thread goes on, and its session must be closed.
        opening = asyncio.get_running_loop().run_in_executor(None, lambda: self.open(limits, seed=seed))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unwanted)
            raise

    def _reserve(self) -> Server:
        """A place on a server: at once, after starting one, or after waiting in line."""
        deadline = time.monotonic() + self._wait_s
        first = True
        while True:
            with self._lock:
                if self._stop.is_set():
                    raise SandboxError(INHERITED if self.inherited else "the sandbox is closed")
                self._drop_lost()
                if not first or not self._queue:  # newcomers do not overtake
                    room = [server for server in self._servers if self._used[id(server)] < server.capacity]
                    if room:
                        server = max(room, key=lambda server: self._used[id(server)])
                        self._used[id(server)] += 1
                        self._empty_since.pop(id(server), None)
                        return server
                    if len(self._servers) + self._starting < self._most:
                        self._starting += 1
                        break
                ticket = threading.Event()
                if first:
                    self._queue.append(ticket)
                else:
                    self._queue.appendleft(ticket)  # woken in vain: keeps its place
                first = False
            if not ticket.wait(max(0.0, deadline - time.monotonic())):
                with self._lock:
                    if ticket in self._queue:
                        self._queue.remove(ticket)
                raise SandboxUnavailable(
                    f"all {self._most} sandbox servers were full for {self._wait_s:.0f} s: close sessions that are "
                    "done with, or allow more servers"
                )
        return self._start_server()

    def _start_server(self) -> Server:
        with self._lock:
            load = [sum(1 for home in self._home.values() if home == i) for i in range(len(self._starters))]
        order = sorted(range(len(self._starters)), key=load.__getitem__)
        problem: SandboxError | None = None
        try:
            for engine in order:
                try:
                    server = self._starters[engine]()
                    break
                except SandboxError as error:  # the next engine may answer
                    problem = problem or error
            else:
                raise problem or SandboxUnavailable("no engine")
        except BaseException:
            with self._lock:
                self._starting -= 1
                self._wake()
            raise
        with self._lock:
            self._starting -= 1
            self._servers.append(server)
            self._home[id(server)] = engine
            self._used[id(server)] = 1
            closed = self._stop.is_set()
            for _ in range(server.capacity - 1):
                self._wake()
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep, name="polyturn-sandbox-pool", daemon=True)
                self._keeper.start()
        if closed:
            server.close()
            raise SandboxError("the sandbox is closed")
        return server

    def _release(self, server: Server) -> None:
        with self._lock:
            if id(server) in self._used:
                self._used[id(server)] -= 1
                if self._used[id(server)] <= 0:
                    self._empty_since[id(server)] = time.monotonic()
            self._wake()

    def _wake(self) -> None:
        if self._queue:
            self._queue.popleft().set()

    def _drop_lost(self) -> None:
        for server in [server for server in self._servers if server.lost]:
            self._remove(server)
            threading.Thread(target=server.close, daemon=True).start()  # its container may be slow to go
            self._wake()

    def _remove(self, server: Server) -> None:
        self._servers.remove(server)
        for table in (self._home, self._used, self._empty_since):
            table.pop(id(server), None)

    def _keep(self) -> None:
        """Pings servers, drops the sick, closes those long empty."""
        while not self._stop.wait(min(_HEALTH_EVERY_S, max(0.05, self._spare_s / 2))):
            for server in self.servers:
                try:
                    server.ping()
                except SandboxError:
                    continue  # marked lost; dropped below
            with self._lock:
                self._drop_lost()
                now = time.monotonic()
                old = [
                    server for server in self._servers if now - self._empty_since.get(id(server), now) > self._spare_s
                ]
                old = old[: max(0, len(self._servers) - 1)]
                for server in old:
                    self._remove(server)
            for server in old:
                server.close()

    def close(self) -> None:
        """Closes every server and with it every session; safe to call twice."""
        self._stop.set()
        with self._lock:
            servers, self._servers = self._servers, []
            while self._queue:
                self._queue.popleft().set()
        for server in servers:
            server.close()

    def __reduce__(self) -> str:
        raise TypeError(
            "a sandbox lives in the process that opened it and cannot be sent to another: send its options, and call "
            "open_sandbox(...) where it is used (under Ray, each node then uses its own engine)"
        )

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _close_unwanted(opening: asyncio.Future[ServerSession]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        threading.Thread(target=opening.result().close, name="polyturn-sandbox-close", daemon=True).start()
