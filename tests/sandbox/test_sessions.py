"""What one session promises, on Docker and on the local sandbox: state, results, limits, branches, interrupts."""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from collections.abc import Iterator

import pytest

from polyturn.sandbox import Limits, Sandbox, SandboxError, Session, Status, open_sandbox

SMALL = Limits(wall_s=20.0, memory_mb=256)


@pytest.fixture(scope="module", params=[pytest.param("docker", marks=pytest.mark.docker), "local"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        opened = open_sandbox(request.param, sessions=160, spares=1)
    with opened:
        yield opened


@pytest.fixture
def session(sandbox: Sandbox) -> Iterator[Session]:
    opened = sandbox.open(SMALL)
    yield opened
    opened.close()


def test_variables_live_from_run_to_run(session: Session) -> None:
    assert session.run("x = 40").ok
    result = session.run("print('hello')\nx + 2")
    assert (result.status, result.stdout, result.value) == (Status.OK, "hello\n", "42")
    assert session.run("_ + 1").value == "43"


def test_the_value_is_that_of_only_the_last_expression(session: Session) -> None:
    assert session.run("1 + 1\nx = 5").value is None
    assert session.run("None").value is None
    assert session.run("'text'").value == "'text'"
    assert session.run("x; x * 2").value == "10"


def test_names_defined_in_one_run_pickle_and_import_in_the_next(session: Session) -> None:
    session.run("class Point:\n    pass\nopen('helper.py', 'w').write('answer = 42')")
    assert session.run(
        "import pickle, helper\ntype(pickle.loads(pickle.dumps(Point()))).__name__, helper.answer"
    ).value == ("('Point', 42)")


def test_a_traceback_is_short_and_names_the_programs_own_line(session: Session) -> None:
    session.run("def half(n):\n    return 1 / n")
    error = session.run("a = 1\n\nhalf(0)").error
    assert error == (
        "Traceback (most recent call last):\n"
        '  File "<turn 2>", line 3, in <module>\n    half(0)\n'
        '  File "<turn 1>", line 2, in half\n    return 1 / n\n'
        "ZeroDivisionError: division by zero"
    )


def test_a_librarys_frames_are_one_line_without_its_folder(session: Session) -> None:
    error = session.run("import json\njson.loads('{')").error or ""
    assert '  File "json/decoder.py", line ' in error
    assert "/usr" not in error
    assert "/lib" not in error
    assert error.endswith("(char 1)")


def test_standard_error_and_output_are_kept_apart(session: Session) -> None:
    result = session.run("import sys\nprint('out')\nprint('err', file=sys.stderr)")
    assert (result.stdout, result.stderr) == ("out\n", "err\n")


def test_output_keeps_its_beginning_and_its_end(sandbox: Sandbox) -> None:
    session = sandbox.open(Limits(output_bytes=1000, wall_s=20))
    result = session.run("print('first')\nfor _ in range(1000): print('filler' * 5)\nprint('last')")
    assert result.status is Status.OK
    assert result.truncated
    assert result.stdout.startswith("first\n")
    assert result.stdout.endswith("last\n")
    assert 1000 <= len(result.stdout) <= 1100
    assert "bytes cut" in result.stdout
    session.close()


def test_a_program_that_yields_to_the_interrupt_keeps_its_state(session: Session) -> None:
    session.run("x = 1")
    result = session.run("x = 2\nwhile True: pass", wall_s=0.2)
    assert (result.status, result.state_lost) == (Status.TIMEOUT, False)
    assert "line 2" in (result.error or "")
    assert session.run("x").value == "2"


def test_a_program_that_does_not_yield_loses_its_state_and_the_session_goes_on(session: Session) -> None:
    session.run("x = 1")
    result = session.run(
        "import signal; signal.signal(2, signal.SIG_IGN)\nprint('kept', flush=True)\nwhile True: pass", wall_s=0.2
    )
    assert (result.status, result.state_lost, result.stdout) == (Status.TIMEOUT, True, "kept\n")
    after = session.run("'x' in globals()")
    assert (after.value, after.state_lost) == ("False", False)


def test_cpu_is_limited_apart_from_the_wall_clock(sandbox: Sandbox) -> None:
    session = sandbox.open(Limits(wall_s=60, cpu_s=0.3))
    assert session.run("while True: pass").status is Status.TIMEOUT
    assert session.run("import time; time.sleep(0.4)").ok
    session.close()


def test_running_out_of_memory_has_its_own_status_and_leaves_a_working_session(session: Session) -> None:
    assert session.run("x = bytearray(10**10)").status is Status.MEMORY
    result = session.run("x = [0]\nwhile True: x = x * 2")
    assert (result.status, result.error and result.error.splitlines()[-1]) == (Status.MEMORY, "MemoryError")
    assert session.run("6 * 7").value == "42"


def test_a_session_full_to_the_brim_starts_afresh(session: Session) -> None:
    result = session.run("d = {}\ni = 0\nwhile True:\n    d[i] = bytes(1000)\n    i += 1")
    assert (result.status, result.state_lost) == (Status.MEMORY, True)
    assert session.run("'d' in globals()").value == "False"


def test_a_death_between_runs_is_reported_once(session: Session) -> None:
    session.run("import threading, os, time\nthreading.Timer(0.05, os._exit, (0,)).start()\nx = 1")
    time.sleep(0.5)
    result = session.run("x = 5\nx")
    assert (result.status, result.state_lost, result.value) == (Status.CRASH, True, None)
    assert "between two runs" in (result.error or "")
    assert session.run("'x' in globals()").value == "False"


def test_threads_live_on_but_their_output_belongs_to_no_later_run(session: Session) -> None:
    session.run(
        "import threading, time, sys\ncount = 0\ndef work():\n    global count\n    for _ in range(20):\n"
        "        time.sleep(0.01); count += 1; print('noise', flush=True)\nt = threading.Thread(target=work); t.start()"
    )
    time.sleep(0.6)
    result = session.run("t.join(); print('mine'); count")
    assert (result.stdout, result.value) == ("mine\n", "20")


def test_threads_that_go_on_working_between_runs_are_ended(session: Session) -> None:
    session.run(
        "import threading\ndef spin():\n    while True: pass\nthreading.Thread(target=spin, daemon=True).start()"
    )
    for pause in (2.5, 5.0, 10.0, 20.0, 40.0):  # a busy machine gives such a thread little time, and a run counts anew
        time.sleep(pause)
        if not (result := session.run("1")).ok:
            break
    assert result.status is Status.CRASH
    assert "threads went on working" in (result.error or "")


def test_a_long_program_is_refused_before_it_is_sent(sandbox: Sandbox) -> None:
    session = sandbox.open(Limits(source_bytes=1000))
    assert session.run("x = 1\n" * 100).ok
    result = session.run("x = 1\n" * 200)
    assert (result.status, result.error) == (Status.ERROR, "SyntaxError: the program is longer than 1000 bytes")
    session.close()


def test_other_programs_run_only_where_they_are_allowed(sandbox: Sandbox) -> None:
    code = "import subprocess\nsubprocess.run(['/bin/echo', 'hi'], capture_output=True, text=True).stdout"
    closed, opened = sandbox.open(SMALL), sandbox.open(Limits(wall_s=20.0, programs=True))
    assert "PermissionError" in (closed.run(code).error or "")
    assert opened.run(code).value == "'hi\\n'"
    assert opened.run("subprocess.run(['/bin/cat', '/etc/shadow']).returncode").value == "1"
    closed.close()
    opened.close()


def test_the_seed_decides_what_random_draws(sandbox: Sandbox) -> None:
    draws = []
    for seed in (1, 1, 2):
        session = sandbox.open(SMALL, seed=seed)
        draws.append(session.run("import random, numpy\nrandom.random(), float(numpy.random.rand())").value)
        session.close()
    assert draws[0] == draws[1] != draws[2]
    # PYTHONHASHSEED is fixed, or sets would print in another order in every container.
    session = sandbox.open(SMALL)
    assert session.run("import sys; sys.flags.hash_randomization").value == "0"


def test_a_branch_starts_from_the_present_state_and_goes_its_own_way(session: Session) -> None:
    session.run("x = [1]; open('note', 'w').write('old')")
    branch = session.fork()
    branch.run("x.append(2); open('note', 'w').write('new')")
    session.run("x.append(3)")
    assert branch.run("x, open('note').read()").value == "([1, 2], 'new')"
    assert session.run("x, open('note').read()").value == "([1, 3], 'old')"
    session.close()
    assert branch.run("x").value == "[1, 2]"
    grandchild = branch.fork()
    branch.close()
    assert grandchild.run("x").value == "[1, 2]"
    grandchild.close()


def test_a_branch_draws_what_its_origin_would_have_drawn(session: Session) -> None:
    """Python seeds `random` anew from the system in every forked process; a branch is a copy, so it must not."""
    draw = "random.random(), float(numpy.random.rand())"
    session.run("import random, numpy")
    first, second = session.fork(), session.fork()
    assert first.run(draw).value == second.run(draw).value == session.run(draw).value
    first.close()
    second.close()


def test_forking_often_is_not_taken_for_threads_that_go_on_working(sandbox: Sandbox) -> None:
    """A fork of many small objects costs milliseconds of processor time, which the idle session is not charged."""
    session = sandbox.open(Limits(wall_s=60.0, memory_mb=512))
    session.run("x = [bytes(3000) for _ in range(80_000)]")
    for _ in range(150):
        session.fork().close()
    assert session.run("len(x)").value == "80000"
    session.close()


def test_killing_a_branch_does_not_touch_its_siblings(session: Session) -> None:
    session.run("x = 1")
    branches = [session.fork() for _ in range(3)]
    stubborn = "import os, signal\nsignal.signal(2, signal.SIG_IGN)\nos.fork()\nwhile True: pass"
    assert branches[1].run(stubborn, wall_s=0.2).state_lost
    assert [s.run("x").value for s in (session, branches[0], branches[2])] == ["1", "1", "1"]
    for branch in branches:
        branch.close()


def test_a_branch_can_neither_signal_nor_read_its_siblings(session: Session) -> None:
    """They share a user id, so the kernel's usual barrier is not between them: Landlock domains and seccomp are."""
    pid = session.run("import os; secret = 'abc'; os.getpid()").value
    branch = session.fork()
    other = branch.run("os.getpid()").value
    assert other != pid
    for attacker, victim in ((branch, pid), (session, other)):
        for attempt in (
            f"os.kill({victim}, 9)",
            f"open('/proc/{victim}/mem', 'rb')",
            f"os.listdir('/proc/{victim}/fd')",
        ):
            assert "PermissionError" in (attacker.run(attempt).error or ""), attempt
    assert "PermissionError" in (branch.run("os.listdir('..')").error or "")
    assert session.run("secret").value == "'abc'"
    branch.close()


def test_a_branch_does_not_write_into_the_output_of_its_origin(session: Session) -> None:
    """A descriptor kept for later (as by whoever redirects output for a while) belongs to the branch from then on."""
    session.run("import os, time; kept = os.dup(1); file = open('f', 'w')")
    branch = session.fork()
    results = []
    thread = threading.Thread(target=lambda: results.append(session.run("time.sleep(0.3); print('mine')")))
    thread.start()
    time.sleep(0.1)
    assert branch.run("os.write(kept, b'the branch'); file.write('x'); file.flush()").stdout == "the branch"
    thread.join()
    assert results[0].stdout == "mine\n"
    assert session.run("os.write(kept, b'the origin'); file.close()").stdout == "the origin"
    branch.close()


def test_a_session_with_threads_refuses_to_fork_and_says_why(session: Session) -> None:
    session.run("import threading; stop = threading.Event(); t = threading.Thread(target=stop.wait); t.start()")
    with pytest.raises(SandboxError, match="threads"):
        session.fork()
    session.run("stop.set(); t.join()")
    session.fork().close()


def test_branches_are_limited(sandbox: Sandbox) -> None:
    session = sandbox.open(Limits(wall_s=20.0, processes=4, branches=2))
    branches = [session.fork(), session.fork()]
    with pytest.raises(SandboxError, match="its limit is 2 branches"):
        branches[0].fork()  # the limit is one of the whole family
    assert session.run("6 * 7").value == "42"
    branches.pop().close()
    branches.append(session.fork())
    for branch in branches:
        branch.close()
    session.close()


def test_a_session_that_lost_its_state_cannot_fork(session: Session) -> None:
    session.run("import os; os._exit(1)")
    with pytest.raises(SandboxError, match="state is lost"):
        session.fork()


def test_interrupt_stops_a_run_from_another_thread(session: Session) -> None:
    session.run("x = 1")
    timer = threading.Timer(0.2, session.interrupt)
    timer.start()
    result = session.run("import time; time.sleep(15)")
    assert (result.status, result.state_lost) == (Status.ERROR, False)
    assert (result.error or "").endswith("KeyboardInterrupt")
    assert session.run("x").value == "1"
    timer.join()


def test_one_run_at_a_time(session: Session) -> None:
    thread = threading.Thread(target=session.run, args=("import time; time.sleep(0.6)",))
    thread.start()
    time.sleep(0.2)
    with pytest.raises(SandboxError, match="one run at a time"):
        session.run("1")
    thread.join()
    assert session.run("1").ok


def test_closing_twice_is_harmless_and_closed_means_closed(session: Session) -> None:
    session.close()
    session.close()
    with pytest.raises(SandboxError, match="closed"):
        session.run("1")


def test_asyncio_runs_many_sessions_at_once(sandbox: Sandbox) -> None:
    async def episode(number: int) -> str | None:
        session = await asyncio.to_thread(sandbox.open, SMALL)
        await session.arun(f"x = {number}")
        result = await session.arun("import time; time.sleep(0.05); x * 2")
        session.close()
        return result.value

    async def main() -> list[str | None]:
        return await asyncio.gather(*[episode(number) for number in range(40)])

    assert asyncio.run(main()) == [str(2 * number) for number in range(40)]


def test_cancelling_a_run_stops_the_program(session: Session) -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(session.arun("import time\nx = 1\ntime.sleep(15)"), 0.3)

    asyncio.run(main())
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            assert session.run("x").value == "1"
            return
        except SandboxError:  # the interrupt is still on its way
            time.sleep(0.05)
    pytest.fail("the cancelled program still runs")


def test_a_hundred_sessions_live_side_by_side(sandbox: Sandbox) -> None:
    sessions = [sandbox.open(SMALL) for _ in range(100)]
    for number, session in enumerate(sessions):
        session.run(f"mine = {number}")
    assert [session.run("mine").value for session in sessions] == [str(number) for number in range(100)]
    for session in sessions:
        session.close()


def test_hostile_and_honest_episodes_together(sandbox: Sandbox) -> None:
    """16 episodes attack while 16 work: every honest one ends with the right result."""
    attacks = [
        "while True: pass",
        "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
        "while True: print('x' * 1000)",
        "x = [0]\nwhile True: x = x * 2",
    ]
    wrong: list[object] = []

    def attack(number: int) -> None:
        session = sandbox.open(Limits(wall_s=0.5, memory_mb=128))
        wrong.extend(number for _ in range(2) if session.run(attacks[number % len(attacks)]).ok)
        session.close()

    def work(number: int) -> None:
        session = sandbox.open(Limits(wall_s=30.0))
        session.run(f"import sympy; total = {number}")
        for _ in range(20):
            session.run("total += sympy.Integer(2)")
        if (result := session.run("total")).value != str(number + 40):
            wrong.append(result)
        session.close()

    threads = [threading.Thread(target=target, args=(n,)) for n in range(16) for target in (attack, work)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_no_false_alarm_over_a_thousand_honest_programs(sandbox: Sandbox) -> None:
    """Outputs up to 1 MB included: nothing honest may be called a time-out or an attack."""
    wrong: list[object] = []

    def work(offset: int) -> None:
        session = sandbox.open(Limits(wall_s=30.0))
        for number in range(offset, 1000, 4):
            size = 1_000_000 if number % 100 == 0 else number
            result = session.run(f"print('x' * {size})\n{number} + 1")
            if not result.ok or result.value != str(number + 1) or result.truncated != (size > 16 * 1024):
                wrong.append(result)
        session.close()

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
