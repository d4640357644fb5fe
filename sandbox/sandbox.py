"""The sandbox protocol: sessions that run untrusted Python, what a run returns, and what can go wrong.

Errors a caller may see (programs that fail are results, never errors):

    SandboxError
    |-- SandboxUnavailable   no engine answers, or the kernel lacks what the asked level needs
    |-- ImageMissing         the image is not there or its content label does not match
    `-- SandboxLost          the container or supervisor died; the episode is invalid, its program is not to blame
"""

from __future__ import annotations

import difflib
import numbers
import warnings
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Protocol, Self, runtime_checkable

MOST_OUTPUT_BYTES = 1 << 20  # four texts of it, six bytes a character in JSON, fit in one frame of `link`
LONGEST_S = 7 * 24 * 3600.0  # a week: what a clock, a timer and a socket of every system can wait
BOUNDS: dict[str, tuple[float, float]] = {
    "wall_s": (0.001, LONGEST_S),
    "cpu_s": (0.001, LONGEST_S),
    "memory_mb": (1, 1 << 24),
    "processes": (1, 4096),
    "branches": (0, 4096),
    "output_bytes": (1, MOST_OUTPUT_BYTES),
    "output_stop_bytes": (1, 1 << 30),
    "disk_mb": (0, 1 << 24),
    "files": (16, 4096),
    "source_bytes": (1, 8 << 20),  # six bytes a character in JSON, it fits in one frame of `inside.loop`
}
_warned: set[str] = set()


def check_number(name: str, value: Any, least: float, most: float, *, whole: bool = True) -> Any:
    """The value as a plain int or float.

    Args:
        name: What it is called in the error.
        value: What was given; numbers of numpy are taken, truth values and texts are not.
        least: The smallest value allowed.
        most: The largest value allowed.
        whole: Whether it must be a whole number.

    Raises:
        TypeError: It is no number, or none of the kind asked for.
        ValueError: It is out of range, or not finite.
    """
    kind = numbers.Integral if whole else numbers.Real
    wanted = f"{'a whole number' if whole else 'a number'} from {least:,} to {most:,}"
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{name} is {wanted}, not {value!r}")
    number: Any = value
    if not least <= number <= most:  # false for nan
        raise ValueError(f"{name} is {wanted}, not {value!r}")
    return int(number) if whole else float(number)


class SandboxError(RuntimeError):
    """Base of everything the sandbox raises."""


class SandboxUnavailable(SandboxError):
    """The asked kind of sandbox cannot run here; the message says what to do."""


class ImageMissing(SandboxError):
    """The container image is missing or is not the one this version was made for."""


class SandboxLost(SandboxError):
    """The infrastructure under a session died during or between calls."""


class Status(StrEnum):
    """How a run ended, as the supervisor saw it; never what the program claimed."""

    OK = "ok"
    ERROR = "error"
    """The program raised an exception (or called `sys.exit` with a non-zero code)."""
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT_LIMIT = "output-limit"
    PROCESS_LIMIT = "process-limit"
    CRASH = "crash"
    """The interpreter died (signal, `os._exit`)."""


@dataclass(frozen=True)
class Limits:
    """What one session may use.

    Attributes:
        wall_s: Seconds of wall clock per run.
        cpu_s: Seconds of CPU per run; None means as `wall_s`.
        memory_mb: Memory the program may map, MiB, above what the interpreter has at the start; for all its
            processes together.
        processes: Processes and threads the session may have at once. Processes end with the run that started
            them; threads live on from run to run.
        branches: Sessions forked from this one (or from its branches) that may live at once.
        programs: Whether it may execute other programs (a shell, a compiler); by default only Python runs.
        output_bytes: Bytes kept of each stream (half head, half tail), of the value and of the error, 1 MiB at most;
            the program is stopped at `output_stop_bytes`.
        output_stop_bytes: Bytes written after which the program is interrupted.
        disk_mb: Size of the files the session may hold, MiB.
        files: Files it may have open.
        source_bytes: Largest program accepted.

    Raises:
        TypeError: There is no limit of that name, or a value is of another type.
        ValueError: A value is out of its range (see `BOUNDS`), infinite or not a number.
    """

    wall_s: float = 5.0
    cpu_s: float | None = None
    memory_mb: int = 512
    processes: int = 16
    branches: int = 16
    programs: bool = False
    output_bytes: int = 16 * 1024
    output_stop_bytes: int = 4 * 1024 * 1024
    disk_mb: int = 16
    files: int = 64
    source_bytes: int = 1024 * 1024

    def __new__(cls, *args: Any, **values: Any) -> Self:
        names = [one.name for one in fields(cls)]
        for name in values:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise TypeError(f"Limits has no {name!r}; it has: {', '.join(names)}{hint}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if name == "cpu_s" and value is None:
                continue
            whole = name not in ("wall_s", "cpu_s")
            object.__setattr__(self, name, check_number(name, value, least, most, whole=whole))
        if not isinstance(self.programs, bool):
            raise TypeError(f"programs is True or False, not {self.programs!r}")


@dataclass(frozen=True)
class Timings:
    """Seconds: `wall` as the host saw the call, `run` inside the sandbox, `cpu` used by the program."""

    wall: float = 0.0
    run: float = 0.0
    cpu: float = 0.0


@dataclass(frozen=True)
class Result:
    """What one run returned. Every text is safe to print: valid Unicode, no control characters but \\n and \\t.

    Attributes:
        status: How it ended.
        stdout: Standard output, cut to the limit.
        stderr: Standard error, cut to the limit; without the traceback.
        value: `repr` of the last expression as in a notebook, or None.
        error: Short traceback naming the line of the program, or None.
        truncated: Whether output was cut.
        state_lost: Whether the session's variables are gone (the next run starts from a fresh interpreter).
        timings: Where the time went; never compare these between runs.
    """

    status: Status
    stdout: str = ""
    stderr: str = ""
    value: str | None = None
    error: str | None = None
    truncated: bool = False
    state_lost: bool = False
    timings: Timings = field(default_factory=Timings, compare=False)

    @property
    def ok(self) -> bool:
        """Whether the program ran to its end without an exception."""
        return self.status is Status.OK


@dataclass(frozen=True)
class Capabilities:
    """What a sandbox really protects; a test suite may skip only what is declared absent here.

    Attributes:
        name: Kind and level, for example "docker/standard".
        network_denied: Programs reach no network.
        filesystem_private: Programs neither read the host's files nor write outside their own folder.
        users_separate: Every episode has its own user id.
        syscalls_filtered: A seccomp filter applies.
        memory_limited: Memory limits are enforced.
        processes_limited: Process limits are enforced and nothing outlives a session.
        fork: Programs may start processes and sessions can be branched in place (otherwise by replay).
        landlock: A program's sight of the file system is narrowed, /proc and /sys included (needs Linux 5.13 with
            Landlock; gVisor has none).
        warning: One line for the user about what is not protected, or "".
    """

    name: str
    network_denied: bool
    filesystem_private: bool
    users_separate: bool
    syscalls_filtered: bool
    memory_limited: bool
    processes_limited: bool
    fork: bool
    landlock: bool
    warning: str = ""


def warn_once(text: str) -> None:
    """Says in this process once what a sandbox does not protect."""
    if text not in _warned:
        _warned.add(text)
        warnings.warn(text, RuntimeWarning, stacklevel=3)


@runtime_checkable
class Session(Protocol):
    """One episode's interpreter: variables live from run to run. One call in flight at a time."""

    def run(self, code: str, *, wall_s: float | None = None) -> Result:
        """Runs a program and waits for it.

        Args:
            code: The program.
            wall_s: Seconds of wall clock for this run; None means the session's limit.

        Raises:
            TypeError: The program is no text, or `wall_s` no number.
            ValueError: `wall_s` is out of range.
            SandboxLost: The infrastructure died; the session is unusable.
        """

    async def arun(self, code: str, *, wall_s: float | None = None) -> Result:
        """`run` for asyncio callers."""

    def fork(self) -> Session:
        """A second session that starts from this one's present state."""

    def interrupt(self) -> None:
        """Interrupts a run in progress from another thread, as Ctrl-C would."""

    def close(self) -> None:
        """Ends the interpreter and everything it started; safe to call twice."""


@runtime_checkable
class Sandbox(Protocol):
    """A place to open sessions in. Usable from many threads; a context manager."""

    @property
    def capabilities(self) -> Capabilities:
        """What this sandbox protects."""

    def open(self, limits: Limits | None = None, *, seed: int = 0) -> Session:
        """Opens a session whose `random` and numpy generators are seeded with `seed`.

        Raises:
            TypeError: `limits` are no `Limits`, or `seed` is no whole number.
            ValueError: `seed` has more than 128 bits.
            SandboxUnavailable: Cannot be started here.
            SandboxLost: Died while opening.
        """

    def close(self) -> None:
        """Closes every session and removes what was started; safe to call twice."""

    def __enter__(self) -> Sandbox: ...

    def __exit__(self, *exc: object) -> None: ...
