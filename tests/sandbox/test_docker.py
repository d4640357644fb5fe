# ruff: noqa: E501 (one program a line reads better than a program folded)
"""The Docker backend's life: how a container is locked down, that it never outlives its program, how loss is told."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polyturn.sandbox import ImageMissing, Limits, SandboxLost, SandboxUnavailable, Status, link, open_sandbox
from polyturn.sandbox.docker import LABEL, DockerEngine, DockerSandbox, connect
from polyturn.sandbox.images import host_image, image

pytestmark = pytest.mark.docker

PROGRAM = """
import sys, threading
from polyturn.sandbox.docker import DockerSandbox
sandbox = DockerSandbox(spares=0, preload=(), transport=sys.argv[1])
session = sandbox.open()
print(sandbox.servers[0].name, flush=True)
def work():
    while True: session.run("sum(range(10000))")
threading.Thread(target=work, daemon=True).start()
sys.stdin.read()
if sys.argv[2] == "raise": raise RuntimeError("the trainer fails")
"""


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    opened = connect()
    yield opened
    opened.close()


def names(client: Any) -> set[str]:
    """Every sandbox container of the engine, running or not."""
    return {
        entry["Names"][0].lstrip("/")
        for entry in client.api.containers(all=True, filters={"label": LABEL})
        if entry["Names"]
    }


def gone(client: Any, name: str, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while name in names(client):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_the_container_is_locked_down(client: Any) -> None:
    with DockerSandbox(spares=0, preload=()) as sandbox:
        details = client.api.inspect_container(sandbox.servers[0].name)
    host, config = details["HostConfig"], details["Config"]
    assert host["NetworkMode"] == "none"
    assert host["IpcMode"] == "none"
    assert host["ReadonlyRootfs"] is True
    assert host["Privileged"] is False
    assert host["CapDrop"] == ["ALL"]
    granted = sorted(capability.removeprefix("CAP_") for capability in host["CapAdd"])
    assert granted == ["KILL", "SETGID", "SETUID", "SYS_NICE"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]  # and the engine's default seccomp profile
    assert host["PidsLimit"] > 0
    assert host["Memory"] > 0
    assert host["MemorySwap"] == host["Memory"]
    assert host["LogConfig"]["Type"] == "none"
    assert host["AutoRemove"] is True
    assert not host["Devices"]
    assert "noexec" in host["Tmpfs"]["/work"]
    assert [mount["Target"] for mount in host["Mounts"]] == ["/run/polyturn"]
    assert not any("docker.sock" in mount["Source"] for mount in host["Mounts"])
    assert config["NetworkDisabled"] is True
    assert not any(name in str(config["Env"]) for name in ("HOME", "USER", "TOKEN"))


def test_a_long_run_loses_priority_and_the_next_one_has_it_again() -> None:
    """Priorities as the program itself sees them: 5 for every run, 19 once it has worked for more than 50 ms."""
    work = "import os, time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass\n"
    mine = "os.getpriority(os.PRIO_PROCESS, 0)"
    with DockerSandbox(spares=0, preload=()) as sandbox:
        session = sandbox.open(Limits(wall_s=30))
        assert session.run(f"import os\n{mine}").value == "5"
        assert session.run(work + mine).value == "19"
        assert session.run(mine).value == "5"
        assert session.run(f"{work}{mine}").value == "19"
        branch = session.fork()  # off an interpreter that is still last in line
        assert branch.run(mine).value == "5"
        refused = branch.run("os.setpriority(os.PRIO_PROCESS, 0, 0)")
        assert "PermissionError" in (refused.error or "")
        assert "PermissionError" in (branch.run("os.sched_setscheduler(0, 0, os.sched_param(0))").error or "")


def test_nothing_of_the_hosts_environment_gets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTURN_TEST_SECRET", "hunter2")
    with DockerSandbox(spares=0, preload=()) as sandbox:
        session = sandbox.open()
        assert "hunter2" not in (session.run("import os; dict(os.environ)").value or "")


@pytest.mark.parametrize("transport", ["unix", "attach"])
def test_both_transports_serve_many_threads(transport: str) -> None:
    wrong: list[object] = []
    with DockerSandbox(transport=transport, spares=0, preload=()) as sandbox:

        def work(number: int) -> None:
            session = sandbox.open(Limits(wall_s=30))
            answers = [session.run(f"{number} * 1000 + {step}").value for step in range(50)]
            wrong.extend(set(answers) - {str(number * 1000 + step) for step in range(50)})
            session.close()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("transport", "end"), [("unix", "kill"), ("attach", "kill"), ("unix", "term"), ("unix", "raise"), ("unix", "exit")]
)
def test_the_container_ends_with_the_program_however_that_ends(client: Any, transport: str, end: str) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, transport, end],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    name = program.stdout.readline().strip()
    assert name in names(client)
    if end in ("kill", "term"):
        program.send_signal(signal.SIGKILL if end == "kill" else signal.SIGTERM)
    program.stdin.close()
    program.wait(30)
    program.stdout.close()
    assert gone(client, name)


def test_a_killed_container_is_a_loss_not_a_result_and_the_next_episode_works(client: Any) -> None:
    with DockerSandbox(spares=0, preload=()) as sandbox:
        session = sandbox.open()
        name = sandbox.servers[0].name
        timer = threading.Timer(0.5, lambda: client.api.kill(name))
        timer.start()
        with pytest.raises(SandboxLost, match=name):
            session.run("import time; time.sleep(20)", wall_s=20)
        timer.join()
        with pytest.raises(SandboxLost):
            session.run("1")
        session.close()
        after = sandbox.open()
        assert after.run("6 * 7").value == "42"
        assert sandbox.servers[0].name != name


@pytest.mark.parametrize("transport", ["unix", "attach"])
def test_a_paused_container_is_noticed_soon_after_the_time_of_a_run(
    client: Any, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    """From blocking callers and from asyncio; a slow answer by itself is no loss, as long as the supervisor lives."""
    monkeypatch.setattr(link, "_DOUBT_S", 0.3)
    monkeypatch.setattr(link, "_PROBE_S", 1.0)
    with DockerSandbox(spares=0, preload=(), transport=transport, wait_s=20) as sandbox:
        sessions = [sandbox.open(Limits(wall_s=0.2)) for _ in range(3)]
        # It ignores the interrupt and is killed half a second later: after the first question.
        stubborn = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
        assert sessions[2].run(stubborn).status is Status.TIMEOUT
        lost: dict[str, float] = {}

        def run() -> None:
            start = time.monotonic()
            with pytest.raises(SandboxLost, match="no sign of life within 1 s: its container, or the Docker engine"):
                sessions[0].run("1")
            lost["run"] = time.monotonic() - start

        async def arun() -> None:
            start = time.monotonic()
            with pytest.raises(SandboxLost, match="no sign of life"):
                await sessions[1].arun("1")
            lost["arun"] = time.monotonic() - start

        client.api.pause(sandbox.servers[0].name)
        threads = [threading.Thread(target=run), threading.Thread(target=lambda: asyncio.run(arun()))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(lost) == {"run", "arun"}
        assert max(lost.values()) < 10  # 0.2 + 0.3 + 1.0 on a quiet machine; 40 where nothing asks
        with sandbox.open() as after:
            assert after.run("6 * 7").value == "42"


def test_strict_gives_every_session_a_container(client: Any) -> None:
    with DockerSandbox(level="strict", preload=(), containers=2, wait_s=0.1) as sandbox:
        first, second = sandbox.open(), sandbox.open()
        assert first.run("6 * 7").value == second.run("42").value == "42"
        assert len(sandbox.servers) == 2
        with pytest.raises(Exception, match="were full"):
            sandbox.open()
        assert not sandbox.capabilities.fork


def test_a_missing_image_says_how_to_build_it() -> None:
    with pytest.raises(ImageMissing, match="no image nobody/nothing:1: pull or build it first"):
        open_sandbox("docker", image="nobody/nothing:1")


@pytest.mark.parametrize(
    ("runtime", "remedy"),
    [("nowhere", "daemon.json"), ("rnuc", "did you mean 'runc'"), ("runscc", "did you mean 'runsc'")],
)
def test_a_runtime_the_engine_does_not_have_is_named_with_a_remedy(runtime: str, remedy: str) -> None:
    with pytest.raises(SandboxUnavailable, match=f"no runtime '{runtime}'; it has: .*runc.*: .*{remedy}"):
        open_sandbox("docker", runtime=runtime)


@pytest.mark.parametrize("option", [{"runtime": "runscc"}, {"image": "nobody/nothing:1"}], ids=str)
def test_auto_with_something_that_cannot_be_had_fails_closed(option: dict[str, str]) -> None:
    with pytest.raises((SandboxUnavailable, ImageMissing), match=f"The local sandbox has no {next(iter(option))}"):
        open_sandbox(**option)


def test_strict_is_one_session_a_container_with_any_other_options() -> None:
    with pytest.raises(ValueError, match="one session a container, not sessions=64"):
        DockerSandbox(level="strict", sessions=64)
    with pytest.raises(ValueError, match="engines is a list of addresses"):
        DockerSandbox(engines=[])


def test_an_engine_that_takes_another_runtime_is_refused(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some engines take the request and ignore this part of it; the container made is removed."""
    engine = DockerEngine(runtime="runc", spares=0)
    before = names(client)
    engine.runtime = "runc-fast"
    create = engine.client.api.create_host_config
    monkeypatch.setattr(
        engine.client.api, "create_host_config", lambda **options: create(**{**options, "runtime": "runc"})
    )
    with pytest.raises(SandboxUnavailable, match="asked for the runtime 'runc-fast' and took 'runc'"):
        engine()
    assert names(client) <= before


def test_a_runtime_without_sockets_falls_back_to_the_stream_once(client: Any) -> None:
    if "runsc" not in client.info()["Runtimes"]:
        with pytest.raises(SandboxUnavailable, match=r"no runtime 'runsc'.*install gVisor \(https://gvisor.dev"):
            DockerSandbox(runtime="runsc")
        pytest.skip("the Docker engine has no runtime 'runsc' (gVisor)")
    engine = DockerEngine(runtime="runsc", spares=0)
    server = engine()
    try:
        assert server.ready["abi"] == 0
        assert engine.transport == "attach"
        assert server.open(Limits(), 0, lambda: None).run("6 * 7").value == "42"
    finally:
        server.close()


def test_a_runtime_is_passed_on_to_the_engine(client: Any) -> None:
    with DockerSandbox(runtime="runc", spares=0, preload=()) as sandbox:
        assert client.api.inspect_container(sandbox.servers[0].name)["HostConfig"]["Runtime"] == "runc"


@pytest.fixture
def remote_engine() -> Iterator[str]:
    """The same engine behind a TCP port: nothing may assume that paths of this machine exist there."""
    address = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            for end in (source, sink):
                end.close()

    def serve() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(address.removeprefix("unix://"))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    if not address.startswith("unix://"):
        yield address  # it is remote already
    else:
        threading.Thread(target=serve, daemon=True).start()
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


def test_a_remote_engine_needs_no_folder_of_this_machine(
    client: Any, remote_engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", remote_engine)
    with open_sandbox("docker", spares=0) as sandbox:
        session = sandbox.open()
        assert session.run("x = 40").ok
        assert session.run("print('y' * 300_000)\nx + 2").value == "42"
        branch = session.fork()
        assert branch.run("x").value == "40"
        assert isinstance(sandbox, DockerSandbox)
        name = sandbox.servers[0].name
        assert not client.api.inspect_container(name)["HostConfig"].get("Mounts")
    assert gone(client, name)


def test_several_engines_share_the_sessions(client: Any, remote_engine: str) -> None:
    engines = [remote_engine, os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")]
    with DockerSandbox(engines=engines, sessions=1, containers=2, spares=0, preload=()) as sandbox:
        sessions = [sandbox.open(), sandbox.open()]
        assert [session.run("6 * 7").value for session in sessions] == ["42", "42"]
        mounts = [client.api.inspect_container(server.name)["HostConfig"].get("Mounts") for server in sandbox.servers]
        assert sorted(bool(mount) for mount in mounts) == [False, True]  # one of each kind


def test_an_engine_that_does_not_answer_is_named(remote_engine: str) -> None:
    with pytest.raises(SandboxUnavailable, match=r"no Docker engine answers at tcp://127\.0\.0\.1:9"):
        DockerSandbox(engines=[remote_engine, "tcp://127.0.0.1:9"])


def test_the_shared_sandbox_is_one_container_for_all_callers() -> None:
    first, second = open_sandbox("docker"), open_sandbox("docker")
    one, two = first.open(), second.open()
    assert one.run("import os; os.uname().nodename, os.getpid()").ok
    first.close()  # ends the sessions opened through it, not the container
    assert two.run("6 * 7").value == "42"
    with pytest.raises(Exception, match="closed"):
        one.run("1")
    third = open_sandbox("docker")
    assert third.open().run("1").status is Status.OK
    third.close()
    second.close()


def test_in_another_process_a_handle_is_that_process_own_sandbox() -> None:
    """As under Ray, where every node uses its own engine; a sandbox made with options cannot be sent, and says so."""
    handle = open_sandbox("docker")
    handle.open().run("x = 1")
    program = (
        "import pickle, sys\nsandbox = pickle.loads(sys.stdin.buffer.read())\n"
        "print(sandbox.open().run('6 * 7').value, sandbox._pool.servers[0].name)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(handle), capture_output=True, check=True, timeout=60
    )
    value, name = answer.stdout.decode().split()
    assert value == "42"
    assert name not in [server.name for server in handle._pool.servers]  # type: ignore[attr-defined]
    handle.close()
    with (
        DockerSandbox(spares=0, preload=()) as own,
        pytest.raises(TypeError, match=r"call open_sandbox\(\.\.\.\) where it is used"),
    ):
        pickle.dumps(own)


def test_the_containers_memory_limit_ends_the_biggest_and_spares_the_rest() -> None:
    """Three sessions may each have 700 MiB, the container 1 GiB: the kernel ends one, and the status says memory."""
    with DockerSandbox(memory_mb=1024, spares=0, preload=()) as sandbox:
        honest = sandbox.open()
        honest.run("x = 1")
        results = []

        def hog() -> None:
            session = sandbox.open(Limits(wall_s=30, memory_mb=700))
            results.append(
                session.run(
                    "import time\nx = bytearray(650 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1\ntime.sleep(1)"
                )
            )

        threads = [threading.Thread(target=hog) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {result.status for result in results} <= {Status.OK, Status.MEMORY}
        assert [result for result in results if result.status is Status.MEMORY]
        assert honest.run("x").value == "1"


def test_a_forked_copy_of_the_program_gets_another_sandbox() -> None:
    code = (
        "import os\nfrom polyturn.sandbox import open_sandbox\n"
        "box = open_sandbox('docker', preload=()); s = box.open(); s.run('x = 1')\n"
        "pid = os.fork()\n"
        "if pid == 0:\n    t = open_sandbox('docker', preload=()).open(); ok = t.run('6*7').value == '42'; os._exit(0 if ok else 1)\n"
        "assert os.waitpid(pid, 0)[1] == 0\nassert s.run('x').value == '1'\nprint('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "fine\n", done.stderr


def test_an_image_of_this_machines_python_runs_programs(client: Any, tmp_path: Path) -> None:
    """The small form, without packages: the interpreter, its standard library and the libraries they need."""
    name = f"polyturn-test-host:{os.getpid()}"
    archive = tmp_path / "root.tar"
    host_image.write_archive(archive, [])
    repository, tag = name.split(":")
    client.api.import_image_from_file(str(archive), repository=repository, tag=tag)
    try:
        with DockerSandbox(image=name, preload=(), spares=0) as sandbox:
            session = sandbox.open()
            assert session.run("print(1 + 1)").stdout == "2\n"
            assert session.run("import sys; sys.version").value == repr(sys.version)
            result = session.run("import json, decimal, sqlite3, hashlib\nhashlib.sha256(b'').hexdigest()[:8]")
            assert result.value == "'e3b0c442'"
    finally:
        client.images.remove(name, force=True)


def test_an_image_needs_what_is_installed_here() -> None:
    with pytest.raises(SandboxUnavailable, match="'no-such-thing' is not installed here"):
        image.host_name(["no-such-thing"])
    assert {"numpy", "sympy", "mpmath"} <= set(host_image.closure(host_image.DISTRIBUTIONS))
    assert image.host_name() != image.default_name()
