"""What a path holds that can be looked at: stores of trajectories, training runs, results of a benchmark suite."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyturn.envs.store import HEADER

_SKIPPED = {"policy", "model", "node_modules", "__pycache__"}
_LARGEST_NOTE = 64 * 2**20  # bytes of a metrics or results file


class NothingToShow(ValueError):
    """A path holds no store, run or results."""


@dataclass(frozen=True)
class Run:
    """A training run, as its folder records it.

    Attributes:
        path: Its folder.
        settings: What it was started with, as recorded (`run.json` of the iterative protocol), or empty.
        metrics: One record a step for each `metrics.jsonl`, by the folder it lies in.
        iterations: The `done.json` of every finished iteration, in order.
    """

    path: Path
    settings: Mapping[str, Any]
    metrics: Mapping[Path, tuple[Mapping[str, Any], ...]]
    iterations: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Results:
    """Results of a benchmark suite: `results.json`, its report, the words on how to read it, and pictures."""

    path: Path
    record: Mapping[str, Any]
    report: str
    reading: str
    pictures: tuple[Path, ...]


@dataclass(frozen=True)
class Found:
    """What was found under some paths, each in order of its name."""

    stores: tuple[Path, ...]
    runs: tuple[Run, ...]
    results: tuple[Results, ...]


def find(paths: Iterable[str | os.PathLike[str]]) -> Found:
    """Everything under some paths that can be looked at.

    Args:
        paths: Files of trajectories; folders of runs or results, searched through. Links to folders are not followed.

    Raises:
        NothingToShow: A path holds nothing of the kind.
        FileNotFoundError: There is no such path.
    """
    stores: dict[Path, None] = {}
    runs: dict[Path, Run] = {}
    results: dict[Path, Results] = {}
    for given in map(Path, paths):
        before = len(stores) + len(runs) + len(results)
        if not given.exists():
            raise FileNotFoundError(2, "No such file or directory", str(given))
        files = sorted(_files(given)) if given.is_dir() else [given]
        notes: dict[Path, list[Path]] = {}
        for file in files:
            if is_store(file):
                stores.setdefault(file)
            elif file.name in ("metrics.jsonl", "run.json", "done.json"):
                notes.setdefault(_run_folder(file, given), []).append(file)
            elif file.name == "results.json" and (record := _json(file)) is not None and "cells" in record:
                results.setdefault(file, _results(file, record))
        for folder, found in notes.items():
            runs.setdefault(folder, _run(folder, found))
        if len(stores) + len(runs) + len(results) == before and not any(file in stores for file in files):
            raise NothingToShow(
                f"{given}: expected a store of trajectories, the folder of a run or a suite's results, found none; "
                "polyturn rollout --out, polyturn train --out and polyturn bench --out write them"
            )
    return Found(tuple(stores), tuple(runs.values()), tuple(results.values()))


def is_store(path: Path) -> bool:
    """Whether a file begins as a store does, whatever its schema."""
    if path.suffix not in ("", ".jsonl", ".store"):
        return False
    with path.open("rb") as file:
        return file.read(len(HEADER)).startswith(HEADER[: HEADER.index(b",")])


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED and not name.startswith((".", "step-"))]
        for name in names:
            path = Path(place, name)
            if path.suffix in (".jsonl", ".json", ".store") and path.is_file():
                yield path


def _run_folder(file: Path, given: Path) -> Path:
    """The run that a note belongs to: that of the iterations where there are any, or else the note's own folder."""
    for folder in file.parents:
        if (folder / "run.json").is_file():
            return folder
        if folder == given:
            break
    return file.parent


def _run(folder: Path, notes: Iterable[Path]) -> Run:
    metrics, iterations = {}, []
    for file in notes:
        if file.name == "metrics.jsonl":
            metrics[file.parent] = tuple(_lines(file))
        elif file.name == "done.json" and (record := _json(file)) is not None:
            iterations.append(record)
    iterations.sort(key=lambda record: record.get("number", 0) if isinstance(record.get("number"), int) else 0)
    return Run(folder, _json(folder / "run.json") or {}, metrics, tuple(iterations))


def _results(file: Path, record: Mapping[str, Any]) -> Results:
    pages = [file.with_name(name) for name in ("report.md", "README.md")]
    report, reading = (page.read_text("utf-8", "replace") if page.is_file() else "" for page in pages)
    return Results(file, record, report, reading, tuple(sorted(file.parent.glob("*.svg"))))


def _lines(file: Path) -> Iterator[Mapping[str, Any]]:
    """The whole records of a file that may be written to at this moment."""
    with file.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a line that was cut by a crash; the trainer drops it as well
            if isinstance(record, dict):
                yield record


def _json(file: Path) -> dict[str, Any] | None:
    """An object from a small file that may be missing, half-written or something else."""
    try:
        if file.stat().st_size > _LARGEST_NOTE:
            return None
        record = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
