"""States of tools kept for snapshots in this process, so that an episode goes on from a fork instead of being replayed.

A snapshot is a JSON value, which a session of the sandbox is not. So the value says how to make the state again, and
the state itself, where it can be forked, is kept here under a digest of the value. What is not here any more, or was
kept in another process, is made again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from polyturn.envs.tools.kits import Kept, Opened
from polyturn.sandbox.sandbox import SandboxError

MOST_HELD = 64
"""States kept at once in a process; the oldest makes room."""


@dataclass
class Held:
    """The state of an episode's tools.

    Attributes:
        kits: Of each toolkit, in order.
        shown: What came back from the calls of each turn.
        made: Calls made so far.
    """

    kits: Sequence[Kept]
    shown: Sequence[str]
    made: int
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def open(self) -> list[Opened] | None:
        """Tools that go on from the state; None where a fork failed, as of a session whose branches are all in use."""
        opened: list[Opened] = []
        with self._lock:
            try:
                for kit in self.kits:
                    opened.append(kit.open())  # noqa: PERF401  # those opened before a failure are closed
            except SandboxError:
                for each in opened:
                    each.close()
                return None
        return opened

    def close(self) -> None:
        """Lets go of it."""
        with self._lock:
            for kit in self.kits:
                kit.close()


class HeldStates:
    """What is kept, by name."""

    def __init__(self, most: int = MOST_HELD) -> None:
        self._most = most
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def put(self, name: str, held: Held) -> None:
        """Keeps a state; one of the same name, or the oldest where there are too many, is let go of."""
        with self._lock:
            gone = [self._held.pop(name)] if name in self._held else []
            self._held[name] = held
            while len(self._held) > self._most:
                gone.append(self._held.popitem(last=False)[1])
        for each in gone:
            each.close()

    def get(self, name: str) -> Held | None:
        """The state of a name, or None."""
        with self._lock:
            return self._held.get(name)

    def drop(self, name: str) -> None:
        """Lets go of a state, where there is one."""
        with self._lock:
            held = self._held.pop(name, None)
        if held is not None:
            held.close()


HELD = HeldStates()
"""What this process keeps."""
