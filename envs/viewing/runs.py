"""What state the runs under a folder are in, and how each goes on: read from their files, nothing is written."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["running", "finished", "stopped"]
_SKIPPED = {"policy", "model", "checkpoints", "__pycache__"}


@dataclass(frozen=True)
class RunState:
    """One run.

    Attributes:
        path: Its folder.
        kind: What wrote it: the iterative protocol, one training, or a benchmark suite.
        state: "running" while a process holds it; "stopped" if its work is known to be unfinished.
        progress: How far it is.
        resume: How to go on, or what can be done with it.
    """

    path: Path
    kind: str
    state: State
    progress: str
    resume: str


def list_runs(folder: Path) -> list[RunState]:
    """Every run under a folder, in order of its path.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(2, "No such folder", str(folder))
    found = []
    covered: list[Path] = []  # a run's folder holds trainings that belong to it
    for place in _folders(folder):
        if any(place.is_relative_to(outer) for outer in covered):
            continue
        run = _state(place)
        if run is not None:
            found.append(run)
            covered.append(place)
    return found


def _folders(folder: Path) -> Iterator[Path]:
    for place, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED and not name.startswith("."))
        yield Path(place)


def _state(place: Path) -> RunState | None:
    if (place / "run.json").is_file():
        return _iterations(place)
    if (place / "metrics.jsonl").is_file() or (place / "checkpoints").is_dir():
        return _training(place)
    if (place / "work").is_dir() or (place / "results.json").is_file():
        return _suite(place)
    return None


def _iterations(place: Path) -> RunState:
    done = len(list(place.glob("iteration-*/done.json")))
    begun = [path for path in place.glob("iteration-*") if path.is_dir() and not (path / "done.json").is_file()]
    method = _json(place / "run.json").get("method", {})
    name = str(method.get("class", "")) if isinstance(method, dict) else ""
    kind = f"iterations{' of ' + name if name else ''}"
    progress = f"{max(done - 1, 0)} iterations done" + (f", {begun[0].name} begun" if begun else "")
    if _held(place):
        return RunState(place, kind, "running", progress, f"polyturn view {place} --serve follows it")
    again = "the command that started it goes on with it"
    if begun or not done:
        return RunState(place, kind, "stopped", progress, again)
    return RunState(place, kind, "finished", progress, f"{again} if --iterations is larger")


def _training(place: Path) -> RunState:
    states = sorted(place.glob("checkpoints/step-*/state.json"))
    saved = _json(states[-1]) if states else {}
    settings = saved.get("settings")
    whole = settings.get("steps") if isinstance(settings, dict) else None
    last = _last_step(place / "metrics.jsonl")
    progress = f"step {last} of {whole}" if whole else f"step {last}"
    if _held(place):
        return RunState(place, "training", "running", progress, f"polyturn view {place} --serve follows it")
    step = saved.get("step", 0)
    if isinstance(whole, int) and isinstance(step, int) and step >= whole:
        return RunState(place, "training", "finished", progress, "")
    where = f"the command that started it goes on from step {step}" if states else "no checkpoint yet: start it again"
    return RunState(place, "training", "stopped", progress, where)


def _suite(place: Path) -> RunState | None:
    cells = len(list((place / "work").glob("*.json")))
    record = _json(place / "results.json")
    if "suite" in record:
        count = len(record["cells"]) if isinstance(record.get("cells"), list) else 0
        return RunState(place, f"suite {record['suite']}", "finished", f"{count} cells", f"polyturn view {place}")
    if not cells:
        return None
    again = "the polyturn bench command that started it goes on with it"
    state: State = "running" if _held(place) else "stopped"
    return RunState(place, "suite", state, f"{cells} cells done", again)


def _held(place: Path) -> bool:
    """Whether a process has a lock in the folder: a trainer's, or that of a store that is being written."""
    for file in [*place.rglob(".lock"), *place.rglob("*.jsonl")]:
        try:
            handle = os.open(file, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            continue  # a file system without locks says nothing
        finally:
            os.close(handle)
    return False


def _last_step(file: Path) -> int:
    if not file.is_file():
        return 0
    step = 0
    for line in file.read_text("utf-8", "replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            step = record["step"]
    return step


def _json(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
