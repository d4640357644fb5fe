"""The pool over stand-in servers: who gets the next place, what a sick server costs, who waits and for how long."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from typing import Any

import pytest

from polyturn.sandbox.pool import Pool
from polyturn.sandbox.sandbox import Capabilities, Limits, SandboxError, SandboxLost, SandboxUnavailable
from polyturn.sandbox.server import Server

CAPABILITIES = Capabilities("stand-in", True, True, True, True, True, True, True, True)


class Wire:
    """A link whose far end answers at once, until it is cut."""

    def __init__(self) -> None:
        self.cut = False
        self.sessions = 0
        self.closed: list[int] = []

    def call(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        if self.cut:
            raise SandboxLost("the sandbox ended")
        self.sessions += request["op"] == "open"
        if request["op"] == "close":
            self.closed.append(request["s"])
        return {"s": self.sessions, "status": "ok", "value": "1"}

    async def acall(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        return self.call(request, timeout)

    def close(self) -> None:
        self.cut = True


class Engine:
    """Starts stand-in servers and counts them."""

    def __init__(self, capacity: int = 2, broken: bool = False) -> None:
        self.capacity, self.broken = capacity, broken
        self.wires: list[Wire] = []
        self.stopped = 0

    def __call__(self) -> Server:
        if self.broken:
            raise SandboxUnavailable("no Docker engine answers")
        wire = Wire()
        self.wires.append(wire)

        def stop() -> None:
            self.stopped += 1

        return Server(f"server {len(self.wires)}", wire, stop, self.capacity)


def test_sessions_fill_one_server_before_another_is_started() -> None:
    engine = Engine(capacity=2)
    with Pool([engine], CAPABILITIES, servers=3) as pool:
        sessions = [pool.open() for _ in range(4)]
        assert [wire.sessions for wire in engine.wires] == [2, 2]
        sessions[0].close()
        sessions[0] = pool.open()
        assert [wire.sessions for wire in engine.wires] == [3, 2]
    assert engine.stopped == 2


def test_servers_spread_over_engines() -> None:
    engines = [Engine(capacity=1), Engine(capacity=1)]
    with Pool(engines, CAPABILITIES, servers=4) as pool:
        kept = [pool.open() for _ in range(4)]
        assert len(kept) == 4
        assert [len(engine.wires) for engine in engines] == [2, 2]


def test_an_engine_that_does_not_answer_is_passed_over() -> None:
    good = Engine()
    with Pool([Engine(broken=True), good], CAPABILITIES, servers=2) as pool:
        pool.open()
        assert len(good.wires) == 1
    with pytest.raises(SandboxUnavailable, match="no Docker engine answers"):
        Pool([Engine(broken=True)], CAPABILITIES).open()


def test_a_lost_server_is_replaced_and_the_others_keep_their_sessions() -> None:
    engine = Engine(capacity=1)
    with Pool([engine], CAPABILITIES, servers=2) as pool:
        lost, kept = pool.open(), pool.open()
        engine.wires[0].cut = True
        with pytest.raises(SandboxLost, match="server 1"):
            lost.run("1")
        assert kept.run("1").value == "1"
        assert pool.open().run("1").value == "1"
        assert len(engine.wires) == 3


def test_opening_on_a_server_that_just_died_tries_another() -> None:
    engine = Engine(capacity=4)
    with Pool([engine], CAPABILITIES) as pool:
        pool.open()
        engine.wires[0].cut = True
        assert pool.open().run("1").value == "1"


def test_the_full_pool_serves_waiting_callers_in_order() -> None:
    engine = Engine(capacity=1)
    order: list[int] = []
    with Pool([engine], CAPABILITIES, servers=1) as pool:
        first = pool.open()

        def wait(number: int) -> None:
            session = pool.open()
            order.append(number)
            session.close()

        threads = []
        for number in range(5):
            threads.append(threading.Thread(target=wait, args=(number,)))
            threads[-1].start()
            while len(pool._queue) < number + 1:
                time.sleep(0.001)
        assert order == []
        first.close()
        for thread in threads:
            thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_waiting_for_room_ends_with_an_error_that_says_what_to_do() -> None:
    with Pool([Engine(capacity=1)], CAPABILITIES, wait_s=0.05) as pool:
        kept = pool.open()
        with pytest.raises(SandboxUnavailable, match="close sessions"):
            pool.open()
        assert len(pool._queue) == 0
        kept.close()


def test_closing_the_pool_wakes_waiting_callers() -> None:
    pool = Pool([Engine(capacity=1)], CAPABILITIES)
    kept = pool.open()
    problems: list[str] = []

    def wait() -> None:
        try:
            pool.open()
        except SandboxError as error:
            problems.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    while not pool._queue:
        time.sleep(0.001)
    pool.close()
    thread.join()
    assert problems == ["the sandbox is closed"]
    pool.close()
    kept.close()


def test_servers_long_empty_are_closed_save_one() -> None:
    engine = Engine(capacity=1)
    with Pool([engine], CAPABILITIES, servers=3, spare_s=0.1) as pool:
        sessions = [pool.open() for _ in range(3)]
        for session in sessions:
            session.close()
        deadline = time.monotonic() + 20
        while len(pool.servers) > 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(pool.servers) == 1
        assert engine.stopped == 2


def test_closing_a_session_twice_frees_one_place() -> None:
    engine = Engine(capacity=1)
    with Pool([engine], CAPABILITIES, servers=2) as pool:
        session = pool.open(Limits())
        session.close()
        session.close()
        kept = [pool.open()]
        assert len(engine.wires) == 1
        kept.append(pool.open())
        assert len(engine.wires) == 2


def test_a_session_that_comes_after_its_caller_was_cancelled_is_closed() -> None:
    engine = Engine()
    pool = Pool([engine], CAPABILITIES)
    pool.start()

    async def cancelled() -> None:
        opening = asyncio.create_task(pool.aopen())
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening

    asyncio.run(cancelled())
    deadline = time.monotonic() + 10
    while any(pool._used.values()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(pool._used.values()) == [0]
    assert engine.wires[0].sessions == 1
    pool.close()


def test_a_session_that_is_dropped_without_close_frees_its_place() -> None:
    """Also inside a circle of references, which only the collector finds; and nothing is closed twice."""
    engine = Engine(capacity=1)
    with Pool([engine], CAPABILITIES, wait_s=20) as pool:
        pool.open()  # dropped at once
        second: Any = pool.open()
        circle = [second]
        second.circle = circle
        del second, circle
        gc.collect()
        third = pool.open()
        third.close()
        del third
        gc.collect()
        pool.open()
        deadline = time.monotonic() + 10
        while len(engine.wires[0].closed) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert engine.wires[0].closed == [1, 2, 3, 4]


def test_dropping_a_session_takes_no_lock_in_the_thread_that_drops_it() -> None:
    """The collector of garbage may run while the pool's own lock is held."""
    engine = Engine(capacity=2)
    with Pool([engine], CAPABILITIES) as pool:
        session = pool.open()
        with pool._lock:
            del session
            gc.collect()
        deadline = time.monotonic() + 10
        while any(pool._used.values()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert list(pool._used.values()) == [0]
