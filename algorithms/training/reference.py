"""Log-probabilities under the reference: computed as asked, or kept for rows that come again."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from polyturn.agents.transformer.prediction import Prediction
from polyturn.agents.transformer.rows import Rows
from polyturn.algorithms.batch import Batch


class ReferenceCache:
    """Reference log-probabilities of rows seen before, in a SQLite file that a resumed run finds again.

    What is kept for a row was computed together with the rows it first came with, and its last bits depend on those. A
    resumed run therefore ends with the same bits only because it reads the same numbers: the file is part of the run.

    Args:
        path: The file; None keeps everything in memory.
        reference: Which weights the numbers are of; those of other weights are never read.
    """

    def __init__(self, path: Path | None, reference: str) -> None:
        self._reference = reference
        self._known: dict[bytes, Tensor] = {}
        # Used from one thread at a time; the thread may be another than the one that opened it.
        self._file = None if path is None else sqlite3.connect(path, check_same_thread=False)
        if self._file is None:
            return
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("PRAGMA synchronous=FULL")
        with self._file:
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS rows (reference TEXT, key BLOB, logps BLOB, PRIMARY KEY (reference, key))"
            )
        found = self._file.execute("SELECT key, logps FROM rows WHERE reference = ?", (reference,))
        self._known = {key: torch.from_numpy(np.frombuffer(logps, np.float32).copy()) for key, logps in found}

    def get(self, key: bytes) -> Tensor | None:
        """`[L]` float32, or None for a row that was never put."""
        return self._known.get(key)

    def put(self, rows: list[tuple[bytes, Tensor]]) -> None:
        """Keeps rows; they are on the disk when this returns."""
        self._known.update(rows)
        if self._file is not None:
            with self._file:
                self._file.executemany(
                    "INSERT OR REPLACE INTO rows VALUES (?, ?, ?)",
                    [(self._reference, key, value.numpy().tobytes()) for key, value in rows],
                )

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


class Reference:
    """The model that log-ratios are taken to.

    Args:
        scoring: From rows and a mask to a dictionary with "logps".
        cache: Where to keep what was computed, or None.
        together: Says whether something is so in any process, where a pass must be made by all of them or none; None
            where each process computes by itself.
    """

    def __init__(
        self,
        scoring: nn.Module,
        cache: ReferenceCache | None = None,
        *,
        together: Callable[[bool], bool] | None = None,
    ) -> None:
        self._scoring, self._cache, self._together = scoring, cache, together

    @torch.no_grad()
    def logps(self, batch: Batch, rows: Rows, token_mask: Tensor, *, temperature: float = 1.0) -> Tensor:
        """`[N, T]` in nats of the tokens asked for, at a temperature.

        Args:
            batch: The rows, on the device.
            rows: The same, packed.
            token_mask: `[N, T]` bool.
        """
        if self._cache is None:
            return self._score(rows, token_mask, temperature)
        lengths = batch.mask.sum(1).tolist()
        parts = batch.segments
        keys = [
            _key(batch.ids[n, :size], token_mask[n, :size], None if parts is None else parts[n, :size], temperature)
            for n, size in enumerate(lengths)
        ]
        missing = [n for n, key in enumerate(keys) if self._cache.get(key) is None]
        if not missing and self._asked_elsewhere(False):
            self._score(rows, token_mask, temperature)
        if missing:
            self._asked_elsewhere(True)
            if len(missing) == len(keys):
                fresh = self._score(rows, token_mask, temperature)
            else:
                part = torch.tensor(missing, device=batch.ids.device)
                segments = None if batch.segments is None else batch.segments[part]
                few = Rows.of(batch.ids[part], batch.mask[part], segments)
                fresh = self._score(few, token_mask[part], temperature)
            values = fresh.float().cpu()
            self._cache.put([(keys[n], values[i, : lengths[n]].clone()) for i, n in enumerate(missing)])
        result = torch.zeros(batch.ids.shape, dtype=torch.float32)
        for n, key in enumerate(keys):
            found = self._cache.get(key)
            assert found is not None
            result[n, : lengths[n]] = found
        return result.to(batch.ids.device)

    @torch.no_grad()
    def idle(self, rows: Rows, token_mask: Tensor) -> None:
        """A pass that only others need, if they do."""
        if self._cache is None or self._asked_elsewhere(False):
            self._score(rows, token_mask, 1.0)

    @torch.no_grad()
    def predict(self, rows: Rows) -> Prediction:
        """The whole prediction after every packed token."""
        prediction: Prediction = self._scoring(rows, predict=True)
        return prediction

    def _asked_elsewhere(self, here: bool) -> bool:
        return self._together is not None and self._together(here)

    def _score(self, rows: Rows, token_mask: Tensor, temperature: float) -> Tensor:
        options = {} if temperature == 1.0 else {"temperature": temperature}
        scored: Tensor = self._scoring(rows, token_mask, **options)["logps"]
        return scored


def _key(ids: Tensor, token_mask: Tensor, segments: Tensor | None, temperature: float) -> bytes:
    """What a row's numbers depend on: its tokens, which are asked for, where segments begin, and the temperature."""
    what = ids.cpu().numpy().tobytes() + token_mask.cpu().numpy().tobytes()
    if segments is not None and bool(segments.any()):
        what += segments.cpu().numpy().tobytes()
    return blake2b(what + (b"" if temperature == 1.0 else repr(temperature).encode()), digest_size=16).digest()
