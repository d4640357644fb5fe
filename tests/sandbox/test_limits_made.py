"""Limits and options are checked when they are made, and no request, however ill-formed, ends another session."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy
import pytest

from polyturn.sandbox import Limits, Sandbox, SandboxError, Session, open_sandbox
from polyturn.sandbox.inside.loop import Loop
from polyturn.sandbox.link import FrameReader, SocketLink, encode
from polyturn.sandbox.pool import Pool

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "name",
    ["wall_s", "cpu_s", "memory_mb", "processes", "branches", "output_bytes", "output_stop_bytes", "disk_mb", "files",
     "source_bytes"],
)  # fmt: skip
def test_every_number_is_checked_when_limits_are_made(name: str) -> None:
    for wrong in ("5", b"5", [5], 5j, True, NAN, INF, -INF, -1, 10**30):
        with pytest.raises((TypeError, ValueError), match=f"^{name} is a (whole )?number from .* to .*, not "):
            Limits(**{name: wrong})
    if name not in ("wall_s", "cpu_s"):
        with pytest.raises(TypeError, match="whole number"):
            Limits(**{name: 64.5})
    if name != "cpu_s":
        with pytest.raises(TypeError, match="not None"):
            Limits(**{name: None})


def test_the_edges_of_every_range_are_allowed() -> None:
    """The ranges as `BOUNDS` states them, written out again by hand."""
    week = 604_800
    ranges = {
        "wall_s": (0.001, week), "cpu_s": (0.001, week), "memory_mb": (1, 16_777_216), "processes": (1, 4096),
        "branches": (0, 4096), "output_bytes": (1, 1_048_576), "output_stop_bytes": (1, 1_073_741_824),
        "disk_mb": (0, 16_777_216), "files": (16, 4096), "source_bytes": (1, 8_388_608),
    }  # fmt: skip
    for name, (least, most) in ranges.items():
        for value in (least, most):
            assert getattr(Limits(**{name: value}), name) == value  # type: ignore[arg-type]
        step = 0.0005 if isinstance(least, float) else 1
        for value in (least - step, most + step):
            with pytest.raises(ValueError, match=name):
                Limits(**{name: value})  # type: ignore[arg-type]


def test_the_defaults_are_the_ones_that_the_documentation_states() -> None:
    assert asdict(Limits()) == {
        "wall_s": 5.0, "cpu_s": None, "memory_mb": 512, "processes": 16, "branches": 16, "programs": False,
        "output_bytes": 16_384, "output_stop_bytes": 4_194_304, "disk_mb": 16, "files": 64, "source_bytes": 1_048_576,
    }  # fmt: skip


def test_numbers_of_numpy_become_plain_ones_and_limits_stay_values() -> None:
    limits = Limits(wall_s=numpy.float32(2.5), memory_mb=numpy.int64(99), cpu_s=3)  # type: ignore[arg-type]
    assert (type(limits.wall_s), type(limits.memory_mb), type(limits.cpu_s)) == (float, int, float)
    assert (limits.wall_s, limits.memory_mb) == (2.5, 99)
    assert pickle.loads(pickle.dumps(limits)) == limits == replace(limits)


def test_a_misspelt_limit_is_named_with_the_one_that_was_meant() -> None:
    with pytest.raises(TypeError, match=r"Limits has no 'memory'; it has: wall_s, .*did you mean 'memory_mb'\?"):
        Limits(memory=512)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="programs is True or False, not 1"):
        Limits(programs=1)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=[pytest.param("docker", marks=pytest.mark.docker), "local"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        opened = open_sandbox(request.param, sessions=16, spares=0, preload=())
    with opened:
        yield opened


@pytest.fixture
def session(sandbox: Sandbox) -> Iterator[Session]:
    opened = sandbox.open(Limits(wall_s=20.0, memory_mb=256))
    yield opened
    opened.close()


def test_what_a_call_is_given_is_checked_before_it_is_sent(sandbox: Sandbox, session: Session) -> None:
    session.run("x = 1")
    for wrong in ("5", True, NAN, INF, 0, -1):
        with pytest.raises((TypeError, ValueError), match="wall_s is a number from"):
            session.run("x", wall_s=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"a program is a text \(str\), not bytes"):
        session.run(b"x")  # type: ignore[arg-type]
    for seed in ("5", 1.5, None, 1 << 128):
        with pytest.raises((TypeError, ValueError), match="seed is a whole number"):
            sandbox.open(seed=seed)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="limits are Limits"):
        sandbox.open({"wall_s": 5})  # type: ignore[arg-type]
    assert session.run("x").value == "1"
    sandbox.open(seed=(1 << 128) - 1).close()


def frames(good: int) -> list[Any]:
    """Requests that no version of this package sends; `good` is a session that is open."""
    limits = asdict(Limits())
    opening: dict[str, Any] = {"op": "open", "seed": 0, "id": 1}
    run: dict[str, Any] = {"op": "run", "s": good, "code": "1", "wall": 5.0, "cpu": 5.0, "id": 1}
    return [
        [], "text", 5, None, {}, {"op": "run"}, {"id": 1}, {"op": "nothing", "id": 1}, {"op": "run", "id": 1},
        {"op": "run", "s": [], "id": 1}, {"op": "close", "s": {}, "id": 1}, {"op": "open", "id": 1},
        {"op": ["open"], "id": 1}, {"op": "ping", "id": [1]},
        *({**opening, "limits": {**limits, name: value}} for name in limits for value in ("5", None, -1, NAN, [])
          if name not in ("wall_s", "cpu_s", "source_bytes")),
        {**opening, "limits": {}}, {**opening, "limits": None}, {**opening, "limits": limits, "seed": "many"},
        *({**run, name: value} for name in ("code", "wall", "cpu") for value in (None, [], NAN, {"a": 1})),
        {**run, "code": 7}, {**run, "wall": "5"}, {**run, "cpu": "5"}, {**run, "wall": INF}, {**run, "s": 10**9},
    ]  # fmt: skip


def test_no_request_however_ill_formed_ends_a_session(sandbox: Sandbox, session: Session) -> None:
    """Sent beside the checks of this package, as by a program of another version; the session named in them lives."""
    assert isinstance(sandbox, Pool)
    link = sandbox.servers[0]._link
    if not isinstance(link, SocketLink):
        pytest.skip("no second connection to this sandbox")
    session.run("x = 41")
    other = sandbox.open()
    other.run("y = 1")
    before = sandbox.servers[0].ping()["sessions"]
    for frame in frames(other._number):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(link._path)
            reader = FrameReader(connection)
            connection.sendall(encode(frame))
            if isinstance(frame, dict) and frame.get("id") == 1:
                answer = reader.read(None)
                assert "fail" in answer, (frame, answer)
            assert session.run("x + 1").value == "42", frame
    assert other.run("y").value == "1"
    assert sandbox.servers[0].ping()["sessions"] == before
    for junk in (b"{" * 40, b"\xff" * 40):  # no JSON: the connection ends, nothing else
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(link._path)
            connection.sendall(struct.pack(">I", len(junk)) + junk)
            connection.settimeout(20)
            assert connection.recv(1) == b""
    assert session.run("x + 1").value == "42"
    other.close()


def test_a_refused_run_is_an_error_of_the_caller_and_no_loss(session: Session) -> None:
    """What the supervisor refuses says nothing about the infrastructure: the session goes on."""
    session.run("x = 1")
    broken = replace(session.limits)  # type: ignore[attr-defined]
    object.__setattr__(broken, "cpu_s", "5")
    good, session.limits = session.limits, broken  # type: ignore[attr-defined]
    with pytest.raises(SandboxError, match="refused: ValueError: '5'") as raised:
        session.run("x")
    assert type(raised.value) is SandboxError
    for wrong in (NAN, INF, -5, "5"):
        object.__setattr__(broken, "wall_s", wrong)
        with pytest.raises((TypeError, ValueError), match="wall_s is a number"):
            session.run("x")
    session.limits = good  # type: ignore[attr-defined]
    assert session.run("x").value == "1"


def test_an_exception_in_a_handler_or_a_timer_does_not_end_the_loop() -> None:
    loop = Loop()
    seen: list[object] = []
    near, far = os.pipe()
    os.write(far, b"x")

    def fail() -> None:
        raise ZeroDivisionError("a fault of ours")

    def handler(events: int) -> None:
        loop.forget(near)
        fail()

    def note(error: Exception, fd: int = -1) -> None:
        seen.append((type(error), fd))

    def stop() -> None:
        raise SystemExit

    loop.failed = note  # type: ignore[method-assign]
    loop.listen(near, handler)
    loop.after(0.0, fail)
    loop.after(0.05, stop)
    with pytest.raises(SystemExit):
        loop.run()
    assert sorted(seen, key=str) == [(ZeroDivisionError, -1), (ZeroDivisionError, near)]
    os.close(near)
    os.close(far)


@pytest.mark.parametrize(
    "option",
    [{"sessions": 0}, {"sessions": "8"}, {"spares": -1}, {"memory_mb": 0}, {"memory_mb": NAN}, {"cpus": 0},
     {"cpus": INF}, {"containers": 0}, {"wait_s": NAN}, {"wait_s": "1"}],
    ids=str,
)  # fmt: skip
@pytest.mark.docker
def test_options_of_a_docker_sandbox_are_checked_and_none_is_taken_for_the_default(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises((TypeError, ValueError), match=f"{name} is a (whole )?number from"):
        open_sandbox("docker", **option)


def test_options_of_a_local_sandbox_are_checked_and_misspelt_ones_named() -> None:
    for option in ({"sessions": 0}, {"work_mb": "9"}, {"servers": 0}, {"spares": NAN}):
        with pytest.raises((TypeError, ValueError), match=f"{next(iter(option))} is a whole number from"):
            open_sandbox("local", **option)
    with pytest.raises(TypeError, match="sandbox 'local' has no option 'runtime'; it has: level, "):
        open_sandbox("local", runtime="runsc")
    with pytest.raises(TypeError, match="did you mean 'memory_mb'"):
        open_sandbox("docker", memory=512)
