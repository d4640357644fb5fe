"""Ctrl-C and SIGTERM as a request to stop after the current step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from tqdm.auto import tqdm

from polyturn.sandbox.stopping import SigtermAsCtrlC


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop; what was learned is saved where the message says."""


class Interruptions:
    """Within `with`: notes the first SIGINT or SIGTERM; the second stops at once, like Python's own Ctrl-C.

    An update must not be cut in the middle, or its half would be saved. Off the main thread, where signals cannot be
    caught, it does nothing.

    Attributes:
        received: Whether one came.
    """

    def __init__(self) -> None:
        self.received = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruptions:
        if threading.current_thread() is threading.main_thread():
            # Under the command line SIGTERM becomes a SIGINT by itself.
            ours = isinstance(signal.getsignal(signal.SIGTERM), SigtermAsCtrlC)
            for number in (signal.SIGINT,) if ours else (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True
        tqdm.write("stopping after this step, then saving; once more to stop at once and lose it")
