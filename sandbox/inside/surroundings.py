"""What a program finds around it: signal handlers that act only during runs, `help`, seeded generators, explanations.

Runs inside, in the interpreter that runs the program. All of it serves honest programs; none of it is a protection.
"""

from __future__ import annotations

import _thread
import builtins
import contextlib
import errno
import importlib
import os
import random
import signal
import sys
from collections.abc import Callable
from typing import Any

_plain_signal: Any = importlib.import_module("_signal")  # without its enumerations, which cost more than the calls
NO_SEMAPHORES = (
    "multiprocessing's pools, queues and locks need semaphores that processes share, and this sandbox has none: use "
    "threads (concurrent.futures.ThreadPoolExecutor) or a plain loop"
)
NO_HELP = "help() without an argument asks questions, and there is no input here: write help(len) or help('math')"
# What an error of the operating system means here, by the library's file that raised it: error numbers, explanation.
_EXPLAINED = {
    "socket.py": ((1, -2, -3), "this sandbox has no network"),
    "subprocess.py": ((1,), "this sandbox starts no other programs"),
    "shared_memory.py": ((1, 2, 13), "processes share no memory in this sandbox"),
}


def explanation(error: BaseException, files: list[str]) -> str:
    """One line that says why this error is raised here, or "".

    Args:
        error: What was raised.
        files: The file of each frame, the innermost last.
    """
    if isinstance(error, OSError):
        if error.strerror != NO_SEMAPHORES and any("/multiprocessing/" in file for file in files):
            return NO_SEMAPHORES
        numbers, text = _EXPLAINED.get(files[-1].rpartition("/")[2], ((), ""))
        return text if error.errno in numbers else ""
    if type(error) is EOFError and "reading a line" in str(error):
        return "standard input is empty in this sandbox"
    return ""


def prepare() -> None:
    """What is the same for every interpreter, once in the process that all are forked from."""
    _explain_semaphores()
    builtins.help = _help  # type: ignore[assignment]


def install(running: Callable[[], bool]) -> None:
    """Lets the signal handlers that a program sets act only while it runs: between runs they would end the loop.

    Args:
        running: Whether a program runs now.
    """
    set_handler, get_handler = signal.signal, signal.getsignal

    def guarded_signal(signalnum: Any, handler: Any) -> Any:
        """Sets the handler of a signal; see the standard library."""
        inner = handler
        if callable(handler):

            def inner(number: int, frame: Any) -> Any:
                return handler(number, frame) if running() else None

            inner.handler = handler  # type: ignore[attr-defined]
        before = set_handler(signalnum, inner)
        return getattr(before, "handler", before)

    def plain_getsignal(signalnum: Any) -> Any:
        """The handler of a signal; see the standard library."""
        found = get_handler(signalnum)
        return getattr(found, "handler", found)

    signal.signal, signal.getsignal = guarded_signal, plain_getsignal


def stay_at(home: str, folder: Callable[[], str]) -> None:
    """Makes the current folder's name the same in every session, in a branch and in its origin.

    The name leads to the folder of whichever process uses it. The true name is random and changes with every branch.

    Args:
        home: The name that every process has for its own folder.
        folder: The true name.
    """
    import posix

    true_name = os.getcwd

    def getcwd() -> str:
        """The current folder; see the standard library."""
        here, real = true_name(), folder()
        return home + here[len(real) :] if here == real or here.startswith(real + "/") else here

    def getcwdb() -> bytes:
        """The current folder; see the standard library."""
        return os.fsencode(getcwd())

    for module in (os, posix):
        vars(module).update(getcwd=getcwd, getcwdb=getcwdb)


def change_by_descriptor() -> None:
    """Lets `os.chmod` and `os.utime` open the file that they are given, where the filter refuses names."""
    import posix

    real_chmod, real_utime = os.chmod, os.utime

    def opened(path: Any, dir_fd: int | None, follow_symlinks: bool) -> int:
        flags = os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_symlinks else os.O_NOFOLLOW)
        try:
            return os.open(path, os.O_RDONLY | flags, dir_fd=dir_fd)
        except PermissionError:
            return os.open(path, os.O_WRONLY | flags, dir_fd=dir_fd)

    def chmod(path: Any, mode: int, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> None:
        """Changes the mode of a file; see the standard library."""
        if isinstance(path, int):
            return real_chmod(path, mode)
        fd = opened(path, dir_fd, follow_symlinks)
        try:
            return real_chmod(fd, mode)
        finally:
            os.close(fd)

    def utime(
        path: Any, times: Any = None, *, ns: Any = None, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> None:
        """Changes the times of a file; see the standard library."""
        when: dict[str, Any] = {"times": times} if ns is None else {"ns": ns}
        if isinstance(path, int):
            return real_utime(path, **when)
        fd = opened(path, dir_fd, follow_symlinks)
        try:
            return real_utime(fd, **when)
        finally:
            os.close(fd)

    for module in (os, posix):
        vars(module).update(chmod=chmod, utime=utime)


def disarm() -> None:
    """Stops the timers that a program has left running at the end of its run."""
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0)
    if "faulthandler" in sys.modules:
        sys.modules["faulthandler"].cancel_dump_traceback_later()


class Shelter:
    """Between runs, signals that end or stop a process by default are ignored; within a run they do what is set.

    A thread that the program left running may still send one, or start a timer.
    """

    def __init__(self) -> None:
        names = ("HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "TERM", "STKFLT", "VTALRM", "PROF", "IO", "PWR", "XCPU",
                 "XFSZ", "TSTP", "TTIN", "TTOU")  # fmt: skip
        first, last = (int(getattr(signal, name, 0)) for name in ("SIGRTMIN", "SIGRTMAX"))
        self.realtime = list(range(first, last + 1)) if first else []
        self.numbers = [int(getattr(signal, f"SIG{name}")) for name in names if hasattr(signal, f"SIG{name}")]
        self.ignored: list[int] = []

    def enter(self) -> None:
        """Ignores those whose action is the default one."""
        ends, plain = int(signal.SIG_DFL), int(signal.SIG_IGN)
        # Nothing but a thread sends one of the many others, and most programs leave none.
        numbers = self.numbers + self.realtime if _thread._count() else self.numbers
        self.ignored += [number for number in numbers if _plain_signal.getsignal(number) == ends]
        for number in self.ignored:
            _plain_signal.signal(number, plain)

    def leave(self) -> None:
        """Gives them their default action again."""
        while self.ignored:
            _plain_signal.signal(self.ignored.pop(), int(signal.SIG_DFL))


def _explain_semaphores() -> None:
    with contextlib.suppress(ImportError):
        module: Any = importlib.import_module("_multiprocessing")
        plain = module.SemLock

        class SemLock(plain):  # type: ignore[misc, valid-type]
            """The semaphore of multiprocessing, which says why it cannot be had where it cannot."""

            def __new__(cls, *args: Any, **options: Any) -> Any:
                try:
                    return super().__new__(cls, *args, **options)
                except FileExistsError:
                    raise
                except OSError:
                    raise OSError(errno.ENOSYS, NO_SEMAPHORES) from None

        module.SemLock = SemLock


def _help(*topics: Any) -> None:
    """Prints the documentation of an object, or of a name given as a text."""
    import pydoc

    if not topics:
        print(NO_HELP)
    for topic in topics:
        pydoc.Helper(output=sys.stdout).help(topic)


def seed(number: int) -> None:
    """Seeds the generators that libraries share, or every copy of the process would draw the same numbers."""
    random.seed(number)
    if (numpy := sys.modules.get("numpy")) is not None:
        words = [(abs(number) >> shift) & 0xFFFFFFFF for shift in range(0, max(1, number.bit_length()), 32)]
        numpy.random.seed(words[0] if len(words) == 1 else words)
        # Where a program makes a generator without a seed, numpy asks the system for one.
        numpy.random.bit_generator.randbits = random.Random(f"numpy {number}").getrandbits
    if (sympy := sys.modules.get("sympy.core.random")) is not None:
        sympy.seed(f"sympy {number}")
