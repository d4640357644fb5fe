"""Numbers of a training run: averaged over processes, and kept in a file that survives being killed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from polyturn.envs.files import write_whole

Sums = dict[str, tuple[float, int]]
"""Sum and count of entries by name: adds up over micro-batches and processes, unlike means."""


def add(sums: Sums, values: Mapping[str, Tensor]) -> None:
    """Adds every entry of every metric."""
    for name, value in values.items():
        flat = value.detach().double().reshape(-1)
        total, count = sums.get(name, (0.0, 0))
        sums[name] = (total + float(flat.sum()), count + flat.numel())


def merge(parts: Iterable[Sums]) -> dict[str, float]:
    """Means over all entries of all parts, by name; names without entries are left out."""
    sums: Sums = {}
    for part in parts:
        for name, (total, count) in part.items():
            before = sums.get(name, (0.0, 0))
            sums[name] = (before[0] + total, before[1] + count)
    return {name: total / count for name, (total, count) in sums.items() if count}


class MetricsFile:
    """One JSON object a line; on resuming, lines beyond the checkpoint are dropped, half-written ones too.

    Args:
        path: The file, or None to keep records in memory only.
        upto: Step of the checkpoint that is resumed; None starts an empty file.
    """

    def __init__(self, path: Path | None, *, upto: int | None = None) -> None:
        self.records: list[dict[str, Any]] = []
        self._path = path
        if path is None:
            return
        if upto is not None and path.exists():
            for line in path.read_text("utf-8", "replace").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                step = record.get("step") if isinstance(record, dict) else None
                if isinstance(step, int) and step <= upto:
                    self.records.append(record)
        write_whole(path, "".join(_line(record) for record in self.records))

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds one record; it is with the operating system when this returns."""
        self.records.append(dict(record))
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(record))


def _line(record: Mapping[str, Any]) -> str:
    # JSON has no nan; null keeps the file readable to every other reader.
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(clean) + "\n"
