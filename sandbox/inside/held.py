"""Files that a program holds open while it is forked: the copy gets its own, at the same place. Runs inside.

A fork shares open files: what one branch writes, cuts off, seeks or makes unreadable through a descriptor would happen
to the other's file. So every descriptor of a file or folder below the interpreter's own is opened anew on the copy of
that file. A file that was removed while it was open (`tempfile.TemporaryFile`) is copied.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import stat

_PATH = getattr(os, "O_PATH", 0)
_KEPT = os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK | os.O_DIRECTORY | _PATH  # of the flags of a descriptor
_PIECE = 1 << 20


class Held:
    """A descriptor and what it is open on: its name below the folder, or None for a file that was removed."""

    __slots__ = ("fd", "flags", "name")

    def __init__(self, fd: int, flags: int, name: str | None) -> None:
        self.fd, self.flags, self.name = fd, flags, name


def held_below(folder: str, above: int) -> list[Held]:
    """The descriptors from number `above` on that are open on what is, or was, in a folder.

    Raises:
        OSError: A removed file is open for writing only, so that nothing can read what a copy would have to hold.
    """
    device = os.stat(folder).st_dev
    found: list[Held] = []
    names: dict[int, str] = {}
    for fd in range(above, resource.getrlimit(resource.RLIMIT_NOFILE)[0]):
        try:
            status = os.fstat(fd)
        except OSError:  # not open
            continue
        kind = stat.S_IFMT(status.st_mode)
        if status.st_dev != device or kind not in (stat.S_IFREG, stat.S_IFDIR):
            continue
        flags = fcntl.fcntl(fd, fcntl.F_GETFL) & _KEPT
        if status.st_nlink == 0 and kind == stat.S_IFREG:
            if flags & os.O_ACCMODE == os.O_WRONLY:
                raise OSError(errno.EBUSY, "the program holds a file open that it removed and cannot read")
            found.append(Held(fd, flags, None))
            continue
        names = names or _names(folder)
        if status.st_ino in names:
            found.append(Held(fd, flags, names[status.st_ino]))
    return found


def _names(folder: str) -> dict[int, str]:
    """A name below the folder for every inode in it."""
    found = {os.stat(folder).st_ino: "."}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(root, name)
            with contextlib.suppress(OSError):
                found.setdefault(os.lstat(path).st_ino, os.path.relpath(path, folder))
    return found


def open_anew(held: list[Held], folder: str) -> None:
    """Puts each descriptor on the file of the same name in another folder, at the same place of it."""
    for one in held:
        fd = _copy(one.fd, folder) if one.name is None else _opened(os.path.join(folder, one.name), one.flags)
        if not one.flags & (os.O_DIRECTORY | _PATH):
            with contextlib.suppress(OSError):
                os.lseek(fd, os.lseek(one.fd, 0, os.SEEK_CUR), os.SEEK_SET)
        os.dup2(fd, one.fd, inheritable=os.get_inheritable(one.fd))
        os.close(fd)


def _opened(path: str, flags: int) -> int:
    try:
        return os.open(path, flags)
    except PermissionError:  # its mode was changed after it was opened
        mode = stat.S_IMODE(os.stat(path).st_mode)
        os.chmod(path, 0o700)
        try:
            return os.open(path, flags)
        finally:
            os.chmod(path, mode)


def _copy(fd: int, folder: str) -> int:
    """A file without a name that holds the same as another one."""
    path = os.path.join(folder, os.urandom(12).hex())
    copy = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(path)
    at = 0
    while data := os.pread(fd, _PIECE, at):
        at += os.pwrite(copy, data, at)
    return copy
