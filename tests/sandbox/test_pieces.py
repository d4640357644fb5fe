"""Parts of the sandbox, each alone: frames, captures, safe text, the filter, the image's label, the commands."""

from __future__ import annotations

import argparse
import array
import ast
import asyncio
import contextlib
import io
import os
import signal
import socket
import struct
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polyturn.sandbox import ImageMissing, SandboxLost, SandboxUnavailable, cli, local, open_sandbox, server
from polyturn.sandbox.images import image
from polyturn.sandbox.inside import isolation, zygote
from polyturn.sandbox.inside.capture import Capture
from polyturn.sandbox.link import FrameReader, StreamLink, encode
from polyturn.sandbox.server import BOOT, boot_frame, safe_text


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("plain\n\ttext", "plain\n\ttext"),
        ("Größe 日本 🎲", "Größe 日本 🎲"),
        ("a\x00b\x1b[31m\x7f\x9b", "a\\x00b\\x1b[31m\\x7f\\x9b"),
        ("line\r\nnext\rback", "line\nnext\\x0dback"),
        ("a\u202eb\u2066c\u2028d", "a\\u202eb\\u2066c\\u2028d"),
        ("\ud800", "\\ud800"),
    ],
)
def test_text_is_made_safe_to_print(written: str, shown: str) -> None:
    assert safe_text(written) == shown
    assert shown.encode()


def test_a_capture_keeps_head_and_tail_and_says_what_is_missing() -> None:
    capture = Capture(8)
    for piece in (b"abc", b"def", b"g" * 100, b"xyz"):
        capture.add(piece)
    # 109 bytes came, 4 + 4 are kept
    assert capture.text() == b"abcd\n... 101 bytes cut ...\ngxyz"
    assert capture.cut
    capture.clear()
    capture.add(b"12345678")
    assert (capture.text(), capture.cut) == (b"12345678", False)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
def test_a_capture_keeps_exactly_as_many_bytes_as_its_limit(limit: int) -> None:
    written = bytes(range(65, 65 + limit))
    for pieces in ([written], [written[i : i + 1] for i in range(limit)]):
        capture = Capture(limit)
        for piece in pieces:
            capture.add(piece)
        assert (capture.text(), capture.cut) == (written, False)
        capture.add(b"!")
        head, note, tail = capture.text().partition(b"\n... 1 bytes cut ...\n")
        assert (len(head + tail), bool(note), capture.cut) == (limit, True, True)
        assert (written + b"!").startswith(head)
        assert (written + b"!").endswith(tail)


def test_a_capture_of_a_flood_stays_small() -> None:
    capture = Capture(1000)
    for _ in range(2000):
        capture.add(b"x" * 65536)
    assert capture.total == 2000 * 65536
    assert len(capture.head) + len(capture.tail) < 5000


def test_frames_survive_any_cutting_of_the_stream() -> None:
    ours, theirs = socket.socketpair()
    data = b"".join(encode({"id": n, "text": "ä" * n}) for n in range(50))

    def send() -> None:
        for start in range(0, len(data), 7):
            theirs.sendall(data[start : start + 7])
        theirs.close()

    thread = threading.Thread(target=send)
    thread.start()
    reader = FrameReader(ours)
    assert [reader.read(None)["text"] for _ in range(50)] == ["ä" * n for n in range(50)]
    with pytest.raises(SandboxLost, match="ended"):
        reader.read(None)
    thread.join()
    ours.close()


@pytest.mark.parametrize("sent", [struct.pack(">I", 1 << 31), struct.pack(">I", 2) + b"[]"])
def test_what_is_no_frame_ends_the_link(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(sent)
    with pytest.raises(SandboxLost):
        FrameReader(ours).read(None)
    ours.close()
    theirs.close()


class Echo:
    """A supervisor's stand-in that answers in reverse order, two at a time where two have come."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        reader = FrameReader(self.theirs)
        try:
            while True:
                pair = [reader.read(None)]
                with contextlib.suppress(TimeoutError):  # the last caller is alone
                    pair.append(reader.read(time.monotonic() + 0.005))
                for request in reversed(pair):
                    self.theirs.sendall(encode({"id": request["id"], "twice": request["x"] * 2}))
        except SandboxLost:
            return


def test_callers_that_share_a_stream_get_their_own_answers() -> None:
    echo = Echo()
    link = StreamLink(echo.ours)
    answers: dict[int, int] = {}

    def call(number: int) -> None:
        for step in range(50):
            answers[number * 50 + step] = link.call({"x": number * 50 + step}, 30)["twice"]

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {n: 2 * n for n in range(400)}

    async def together() -> list[dict[str, Any]]:
        return await asyncio.gather(*[link.acall({"x": n}, 30) for n in range(100)])

    assert [answer["twice"] for answer in asyncio.run(together())] == [2 * n for n in range(100)]
    link.close()


def test_a_broken_stream_fails_all_waiting_calls() -> None:
    ours, theirs = socket.socketpair()
    link = StreamLink(ours)
    problems: list[str] = []

    def call() -> None:
        try:
            link.call({}, 30)
        except SandboxLost as error:
            problems.append(str(error))

    threads = [threading.Thread(target=call) for _ in range(5)]
    for thread in threads:
        thread.start()
    theirs.recv(1)
    while len(link._waiters) < 5:
        pass
    theirs.close()
    for thread in threads:
        thread.join(20)
    assert len(problems) == 5
    with pytest.raises(SandboxLost):
        link.call({}, 30)


def test_an_answer_that_does_not_come_is_a_lost_sandbox() -> None:
    ours, theirs = socket.socketpair()
    with pytest.raises(SandboxLost, match="did not answer"):
        StreamLink(ours).call({}, 0.05)
    theirs.close()


FILTERS = pytest.mark.skipif(not isolation.SUPPORTED, reason="the filter is for Linux on x86_64 and aarch64")
ALLOW, DENY, ABSENT, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000


def judged(
    program: bytes, number: int, argument: int = 0, machine: int | None = None, second: int | None = None
) -> int:
    """What the kernel would answer to a system call: the classic-BPF program carried out by hand.

    `argument` stands for every argument of the call, save the second where that is given.
    """
    fields = {
        0: number,
        4: machine or isolation._AUDIT_ARCH[isolation.MACHINE],
        **dict.fromkeys(range(16, 64, 8), argument),
        **({} if second is None else {24: second}),
    }
    code = list(struct.iter_unpack("HBBI", program))
    accumulator, at = 0, 0
    while True:
        operation, yes, no, value = code[at]
        if operation == 0x06:
            return int(value)
        if operation == 0x20:
            accumulator = fields[value]
            at += 1
            continue
        true = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[operation]
        at += 1 + (yes if true else no)


def both(
    number: int, argument: int = 0, *, processes: bool = True, programs: bool = False, second: int | None = None
) -> int:
    """What an episode meets: the zygote's filter, which it inherits, and its own; the stricter counts."""
    own = isolation.episode_program(processes=processes, programs=programs)
    answers = [judged(program, number, argument, None, second) for program in (isolation.zygote_program(), own)]
    return next((answer for answer in (KILL, DENY, ABSENT) if answer in answers), ALLOW)


@FILTERS
def test_the_filters_are_well_formed() -> None:
    """Every jump of the classic-BPF programs lands inside and the last instruction returns."""
    for program in (
        isolation.zygote_program(),
        isolation.episode_program(processes=True, programs=False),
        isolation.episode_program(processes=False, programs=True),
        isolation.silence_program(),
    ):
        code = list(struct.iter_unpack("HBBI", program))
        assert len(code) < 4096
        assert code[-1][0] == 0x06
        for index, (_, yes, no, _) in enumerate(code):
            assert index + 1 + max(yes, no) < len(code) or code[index][0] == 0x06


@FILTERS
def test_the_two_filters_together_allow_what_is_listed_and_nothing_else() -> None:
    """Call by call: what only an interpreter's entry needs is gone once the second filter is on."""
    column = 0 if isolation.MACHINE == "x86_64" else 1
    listed = {numbers[column] for numbers in isolation._ALLOWED.values()}
    entering = {numbers[column] for numbers in isolation._ENTERING.values()}
    isolated = (
        isolation._CLONE,
        isolation._FORK,
        isolation._VFORK,
        isolation._CLONE3,
        isolation._PRCTL,
        isolation._PRLIMIT,
    )
    special = {pair[column] for pair in (*isolated, isolation._SOCKETPAIR, isolation._EXECVE, isolation._EXECVEAT)}
    for number in range(512):
        if number not in special:
            expected = ALLOW if number in listed else DENY if number < isolation._NEWEST_KNOWN else ABSENT
            assert both(number) == expected, number
            if number in entering:
                assert judged(isolation.zygote_program(), number) == ALLOW, number
    assert judged(isolation.zygote_program(), isolation._ALLOWED["read"][column], machine=0x40000003) == KILL


@FILTERS
def test_what_the_filters_make_of_forks_programs_and_process_attributes() -> None:
    column = 0 if isolation.MACHINE == "x86_64" else 1
    clone, execve, prctl = (pair[column] for pair in (isolation._CLONE, isolation._EXECVE, isolation._PRCTL))
    thread, new_user = 0x00010000, 0x10000000
    assert (both(clone), both(clone, processes=False), both(clone, thread, processes=False)) == (ALLOW, DENY, ALLOW)
    assert both(clone, new_user) == both(clone, new_user | thread, processes=False) == DENY
    assert (both(execve), both(execve, programs=True)) == (DENY, ALLOW)
    assert both(isolation._CLONE3[column]) == ABSENT
    for option in (isolation.PR_SET_PDEATHSIG, isolation.PR_SET_DUMPABLE):
        assert judged(isolation.zygote_program(), prctl, option) == ALLOW
        assert both(prctl, option) == DENY
    assert both(prctl, 15) == ALLOW  # its own name
    assert both(isolation._SOCKETPAIR[column], 1) == ALLOW
    assert both(isolation._SOCKETPAIR[column], 2) == DENY
    cloexec, nonblock = 0x80000, 0x800
    for flags in (0, cloexec, nonblock, cloexec | nonblock):  # the second argument: a type and its flags
        allowed = [kind for kind in range(16) if both(isolation._SOCKETPAIR[column], 1, second=kind | flags) == ALLOW]
        assert allowed == [1, 5]  # streams and packets in sequence, which are connected for good


def test_where_no_copy_can_be_made_a_request_fails_at_once_and_its_descriptors_close() -> None:
    """The supervisor learns of it by the end of the channel that it sent along."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    near, far = socket.socketpair()

    def fork() -> int:
        raise OSError(11, "no more processes")

    room: Any = SimpleNamespace(fork=fork)
    assert zygote.copy_ahead(theirs, room)  # it was not asked for: it is tried again
    ours.sendmsg([b"{}"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [far.fileno()]))])
    far.close()
    assert zygote.copy_ahead(theirs, room)
    near.settimeout(5)
    assert near.recv(1) == b""
    for end in (ours, theirs, near):
        end.close()


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_copy_made_ahead_that_dies_is_replaced() -> None:
    """The one process of the zygote that belongs to no session yet is killed: the next session still opens."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        sandbox = open_sandbox("local", spares=0, preload=())
    with sandbox:
        for _ in range(3):
            deadline = time.monotonic() + 20
            while not (ahead := leaders_below(os.getpid())) and time.monotonic() < deadline:
                time.sleep(0.01)
            for pid in ahead:
                os.kill(pid, signal.SIGKILL)
            while set(ahead) & set(leaders_below(os.getpid())) and time.monotonic() < deadline:
                time.sleep(0.01)
            session = sandbox.open()
            assert session.run("6 * 7").value == "42"
            session.close()
            while len(leaders_below(os.getpid())) > 1 and time.monotonic() < deadline:
                time.sleep(0.01)


def leaders_below(pid: int) -> list[int]:
    """Descendants of descendants of a process that lead a process group of their own but no session."""
    parents, leading = {}, set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent, group, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                parents[int(entry.name)] = int(parent)
                if group == entry.name != session and state != "Z":
                    leading.add(int(entry.name))

    def below(one: int) -> bool:
        while one in parents and one != pid:
            one = parents[one]
        return one == pid

    return [one for one in leading if below(one)]


def test_the_boot_program_is_the_source_of_this_package() -> None:
    """The container runs what is installed here, so an image never holds an old supervisor."""
    compile(BOOT, "boot", "exec")
    frame = boot_frame({"answer": 42})
    assert struct.unpack(">I", frame[:4])[0] == len(frame) - 4
    assert b"def clone_sibling" in frame


def test_an_unknown_kind_is_refused_with_a_hint() -> None:
    with pytest.raises(ValueError, match="did you mean 'docker'"):
        open_sandbox("dokcer")


def test_docker_without_an_engine_fails_and_is_never_weaker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(SandboxUnavailable, match="no Docker engine answers at unix:///nowhere") as caught:
        open_sandbox("docker", sessions=1)
    assert "\n" not in str(caught.value)


def test_the_folder_inside_is_exactly_what_is_sent_into_a_sandbox() -> None:
    """The trust boundary is a folder: nothing in it stays outside, and nothing in it imports what does."""
    folder = Path(server.__file__).parent / "inside"
    assert {path.stem for path in folder.glob("*.py")} == {*server.INSIDE, "__init__"}
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("polyturn"):
                assert node.module.startswith("polyturn.sandbox.inside"), f"{path.name}: {node.module}"


def test_an_interpreter_below_the_sandboxs_own_folders_stays_visible() -> None:
    """A project under /work: the empty file system of the sessions must not be mounted over its Python."""
    command = local._bubblewrap(["/usr", "/work/project/.venv"], "/tmp", 1)
    mounts = [command[i + 1] for i, word in enumerate(command) if word in ("--tmpfs", "--ro-bind")]
    assert mounts.index("/work") < mounts.index("/usr")
    made = [command[i + 1] for i, word in enumerate(command) if word == "--dir"]
    assert "/work/project" in made
    assert "/work" not in made


def test_auto_without_an_engine_falls_back_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with open_sandbox("auto", spares=0) as sandbox:
            assert sandbox.capabilities.name.startswith("local/")
            assert sandbox.open().run("6 * 7").value == "42"
    assert any("falling back to the local sandbox" in str(warning.message) for warning in seen)


@pytest.mark.parametrize(
    "option",
    [{"runtime": "runsc"}, {"level": "strict"}, {"level": "standard"}, {"image": "mine"}, {"engines": ["tcp://x:1"]},
     {"memory_mb": 512}, {"cpus": 1}, {"containers": 2}, {"transport": "unix"}, {"spares": 0, "runtime": "kata"}],
    ids=str,
)  # fmt: skip
def test_an_option_that_only_docker_has_is_never_dropped_for_the_local_sandbox(
    option: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    name = next(name for name in option if name != "spares")
    with pytest.raises(SandboxUnavailable, match=f"no Docker engine answers.*The local sandbox has no {name}"):
        open_sandbox("auto", **option)


def test_an_option_that_both_have_reaches_the_local_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    monkeypatch.setattr(local.LocalSandbox, "start", lambda self: None)
    with pytest.warns(RuntimeWarning, match="falling back"):
        box = open_sandbox("auto", sessions=3, spares=0, preload=(), wait_s=1.0, runtime=None)
    engine = box._starters[0]  # type: ignore[attr-defined]
    assert (engine.sessions, engine.spares, engine.preload) == (3, 0, [])
    assert box._wait_s == 1.0  # type: ignore[attr-defined]
    box.close()


class Images:
    """An engine's image list of one image."""

    def __init__(self, name: str, label: str | None) -> None:
        self.name, self.label = name, label
        self.images = self

    def get(self, name: str) -> SimpleNamespace:
        from docker.errors import ImageNotFound

        if name != self.name:
            raise ImageNotFound("no such image")
        return SimpleNamespace(id="sha256:1", labels={image.CONTENT_LABEL: self.label} if self.label else {})


def test_an_image_must_be_there_and_made_from_this_recipe() -> None:
    good: Any = Images(image.default_name(), image.content())
    assert image.require(good) == "sha256:1"
    missing: Any = Images("another", None)
    with pytest.raises(ImageMissing, match="polyturn sandbox build"):
        image.require(missing)
    stale: Any = Images(image.default_name(), "0123456789ab")
    with pytest.raises(ImageMissing, match=f"recipe 0123456789ab, expected {image.content()}"):
        image.require(stale)
    assert image.require(missing, "another") == "sha256:1"
    own: Any = Images(image.host_name(), image.host_content())
    assert image.require(own) == "sha256:1"  # made from this machine's Python, in place of the project's
    other: Any = Images(image.host_name(), "0123456789ab")
    with pytest.raises(ImageMissing, match="polyturn sandbox build"):
        image.require(other)
    assert image.default_name(["python3-scipy"]) != image.default_name()


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    cli.add_commands(parser.add_subparsers())
    parsed = parser.parse_args(["sandbox", *arguments])
    code: int = parsed.run(parsed)
    return code


def test_run_prints_what_the_program_printed_and_its_value(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text("print('hello')\n6 * 7")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert command("run", str(program), "--sandbox", "local") == 0
        assert capsys.readouterr().out == "hello\n42\n"
        monkeypatch.setattr(sys, "stdin", io.StringIO("1 / 0"))
        assert command("run", "--sandbox", "local") == 1
        assert "ZeroDivisionError" in capsys.readouterr().err


def test_commands_fail_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    for arguments in (["run", str(tmp_path / "none.py")], ["clean"], ["build"]):
        assert command(*arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("polyturn sandbox: ")
        assert error.count("\n") == 1
    assert command("check", "--sandbox", "docker") == 1
    assert "docker: does not work here" in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("1"))
    assert command("run", "--sandbox", "dokcer") == 2


@pytest.mark.parametrize("name", ["build", "check", "run", "clean"])
def test_every_command_shows_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command(name, "--help")
    assert "example" in capsys.readouterr().out
