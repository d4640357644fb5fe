"""Calls with a limit on time, in a thread: a slow tool costs the agent its call and never stops an episode."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class CallTimeout(Exception):
    """The call has not returned within its limit."""


class _Job:
    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.done = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None


class Caller:
    """Runs calls one after another in one thread, so that objects which belong to a thread (SQLite's) work.

    Python cannot stop a thread. A call that exceeds its limit is left behind in a daemon thread; until it returns,
    further calls of this caller fail at once, as two calls at a time could break the object that they work on.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] | None = None
        self._late: _Job | None = None

    def run(self, call: Callable[[], T], limit_s: float) -> T:
        """The result of a call; what it raises is raised here.

        Raises:
            CallTimeout: It has not returned after `limit_s` seconds, or an earlier one has not returned yet.
        """
        if self._late is not None:
            if not self._late.done.is_set():
                raise CallTimeout("an earlier call has not returned yet")
            self._late = None
        if self._jobs is None:
            self._jobs = SimpleQueue()
            threading.Thread(target=_work, args=(self._jobs,), daemon=True, name="polyturn-tool").start()
        job = _Job(call)
        self._jobs.put(job)
        if not job.done.wait(limit_s):
            self._late = job
            raise CallTimeout(f"stopped after {limit_s:g} s")
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    def close(self) -> None:
        """Lets the thread end after its present call."""
        if self._jobs is not None:
            self._jobs.put(None)
            self._jobs = None


def _work(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        try:
            job.result = job.call()
        except BaseException as error:  # SystemExit of a tool must not end the thread unseen
            job.error = error
        job.done.set()
