"""Ways to run a snippet of Python from a trainer, with one small interface: the sandbox, and other tools."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import types
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polyturn.sandbox import Limits, Sandbox, SandboxError, open_sandbox
from polyturn.sandbox.images import image as images

Call = Callable[[str], str]
"""Runs a program and returns its output."""


@contextmanager
def _ours(kind: str, **options: Any) -> Iterator[Callable[[], Call]]:
    sandbox: Sandbox = open_sandbox(kind, spares=0, **options)
    with sandbox:

        def worker() -> Call:
            session = sandbox.open(Limits(wall_s=30.0))
            return lambda code: session.run(code).stdout

        yield worker


@contextmanager
def _subprocess() -> Iterator[Callable[[], Call]]:
    def call(code: str) -> str:
        # through standard input, because an argument has at most 128 KiB
        return subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, check=False).stdout

    yield lambda: call


def _flags() -> list[str]:
    return ["--network", "none", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]


@contextmanager
def _docker_run() -> Iterator[Callable[[], Call]]:
    command = ["docker", "run", "--rm", "-i", *_flags(), images.default_name(), "python3", "-"]

    def call(code: str) -> str:
        return subprocess.run(command, input=code, capture_output=True, text=True, check=False).stdout

    yield lambda: call


@contextmanager
def _container(name: str, *more: str, command: tuple[str, ...] = ("sleep", "3600")) -> Iterator[str]:
    own = f"polyturn-bench-{uuid.uuid4().hex[:8]}"
    subprocess.run(["docker", "run", "-d", "--rm", "--init", "--name", own, *_flags(), *more, name, *command],
                   check=True, capture_output=True)  # fmt: skip
    try:
        yield own
    finally:
        subprocess.run(["docker", "rm", "-f", own], capture_output=True, check=False)


@contextmanager
def _docker_exec() -> Iterator[Callable[[], Call]]:
    with _container(images.default_name()) as name:
        command = ["docker", "exec", "-i", name, "python3", "-"]

        def call(code: str) -> str:
            return subprocess.run(command, input=code, capture_output=True, text=True, check=False).stdout

        yield lambda: call


@contextmanager
def _docker_exec_sdk() -> Iterator[Callable[[], Call]]:
    from polyturn.sandbox.docker import connect

    with _container(images.default_name()) as name, contextlib.closing(connect()) as client:
        container = client.containers.get(name)

        def call(code: str) -> str:
            output: bytes = container.exec_run(["python3", "-c", code]).output
            return output.decode()

        yield lambda: call


@contextmanager
def _jupyter() -> Iterator[Callable[[], Call]]:
    """A kernel in a container for each worker, over ZeroMQ sockets in a bind-mounted folder."""
    client_module = importlib.import_module("jupyter_client.blocking")
    name = images.default_name(["python3-ipykernel"])
    with contextlib.ExitStack() as stack:

        def worker() -> Call:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            os.chmod(folder, 0o777)
            ports = dict(
                zip(("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port"), range(1, 6), strict=True)
            )
            information = {**ports, "transport": "ipc", "ip": "/k/s", "key": "key", "signature_scheme": "hmac-sha256"}
            Path(folder, "connection.json").write_text(json.dumps(information))
            launch = ("python3", "-m", "ipykernel_launcher", "-f", "/k/connection.json",
                      "--HistoryManager.enabled=False")  # fmt: skip
            more = (
                "-v",
                f"{folder}:/k",
                "--tmpfs",
                "/tmp",
                "-e",
                "HOME=/k",
                "-e",
                "IPYTHONDIR=/k/i",
                "-e",
                "JUPYTER_RUNTIME_DIR=/k/j",
            )
            stack.enter_context(_container(name, *more, command=launch))
            for _ in range(1200):  # without its sockets the client would take the kernel for dead
                if all(os.path.exists(f"{folder}/s-{port}") for port in range(1, 6)):
                    break
                time.sleep(0.05)
            client = client_module.BlockingKernelClient()
            client.load_connection_info({**information, "key": b"key", "ip": f"{folder}/s"})
            client.start_channels()
            stack.callback(client.stop_channels)
            client.wait_for_ready(timeout=120)

            def call(code: str) -> str:
                said: list[str] = []

                def hear(message: Any) -> None:
                    if message["msg_type"] == "stream":
                        said.append(message["content"]["text"])

                client.execute_interactive(code, output_hook=hear, timeout=120)
                return "".join(said)

            for _ in range(100):  # outputs are lost until the subscription reaches the kernel
                if call("print(1+1)").strip() == "2":
                    break
                time.sleep(0.1)
            return call

        yield worker


@contextmanager
def _gem() -> Iterator[Callable[[], Call]]:
    """gem-llm's Python tool as released: an interpreter on the host for each call, after a list of forbidden words."""
    found = importlib.util.find_spec("gem")
    if found is None:
        raise ImportError("gem-llm is not installed")
    package = types.ModuleType("gem")  # without its `__init__`, which imports every environment
    package.__path__ = list(found.submodule_search_locations or [])
    sys.modules.setdefault("gem", package)
    run_python = importlib.import_module("gem.utils.sandbox").run_python

    def call(code: str) -> str:
        result = run_python(code, "none", timeout=60)
        return str(result[1] if isinstance(result, tuple) else result)

    yield lambda: call


def _image_with_python() -> str:
    """The sandbox image with a link named `python`, which llm-sandbox calls."""
    name = f"polyturn-bench-python:{images.content()}"
    recipe = f'FROM {images.default_name()}\nRUN ["ln", "-sf", "/usr/bin/python3", "/usr/bin/python"]\n'
    command = ["docker", "build", "--network", "none", "-t", name, "-"]
    done = subprocess.run(command, input=recipe, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SandboxError(f"no image with a link named python: {done.stderr.strip().splitlines()[-1:]}")
    return name


@contextmanager
def _llm_sandbox() -> Iterator[Callable[[], Call]]:
    """llm-sandbox on Docker: for each call it copies a file into the container and starts an interpreter by exec."""
    module = importlib.import_module("llm_sandbox")
    name = _image_with_python()
    with contextlib.ExitStack() as stack:

        def worker() -> Call:
            session = module.SandboxSession(
                lang="python",
                image=name,
                keep_template=True,
                skip_environment_setup=True,
                runtime_configs={"command": ["sleep", "3600"], "init": True},  # otherwise stopping takes ten seconds
            )
            stack.enter_context(session)
            return lambda code: str(session.run(code).stdout)

        yield worker


WAYS: dict[str, Callable[[], Any]] = {
    "ours: Docker, Unix socket": lambda: _ours("docker", transport="unix"),
    "ours: Docker, attach stream": lambda: _ours("docker", transport="attach"),
    "ours: Docker, gVisor": lambda: _ours("docker", runtime="runsc", transport="attach"),
    "ours: local, rootless": lambda: _ours("local"),
    "Jupyter kernel in a container": _jupyter,
    "subprocess on the host": _subprocess,
    "gem-llm 0.1 (host)": _gem,
    "docker exec, SDK": _docker_exec_sdk,
    "docker exec, command line": _docker_exec,
    "llm-sandbox 0.3 (Docker)": _llm_sandbox,
    "docker run, command line": _docker_run,
}
"""Context managers by name; each yields a function that makes a `Call` for one worker."""


def timed(call: Call, code: str, repeats: int, seconds: float) -> list[float]:
    """Seconds of each call: up to `repeats` calls or for `seconds`, but at least three calls."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < repeats and (time.perf_counter() < end or len(taken) < 3):
        start = time.perf_counter()
        call(code)
        taken.append(time.perf_counter() - start)
    return taken
