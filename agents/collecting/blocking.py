"""Asynchronous inside, plain outside: runs coroutines to their end, also where an event loop is already running."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

_T = TypeVar("_T")


class LoopInterrupted(Exception):
    """Carries a KeyboardInterrupt raised by an agent (a person who left) out of an event loop.

    Left to itself it would tear the loop down, and with it whatever else lives there.
    """


class LoopThread:
    """An event loop in a thread of its own, where agents that must be awaited live. Started at the first use."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def run(self, work: Callable[[], Awaitable[_T]], timeout: float | None = None) -> _T:
        """Runs what `work` returns to its end and gives its value; callable from many threads at once.

        Raises:
            TimeoutError: It was still waiting after `timeout` seconds.
        """

        async def awaited() -> _T:
            try:
                return await asyncio.wait_for(work(), timeout)
            except KeyboardInterrupt as stop:
                raise LoopInterrupted(*stop.args) from None

        try:
            return self._start(awaited).result()
        except LoopInterrupted as left:
            raise KeyboardInterrupt(*left.args) from None

    async def awaited(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """`run` for asyncio callers, in whatever loop they live; cancelling them cancels the work."""
        return await asyncio.wrap_future(self._start(work))

    def _start(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> Future[_T]:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="polyturn-loop", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(work(), self._loop)


def block(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Runs a coroutine to its end, also where an event loop is already running (notebooks)."""
    outer, inside = None, True
    try:
        outer = asyncio.current_task()
    except RuntimeError:
        inside = False
    if not inside:
        return _run(work)
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()

    async def announced() -> _T:
        task = asyncio.current_task()
        assert task is not None
        started.set_result((asyncio.get_running_loop(), task))
        return await work()

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="polyturn-collect") as pool:
        result = pool.submit(_run, announced)
        try:
            # Ctrl-C reaches this thread alone, as an exception or as a request to the loop that waits for us.
            while not wait([result], timeout=0.1).done:
                if outer is not None and outer.cancelling():
                    raise asyncio.CancelledError
            return result.result()
        except BaseException:
            if not result.done():
                loop, task = started.result()
                loop.call_soon_threadsafe(task.cancel)
            raise


def _run(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    try:
        return asyncio.run(work())
    except BaseExceptionGroup as errors:  # a task group wraps even a single error
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        if isinstance(first, LoopInterrupted):
            raise KeyboardInterrupt(*first.args) from None
        raise first from first.__cause__
