"""Which host program owns a container or a folder, and how another program can prove that the owner is dead.

Process ids mean nothing across pid namespaces: two trainers in containers that share one engine see different ids.
So every host program has a random token and holds a file lock in a folder named after it as long as it lives. The
kernel releases the lock when the process ends, however it ends. Another program may remove what carries the token only
if it finds that folder and gets the lock. Where it does not find the folder (another machine, another container's
/tmp), nothing is proved, and everything stays.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import platform
import re
import secrets
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polyturn.sandbox.sandbox import SandboxUnavailable

_TOKEN = re.compile("[0-9a-f]{32}")
_LONGEST_SOCKET_PATH = 100  # the kernel takes 107 bytes
_lock = threading.Lock()
_owner: Owner | None = None


def boot() -> str:
    """This machine since its last start; a lock says nothing about the processes of another machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def base_folder() -> Path:
    """Where this user's programs keep their folders.

    Raises:
        PermissionError: Another user has made a folder of that name, or can write in it.
    """
    # No name that versions before this one would take for a dead program's folder and remove.
    path = Path(tempfile.gettempdir()) / f"polyturn-owners-{os.getuid()}"
    path.mkdir(mode=0o711, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{path} belongs to another user, or another user can write in it")
    return path


class Owner:
    """This process as an owner: its token, its folder and the lock that it holds.

    Where no folder can be made, its containers carry the token all the same, and no other program removes them.
    """

    def __init__(self) -> None:
        self.token = secrets.token_hex(16)
        self.problem = ""  # why there is no folder
        try:
            base = base_folder()
            self.folder = base / self.token
            unlocked = base / f"new-{self.token}"  # renamed when it is locked: no other program sees it without a lock
            unlocked.mkdir(mode=0o711)
            self.fd = os.open(unlocked / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.write(self.fd, boot().encode())
            fcntl.flock(self.fd, fcntl.LOCK_EX)
            unlocked.rename(self.folder)
        except OSError as error:
            self.problem = str(error)

    def make_folder(self, engine: str = "") -> Path:
        """Makes a folder for one server.

        Args:
            engine: The id of the Docker engine that has the server's container. Only a program that speaks to this
                engine can remove the container, so only such a program may remove this folder.

        Raises:
            SandboxUnavailable: No folder can be made in the folder for temporary files.
        """
        if self.problem:
            raise SandboxUnavailable(
                f"the sandbox needs a folder for temporary files: {self.problem}; set TMPDIR to another folder"
            )
        path = self.folder / secrets.token_hex(4)
        path.mkdir(mode=0o711)
        if engine:
            (path / "engine").write_text(engine)
        return path


def owner() -> Owner:
    """This process's owner, made when first asked for."""
    global _owner
    with _lock:
        if _owner is None:
            _owner = Owner()
        return _owner


def _after_fork() -> None:
    """A forked child is another owner. It closes its copy of the lock, which its parent goes on holding."""
    global _owner, _lock
    _lock = threading.Lock()
    if _owner is not None and not _owner.problem:
        os.close(_owner.fd)
    _owner = None


def _at_exit() -> None:
    """Removes the folder when every server in it is closed. Registered first, so it runs after theirs."""
    if _owner is not None and not _owner.problem:
        with contextlib.suppress(OSError):
            _remove_if_empty(_owner.folder)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)


@contextmanager
def dead_owners() -> Iterator[dict[str, Path]]:
    """Tokens and folders of this user's programs that are proved dead; their locks are held meanwhile."""
    held: list[int] = []
    found: dict[str, Path] = {}
    try:
        with contextlib.suppress(OSError):  # no folder for temporary files: no proofs in it either
            for path in base_folder().iterdir():
                token = path.name.removeprefix("new-")
                if _TOKEN.fullmatch(token) and (fd := _lock_of_dead(path / "lock")) is not None:
                    held.append(fd)
                    found[token] = path
        yield found
    finally:
        for fd in held:
            os.close(fd)


def _lock_of_dead(path: Path) -> int | None:
    """A descriptor that holds the lock of a dead program of this machine; None where death is not proved."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.pread(fd, 128, 0).decode() == boot():
            return fd
    except (OSError, UnicodeDecodeError):
        pass
    os.close(fd)
    return None


def remove_folders(dead: dict[str, Path], engine: str = "") -> None:
    """Removes what dead programs left on this machine's disk.

    Args:
        dead: As `dead_owners` gives it.
        engine: The id of the engine whose containers of these owners are already removed; folders that belong to
            containers of other engines stay.
    """
    for path in dead.values():
        with contextlib.suppress(OSError):  # another program removes it at the same time
            for folder in path.iterdir():
                if folder.is_dir() and not folder.is_symlink():
                    marker = folder / "engine"
                    if not marker.exists() or marker.read_text() == engine:
                        remove_tree(folder)
            _remove_if_empty(path)


def _remove_if_empty(path: Path) -> None:
    """Removes an owner's folder when nothing but the lock is left in it."""
    if [entry.name for entry in path.iterdir()] == ["lock"]:
        remove_tree(path)


def remove_tree(path: Path) -> None:
    """Removes a folder of any depth, with files of any modes."""
    with contextlib.suppress(RecursionError):  # before Python 3.13, at a depth of about a thousand
        shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        subprocess.run(["chmod", "-R", "u+rwX", str(path)], capture_output=True, check=False)
        subprocess.run(["rm", "-rf", "--", str(path)], capture_output=True, check=False)


def fits_a_socket(path: str) -> bool:
    """Whether the kernel takes a path as the name of a Unix socket."""
    return len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH
