"""The warm process every episode is forked from: the scientific stack imported once, nothing else in memory.

It receives only user ids, folders, limits and descriptors, so no episode inherits another one's data. Runs inside.
"""

from __future__ import annotations

import array
import errno
import gc
import json
import os
import resource
import signal
import socket
import sys
import time
from typing import Any, NoReturn

from turnwise.sandbox import episode, walls

WARM_UP = """
import sympy
x = sympy.Symbol("x")
sympy.solve(x**2 - 5 * x + 6, x); sympy.simplify(sympy.sin(x) ** 2 + sympy.cos(x) ** 2); str(sympy.Rational(1, 3))
sympy.integrate(sympy.sin(x) * x, x); sympy.factor(x**3 - 1); sympy.sympify("1/2 + x").evalf()
print(end="")
"""


def main(channel: socket.socket, config: dict[str, Any]) -> NoReturn:
    """The zygote's whole life, in a process of its own."""
    try:
        fd = os.dup2(channel.detach(), 3)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(2, 1)  # what a library prints while it is imported must not reach the host's channel
        os.closerange(4, 4096)
        run(socket.socket(fileno=fd), config)
    finally:
        os._exit(1)


def run(channel: socket.socket, config: dict[str, Any]) -> None:
    """Imports what `config["preload"]` names, then forks an episode per request until the channel closes."""
    sys.path[:] = [path for path in sys.path if path] + [p for p in config["paths"] if p not in sys.path]
    for name in config["preload"]:
        __import__(name)
    if "numpy" in config["preload"]:
        __import__("numpy.random")  # which numpy would otherwise import when an episode is seeded
    if "sympy" in config["preload"]:
        exec(WARM_UP, {})
    for name in [name for name in sys.modules if name == "turnwise" or name.startswith("turnwise.")]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # objects of the parent never move through the collector: their pages stay shared
    room = Prepared(config)
    channel.sendall(b"+")
    while True:
        data, ancillary, _, _ = channel.recvmsg(65536, socket.CMSG_SPACE(3 * 4))
        if not data:
            return
        fds = array.array("i")
        for _, _, payload in ancillary:
            fds.frombytes(payload[: len(payload) - len(payload) % 4])
        try:
            pid = room.fork()
        except OSError:
            pid = -1  # the descriptors close, which tells the supervisor
        if pid == 0:
            try:
                channel.close()
                start(json.loads(data), fds, room)
            except BaseException as error:
                os.write(2, f"episode did not start: {type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(70)
        for fd in fds:
            os.close(fd)


class Prepared:
    """What every episode needs the same, worked out once: a fresh copy pays for each page it touches."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.nice: int = config["nice"]
        self.fork = walls.clone_sibling if config["siblings"] else os.fork
        self.filters: dict[bool, bytes] = {}
        self.silence = b""
        if config["filter"]:
            for programs in (False, True):
                self.filters[programs] = walls.filter_program(processes=config["forks"], programs=programs)
            self.silence = walls.silence_program()
        self.landlock = walls.Landlock(config["readable"], ["/dev/null"])
        self.landlock.prepare()
        self.size = walls.address_space() if walls.LINUX else 0
        for which in (resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK):
            walls.set_limit(which, 0)
        if walls.LINUX:
            walls.set_limit(resource.RLIMIT_MSGQUEUE, 0)
            walls.set_limit(resource.RLIMIT_RTPRIO, 0)
            walls.set_limit(resource.RLIMIT_SIGPENDING, 256)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.umask(0o077)
        os.environ.clear()
        os.environ.update(LANG="C.UTF-8", PATH="/usr/local/bin:/usr/bin:/bin")
        sys.path.append("")


def start(request: dict[str, Any], fds: array.array[int], prepared: Prepared) -> None:
    """Turns this fresh copy of the zygote into one walled-in episode and serves it."""
    for target, fd in zip((episode.CONTROL, 1, 2), fds, strict=True):
        os.dup2(fd, target, inheritable=True)
    os.setpgid(0, 0)
    if prepared.nice:
        os.nice(prepared.nice)
    limits, uid, area, folder = request["limits"], request["uid"], request["area"], request["folder"]
    programs: bool = limits["programs"]
    if walls.LINUX:
        _first_to_be_killed()
    make_room(area, folder, uid)
    if uid is not None:
        os.seteuid(uid)
        os.chdir(folder)
        os.seteuid(0)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    else:
        os.chdir(folder)
    os.environ["HOME"] = os.environ["TMPDIR"] = folder
    _limit(limits, uid is not None, prepared.size)
    landlock = prepared.landlock
    if walls.LINUX:
        walls.prctl(walls.PR_SET_PDEATHSIG, signal.SIGKILL)
        walls.prctl(walls.PR_SET_DUMPABLE, 0)
        walls.prctl(walls.PR_SET_NO_NEW_PRIVS, 1)
        landlock.restrict(area, execute=programs)
        landlock.forget()
    os.closerange(4, 4096)
    if prepared.filters:
        walls.install_filter(prepared.filters[programs])

    def confine(own: str) -> None:
        landlock.restrict(own, execute=programs)

    def silence() -> None:
        if prepared.silence:
            walls.install_filter(prepared.silence)

    control = socket.socket(fileno=episode.CONTROL)
    served = episode.Episode(control, folder, limits["output_bytes"], prepared.fork, confine, silence)
    served.hello()
    served.serve()


def make_room(area: str, folder: str, uid: int | None, attempts: int = 250) -> None:
    """Makes an interpreter's area, which only root can list, and in it the folder that belongs to its user.

    Both names are random: who does not know them cannot find them, not even an interpreter of the same user. Root's
    group may create in the area and the new folder belongs to the effective user: nobody needs CHOWN.
    """
    _make_folder(area, attempts)
    os.chmod(area, 0o731)
    if uid is not None:
        os.seteuid(uid)
    try:
        _make_folder(folder, attempts)
        os.chmod(folder, 0o700)
    finally:
        if uid is not None:
            os.seteuid(0)


def _make_folder(path: str, attempts: int) -> None:
    """Makes a folder; where another episode has just filled the disk, waits for the supervisor to end that one."""
    for _ in range(attempts):
        try:
            os.mkdir(path, 0o700)
            return
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            time.sleep(0.02)
    os.mkdir(path, 0o700)


def _first_to_be_killed() -> None:
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass  # a read-only /proc: the kernel then chooses by size, which is nearly as good


def _limit(limits: dict[str, Any], own_user: bool, size: int) -> None:
    """Sets the rlimits of one episode; memory is above what the interpreter itself maps."""
    megabyte = 1 << 20
    if walls.LINUX:
        walls.set_limit(resource.RLIMIT_AS, size + limits["memory_mb"] * megabyte)
    walls.set_limit(resource.RLIMIT_FSIZE, limits["disk_mb"] * megabyte)
    walls.set_limit(resource.RLIMIT_NOFILE, limits["files"])
    if own_user:  # the kernel counts per user: shared, the limit would be everybody's
        walls.set_limit(resource.RLIMIT_NPROC, limits["processes"] + limits["branches"])
