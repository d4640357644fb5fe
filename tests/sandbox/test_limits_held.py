"""Every limit holds where it says: what just fits is allowed, and what is just beyond ends as the limit's own status.

Each test fails when its limit is moved by a little, in either direction, or is not applied at all.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest

from polyturn.sandbox import Limits, Result, Sandbox, SandboxError, Status, open_sandbox

LIMITS = Limits(wall_s=60.0, memory_mb=256)


@pytest.fixture(scope="module", params=[pytest.param("docker", marks=pytest.mark.docker), "local"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        opened = open_sandbox(request.param, sessions=16, spares=0, preload=())
    with opened:
        yield opened


def run(sandbox: Sandbox, limits: Limits, code: str, wall_s: float | None = None) -> Result:
    """What comes of a program in another session."""
    with sandbox.open(limits) as session:
        return session.run(code, wall_s=wall_s)


def test_the_wall_clock(sandbox: Sandbox) -> None:
    sleep = "import time; time.sleep(30)"
    limits = replace(LIMITS, wall_s=0.4)
    for result, least in ((run(sandbox, limits, sleep), 0.4), (run(sandbox, LIMITS, sleep, wall_s=0.7), 0.7)):
        assert result.status is Status.TIMEOUT
        assert least <= result.timings.run < least + 5.0
    assert run(sandbox, replace(LIMITS, wall_s=25.0), "import time; time.sleep(0.5)").ok
    assert run(sandbox, limits, "import time; time.sleep(0.5)", wall_s=25.0).ok


def test_time_on_the_processor(sandbox: Sandbox) -> None:
    """Sleeping costs none of it, and without its own limit it is the time of the wall clock."""
    work = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass"
    limits = replace(LIMITS, cpu_s=0.6)
    result = run(sandbox, limits, work.format(30))
    assert result.status is Status.TIMEOUT
    assert 0.6 <= result.timings.cpu < 2.0
    assert run(sandbox, limits, work.format(0.3)).ok
    assert run(sandbox, limits, "import time; time.sleep(1.0)").ok
    several = run(
        sandbox,
        limits,
        "import threading\ndef f():\n  while True: pass\n"
        "ts = [threading.Thread(target=f, daemon=True) for _ in range(4)]\n"
        "for t in ts: t.start()\nfor t in ts: t.join()",
    )
    assert several.status is Status.TIMEOUT
    assert 0.6 <= several.timings.cpu < 2.0


@pytest.mark.parametrize("megabytes", [64, 256])
def test_memory_of_one_process(sandbox: Sandbox, megabytes: int) -> None:
    limits = replace(LIMITS, memory_mb=megabytes)
    within, beyond = (run(sandbox, limits, f"x = bytearray({n} << 20)\nx[::4096] = b'x' * len(x[::4096])\nlen(x)")
                      for n in (megabytes - 12, megabytes + 1))  # fmt: skip
    assert (within.status, within.value) == (Status.OK, str((megabytes - 12) << 20))
    assert beyond.status is Status.MEMORY


def test_memory_of_all_processes_together(sandbox: Sandbox) -> None:
    code = """\
import os, time
children = []
for _ in range(3):
    pid = os.fork()
    if not pid:
        x = bytearray({} << 20)
        time.sleep({})
        os._exit(0)
    children.append(pid)
print([os.waitpid(pid, 0)[1] for pid in children])
"""
    limits = replace(LIMITS, memory_mb=128)
    within = run(sandbox, limits, code.format(30, 1.0))
    assert (within.status, within.stdout) == (Status.OK, "[0, 0, 0]\n")
    beyond = run(sandbox, limits, code.format(60, 30))
    assert beyond.status is Status.MEMORY
    assert "its processes together" in (beyond.error or "")


def test_processes_and_threads(sandbox: Sandbox) -> None:
    """The session itself is one of them."""
    if not sandbox.capabilities.users_separate:
        pytest.fail("this suite is run by a user that can give every session its own user id")
    limits = replace(LIMITS, processes=5, branches=0)
    threads = "import threading as t\nfor _ in range({}): t.Thread(target=t.Event().wait, daemon=True).start()"
    forks = "import os, time\nfor _ in range({}):\n  if not os.fork(): time.sleep(30)"
    for code in (threads, forks):
        assert run(sandbox, limits, code.format(4)).status is Status.OK
        assert run(sandbox, limits, code.format(5)).status is Status.PROCESS_LIMIT


@pytest.mark.parametrize("branches", [0, 1, 3])
def test_branches(sandbox: Sandbox, branches: int) -> None:
    with sandbox.open(replace(LIMITS, branches=branches)) as session:
        session.run("x = 1")
        live = [session.fork() for _ in range(branches)]
        for one in (session, *live[:1]):
            with pytest.raises(SandboxError, match=f"its limit is {branches} branches at once"):
                one.fork()
        assert [one.run("x").value for one in live] == ["1"] * branches
        for one in live:
            one.close()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("size", [1, 7, 1000, 20_001])
def test_bytes_kept_of_a_stream(sandbox: Sandbox, stream: str, size: int) -> None:
    write = "import sys; _ = sys.{}.write('a' * {})"
    with sandbox.open(replace(LIMITS, output_bytes=size)) as session:
        whole, cut = session.run(write.format(stream, size)), session.run(write.format(stream, size + 1))
    assert (getattr(whole, stream), whole.truncated) == ("a" * size, False)
    assert (getattr(cut, stream).count("a") - "bytes cut".count("a"), cut.truncated) == (size, True)
    assert "... 1 bytes cut ..." in getattr(cut, stream)


@pytest.mark.parametrize("size", [12, 1000])
def test_bytes_kept_of_a_value_and_of_an_error(sandbox: Sandbox, size: int) -> None:
    with sandbox.open(replace(LIMITS, output_bytes=size)) as session:
        values = [session.run(f"'v' * {n - 2}") for n in (size, size + 1)]
        errors = [session.run("class E(Exception): __str__ = lambda self: 'm' * 5000\nraise E('')")]
    assert [(value.value, value.truncated) for value in values] == [
        (f"'{'v' * (size - 2)}'", False), (f"'{'v' * (size - 1)}", True),
    ]  # fmt: skip
    assert (len(errors[0].error or ""), errors[0].truncated) == (size, True)


@pytest.mark.parametrize("stop", [1, 100, 8192, 100_000])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_bytes_written_that_end_a_run(sandbox: Sandbox, stop: int, stream: str) -> None:
    """Also where the last of them wait in memory when the program ends."""
    limits = replace(LIMITS, output_stop_bytes=stop)
    for pieces in (1, 3):
        write = "import sys\nn = {0}\nwhile n > 0:\n  n -= sys.{1}.write('a' * min(n, {2}))"
        codes = [write.format(size, stream, -(-size // pieces)) for size in (stop, stop + 1)]
        assert [run(sandbox, limits, code).status for code in codes] == [Status.OK, Status.OUTPUT_LIMIT]


@pytest.mark.parametrize("megabytes", [0, 1, 3])
def test_the_size_of_one_file(sandbox: Sandbox, megabytes: int) -> None:
    limits = replace(LIMITS, disk_mb=megabytes)
    code = "f = open('f', 'wb', 0)\nf.write(bytes({}))\nf.tell()"
    size = megabytes << 20
    assert run(sandbox, limits, code.format(size)).value == str(size)
    beyond = run(sandbox, limits, code.format(1) if not size else code.format(size) + "\nf.write(b'x')")
    assert (beyond.status, "File too large" in (beyond.error or "")) == (Status.ERROR, True), beyond


@pytest.mark.parametrize("megabytes", [1, 3])
def test_the_size_of_all_files(sandbox: Sandbox, megabytes: int) -> None:
    """A block of the file system is the least that a file takes."""
    fill = f"for n in range(4): open(str(n), 'wb').write(bytes({megabytes << 18}))\n"
    limits = replace(LIMITS, disk_mb=megabytes)
    assert run(sandbox, limits, fill).status is Status.OK
    beyond = run(sandbox, limits, fill + "open('one', 'wb').write(b'x')")
    assert (beyond.status, f"its files exceed {megabytes} MiB" in (beyond.error or "")) == (Status.CRASH, True), beyond


@pytest.mark.parametrize("files", [16, 40])
def test_files_open_at_once(sandbox: Sandbox, files: int) -> None:
    code = """\
import os
def is_open(fd):
    try: os.fstat(fd)
    except OSError: return False
    return True
held, start = [], sum(map(is_open, range(64)))
try:
    while True: held.append(os.open('/dev/null', os.O_RDONLY))
except OSError as error: number = error.errno
for fd in held: os.close(fd)
len(held) + start, number
"""
    with sandbox.open(replace(LIMITS, files=files)) as session, session.fork() as branch:
        assert branch.run("open('f', 'w').write('x'); import json; json.dumps(open('f').read())").value == "'\"x\"'"
        assert session.run(code).value == branch.run(code).value == f"({files}, 24)"


@pytest.mark.parametrize("letter", ["a", "é", "\U0001d538"])
def test_the_length_of_a_program(sandbox: Sandbox, letter: str) -> None:
    """In bytes of UTF-8, whatever the characters."""
    most = 1200
    limits = replace(LIMITS, source_bytes=most)
    width = len(letter.encode())
    program = "'" + letter * ((most - 2) // width) + "'"
    program += " " * (most - len(program.encode()))
    assert run(sandbox, limits, program).ok
    beyond = run(sandbox, limits, program + " ")
    assert (beyond.status, beyond.error) == (Status.ERROR, f"SyntaxError: the program is longer than {most} bytes")


def test_other_programs(sandbox: Sandbox) -> None:
    code = "import subprocess; subprocess.run(['/bin/true']).returncode"
    assert run(sandbox, replace(LIMITS, programs=True), code).value == "0"
    assert "PermissionError" in (run(sandbox, LIMITS, code).error or "")
