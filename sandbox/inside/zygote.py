"""The warm process every episode is forked from: the scientific stack imported once, nothing else in memory.

It receives only user ids, folders, limits and descriptors, so no episode inherits another one's data. Runs inside.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from typing import Any, NoReturn

from polyturn.sandbox.inside import episode, forks, isolation, surroundings

WARM_UP = """
import sympy
x = sympy.Symbol("x")
sympy.solve(x**2 - 5 * x + 6, x); sympy.simplify(sympy.sin(x) ** 2 + sympy.cos(x) ** 2); str(sympy.Rational(1, 3))
sympy.integrate(sympy.sin(x) * x, x); sympy.factor(x**3 - 1); sympy.sympify("1/2 + x").evalf()
print(end="")
"""
HURRY_S = 0.02  # a copy taken sooner after it was made: many are wanted
BREATH_S = 0.003  # else the next is made when the one just taken is at work
REHEARSALS = 24  # byte code is specialised after eight runs, in steps
TRIAL_HEAD = struct.Struct(">I1s8s")
TRIAL_PROGRAMS = (b"print(1 + 1)", b"x = 6\nx * 7", b"import math\nfor n in range(3): print(math.sqrt(n))", b"1 / 0")


def main(channel: socket.socket, config: dict[str, Any]) -> NoReturn:
    """The zygote's whole life, in its own process."""
    try:
        fd = os.dup2(channel.detach(), episode.CONTROL + 1)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, episode.CONTROL)
        os.dup2(2, 1)  # what a library prints while it is imported must not reach the host's channel
        os.closerange(fd + 1, 4096)
        run(socket.socket(fileno=fd), config)
    except BaseException as error:
        os.write(2, f"zygote: {type(error).__name__}: {error}\n".encode())
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
    for name in [name for name in sys.modules if name == "polyturn" or name.startswith("polyturn.")]:
        del sys.modules[name]
    surroundings.prepare()
    room = Prepared(config)
    for _ in range(REHEARSALS):
        forks.rehearse_fork()
        area = os.path.join(config["work"], os.urandom(12).hex())
        folder = os.path.join(area, os.urandom(12).hex())
        make_room(area, folder, None)
        os.chmod(area, AREA_MODE)
        os.rmdir(folder)
        os.rmdir(area)
    rehearse(REHEARSALS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    room.size = isolation.address_space() if isolation.LINUX else 0
    gc.collect()
    gc.freeze()  # objects of the parent never move through the collector: their pages stay shared
    if isolation.LINUX:
        isolation.use_huge_pages()
    channel.sendall(json.dumps({"forks": room.forks}).encode())
    while copy_ahead(channel, room):
        pass


def copy_ahead(channel: socket.socket, room: Prepared) -> bool:
    """Forks the next copy before it is asked for and waits until it has taken a request; False at the channel's end.

    The copy belongs to no session yet: user, folder, limits and isolation come with the request.
    """
    taken, takes = os.pipe()
    try:
        pid = room.fork()
    except OSError:
        os.close(takes)
        os.close(taken)
        return lacking(channel)
    if pid == 0:
        try:
            os.close(taken)
            served = get_ready(channel, room)
            data, fds = receive(channel)
            if data:
                os.close(takes)  # and not a byte written: the kernel would then run the zygote before this copy
                start(json.loads(data), fds, room, served)
            else:
                os.write(takes, b"-")
        except BaseException as error:
            os.write(2, f"episode did not start: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(70)
    os.close(takes)
    made = time.monotonic()
    word = os.read(taken, 1)
    os.close(taken)
    if time.monotonic() > made + HURRY_S:
        select.select([channel], [], [], BREATH_S)
    return not word


def lacking(channel: socket.socket) -> bool:
    """No copy could be made: waits for a request or for better times; one that is due already fails now."""
    if not select.select([channel], [], [], 0.05)[0]:
        return True
    data, fds = receive(channel)
    for fd in fds:
        os.close(fd)  # which tells the supervisor
    return bool(data)


def receive(channel: socket.socket) -> tuple[bytes, array.array[int]]:
    """One request with its descriptors."""
    data, ancillary, _, _ = channel.recvmsg(65536, socket.CMSG_SPACE(4 * 4))
    fds = array.array("i")
    for _, _, payload in ancillary:
        fds.frombytes(payload[: len(payload) - len(payload) % 4])
    return data, fds


def rehearse(times: int) -> None:
    """Goes through an episode's life, of programs that are ours, so that none of it is done for the first time later.

    In the zygote often enough that byte code is specialised, caches filled and free lists sorted: every copy inherits
    that. In a copy once, while nothing waits for it, to get the pages it will write as its own.
    """
    ours, theirs = socket.socketpair()
    os.dup2(theirs.fileno(), episode.CONTROL)
    theirs.close()
    sample = json.dumps({"limits": {"memory_mb": 1, "programs": False}, "uid": 1, "area": "", "folder": ""})
    for number in range(times):
        trial = episode.EpisodeInterpreter(os.getpid, lambda _: None, lambda: None)
        trial.seed(str(number).encode())
        for program in TRIAL_PROGRAMS:
            ours.sendall(TRIAL_HEAD.pack(9 + len(program), b"R", episode.HELLO) + program)
            trial.serve_one()
            ours.recv(1 << 16)
        trial.shelter.leave()
        trial.hello()
        ours.recv(1 << 16)
        ours.sendmsg([sample.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
        _, fds = receive(trial.control)
        json.loads(sample)
        for fd in fds:
            os.close(fd)
        trial.control.detach()
    ours.close()


def get_ready(channel: socket.socket, room: Prepared) -> episode.EpisodeInterpreter:
    """What a fresh copy can do before it belongs to a session."""
    os.setpgid(0, 0)
    if isolation.LINUX:
        _first_to_be_killed()
    if not select.select([channel], [], [], 0)[0]:
        rehearse(1)
    _in_turn(hurried=True)
    return episode.EpisodeInterpreter(room.fork, lambda _: None, room.silence)


class Prepared:
    """What every episode needs the same, worked out once: a fresh copy pays for each page it touches."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.nice: int = config["nice"]
        self.fork = forks.sibling_fork() if config["siblings"] else forks.fork_orphan
        self.forks: bool = config["forks"] and (not config["users"] or forks.process_limit_works(config["uid_base"]))
        self.filters: dict[bool, bytes] = {}
        self._silence = self._metadata = b""
        self.home = ""  # the name that every interpreter has for its own folder
        if isolation.LINUX and self.forks:
            self.home = os.path.join(config["work"], "home")
            os.symlink(f"/proc/self/fd/{episode.HOME}", self.home)
        self.landlock = isolation.Landlock(config["readable"], ["/dev/null"])
        self.landlock.prepare()
        self.size = 0  # bytes of address space, once everything is loaded
        for which in (resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK):
            isolation.set_limit(which, 0)
        if isolation.LINUX:
            for which, value in ((resource.RLIMIT_MSGQUEUE, 0), (resource.RLIMIT_RTPRIO, 0),
                                 (resource.RLIMIT_SIGPENDING, 256), (resource.RLIMIT_NICE, 0)):  # fmt: skip
                with contextlib.suppress(ValueError):  # gVisor has neither these limits nor what they would limit
                    isolation.set_limit(which, value)
        if self.nice:
            os.setpriority(os.PRIO_PROCESS, 0, 0)  # only the supervisor has the high priority
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.umask(0o077)
        _in_turn(hurried=False)  # a copy made ahead has time: it must not delay one that is asked for now
        os.environ.clear()
        os.environ.update(LANG="C.UTF-8", PATH="/usr/local/bin:/usr/bin:/bin")
        sys.path.append("")
        if config["filter"]:
            for programs in (False, True):
                self.filters[programs] = isolation.episode_program(processes=self.forks, programs=programs)
            self._silence = isolation.silence_program()
            self._metadata = isolation.metadata_program()
            isolation.prctl(isolation.PR_SET_NO_NEW_PRIVS, 1)
            isolation.install_filter(isolation.zygote_program())

    def keep_metadata(self) -> None:
        """Takes the right to change modes and times of files by name away."""
        if self._metadata:
            isolation.install_filter(self._metadata)
            surroundings.change_by_descriptor()

    def silence(self) -> None:
        """Takes the right to signal away."""
        if self._silence:
            isolation.install_filter(self._silence)


def start(
    request: dict[str, Any], fds: array.array[int], prepared: Prepared, served: episode.EpisodeInterpreter
) -> None:
    """Turns a fresh copy of the zygote into one walled-in episode and serves it."""
    *ends, box = _above(episode.HOME, fds)
    for target, fd in zip((episode.CONTROL, 1, 2), ends, strict=True):
        os.dup2(fd, target, inheritable=True)
    if prepared.nice:
        os.setpriority(os.PRIO_PROCESS, 0, prepared.nice)
    limits, uid, area, folder = request["limits"], request["uid"], request["area"], request["folder"]
    programs: bool = limits["programs"]
    # Its folder and its user.
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
    # Its home, by a descriptor where it starts no other programs.
    home = "" if programs else prepared.home  # other programs are started without the descriptor of that name
    if home:
        here = os.open(".", os.O_PATH | os.O_DIRECTORY)
        os.dup2(here, episode.HOME, inheritable=True)
    os.environ["HOME"] = os.environ["TMPDIR"] = home or folder
    # Limits, Landlock, and last the filter, after which nothing of this can be changed.
    _limit(limits, uid is not None, prepared.size)
    landlock = prepared.landlock
    if isolation.LINUX:
        isolation.prctl(isolation.PR_SET_PDEATHSIG, signal.SIGKILL)
        isolation.prctl(isolation.PR_SET_DUMPABLE, 0)
        isolation.prctl(isolation.PR_SET_NO_NEW_PRIVS, 1)
        landlock.restrict(area, execute=programs)
        landlock.forget()
    served.box.share(box)
    os.closerange(episode.HOME + bool(home), 4096)
    isolation.set_limit(resource.RLIMIT_NOFILE, limits["files"])  # not before what was open until here is closed
    if prepared.filters:
        isolation.install_filter(prepared.filters[programs])
    if uid is None and landlock.abi < 6:  # nothing else keeps it from signalling its user's other processes
        served.silence()
        served.silent = True
    if uid is None:
        prepared.keep_metadata()

    def confine(own: str) -> None:
        landlock.restrict(own, execute=programs)

    # From here on it is the session's interpreter.
    served.settle(folder, home, limits["output_bytes"], confine)
    served.hello()
    served.serve()


def _above(highest: int, fds: array.array[int]) -> list[int]:
    """The same descriptors under numbers above those that an interpreter's own will have."""
    return [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, highest + 1) for fd in fds]


AREA_MODE = 0o731  # of an area that belongs to root
SHARED_AREA_MODE = 0o111  # of one that belongs to its interpreter's user: not even this user lists it or adds to it


def make_room(area: str, folder: str, uid: int | None, attempts: int = 250) -> None:
    """Makes an interpreter's area, which only root can list, and in it the folder that belongs to its user.

    Both names are random: a process that does not know them cannot find them, not even an interpreter of the same user.
    Root's group may create in the area and the new folder belongs to the effective user: CHOWN is not needed.
    """
    _make_folder(area, attempts)
    os.chmod(area, AREA_MODE)
    if uid is not None:
        os.seteuid(uid)
    try:
        _make_folder(folder, attempts)
        os.chmod(folder, 0o700)
    finally:
        if uid is not None:
            os.seteuid(0)
        else:
            os.chmod(area, SHARED_AREA_MODE)


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


def _in_turn(*, hurried: bool) -> None:
    """Says whether waking this process may push aside the one at work."""
    if hasattr(os, "sched_setscheduler"):
        with contextlib.suppress(OSError):  # gVisor knows one way to take turns
            os.sched_setscheduler(0, os.SCHED_OTHER if hurried else os.SCHED_BATCH, os.sched_param(0))


def _first_to_be_killed() -> None:
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(fd, b"1000")
        os.close(fd)
    except OSError:
        pass  # a read-only /proc: the kernel then chooses by size, which is nearly as good


def _limit(limits: dict[str, Any], own_user: bool, size: int) -> None:
    """Sets the rlimits of one episode; memory is above what the interpreter itself maps."""
    megabyte = 1 << 20
    if isolation.LINUX:
        isolation.set_limit(resource.RLIMIT_AS, size + limits["memory_mb"] * megabyte)
    isolation.set_limit(resource.RLIMIT_FSIZE, limits["disk_mb"] * megabyte)
    if own_user:  # the kernel counts per user: with a shared user the limit would be that of all
        isolation.set_limit(resource.RLIMIT_NPROC, limits["processes"] + limits["branches"])
