"""A container's standard input and output as a stream, through the engine's attach call."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import docker


class AttachedStream:
    """A container's stdio as the engine's attach call gives it: output comes in packets with an 8-byte head."""

    def __init__(self, client: docker.DockerClient, container: str) -> None:
        parameters = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        self._holder = client.api.attach_socket(container, params=parameters)
        self._socket: Any = getattr(self._holder, "_sock", self._holder)
        self._left = 0
        self._kind = 1
        self._head = b""
        self.said = b""

    def recv(self, size: int, /) -> bytes:
        """Bytes of standard output; standard error is kept in `said`."""
        while True:
            if self._left == 0:
                part = self._socket.recv(8 - len(self._head))
                if not part:
                    return b""
                self._head += part
                if len(self._head) < 8:
                    continue
                self._kind, self._left = struct.unpack(">BxxxI", self._head)
                self._head = b""
                continue
            data: bytes = self._socket.recv(min(size, self._left))
            if not data:
                return b""
            self._left -= len(data)
            if self._kind == 1:
                return data
            self.said = (self.said + data)[-8192:]

    def sendall(self, data: bytes, /) -> None:
        """Writes to the container's standard input."""
        self._socket.sendall(data)

    def settimeout(self, seconds: float | None, /) -> None:
        """Bounds the next operation."""
        self._socket.settimeout(seconds)

    def ends(self) -> list[Any]:
        """What holds the connection open, for a forked copy of the host program, which must not."""
        process = getattr(self._socket, "proc", None)  # an engine reached through the ssh command
        return [self._socket] if process is None else [process.stdin, process.stdout]

    def close(self) -> None:
        """Ends the container's standard input."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        # The response first: it flushes its file, which fails once the socket below is closed.
        for part in (getattr(self._holder, "_response", None), self._holder, self._socket):
            if part is not None:
                with contextlib.suppress(Exception):
                    part.close()
