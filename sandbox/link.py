"""The host's ends of a supervisor's channels: frames over one shared stream, or over a pool of Unix connections.

A frame is a 4-byte big-endian length and a JSON object. Blocking callers read for themselves: the first that waits
reads for all (no thread stands between a caller and its answer). Callers from asyncio are served by one thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from polyturn.sandbox.sandbox import SandboxLost

MARGIN_S = 40.0  # beyond a run's own time: a start of the interpreter, the grace, a busy machine
_DOUBT_S, _PROBE_S = 2.0, 5.0  # silence beyond a run's own time after which the other side is probed
_encode = json.JSONEncoder(check_circular=False).encode
_LARGEST_FRAME = 32 << 20  # what the host accepts from a supervisor


class ByteStream(Protocol):
    """The little of a socket that is needed; TLS and SSH connections have it too."""

    def recv(self, size: int, /) -> bytes: ...
    def sendall(self, data: bytes, /) -> object: ...
    def settimeout(self, seconds: float | None, /) -> object: ...
    def close(self) -> object: ...


class Link(Protocol):
    """Requests to one supervisor."""

    def call(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Sends a request and waits for its answer; raises SandboxLost.

        A timeout of `MARGIN_S` and more allows for a busy machine. In that margin a link asks every few seconds
        whether the supervisor is there at all, so that a container or an engine that is paused is noticed soon.
        """

    async def acall(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """`call` for asyncio."""

    def close(self) -> None:
        """Closes the channels."""


def _looks(timeout: float) -> Iterator[float]:
    """When to stop waiting and ask, as `time.monotonic` seconds; the last one is the deadline."""
    deadline = time.monotonic() + timeout
    if timeout >= MARGIN_S:
        look = deadline - MARGIN_S + _DOUBT_S
        while look < deadline:
            yield look
            look = max(look, time.monotonic()) + _PROBE_S
    yield deadline


def _silent() -> SandboxLost:
    return SandboxLost(
        f"the sandbox gave no sign of life within {_PROBE_S:.0f} s: its container, or the Docker engine, may be paused "
        "or stopped"
    )


def encode(request: dict[str, Any]) -> bytes:
    """One frame."""
    body = _encode(request).encode()
    return struct.pack(">I", len(body)) + body


_open_streams: weakref.WeakSet[Any] = weakref.WeakSet()


def _forget_streams() -> None:
    """A forked copy of the host program must not keep a sandbox alive, nor read its parent's answers.

    The null device takes the place of each descriptor, so that closing the object says nothing on the connection.
    Closing the descriptor instead would leave an object that later closes another file that has got its number.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for stream in list(_open_streams):
        ends = stream.ends() if hasattr(stream, "ends") else [stream]
        for end in ends:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                if (fd := end.fileno()) >= 0:
                    os.dup2(null, fd, inheritable=False)
        with contextlib.suppress(OSError):
            stream.close()
    os.close(null)


os.register_at_fork(after_in_child=_forget_streams)


class FrameReader:
    """Cuts a byte stream into frames."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.buffer = bytearray()
        _open_streams.add(stream)

    def read(self, deadline: float | None) -> dict[str, Any]:
        """The next frame.

        Raises:
            TimeoutError: Not before the deadline (`time.monotonic` seconds); what came so far is kept.
            SandboxLost: The stream ended.
        """
        while True:
            if len(self.buffer) >= 4:
                (size,) = struct.unpack_from(">I", self.buffer)
                if size > _LARGEST_FRAME:
                    raise SandboxLost(f"the sandbox sent a frame of {size} bytes")
                if len(self.buffer) >= 4 + size:
                    frame = json.loads(bytes(self.buffer[4 : 4 + size]))
                    del self.buffer[: 4 + size]
                    if not isinstance(frame, dict):
                        raise SandboxLost("the sandbox sent something that is no frame")
                    return frame
            self.stream.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
            try:
                data = self.stream.recv(1 << 16)
            except TimeoutError:
                raise
            except (OSError, ValueError) as error:
                raise SandboxLost(f"the sandbox's channel broke: {error}") from None
            if not data:
                raise SandboxLost("the sandbox ended")
            self.buffer += data


class _Waiter:
    """One caller's place in the queue of a shared stream."""

    __slots__ = ("answer", "notify", "signal")

    def __init__(self, notify: Callable[[dict[str, Any] | None], None] | None = None) -> None:
        self.answer: dict[str, Any] | None = None
        self.notify = notify
        self.signal = threading.Lock()
        self.signal.acquire()

    def wake(self) -> None:
        try:
            self.signal.release()
        except RuntimeError:  # awake already
            return


class StreamLink:
    """Many callers on one stream. A caller that finds no reader reads, for all, until its own answer came."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._reader = FrameReader(stream)
        self._reading = threading.Lock()
        self._sending = threading.Lock()
        self._waiters: dict[int, _Waiter] = {}
        self._numbers = itertools.count(1)
        self._dead: SandboxLost | None = None
        self._pump: threading.Thread | None = None

    def first(self, timeout: float) -> dict[str, Any]:
        """The greeting, before any request."""
        try:
            return self._reader.read(time.monotonic() + timeout)
        except TimeoutError:
            raise SandboxLost(f"the sandbox did not start within {timeout:.0f} s") from None

    def _send(self, request: dict[str, Any], waiter: _Waiter) -> int:
        number = next(self._numbers)
        if self._dead is not None:
            raise SandboxLost(str(self._dead))
        self._waiters[number] = waiter
        try:
            with self._sending:
                self._stream.sendall(encode({**request, "id": number}))
        except (OSError, ValueError) as error:
            self._waiters.pop(number, None)
            raise self._fail(SandboxLost(f"the sandbox's channel broke: {error}")) from None
        return number

    def call(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        waiter = _Waiter()
        number = self._send(request, waiter)
        try:
            for look in _looks(timeout):
                with contextlib.suppress(TimeoutError):
                    return self._wait(waiter, look)
                if timeout >= MARGIN_S:
                    self._probe()
                    if waiter.answer is not None:  # it came while this thread read for the question
                        return waiter.answer
        finally:
            self._waiters.pop(number, None)
        raise SandboxLost(f"the sandbox did not answer within {timeout:.1f} s")

    def _wait(self, waiter: _Waiter, deadline: float) -> dict[str, Any]:
        """The answer for one caller; raises TimeoutError at the deadline."""
        while waiter.answer is None:
            if self._dead is not None:
                raise SandboxLost(str(self._dead))
            if self._reading.acquire(blocking=False):
                try:
                    while waiter.answer is None:
                        self._deliver(deadline)
                finally:
                    self._reading.release()
                    self._pass_on()
            elif not waiter.signal.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise TimeoutError
        return waiter.answer

    def _probe(self) -> None:
        try:
            self.call({"op": "ping"}, _PROBE_S)
        except SandboxLost:
            raise (SandboxLost(str(self._dead)) if self._dead else _silent()) from None

    def _deliver(self, deadline: float | None) -> None:
        try:
            frame = self._reader.read(deadline)
        except SandboxLost as error:
            raise self._fail(error) from None
        waiter = self._waiters.pop(frame.get("id", -1), None)
        if waiter is not None:
            waiter.answer = frame
            if waiter.notify is not None:
                waiter.notify(frame)
            else:
                waiter.wake()

    def _pass_on(self) -> None:
        """Wakes one that waits, to become the next reader."""
        for waiter in list(self._waiters.values()):
            if waiter.notify is None:
                waiter.wake()
                return

    def _fail(self, error: SandboxLost) -> SandboxLost:
        self._dead = self._dead or error
        for waiter in list(self._waiters.values()):
            if waiter.notify is not None:
                waiter.notify(None)
            else:
                waiter.wake()
        return error

    async def acall(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[dict[str, Any] | None] = loop.create_future()

        def arrived(frame: dict[str, Any] | None) -> None:
            def resolve() -> None:
                if not future.done():
                    future.set_result(frame)

            try:
                loop.call_soon_threadsafe(resolve)
            except RuntimeError:  # the caller's event loop is closed
                return

        if self._pump is None:
            with self._sending:
                if self._pump is None:
                    self._pump = threading.Thread(target=self._serve, name="polyturn-sandbox", daemon=True)
                    self._pump.start()
        number = self._send(request, _Waiter(arrived))
        try:
            for look in _looks(timeout):
                await asyncio.wait([future], timeout=max(0.0, look - time.monotonic()))
                if future.done():
                    if (frame := future.result()) is None:
                        raise SandboxLost(str(self._dead or "the sandbox ended"))
                    return frame
                if timeout >= MARGIN_S:
                    try:
                        await self.acall({"op": "ping"}, _PROBE_S)
                    except SandboxLost:
                        raise (SandboxLost(str(self._dead)) if self._dead else _silent()) from None
        finally:
            self._waiters.pop(number, None)
            future.cancel()
        raise SandboxLost(f"the sandbox did not answer within {timeout:.1f} s")

    def _serve(self) -> None:
        with self._reading:
            try:
                while True:
                    self._deliver(None)
            except SandboxLost:
                return

    def close(self) -> None:
        self._dead = self._dead or SandboxLost("the sandbox was closed")
        try:
            if isinstance(self._stream, socket.socket):
                self._stream.shutdown(socket.SHUT_RDWR)
            self._stream.close()
        except OSError:
            pass
        self._fail(self._dead)


class SocketLink:
    """A pool of connections to a supervisor's Unix socket: the kernel wakes the very thread that asked."""

    def __init__(self, path: str, *, keep: int = 64) -> None:
        self._path, self._keep = path, keep
        self._idle: list[FrameReader] = []
        self._shared: StreamLink | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._idle.append(self._connect())

    def _connect(self) -> FrameReader:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(self._path)
        except OSError as error:
            connection.close()
            raise SandboxLost(f"the sandbox's socket is gone: {error}") from None
        return FrameReader(connection)

    def call(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        try:
            reader = self._idle.pop()
        except IndexError:
            reader = self._connect()
        try:
            request["id"] = 0
            reader.stream.settimeout(timeout)
            reader.stream.sendall(encode(request))
            answer = None
            for look in _looks(timeout):
                with contextlib.suppress(TimeoutError):
                    answer = reader.read(look)
                    break
                if timeout >= MARGIN_S:
                    self._probe()
        except SandboxLost:
            reader.stream.close()
            raise
        except (OSError, ValueError) as error:
            reader.stream.close()
            raise SandboxLost(f"the sandbox's channel broke: {error}") from None
        except BaseException:
            reader.stream.close()  # an answer still under way must not become the next caller's
            raise
        if answer is None:
            reader.stream.close()
            raise SandboxLost(f"the sandbox did not answer within {timeout:.1f} s")
        if self._closed or len(self._idle) >= self._keep:
            reader.stream.close()
        else:
            self._idle.append(reader)
        return answer

    def _probe(self) -> None:
        try:
            self.call({"op": "ping"}, _PROBE_S)
        except SandboxLost:
            raise _silent() from None

    async def acall(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        if self._shared is None:
            with self._lock:
                if self._shared is None:
                    self._shared = StreamLink(self._connect().stream)
        return await self._shared.acall(request, timeout)

    def close(self) -> None:
        self._closed = True
        while self._idle:
            self._idle.pop().stream.close()
        if self._shared is not None:
            self._shared.close()
