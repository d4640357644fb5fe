"""Forking so that the new process is the supervisor's own child, on kernels that help with it and those that do not.

Standard library only; runs inside the sandbox.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import time
from collections.abc import Callable

from polyturn.sandbox.inside import isolation

# PyDLL keeps the interpreter lock while calling: nothing may run between a raw clone and its bookkeeping.
_libc = ctypes.PyDLL(None, use_errno=True) if isolation.LINUX else None
_CLONE = {"x86_64": 56, "aarch64": 220}
_TID_IN_THREAD = {"x86_64": 720, "aarch64": 208}  # where glibc keeps a thread's id in its record of the thread


def _tid_address() -> int:
    """Where the C library keeps this thread's id: the kernel says so, or (gVisor does not) glibc's layout."""
    address = ctypes.c_void_p(0)
    zero = ctypes.c_ulong(0)
    assert _libc is not None
    if _libc.prctl(isolation.PR_GET_TID_ADDRESS, ctypes.byref(address), zero, zero, zero) == 0 and address.value:
        return address.value
    _libc.pthread_self.restype = ctypes.c_size_t
    guess: int = _libc.pthread_self() + _TID_IN_THREAD[isolation.MACHINE]
    if ctypes.c_int.from_address(guess).value != os.getpid():  # only a process's first thread forks here
        raise OSError(errno.ENOSYS, "no thread id address")
    return guess


def clone_sibling() -> int:
    """Forks a process whose parent is OUR parent, in one step.

    The supervisor then reaps it and owns its process group, though it never held its memory. `os.fork` cannot do
    that without a process in between, which would double the cost for a big interpreter. The child's thread id is
    written where the C library keeps it, as its own fork does.

    Returns:
        0 in the child, its process id in the caller.
    """
    clone_parent, child_settid, child_cleartid, sigchld = 0x00008000, 0x01000000, 0x00200000, 17
    tid = ctypes.c_void_p(_tid_address())
    flags = ctypes.c_ulong(clone_parent | child_settid | child_cleartid | sigchld)
    null = ctypes.c_void_p(0)
    # x86_64: (flags, stack, parent_tid, child_tid, tls); aarch64 swaps the last two
    tail = (tid, null) if isolation.MACHINE == "x86_64" else (null, tid)
    number = ctypes.c_long(_CLONE[isolation.MACHINE])
    api = ctypes.pythonapi
    assert _libc is not None
    api.PyOS_BeforeFork()
    pid: int = _libc.syscall(number, flags, null, null, *tail)
    if pid == 0:
        api.PyOS_AfterFork_Child()
        return 0
    error = ctypes.get_errno()
    api.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(error, os.strerror(error))
    return pid


def fork_orphan() -> int:
    """Forks a process whose parent is the one that adopts orphans (process 1, or the supervisor as a subreaper).

    For kernels without CLONE_PARENT, at the price of a process in between.

    Returns:
        0 in the child, something else in the caller.
    """
    middle = os.fork()
    if middle:
        if os.waitpid(middle, 0)[1]:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return middle
    middle = os.getpid()
    try:
        child = os.fork()
    except OSError:
        os._exit(1)
    if child:
        os._exit(0)
    while os.getppid() == middle:  # what it says from now on is said by its new parent's child
        time.sleep(0.0002)
    return 0


def sibling_fork() -> Callable[[], int]:
    """The way to fork a process whose parent is our parent: gVisor takes the flag and then ignores it."""
    told, tells = os.pipe()
    parent = os.getppid()
    pid = clone_sibling()
    if pid == 0:
        os.write(tells, b"+" if os.getppid() == parent else b"-")
        os._exit(0)
    os.close(tells)
    works = os.read(told, 1) == b"+"
    os.close(told)
    if not works:
        os.waitpid(pid, 0)
    return clone_sibling if works else fork_orphan


def process_limit_works(uid: int) -> bool:
    """Whether this kernel holds a user to its process limit. gVisor does not: a fork bomb ends all processes there."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1] == 0
    try:
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        isolation.set_limit(resource.RLIMIT_NPROC, 1)
        os.fork()
    except BlockingIOError:
        os._exit(0)
    finally:
        os._exit(1)


def rehearse_fork() -> None:
    """What the interpreter itself does before and after a fork, without one; only for a process with one thread."""
    ctypes.pythonapi.PyOS_BeforeFork()
    ctypes.pythonapi.PyOS_AfterFork_Child()
