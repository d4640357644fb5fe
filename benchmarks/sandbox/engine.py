"""A second Docker engine, which the suite stops and starts under load."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from polyturn.sandbox import Sandbox, SandboxError, SandboxLost, SandboxUnavailable, Session
from polyturn.sandbox.docker import connect


class OwnEngine:
    """A second `dockerd` with its own folders and socket and without a network; a context manager.

    Raises:
        SandboxUnavailable: `dockerd` is missing, the user is not root, or the engine does not answer.
    """

    def __init__(self) -> None:
        if os.geteuid() != 0 or shutil.which("dockerd") is None:
            raise SandboxUnavailable("a second engine needs root and `dockerd`")
        self._folder = Path(tempfile.mkdtemp(prefix="polyturn-engine-"))
        self.address = f"unix://{self._folder}/docker.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the engine and waits until it answers."""
        own = self._folder
        command = ["dockerd", "--iptables=false", "--bridge=none", "-H", self.address, "--data-root", str(own / "data"),
                   "--exec-root", str(own / "exec"), "--pidfile", str(own / "pid")]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(300):
            time.sleep(0.1)
            try:
                connect(self.address).close()
                return
            except SandboxError:
                continue
        self.stop()
        raise SandboxUnavailable("the second engine did not start")

    def stop(self) -> None:
        """Stops the engine and its containers."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None

    def load(self, image: str) -> None:
        """Copies an image from the machine's first engine."""
        saved = subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE)
        subprocess.run(["docker", "-H", self.address, "load"], stdin=saved.stdout, check=True, capture_output=True)
        saved.wait()

    def __enter__(self) -> OwnEngine:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        for mount in subprocess.run(["mount"], capture_output=True, text=True, check=False).stdout.splitlines():
            if str(self._folder) in mount:
                subprocess.run(["umount", "-l", mount.split()[2]], check=False)
        shutil.rmtree(self._folder, ignore_errors=True)


def under_load(sandbox: Sandbox, restart: Callable[[], None], *, callers: int, seconds: float) -> dict[str, int]:
    """Calls continuously while the engine restarts.

    Returns:
        Numbers of right answers before and after the restart, of wrong answers, of calls reported lost, and of
        sessions that were refused while the engine was down.
    """
    counts = {"right": 0, "wrong": 0, "lost": 0, "other": 0}
    stop, lock = threading.Event(), threading.Lock()

    def work() -> None:
        session: Session | None = None
        number = 0
        while not stop.is_set():
            number += 1
            try:
                session = session or sandbox.open()
                value = session.run(f"{number} + 1").value
                outcome = "right" if value == str(number + 1) else "wrong"
            except SandboxLost:
                outcome, session = "lost", None
            except SandboxError:
                outcome, session = "other", None
                time.sleep(0.2)
            with lock:
                counts[outcome] += 1

    threads = [threading.Thread(target=work) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        # Some time under load, the restart, then until every caller has an answer again.
        time.sleep(seconds)
        before = counts["right"]
        restart()
        back = counts["right"]
        deadline = time.monotonic() + 60
        while counts["right"] < back + callers and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(seconds)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return {
        "callers": callers,
        "right before": before,
        "right after": counts["right"] - back,
        "wrong": counts["wrong"],
        "calls reported lost": counts["lost"],
        "openings refused while it was down": counts["other"],
    }
