"""What the supervisor remembers of the host's sessions and of the runs in progress. Runs inside the sandbox."""

from __future__ import annotations

import time
from typing import Any

from polyturn.sandbox.inside.interpreter import Interpreter
from polyturn.sandbox.inside.loop import Peer


class Call:
    """A run in progress."""

    __slots__ = (
        "cpu", "cpu_limit", "crowded", "deadline", "id", "peer", "start", "stopped_for", "token", "why",
    )  # fmt: skip

    def __init__(self, peer: Peer, number: int, token: bytes, wall: float, cpu: float) -> None:
        self.peer, self.id, self.token = peer, number, token
        self.start = time.monotonic()
        self.deadline = self.start + wall
        self.cpu_limit = cpu
        self.cpu = 0.0
        self.stopped_for = ""  # the status for which it was interrupted
        self.crowded = False
        self.why = ""


class SessionRecord:
    """What the host holds: an interpreter now, perhaps another one after a kill."""

    def __init__(self, number: int, limits: dict[str, Any], seed: int) -> None:
        self.number, self.limits, self.seed = number, limits, seed
        self.child: Interpreter | None = None
        self.call: Call | None = None
        self.runs = 0
        self.held: tuple[Call, dict[str, Any]] | None = None  # a run's answer, until its files have been measured
        self.lost = ""  # why its state is gone, until it has been reported to the host
        self.opening: tuple[Peer, int] | None = None
        self.branch: SessionRecord | None = None  # is being forked off this one
        self.origin: SessionRecord | None = None  # this one is being forked off that one
        self.forked_off: Interpreter | None = None  # whose folder gets another name before this session is used

    @property
    def busy(self) -> bool:
        """Whether a run or a fork of it is not answered yet."""
        return self.call is not None or self.held is not None or self.branch is not None

    def blame(self, why: str) -> None:
        """Notes why its interpreter is about to be killed."""
        if self.call is not None:
            self.call.why = why
        else:
            self.lost = why
