"""Asynchronous inside, plain outside: runs coroutines to their end, also where an event loop is already running; and
what may wait without being awaitable in threads."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import Any, TypeVar

from polyturn.agents.loop_thread import LoopInterrupted

_T = TypeVar("_T")


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
    except BaseExceptionGroup as errors:
        first = first_of(errors)
        if isinstance(first, LoopInterrupted):
            raise KeyboardInterrupt(*first.args) from None
        raise first from first.__cause__


def first_of(errors: BaseExceptionGroup) -> BaseException:
    """The first error of a task group, which wraps even a single one."""
    first: BaseException = errors
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
