"""The supervisor's watch: wall clock, cpu, memory, files, priorities, what runs leave running. Runs inside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from typing import Any

from polyturn.sandbox.inside import survey
from polyturn.sandbox.inside.interpreter import Interpreter
from polyturn.sandbox.inside.interpreters import Interpreters
from polyturn.sandbox.inside.sessions import Call, SessionRecord

TICK_S = 0.05  # how often running calls are looked at
SLOW_TICK_S = 1.0  # how often idle interpreters are
IDLE_CPU_S = 0.5  # what background threads may use between runs
WORKED_CPU_S = 0.002  # what separates threads that work from idle ones
LOWER_CPU_S = 0.05  # what a run may use before it goes after those that have used less
LOWEST, FIRST = 19, -10  # priorities of such a run, and of the supervisor itself
MOST_FILES = 2048
AT_A_GLANCE = 64  # entries that are counted here, in about 0.1 ms; more are the measuring process's work
GROUPS_AT_ONCE_S = 0.005  # how long one tick looks at groups of processes; the rest has its turn at the next
NEARLY_FULL = 0.75  # of the disk: the room that no folder shows is then looked for


class Watch(Interpreters):
    """Looks after calls in progress and idle interpreters; what a limit's end means is the subclass's business."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.running: dict[int, SessionRecord] = {}
        self.ticking = False
        # A run's priority is lowered only where it can be raised again for the next one, as can the supervisor's own.
        self.lowers = config["nice"] > 0 and os.getpriority(os.PRIO_PROCESS, 0) == FIRST
        self.disk = self.disk_use()
        self.uncounted = config["watch_disk"] and not self.disk[1]  # gVisor does not say how many files there are
        self.surveys: dict[int, Interpreter] = {}
        self.waiting: dict[Interpreter, None] = {}  # for the measuring process, whose queue was full
        self.last_survey = 0
        self.suspects: set[Interpreter] = set()  # whose folders are measured to find hidden files
        self.surveyor.setblocking(False)
        self.listen(self.surveyor.fileno(), self.measured)
        self.after(SLOW_TICK_S, self.slow_tick)

    def interrupt(self, session: SessionRecord, call: Call, status: str) -> None:
        """Ends a call, softly first, with this status."""
        raise NotImplementedError

    def measured_up(self, session: SessionRecord) -> None:
        """The files of a session's last run are within its share."""
        raise NotImplementedError

    def shut_down(self) -> None:
        """Ends everything, and this process."""
        raise NotImplementedError

    # the clock

    def keep_ticking(self) -> None:
        """Makes sure that the next tick comes."""
        if not self.ticking:
            self.ticking = True
            self.after(TICK_S, self.tick)

    def tick(self) -> None:
        """Looks at the calls in progress: wall clock, cpu, groups that grow, files that fill the disk."""
        self.ticking = False
        soonest = time.monotonic() + TICK_S
        try:
            soonest = self.look(soonest)
        finally:  # the clock goes on after any failure
            if not self.ticking and (self.running or self.processes.unsure or self.processes.several):
                self.ticking = True
                self.after(max(0.002, soonest - time.monotonic()), self.tick)

    def look(self, soonest: float) -> float:
        """Looks at every call in progress. Returns the time of the next deadline, or `soonest` if that is sooner."""
        self.processes.refresh(self.leaders)
        groups = self.processes.groups() if self.processes.several else {}
        used = self.disk_use() if self.config["watch_disk"] else self.disk
        filling = used[0] > self.disk[0] + (1 << 20) or used[1] > self.disk[1] + 64 or self.uncounted
        enough = time.monotonic() + GROUPS_AT_ONCE_S
        for session in list(self.running.values()):
            call, child = session.call, session.child
            if call is None or child is None:
                continue
            try:
                members = groups.get(child.pid, [])
                if len(members) > 1 and time.monotonic() < enough:
                    self.check_group(child, call, members)
                    del self.running[session.number]  # to the end: the others come first at the next tick
                    self.running[session.number] = session
                if filling:
                    self.survey(child)
                self.check_run(session, call, child, several=len(members) > 1)
            except Exception as error:  # the others' limits are watched all the same
                self.failed(error, child.fd)
            if not call.stopped_for:
                soonest = min(soonest, call.deadline)
        if filling or used < self.disk:
            self.charge(used, [session.child for session in self.running.values()])
        self.processes.several.intersection_update(self.leaders)
        found = [self.leaders[pid] for pid in self.processes.several]
        self.end_strays(*(child for child in found if child.session is None or child.session.call is None))
        return soonest

    def check_run(self, session: SessionRecord, call: Call, child: Interpreter, *, several: bool) -> None:
        """Holds one call in progress to its time, and lowers its priority once it has worked."""
        used = self.processes.cpu(child.pid) - call.cpu
        if (several or used > LOWER_CPU_S) and self.lowers and not call.why:
            self.lower(child)
        if not call.stopped_for and (time.monotonic() >= call.deadline or used > call.cpu_limit):
            self.interrupt(session, call, "timeout")

    def check_group(self, child: Interpreter, call: Call, members: list[int]) -> None:
        """Memory is one session's together, however many processes it spreads over.

        What a forked process still shares with the first one cannot be distinguished cheaply, so only what it has
        beyond the first one's size counts; beyond that the container's own limit applies.
        """
        if len(members) >= child.limits["processes"] and not call.crowded:
            call.crowded = True
            self.lower(child)
        first = self.processes.memory(child.pid)[1]
        others = sum(max(0, self.processes.memory(pid)[1] - first) for pid in members if pid != child.pid)
        if others > child.limits["memory_mb"] << 20:
            self.kill(child, "memory: its processes together used more than the limit")

    def lower(self, child: Interpreter) -> None:
        """Puts a run last in line for the processors; again at every tick, as what forks may slip by."""
        child.lowered = True
        try:
            self.as_user(None if self.lowers else child.family.uid)  # its own user may at least lower it
            self.set_priority(child.pid, LOWEST)
        finally:
            self.as_user(None)

    def raise_again(self, child: Interpreter) -> None:
        """Gives the next run the priority that every run starts with."""
        if child.lowered and self.lowers:
            child.lowered = False
            self.set_priority(child.pid, self.config["nice"])

    def kill(self, child: Interpreter, why: str) -> None:
        """Kills an interpreter; dying takes its time on the processor as well, and no program can use that any more."""
        super().kill(child, why)
        if self.lowers and child.pid and not child.dead:
            self.set_priority(child.pid, 0)

    @staticmethod
    def set_priority(group: int, value: int) -> None:
        """Sets the priority of every thread of a process group, where that is allowed."""
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PGRP, group, value)

    def is_full(self, child: Interpreter) -> bool:
        """Whether so little memory is left that no further program could run."""
        limit: int = child.limits["memory_mb"] << 20
        return self.processes.memory(child.pid)[0] > child.first_size + limit - max(limit // 16, 8 << 20)

    def disk_use(self) -> tuple[int, int]:
        """Bytes and files in use on the work folders' file system."""
        figures = os.statvfs(self.config["work"])
        return (figures.f_blocks - figures.f_bfree) * figures.f_frsize, figures.f_files - figures.f_ffree

    def survey(self, child: Interpreter) -> None:
        """Has an interpreter's folder measured, unless that is under way already."""
        if child.surveyed or child.dead or not child.pid:
            return
        self.waiting.pop(child, None)
        request = {"folder": child.folder, "uid": child.family.uid, "most": 2 * MOST_FILES}
        self.last_survey += 1
        try:
            self.surveyor.send(json.dumps({**request, "number": self.last_survey}).encode())
        except BlockingIOError:  # many are waiting: when the next one is done
            self.waiting[child] = None
            return
        child.due = False
        child.surveyed = self.last_survey
        self.surveys[child.surveyed] = child

    def measured(self, events: int) -> None:
        """Ends an interpreter whose files together exceed its share; the kernel limits single files only."""
        number, size, files = json.loads(self.surveyor.recv(256))
        child = self.surveys.pop(number)
        child.surveyed, child.shown, child.files = 0, size, files
        if not child.dead and not child.killed and not self.ended_for_its_files(child):
            if child.due:  # it was under way when the run ended
                self.survey(child)
            elif child.session is not None:
                self.measured_up(child.session)
        for other in list(self.waiting):
            self.waiting.pop(other)
            self.survey(other)
            if other in self.waiting:
                break
        if child in self.suspects:
            self.suspects.discard(child)
            if not self.suspects:
                self.end_who_hides_most()

    def ended_for_its_files(self, child: Interpreter) -> bool:
        """Ends an interpreter whose files, as they were measured last, are more than its share."""
        if child.shown > child.limits["disk_mb"] << 20:
            self.kill(child, f"its files exceed {child.limits['disk_mb']} MiB")
        elif child.files > MOST_FILES:
            self.kill(child, f"it made more than {MOST_FILES} files")
        else:
            return False
        return True

    def glance(self, child: Interpreter) -> bool:
        """Measures a folder here and now. Returns whether it was so small that this could be done."""
        # A survey under way would put an older figure in the place of this one.
        if child.surveyed or child.files > AT_A_GLANCE:
            return False
        try:
            self.as_user(child.family.uid)
            found = survey.glance(child.folder, AT_A_GLANCE)
        finally:
            self.as_user(None)
        if found is None:
            return False
        child.shown, child.files = found
        return True

    def charge(self, used: tuple[int, int], at_work: list[Interpreter | None]) -> None:
        """Notes by how much the disk grew, or shrank, while these interpreters worked."""
        grown = used[0] - self.disk[0]
        self.disk = used
        for child in at_work:
            if child is not None:
                child.grown = max(0, child.grown + grown)

    def nearly_full(self) -> bool:
        """Whether little room is left on the disk and no folder of an ended interpreter is still to be emptied."""
        figures = os.statvfs(self.config["work"])
        full = figures.f_bfree <= (1 - NEARLY_FULL) * figures.f_blocks
        return full and not self.cleaners and not self.to_sweep

    def find_hidden(self) -> None:
        """A file removed while it is open or mapped keeps its room, and no folder shows it nor says whose it is.

        Only when the disk is nearly full: has every folder measured, and then looks at what none of them shows.
        """
        if not self.suspects and self.nearly_full():
            self.suspects = {child for child in self.children if child.pid and not child.killed}
            for child in list(self.suspects):
                self.survey(child)
            self.suspects.intersection_update(self.surveys.values())

    def end_who_hides_most(self) -> None:
        """Ends the interpreter during whose work the disk grew most beyond what its folder shows.

        One a second, since others may have worked at the same time.
        """
        if not self.nearly_full():
            return
        hidden, worst, whose = self.disk_use()[0], 0, None
        for child in self.children:
            hidden -= child.shown
            if child.grown - child.shown > worst:
                worst, whose = child.grown - child.shown, child
        if whose is not None and min(hidden, worst) > whose.limits["disk_mb"] << 20:
            self.kill(whose, f"files that it removed and holds open exceed {whose.limits['disk_mb']} MiB")

    def slow_tick(self) -> None:
        """Looks at idle interpreters: threads that go on working, processes started between runs."""
        self.after(SLOW_TICK_S, self.slow_tick)
        if time.monotonic() > self.heard_at + self.config["silence_s"]:
            self.shut_down()  # the engine may hold the stream open after the host has gone
        self.processes.refresh(self.leaders)
        at_work = [session.child for session in self.running.values()]
        idle = [child for child in self.children if child.pid and (child.session is None or child.session.call is None)]
        self.end_strays(*idle)
        for child in idle:
            session: SessionRecord | None = child.session
            used = self.processes.cpu(child.pid) - child.idle_cpu
            if session is None or session.runs == 0 or used < WORKED_CPU_S:  # what its birth took is no thread's work
                continue
            at_work.append(child)
            if used > IDLE_CPU_S:
                self.kill(child, "its threads went on working after the run")
            elif self.config["watch_disk"]:
                self.survey(child)
        if self.config["watch_disk"]:
            disk = self.disk_use()
            if disk[0] > self.disk[0] + (1 << 20):
                self.charge(disk, at_work)
            self.find_hidden()

    # after a run

    def after_run(self, session: SessionRecord, child: Interpreter) -> bool:
        """Ends what the program started and left, and counts its files.

        Returns:
            Whether its answer must wait: for `measured_up`, as it has many files, or for the end of the interpreter,
            as it has too many. Else the next run could begin before this one is told so.
        """
        if child.dead or session.child is not child:
            return False
        self.processes.refresh(self.leaders)
        self.end_strays(child)
        if self.processes.unsure:
            child.shared = True
            self.keep_ticking()
        if not self.config["watch_disk"]:
            return False
        self.charge(self.disk_use(), [child, *(session.child for session in self.running.values())])
        # The disk's figures are no proof that nothing was written: others remove files at the same time, and the kernel
        # frees what ended processes held (a folder named in their Landlock rules) a while after them.
        if self.glance(child):
            return self.ended_for_its_files(child)
        child.due = True
        self.survey(child)
        return True

    def end_strays(self, *idle: Interpreter) -> None:
        """Kills what idle interpreters' programs started and left; their threads live on from run to run."""
        crowds = []
        for child in idle:
            child.twins = [twin for twin in child.twins if not twin.pid and not twin.dead]
            if child.pid in self.processes.several:
                child.shared = True
                if child.twins:  # one of the group is no stray, and which one is not known until it says hello
                    self.keep_ticking()
                else:
                    crowds.append(child)
        if not crowds:
            return
        self.keep_ticking()  # looked at once more when they have had time to die
        if not self.processes.may_scan():
            return
        for child in crowds:
            self.signal(child, signal.SIGSTOP)  # a stopped group cannot fork away from the count
        groups = self.processes.groups()
        for child in crowds:
            strays = [pid for pid in groups.get(child.pid, ()) if pid != child.pid and self.processes.alive(pid)]
            for pid in strays:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not strays:
                self.processes.several.discard(child.pid)
            self.signal(child, signal.SIGCONT)
