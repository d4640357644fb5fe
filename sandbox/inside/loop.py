"""The event loop of the supervisor and the host's connections on it. Runs inside the sandbox."""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import select
import struct
import time
from collections.abc import Callable
from typing import Any

READ, WRITE = 1, 4  # EPOLLIN, EPOLLOUT; POLLIN and POLLOUT are the same numbers
_LARGEST_FRAME = 64 << 20
MOST_FAULTS_TOLD = 100  # so that they fill no disk
_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False).encode


class Loop:
    """Descriptors and timers; single-threaded, never blocks on a peer.

    An exception in a handler or a timer ends what it served (see `failed`), never the loop.
    """

    def __init__(self) -> None:
        self._poll: Any = select.epoll() if hasattr(select, "epoll") else select.poll()
        self._unit = 1.0 if hasattr(select, "epoll") else 1000.0
        self._handlers: dict[int, Callable[[int], object]] = {}
        self._last: set[int] = set()
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0
        self.faults = 0
        self.busiest = 0.0  # most processor seconds between two waits: how long a request may have waited its turn
        self.heard_at = time.monotonic()  # when the host last said something

    def listen(self, fd: int, handler: Callable[[int], object], events: int = READ, *, last: bool = False) -> None:
        """Calls `handler(events)` whenever `fd` is ready.

        Of what is ready together, those marked `last` come last: an interpreter's answer is read after the output
        it wrote before, without asking its pipes once more.
        """
        self._handlers[fd] = handler
        if last:
            self._last.add(fd)
        self._poll.register(fd, events)

    def watch(self, fd: int, events: int) -> None:
        """Changes what `fd` is watched for."""
        if fd in self._handlers:
            self._poll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Stops listening to `fd`; harmless when it was not listened to."""
        if self._handlers.pop(fd, None) is not None:
            self._last.discard(fd)
            self._poll.unregister(fd)

    def after(self, delay: float, action: Callable[[], object]) -> None:
        """Calls `action()` once, `delay` seconds from now."""
        self._count += 1
        heapq.heappush(self._timers, (time.monotonic() + delay, self._count, action))

    def run(self) -> None:
        """Serves until the process ends."""
        handlers, last = self._handlers, self._last
        started = time.thread_time()
        while True:
            ended = time.thread_time()
            if ended - started > self.busiest:
                self.busiest = ended - started
            wait = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else 3600.0
            later: list[tuple[int, int]] = []
            events_now = self._poll.poll(wait * self._unit)
            started = time.thread_time()
            for ready in events_now:
                if ready[0] in last:
                    later.append(ready)
                elif (handler := handlers.get(ready[0])) is not None:
                    try:
                        handler(ready[1])
                    except Exception as error:
                        self.failed(error, ready[0])
            for fd, events in later:
                if (handler := handlers.get(fd)) is not None:
                    try:
                        handler(events)
                    except Exception as error:
                        self.failed(error, fd)
            if self._timers:
                now = time.monotonic()
                while self._timers and self._timers[0][0] <= now:
                    action = heapq.heappop(self._timers)[2]
                    try:
                        action()
                    except Exception as error:
                        self.failed(error)

    def failed(self, error: Exception, fd: int = -1) -> None:
        """Takes note of an exception; a subclass also ends what the descriptor served."""
        self.faults += 1
        if self.faults <= MOST_FAULTS_TOLD:
            with contextlib.suppress(OSError):
                os.write(2, f"supervisor: {type(error).__name__}: {error}\n".encode("utf-8", "backslashreplace"))


class Peer:
    """One of the host's connections: frames of a 4-byte length and JSON."""

    def __init__(
        self, loop: Loop, reading: int, writing: int, command: Callable[[Peer, dict[str, Any]], None],
        ended: Callable[[], None],
    ) -> None:  # fmt: skip
        self.loop, self.reading, self.writing, self.command, self.ended = loop, reading, writing, command, ended
        self.incoming, self.outgoing = bytearray(), bytearray()
        self.open = True
        loop.listen(reading, self._ready)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & ~WRITE and self.open:
            self._read()

    def _read(self) -> None:
        try:
            data = os.read(self.reading, 1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            self.ended()
            return
        self.loop.heard_at = time.monotonic()
        incoming = self.incoming
        incoming += data
        while len(incoming) >= 4:
            (size,) = struct.unpack_from(">I", incoming)
            if size > _LARGEST_FRAME:
                self.close()
                return
            if len(incoming) < 4 + size:
                return
            try:
                frame = json.loads(bytes(incoming[4 : 4 + size]))
            except ValueError:  # what follows cannot be understood either
                self.close()
                self.ended()
                return
            del incoming[: 4 + size]
            self.command(self, frame)

    def reply(self, number: int, **fields: Any) -> bool:
        """Sends one frame, what the connection does not take now when it is ready; False if the host is gone."""
        if not self.open:
            return False
        fields["id"] = number
        body = _encode(fields).encode("utf-8", "backslashreplace")
        data = struct.pack(">I", len(body)) + body
        if not self.outgoing:
            try:
                data = data[os.write(self.writing, data) :]
            except BlockingIOError:
                pass
            except OSError:  # closed there, which is yet to be read here
                return False
            if not data:
                return True
            if self.writing == self.reading:
                self.loop.watch(self.writing, READ | WRITE)
            else:
                self.loop.listen(self.writing, self._ready, WRITE)
        self.outgoing += data
        return True

    def _flush(self) -> None:
        try:
            del self.outgoing[: os.write(self.writing, self.outgoing)]
        except BlockingIOError:
            return
        except OSError:
            self.outgoing.clear()
        if not self.outgoing:
            if self.writing == self.reading:
                self.loop.watch(self.writing, READ)
            else:
                self.loop.forget(self.writing)

    def close(self) -> None:
        """Ends the connection; answers still due are dropped."""
        if self.open:
            self.open = False
            for fd in {self.reading, self.writing}:
                self.loop.forget(fd)
                os.close(fd)
