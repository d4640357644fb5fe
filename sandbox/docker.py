"""Episodes in Docker containers: one hardened container serves many, spoken to over a socket or its own stdio.

Liveness is the attached stream: when the host program ends, however it ends, the engine closes the container's
standard input, the supervisor exits and the engine removes the container. The second line is the sweep at the next
start (see `ownership`), the third a supervisor that ends by itself when its host has been silent for a day.
"""

from __future__ import annotations

import atexit
import contextlib
import difflib
import os
import random
import re
import secrets
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from polyturn.sandbox.attached import AttachedStream
from polyturn.sandbox.images import image as images
from polyturn.sandbox.link import Link, SocketLink, StreamLink
from polyturn.sandbox.ownership import dead_owners, fits_a_socket, owner, remove_folders, remove_tree
from polyturn.sandbox.pool import Pool
from polyturn.sandbox.sandbox import (
    Capabilities,
    SandboxError,
    SandboxLost,
    SandboxUnavailable,
    check_number,
    warn_once,
)
from polyturn.sandbox.server import BOOT, FORK_S, PYTHON_FLAGS, SILENCE_S, Server, boot_frame

if TYPE_CHECKING:
    import docker

LABEL = "polyturn.sandbox"
OWNER_LABEL = f"{LABEL}.owner"
START_TIMEOUT_S = 120.0
NEVER_STARTED_S = 5 * START_TIMEOUT_S  # a container not started by then has lost its program
READABLE = ["/usr", "/lib", "/lib64", "/bin", "/opt", "/etc", "/dev/zero", "/dev/full", "/dev/urandom", "/dev/random"]

_RUNTIMES = {
    "runsc": "install gVisor (https://gvisor.dev/docs/user_guide/install), run `runsc install`, restart the engine",
    "kata-runtime": "install Kata Containers (https://katacontainers.io) and name it in the engine's daemon.json",
}
STANDARD = Capabilities(
    name="docker/standard",
    network_denied=True,
    filesystem_private=True,
    users_separate=True,
    syscalls_filtered=True,
    memory_limited=True,
    processes_limited=True,
    fork=True,
    landlock=True,
)


def connect(url: str | None = None) -> docker.DockerClient:
    """A client of an engine that answers: `url`, else DOCKER_HOST, else the local one.

    Raises:
        SandboxUnavailable: None answers.
    """
    import docker  # here, because it takes 150 ms that a local sandbox need not pay

    where = url or os.environ.get("DOCKER_HOST") or "the local Docker engine"
    try:
        client = docker.DockerClient(base_url=url, timeout=120) if url else docker.from_env(timeout=120)
        client.ping()
    except Exception as error:  # the SDK raises its own errors, and those of requests and of the system
        reason = str(error).rsplit("\n", 1)[-1][:200]
        raise SandboxUnavailable(
            f"no Docker engine answers at {where} ({reason}): start it (e.g. `systemctl start docker`), set "
            'DOCKER_HOST, or ask for sandbox="local"'
        ) from None
    return client


def own_labels() -> dict[str, str]:
    """What marks a container as belonging to this very process."""
    return {LABEL: "1", OWNER_LABEL: owner().token, f"{LABEL}.pid": str(os.getpid())}  # the id is for people to read


def remove_orphans(client: docker.DockerClient, *, every: bool = False) -> list[str]:
    """Removes the containers and folders of host programs that are proved dead.

    A container whose owner may be alive stays: one of another machine, of another container's program, of another
    user. It ends by itself when its program does.

    Args:
        client: The engine.
        every: Remove every container, also those of programs that still run.

    Returns:
        Names of the containers that were removed.
    """
    removed = []
    info = client.info()
    with dead_owners() as dead:
        for entry in client.api.containers(all=True, filters={"label": f"{LABEL}=1"}):
            labels = entry.get("Labels") or {}
            proved = labels.get(OWNER_LABEL) in dead or _holds_nothing(entry, info)
            if (every or proved) and remove_container(client, entry["Id"]):
                removed.append(entry["Names"][0].lstrip("/") if entry.get("Names") else entry["Id"][:12])
        remove_folders(dead, info.get("ID", ""))
    return removed


def _holds_nothing(entry: dict[str, Any], info: dict[str, Any]) -> bool:
    """Whether no session can be in a container: it has ended, or was made long ago and never started."""
    if entry.get("State") in ("exited", "dead"):
        return True
    try:  # both times are the engine's, whose clock may differ from this machine's
        now = datetime.fromisoformat(re.sub(r"\.\d+", "", info["SystemTime"]).replace("Z", "+00:00"))
        return entry.get("State") == "created" and now.timestamp() - entry["Created"] > NEVER_STARTED_S
    except (KeyError, TypeError, ValueError):
        return False


def remove_container(client: docker.DockerClient, name: str, wait_s: float = 10.0) -> bool:
    """Kills and removes a container and waits until it is gone.

    Returns:
        Whether it was there. An engine that does not answer within `wait_s` is left to itself: the container ends by
        itself without its standard input.
    """
    deadline = time.monotonic() + wait_s
    found = False
    url = f"{client.api.base_url}/v{client.api.api_version}/containers/{name}"
    while time.monotonic() < deadline:
        # Not by the SDK's own call, whose time limit is that of starting a container.
        answer = client.api.delete(url, params={"force": "1", "v": "1"}, timeout=wait_s)
        if answer.ok:
            return True
        if answer.status_code == 404:
            return found
        found = True  # its removal is in progress: it exited by itself
        time.sleep(0.02)
    return found


def _no_runtime(name: str, known: Sequence[str]) -> str:
    """What to say about a runtime that the engine does not have."""
    near = difflib.get_close_matches(name, {*known, *_RUNTIMES}, 1)
    remedy = _RUNTIMES.get(name, "name it in the engine's daemon.json and restart the engine")
    if near and near[0] != name:
        remedy = f"did you mean {near[0]!r}?"
    return f"the Docker engine has no runtime {name!r}; it has: {', '.join(known)}: {remedy}"


class DockerEngine:
    """Starts servers on one engine.

    Args:
        url: The engine; None means DOCKER_HOST or the local one.
        image: Image name; None means the project's own, whose content label is checked.
        runtime: Container runtime by name, for example "runsc" (gVisor); None means the engine's default.
        transport: "unix" (a socket in a bind-mounted folder), "attach" (the container's stdio), "auto" (the first
            where it works).
        sessions: Sessions one container holds.
        memory_mb: Memory of one container, MiB; None means half the engine's machine, 8 GiB at most.
        cpus: Processors one container may use; None means all.
        spares: Interpreters kept ready in each container.
        preload: Modules imported once and shared by every session.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        image: str | None = None,
        runtime: str | None = None,
        transport: str = "auto",
        sessions: int = 512,
        memory_mb: int | None = None,
        cpus: float | None = None,
        spares: int = 2,
        preload: Sequence[str] = ("numpy", "sympy"),
    ) -> None:
        if transport not in ("auto", "unix", "attach"):
            raise ValueError(f"transport is one of 'auto', 'unix', 'attach', not {transport!r}")
        check_number("sessions", sessions, 1, 4096)
        check_number("spares", spares, 0, 4096)
        if memory_mb is not None:
            check_number("memory_mb", memory_mb, 64, 1 << 24)
        if cpus is not None:
            check_number("cpus", cpus, 0.01, 4096, whole=False)
        self.client = connect(url)
        self.image = images.require(self.client, image)
        self.runtime, self.transport = runtime, transport
        self.sessions, self.cpus, self.spares, self.preload = sessions, cpus, spares, list(preload)
        info = self.client.info()
        if runtime is not None and runtime not in info.get("Runtimes", {}):
            raise SandboxUnavailable(_no_runtime(runtime, sorted(info.get("Runtimes", {}))))
        for option, value, support in (("memory_mb", memory_mb, "MemoryLimit"), ("cpus", cpus, "CpuCfsQuota")):
            if value is not None and info.get(support) is False:
                raise SandboxUnavailable(f"the Docker engine's kernel does not limit that: leave out {option}")
        if info.get("MemoryLimit") is False or info.get("PidsLimit") is False:
            warn_once("docker: this engine limits neither the memory nor the processes of all sessions together")
        total = int(info.get("MemTotal", 0)) >> 20
        self.memory_mb = memory_mb or max(1024, min(8192, total // 2))
        self.id: str = info.get("ID", "")
        self._swept = False
        self._lock = threading.Lock()

    def __call__(self) -> Server:
        """Starts a server.

        Raises:
            SandboxUnavailable: The engine refused; the message holds its reason.
            SandboxLost: The container died before it was ready.
        """
        with self._lock:
            if not self._swept:
                remove_orphans(self.client)
                self._swept = True
        local = sys.platform == "linux" and str(self.client.api.base_url).startswith("http+docker://")
        if self.transport == "unix" or (self.transport == "auto" and local):
            try:
                return self._start(unix=True)
            except SandboxError:
                if self.transport == "unix":
                    raise
            server = self._start(unix=False)
            self.transport = "attach"  # sockets do not reach into this engine's containers (gVisor): not tried again
            return server
        return self._start(unix=False)

    def _start(self, *, unix: bool) -> Server:
        import docker
        import requests

        name = f"polyturn-sandbox-{os.getpid()}-{secrets.token_hex(4)}"
        folder = owner().make_folder(self.id) if unix or not owner().problem else None
        mounts = []
        if folder is not None and unix:
            inner = folder / "s"
            socket_path = str(inner / "socket")
            if not fits_a_socket(socket_path):
                remove_tree(folder)
                raise SandboxUnavailable(f"{socket_path} is too long for a socket: set TMPDIR to a shorter folder")
            inner.mkdir()
            # The container's root cannot override permissions and may not be the folder's owner; no other user can
            # find the folder above, whose name is random.
            inner.chmod(0o777)
            mounts.append({"Type": "bind", "Source": str(inner), "Target": "/run/polyturn", "ReadOnly": False})
        try:
            container = self._create(name, mounts)
            try:
                stream = AttachedStream(self.client, container)
                self.client.api.start(container)
            except BaseException:
                remove_container(self.client, container)
                raise
        except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
            if folder is not None:
                remove_tree(folder)
            reason = getattr(error, "explanation", None) or str(error)
            raise SandboxUnavailable(f"the Docker engine refused to start a sandbox: {reason}") from None
        main = StreamLink(stream)
        try:
            stream.settimeout(START_TIMEOUT_S)
            stream.sendall(boot_frame(self._config(unix)))
            ready = main.first(START_TIMEOUT_S)
            link: Link = main
            if folder is not None and unix:
                inner.chmod(0o711)  # the socket is made: no program adds files, or removes it
                link = SocketLink(socket_path)
        except (SandboxLost, OSError) as error:
            stream.close()
            remove_container(self.client, container)
            if folder is not None:
                remove_tree(folder)
            said = stream.said.decode("utf-8", "replace").strip().splitlines()
            raise SandboxLost(f"the sandbox did not start: {'; '.join(said[-2:]) or error}") from None

        def stop() -> None:
            main.close()
            # Where the engine is gone, the container ends by itself without its standard input.
            with contextlib.suppress(docker.errors.DockerException, requests.exceptions.RequestException, OSError):
                remove_container(self.client, container)
            if folder is not None:
                remove_tree(folder)

        return Server(name, link, stop, self.sessions, ready)

    def _create(self, name: str, mounts: list[dict[str, Any]]) -> str:
        api = self.client.api
        host = api.create_host_config(
            network_mode="none",
            ipc_mode="none",
            read_only=True,
            privileged=False,
            cap_drop=["ALL"],
            cap_add=["SETUID", "SETGID", "KILL", "SYS_NICE"],
            security_opt=["no-new-privileges:true"],
            pids_limit=1024 + 4 * self.sessions,
            mem_limit=self.memory_mb << 20,
            memswap_limit=self.memory_mb << 20,
            nano_cpus=int(self.cpus * 1e9) if self.cpus else None,
            tmpfs={
                "/work": f"rw,noexec,nosuid,nodev,size={max(64, self.memory_mb // 4)}m,"
                f"nr_inodes={max(65536, 256 * self.sessions)},mode=0731",
                "/tmp": "ro,noexec,nosuid,nodev,size=4k,mode=0555",  # gVisor puts one there that all may write
            },
            ulimits=[{"Name": "core", "Soft": 0, "Hard": 0}],
            log_config={"Type": "none", "Config": {}},
            auto_remove=True,
            runtime=self.runtime,
        )
        host["Mounts"] = mounts
        created = api.create_container(
            self.image,
            command=["python3", *PYTHON_FLAGS, BOOT],
            name=name,
            user="0:0",
            hostname="sandbox",
            working_dir="/",
            environment={
                "PATH": "/usr/local/bin:/usr/bin:/bin",
                "LANG": "C.UTF-8",
                "PYTHONHASHSEED": "0",
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_NUM_THREADS": "1",
                "MALLOC_ARENA_MAX": "2",
            },
            entrypoint=[],
            stdin_open=True,
            network_disabled=True,
            stop_signal="SIGKILL",
            labels=own_labels(),
            host_config=host,
        )
        container: str = created["Id"]
        given = api.inspect_container(container)["HostConfig"]
        if self.runtime is not None and given.get("Runtime") != self.runtime:
            remove_container(self.client, container)
            raise SandboxUnavailable(
                f"the Docker engine was asked for the runtime {self.runtime!r} and took {given.get('Runtime')!r}: "
                "this engine does not let a program choose the runtime"
            )
        return container

    def _config(self, unix: bool) -> dict[str, Any]:
        # Process limits count per user id over the whole machine, so every container takes another block.
        count = max(4096, 4 * self.sessions)
        block = random.SystemRandom().randrange((1 << 31) // count - 200)
        return {
            "users": True,
            "siblings": True,
            "filter": True,
            "forks": True,
            "watch_disk": True,
            "own_pids": True,
            "nice": 5,
            "silence_s": SILENCE_S,
            "fork_s": FORK_S,
            "uid_base": 1_000_000 + block * count,
            "uid_count": count,
            "work": "/work",
            "sessions": self.sessions,
            "spares": self.spares,
            "preload": self.preload,
            "paths": ["/usr/local/lib/python3/dist-packages", "/usr/lib/python3/dist-packages"],
            "readable": READABLE,
            "socket": "/run/polyturn/socket" if unix else "",
        }


class DockerSandbox(Pool):
    """A sandbox on one or several Docker engines.

    Args:
        engines: Engine addresses (as in DOCKER_HOST); None means DOCKER_HOST or the local one.
        containers: Containers that may run at once, over all engines.
        level: "standard" (many sessions a container) or "strict" (one session a container; with `runtime="runsc"`
            also a separate kernel).
        options: See `DockerEngine`.

    Raises:
        SandboxUnavailable: No engine answers, or it cannot start the container.
        ImageMissing: The image is not there or is another version's.
    """

    def __init__(
        self,
        engines: Sequence[str] | None = None,
        *,
        containers: int | None = None,
        level: str = "standard",
        wait_s: float = 600.0,
        **options: Any,
    ) -> None:
        if level not in ("standard", "strict"):
            raise ValueError(f"level is 'standard' or 'strict' for Docker, not {level!r}")
        if level == "strict":
            if options.get("sessions", 1) != 1:
                raise ValueError(
                    f'level="strict" means one session a container, not sessions={options["sessions"]!r}: leave one out'
                )
            options = {"memory_mb": 1024, "spares": 0, **options, "sessions": 1}
        if engines is not None and (not engines or isinstance(engines, str)):
            raise ValueError(f"engines is a list of addresses as in DOCKER_HOST, or None, not {engines!r}")
        addresses: Sequence[str | None] = engines or [None]
        if containers is not None:
            check_number("containers", containers, 1, 4096)
        starters = [DockerEngine(url, **options) for url in addresses]
        runtime = options.get("runtime")
        name = f"docker/{level}" + (f"/{runtime}" if runtime else "")
        most = containers or (32 if level == "strict" else 2 * len(starters))
        super().__init__(starters, replace(STANDARD, name=name, fork=level == "standard"), servers=most, wait_s=wait_s)
        atexit.register(self.close)
        self.start()
        self._capabilities = self._as_seen(self._capabilities)

    def _as_seen(self, promised: Capabilities) -> Capabilities:
        """What is promised, less what the first container's kernel turned out to lack; says so once."""
        ready = self.servers[0].ready if self.servers else {}
        seen = replace(promised, fork=promised.fork and ready.get("forks", True), landlock=ready.get("abi", 1) > 0)
        missing = [
            text
            for text, gone in (
                ("programs can list the container's processes and mounts (no Landlock)", not seen.landlock),
                (
                    "programs cannot start processes, nor sessions be branched (no process limits)",
                    not ready.get("forks", True),
                ),
            )
            if gone
        ]
        if missing:
            seen = replace(seen, warning=f"{promised.name}: this kernel lacks something: {'; '.join(missing)}")
            warn_once(seen.warning)
        return seen

    def close(self) -> None:
        """Removes every container; safe to call twice."""
        super().close()
        atexit.unregister(self.close)
