"""Text that a program has printed and that is not in its pipe yet: memory that the supervisor sees too. Runs inside.

Writing every line to the pipe at once would wake the supervisor for each. Keeping lines in Python's own buffer would
lose them when the interpreter dies. So they wait here, in memory shared by both, until they fill it or the run ends;
if the interpreter dies, the supervisor reads what is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import io
import mmap
import os
import struct
import tempfile
import threading
from typing import Any, cast

ROOM = 8192  # bytes kept of each stream
SIZE = 8 + 2 * ROOM  # two lengths, then the bytes of standard output and of standard error
_F_ADD_SEALS, _FIXED_SIZE = 1033, 1 | 2 | 4


class SharedOutbox:
    """The supervisor's side."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self.fd = os.memfd_create("outbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.fd, SIZE)
            with contextlib.suppress(OSError):  # so that no program makes it smaller under the reader
                fcntl.fcntl(self.fd, _F_ADD_SEALS, _FIXED_SIZE)
        else:
            with tempfile.TemporaryFile() as file:
                self.fd = os.dup(file.fileno())
            os.ftruncate(self.fd, SIZE)
        self._memory = mmap.mmap(self.fd, SIZE, prot=mmap.PROT_READ)

    def read(self) -> tuple[bytes, bytes]:
        """What waits of standard output and of standard error. A program may have written anything here."""
        sizes = [min(size, ROOM) for size in struct.unpack_from("II", self._memory)]
        return self._memory[8 : 8 + sizes[0]], self._memory[8 + ROOM : 8 + ROOM + sizes[1]]

    def close(self) -> None:
        """Gives the memory back."""
        self._memory.close()


class Outbox:
    """The interpreter's side; private memory until `share`."""

    def __init__(self) -> None:
        self._address = 0
        self._use(memoryview(bytearray(SIZE)))

    def _use(self, memory: memoryview) -> None:
        self.sizes, self.memory = memory[:8].cast("I"), memory[8:]

    def share(self, fd: int) -> None:
        """Uses the memory of a descriptor from now on, in place of what was used before.

        By the C library: Python's own mapping keeps a copy of the descriptor, which a program may close.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        read_write, shared = ctypes.c_int(mmap.PROT_READ | mmap.PROT_WRITE), ctypes.c_int(mmap.MAP_SHARED)
        size = ctypes.c_size_t(SIZE)
        address = libc.mmap(None, size, read_write, shared, ctypes.c_int(fd), ctypes.c_long(0))
        if address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "no shared memory for output")
        self._use(memoryview((ctypes.c_char * SIZE).from_address(address)).cast("B"))
        if self._address:
            libc.munmap(ctypes.c_void_p(self._address), size)
        self._address = address


class Stream(io.RawIOBase):
    """Standard output or standard error below the text: bytes wait in the outbox until they fill it."""

    def __init__(self, fd: int, box: Outbox) -> None:
        self.fd, self.box = fd, box
        self._index, self._start = fd - 1, ROOM * (fd - 1)
        self._at, self._end = self._start, self._start + ROOM
        self._lock = threading.RLock()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.fd

    def write(self, data: Any) -> int:
        size = data.nbytes if type(data) is memoryview else len(data)
        with self._lock:
            start = self._at
            end = start + size
            if end <= self._end:
                self.box.memory[start:end] = data
                self._at = end
                self.box.sizes[self._index] = end - self._start
                return size
            waiting = self.take()
        self._put(waiting)  # without the lock: a pipe that is full holds up only the thread that writes to it
        self._put(data)
        return size

    def flush(self) -> None:
        """Writes what waits to the pipe."""
        super().flush()
        self._put(self.take())

    def take(self) -> bytes:
        """What waits, which then waits no more."""
        if self._at == self._start:
            return b""
        with self._lock:
            waiting = bytes(self.box.memory[self._start : self._at])
            self._at = self._start
            self.box.sizes[self._index] = 0
        return waiting

    def leave(self) -> None:
        """In a process that the program forked: what waits is its parent's to write, and nothing waits from now on."""
        self._lock = threading.RLock()
        self._at = self._end = self._start

    def come_back(self) -> None:
        """In a branch, which has its own outbox."""
        self._end = self._start + ROOM

    def _put(self, data: Any) -> None:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += os.write(self.fd, view[done:])


class Text(io.TextIOWrapper):
    """Standard output or error, distinguished from anything that a program puts in its place."""

    def __init__(self, fd: int, box: Outbox) -> None:
        self.stream = Stream(fd, box)
        super().__init__(
            cast(Any, self.stream), encoding="utf-8", errors="backslashreplace", newline="\n", write_through=True
        )
