"""Small files that are written whole or not at all, and digests by which damage is found."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

from filelock import FileLock, Timeout

P = ParamSpec("P")
R = TypeVar("R")


class FolderInUseError(RuntimeError):
    """Another run is writing into the folder."""


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps every other run out of a folder, which is made if it is missing.

    Of a run's several processes (`accelerate launch`) only the first takes the folder.

    Raises:
        FolderInUseError: Another run has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    lock = FileLock(folder / ".in-use.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderInUseError(
            f"expected a folder of this run's own, got {str(folder)!r}, in which another run is writing; wait for it, "
            "stop it, or pass another out"
        ) from None
    try:
        yield
    finally:
        lock.release()


def alone_in_out(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose argument `out` names a folder that no other run may write into meanwhile."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapped(*args: P.args, **options: P.kwargs) -> R:
        with alone_in(Path(signature.bind(*args, **options).arguments["out"])):
            return function(*args, **options)

    return wrapped


def write_whole(path: Path, text: str) -> None:
    """Writes a text file so that a crash at any moment leaves either the old content or the new, flushed to disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Asks the operating system to put a file, or a folder's list of names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(path: Path) -> str:
    """A file's BLAKE2b digest, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
