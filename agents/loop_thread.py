"""An event loop in a thread of its own, where what must be awaited lives beside code that is not asynchronous."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

_T = TypeVar("_T")


class LoopInterrupted(Exception):
    """Carries a KeyboardInterrupt raised by an agent (a person at the terminal who left) out of an event loop.

    Otherwise it would end the loop, and with it everything else that runs there.
    """


# Loops of the parent process in a forked child: to close one there would change the parent's, which it shares.
_of_the_parent: list[object] = []


class LoopThread:
    """An event loop in a thread of its own, where agents that must be awaited live.

    It is started at the first use, once in each process, and ends when it is closed or nothing refers to this object
    any more. After a fork the child starts its own.

    Args:
        before_end: Called in the loop before it ends, to close what lives there.
    """

    def __init__(self, before_end: Callable[[], Awaitable[object]] | None = None) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._before_end = before_end
        self._end: weakref.finalize[Any, Any] | None = None

    def close(self) -> None:
        """Ends the thread and gives its descriptors back; the next use starts a new one."""
        with self._lock:
            end, self._end, self._loop = self._end, None, None
        if end is not None and self._pid == os.getpid():
            thread = end()
            if isinstance(thread, threading.Thread) and thread is not threading.current_thread():
                thread.join()

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
        """`run` for asyncio callers in any loop; cancelling the caller cancels the work."""
        return await asyncio.wrap_future(self._start(work))

    def _start(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> Future[_T]:
        if self._pid != os.getpid():  # the thread, and what holds the lock, stayed in the parent
            if self._end is not None:
                self._end.detach()
            _of_the_parent.append(self._loop)
            self._loop, self._lock, self._pid = None, threading.Lock(), os.getpid()
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_live, args=(self._loop,), name="polyturn-loop", daemon=True)
                thread.start()
                self._end = weakref.finalize(self, _stop, self._loop, thread, self._before_end, self._pid)
                self._end.atexit = False
            return asyncio.run_coroutine_threadsafe(work(), self._loop)


def _live(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _stop(
    loop: asyncio.AbstractEventLoop,
    thread: threading.Thread,
    before: Callable[[], Awaitable[object]] | None,
    pid: int,
) -> threading.Thread | None:
    """Asks a loop to end; returns its thread. Waits for nothing, since garbage is collected in any thread."""
    if pid != os.getpid():
        _of_the_parent.append(loop)
        return None

    async def end() -> None:
        try:
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            if before is not None:
                with contextlib.suppress(Exception):
                    await before()
            await loop.shutdown_asyncgens()
        finally:
            loop.stop()

    with contextlib.suppress(RuntimeError):  # it has ended already
        loop.call_soon_threadsafe(lambda: loop.create_task(end()))
    return thread
