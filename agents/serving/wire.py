"""HTTP/1.1 over asyncio, with h11 for the bytes: bounded in size, time and number; loopback by default."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from polyturn.envs.extras import how_to_install
from polyturn.envs.settings import check_count, check_range

try:
    import h11
except ImportError as missing:
    raise ImportError(f"the agent server needs h11; install it with: {how_to_install('serve')}") from missing


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """What clients may use.

    Attributes:
        body_bytes: Of one request.
        calls: Answers an episode; then requests are refused, as a program in a loop would go on without end.
        parallel: Requests of an episode under way at once; further ones are refused.
        connections: Open at once; further ones are closed.
        idle_seconds: For the next request, or the next piece of one, on a connection.

    Raises:
        ValueError: A value out of range.
    """

    body_bytes: int = 8 << 20
    calls: int = 1000
    parallel: int = 32
    connections: int = 512
    idle_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name in ("body_bytes", "calls", "parallel", "connections"):
            check_count(f"ServerLimits.{name}", getattr(self, name))
        check_range("ServerLimits.idle_seconds", self.idle_seconds, 0, above=True)


@dataclass(frozen=True)
class Ask:
    """One HTTP request whose body has been read."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Told:
    """One HTTP response; `events` are sent as server-sent events, each a name (or None) and JSON data or a text."""

    status: int
    body: Mapping[str, Any] | None = None
    events: Iterable[tuple[str | None, Mapping[str, Any] | str]] | None = None
    delivered: Callable[[], None] | None = None


Handler = Callable[[Ask], Awaitable[Told]]
Gate = Callable[[str, str, Mapping[str, str]], Told | None]
"""From method, path and headers to a refusal, before any body is read; None lets the request in."""


class Wire:
    """Connections of a server.

    Args:
        handler: Answers a request.
        gate: Refuses requests before their body is read.
        limits: What clients may use.
    """

    def __init__(self, handler: Handler, gate: Gate, limits: ServerLimits) -> None:
        self._handler, self._gate, self._limits = handler, gate, limits
        self._open = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection to its end."""
        self._open += 1
        try:
            if self._open <= self._limits.connections:
                await self._serve(reader, writer)
        except (OSError, TimeoutError, h11.RemoteProtocolError, asyncio.IncompleteReadError):
            pass  # the client is gone, slow, or speaks something else
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 16)
        while True:
            event = await self._event(connection, reader, writer)
            if not isinstance(event, h11.Request):
                return
            method, path = event.method.decode("ascii"), event.target.decode("ascii").partition("?")[0]
            headers = {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers}
            refusal = self._gate(method, path, headers)
            body = None if refusal is not None else await self._body(connection, reader, writer)
            if refusal is not None:
                told = refusal
            elif body is None:
                told = Told(413, error(f"expected at most {self._limits.body_bytes} bytes, got more", "too_large"))
            else:
                told = await self._handler(Ask(method, path, headers, body))
            if reader.at_eof():
                return  # the client left while it was answered
            async with asyncio.timeout(self._limits.idle_seconds):
                await _send(connection, writer, told)
            if told.delivered is not None:
                told.delivered()
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()

    async def _event(self, connection: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Any:
        while (event := connection.next_event()) is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                writer.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            async with asyncio.timeout(self._limits.idle_seconds):
                connection.receive_data(await reader.read(1 << 16))
        return event

    async def _body(self, connection: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes | None:
        """The request's body; None where it is too large."""
        body = bytearray()
        while isinstance(event := await self._event(connection, reader, writer), h11.Data):
            body += event.data
            if len(body) > self._limits.body_bytes:
                return None
        return bytes(body)


async def _send(connection: Any, writer: asyncio.StreamWriter, told: Told) -> None:
    kind = "application/json" if told.events is None else "text/event-stream"
    headers = [("content-type", kind), ("cache-control", "no-store"), ("x-content-type-options", "nosniff")]
    if told.events is None:
        data = json.dumps(told.body).encode()
        headers.append(("content-length", str(len(data))))
    if connection.their_state is not h11.DONE:
        headers.append(("connection", "close"))
    writer.write(connection.send(h11.Response(status_code=told.status, headers=headers)) or b"")
    if told.events is None:
        writer.write(connection.send(h11.Data(data=data)) or b"")
    else:
        for name, value in told.events:
            text = value if isinstance(value, str) else json.dumps(value)
            line = ("" if name is None else f"event: {name}\n") + f"data: {text}\n\n"
            writer.write(connection.send(h11.Data(data=line.encode())) or b"")
            await writer.drain()
    writer.write(connection.send(h11.EndOfMessage()) or b"")
    await writer.drain()


def error(message: str, code: str) -> dict[str, Any]:
    """The body of a refusal, as OpenAI's and Anthropic's clients read it."""
    kind = "authentication_error" if code == "invalid_api_key" else "invalid_request_error"
    return {"type": "error", "error": {"message": message, "type": kind, "code": code, "param": None}}
