"""One word to a sandbox: `open_sandbox("auto" | "docker" | "local")`, and the one instance a process shares."""

from __future__ import annotations

import difflib
import inspect
import os
import threading
import warnings
import weakref
from typing import Any

from polyturn.sandbox.pool import Pool
from polyturn.sandbox.sandbox import Capabilities, ImageMissing, Limits, Sandbox, SandboxError, SandboxUnavailable
from polyturn.sandbox.server import ServerSession

KINDS = ("auto", "docker", "local")
LOCAL_TOO = {"sessions", "spares", "preload", "wait_s"}  # options that mean the same in the local sandbox
_shared: dict[str, Pool] = {}
_lock = threading.Lock()


def _after_fork() -> None:
    """A forked copy of the program starts its own sandboxes."""
    global _lock
    _lock = threading.Lock()
    _shared.clear()


os.register_at_fork(after_in_child=_after_fork)


class SharedSandbox:
    """A handle on the process's shared sandbox: closing it ends the sessions opened through it, nothing else.

    In a forked child it is a handle on the child's own shared sandbox.

    Pickled, it is a handle on the shared sandbox of the process that unpickles it: under Ray every node uses its own
    engine.
    """

    def __init__(self, pool: Pool, kind: str) -> None:
        self._pool, self._kind = pool, kind
        self._sessions: weakref.WeakSet[ServerSession] = weakref.WeakSet()
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        """What this sandbox protects."""
        return self._pool.capabilities

    def open(self, limits: Limits | None = None, *, seed: int = 0) -> ServerSession:
        """Opens a session; see `Sandbox.open`."""
        if self._closed:
            raise SandboxError("the sandbox is closed")
        if self._pool.inherited:
            self._pool, self._sessions = _shared_pool(self._kind), weakref.WeakSet()
        session = self._pool.open(limits, seed=seed)
        self._sessions.add(session)
        return session

    def close(self) -> None:
        """Closes the sessions opened through this handle; safe to call twice."""
        self._closed = True
        for session in list(self._sessions):
            session.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_sandbox, (self._kind,)

    def __enter__(self) -> SharedSandbox:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _make(kind: str, options: dict[str, Any]) -> Pool:
    if kind == "docker":
        from polyturn.sandbox.docker import DockerEngine, DockerSandbox

        _check_names(kind, options, DockerSandbox, DockerEngine)
        return DockerSandbox(**options)
    if kind == "local":
        from polyturn.sandbox.local import LocalEngine, LocalSandbox

        _check_names(kind, options, LocalSandbox, LocalEngine)
        return LocalSandbox(**options)
    try:
        return _make("docker", options)
    except (SandboxUnavailable, ImageMissing) as error:
        common = {name: value for name, value in options.items() if name in LOCAL_TOO}
        if named := sorted(name for name, value in options.items() if value is not None and name not in common):
            raise type(error)(
                f"{error}. The local sandbox has no {', '.join(named)}, so it does not take Docker's place: leave "
                'that out, or ask for "local" by name'
            ) from None
        warnings.warn(f"falling back to the local sandbox: {error}", RuntimeWarning, stacklevel=4)
        return _make("local", common)


def _check_names(kind: str, options: dict[str, Any], *takers: type) -> None:
    """Refuses an option that this kind of sandbox does not have."""
    known = {name for taker in takers for name in inspect.signature(taker).parameters} - {"options", "url"}
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"sandbox {kind!r} has no option {name!r}; it has: {', '.join(sorted(known))}{hint}")


def open_sandbox(kind: str = "auto", **options: Any) -> Sandbox:
    """A place to run untrusted programs.

    Without options every caller of a process shares one instance of each kind, so that a thousand environments cost
    one container; it is closed when the process ends. With options the caller gets a separate instance and
    closes it.

    Args:
        kind: "docker" (fails where no engine answers), "local" (no Docker; weaker, says so once), or "auto" (Docker
            where an engine answers and has the image, else local with one line of warning). An option that only
            Docker has (`runtime`, `level`, `image`, `memory_mb`, ...) is never dropped: "auto" then fails as "docker".
        options: For "docker" see `DockerSandbox` and `DockerEngine` (level, engines, runtime, image, sessions,
            memory_mb, ...); for "local" see `LocalSandbox`; for "auto" those of Docker.

    Returns:
        A sandbox; a context manager.

    Raises:
        SandboxUnavailable: The kind cannot run here. Only "auto" without options of Docker's own takes a weaker one.
        ImageMissing: "docker" found no image, or another version's.
        ValueError: No such kind, or an option's value is out of range.
        TypeError: The kind has no such option.
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"a sandbox is one of {', '.join(map(repr, KINDS))}, not {kind!r}{hint}")
    return _make(kind, options) if options else SharedSandbox(_shared_pool(kind), kind)


def _shared_pool(kind: str) -> Pool:
    """The one instance of this kind in this process, made when first asked for."""
    with _lock:
        pool = _shared.get(kind)
        if pool is None or pool.closed:
            pool = _shared[kind] = _make(kind, {})
            other = pool.capabilities.name.split("/")[0]
            if kind == "auto" and (_shared.get(other) is None or _shared[other].closed):
                _shared[other] = pool
        return pool
