"""What the supervisor knows of one interpreter. Runs inside."""

from __future__ import annotations

import os
import socket
from typing import Any

from polyturn.sandbox.inside.capture import Capture
from polyturn.sandbox.inside.outbox import SharedOutbox


class Family:
    """Interpreters forked from one another: they share a user id."""

    def __init__(self, uid: int | None) -> None:
        self.uid = uid
        self.members = 0  # interpreters alive or not yet swept up after
        self.tainted = False  # something of theirs may be left: their user id is used again last


class Interpreter:
    """One interpreter: its channel, its pipes, its process group."""

    def __init__(
        self, control: socket.socket, out: int, err: int, box: SharedOutbox, family: Family, limits: dict[str, Any],
        above: str,
    ) -> None:  # fmt: skip
        self.control, self.out, self.err, self.box, self.family, self.limits = control, out, err, box, family, limits
        self.area = os.path.join(above, os.urandom(12).hex())
        self.folder = os.path.join(self.area, os.urandom(12).hex())
        self.attempts = 0  # at emptying the folder
        self.fd = control.fileno()
        self.asked_for = False  # of the zygote, which may have begun to make it
        self.pid = 0  # known once it said hello
        self.captures = {out: Capture(limits["output_bytes"]), err: Capture(limits["output_bytes"])}
        self.muted: set[int] = set()  # pipes not listened to
        self.shared = False  # other processes may hold its pipes: the next run gets new ones
        self.incoming, self.outgoing = bytearray(), bytearray()
        self.session: Any = None
        self.dead = self.killed = False
        self.idle_cpu = 0.0
        self.surveyed = 0  # the number of the survey of its folder that is under way
        self.shown = self.files = 0  # bytes and entries in its folder, when that was last measured
        self.grown = 0  # bytes by which the shared disk grew while it worked
        self.due = False  # its folder must be measured anew: the survey that is under way began before its run ended
        self.lowered = False  # its priority, for what it used in a run
        self.first_size = 0  # bytes of address space when it was born
        self.twins: list[Interpreter] = []  # being forked off it: of its process group until they say hello
