"""Which slots hold the beginning of which prompts, so that what several conversations share is read once.

A prompt is read from its start in chunks of fixed length, and a chunk's keys depend on its own tokens and those before
it only. So the keys of an equal chunk after equal chunks are equal to the last bit, wherever they were read, and can be
copied.
"""

from __future__ import annotations

import hashlib

import numpy as np


def digests(tokens: np.ndarray, chunk: int) -> list[bytes]:
    """A name for each chunk of a prompt `[N]`, equal for equal tokens up to and with the chunk."""
    names, before = [], b""
    for start in range(0, len(tokens), chunk):
        piece = np.ascontiguousarray(tokens[start : start + chunk], np.int64)
        before = hashlib.blake2b(before + piece.tobytes(), digest_size=16).digest()
        names.append(before)
    return names


class Prompts:
    """The chunks that are held, and by which slot."""

    def __init__(self) -> None:
        self._holders: dict[bytes, dict[int, None]] = {}
        self._held: dict[int, list[bytes]] = {}

    def add(self, slot: int, name: bytes) -> None:
        """A slot holds a chunk, and those before it."""
        self._holders.setdefault(name, {})[slot] = None
        self._held.setdefault(slot, []).append(name)

    def holder(self, name: bytes) -> int | None:
        """A slot that holds a chunk, or None."""
        return next(iter(self._holders.get(name, ())), None)

    def holds(self, slot: int, name: bytes) -> bool:
        """Whether a slot holds a chunk."""
        return slot in self._holders.get(name, ())

    def forget(self, slot: int) -> None:
        """A slot is to be written anew."""
        for name in self._held.pop(slot, ()):
            holders = self._holders[name]
            del holders[slot]
            if not holders:
                del self._holders[name]

    def clear(self) -> None:
        """Nothing is held any more."""
        self._holders.clear()
        self._held.clear()
