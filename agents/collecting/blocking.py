"""Asynchronous inside, plain outside: runs coroutines to their end, also where an event loop is already running; and
what may wait without being awaitable in threads."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
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


_Call = tuple[Callable[[], Any], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]


class Lane:
    """A thread in which one environment lives, and the agent that acts in it: all calls are made there, one by one.

    Some libraries (browsers, databases, simulators) may only be used in the thread that opened them. The thread is
    started at the first call and is a daemon, so that a call that never returns keeps no process alive.

    Attributes:
        busy: Whether a call is being made.
    """

    _numbers = itertools.count(1)

    def __init__(self, name: str = "polyturn-env") -> None:
        self.busy = False
        self._name = name
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._started = False

    async def run(self, function: Callable[[], _T]) -> _T:
        """Calls `function` in the thread; cancelling this does not stop the call.

        Raises:
            LoopInterrupted: The function raised KeyboardInterrupt.
            RuntimeError: It raised SystemExit or StopIteration, which no coroutine can pass on.
        """
        loop = asyncio.get_running_loop()
        result: asyncio.Future[_T] = loop.create_future()
        if not self._started:
            self._started = True
            name = f"{self._name}-{next(self._numbers)}"
            threading.Thread(target=_serve, args=(self, self._calls), name=name, daemon=True).start()
        self._calls.put((function, loop, result))
        return await result

    def close(self) -> None:
        """Ends the thread after the calls that were asked for."""
        self._calls.put(None)


def _serve(lane: Lane, calls: SimpleQueue[_Call | None]) -> None:
    while (call := calls.get()) is not None:
        function, loop, result = call
        lane.busy = True
        value: Any = None
        error: BaseException | None = None
        try:
            value = function()
        except KeyboardInterrupt as stop:
            error = LoopInterrupted(*stop.args)
        except (SystemExit, StopIteration) as stop:
            error = RuntimeError(f"{type(stop).__name__}({stop}) was raised where an ordinary exception was expected")
            error.__cause__ = stop
        except BaseException as failure:
            error = failure
        lane.busy = False
        with contextlib.suppress(RuntimeError):  # the loop is closed: what waited was cancelled
            loop.call_soon_threadsafe(_settle, result, value, error)
        del call, function, result, value, error


def _settle(result: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if result.done():
        return
    if error is None:
        result.set_result(value)
    else:
        result.set_exception(error)


async def call(function: Callable[[], Any], lane: Lane | None, *, timeout: float | None = None) -> Any:
    """Calls a function that may wait, and awaits what it returns if that can be awaited.

    Args:
        function: What to call.
        lane: The thread in which to call it; None: here, for what is known to return at once.
        timeout: Seconds for all of it; None for no limit.

    Raises:
        TimeoutError: It took longer.
    """

    async def called() -> Any:
        result = function() if lane is None else await lane.run(function)
        return await result if inspect.isawaitable(result) else result

    return await (called() if timeout is None else asyncio.wait_for(called(), timeout))


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
            # Ctrl-C reaches only this thread, as an exception or as a request to the loop that waits for us.
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
