"""Owners of containers and folders: nothing of a living program is removed, in whatever namespace it lives."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from polyturn.sandbox import SandboxLost, SandboxUnavailable, docker, local, ownership
from polyturn.sandbox.docker import LABEL, OWNER_LABEL, DockerSandbox, connect, remove_orphans
from polyturn.sandbox.images import image
from polyturn.sandbox.local import LocalEngine, bubblewrap_works
from polyturn.sandbox.ownership import Owner, dead_owners, owner, remove_folders, remove_tree

OTHER_NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc"]
can_unshare = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root, to make a pid namespace"
)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files of this test's own, also for the programs it starts.

    Not pytest's, which every pytest that starts closes to other users; that one is made first, where it belongs.
    """
    folder = Path(tempfile.mkdtemp())
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(ownership, "_owner", None)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def program(code: str, *before: str, argument: str = "", **environment: str) -> subprocess.Popen[str]:
    """Starts Python code as another host program."""
    return subprocess.Popen(
        [*before, sys.executable, "-X", "dev", "-W", "ignore", "-c", code, argument],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def finish(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def wait_until(true_at_last: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true_at_last():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


OWNS = "from polyturn.sandbox.ownership import owner\nprint(owner().token, flush=True)\n"


def proved_dead() -> set[str]:
    with dead_owners() as dead:
        return set(dead)


@pytest.mark.parametrize("end", ["kill", "_exit", "return"])
def test_an_owner_is_dead_when_its_process_is_gone_however_it_ended(temporary: Path, end: str) -> None:
    last = {"kill": "input()", "_exit": "import os; os._exit(0)", "return": "owner().make_folder()"}[end]
    process = program(OWNS + last)
    token = line(process)
    if end == "kill":
        assert token not in proved_dead()
    finish(process)
    assert token in proved_dead()


def test_a_program_that_closes_everything_leaves_no_folder(temporary: Path) -> None:
    process = program(OWNS + "f = owner().make_folder()\nimport shutil; shutil.rmtree(f)")
    line(process)
    assert process.wait(30) == 0
    process.communicate()
    assert os.listdir(temporary / f"polyturn-owners-{os.getuid()}") == []


@can_unshare
def test_an_owner_in_another_pid_namespace_is_seen_alive_and_seen_dead(temporary: Path) -> None:
    """There it is process 1 or 2, ids that belong to other processes here. And the other way round."""
    process = program(OWNS + "input()", *OTHER_NAMESPACE)
    token = line(process)
    assert token not in proved_dead()
    mine = owner().token
    look = "from polyturn.sandbox.ownership import dead_owners\nwith dead_owners() as dead: print(*dead)"
    there = program(look, *OTHER_NAMESPACE)
    assert mine not in there.communicate()[0]
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    finish(process)
    assert wait_until(lambda: token in proved_dead())


def test_where_the_folder_is_not_found_or_says_another_machine_nothing_is_proved(
    temporary: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As between containers that share an engine and no files, and on a network disk where locks are local."""
    process = program(OWNS + "input()", TMPDIR=str(tmp_path_factory.mktemp("elsewhere")))
    token = line(process)
    finish(process)
    assert token not in proved_dead()
    process = program(OWNS + "input()")
    token = line(process)
    finish(process)
    (temporary / f"polyturn-owners-{os.getuid()}" / token / "lock").write_text("another boot")
    assert token not in proved_dead()


def test_a_forked_child_does_not_keep_its_parent_alive_and_is_another_owner(temporary: Path) -> None:
    process = program(
        OWNS + "import os, sys, time\nif os.fork() == 0:\n    print(owner().token, os.getpid(), flush=True)\n"
        "    time.sleep(60)\nos.wait()"
    )
    token = line(process)
    child, pid = line(process).split()
    try:
        assert child != token
        assert {child, token}.isdisjoint(proved_dead())
        process.kill()
        process.wait()
        assert token in proved_dead()
        assert child not in proved_dead()
    finally:
        os.kill(int(pid), signal.SIGKILL)
        process.communicate()


def test_a_folder_that_others_can_write_in_is_not_used(temporary: Path) -> None:
    (temporary / f"polyturn-owners-{os.getuid()}").mkdir(mode=0o777)
    (temporary / f"polyturn-owners-{os.getuid()}").chmod(0o777)
    with pytest.raises(SandboxUnavailable, match="another user can write in it; set TMPDIR"):
        Owner().make_folder()
    assert proved_dead() == set()
    assert len(docker.own_labels()[OWNER_LABEL]) == 32  # containers are marked all the same


def test_folders_of_containers_stay_until_their_engine_is_asked(temporary: Path) -> None:
    """A program that uses only the local sandbox cannot know whether the container is gone."""
    process = program(OWNS + "owner().make_folder('ENGINE'); owner().make_folder(); print('made', flush=True); input()")
    token = line(process)
    assert line(process) == "made"
    finish(process)
    folder = temporary / f"polyturn-owners-{os.getuid()}" / token
    for engine, left in (("", 2), ("ANOTHER", 2), ("ENGINE", None)):
        with dead_owners() as dead:
            assert dead == {token: folder}
            remove_folders(dead, engine)
        assert (len(os.listdir(folder)) if folder.exists() else None) == left, engine


def test_a_tree_of_any_depth_and_modes_is_removed(tmp_path: Path) -> None:
    deep = tmp_path / "tree"
    deep.mkdir()
    code = f"import os\nos.chdir({str(deep)!r})\nfor _ in range(1200): os.mkdir('d'); os.chdir('d')"
    subprocess.run([sys.executable, "-c", code], check=True)
    (deep / "closed").mkdir(mode=0)
    remove_tree(deep)
    assert not deep.exists()


# A host program whose forked children end in one of the usual ways; after each, the parent's session goes on.
FORKS = """
import gc, multiprocessing, os, sys
from polyturn.sandbox import SandboxError, open_sandbox
box, s = None, None
def ends(): pass
def leaves_by_an_error(): raise SystemExit
def uses_the_parents_session():
    try: print("WRONG", s.run("x"))
    except SandboxError as error: assert "belongs to the parent" in str(error)
    s.interrupt()
def closes_the_parents_session(): s.close(); box.close()
def opens_through_the_parents_handle():
    print("child", box.open().run("6 * 7").value, flush=True)
def collects_the_parents_objects():
    global s, box
    s = box = None
    files = [open(os.devnull) for _ in range(80)]
    gc.collect()
    for file in files: os.fstat(file.fileno())
children = [ends, leaves_by_an_error, uses_the_parents_session, closes_the_parents_session,
            opens_through_the_parents_handle, collects_the_parents_objects]
for options in ({}, {"spares": 0, "preload": ()}):
    box = open_sandbox(sys.argv[1], **options)
    s = box.open()
    s.run("x = 0")
    for child in children if not options else [ends, closes_the_parents_session]:
        if os.fork() == 0:
            child()
            sys.exit(0)
        os.wait()
        s.run("x += 1")
    process = multiprocessing.get_context("fork").Process(target=ends)
    process.start(); process.join()
    print("parent", s.run("x").value, flush=True)
    box.close()
"""


@pytest.mark.parametrize("kind", [pytest.param("docker", marks=pytest.mark.docker), "local"])
def test_a_forked_child_that_ends_normally_does_not_touch_its_parents_sandbox(kind: str) -> None:
    """Nothing is printed on standard error: closing a closed file would show there (Python 3.13, or -X dev).

    A child may open sessions through an inherited handle on the shared sandbox: they are its own sandbox's.
    """
    done = program(FORKS, argument=kind).communicate(timeout=90)
    assert done == ("child 42\nparent 6\nparent 2\n", "")


@pytest.mark.docker
def test_the_attached_stream_closes_without_a_word() -> None:
    code = "from polyturn.sandbox.docker import DockerSandbox\nDockerSandbox(transport='attach', preload=()).close()"
    assert program(code).communicate(timeout=90) == ("", "")


HOST = """
import sys, threading
from polyturn.sandbox import open_sandbox
box = open_sandbox(sys.argv[1], spares=0, preload=())
session = box.open()
print(box.servers[0].name, flush=True)
input()
print(session.run("6 * 7").value, flush=True)
"""


def host(kind: str, *before: str) -> subprocess.Popen[str]:
    command = [*before, sys.executable, "-W", "ignore", "-c", HOST, kind]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def client() -> Iterator[Any]:
    opened = connect()
    yield opened
    opened.close()


@pytest.mark.docker
@can_unshare
def test_programs_in_other_pid_namespaces_do_not_touch_each_others_containers(client: Any) -> None:
    """Both start, each sweeps, both go on: ids of processes, which mean nothing there, take no part."""
    there = host("docker", *OTHER_NAMESPACE)
    name = line(there)
    assert name not in remove_orphans(client)
    sweep = "from polyturn.sandbox.docker import connect, remove_orphans\nprint(remove_orphans(connect()))"
    with DockerSandbox(spares=0, preload=()) as sandbox:
        session = sandbox.open()
        swept = program(sweep, *OTHER_NAMESPACE).communicate(timeout=60)[0]
        assert sandbox.servers[0].name not in swept
        assert name not in swept
        assert session.run("6 * 7").value == "42"
    assert there.communicate("go on\n", timeout=60)[0] == "42\n"


@pytest.mark.docker
def test_only_containers_of_proved_dead_programs_are_removed(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = program(OWNS + "input()")
    token = line(ended)
    finish(ended)
    owners = {"orphan": token, "mine": owner().token, "unknown": "0" * 32, "of an older version": None}
    made = {}
    try:
        for case, label in owners.items():
            made[case] = f"polyturn-test-{os.getpid()}-{case.replace(' ', '-')}"
            labels = {LABEL: "1"} | ({OWNER_LABEL: label} if label else {})
            command = ["sleep", "60"]
            client.api.create_container(image.require(client), command=command, name=made[case], labels=labels)
        remove_orphans(client)  # or another test worker's, which may be faster

        def left() -> set[str]:
            entries = client.api.containers(all=True, filters={"label": LABEL})
            return {entry["Names"][0].lstrip("/") for entry in entries}

        assert wait_until(lambda: made["orphan"] not in left())
        assert {made["mine"], made["unknown"], made["of an older version"]} <= left()
        client.api.start(made["mine"])
        client.api.kill(made["mine"])  # nothing can be in it any more
        monkeypatch.setattr(docker, "NEVER_STARTED_S", -60.0)  # as if the two others had been made long ago
        monkeypatch.setattr(client.api, "containers", only(client.api.containers, set(made.values())))
        assert wait_until(lambda: remove_orphans(client) == [] and not left() & set(made.values()))
    finally:
        for name in made.values():
            docker.remove_container(client, name)


def only(listing: Callable[..., Any], names: set[str]) -> Callable[..., Any]:
    """The engine's list of containers, less those of other tests."""
    return lambda **options: [entry for entry in listing(**options) if entry["Names"][0].lstrip("/") in names]


@pytest.mark.parametrize("level", ["rootless", "plain"])
def test_what_a_killed_program_leaves_of_a_local_sandbox_is_removed_at_the_next_start(
    temporary: Path, level: str
) -> None:
    temporary.chmod(0o711)
    python = os.path.realpath("/usr/bin/python3" if level == "plain" else sys.executable)
    code = (
        "from polyturn.sandbox.local import LocalSandbox\n"
        f"box = LocalSandbox({level!r}, spares=0, preload=(), python={python!r})\nsession = box.open()\n"
        'session.run(\'import os; os.makedirs("a/b"); os.chmod("a", 0)\')\n'
        "print(box.servers[0].name, flush=True)\nsession.run('while True: pass', wall_s=60)"
    )
    try:
        LocalEngine(level, preload=(), python=python)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    if level == "rootless" and not bubblewrap_works():
        pytest.skip("bubblewrap does not work here")
    killed = program(code)
    assert line(killed) == f"local/{level}"
    children = descendants(killed.pid)
    assert children
    finish(killed)
    base = temporary / f"polyturn-owners-{os.getuid()}"
    assert len(os.listdir(base)) == 1
    assert wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    LocalEngine(level, spares=0, preload=(), python=python)().close()
    assert [entry.name for entry in base.iterdir()] == [owner().token]


def test_a_supervisor_whose_host_is_silent_for_long_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when an engine goes on holding the stream of a program that is gone."""
    monkeypatch.setattr(local, "SILENCE_S", 0.5)
    server = LocalEngine("rootless" if bubblewrap_works() else "plain", spares=0, preload=())()
    try:
        for _ in range(8):
            time.sleep(0.25)
            server.ping()
        time.sleep(2.5)
        with pytest.raises(SandboxLost):
            server.ping()
    finally:
        server.close()


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found
