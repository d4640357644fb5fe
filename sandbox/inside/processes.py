"""What the kernel says about the processes of a sandbox: groups, cpu, memory, kills. Runs inside.

The supervisor asks here instead of believing an episode. The cheap question, asked after every run, is "was any
process made at all since I last looked?": the kernel's last process id answers it in a microsecond.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import stat
import sys
import time
from collections.abc import Container

_LINUX = sys.platform == "linux"
_PAGE = resource.getpagesize()
_SCAN_EVERY_S = 0.045  # a little less than a tick
_EXAMINED_SINGLY = 16
_PASSES = 1000  # over a folder that is emptied; each lifts what lies below its reach
_LONG = 2048  # bytes of a path; the kernel takes 4096
_STATUS = re.compile(rb"^Tgid:\s(\d+)$.*?^NSpgid:.*?(\d+)$", re.M | re.S)
_USER = re.compile(rb"^Uid:\s(\d+)", re.M)
_OOM_FILES = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")


def describe(code: int | None) -> str:
    """How an interpreter ended, in words."""
    if code is None:
        return "the interpreter ended"
    if code >= 0:
        return f"the interpreter exited with code {code}"
    try:
        return f"the interpreter was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"the interpreter was killed by signal {-code}"


class ProcessTable:
    """Process groups and their members."""

    def __init__(self) -> None:
        self._load = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC) if _LINUX else -1
        self.seen = self._last_pid()
        self.several: set[int] = set()
        self.unsure = False
        self._scanned = self._cost = 0.0  # when the whole table was read last, and how long that took
        self._oom_file = next((path for path in _OOM_FILES if _LINUX and os.path.exists(path)), None)
        self._oom_kills = self._count_oom_kills()

    def _last_pid(self) -> int:
        try:
            return int(os.pread(self._load, 128, 0).rsplit(None, 1)[1])
        except (OSError, IndexError, ValueError):
            return 0

    def expect(self, pid: int) -> None:
        """A process the sandbox itself made: nothing to look into if it is simply the next one."""
        if pid == self.seen + 1:
            self.seen = pid

    def may_scan(self) -> bool:
        """Whether the whole table may be read now: however long it is, that takes no more than a fifth of the time."""
        return time.monotonic() >= self._scanned + 4 * self._cost

    def refresh(self, leaders: Container[int]) -> None:
        """Notes in `several` which leaders' groups have other members, if any process was made since last time.

        A few new ones are looked at singly. Many (a fork bomb somewhere) cost a scan of all, which is put off to
        the next tick when there has just been one: then `unsure` is set.
        """
        last = self._last_pid()
        if last == self.seen and last and not self.unsure:
            return
        if not self.unsure and 0 < last - self.seen <= _EXAMINED_SINGLY:
            for pid in range(self.seen + 1, last + 1):
                if pid not in leaders and (group := self._own_group(pid)) in leaders:
                    self.several.add(group)
            self.seen = last
            return
        now = time.monotonic()
        self.unsure = _LINUX and (now < self._scanned + _SCAN_EVERY_S or not self.may_scan())
        if not self.unsure:
            for group, members in self.groups().items():
                if len(members) > 1 and group in leaders:
                    self.several.add(group)
            self.seen = last

    @staticmethod
    def _own_group(pid: int) -> int:
        """The group of a process; 0 where it is gone or is only a thread."""
        try:
            with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
                found = _STATUS.search(file.read(4096))
            return int(found[2]) if found is not None and int(found[1]) == pid else 0
        except OSError:
            return 0

    def groups(self) -> dict[int, list[int]]:
        """Every process by group, zombies too. Only ids are asked for: a file in /proc costs twenty times as much."""
        start = time.monotonic()
        found: dict[int, list[int]] = {}
        for name in os.listdir("/proc") if _LINUX else ():
            if name.isdigit():
                with contextlib.suppress(ProcessLookupError):
                    found.setdefault(os.getpgid(int(name)), []).append(int(name))
        self._scanned = time.monotonic()
        self._cost = self._scanned - start
        return found

    @staticmethod
    def alive(pid: int) -> bool:
        """Whether a process is there and no zombie."""
        try:
            with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
                return file.read(1024).rpartition(b")")[2].split()[0] not in (b"Z", b"X")
        except (OSError, IndexError):
            return False

    @staticmethod
    def users() -> set[int]:
        """The real user id of every process, zombies included."""
        found: set[int] = set()
        for name in os.listdir("/proc") if _LINUX else ():
            if name.isdigit():
                with contextlib.suppress(OSError), open(f"/proc/{name}/status", "rb", buffering=0) as file:
                    found.update(int(user) for user in _USER.findall(file.read(4096)))
        return found

    @staticmethod
    def memory(pid: int) -> tuple[int, int]:
        """Bytes of address space, and bytes of it resident and not file-backed; zeros where it is gone."""
        try:
            with open(f"/proc/{pid}/statm", "rb", buffering=0) as file:
                fields = [int(field) for field in file.read(128).split()]
            return fields[0] * _PAGE, (fields[1] - fields[2]) * _PAGE
        except (OSError, IndexError, ValueError):
            return 0, 0

    @staticmethod
    def threads(pid: int) -> int:
        """How many threads a process has; 0 where it is gone, 2 (any number) where the system does not say."""
        if not _LINUX:
            return 2
        try:
            with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
                return int(file.read(1024).rpartition(b")")[2].split()[17])
        except (OSError, IndexError, ValueError):
            return 0

    @staticmethod
    def cpu(pid: int) -> float:
        """Seconds of cpu of a process and its threads; 0 where it is gone or the system does not say."""
        if not _LINUX or not pid:
            return 0.0
        try:
            return time.clock_gettime((~pid << 3) | 2)
        except OSError:
            return 0.0

    def killed_for_memory(self) -> bool:
        """Whether the kernel has killed for memory in this container since this was asked last."""
        before, self._oom_kills = self._oom_kills, self._count_oom_kills()
        return self._oom_kills > before

    def _count_oom_kills(self) -> int:
        if self._oom_file is None:
            return 0
        try:
            with open(self._oom_file, "rb", buffering=0) as file:
                for line in file.read(1024).splitlines():
                    if line.startswith(b"oom_kill "):
                        return int(line.split()[1])
        except (OSError, ValueError):
            pass
        return 0


def empty_folder(path: str, uid: int | None, nice: int) -> None:
    """With the user's rights, empties the folder of any modes and depth, and ends the process.

    The process does not become the user's: a branch that is still alive could stop it for good.
    """
    try:
        if nice:
            os.setpriority(os.PRIO_PROCESS, 0, nice)  # as a program's run: how long it takes was a program's choice
        if uid is not None:
            os.setgroups([])
            os.setresgid(-1, uid, -1)
            os.setresuid(-1, uid, -1)
        os.chmod(path, 0o700)
        os.chdir(path)
        for _ in range(_PASSES):
            names = os.listdir(".")
            for name in names:
                _remove(name)
            if not names:
                break
    finally:
        os._exit(0)


def _remove(name: str) -> None:
    """Removes a tree of any depth: a folder too deep for a path is lifted up first, for the next pass."""
    try:
        if not stat.S_ISDIR(os.lstat(name).st_mode):
            os.unlink(name)
            return
        os.chmod(name, 0o700)
        for root, folders, _ in os.walk(name):
            for folder in folders:
                inner = os.path.join(root, folder)
                if not os.path.islink(inner):
                    os.chmod(inner, 0o700)
                if inner.count("/") > 200 or len(os.fsencode(inner)) > _LONG:
                    os.rename(inner, f"lifted-{os.urandom(8).hex()}")
        shutil.rmtree(name, ignore_errors=True)
    except OSError:
        pass
