"""A file of trajectories: append-only JSON lines that survive a crash at any byte.

    {"polyturn":"trajectories","schema":1}
    {"crc32":"5f0c2a91","head":{"env_id":...,"seed":...,"member":...},"turns":[...],"final_observation":...,"info":{...}}

- The first line is the header. Every further line is one trajectory, UTF-8, ended by a single newline byte; a header
  again, where whole stores were joined into one file (`cat a.jsonl b.jsonl`), is passed over.
- `crc32` covers everything after its comma, so damage anywhere is reported with the record's number (from 1).
- `head` comes first and holds what fixes the start and what says who acted, so an index never parses the turns.
- `head` holds `group`, the number of the group in its run, where there was a run.
- `segment_starts` follows `info` where an episode has more than one segment (`Trajectory.segments`).
- `context_ids`, `action_ids` (little-endian int32) and `logps` (little-endian float32) are base64: exact, and several
  times faster than decimal digits. Other floats are written with the fewest digits that read back to the same float;
  nan and infinities as `NaN`, `Infinity`, `-Infinity`, as Python's `json` reads them.
- Text is stored as it is. A record with lone surrogates is written with `\\u` escapes; one where a high surrogate
  directly precedes a low one (which such escapes would fuse into one character) has the surrogates as three bytes each.

A record reaches the file by one `write` of a whole line: a killed writer leaves at most one line without its newline,
which readers ignore and the next writer removes. Bytes written survive the death of the process; what survives the
death of the machine is decided by `fsync`.

Errors:

    StoreError (ValueError)
    |-- NotAStore         the first line is not the header
    |-- UnknownSchema     written by another version
    `-- CorruptRecord     a checksum does not match; `corrupt="skip"` goes on after it
    StoreWriteError (OSError)   the disk is full, the folder read-only, ...; what was written before stays readable
    StoreLocked (OSError)       there is a writer already
"""

from __future__ import annotations

import binascii
import contextlib
import errno
import fcntl
import json
import os
import re
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from polyturn.envs.trajectory import Group, Start, Trajectory, Turn, by_shared_prefix

SCHEMA = 1
HEADER = b'{"polyturn":"trajectories","schema":%d}\n' % SCHEMA
Fsync = Literal["never", "close", "always"]
Corrupt = Literal["raise", "skip"]

_CRC = b'{"crc32":"%08x",'
_CRC_LENGTH = len(_CRC % 0)
_HEAD_START = len('"head":')
_HEAD_FIELDS = (
    "env_id", "seed", "task_id", "env_options", "member", "agent", "policy_version", "terminated", "truncated", "error",
)  # fmt: skip
_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_REMEDIES = {
    errno.ENOENT: "create the folder first",
    errno.ENOSPC: "free space, or choose another place",
    errno.EDQUOT: "free space, or choose another place",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or choose another place",
}
_decoder = json.JSONDecoder()


class StoreError(ValueError):
    """The file cannot be read as a store."""


class NotAStore(StoreError):
    """The file holds something else; it is never written to."""


class UnknownSchema(StoreError):
    """The store was written by a version with another schema."""


class CorruptRecord(StoreError):
    """A record's bytes are not those that were written."""


class StoreWriteError(OSError):
    """A trajectory could not be written; everything written before it is still there and readable."""


class StoreLocked(OSError):
    """Another process or object has the store open for writing."""


@dataclass(frozen=True)
class Entry:
    """Where one record lies and what it belongs to, read without its turns.

    Attributes:
        number: Position in the store, from 1.
        offset: First byte of the record.
        start: What comparable trajectories share; as `Trajectory.start`.
        member: Position in its group.
        agent: Name of the agent.
        policy_version: Which weights acted.
        valid: As `Trajectory.valid`.
    """

    number: int
    offset: int
    start: Start
    member: int
    agent: str
    policy_version: str
    valid: bool


class Store:
    """A store opened for appending; a context manager, usable from several threads.

    Creates the file if needed (not its folder), removes a half-written last line that a killed writer left, and holds a
    lock until `close` or the end of the process.

    Args:
        path: The file; ".jsonl" is customary.
        fsync: When to force bytes to the disk: "never", at "close", or "always" (after each trajectory). None of them
            matters if only the process dies.

    Raises:
        NotAStore: The file exists and is something else.
        UnknownSchema: It was written by another version.
        StoreLocked: Another process, or another `Store` in this one, is writing to it.
        StoreWriteError: It cannot be created or written.
    """

    def __init__(self, path: str | os.PathLike[str], *, fsync: Fsync = "close") -> None:
        if fsync not in ("never", "close", "always"):
            raise ValueError(f"Store: expected fsync to be never, close or always, got {fsync!r}")
        self.path = Path(path)
        self._fsync = fsync
        self._threads = threading.Lock()
        self._fd: int | None = None
        self._pid = os.getpid()
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise _write_error(self.path, "cannot open", error) from error
        try:
            self._end = self._recover(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def _recover(self, fd: int) -> int:
        """Takes the lock and leaves the file with its header and whole records; returns its length."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreLocked(
                error.errno, "this store has a writer already; wait for it or write to another file", str(self.path)
            ) from error
        try:
            size = os.fstat(fd).st_size
            with open(fd, "rb", closefd=False) as file:
                if not _check_header(file, self.path):
                    os.ftruncate(fd, 0)
                    _write_all(fd, HEADER, 0)
                    if self._fsync != "never":
                        os.fsync(fd)
                        _fsync_folder(self.path.parent)
                    return len(HEADER)
            whole = _last_newline(fd, size) + 1
            if whole < size:
                os.ftruncate(fd, whole)
                warnings.warn(
                    f"{self.path}: removed {size - whole} bytes at its end: a trajectory whose writer was killed",
                    RuntimeWarning,
                    stacklevel=3,
                )
            return whole
        except OSError as error:
            raise _write_error(self.path, "cannot write to", error) from error

    def append(self, trajectory: Trajectory) -> None:
        """Writes one trajectory; when this returns, the death of the process cannot lose it.

        Raises:
            ValueError: `info` or `env_options` hold something that is not a JSON value; nothing is written.
            StoreWriteError: The disk is full or failed; the store is as it was before, and may be used again.
        """
        line = _encode(trajectory)
        with self._threads:
            if self._fd is None:
                raise ValueError(f"{self.path}: the store is closed; open it again to append")
            if os.getpid() != self._pid:
                raise ValueError(f"{self.path}: opened before a fork; only the process that opened a store may append")
            try:
                status = os.fstat(self._fd)
                if status.st_nlink == 0:
                    raise OSError(errno.ENOENT, "the file was deleted while open")
                if status.st_size != self._end:  # an earlier append was interrupted half-way
                    os.ftruncate(self._fd, self._end)
                _write_all(self._fd, line, self._end)
                if self._fsync == "always":
                    os.fsync(self._fd)
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, self._end)
                raise _write_error(self.path, "cannot write to", error) from error
            self._end += len(line)

    def close(self) -> None:
        """Forces bytes to the disk if asked for and gives up the lock; may be called again."""
        with self._threads:
            fd, self._fd = self._fd, None
            if fd is None:
                return
            try:
                if os.getpid() == self._pid:
                    if self._fsync != "never":
                        os.fsync(fd)
                    fcntl.flock(fd, fcntl.LOCK_UN)  # closing would leave it with forked children
            except OSError as error:
                raise _write_error(self.path, "cannot flush", error) from error
            finally:
                os.close(fd)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read(path: str | os.PathLike[str], *, corrupt: Corrupt = "raise") -> Iterator[Trajectory]:
    """Reads trajectories one at a time, in the order they were written; safe while a writer appends.

    Args:
        path: The store.
        corrupt: What to do at a damaged record: "raise", or "skip" it with a warning that names it.

    Raises:
        NotAStore, UnknownSchema, CorruptRecord: See the module.
    """
    for number, offset, line in _lines(path, corrupt):
        yield _decode(line, path, number, offset)


def is_store(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a store of trajectories, of whatever schema."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.readline(4096).startswith(b'{"polyturn":"trajectories"')


def index(path: str | os.PathLike[str], *, corrupt: Corrupt = "raise") -> Iterator[Entry]:
    """Reads what is in the store without parsing turns: what a resumed run asks for.

    Example:
        `done = {(entry.start, entry.member) for entry in index("runs.jsonl") if entry.valid}`
    """
    for number, offset, line in _lines(path, corrupt):
        with _written_by_schema(path, number, offset):
            head = _decoder.raw_decode(line.decode("utf-8", "surrogatepass"), _CRC_LENGTH + _HEAD_START)[0]
            # A trajectory without turns knows its start and validity by the same rules as the whole one.
            stub = Trajectory(turns=(), **head)
        yield Entry(number, offset, stub.start, stub.member, stub.agent, stub.policy_version, stub.valid)


def read_groups(path: str | os.PathLike[str], *, corrupt: Corrupt = "raise") -> Iterator[Group]:
    """Reads groups of trajectories with identical starts, in order of first appearance; as `group_by_start`.

    Members may lie anywhere in the file. One pass collects their places (about 150 bytes a record), then one group at
    a time is held in memory.
    """
    for group, _ in read_numbered_groups(path, corrupt=corrupt):
        yield group


def read_numbered_groups(
    path: str | os.PathLike[str], *, corrupt: Corrupt = "raise"
) -> Iterator[tuple[Group, tuple[int, ...]]]:
    """As `read_groups`, each group with its members' positions in the store, from 1."""
    places: dict[Start, list[tuple[int, int]]] = {}
    for entry in index(path, corrupt=corrupt):
        places.setdefault(entry.start, []).append((entry.number, entry.offset))
    with open(path, "rb") as file:
        for members in places.values():
            trajectories, numbers = [], {}
            for number, offset in members:
                file.seek(offset)
                trajectories.append(_decode(file.readline(), path, number, offset))
                numbers[id(trajectories[-1])] = number
            for group in by_shared_prefix(trajectories):
                yield group, tuple(numbers[id(member)] for member in group)


def _lines(path: str | os.PathLike[str], corrupt: Corrupt) -> Iterator[tuple[int, int, bytes]]:
    """Yields (number, offset, line) of the whole, undamaged records."""
    if corrupt not in ("raise", "skip"):
        raise ValueError(f"expected corrupt to be raise or skip, got {corrupt!r}")
    with open(path, "rb") as file:
        if not _check_header(file, path):
            return
        offset, number = len(HEADER), 0
        for place, line in enumerate(file, 2):
            if line == HEADER:  # the beginning of a store that was joined to this one
                offset += len(line)
                continue
            number += 1
            if not line.endswith(b"\n"):
                return  # being written right now, or left by a killed writer
            if line[:_CRC_LENGTH] == _CRC % zlib.crc32(memoryview(line)[_CRC_LENGTH:-1]):
                yield number, offset, line
            else:
                message = (
                    f"{os.fspath(path)}: record {number} (line {place}, byte {offset}) is damaged: "
                    "its checksum does not match"
                )
                if corrupt == "raise":
                    raise CorruptRecord(f'{message}; restore the file, or read it with corrupt="skip"')
                warnings.warn(f"{message}; skipped", RuntimeWarning, stacklevel=3)
            offset += len(line)


def _check_header(file: BinaryIO, path: str | os.PathLike[str]) -> bool:
    """Whether the header is there; False for an empty store, or one whose creator was killed while writing it."""
    line = file.readline(4096)
    if line == HEADER:
        return True
    if HEADER.startswith(line):
        return False
    name = os.fspath(path)
    if changed := _changed_header(line):
        raise NotAStore(f"{name}: expected a store of trajectories as it was written, got one {changed}")
    try:
        schema = json.loads(line)["schema"] if line.startswith(b'{"polyturn":"trajectories"') else None
    except (ValueError, KeyError):
        schema = None
    if schema is not None:
        raise UnknownSchema(
            f"{name}: expected a store with schema {SCHEMA}, got schema {schema!r}; "
            "read it with the version of polyturn that wrote it"
        )
    raise NotAStore(
        f"{name}: expected a store of trajectories (first line {HEADER.decode().strip()}), "
        f"got a file that begins with {line[:40]!r}"
    )


def _changed_header(line: bytes) -> str:
    """What another program has done to a store that begins with `line`, and how to undo it; "" where nothing is known.

    A checksum covers bytes, so that such a file is no store any more.
    """
    bare = line.removeprefix(b"\xef\xbb\xbf")
    if bare != line and bare.rstrip() == HEADER.rstrip():
        return "with a byte order mark before its header; save it as UTF-8 without one, or copy the original again"
    if line.endswith(b"\r\n") and line.rstrip() == HEADER.rstrip():
        return (
            "whose line ends were changed to CRLF, as Git does with core.autocrlf or an editor on Windows; change them "
            "back (sed -i 's/\\r$//' FILE) and mark such files as binary (*.jsonl -text in .gitattributes)"
        )
    if line.rstrip() == HEADER.rstrip():
        return "whose header has spaces at its end; an editor has changed it: restore the original"
    if line.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ", b"PK\x03\x04")):
        return "that is compressed; decompress it first"
    return ""


def _last_newline(fd: int, size: int, block: int = 1 << 16) -> int:
    """Offset of the last newline; the header guarantees that there is one."""
    end = size
    while True:
        begin = max(0, end - block)
        found = os.pread(fd, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found
        end = begin


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _fsync_folder(folder: Path) -> None:
    """Makes a new file's name itself survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_error(path: Path, what: str, error: OSError) -> StoreWriteError:
    reason = (error.strerror or str(error)).lower()
    remedy = _REMEDIES.get(error.errno or 0, "choose another place")
    return StoreWriteError(error.errno, f"{what} the store: {reason}; {remedy}", str(path))


def _pack(array: NDArray[Any], dtype: str) -> str:
    return binascii.b2a_base64(array.astype(dtype, copy=False).tobytes(), newline=False).decode("ascii")


def _encode(trajectory: Trajectory) -> bytes:
    record = {
        "head": {name: getattr(trajectory, name) for name in _HEAD_FIELDS}
        | {"env_options": dict(trajectory.env_options)}
        | ({} if trajectory.group is None else {"group": trajectory.group}),
        "turns": [
            {
                "observation": turn.observation,
                "action": turn.action,
                "reward": turn.reward,
                "context_ids": _pack(turn.context_ids, "<i4"),
                "action_ids": _pack(turn.action_ids, "<i4"),
                "logps": _pack(turn.logps, "<f4"),
                "info": dict(turn.info),
                **turn.structure,
            }
            for turn in trajectory.turns
        ],
        "final_observation": trajectory.final_observation,
        "info": dict(trajectory.info),
    }
    if trajectory.segment_starts:
        record["segment_starts"] = list(trajectory.segment_starts)
    try:
        text = _dump(record, ascii_only=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"cannot store this trajectory of {trajectory.env_id}: {error}; "
            "info and env_options must hold JSON values only (convert numpy numbers and arrays)"
        ) from error
    try:
        data = text.encode()
    except UnicodeEncodeError:
        if _SURROGATE_PAIR.search(text):
            data = text.encode("utf-8", "surrogatepass")
        else:
            data = _dump(record, ascii_only=True).encode()
    body = data[1:]
    return _CRC % zlib.crc32(body) + body + b"\n"


def _dump(record: dict[str, Any], *, ascii_only: bool) -> str:
    return json.dumps(record, ensure_ascii=ascii_only, separators=(",", ":"))


@contextlib.contextmanager
def _written_by_schema(path: str | os.PathLike[str], number: int, offset: int) -> Iterator[None]:
    """Reports a record whose checksum holds but whose content is not ours: written by another program."""
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptRecord(
            f"{os.fspath(path)}: record {number} (byte {offset}) is not a trajectory of schema {SCHEMA}: {error!r}"
        ) from error


def _decode(line: bytes, path: str | os.PathLike[str], number: int, offset: int) -> Trajectory:
    with _written_by_schema(path, number, offset):
        record = json.loads(line.decode("utf-8", "surrogatepass"))
        turns = []
        for turn in record["turns"]:
            for name, dtype in (("context_ids", "<i4"), ("action_ids", "<i4"), ("logps", "<f4")):
                turn[name] = np.frombuffer(binascii.a2b_base64(turn[name]), dtype)
            turns.append(Turn(**turn))
        return Trajectory(
            turns=tuple(turns),
            final_observation=record["final_observation"],
            info=record["info"],
            segment_starts=tuple(record.get("segment_starts", ())),
            **record["head"],
        )
