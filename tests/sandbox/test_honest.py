# ruff: noqa: E501 (one program a line reads better than a program folded)
"""What honest programs do and a strict sandbox easily gets wrong: sensible results, and messages that explain."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator

import pytest

from polyturn.sandbox import Limits, Sandbox, Session, Status, open_sandbox


@pytest.fixture(scope="module", params=[pytest.param("docker", marks=pytest.mark.docker), "local"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        opened = open_sandbox(request.param, sessions=16, spares=0)
    with opened:
        yield opened


@pytest.fixture
def session(sandbox: Sandbox) -> Iterator[Session]:
    opened = sandbox.open(Limits(wall_s=20.0, memory_mb=256))
    yield opened
    opened.close()


ENDS = {
    "null pointer": "import ctypes; ctypes.string_at(0)",
    "leaves at once": "import os; os._exit(3)",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "abort": "import os; os.abort()",
    "leaves from a thread": "import os, threading; t = threading.Thread(target=os._exit, args=(1,)); t.start(); t.join()",
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_what_was_printed_before_a_crash_is_kept(session: Session, end: str) -> None:
    session.run("print('an earlier run')")
    result = session.run(
        f"import sys\nprint('before'); print('too', file=sys.stderr); sys.stdout.write('half a li')\n{end}"
    )
    assert (result.status, result.stdout, result.stderr) == (Status.CRASH, "before\nhalf a li", "too\n")
    assert session.run("print('next')").stdout == "next\n"


def test_what_was_printed_before_a_kill_is_kept(session: Session) -> None:
    """The supervisor's own kill, after an interrupt that is ignored: without a flush, and beyond what waits in memory."""
    ignore = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    result = session.run(ignore + "print('kept')\nwhile True: pass", wall_s=0.2)
    assert (result.status, result.stdout) == (Status.TIMEOUT, "kept\n")
    result = session.run(ignore + "for i in range(3000): print(i)\nwhile True: pass", wall_s=0.2)
    assert result.stdout == "".join(f"{i}\n" for i in range(3000))


def test_output_comes_in_the_order_in_which_it_was_flushed(session: Session) -> None:
    text = "import os, sys\nprint('a', flush=True); os.write(1, b'b\\n'); print('c'); sys.stdout.flush(); os.write(1, b'd\\n')\nsys.stdout.buffer.write(b'e\\n'); print('f' * 9000); print('g')"
    assert session.run(text).stdout == f"a\nb\nc\nd\ne\n{'f' * 9000}\ng\n"


def test_a_forked_child_prints_what_it_prints_and_nothing_of_its_parent_twice(
    sandbox: Sandbox, session: Session
) -> None:
    if not sandbox.capabilities.fork:
        pytest.skip("programs cannot start processes here")
    result = session.run(
        "import os\nprint('parent')\nif os.fork() == 0:\n    print('child')\nelse:\n    os.wait()\n    print('end')"
    )
    assert sorted(result.stdout.split()) == ["child", "end", "parent"]
    branch_of = session.fork()
    assert branch_of.run("print('x'); import os; os._exit(0)").stdout == "x\n"
    assert session.run("print('y')").stdout == "y\n"
    branch_of.close()


@pytest.mark.parametrize(
    ("start", "handler"),
    [
        ("signal.setitimer(signal.ITIMER_REAL, 0.1)", "raise TimeoutError"),
        ("signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)", "raise SystemExit(3)"),
        ("signal.alarm(1)", ""),
        ("signal.setitimer(signal.ITIMER_REAL, 0.1)", ""),
        (
            "import os, threading; threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()",
            "raise ValueError",
        ),
        ("import faulthandler; faulthandler.dump_traceback_later(0.1, exit=True)", ""),
    ],
)
def test_an_alarm_left_running_does_not_end_the_session(session: Session, start: str, handler: str) -> None:
    """With a handler that raises, or none: the default is to end the process."""
    install = (
        f"def h(*a): {handler}\nfor n in (signal.SIGALRM, signal.SIGUSR1): signal.signal(n, h)\n" if handler else ""
    )
    assert session.run(f"import signal\n{install}x = 1\n{start}").ok
    time.sleep(1.2 if "alarm(1)" in start else 0.3)
    result = session.run("import time; time.sleep(0.2); x")
    assert (result.status, result.value, result.state_lost) == (Status.OK, "1", False)


@pytest.mark.parametrize("name", ["SIGALRM", "SIGPROF", "SIGUSR1", "SIGIO", "SIGRTMIN", "SIGTSTP", "SIGINT"])
def test_a_signal_of_default_action_between_runs_does_not_end_the_session(session: Session, name: str) -> None:
    """Sent by a thread that lives on from the run; within a run it does what Python does."""
    send = f"lambda: (time.sleep(0.1), os.kill(os.getpid(), signal.{name}))"
    start = f"signal.signal(signal.{name}, signal.SIG_DFL)\nthreading.Thread(target={send}).start()"
    assert session.run(f"import os, signal, threading, time\nx = 1\n{start}").ok
    time.sleep(0.3)
    result = session.run(f"x, threading.active_count(), signal.getsignal(signal.{name}) == signal.SIG_DFL")
    assert (result.status, result.value, result.state_lost) == (Status.OK, "(1, 1, True)", False)
    if name in ("SIGTSTP", "SIGINT"):
        return
    within = session.run(f"os.kill(os.getpid(), signal.{name}); time.sleep(5)")
    assert (within.status, within.state_lost) == (Status.CRASH, True)
    assert name in (within.error or "")


def test_a_timer_that_a_thread_starts_between_runs_does_not_end_the_session(session: Session) -> None:
    start = (
        "threading.Thread(target=lambda: (time.sleep(0.1), signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01))).start()"
    )
    assert session.run(f"import signal, threading, time\nx = 1\n{start}").ok
    time.sleep(0.3)
    result = session.run("signal.setitimer(signal.ITIMER_REAL, 0)\nx")
    assert (result.status, result.value) == (Status.OK, "1")


def test_an_alarm_within_a_run_works_and_its_handler_is_what_the_program_set(session: Session) -> None:
    result = session.run(
        "import signal, time\ndef h(*a): raise TimeoutError('late')\nbefore = signal.signal(signal.SIGALRM, h)\n"
        "again = signal.signal(signal.SIGALRM, h)\nsignal.setitimer(signal.ITIMER_REAL, 0.05)\ntry: time.sleep(5)\n"
        "except TimeoutError as error: print(error)\nbefore == signal.SIG_DFL, again is h, signal.getsignal(signal.SIGALRM) is h"
    )
    assert (result.stdout, result.value) == ("late\n", "(True, True, True)")
    later = "signal.setitimer(signal.ITIMER_REAL, 0.05)\ntime.sleep(5)"  # the handler of an earlier run
    assert "TimeoutError: late" in (session.run(later).error or "")


def test_a_tracer_left_running_does_not_end_the_session(session: Session) -> None:
    assert session.run("import sys\ndef t(*a): raise ValueError\nx = 1\nsys.setprofile(t)").status in (
        Status.OK,
        Status.ERROR,
    )
    assert session.run("x").value == "1"
    assert session.run("sys.settrace(t)").status in (Status.OK, Status.ERROR)
    assert session.run("x").value == "1"


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x0c", "\x0b", "\x1c", "\x85"])
def test_a_traceback_shows_the_line_that_python_counts(session: Session, odd: str) -> None:
    """Characters at which text splits into lines, and source code does not."""
    error = session.run(f"s = 'a{odd}b'  # {odd}\nx = 1\n1 / 0").error or ""
    assert '  File "<turn 1>", line 3, in <module>\n    1 / 0\n' in error
    assert session.run("a = 1\r\nb = 2\rc = 3\n1 / 0").error == error.replace("turn 1", "turn 2").replace(
        "line 3", "line 4"
    )


def test_a_byte_order_mark_is_no_part_of_the_program(session: Session) -> None:
    assert session.run("\ufeffprint('read')").stdout == "read\n"
    assert "U+FEFF" in (session.run("x = 1\n\ufeffy = 2").error or "")


def test_help_prints_the_documentation(session: Session) -> None:
    assert session.run("help(len)").stdout.startswith("Help on built-in function len")
    assert session.run("def f():\n    'What it does.'\nhelp(f)").stdout.endswith("What it does.\n\n")
    assert "write help(len)" in session.run("help()").stdout
    assert session.run("help('math.sqrt')").stdout.startswith("Help on built-in function sqrt")


@pytest.mark.parametrize(
    "program",
    [
        "import multiprocessing as m; m.Pool(2)",
        "import multiprocessing as m; m.Queue()",
        "import multiprocessing as m; m.Value('i', 1)",
        "import concurrent.futures as c\nwith c.ProcessPoolExecutor(2) as p: p.submit(abs, 1).result()",
    ],
)
def test_multiprocessing_says_why_it_cannot_be_had_and_what_can(session: Session, program: str) -> None:
    error = session.run(program).error or ""
    assert "this sandbox has none: use threads (concurrent.futures.ThreadPoolExecutor)" in error
    if "Value" not in program:  # there the error comes from a temporary file, and only the traceback explains it
        indented = program.replace("\n", "\n    ")
        caught = session.run(f"try:\n    {indented}\nexcept OSError as error: print(error)")
        assert "use threads" in caught.stdout


def test_threads_do_what_processes_cannot(session: Session) -> None:
    program = "from concurrent.futures import ThreadPoolExecutor as T\nwith T(2) as pool: print(list(pool.map(abs, [-1, -2])))"
    assert session.run(program).stdout == "[1, 2]\n"


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import urllib.request; urllib.request.urlopen('http://example.com')", None),
        ("import socket; socket.create_connection(('127.0.0.1', 80))", "(this sandbox has no network)"),
        ("import socket; socket.getaddrinfo('example.com', 80)", "(this sandbox has no network)"),
        ("import subprocess; subprocess.run(['ls'])", "(this sandbox starts no other programs)"),
        ("input('name? ')", "(standard input is empty in this sandbox)"),
        ("open('missing.txt')", None),
    ],
)
def test_errors_that_the_sandbox_causes_say_so(session: Session, program: str, why: str | None) -> None:
    last = (session.run(program).error or "").splitlines()[-1]
    assert last == why if why else not last.startswith("(")


def test_the_seed_reaches_every_generator_that_libraries_share(sandbox: Sandbox) -> None:
    """Also the one of sympy, and those that numpy makes without a seed; seeds are told apart beyond 32 bits."""
    draw = (
        "import random, numpy, sympy.core.random\n"
        "[random.random(), float(numpy.random.rand()), sympy.core.random.random(), float(numpy.random.default_rng().random()),"
        " float(numpy.random.default_rng().random())]"
    )
    drawn = []
    for seed in (7, 7, 8, 7 + (1 << 32), 7 + (1 << 62)):
        session = sandbox.open(seed=seed)
        branch = session.fork()
        values = [session.run(draw).value or "", branch.run(draw).value or ""]
        assert values[0] == values[1]
        drawn.append([float(part) for part in values[0].strip("[]").split(", ")])
        session.close()
        branch.close()
    assert drawn[0] == drawn[1]
    for one in range(1, 5):
        for other in range(one + 1, 5):
            assert not set(drawn[one]) & set(drawn[other])
    assert len(set(drawn[0])) == 5
