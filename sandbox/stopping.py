"""SIGTERM as Ctrl-C: schedulers and containers stop a program with it, and what can be saved is saved."""

from __future__ import annotations

import signal
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM


class SigtermAsCtrlC:
    """A handler of SIGTERM that does what Ctrl-C would do at that moment, and remembers that it was SIGTERM.

    Attributes:
        received: Whether SIGTERM came.
    """

    def __init__(self) -> None:
        self.received = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handles the signal."""
        self.received = True
        if callable(signal.getsignal(signal.SIGINT)):
            signal.raise_signal(signal.SIGINT)
        else:  # a shell's background jobs ignore SIGINT, and would ignore this too
            raise KeyboardInterrupt
