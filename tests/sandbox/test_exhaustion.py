# ruff: noqa: E501 (one program a line reads better than a program folded)
"""What the sessions of one container share is never used up, nor held up, by one of them: disk, user ids, births.

A session that goes beyond its share is ended or refused; the sessions after it find everything as it was.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from polyturn.sandbox import Limits, SandboxError, SandboxLost, Session, Status, docker
from polyturn.sandbox.docker import DockerEngine, DockerSandbox, connect
from polyturn.sandbox.inside import processes
from polyturn.sandbox.inside.interpreters import Interpreters
from polyturn.sandbox.inside.loop import Loop
from polyturn.sandbox.inside.processes import ProcessTable
from polyturn.sandbox.link import SocketLink, encode

pytestmark = pytest.mark.docker

LIMITS = Limits(wall_s=20.0, memory_mb=256)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[DockerSandbox]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docker, "FORK_S", 5.0)  # an attack here makes every fork wait as long as it may
        with DockerSandbox(sessions=64, memory_mb=1024, spares=0, preload=(), containers=1) as opened:
            yield opened


@pytest.fixture
def session(sandbox: DockerSandbox) -> Iterator[Session]:
    """A session in a container without others: what a test leaves is its own fault, and ends with it."""
    server = sandbox.servers[0]
    opened = sandbox.open(LIMITS)
    yield opened
    opened.close()
    left = list(server.sessions)
    for one in left:
        one.close()
    assert wait_until(lambda: not (seen := server.ping())["sessions"] and not seen["interpreters"]), server.ping()


def in_use(session: Session) -> int:
    """Blocks and entries in use on the disk that the sessions share, as any of them sees it."""
    seen = session.run("import os; v = os.statvfs('.'); v.f_blocks - v.f_bfree + v.f_files - v.f_ffree")
    assert seen.value is not None
    return int(seen.value)


def socket_of(sandbox: DockerSandbox) -> str:
    """Where this program speaks to the supervisor."""
    link = sandbox.servers[0]._link
    assert isinstance(link, SocketLink)
    return link._path


def wait_until(true_at_last: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether a condition comes true in time."""
    deadline = time.monotonic() + seconds
    while not true_at_last():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_removed_files_that_are_held_open_are_found_when_the_disk_is_nearly_full(
    sandbox: DockerSandbox, session: Session
) -> None:
    """No folder shows them. Of two sessions the one that holds them is ended, by itself or by its branch."""
    before = in_use(session)
    honest, attacker = sandbox.open(LIMITS), sandbox.open(LIMITS)
    assert honest.run("open('mine', 'wb').write(bytes(12 << 20))").ok
    attacker.run(
        "import os\nheld = []\ntry:\n  while len(held) < 60:\n    f = open('x', 'wb', 0); os.unlink('x'); held.append(f)\n"
        "    f.write(bytes(8 << 20))\nexcept OSError: pass"
    )
    try:
        branch = attacker.fork()
    except SandboxError:  # it was ended already
        branch = attacker
    assert wait_until(lambda: in_use(session) < before + (20 << 20) // 4096)
    assert attacker.run("held").state_lost or attacker.run("held").status is Status.ERROR
    assert honest.run("len(open('mine', 'rb').read())").value == str(12 << 20)
    for one in {honest, attacker, branch}:
        one.close()


def test_what_threads_write_between_runs_counts(sandbox: DockerSandbox, session: Session) -> None:
    before = in_use(session)
    attacker = sandbox.open(LIMITS)
    late = "def f():\n  time.sleep(0.1)\n  for i in range(8): open(str(i), 'wb').write(bytes(8 << 20))\n"
    assert attacker.run("import threading, time\n" + late + "threading.Thread(target=f).start()").ok
    assert wait_until(lambda: in_use(session) > before + 4000)
    assert wait_until(lambda: in_use(session) <= before)
    assert "exceed 16 MiB" in (attacker.run("1").error or "")
    attacker.close()


def test_the_supervisor_keeps_nothing_of_a_run_that_is_over(sandbox: DockerSandbox) -> None:
    """Eight sessions that print 7 MB each: its own resident memory grows by less than one of them kept (about 5 MB)."""
    client = connect()
    pid = client.api.inspect_container(sandbox.servers[0].name)["State"]["Pid"]
    client.close()

    def resident() -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096

    talkers = [sandbox.open(Limits(wall_s=20.0, output_bytes=1 << 20)) for _ in range(8)]
    noise = "import sys; sys.stdout.write('x' * 3500000); sys.stderr.write('y' * 3500000)"
    talkers[0].run(noise)
    before = resident()
    for talker in talkers:
        assert talker.run(noise).truncated
    assert resident() - before < 5 << 20
    for talker in talkers:
        talker.close()


def test_programs_cannot_write_where_the_supervisors_socket_lies() -> None:
    """It is a folder of the host's; where the kernel has no Landlock, only its mode keeps a program from filling it."""
    with DockerSandbox(transport="unix", sessions=4, spares=0, preload=()) as sandbox:
        assert oct(Path(socket_of(sandbox)).parent.stat().st_mode) == "0o40711"
        with sandbox.open(LIMITS) as first, sandbox.open(LIMITS) as second:
            assert first.run("6 * 7").value == second.run("42").value == "42"


# Each of 250 letters: the sixteenth is deeper than the 4,096 bytes of a path, where names alone no longer reach.
DEEP = "import os\nn = 'd' * 250\nfor _ in range(40): os.mkdir(n); os.chdir(n)\n"


@pytest.mark.parametrize(
    ("program", "status"),
    [
        (DEEP + "for i in range(8): open(str(i), 'wb').write(bytes(8 << 20))", Status.CRASH),
        (DEEP + "for i in range(3000): open(str(i), 'w').close()", Status.CRASH),
        (DEEP, Status.OK),
        ("import os\nfor _ in range(1900): os.mkdir('d'); os.chdir('d')", Status.OK),
        ("import os; open('f', 'w').write('x' * 9999); os.chmod('.', 0)", Status.OK),
    ],
    ids=["bytes too deep", "files too deep", "long names", "many levels", "closed to itself"],
)
def test_a_share_of_the_disk_is_kept_and_given_back(
    sandbox: DockerSandbox, session: Session, program: str, status: Status
) -> None:
    before = in_use(session)
    with sandbox.open(LIMITS) as attacker:
        result = attacker.run(program)
        assert (result.status, result.state_lost) == (status, status is Status.CRASH), result
    assert wait_until(lambda: in_use(session) <= before), (before, in_use(session))


# What each run writes alone is too little to look at, or exactly the share, or one more than that.
WRITES = {
    "files in small steps": ["for _ in range(15): n = n + 1; open(str(n), 'w').close()"] * 137,
    "bytes in small steps": ["n = n + 1; open(str(n), 'wb').write(bytes(60 << 10))"] * 274,
    "one file too many": ["for n in range(2048): open(str(n), 'w').close()", "open('one', 'w').close()"],
    "one block too many": ["for n in range(16): open(str(n), 'wb').write(bytes(1 << 20))", "open('a', 'w').write('a')"],
    "one file too many in the same run": ["for n in range(2049): open(str(n), 'w').close()"],
}


@pytest.mark.parametrize("programs", list(WRITES.values()), ids=list(WRITES))
def test_the_run_that_goes_beyond_the_share_of_the_disk_says_so(
    sandbox: DockerSandbox, session: Session, programs: list[str]
) -> None:
    """Not the one after it, and however little each wrote."""
    with sandbox.open(LIMITS) as attacker:
        assert attacker.run("n = 0").ok
        *within, beyond = programs
        for program in within:
            assert attacker.run(program).status is Status.OK
        result = attacker.run(beyond)
        assert (result.status, result.state_lost) == (Status.CRASH, True), result
        assert "16 MiB" in str(result.error) or "2048 files" in str(result.error)
        assert attacker.run("1").ok


def test_files_that_others_remove_hide_no_files(sandbox: DockerSandbox, session: Session) -> None:
    """Sessions one after another, each of which fills the disk by as much as the emptied folder of the last one gives."""
    for _ in range(8):
        with sandbox.open(LIMITS) as attacker:
            result = attacker.run("for n in range(2100): open(str(n), 'w').close()")
            assert (result.status, result.state_lost) == (Status.CRASH, True), result


def test_the_longest_texts_of_the_worst_bytes_are_a_result(sandbox: DockerSandbox, session: Session) -> None:
    """A zero byte is six characters in JSON; four texts of 1 MiB each are still one frame that the host takes."""
    talker = sandbox.open(Limits(wall_s=20.0, output_bytes=1 << 20))
    result = talker.run(
        LOOP + "text = b'\\0' * (1 << 20)\n"
        "import struct\n"
        "os.write(3, struct.pack('>I8sBIIII', 25 + (4 << 20), token, 1, *[1 << 20] * 4))\n"
        "for _ in range(4):\n  left = text\n  while left: left = left[os.write(3, left):]\n"
        "time.sleep(1e6)"
    )
    assert (result.status, len(result.stdout), len(result.error or "")) == (Status.ERROR, 4 << 20, 4 << 20)
    assert session.run("6 * 7").value == "42"
    talker.close()
    with pytest.raises(ValueError, match="output_bytes"):
        Limits(output_bytes=(1 << 20) + 1)


# The interpreter's own loop, found from a program that it runs, as a hostile program finds it.
LOOP = """\
import os, sys, time
f = sys._getframe()
while not hasattr(f.f_locals.get('self'), 'names'): f = f.f_back
loop, token = f.f_locals['self'], f.f_back.f_locals['token']
"""
HELD_UP = {
    "the fork": "import sys, time; sys._current_frames = lambda: time.sleep(1e6)",
    "the process": LOOP + "loop.branch = lambda token: os.kill(os.getpid(), 19)",
    "the channel": LOOP + "loop.send(token, 0); os.close(3); time.sleep(1e6)",
    **{f"the copy {n}": "import shutil, time\nshutil.copytree = lambda *a, **k: time.sleep(1e6)\nopen('f', 'w').close()"
       for n in range(8)},
}  # fmt: skip


def test_a_program_that_delays_its_fork_delays_no_other_session(sandbox: DockerSandbox, session: Session) -> None:
    """All at once, and an honest session is opened, forked and used before the first of them is given up."""
    server = sandbox.servers[0]
    session.run("x = 1")
    attackers = {name: sandbox.open(LIMITS) for name in HELD_UP}
    before = server.ping()["interpreters"]
    for name, program in HELD_UP.items():
        assert attackers[name].run(program).ok, name
    time.sleep(0.1)
    said: dict[str, SandboxError] = {}

    def fork(name: str) -> None:
        with pytest.raises(SandboxError) as raised:
            attackers[name].fork()
        said[name] = raised.value

    threads = [threading.Thread(target=fork, args=(name,)) for name in HELD_UP]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: server.ping()["sessions"] >= 2 * len(HELD_UP))
    with sandbox.open(LIMITS) as another, session.fork() as branch:
        assert another.run("6 * 7").value == "42"
        assert branch.run("x").value == "1"
    assert said == {}
    for thread in threads:
        thread.join()
    assert set(said) == set(HELD_UP)
    assert not [error for error in said.values() if isinstance(error, SandboxLost)], said
    assert "did not answer" in str(said["the fork"])
    assert session.run("x").value == "1"
    for attacker in attackers.values():
        attacker.close()
    assert wait_until(lambda: server.ping()["interpreters"] <= before - len(HELD_UP)), server.ping()


def test_closing_a_session_answers_its_pending_fork(sandbox: DockerSandbox, session: Session) -> None:
    server = sandbox.servers[0]
    attacker = sandbox.open(LIMITS)
    attacker.run(HELD_UP["the fork"])
    said: list[str] = []

    def fork() -> None:
        with pytest.raises(SandboxError) as raised:
            attacker.fork()
        said.append(str(raised.value))

    before = server.ping()["sessions"]
    thread = threading.Thread(target=fork)
    thread.start()
    assert wait_until(lambda: server.ping()["sessions"] == before + 1)
    attacker.close()
    thread.join()
    assert "closed while it was forked" in said[0]
    assert session.run("6 * 7").value == "42"


def test_a_session_whose_opener_has_gone_is_closed(sandbox: DockerSandbox, session: Session) -> None:
    """As after Ctrl-C in the host: the number of the session is not received, so it could not be closed."""
    server = sandbox.servers[0]
    before = server.ping()["sessions"]
    path = socket_of(sandbox)
    for _ in range(10):
        with socket.socket(socket.AF_UNIX) as hasty:
            hasty.connect(path)
            hasty.sendall(encode({"op": "open", "limits": asdict(LIMITS), "seed": 0, "id": 0}))
    # What earlier tests opened may still be closing.
    assert wait_until(lambda: (seen := server.ping())["sessions"] == seen["interpreters"] <= before), server.ping()


def test_an_origin_that_dies_while_it_is_forked_leaves_no_copy(sandbox: DockerSandbox, session: Session) -> None:
    """The copy has said hello and leads its own group, where its origin's end does not reach it."""
    server = sandbox.servers[0]
    attacker = sandbox.open(LIMITS)
    attacker.run(
        LOOP + "me, send = os.getpid(), loop.send\n"
        "def late(*a, **k):\n  if a[0] == token or os.getpid() != me: return send(*a, **k)\n  time.sleep(0.3); os._exit(0)\n"
        "loop.send = late"
    )
    with pytest.raises(SandboxError, match="died while it was forked"):
        attacker.fork()
    attacker.close()
    assert wait_until(lambda: (seen := server.ping())["interpreters"] == seen["sessions"]), server.ping()


def test_refused_forks_use_up_no_user_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two user ids, four sessions one after another."""
    ordinary = DockerEngine._config
    monkeypatch.setattr(DockerEngine, "_config", lambda self, unix: {**ordinary(self, unix), "uid_count": 2})
    with DockerSandbox(sessions=4, spares=0, preload=()) as sandbox:
        for _ in range(4):
            session = sandbox.open(LIMITS)
            session.run("import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()")
            with pytest.raises(SandboxError, match="threads"):
                session.fork()
            session.close()
            assert wait_until(lambda: sandbox.servers[0].ping()["interpreters"] == 0)


class Nursery(Interpreters):
    """Interpreters that are asked for and never made."""

    def __init__(self) -> None:
        Loop.__init__(self)
        self.config: dict[str, Any] = {"users": True, "siblings": True, "work": "/nowhere", "nice": 0}
        self.children, self.leaders, self.births, self.unborn, self.cleaners = set(), {}, deque(), 0, {}
        self.free_uids, self.doubtful_uids, self.to_sweep, self.asked_users = deque(), set(), deque(), 0.0
        self.processes = ProcessTable()
        self.zygote, self.asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def died(self, child: object, code: int | None, why: str) -> None:
        """Nobody's."""


def test_a_user_id_in_doubt_is_used_again_when_it_has_no_process() -> None:
    nursery = Nursery()
    nursery.doubtful_uids = {os.getuid(), 4_000_000_000}
    child = nursery.spawn(asdict(LIMITS))
    assert child is not None
    assert child.family.uid == 4_000_000_000
    assert nursery.spawn(asdict(LIMITS)) is None
    assert nursery.doubtful_uids == {os.getuid()}
    nursery.bury(child, None, "")  # the zygote was asked: perhaps it made one
    assert nursery.doubtful_uids == {os.getuid(), 4_000_000_000}


def test_a_birth_called_off_in_the_queue_leaves_nothing() -> None:
    """Eight are on their way, so the ninth waits; its descriptors close and its user id is free at once."""
    nursery = Nursery()
    nursery.free_uids.extend(range(1_000_000, 1_000_009))
    born = [nursery.spawn(asdict(LIMITS)) for _ in range(9)]
    assert nursery.unborn == 8
    descriptors = set(nursery.births[0][2])
    assert born[0] is not None
    assert born[8] is not None
    nursery.kill(born[8], "")
    assert (nursery.unborn, list(nursery.free_uids)) == (8, [1_000_008])
    nursery.bury(born[0], None, "")
    assert not nursery.births
    for fd in descriptors:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)


def test_where_no_process_can_be_made_the_sweeping_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that fill the container's process limit must not end the supervisor, which forks to sweep."""
    nursery = Nursery()
    nursery.config["work"] = str(tmp_path)
    nursery.free_uids.append(os.getuid())
    child = nursery.spawn(asdict(LIMITS))
    assert child is not None
    os.makedirs(child.folder)
    Path(child.folder, "left").write_text("here")

    def refuse() -> int:
        raise BlockingIOError(11, "no more processes")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", refuse)
        nursery.bury(child, None, "")
    assert (nursery.cleaners, child.family.members) == ({}, 1)
    nursery._timers[0][2]()
    (pid,) = nursery.cleaners
    os.waitpid(pid, 0)
    nursery.sweep(nursery.cleaners.pop(pid))
    assert (child.family.members, os.listdir(tmp_path)) == (0, [])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take another user's rights")
def test_who_empties_a_folder_has_its_users_rights_and_none_of_its_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel lets a user signal a process that has its id as real or saved one: here both stay root's."""
    left = Path(tempfile.mkdtemp())  # not below a folder that is closed to other users
    (left / "left").write_text("here")
    os.chown(left, 12345, 12345)
    told, tells = os.pipe()
    monkeypatch.setattr(processes, "_remove", lambda name: os.write(tells, repr(os.getresuid()).encode()))
    monkeypatch.setattr(processes, "_PASSES", 1)
    pid = os.fork()
    if pid == 0:
        processes.empty_folder(str(left), 12345, 0)
    os.waitpid(pid, 0)
    os.close(tells)
    assert os.read(told, 99) == b"(0, 12345, 0)"
    os.close(told)
    shutil.rmtree(left)
