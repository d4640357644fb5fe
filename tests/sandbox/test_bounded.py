# ruff: noqa: E501 (one program a line reads better than a program folded)
"""No look at the disk or at the processes takes time that a program chooses, and none stands in the others' way."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polyturn.sandbox import Limits, Session
from polyturn.sandbox.docker import DockerSandbox
from polyturn.sandbox.inside.processes import ProcessTable
from polyturn.sandbox.inside.survey import CONTINUES, ENTRIES_A_TURN, measure
from polyturn.sandbox.ownership import remove_tree


def measured(path: Path, most: int = 4096) -> tuple[int, int, int]:
    """Bytes, entries, and how many turns it took."""
    *turns, found = measure(str(path), most)
    assert set(turns) <= {CONTINUES}
    return *found, len(turns) + 1


def open_files() -> list[str]:
    return os.listdir("/proc/self/fd")


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where that can be had: making thousands of folders on a disk takes seconds."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        yield Path(name)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three folders, three files of 10,000 bytes (20,480 on a disk of 4 KiB blocks, with one file twice), two links."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    for name in ("f", "a/f", "a/b/f"):
        (tmp_path / name).write_bytes(bytes(10_000))
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "c" / "away").symlink_to("/usr")
    return tmp_path


def test_a_folder_is_measured_without_following_links(tree: Path) -> None:
    blocks = sum((tree / name).stat().st_blocks * 512 for name in ("f", "a/f", "a/b/f"))
    blocks += sum((tree / name).lstat().st_blocks * 512 for name in ("a/up", "c/away"))
    before = open_files()
    assert measured(tree) == (blocks, 8, 1)
    for most in range(1, 9):
        assert measured(tree, most)[1] >= min(most, 8)
    assert open_files() == before
    assert measured(tree / "nowhere") == (0, 0, 1)


def test_a_folder_of_any_depth_is_measured_whole_and_in_turns(tmp_path: Path) -> None:
    """2,000 levels are eight times as long as a path may be; every level counts, and so does what lies lowest."""
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        for _ in range(2000):
            os.mkdir("d" * 16)
            os.chdir("d" * 16)
        Path("f").write_bytes(bytes(10_000))
    finally:
        os.chdir(here)
    before = open_files()
    size, entries, turns = measured(tmp_path)
    assert (size >= 10_000, entries) == (True, 2001)
    assert turns >= 2001 // ENTRIES_A_TURN
    assert measured(tmp_path, 500)[1] == 500
    assert open_files() == before
    remove_tree(tmp_path / ("d" * 16))


def test_a_folder_closed_to_its_owner_is_opened() -> None:
    """With the rights of its owner, as root reads any folder."""
    top, root, other = Path(tempfile.mkdtemp()), os.geteuid() == 0, 65534
    try:
        (top / "a" / "b").mkdir(parents=True)
        (top / "a" / "f").write_text("x")
        for path in (top, *top.rglob("*")) if root else ():
            os.chown(path, other, other)
        (top / "a").chmod(0)
        if root:
            os.seteuid(other)
        try:
            assert measured(top)[1] == 3
        finally:
            if root:
                os.seteuid(0)
    finally:
        shutil.rmtree(top)


def test_a_folder_that_goes_away_while_it_is_measured_is_left_out(tmp_path: Path) -> None:
    for number in range(3 * ENTRIES_A_TURN):
        (tmp_path / str(number)).mkdir()
    steps = measure(str(tmp_path), 4096)
    assert next(steps) == CONTINUES
    for number in range(3 * ENTRIES_A_TURN):
        (tmp_path / str(number)).rmdir()
    assert list(steps)[-1] == (0, 3 * ENTRIES_A_TURN)


def test_the_process_table_is_read_no_more_than_a_fifth_of_the_time() -> None:
    table = ProcessTable()
    assert table.may_scan()
    groups = table.groups()
    assert os.getpid() in groups[os.getpgid(0)]
    assert table.alive(os.getpid())
    assert not table.alive(2**22 + 1)
    table._cost = 10.0
    assert not table.may_scan()
    table._scanned -= 40.0
    assert table.may_scan()


# Programs that make the supervisor look at folders and processes as much as they can.
CHURN = {
    "nested folders": "import os, time\nos.mkdir('c'); here = os.getcwd()\nfor i in range(1800): os.mkdir('d'); os.chdir('d')\nos.chdir(here + '/c')\n"
    "while True:\n for i in range(80): open(f'f{i}', 'w').close()\n time.sleep(0.03)\n for i in range(80): os.unlink(f'f{i}')\n time.sleep(0.03)",
    "many folders": "import os, time\nfor i in range(1900): os.mkdir(str(i))\nwhile True:\n open('f', 'wb').write(bytes(3 << 20)); time.sleep(0.03); os.unlink('f'); time.sleep(0.03)",
    "long names": "import os, time\nfor i in range(1900):\n os.mkdir('d' * 250)\n if i < 15: os.chdir('d' * 250)\n else: os.rename('d' * 250, f'{i:0250}')\n"
    "while True:\n open('f', 'wb').write(bytes(3 << 20)); time.sleep(0.03); os.unlink('f'); time.sleep(0.03)",
    "processes": "import os, time\nwhile True:\n try:\n  if os.fork() == 0:\n   if os.fork() == 0: time.sleep(0.01)\n   os._exit(0)\n except OSError: pass\n try: os.waitpid(-1, os.WNOHANG)\n except OSError: pass",
}  # fmt: skip


@pytest.fixture(scope="module")
def sandbox() -> Iterator[DockerSandbox]:
    with DockerSandbox(sessions=64, spares=0, preload=(), containers=1) as opened:
        yield opened


@pytest.mark.docker
def test_no_churn_of_folders_or_processes_holds_up_the_others(sandbox: DockerSandbox) -> None:
    """The supervisor never works for longer than 40 ms of processor time before the next request has its turn."""
    bystander = sandbox.open()
    churning = [sandbox.open(Limits(wall_s=2.0)) for _ in range(2 * len(CHURN))]
    results: list[Any] = []

    def churn(session: Session, program: str) -> None:
        results.append(session.run(program))

    threads = [
        threading.Thread(target=churn, args=(session, program))
        for session, program in zip(churning, [*CHURN.values()] * 2, strict=True)
    ]
    sandbox.servers[0].figures()
    for thread in threads:
        thread.start()
    answers = 0
    while any(thread.is_alive() for thread in threads):
        assert bystander.run("6 * 7").value == "42"
        answers += 1
    for session in churning:
        session.close()
    seen = sandbox.servers[0].figures()
    assert seen["faults"] == 0
    assert seen["busiest"] < 0.04, seen
    assert answers > 20
    assert {str(result.status) for result in results} <= {"timeout", "process-limit"}, results
    bystander.close()


@pytest.mark.docker
def test_folders_of_many_sessions_are_emptied_a_few_at_a_time(sandbox: DockerSandbox) -> None:
    """Each needs a separate process; forty at once would stand between a run and its answer."""
    sessions = [sandbox.open() for _ in range(40)]
    for session in sessions:
        session.run("import os\nfor i in range(50): os.makedirs(f'{i}/a')")
    server = sandbox.servers[0]
    for session in sessions:
        session.close()
    while (seen := server.ping())["cleaning"] or seen["interpreters"]:
        assert server.figures()["cleaners"] <= 8
    assert server.figures()["faults"] == 0
