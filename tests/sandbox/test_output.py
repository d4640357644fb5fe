"""What a run printed belongs to that run: none of it is lost, and none of it reaches the next one."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator

import pytest

from polyturn.sandbox import Limits, Sandbox, Session, Status, open_sandbox

LIMITS = Limits(wall_s=20.0, memory_mb=256, output_stop_bytes=1 << 20)


@pytest.fixture(scope="module", params=[pytest.param("docker", marks=pytest.mark.docker), "local"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        opened = open_sandbox(request.param, sessions=16, spares=0, preload=())
    with opened:
        yield opened


@pytest.fixture
def session(sandbox: Sandbox) -> Iterator[Session]:
    opened = sandbox.open(LIMITS)
    yield opened
    opened.close()


FLOODS = {
    "one print": "print('z' * 3_000_000)",
    "raw writes": "import os\nwhile True: os.write(1, b'z' * 50_000)",
    "one raw write": "import os; os.write(1, b'z' * 3_000_000)",
    "standard error": "import sys\nwhile True: sys.stderr.write('z' * 10_000)",
    "both": "import os\nwhile True: os.write(1, b'z' * 999); os.write(2, b'z' * 999)",
    "a larger pipe": "import fcntl, os\nfcntl.fcntl(1, 1031, 1 << 20)\nwhile True: os.write(1, b'z' * 50_000)",
    "a copy of the descriptor": "import os\nkept = os.dup(1)\nwhile True: os.write(kept, b'z' * 50_000)",
}


@pytest.mark.parametrize("program", FLOODS.values(), ids=FLOODS)
def test_a_flood_is_not_handed_to_the_next_run(session: Session, program: str) -> None:
    session.run("x = 41")
    flooded = session.run(program)
    assert (flooded.status, flooded.state_lost, flooded.truncated) == (Status.OUTPUT_LIMIT, False, True)
    for _ in range(3):
        result = session.run("import sys\nprint('honest')\nprint('too', file=sys.stderr)\nx + 1")
        assert (result.status, result.stdout, result.stderr, result.value) == (Status.OK, "honest\n", "too\n", "42")
        assert not result.truncated


THREADS = {
    "in a loop": "def flood():\n  while True: os.write(1, b'z' * 50_000)",
    "in one write": "def flood(): os.write(1, b'z' * 9_000_000)",
    "to standard error": "def flood():\n  while True: print('z' * 9000, file=sys.stderr)",
}


@pytest.mark.parametrize("program", THREADS.values(), ids=THREADS)
def test_threads_that_flood_end_with_the_interpreter(session: Session, program: str) -> None:
    """Interrupting the program does not stop its threads, so nothing less than a new interpreter would be silent."""
    start = f"import os, sys, threading, time\n{program}\nthreading.Thread(target=flood, daemon=True).start()\n"
    flooded = session.run(start + "time.sleep(15)")
    assert (flooded.status, flooded.state_lost) == (Status.OUTPUT_LIMIT, True)
    result = session.run("print('honest')")
    assert (result.status, result.stdout, result.stderr) == (Status.OK, "honest\n", "")


def test_processes_left_by_a_run_cannot_write_into_the_next(sandbox: Sandbox, session: Session) -> None:
    """Each run leaves a process that writes without end; the next run starts at once, on its own pipes."""
    if not sandbox.capabilities.fork:
        pytest.skip("programs cannot start processes here")
    leave = "import os\nif os.fork() == 0:\n  while True: os.write(1, b'z')\nkept = os.dup(1)"
    for _ in range(10):
        assert session.run(leave).ok
        assert session.run("print('honest')").stdout == "honest\n"
    assert session.run("os.write(kept, b'still its output')").stdout == "still its output"


def test_what_threads_print_between_runs_is_dropped_even_if_it_was_not_flushed(session: Session) -> None:
    """Python keeps some KiB of text before it writes: these must not come out in a later run either."""
    session.run(
        "import threading, time\nt = threading.Thread(target=lambda: (time.sleep(0.2), print('late')))\nt.start()"
    )
    time.sleep(0.5)
    assert session.run("t.join(); print('mine')").stdout == "mine\n"


def test_output_in_a_larger_pipe_is_read_before_the_answer_counts(session: Session) -> None:
    """A program may make its pipe as large as 1 MiB and fill it just before it ends."""
    result = session.run(
        "import fcntl, os\nfcntl.fcntl(1, 1031, 1 << 20)\nos.write(1, b'a' * 900_000)\nos.write(1, b'end')"
    )
    assert (result.status, result.stdout[-4:], result.truncated) == (Status.OK, "aend", True)
    assert session.run("print('honest')").stdout == "honest\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("end", ["", "\n1 / 0", "\nraise SystemExit(3)"])
def test_a_stream_that_the_program_put_in_place_of_its_own_is_flushed_with_the_run(
    session: Session, stream: str, end: str
) -> None:
    """As after `sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")`, which keeps what is printed."""
    assert session.run(f"import io, sys\nsys.{stream} = io.TextIOWrapper(sys.{stream}.buffer, encoding='utf-8')").ok
    for number in range(3):
        result = session.run(f"print({number}, file=sys.{stream}){end}")
        assert getattr(result, stream) == f"{number}\n"


def test_a_stream_that_cannot_be_flushed_harms_nothing(session: Session) -> None:
    bad = "class Bad:\n  def write(self, text): return len(text)\n  def flush(self): raise SystemExit(4)\n"
    assert session.run(f"import sys\n{bad}x = 1; sys.stdout = Bad()").status in (Status.OK, Status.ERROR)
    assert session.run("sys.stdout = sys.__stdout__; x").value == "1"
    forever = bad.replace("raise SystemExit(4)", "while_true()") + "def while_true():\n  while True: pass\n"
    assert session.run(f"{forever}sys.stdout = Bad()", wall_s=0.3).status is Status.TIMEOUT
