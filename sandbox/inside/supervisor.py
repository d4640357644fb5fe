"""Process 1 of a sandbox: relays programs, keeps the clock, decides how each run ended. Runs inside.

It believes nothing an episode says: a status is what it saw itself (exit status, signal, clock, bytes); the
episode's own words are text. Only the host's channels are listened to for commands, and no episode holds one.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import socket
import struct
import sys
import time
from collections import deque
from typing import Any

from polyturn.sandbox.inside import episode, isolation, zygote
from polyturn.sandbox.inside.interpreter import Interpreter
from polyturn.sandbox.inside.interpreters import FORGERY
from polyturn.sandbox.inside.loop import Peer
from polyturn.sandbox.inside.sessions import Call, SessionRecord
from polyturn.sandbox.inside.watch import FIRST, Watch

GRACE_S = 0.5  # between the interrupt and the kill
REFILL_S = 0.005  # after a spare was taken: its first run goes before the birth of the next one
FORK = b"fork".ljust(8, b"\0")
STATUSES = ("ok", "error", "memory", "process-limit")


def finite(value: Any) -> float:
    """A finite positive number of seconds or of units, or ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ValueError(f"{value!r} is no number that can be a limit")
    return value


def checked_limits(limits: dict[str, Any]) -> dict[str, Any]:
    """The limits of a session; the host has checked them, but an error here would be every session's."""
    for name in ("memory_mb", "processes", "branches", "output_bytes", "output_stop_bytes", "disk_mb", "files"):
        if finite(limits[name]) != int(limits[name]):
            raise ValueError(f"{name} is {limits[name]!r}")
    if not isinstance(limits["programs"], bool):
        raise ValueError(f"programs is {limits['programs']!r}")
    return limits


class Supervisor(Watch):
    """Sessions and calls."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.sessions: dict[int, SessionRecord] = {}
        self.spares: deque[Interpreter] = deque()
        self.spare_limits: dict[str, Any] | None = None
        self.next_session = 1
        self.random = random.SystemRandom()

    # the host's requests

    def command(self, peer: Peer, request: Any) -> None:
        """Carries out one request of the host. One that cannot be understood costs at most its own session."""
        try:
            self.carry_out(peer, request)
        except Exception as error:
            self.failed(error)
            fields = request if isinstance(request, dict) else {}
            number, name = fields.get("id"), fields.get("s")
            session = self.sessions.get(name) if isinstance(name, int) else None
            why = f"the request was refused: {type(error).__name__}: {error}"
            if session is not None and session.call is not None and session.call.id == number:
                self.close(session)  # its run had begun
            if isinstance(number, int):
                peer.reply(number, fail=why, refused=True)

    def carry_out(self, peer: Peer, request: dict[str, Any]) -> None:
        """Carries out one request, or raises before anything has changed."""
        operation, number = request["op"], request["id"]
        if operation == "open":
            self.open(peer, request)
            return
        if operation in ("ping", "figures"):
            peer.reply(number, **(self.state() if operation == "ping" else self.figures()))
            return
        session = self.sessions.get(request["s"])
        if session is None:
            peer.reply(number, fail="no such session")
        elif operation == "run":
            self.start_call(session, peer, request)
        elif operation == "interrupt":
            if session.call is not None:
                self.interrupt(session, session.call, "interrupt")
            peer.reply(number)
        elif operation == "close":
            self.close(session)
            peer.reply(number)
        elif operation == "fork":
            self.fork(session, peer, number)
        else:
            peer.reply(number, fail="no such operation")

    def state(self) -> dict[str, Any]:
        """The answer to the health check."""
        return {
            "sessions": len(self.sessions),
            "running": len(self.running),
            "interpreters": len(self.children),
            "spares": len(self.spares),
            "cleaning": len(self.cleaners) + len(self.to_sweep),
        }

    def figures(self) -> dict[str, Any]:
        """How the supervisor itself does; `busiest` counts from one call to the next."""
        busiest, self.busiest = self.busiest, 0.0
        return {"cleaners": len(self.cleaners), "faults": self.faults, "busiest": busiest}

    def new_session(self, limits: dict[str, Any], seed: int, peer: Peer, number: int) -> SessionRecord:
        """Registers a session that the host waits for."""
        session = SessionRecord(self.next_session, limits, seed)
        self.next_session += 1
        self.sessions[session.number] = session
        session.opening = (peer, number)
        return session

    def open(self, peer: Peer, request: dict[str, Any]) -> None:
        """Opens a session on a spare interpreter or a new one."""
        if len(self.sessions) >= self.config["sessions"]:
            peer.reply(request["id"], fail="full")
            return
        limits, seed = checked_limits(request["limits"]), int(request["seed"])
        session = self.new_session(limits, seed, peer, request["id"])
        self.attach(session)
        self.spare_limits = limits
        self.after(REFILL_S, self.refill)

    def close(self, session: SessionRecord) -> None:
        """Ends a session and its interpreter."""
        self.sessions.pop(session.number, None)
        self.running.pop(session.number, None)
        session.opening = None
        self.drop_branch(session, "the session was closed while it was forked")
        for call in (session.call, session.held and session.held[0]):
            if call is not None:
                call.peer.reply(call.id, fail="closed")
        session.call = session.held = None
        if session.child is not None:
            child, session.child = session.child, None
            child.session = None
            self.kill(child, "")

    def attach(self, session: SessionRecord) -> None:
        """Gives a session an interpreter."""
        child = next((spare for spare in self.spares if spare.limits == session.limits), None)
        if child is not None:
            self.spares.remove(child)
        else:
            child = self.spawn(session.limits)
            if child is None:
                self.lose(session, "no user id is free")
                return
        session.child, child.session = child, session
        if child.pid:
            self.opened(session)  # first the answer: the host need not wait while the seed is taken
        self.tell(child, b"S", episode.HELLO, str(session.seed).encode())

    def refill(self) -> None:
        """Keeps the configured number of spares, with the limits asked for last."""
        ready = sum(1 for child in self.children if child.session is None)
        for _ in range(self.config["spares"] - ready if self.spare_limits is not None else 0):
            self.spawn(self.spare_limits or {})

    def opened(self, session: SessionRecord) -> None:
        """Answers the host once interpreter and, for a branch, its origin are ready."""
        if session.opening is not None and session.origin is None and session.child is not None and session.child.pid:
            (peer, number), session.opening = session.opening, None
            if session.forked_off is not None:
                origin, session.forked_off = session.forked_off, None
                self.rename_folder(origin)
            if not peer.reply(number, s=session.number):  # its requester has gone, and nothing else knows it
                self.close(session)

    def rename_folder(self, child: Interpreter) -> None:
        """Gives a folder another name once it has been branched: the branch, of the same user, knew the old one.

        Landlock keeps a branch from reading and writing there; modes, times and names it does not cover.
        """
        if child.dead:
            return
        new = os.path.join(child.area, os.urandom(12).hex())
        with self.adding_to(child.area):
            os.rename(child.folder, new)
        child.folder = new
        self.tell(child, b"M", episode.HELLO, new.encode())

    def lose(self, session: SessionRecord, why: str, status: str = "crash") -> None:
        """A session's interpreter is gone: reports it to the waiting caller, or with the next run."""
        session.child = None
        self.drop_branch(session, session.lost or "the session died while it was forked")
        if session.origin is not None:  # its origin, which knows why the fork failed, has yet to answer
            session.lost = why
            return
        if session.opening is not None:
            (peer, number), session.opening = session.opening, None
            peer.reply(number, fail=why)
            self.sessions.pop(session.number, None)
        elif session.call is not None:
            self.finish(session, session.call, status, error=session.call.why or why, lost=True)
        elif session.held is not None:  # it ended well, but for the files that it left
            fields, why, session.lost = session.held[1], session.lost or why, ""
            if fields["status"] in ("ok", "error"):
                fields.update(status="crash", value="")
            fields.update(error=why, lost=True)
            self.measured_up(session)
        else:
            session.lost = session.lost or why

    def drop_branch(self, session: SessionRecord, why: str) -> None:
        """Where a session is being forked: nothing comes of it. The copy, if there is one already, is ended."""
        if session.branch is None:
            return
        branch, session.branch = session.branch, None
        branch.origin = None
        twin = branch.child
        self.lose(branch, why)
        if twin is not None:
            twin.session = None
            self.kill(twin, "")

    def fork(self, session: SessionRecord, peer: Peer, number: int) -> None:
        """Branches a session's interpreter."""
        # Whether it can be forked now.
        child = session.child
        problem = ""
        if session.busy:
            problem = "busy"
        elif not self.config["forks"]:
            problem = "this sandbox cannot fork sessions"
        elif child is None or not child.pid or session.lost:
            problem = "the session's state is lost"
        elif len(self.sessions) >= self.config["sessions"]:
            problem = "full"
        elif sum(one.family is child.family and not one.killed for one in self.children) > session.limits["branches"]:
            problem = f"its limit is {session.limits['branches']} branches at once"
        elif child.outgoing:
            problem = "busy"
        if problem or child is None:
            peer.reply(number, fail=problem)
            return
        # The new session, and the interpreter that is to be its own.
        branch = self.new_session(session.limits, session.seed, peer, number)
        twin, theirs = self.plumbing(child.family, session.limits, child.area)
        branch.child, twin.session = twin, branch
        twin.lowered, twin.grown = child.lowered, child.grown  # as forks inherit it, and the files that it holds open
        twin.shown, twin.files = child.shown, child.files
        session.branch, branch.origin, branch.forked_off = branch, session, child
        child.twins.append(twin)

        def give_up() -> None:
            if not twin.pid and not twin.dead:
                self.give_up(twin)
                if session.call is None:
                    self.after_run(session, child)  # it may be there all the same, in the group of its origin
            if session.branch is branch:  # its program holds the interpreter up, or answered in its stead
                self.kill(child, "it did not answer when it was forked")

        # Ask the interpreter to fork, with a time limit, and send the copy its channel.
        self.after(self.config["fork_s"], give_up)
        self.tell(child, b"F", FORK)
        with contextlib.suppress(OSError):  # where it just died, its end is on its way
            self.hand_over(child.control, b"F", theirs)
        try:  # while the kernel copies the interpreter; where it fails, the copy finds its channel closed and ends
            with self.adding_to(child.area):
                zygote.make_room(twin.area, twin.folder, child.family.uid, attempts=0)
            room = f"{twin.area}\n{twin.folder}".encode()
            twin.control.send(struct.pack(">I", len(room)) + room)
        except OSError as error:
            self.bury(twin, None, str(error))

    # one run

    def start_call(self, session: SessionRecord, peer: Peer, request: dict[str, Any]) -> None:
        """Hands a program to the interpreter and starts the clock."""
        code = request["code"].encode("utf-8", "surrogatepass")
        wall, cpu = finite(request["wall"]), finite(request["cpu"])
        if session.busy:
            peer.reply(request["id"], fail="busy")
            return
        if session.lost:
            why, session.lost = session.lost, ""
            peer.reply(request["id"], status="crash", error=f"between two runs: {why}", lost=True)
            return
        if session.child is None:
            self.attach(session)
        child = session.child
        if child is None:
            peer.reply(request["id"], fail="no interpreter")
            return
        self.processes.refresh(self.leaders)
        self.end_strays(child)  # which threads of the program may have started since the last run
        session.runs += 1
        token = struct.pack(">II", session.runs, self.random.getrandbits(32) | 1)
        self.start_capture(child)
        self.raise_again(child)
        call = session.call = Call(peer, request["id"], token, wall, cpu)
        call.cpu = self.processes.cpu(child.pid)
        if self.config["watch_disk"]:  # what was removed since the last look
            self.charge(self.disk_use(), [other.child for other in self.running.values()])
        self.running[session.number] = session
        self.tell(child, b"R", token, code)
        self.keep_ticking()

    def interrupt(self, session: SessionRecord, call: Call, status: str) -> None:
        """Sends SIGINT to the program, and SIGKILL to its group after the grace."""
        if call.stopped_for:
            return
        call.stopped_for = status
        if session.child is not None:
            self.signal(session.child, signal.SIGINT, group=False)

        def give_up() -> None:
            if session.call is call and session.child is not None:
                self.kill(session.child, call.why or "interrupted, and killed because it did not stop")

        self.after(GRACE_S, give_up)

    def born(self, child: Interpreter) -> None:
        """Gives a new interpreter to the request that waits for it."""
        if child.session is None:
            if child.limits == self.spare_limits and len(self.spares) < self.config["spares"]:
                self.spares.append(child)
            else:
                self.kill(child, "")
        else:
            self.opened(child.session)

    def said(self, child: Interpreter, token: bytes, kind: int, texts: list[bytes]) -> None:
        """Takes the end of a run, or the outcome of a fork."""
        session: SessionRecord | None = child.session
        if session is not None and session.branch is not None and token == FORK:
            child.idle_cpu = self.processes.cpu(child.pid)  # what the fork itself took is no thread's
            branch = session.branch
            if kind != episode.OK or branch.child is None:
                self.drop_branch(session, texts[3].decode("utf-8", "replace") or branch.lost or "the fork failed")
            else:
                session.branch = branch.origin = None
                self.opened(branch)
            return
        if session is None or session.call is None or token != session.call.token:
            self.kill(child, FORGERY)
            return
        call = session.call
        self.empty_pipes(child)  # what it wrote before it answered belongs to this run
        for pipe, text in ((child.out, texts[0]), (child.err, texts[1])):
            child.captures[pipe].add(text)
            if child.captures[pipe].total > child.limits["output_stop_bytes"]:
                call.stopped_for = call.stopped_for or "output-limit"  # the last of it came with the answer
        status, error = STATUSES[kind & 3], texts[3].decode("utf-8", "replace")
        # Variables that fill the memory limit would fail every later program as well; threads that are left after a
        # flood may go on writing into the next run. Both end the interpreter.
        full = status == "memory" and self.is_full(child)
        if full or (call.stopped_for == "output-limit" and self.processes.threads(child.pid) > 1):
            session.child, child.session = None, None
            self.kill(child, "")
            self.finish(session, call, status, error=error, lost=True, last=child)
            return
        self.finish(session, call, status, texts[2], error, bool(kind & episode.CUT))

    def flooded(self, child: Interpreter) -> None:
        """Too much output ends the run."""
        session: SessionRecord | None = child.session
        if session is not None and session.call is not None:
            self.interrupt(session, session.call, "output-limit")

    def finish(
        self, session: SessionRecord, call: Call, status: str, value: bytes = b"", error: str = "", cut: bool = False,
        lost: bool = False, last: Interpreter | None = None,
    ) -> None:  # fmt: skip
        """Ends a call: decides its status, removes what it left running, answers the host."""
        session.call = None
        self.running.pop(session.number, None)
        if call.stopped_for and call.stopped_for != "interrupt":
            status = call.stopped_for
        if status == "timeout" and call.crowded:
            status = "process-limit"
        out = err = ""
        cpu, lasted, hold = 0.0, time.monotonic() - call.start, False
        child = last or session.child
        if child is not None:
            child.idle_cpu = self.processes.cpu(child.pid)
            cpu = max(0.0, child.idle_cpu - call.cpu)
            hold = self.after_run(session, child)
            captures = (child.captures[child.out], child.captures[child.err])
            out, err = (capture.text().decode("utf-8", "replace") if capture.total else "" for capture in captures)
            cut = cut or captures[0].cut or captures[1].cut
            for capture in captures:  # an idle session holds nothing
                capture.clear()
        session.held = call, {
            "status": status, "out": out, "err": err, "value": value.decode("utf-8", "replace"), "error": error,
            "cut": cut, "lost": lost, "run": lasted, "cpu": cpu,
        }  # fmt: skip
        if not hold:
            self.measured_up(session)

    def measured_up(self, session: SessionRecord) -> None:
        """Answers the host, if an answer waits for that."""
        if session.held is not None:
            (call, fields), session.held = session.held, None
            call.peer.reply(call.id, **fields)

    def died(self, child: Interpreter, code: int | None, why: str) -> None:
        """An interpreter is gone: says how its call ended."""
        if child in self.spares:
            self.spares.remove(child)
        session: SessionRecord | None = child.session
        if session is None or session.child is not child:
            return
        call, status = session.call, "crash"
        if call is not None:
            unasked = code == -signal.SIGKILL and not call.stopped_for and not call.why
            if unasked and self.processes.killed_for_memory():
                status, why = "memory", "killed: out of memory"
            elif call.why.startswith("memory"):
                status = "memory"
            finished, session.call = call, None
            self.running.pop(session.number, None)
            self.finish(session, finished, status, error=call.why or why, lost=True)
        self.lose(session, "" if call is not None else why)

    def shut_down(self) -> None:
        """The host is gone, or wants no more."""
        for child in list(self.children):
            self.signal(child, signal.SIGKILL)
        os._exit(0)


def main(config: dict[str, Any]) -> None:
    """Starts up, says so on descriptor 1, and serves until descriptor 0 ends."""
    if isolation.LINUX:
        isolation.prctl(isolation.PR_SET_DUMPABLE, 0)
        if os.getpid() != 1:
            isolation.prctl(isolation.PR_SET_CHILD_SUBREAPER, 1)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 20) if hard >= 0 else 1 << 16, hard))
    if config["nice"]:
        with contextlib.suppress(OSError):  # an engine without root cannot grant it
            os.setpriority(os.PRIO_PROCESS, 0, FIRST)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    supervisor = Supervisor(config)
    wake, waker = socket.socketpair()
    for end in (wake, waker):
        end.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)

    def woken(events: int) -> None:
        wake.recv(4096)
        supervisor.reap()

    supervisor.listen(wake.fileno(), woken)
    if config["socket"]:
        listen_for_host(supervisor, config["socket"])
    for fd in (0, 1, 2):  # what it says of its own faults (2) may be read by nothing, and must not stop it
        os.set_blocking(fd, False)
    host = Peer(supervisor, 0, 1, supervisor.command, supervisor.shut_down)
    host.reply(0, ready=True, pid=os.getpid(), abi=isolation.landlock_abi() if isolation.LINUX else 0,
               forks=supervisor.config["forks"], python=sys.version.split()[0])  # fmt: skip
    supervisor.run()


def listen_for_host(supervisor: Supervisor, path: str) -> None:
    """Accepts connections from outside this sandbox's processes only."""
    try:
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        os.chmod(path, 0o666)
        server.listen(128)
    except OSError:
        return  # the host falls back to the stream it holds
    server.setblocking(False)
    inside = supervisor.config["own_pids"]

    def accept(events: int) -> None:
        connection, _ = server.accept()
        if hasattr(socket, "SO_PEERCRED"):
            pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if inside and pid != 0:  # a process of this container has an id here; the host has none
                connection.close()
                return
        connection.setblocking(False)
        fd = connection.detach()
        Peer(supervisor, fd, fd, supervisor.command, lambda: None)

    supervisor.listen(server.fileno(), accept)
