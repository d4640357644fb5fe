"""The kernel's isolation of one episode: seccomp, Landlock, rlimits, process attributes. Runs inside the sandbox.

Standard library only: the file is sent into the container as text and runs there, so it imports nothing of polyturn.
The filter is an allow-list: a system call that is not on it is refused.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys

LINUX = sys.platform == "linux"
MACHINE = platform.machine()
_libc = ctypes.PyDLL(None, use_errno=True) if LINUX else None

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
SUPPORTED = LINUX and MACHINE in _AUDIT_ARCH and sys.maxsize > 2**32

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER = 1, 4, 22, 36
PR_SET_NO_NEW_PRIVS, PR_GET_TID_ADDRESS = 38, 40

# name -> (x86_64, aarch64); -1 where the architecture lacks it. Numbers from 424 on are shared.
_ALLOWED: dict[str, tuple[int, int]] = {
    # files
    "read": (0, 63), "write": (1, 64), "open": (2, -1), "close": (3, 57), "stat": (4, -1), "fstat": (5, 80),
    "lstat": (6, -1), "poll": (7, -1), "lseek": (8, 62), "pread64": (17, 67), "pwrite64": (18, 68),
    "readv": (19, 65), "writev": (20, 66), "access": (21, -1), "pipe": (22, -1), "select": (23, -1),
    "dup": (32, 23), "dup2": (33, -1), "sendfile": (40, 71), "fcntl": (72, 25), "flock": (73, 32),
    "fsync": (74, 82), "fdatasync": (75, 83), "truncate": (76, 45), "ftruncate": (77, 46), "getdents": (78, -1),
    "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "rename": (82, -1), "mkdir": (83, -1),
    "rmdir": (84, -1), "creat": (85, -1), "link": (86, -1), "unlink": (87, -1), "symlink": (88, -1),
    "readlink": (89, -1), "chmod": (90, -1), "fchmod": (91, 52), "umask": (95, 166), "utime": (132, -1),
    "mknod": (133, -1), "statfs": (137, 43), "fstatfs": (138, 44), "getdents64": (217, 61), "fadvise64": (221, 223),
    "utimes": (235, -1), "openat": (257, 56), "mkdirat": (258, 34), "mknodat": (259, 33), "newfstatat": (262, 79),
    "unlinkat": (263, 35), "renameat": (264, 38), "linkat": (265, 37), "symlinkat": (266, 36),
    "readlinkat": (267, 78), "fchmodat": (268, 53), "faccessat": (269, 48), "pselect6": (270, 72),
    "ppoll": (271, 73), "utimensat": (280, 88), "fallocate": (285, 47), "dup3": (292, 24), "pipe2": (293, 59),
    "preadv": (295, 69), "pwritev": (296, 70), "renameat2": (316, 276), "statx": (332, 291),
    "copy_file_range": (326, 285), "preadv2": (327, 286), "pwritev2": (328, 287), "sync_file_range": (277, 84),
    "openat2": (437, 437), "close_range": (436, 436), "faccessat2": (439, 439), "ioctl": (16, 29),
    "getxattr": (191, 8), "lgetxattr": (192, 9), "fgetxattr": (193, 10), "listxattr": (194, 11),
    "llistxattr": (195, 12), "flistxattr": (196, 13),
    # memory
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216),
    "msync": (26, 227), "mincore": (27, 232), "madvise": (28, 233), "membarrier": (324, 283),
    # signals and time
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pause": (34, -1),
    "nanosleep": (35, 101), "getitimer": (36, 102), "alarm": (37, -1), "setitimer": (38, 103),
    "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132), "gettimeofday": (96, 169), "times": (100, 153), "time": (201, -1),
    "timer_create": (222, 107), "timer_settime": (223, 110), "timer_gettime": (224, 108),
    "timer_getoverrun": (225, 109), "timer_delete": (226, 111), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "timerfd_create": (283, 85),
    "timerfd_settime": (286, 86), "timerfd_gettime": (287, 87), "signalfd4": (289, 74), "restart_syscall": (219, 128),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    # processes and threads
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getpgrp": (111, -1), "getpgid": (121, 155),
    "getsid": (124, 156), "getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177),
    "getresuid": (118, 148), "getresgid": (120, 150), "getgroups": (115, 158), "getpriority": (140, 141),
    "getrlimit": (97, 163), "setrlimit": (160, 164), "getrusage": (98, 165), "wait4": (61, 260), "waitid": (247, 95),
    "exit": (60, 93), "exit_group": (231, 94), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "sched_getparam": (143, 121), "sched_getscheduler": (145, 120), "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126), "getcpu": (309, 168), "futex": (202, 98), "set_robust_list": (273, 99),
    "get_robust_list": (274, 100), "set_tid_address": (218, 96), "arch_prctl": (158, -1), "rseq": (334, 293),
    "futex_waitv": (449, 449), "capget": (125, 90), "uname": (63, 160), "sysinfo": (99, 179), "getrandom": (318, 278),
    # events and talk among its own processes (no socket can be made, only connected pairs)
    "epoll_create": (213, -1), "epoll_wait": (232, -1), "epoll_ctl": (233, 21), "epoll_pwait": (281, 22),
    "epoll_create1": (291, 20), "epoll_pwait2": (441, 441), "eventfd": (284, -1), "eventfd2": (290, 19),
    "sendto": (44, 206), "recvfrom": (45, 207), "sendmsg": (46, 211), "recvmsg": (47, 212), "shutdown": (48, 210),
    "getsockname": (51, 204), "getpeername": (52, 205), "setsockopt": (54, 208), "getsockopt": (55, 209),
    # a branch narrows its own Landlock domain
    "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445), "landlock_restrict_self": (446, 446),
}  # fmt: skip
_CLONE, _FORK, _VFORK, _PRCTL, _PRLIMIT = (56, 220), (57, -1), (58, -1), (157, 167), (302, 261)
_SOCKETPAIR, _EXECVE, _EXECVEAT, _CLONE3 = (53, 199), (59, 221), (322, 281), (435, 435)
# reading its own attributes, naming threads and mappings, and further filters, which can only take more away
_PRCTL_ALLOWED = (3, 15, 16, PR_SET_SECCOMP, 23, 37, PR_SET_NO_NEW_PRIVS, 39, PR_GET_TID_ADDRESS, 0x53564D41)
_NEW_NAMESPACES = 0x02000000 | 0x00020000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x80
_CLONE_THREAD = 0x00010000
_EPERM, _ENOSYS, _NEWEST_KNOWN = 1, 38, 463
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000

_LD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_PASS, _DENY, _ABSENT = (_RET, 0, 0, _ALLOW), (_RET, 0, 0, _ERRNO | _EPERM), (_RET, 0, 0, _ERRNO | _ENOSYS)


def _column() -> int:
    return 0 if MACHINE == "x86_64" else 1


def _packed(code: list[tuple[int, int, int, int]]) -> bytes:
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


# What the zygote and an interpreter on its way in need, and no program may have.
_ENTERING: dict[str, tuple[int, int]] = {
    "setresuid": (117, 147), "setresgid": (119, 149), "setgroups": (116, 159), "setpgid": (109, 154),
    "setpriority": (141, 140), "sched_setscheduler": (144, 119),
}  # fmt: skip
_PRCTL_ENTERING = (PR_SET_PDEATHSIG, PR_SET_DUMPABLE)


def zygote_program() -> bytes:
    """The classic-BPF filter of the zygote, which every interpreter inherits: an allow-list.

    It is long, and taking it in costs the kernel as much as a tenth of an interpreter's birth; so it is installed
    once, before the first fork. What only the entry of an interpreter needs, `episode_program` takes away.

    Returns:
        Packed `sock_filter` instructions for this machine.
    """
    col = _column()
    code: list[tuple[int, int, int, int]] = []

    def put(op: int, k: int, jt: int = 0, jf: int = 0) -> None:
        code.append((op, jt, jf, k))

    put(_LD, 4)
    put(_JEQ, _AUDIT_ARCH[MACHINE], 1, 0)
    put(_RET, _KILL)  # the 32-bit entry
    put(_LD, 0)
    if MACHINE == "x86_64":
        put(_JGE, 0x40000000, 0, 1)
        put(_RET, _KILL)  # the x32 entry

    def guarded(numbers: tuple[int, int], body: list[tuple[int, int, int, int]]) -> None:
        """Runs `body` (which returns on every path) when the call is the named one."""
        if numbers[col] >= 0:
            put(_JEQ, numbers[col], 0, len(body))
            code.extend(body)

    guarded(_CLONE, [(_LD, 0, 0, 16), (_JSET, 0, 1, _NEW_NAMESPACES), _DENY, _PASS])
    guarded(_CLONE3, [_ABSENT])  # its flags lie in memory, where a filter cannot look: libc falls back to clone
    for numbers in (_FORK, _VFORK, _EXECVE, _EXECVEAT, *_ENTERING.values()):
        guarded(numbers, [_PASS])
    options = (*_PRCTL_ALLOWED, *_PRCTL_ENTERING)
    checks = [(_JEQ, len(options) - i, 0, value) for i, value in enumerate(options)]
    guarded(_PRCTL, [(_LD, 0, 0, 16), *checks, _DENY, _PASS])
    guarded(_PRLIMIT, [(_LD, 0, 0, 16), (_JEQ, 1, 0, 0), _DENY, _PASS])  # only its own limits
    # Only AF_UNIX, and only streams (1) and packets in sequence (5), which are bound to each other for good: a datagram
    # socket can send to any address, and so reach every socket of the machine that lies in sight.
    types = [(_LD, 0, 0, 24), (_JSET, 1, 0, 0b1010), (_JSET, 1, 0, 0b0001), _DENY, _PASS]
    guarded(_SOCKETPAIR, [(_LD, 0, 0, 16), (_JEQ, 1, 0, 1), _DENY, *types])
    signals = [(_JEQ, 2, 0, 8), (_JEQ, 1, 0, 15), (_JEQ, 0, 1, 10)]  # F_SETOWN, F_SETOWN_EX, F_SETSIG
    guarded(_ALLOWED["fcntl"], [(_LD, 0, 0, 24), *signals, _DENY, _PASS])
    for name, numbers in _ALLOWED.items():
        if name == "ioctl":  # pushing characters into a terminal
            guarded(numbers, [(_LD, 0, 0, 24), (_JEQ, 2, 0, 0x5412), (_JEQ, 1, 0, 0x541C), _PASS, _DENY])
        elif numbers[col] >= 0:
            guarded(numbers, [_PASS])
    put(_JGE, _NEWEST_KNOWN, 0, 1)
    code.append(_ABSENT)
    code.append(_DENY)
    return _packed(code)


def episode_program(*, processes: bool, programs: bool) -> bytes:
    """The second filter of an interpreter: takes away what only its entry needed, and what its limits forbid.

    The kernel asks both and follows the stricter.

    Args:
        processes: Whether it may fork; threads are always allowed.
        programs: Whether it may execute other programs.
    """
    col = _column()
    denied = list(_ENTERING.values())
    if not processes:
        denied += [_FORK, _VFORK]
    if not programs:
        denied += [_EXECVE, _EXECVEAT]
    code: list[tuple[int, int, int, int]] = [(_LD, 0, 0, 0)]
    for numbers in denied:
        if numbers[col] >= 0:
            code += [(_JEQ, 0, 1, numbers[col]), _DENY]
    checks = [(_JEQ, len(_PRCTL_ENTERING) - i, 0, value) for i, value in enumerate(_PRCTL_ENTERING)]
    code += [(_JEQ, 0, len(checks) + 3, _PRCTL[col]), (_LD, 0, 0, 16), *checks, _PASS, _DENY]
    if not processes:
        code += [(_JEQ, 0, 3, _CLONE[col]), (_LD, 0, 0, 16), (_JSET, 1, 0, _CLONE_THREAD), _DENY]
    return _packed([*code, _PASS])


def silence_program() -> bytes:
    """A second filter for interpreters that were forked from one another: they share a user id, so none may signal."""
    col = _column()
    numbers = [_ALLOWED[name][col] for name in ("kill", "tkill", "tgkill")]
    checks = [(_JEQ, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    return _packed([(_LD, 0, 0, 0), *checks, _PASS, _DENY])


def metadata_program() -> bytes:
    """A further filter for interpreters that share a user id: no file is changed by only its name.

    Landlock covers reading and writing, not modes and times, so a program could change those of every file of the user.
    By a descriptor they can still be changed, and Landlock decides which files a program can open.
    """
    col = _column()
    code: list[tuple[int, int, int, int]] = [(_LD, 0, 0, 0)]
    for name in ("chmod", "fchmodat", "utime", "utimes"):
        if _ALLOWED[name][col] >= 0:
            code += [(_JEQ, 0, 1, _ALLOWED[name][col]), _DENY]
    # utimensat without a name (the second argument, of 64 bits) means the descriptor itself
    by_name = [(_LD, 0, 0, 24), (_JEQ, 0, 2, 0), (_LD, 0, 0, 28), (_JEQ, 1, 0, 0), _DENY]
    code += [(_JEQ, 0, len(by_name), _ALLOWED["utimensat"][col]), *by_name]
    return _packed([*code, _PASS])


def _call(number: int, *arguments: object) -> int:
    if _libc is None:
        raise OSError(_ENOSYS, "no system calls by number here")
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def prctl(option: int, value: int = 0) -> None:
    """Calls prctl(option, value, 0, 0, 0); raises OSError."""
    zero = ctypes.c_ulong(0)
    if _libc is None or _libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero) < 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def install_filter(program: bytes) -> None:
    """Installs a seccomp filter for this process and everything it starts; it cannot be taken off."""
    count = len(program) // 8
    buffer = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", count, ctypes.addressof(buffer)))
    assert _libc is not None
    zero = ctypes.c_ulong(0)
    if _libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(2), ctypes.byref(header), zero, zero) < 0:
        raise OSError(ctypes.get_errno(), "seccomp filter refused")


def landlock_abi() -> int:
    """Landlock's version in this kernel; 0 where there is none."""
    try:
        return _call(444, None, ctypes.c_size_t(0), ctypes.c_uint(1)) if LINUX else 0
    except OSError:
        return 0


_READ = (1 << 2) | (1 << 3)
_FILE_ONLY = (1 << 0) | (1 << 1) | (1 << 2) | (1 << 14) | (1 << 15)
_NEVER = (1 << 0) | (1 << 6) | (1 << 9) | (1 << 11) | (1 << 15)  # executing, devices, sockets, device controls


class Landlock:
    """What an interpreter may reach of the file system; prepared once, since every episode needs the same.

    Args:
        readable: Files and folders to read; those that do not exist are left out.
        writable: Files to write (devices), besides each interpreter's own folder.
    """

    def __init__(self, readable: list[str], writable: list[str]) -> None:
        self.abi = landlock_abi()
        self.handled = (1 << 13) - 1
        for version, bit in ((2, 13), (3, 14), (5, 15)):
            if self.abi >= version:
                self.handled |= 1 << bit
        # The network as well from version 4, signals and abstract sockets to other domains from version 6.
        self._attributes = struct.pack("QQQ", self.handled, 3 if self.abi >= 4 else 0, 3 if self.abi >= 6 else 0)
        self._size = 24 if self.abi >= 6 else 16 if self.abi >= 4 else 8
        self.writing = self.handled & ~_NEVER
        wanted = [(path, _READ) for path in readable] + [(path, self.writing & _FILE_ONLY) for path in writable]
        # Each file and folder once (/lib is often a link into /usr): every rule costs every interpreter its time.
        real = {os.path.realpath(path): access for path, access in wanted if os.path.exists(path)}
        self.paths = [(path, access if os.path.isdir(path) else access & _FILE_ONLY) for path, access in real.items()]
        self._rules: list[tuple[int, int]] = []

    def prepare(self) -> None:
        """Opens the paths now; `restrict` then needs no more than a system call for each."""
        if self.abi:
            self._rules = [rule for path, access in self.paths if (rule := self._rule(path, access)) is not None]

    def forget(self) -> None:
        """After the descriptors were closed: `restrict` opens the paths itself."""
        self._rules = []

    @staticmethod
    def _rule(path: str, access: int) -> tuple[int, int] | None:
        try:
            return os.open(path, os.O_PATH | os.O_CLOEXEC), access
        except OSError:
            return None

    def restrict(self, folder: str, *, execute: bool) -> None:
        """Narrows this process for good to the prepared paths and to writing below `folder`."""
        if not self.abi:
            return
        ruleset = _call(444, self._attributes, ctypes.c_size_t(self._size), ctypes.c_uint(0))
        number = ctypes.c_int(ruleset)

        def allow(fd: int, access: int) -> None:
            if execute and access & _READ == access:
                access |= 1
            _call(445, number, ctypes.c_int(1), struct.pack("=Qi", access & self.handled, fd), ctypes.c_uint(0))

        try:
            for fd, access in self._rules:
                allow(fd, access)
            # One descriptor at a time: the program may be allowed few, and hold most of them.
            for path, access in ([] if self._rules else self.paths) + [(folder, self.writing)]:
                if (rule := self._rule(path, access)) is not None:
                    try:
                        allow(*rule)
                    finally:
                        os.close(rule[0])
            _call(446, number, ctypes.c_uint(0))
        finally:
            os.close(ruleset)


_MADV_COLLAPSE, _HUGE = 25, 2 << 20


def use_huge_pages() -> None:
    """Gathers this process's memory in huge pages where the kernel can (6.1): a fork then copies far fewer entries."""
    assert _libc is not None
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        lines = [line.split() for line in file]
    for fields in lines:
        if fields[1].startswith("rw") and (len(fields) == 5 or fields[5] == "[heap]"):
            low, high = (int(number, 16) for number in fields[0].split("-"))
            low, high = -(-low // _HUGE) * _HUGE, high // _HUGE * _HUGE
            if low < high:
                _libc.madvise(ctypes.c_void_p(low), ctypes.c_size_t(high - low), ctypes.c_int(_MADV_COLLAPSE))


def address_space() -> int:
    """Bytes of address space this process has mapped now."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def set_limit(which: int, value: int) -> None:
    """Sets a soft and hard rlimit, or the nearest the present hard limit allows."""
    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))
