"""Episodes without Docker: the same supervisor under bubblewrap where that works, as a plain process otherwise.

What each level protects is in its `Capabilities`, and what it does not is said once, in one line.
"""

from __future__ import annotations

import atexit
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from polyturn.sandbox.inside import isolation
from polyturn.sandbox.link import Link, SocketLink, StreamLink
from polyturn.sandbox.ownership import dead_owners, fits_a_socket, owner, remove_folders, remove_tree
from polyturn.sandbox.pool import Pool
from polyturn.sandbox.sandbox import Capabilities, SandboxLost, SandboxUnavailable, check_number, warn_once
from polyturn.sandbox.server import BOOT, FORK_S, PYTHON_FLAGS, SILENCE_S, Server, boot_frame

START_TIMEOUT_S = 60.0
_DEVICES = ["/dev/zero", "/dev/full", "/dev/urandom", "/dev/random"]
_SYSTEM = ["/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin"]


def python_paths(preload: Sequence[str]) -> list[str]:
    """Folders a bare interpreter needs on its path to import `preload`."""
    folders = []
    for name in preload:
        spec = find_spec(name)
        if spec is None or not spec.origin:
            raise SandboxUnavailable(
                f"the module {name!r} is not installed here, so the local sandbox cannot preload it"
            )
        origin = Path(spec.origin)
        folders.append(str(origin.parent.parent if origin.name == "__init__.py" else origin.parent))
    return list(dict.fromkeys(folders))


def _readable(python: str, paths: list[str]) -> list[str]:
    """What an episode may read of this machine: the system's and the interpreter's own files."""
    prefix = os.path.dirname(os.path.dirname(python))
    wanted = [*_SYSTEM, prefix, *paths, "/etc/ld.so.cache"]
    kept: list[str] = []
    for path in sorted(dict.fromkeys(wanted)):
        if not any(path.startswith(f"{parent}/") for parent in kept):
            kept.append(path)
    return kept


def _others_may_read(path: str) -> bool:
    """Whether any user may enter a folder."""
    return all(os.stat(part).st_mode & 0o001 for part in [path, *map(str, Path(path).parents)])


def _bubblewrap(readable: list[str], socket_folder: str, work_mb: int) -> list[str]:
    """The command prefix that makes the namespaces: nothing of the host but the interpreter, read-only."""
    namespaces = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    command = ["bwrap", *namespaces, "--die-with-parent", "--as-pid-1", "--clearenv", "--hostname", "sandbox"]
    if os.geteuid() != 0:
        command += ["--unshare-user"]
    else:  # real root keeps just what it needs to become other users, and the ids it becomes must exist
        command += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_KILL"]
    command += ["--proc", "/proc", "--dev", "/dev", "--bind", socket_folder, "/run/polyturn"]
    command += ["--perms", "0731", "--size", str(work_mb << 20), "--tmpfs", "/work", "--chdir", "/"]
    # After the file systems of the sandbox's own, which would hide an interpreter that lies below one of them.
    for path in readable:
        for parent in reversed(Path(path).parents[:-1]):  # an interpreter in a closed home folder is still reachable
            if str(parent) != "/work":
                command += ["--perms", "0755", "--dir", str(parent)]
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            command += ["--ro-bind", path, path]
    for name, value in environment().items():
        command += ["--setenv", name, value]
    return [*command, "--"]


def environment() -> dict[str, str]:
    """The whole environment of the supervisor: nothing of the host program's."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",
    }


def bubblewrap_works() -> bool:
    """Whether bubblewrap is installed and the kernel lets this user make the namespaces."""
    if sys.platform != "linux" or shutil.which("bwrap") is None or not isolation.SUPPORTED:
        return False
    python = os.path.realpath(sys.executable)
    command = [*_bubblewrap(_readable(python, []), tempfile.gettempdir(), 1), python, "-S", "-c", "pass"]
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


class LocalEngine:
    """Starts servers as processes of this machine.

    Args:
        level: "rootless" (bubblewrap namespaces, seccomp, Landlock) or "plain" (no namespaces; seccomp, Landlock
            and rlimits as far as the kernel has them).
        sessions: Sessions one server holds.
        spares: Interpreters kept ready.
        preload: Modules imported once and shared by every session.
        python: The interpreter; None means the one running now.
        work_mb: Room for the files of all sessions, MiB (rootless only).
    """

    def __init__(
        self,
        level: str,
        *,
        sessions: int = 256,
        spares: int = 2,
        preload: Sequence[str] = ("numpy", "sympy"),
        python: str | None = None,
        work_mb: int = 1024,
    ) -> None:
        check_number("sessions", sessions, 1, 4096)
        check_number("spares", spares, 0, 4096)
        check_number("work_mb", work_mb, 1, 1 << 24)
        self.python = os.path.realpath(python or sys.executable)
        self.level, self.sessions, self.spares = level, sessions, spares
        self.preload, self.work_mb = list(preload), work_mb
        self.paths = python_paths(preload)
        self.users = isolation.LINUX and os.geteuid() == 0
        if (
            self.users
            and level == "plain"
            and not all(map(_others_may_read, [os.path.dirname(self.python), *self.paths]))
        ):
            raise SandboxUnavailable(
                f"episodes get separate user ids, which cannot read {self.python} or its packages: install "
                "bubblewrap (`apt install bubblewrap`), or use an interpreter that every user may read"
            )
        # Where all episodes share one user id, the kernel's process limit would be that of all together; a user
        # namespace at least keeps a fork bomb from the user's other programs.
        self.forks = isolation.SUPPORTED and (self.users or (level == "rootless" and isolation.landlock_abi() >= 6))

    def capabilities(self) -> Capabilities:
        """What this level protects here."""
        rootless = self.level == "rootless"
        landlock = isolation.landlock_abi() > 0
        missing = [
            text
            for text, there in (
                ("the network", isolation.SUPPORTED),
                ("this machine's files", rootless or landlock),
                ("episodes from each other's user id", self.users),
                ("against kernel flaws as a container would", False),
            )
            if not there
        ]
        return Capabilities(
            name=f"local/{self.level}",
            network_denied=isolation.SUPPORTED,
            filesystem_private=rootless or landlock,
            users_separate=self.users,
            syscalls_filtered=isolation.SUPPORTED,
            memory_limited=isolation.LINUX,
            processes_limited=isolation.SUPPORTED,
            fork=self.forks,
            landlock=landlock,
            warning=f"local sandbox ({self.level}) in place of Docker; not protected: {', '.join(missing)}",
        )

    def __call__(self) -> Server:
        """Starts a server.

        Raises:
            SandboxLost: It ended before it was ready; the message holds its last words.
        """
        with dead_owners() as dead:
            remove_folders(dead)
        folder = str(owner().make_folder())
        os.mkdir(os.path.join(folder, "s"))
        readable = _readable(self.python, self.paths)
        rootless = self.level == "rootless"
        host_path = os.path.join(folder, "s", "socket")
        unix = isolation.SUPPORTED and fits_a_socket(host_path)
        work, path = "/work", "/run/polyturn/socket"
        prefix: list[str] = []
        if rootless:
            prefix = _bubblewrap(readable, os.path.join(folder, "s"), self.work_mb)
        else:
            work, path = os.path.join(folder, "work"), host_path
            os.mkdir(work)
            os.chmod(work, 0o731)
            os.chmod(folder, 0o711 if self.users else 0o700)
            os.chmod(os.path.join(folder, "s"), 0o700)
        ours, theirs = socket.socketpair()
        complaints = open(os.path.join(folder, "complaints"), "w+b")  # noqa: SIM115 (closed by stop)
        process = subprocess.Popen(
            [*prefix, self.python, *PYTHON_FLAGS, BOOT],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=complaints,
            env=environment(),
            cwd="/",
            start_new_session=True,
        )
        theirs.close()
        main = StreamLink(ours)

        def stop() -> None:
            main.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            complaints.close()
            remove_tree(Path(folder))

        try:
            ours.settimeout(START_TIMEOUT_S)
            ours.sendall(boot_frame(self._config(work, path if unix else "", readable)))
            ready = main.first(START_TIMEOUT_S)
            link: Link = SocketLink(host_path) if unix else main
        except (SandboxLost, OSError) as error:
            main.close()
            complaints.seek(0)
            said = complaints.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
            stop()
            raise SandboxLost(f"the local sandbox did not start: {'; '.join(said[-2:]) or error}") from None
        return Server(f"local/{self.level}", link, stop, self.sessions, ready)

    def _config(self, work: str, path: str, readable: list[str]) -> dict[str, Any]:
        count = max(1024, 4 * self.sessions)
        block = random.SystemRandom().randrange((1 << 31) // count - 2000)
        return {
            "users": self.users,
            "siblings": isolation.SUPPORTED,
            "filter": isolation.SUPPORTED,
            "forks": self.forks,
            "watch_disk": self.level == "rootless",
            "nice": 0,  # lower, and a busy trainer on the same machine would make honest programs time out
            "own_pids": self.level == "rootless",
            "silence_s": SILENCE_S,
            "fork_s": FORK_S,
            "uid_base": 1_000_000 + block * count,
            "uid_count": count,
            "work": work,
            "sessions": self.sessions,
            "spares": self.spares,
            "preload": self.preload,
            "paths": self.paths,
            "readable": [*readable, *_DEVICES],
            "socket": path,
        }


class LocalSandbox(Pool):
    """A sandbox on this machine without Docker.

    Args:
        level: "rootless", "plain", or "auto" for the stronger one that works here. "unsafe" is accepted as the
            name of "plain" to name it explicitly.
        servers: Supervisors that may run at once.
        options: See `LocalEngine`.

    Raises:
        SandboxUnavailable: The asked level does not work here.
    """

    def __init__(self, level: str = "auto", *, servers: int = 1, wait_s: float = 600.0, **options: Any) -> None:
        if level not in ("auto", "rootless", "plain", "unsafe"):
            raise ValueError(f"level is 'auto', 'rootless' or 'plain' for the local sandbox, not {level!r}")
        level = "plain" if level == "unsafe" else level
        if level in ("auto", "rootless"):
            works = bubblewrap_works()
            if level == "rootless" and not works:
                raise SandboxUnavailable(
                    "the rootless level needs bubblewrap and a kernel that lets this user make namespaces: install "
                    'bubblewrap (`apt install bubblewrap`), or ask for level="plain"'
                )
            level = "rootless" if works else "plain"
        engine = LocalEngine(level, **options)
        capabilities = engine.capabilities()
        super().__init__([engine], capabilities, servers=servers, wait_s=wait_s)
        warn_once(capabilities.warning)
        atexit.register(self.close)
        self.start()

    def close(self) -> None:
        """Ends every process and removes every folder; safe to call twice."""
        super().close()
        atexit.unregister(self.close)
