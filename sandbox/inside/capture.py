"""What is kept of one output stream: its beginning and its end. Runs inside the sandbox."""

from __future__ import annotations


class Capture:
    """Keeps the first and the last half of `limit` bytes of what is added; of an odd byte the first half."""

    def __init__(self, limit: int) -> None:
        self.first, self.last = limit - limit // 2, limit // 2
        self.clear()

    def clear(self) -> None:
        """Starts anew."""
        self.head = b""
        self.tail = bytearray()
        self.total = 0

    def add(self, data: bytes) -> None:
        """Takes bytes in; memory stays bounded."""
        if not data:
            return
        self.total += len(data)
        room = self.first - len(self.head)
        if room > 0:
            self.head += data[:room]
            data = data[room:]
        self.tail += data[max(0, len(data) - self.last) :]
        if len(self.tail) > 4 * self.last:
            del self.tail[: len(self.tail) - self.last]

    @property
    def cut(self) -> bool:
        """Whether something was dropped."""
        return self.total > len(self.head) + self.last

    def text(self) -> bytes:
        """Beginning and end, with a note between them of how much is missing."""
        tail = bytes(self.tail[max(0, len(self.tail) - self.last) :])
        missing = self.total - len(self.head) - len(tail)
        return self.head + (b"\n... %d bytes cut ...\n" % missing if missing > 0 else b"") + tail
