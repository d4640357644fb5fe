"""The supervisor's interpreters: birth from the zygote, channels and pipes, death, and what is swept up after it.

Runs inside the sandbox. Three processes: the supervisor (no scientific stack, the host's frames), the zygote
(preloaded, no frames), the interpreters (forked from the zygote as siblings, so that they are the supervisor's own
children, each the leader of a process group that neither it nor anything it starts can leave: killing the group is
atomic and complete).
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from polyturn.sandbox.inside import episode, isolation, survey, zygote
from polyturn.sandbox.inside.capture import Capture
from polyturn.sandbox.inside.interpreter import Family, Interpreter
from polyturn.sandbox.inside.loop import READ, WRITE, Loop
from polyturn.sandbox.inside.outbox import SharedOutbox
from polyturn.sandbox.inside.processes import ProcessTable, describe, empty_folder

START_S = 30.0  # an interpreter that has not said hello by then is given up
BIRTHS_AT_ONCE = 8  # so that a thousand openings do not stand between a run and its answer
ENDED_AT_ONCE = 256  # processes collected before other work has its turn
CLEANERS_AT_ONCE = 8
READS_OF_A_FULL_PIPE = 17  # of 64 KiB; the kernel lets a user make a pipe as large as 1 MiB
SWEEP_ATTEMPTS = 5
SWEEP_AGAIN_S = 0.1
FORGERY = "it wrote on the sandbox's own channel"
NOT_STARTED = "the interpreter did not start"
REPLY_SIZE = struct.calcsize(episode.REPLY)


class Interpreters(Loop):
    """Knows every interpreter; what they mean to a session is the subclass's business."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.children: set[Interpreter] = set()
        self.leaders: dict[int, Interpreter] = {}
        self.births: deque[tuple[Interpreter, bytes, list[int]]] = deque()
        self.unborn = 0
        self.cleaners: dict[int, Interpreter] = {}
        self.to_sweep: deque[Interpreter] = deque()  # while the greatest number of cleaners is at work
        first = config["uid_base"]
        self.free_uids: deque[int] = deque(range(first, first + config["uid_count"]) if config["users"] else ())
        self.doubtful_uids: set[int] = set()  # of families that may have left something
        self.processes = ProcessTable()
        self.asked_users = 0.0  # when the users of all processes were last looked for
        self.surveyor, self.surveyor_pid = self.helper(survey.main)
        self.zygote, self.zygote_pid = self.helper(zygote.main)
        ready = self.zygote.recv(256)
        if not ready:
            sys.exit("the zygote did not start")
        config.update(json.loads(ready))  # what this kernel does not allow after all

    def helper(self, main: Callable[[socket.socket, dict[str, Any]], NoReturn]) -> tuple[socket.socket, int]:
        """Starts a process of the sandbox's own; our end of its channel, and its process id."""
        kind = socket.SOCK_SEQPACKET if isolation.LINUX else socket.SOCK_DGRAM
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        pid = os.fork()
        if pid == 0:
            ours.close()
            main(theirs, self.config)
        theirs.close()
        return ours, pid

    def failed(self, error: Exception, fd: int = -1) -> None:
        """An exception while an interpreter was served ends this interpreter and nothing else."""
        super().failed(error, fd)
        for child in list(self.children):
            if fd in (child.fd, child.out, child.err):
                self.kill(child, f"the supervisor failed while it served this session: {type(error).__name__}")

    # what a subclass makes of it

    def born(self, child: Interpreter) -> None:
        """An interpreter said hello."""
        raise NotImplementedError

    def said(self, child: Interpreter, token: bytes, kind: int, texts: list[bytes]) -> None:
        """An interpreter sent a frame."""
        raise NotImplementedError

    def flooded(self, child: Interpreter) -> None:
        """A pipe carried more than the limit; it is no longer read."""
        raise NotImplementedError

    def died(self, child: Interpreter, code: int | None, why: str) -> None:
        """An interpreter is gone."""
        raise NotImplementedError

    # birth

    def plumbing(self, family: Family, limits: dict[str, Any], above: str) -> tuple[Interpreter, list[int]]:
        """Channel and pipes for an interpreter to come: our side, listened to, and the descriptors of the other.

        Its area will lie in the folder `above`.
        """
        ours, theirs = socket.socketpair()
        if hasattr(socket, "SO_PASSCRED"):
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        ours.setblocking(False)
        out, their_out = os.pipe()
        err, their_err = os.pipe()
        box = SharedOutbox()
        child = Interpreter(ours, out, err, box, family, limits, above)
        family.members += 1
        self.children.add(child)
        self.listen(child.fd, lambda events: self.heard(child, events), last=True)
        self.listen_to_pipes(child)
        return child, [theirs.detach(), their_out, their_err, box.fd]

    def spawn(self, limits: dict[str, Any]) -> Interpreter | None:
        """Asks the zygote for a new interpreter with another user id; None when no id is free."""
        uid: int | None = None
        if self.config["users"]:
            now = time.monotonic()
            if not self.free_uids and self.doubtful_uids and now > self.asked_users + 1.0:
                self.asked_users = now  # every process is looked at for it, which takes its time
                alive = self.processes.users()
                self.free_uids.extend(uid for uid in self.doubtful_uids if uid not in alive)
                self.doubtful_uids.intersection_update(alive)
            if not self.free_uids:
                return None
            uid = self.free_uids.popleft()
        child, theirs = self.plumbing(Family(uid), limits, self.config["work"])
        request = {"uid": uid, "area": child.area, "folder": child.folder, "limits": limits}
        self.births.append((child, json.dumps(request).encode(), theirs))
        self.deliver()
        return child

    def deliver(self) -> None:
        """Passes requests on to the zygote, a few at a time."""
        while self.births and self.unborn < BIRTHS_AT_ONCE:
            child, request, theirs = self.births.popleft()
            if child.dead:  # its session was closed while it waited for its turn
                for fd in theirs:
                    os.close(fd)
                continue
            try:
                self.hand_over(self.zygote, request, theirs)
            except OSError as error:
                sys.exit(f"the zygote is gone: {error}")
            child.asked_for = True
            self.unborn += 1
            self.after(START_S, lambda child=child: self.give_up(child))  # type: ignore[misc]

    @staticmethod
    def hand_over(channel: socket.socket, data: bytes, theirs: list[int]) -> None:
        """Sends descriptors and closes our copies of them."""
        try:
            channel.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", theirs))])
        finally:
            for fd in theirs:
                os.close(fd)

    def give_up(self, child: Interpreter) -> None:
        """Buries an interpreter that has not said hello in time."""
        if not child.pid:
            self.bury(child, None, NOT_STARTED)

    def greeted(self, child: Interpreter, token: bytes, sender: int) -> None:
        """Takes the first frame of an interpreter; the sender is the one that the kernel names."""
        try:
            if token != episode.HELLO or not sender or sender in self.leaders:
                raise PermissionError
            if self.config["siblings"]:
                os.setpgid(sender, sender)  # only a child of this process can be moved: no other can be passed off
        except OSError:
            self.bury(child, None, NOT_STARTED)
            return
        child.pid = sender
        child.first_size = self.processes.memory(sender)[0]
        self.unborn -= child.asked_for
        self.leaders[sender] = child
        self.processes.expect(sender)
        if hasattr(socket, "SO_PASSCRED"):
            child.control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        self.born(child)
        self.deliver()

    # talk

    def tell(self, child: Interpreter, kind: bytes, token: bytes, payload: bytes = b"") -> None:
        """Sends a frame to an interpreter; never blocks."""
        data = struct.pack(">I", 9 + len(payload)) + kind + token + payload
        if not child.outgoing:
            try:
                data = data[child.control.send(data) :]
            except BlockingIOError:
                pass
            except OSError:
                return  # it died; its exit status is on its way
            if not data:
                return
            self.watch(child.fd, READ | WRITE)
        child.outgoing += data

    def heard(self, child: Interpreter, events: int) -> None:
        """Writes on where a channel was full, and reads what an interpreter says."""
        # Write on.
        if events & WRITE and child.outgoing:
            try:
                del child.outgoing[: child.control.send(child.outgoing)]
            except BlockingIOError:
                pass
            except OSError:
                child.outgoing.clear()
            if not child.outgoing:
                self.watch(child.fd, READ)
        if not events & ~WRITE:
            return
        # Read; the kernel names the sender of the first frame.
        sender = child.pid
        try:
            if sender:
                data = child.control.recv(1 << 16)
            else:
                data, sender = self.receive_named(child)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        # Nothing to read: its channel is closed.
        if not data:
            self.forget(child.fd)
            if not child.pid:
                self.bury(child, None, NOT_STARTED)
            elif not self.config["siblings"]:
                self.bury(child, None, describe(None))
            return
        if child.killed:
            return
        # Whole frames, checked before they are believed.
        child.incoming += data
        while len(child.incoming) >= REPLY_SIZE and not child.dead and not child.killed:
            size, token, kind, *sizes = struct.unpack_from(episode.REPLY, child.incoming)
            end = REPLY_SIZE + sum(sizes)
            if size + 4 != end or max(sizes) > max(child.limits["output_bytes"], episode.LAST_WORDS):
                self.kill(child, FORGERY)
                return
            if len(child.incoming) < end:
                return
            texts, start = [], REPLY_SIZE
            for length in sizes:
                texts.append(bytes(child.incoming[start : start + length]))
                start += length
            del child.incoming[:end]
            if child.pid:
                self.said(child, token, kind, texts)
            else:
                self.greeted(child, token, sender or (int(texts[2] or b"0") if not isolation.LINUX else 0))

    @staticmethod
    def receive_named(child: Interpreter) -> tuple[bytes, int]:
        """Reads together with the sender's process id, which the kernel vouches for; 0 where it does not."""
        if not isolation.LINUX:
            return child.control.recv(1 << 16), 0
        data, ancillary, _, _ = child.control.recvmsg(1 << 16, socket.CMSG_SPACE(12))
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                pid, uid, _ = struct.unpack("3i", payload[:12])
                if child.family.uid in (None, uid):
                    return data, int(pid)
        return data, 0

    def drain(self, child: Interpreter, pipe: int) -> bool:
        """Reads a pipe once: kept while a call runs, dropped otherwise. Returns whether there may be more to read."""
        try:
            data = os.read(pipe, 1 << 16)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.mute(child, pipe)
            return False
        if not child.pid or (child.session is not None and child.session.call is not None):
            capture = child.captures[pipe]
            capture.add(data)
            if capture.total > child.limits["output_stop_bytes"] and pipe not in child.muted:
                self.mute(child, pipe)  # the writer now blocks instead of keeping this process busy
                self.flooded(child)
        return True

    def empty_pipes(self, child: Interpreter) -> None:
        """Reads both pipes, muted ones too, until they are empty or as often as the largest pipe needs."""
        for pipe in (child.out, child.err):
            for _ in range(READS_OF_A_FULL_PIPE):
                if not self.drain(child, pipe):
                    break

    def renew_pipes(self, child: Interpreter) -> None:
        """Gives an interpreter new pipes, so that no process holding the old ones can write into the next run."""
        for pipe in (child.out, child.err):
            self.mute(child, pipe)
            os.close(pipe)
        (child.out, their_out), (child.err, their_err) = os.pipe(), os.pipe()
        child.muted.clear()
        child.captures = {pipe: Capture(child.limits["output_bytes"]) for pipe in (child.out, child.err)}
        self.listen_to_pipes(child)
        child.shared = False
        self.tell(child, b"P", episode.HELLO)
        with contextlib.suppress(OSError):  # if it just died, its exit status is on its way
            self.hand_over(child.control, b"P", [their_out, their_err])

    def listen_to_pipes(self, child: Interpreter) -> None:
        """Reads both pipes from now on."""
        for pipe in (child.out, child.err):
            os.set_blocking(pipe, False)
            self.listen(pipe, lambda _, pipe=pipe: self.drain(child, pipe))  # type: ignore[misc]

    def mute(self, child: Interpreter, pipe: int) -> None:
        """Stops reading a pipe."""
        child.muted.add(pipe)
        self.forget(pipe)

    def start_capture(self, child: Interpreter) -> None:
        """Begins to keep what is written; what an earlier run wrote, and was not read yet, is dropped first."""
        if child.shared and not child.outgoing:
            self.renew_pipes(child)
            return
        self.empty_pipes(child)
        for pipe, capture in child.captures.items():
            if pipe in child.muted:
                child.muted.discard(pipe)
                self.listen(pipe, lambda _, pipe=pipe: self.drain(child, pipe))  # type: ignore[misc]
            capture.clear()

    # death

    def signal(self, child: Interpreter, number: int, *, group: bool = True) -> None:
        """Signals an interpreter's group, or only the interpreter."""
        try:
            if child.pid and not child.dead:
                (os.killpg if group else os.kill)(child.pid, number)
        except (ProcessLookupError, PermissionError):
            pass

    def kill(self, child: Interpreter, why: str) -> None:
        """Kills an interpreter with everything it started; `reap` does the rest when the kernel says it is dead."""
        if child.dead:
            return
        if not child.pid:
            self.bury(child, None, why)
            return
        if why and child.session is not None:
            child.session.blame(why)
        child.killed = True  # nothing that it says counts any more
        self.signal(child, signal.SIGKILL)

    def reap(self) -> None:
        """Collects ended processes; an interpreter's group is killed before its id can be used again."""
        for _ in range(ENDED_AT_ONCE):
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            child = self.leaders.get(ended.si_pid)
            if child is not None:
                self.signal(child, signal.SIGKILL)
            pid, status = os.waitpid(ended.si_pid, 0)
            if child is not None:
                code = os.waitstatus_to_exitcode(status)
                self.bury(child, code, describe(code))
            elif pid in self.cleaners:
                self.sweep(self.cleaners.pop(pid))
                if self.to_sweep and len(self.cleaners) < CLEANERS_AT_ONCE:
                    self.sweep(self.to_sweep.popleft())
            elif pid == self.zygote_pid:
                sys.exit("the zygote died")
            elif pid == self.surveyor_pid:
                sys.exit("the process that measures folders died")
        self.after(0.0, self.reap)  # programs may make processes faster than they are collected here

    def bury(self, child: Interpreter, code: int | None, why: str) -> None:
        """Closes an interpreter's channels; its user id and folder return once no process of its family is left."""
        if child.dead:
            return
        child.dead = True  # from here on its id is not signalled: it may soon be another process's
        self.empty_pipes(child)
        if child.session is not None and child.session.call is not None:  # it printed this, and then it died
            for pipe, text in zip((child.out, child.err), child.box.read(), strict=True):
                child.captures[pipe].add(text)
        child.box.close()
        self.children.discard(child)
        if child.pid:
            self.leaders.pop(child.pid, None)
            self.processes.several.discard(child.pid)
        else:
            self.unborn -= child.asked_for
            why += ": " + bytes(child.captures[child.err].text()[-300:]).decode("utf-8", "replace").strip()
            # It may still run. A branch ends with the group of its origin, which it has not left.
            child.family.tainted = child.family.tainted or (self.config["siblings"] and child.asked_for)
        self.forget(child.fd)
        child.control.close()
        for pipe in (child.out, child.err):
            self.mute(child, pipe)
            os.close(pipe)
        self.died(child, code, why)
        self.sweep(child)
        self.deliver()

    # what remains

    def as_user(self, uid: int | None) -> None:
        """File access as that user (None: as oneself); signals and everything else stay the supervisor's."""
        if self.config["users"]:
            os.seteuid(uid or 0)

    @contextlib.contextmanager
    def adding_to(self, area: str) -> Iterator[None]:
        """Lets this process change what is in an area; see `zygote.SHARED_AREA_MODE`."""
        closed = not self.config["users"] and area != self.config["work"]
        with contextlib.suppress(FileNotFoundError):
            if closed:
                os.chmod(area, zygote.AREA_MODE)
        try:
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):
                if closed:
                    os.chmod(area, zygote.SHARED_AREA_MODE)

    def sweep(self, child: Interpreter) -> None:
        """Removes an interpreter's folder; its content is removed by a process of that user, outside the loop."""
        try:
            with self.adding_to(child.area):
                os.rmdir(child.folder)
        except FileNotFoundError:
            pass
        except OSError:
            if len(self.cleaners) >= CLEANERS_AT_ONCE:
                self.to_sweep.append(child)
                return
            child.attempts += 1
            if child.attempts > SWEEP_ATTEMPTS:
                child.family.tainted = True
            else:
                try:
                    pid = os.fork()
                except OSError:  # the process limit, or no memory: again when others have ended
                    child.attempts -= 1
                    self.after(SWEEP_AGAIN_S, lambda: self.sweep(child))
                    return
                if pid == 0:
                    empty_folder(child.folder, child.family.uid, self.config["nice"])
                self.cleaners[pid] = child  # it comes back here: a process that died slowly may have written once more
                return
        area = child.area
        while area != self.config["work"]:  # areas of ended branches go with the last of them
            above = os.path.dirname(area)
            try:
                with self.adding_to(above):
                    os.rmdir(area)
            except FileNotFoundError:
                pass
            except OSError:
                break
            area = above
        child.family.members -= 1
        if child.family.members == 0 and child.family.uid is not None:
            if child.family.tainted:
                self.doubtful_uids.add(child.family.uid)
            else:
                self.free_uids.append(child.family.uid)
