"""What a page shows: a small index that is read at once, and compressed chunks that are read when they are opened."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from polyturn.envs.preference import Annotator, by_return
from polyturn.envs.store import Corrupt, read_numbered_groups
from polyturn.envs.trajectory import Group, Start, Trajectory, Turn
from polyturn.envs.viewing.sources import Found, Results, Run
from polyturn.envs.viewing.text import roles
from polyturn.envs.viewing.trained_on import KEY, TrainedOn

Pieces = Callable[[Sequence[int]], Sequence[tuple[str, bool]]]
"""From token ids to the text of each and whether it is a special token."""

ROW = (
    "store", "number", "group", "start", "member", "env", "task", "seed", "agent", "version", "reward", "turns",
    "tokens", "valid", "end", "tool_errors", "error", "chunk", "slot",
)  # fmt: skip
"""The columns of the index, in the order of a row's values."""

_EPISODES = 40  # of a chunk
_CHUNK = 1 << 21  # characters of a chunk, from which the next begins
_ERROR = 300  # characters of an error in the index; the whole of it is with the episode
_POINTS = 2000  # of a curve
_LARGEST_PICTURE = 2**20
_ENDS = ("low", "high", "trials")  # of an estimate
_EXACT = 2**53  # whole numbers that a browser keeps exactly


class Chunks:
    """Compressed pieces of data, kept in a temporary file until the page is written."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the object)
        self._places: list[tuple[int, int]] = []
        self._end = 0

    def __len__(self) -> int:
        return len(self._places)

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return self._end

    def append(self, value: object) -> int:
        """Keeps a JSON value; returns its number."""
        data = compressed(value)
        self._file.seek(self._end)
        self._file.write(data)
        self._places.append((self._end, len(data)))
        self._end += len(data)
        return len(self._places) - 1

    def __getitem__(self, number: int) -> bytes:
        offset, length = self._places[number]
        self._file.seek(offset)
        return self._file.read(length)

    def close(self) -> None:
        """Removes the temporary file."""
        self._file.close()


def compressed(value: object) -> bytes:
    """A JSON value as gzip; the same bytes for the same value."""
    text = json.dumps(plain(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return gzip.compress(text.encode("ascii"), 6, mtime=0)


def plain(value: Any) -> Any:
    """JSON values that every parser reads the same way: numbers that are not finite, or beyond 2^53, become text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, int) and abs(value) > _EXACT:
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    return repr(value)


@dataclass
class Book:
    """Everything a page shows.

    Attributes:
        title: Heading.
        index: What the page reads first; see `bound`.
        chunks: Conversations, tokens and the vocabulary, by number.
    """

    title: str
    index: dict[str, Any]
    chunks: Chunks = field(default_factory=Chunks)


def bind(
    found: Found,
    *,
    title: str,
    annotate: Annotator = by_return,
    pieces: Pieces | None = None,
    corrupt: Corrupt = "raise",
    note: str = "",
) -> Book:
    """Reads everything found, one group at a time, and makes a book of it.

    Args:
        found: From `polyturn.envs.viewing.sources.find`.
        title: Heading of the page.
        annotate: What compares the members of a group.
        pieces: The text of tokens; without it their ids are shown.
        corrupt: What to do at a damaged record; as in `polyturn.envs.store.read`.
        note: Text for the first view, a report for example.

    Raises:
        StoreError: A store cannot be read.
    """
    writer = _Writer(annotate)
    names = _names([*found.stores])
    for number, store in enumerate(found.stores):
        for group, numbers in read_numbered_groups(store, corrupt=corrupt):
            writer.add(number, group, numbers)
        writer.flush()
    return writer.book(
        title,
        stores=[names[path] for path in found.stores],
        runs=[_run(run, found.stores) for run in found.runs],
        results=[_result(result) for result in found.results],
        pieces=pieces,
        note=note,
    )


class _Writer:
    """Collects the rows of the index and fills chunks."""

    def __init__(self, annotate: Annotator) -> None:
        self._annotate = annotate
        self._chunks = Chunks()
        self._rows: list[list[Any]] = []
        self._groups: list[dict[str, Any]] = []
        self._starts: dict[Start, int] = {}
        self._texts: list[dict[str, Any]] = []
        self._tokens: list[list[list[str]]] = []
        self._length = 0
        self._used: set[int] = set()
        self._pairs: dict[int, int] = {}  # from a chunk of conversations to that of their tokens
        self._roles: dict[tuple[str, bool], tuple[str, str]] = {}

    def add(self, store: int, group: Group, numbers: Sequence[int]) -> None:
        """Takes a group and its members' positions in the store."""
        start = self._starts.setdefault(group[0].start, len(self._starts))
        first = len(self._rows)
        for member, number in zip(group, numbers, strict=True):
            if len(self._texts) == _EPISODES or self._length > _CHUNK:
                self.flush()
            # The chunk's number is known when it is full.
            self._rows.append([*self._facts(store, member, number, start), None, len(self._texts)])
            self._texts.append(self._conversation(member))
            self._tokens.append(self._token_arrays(member))
            self._length += sum(len(turn.observation) + len(turn.action) for turn in member.turns)
        self._groups.append({"rows": [first, len(self._rows)], "branched_at": group.branched_at} | self._matrix(group))

    def flush(self) -> None:
        """Closes the chunk that is being filled."""
        if not self._texts:
            return
        text = self._chunks.append(self._texts)
        if any(turn[0] or turn[1] for turns in self._tokens for turn in turns):
            self._pairs[text] = self._chunks.append(self._tokens)
        for row in self._rows[-len(self._texts) :]:
            row[-2] = text
        self._texts, self._tokens, self._length = [], [], 0

    def book(
        self,
        title: str,
        *,
        stores: Sequence[str],
        runs: Sequence[Mapping[str, Any]],
        results: Sequence[Mapping[str, Any]],
        pieces: Pieces | None,
        note: str = "",
    ) -> Book:
        """The finished book."""
        vocabulary = None
        if pieces is not None and self._used:
            ids = sorted(self._used)
            texts = list(pieces(ids))
            vocabulary = self._chunks.append(
                {"ids": ids, "texts": [text for text, _ in texts], "special": [special for _, special in texts]}
            )
        columns = [list(column) for column in zip(*self._rows, strict=True)] or [[] for _ in ROW]
        index = {
            "schema": 1,
            "title": title,
            "note": note,
            "stores": list(stores),
            "columns": dict(zip(ROW, columns, strict=True)),
            "groups": self._groups,
            "tokens": self._pairs,
            "vocabulary": vocabulary,
            "chunks": len(self._chunks),
            "runs": list(runs),
            "results": list(results),
        }
        return Book(title, index, self._chunks)

    def _facts(self, store: int, member: Trajectory, number: int, start: int) -> list[Any]:
        return [
            store,
            number,
            len(self._groups),
            start,
            member.member,
            member.env_id,
            member.task_id,
            member.seed,
            member.agent,
            member.policy_version,
            member.total_reward if member.valid else None,
            len(member.turns),
            sum(len(turn.action_ids) for turn in member.turns),
            member.valid,
            "terminated" if member.terminated else "truncated" if member.truncated else "not ended",
            sum(bool(turn.info.get("tool_error")) for turn in member.turns),
            None if member.error is None else member.error[:_ERROR],
        ]

    def _conversation(self, member: Trajectory) -> dict[str, Any]:
        key = (member.env_id, member.env_options.get("side") == "partner")
        if key not in self._roles:
            self._roles[key] = roles(member)
        return {
            "turns": [[turn.observation, turn.action, turn.reward, _info(turn)] for turn in member.turns],
            "final": member.final_observation,
            "error": member.error,
            "options": dict(member.env_options),
            "info": dict(member.info),
            "roles": self._roles[key],
        }

    def _token_arrays(self, member: Trajectory) -> list[list[str]]:
        """Each turn's context ids, action ids and log-probs, exact: little-endian 4-byte values in base64.

        Where the store says what is trained on, also log-ratios of the action, and weights of context and action.
        """
        found = []
        for turn in member.turns:
            self._used.update(np.unique(np.concatenate([turn.context_ids, turn.action_ids])).tolist())
            arrays = [turn.context_ids.astype("<i4"), turn.action_ids.astype("<i4"), turn.logps.astype("<f4")]
            if (numbers := TrainedOn.of(turn)) is not None:
                weights = np.concatenate([numbers.outside, numbers.weight])
                arrays += [numbers.log_ratio.astype("<f4"), weights.astype("<f4")]
            found.append([base64.b64encode(array.tobytes()).decode("ascii") for array in arrays])
        return found

    def _matrix(self, group: Group) -> dict[str, Any]:
        if len(group) < 2:
            return {}
        preference = self._annotate(group)
        return {
            "matrix": preference.matrix.tolist(),
            "source": preference.source,
            "by": getattr(self._annotate, "__qualname__", type(self._annotate).__qualname__),
        }


def _info(turn: Turn) -> dict[str, Any]:
    """A turn's info without the numbers that are shown with its tokens."""
    shown = TrainedOn.of(turn) is not None
    return {name: value for name, value in turn.info.items() if not (shown and name == KEY)}


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """Paths as short as they can be while they differ: without the folders that all share."""
    if not paths:
        return {}
    whole = [path.absolute() for path in paths]
    shared = 0
    folders = [path.parts[:-1] for path in whole]
    while all(len(parts) > shared and parts[shared] == folders[0][shared] for parts in folders):
        shared += 1
    return {path: str(Path(*each.parts[shared:])) for path, each in zip(paths, whole, strict=True)}


def _run(run: Run, stores: Sequence[Path]) -> dict[str, Any]:
    curves = []
    for folder, records in run.metrics.items():
        # A curve's points lead to the episodes that were collected with it, or in the same iteration.
        near = [number for number, store in enumerate(stores) if store.parent in (folder, folder.parent)]
        place = str(folder.relative_to(run.path)) if folder.is_relative_to(run.path) else str(folder)
        for name in sorted({name for record in records for name in record} - {"step"}):
            points = [
                [record["step"], float(record[name])]
                for record in records
                if _number(record.get(name)) and _number(record.get("step"))
            ]
            if points:
                curves.append({"name": name, "place": place, "points": thinned(points), "stores": near})
    values: dict[str, list[list[Any]]] = {}
    of: dict[str, list[int]] = {}
    for record in run.iterations:
        number = record.get("number")
        if not _number(number):
            continue
        of[str(number)] = [
            at for at, store in enumerate(stores) if store.is_relative_to(run.path / f"iteration-{number}")
        ]
        for name, value in leaves(record):
            if name != "number":
                values.setdefault(name, []).append([number, value])
    # An estimate's ends and its number of trials would be three more curves that say little by themselves.
    ends = {f"{name.removesuffix('.value')}.{end}" for name in values if name.endswith(".value") for end in _ENDS}
    iterations = [
        {"name": name, "place": "iterations", "points": points, "of": of}
        for name, points in sorted(values.items())
        if name not in ends
    ]
    return {"path": str(run.path), "settings": dict(run.settings), "curves": iterations + curves}


def thinned(points: list[list[Any]], limit: int = _POINTS) -> list[list[Any]]:
    """At most `limit` points that keep each stretch's least and greatest value, so that no peak is lost."""
    if len(points) <= limit:
        return points
    kept = []
    for part in np.array_split(np.arange(len(points)), limit // 2):
        values = [points[at][1] for at in part]
        kept += sorted({int(part[int(np.argmin(values))]), int(part[int(np.argmax(values))])})
    return [points[at] for at in kept]


def leaves(record: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, float]]:
    """Every finite number in nested mappings under its dotted name."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        elif _number(value):
            yield prefix + name, float(value)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _result(result: Results) -> dict[str, Any]:
    record = result.record
    cells = [
        {
            "name": cell.get("name"),
            "seed": cell.get("seed"),
            "values": dict(leaves(cell["result"])) if isinstance(cell.get("result"), Mapping) else {},
        }
        for cell in record["cells"]
        if isinstance(cell, Mapping)
    ]
    # An SVG in an <img> runs no script and loads nothing.
    pictures = [
        {"name": path.stem, "data": base64.b64encode(path.read_bytes()).decode("ascii")}
        for path in result.pictures
        if path.stat().st_size <= _LARGEST_PICTURE
    ]
    kept = {name: record.get(name) for name in ("suite", "summary", "quick", "seeds", "command", "machine")}
    return {
        "path": str(result.path),
        **kept,
        "cells": cells,
        "report": result.report,
        "reading": result.reading,
        "pictures": pictures,
    }


def sha256(text: str) -> str:
    """A source of a content security policy for an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
