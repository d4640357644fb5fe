"""A training step's batch cut by whole groups: among processes, and into micro-batches that fit memory.

What a group costs is its distinct tokens: what its members share is read once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyturn.agents.transformer.forest import cut, distinct
from polyturn.agents.transformer.rows import by_segment
from polyturn.algorithms.batch import Batch

Cost = Callable[[NDArray[np.int64], NDArray[np.int64]], int]
"""From right-padded rows `ids [N, T]` and their lengths `[N]` to the tokens that reading them takes."""


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Whole groups, and how their rows are read.

    Attributes:
        batch: The rows.
        pieces: `[n]` row indices of each part that is read at a time; one part with all rows where they fit.
    """

    batch: Batch
    pieces: tuple[Tensor, ...]


def shard(batch: Batch, processes: int) -> list[Batch]:
    """One batch a process, whole groups, balanced: the largest group goes to the process that has least so far.

    Some are empty where there are fewer groups than processes.
    """
    if processes == 1:
        return [batch]
    cost = torch.tensor(_costs(batch, distinct))
    load, owner = [0] * processes, torch.zeros(len(cost), dtype=torch.int64)
    for index in torch.argsort(cost, descending=True, stable=True).tolist():
        least = load.index(min(load))
        owner[index], load[least] = least, load[least] + int(cost[index])
    mine = owner[_group_index(batch)]
    return [batch.select(mine == process) for process in range(processes)]


def split(batch: Batch, *, pieces: int = 1, tokens: int | None = None, cost: Cost = distinct) -> list[MicroBatch]:
    """Micro-batches of whole groups, the largest groups first.

    Args:
        batch: Whole groups.
        pieces: About how many micro-batches; fewer where there are fewer groups.
        tokens: What a micro-batch may cost; a single group that costs more is read in pieces, each of which holds to it
            unless it is a single row.
        cost: Of some rows.

    Returns:
        Together every row once; empty for an empty batch.
    """
    if not len(batch):
        return []
    index = _group_index(batch)
    costs = _costs(batch, cost)
    order = np.argsort(-np.array(costs), kind="stable").tolist()
    cuts = _cuts([costs[i] for i in order], pieces)
    result: list[list[int]] = []
    held = 0
    for position, group in enumerate(order):
        if not result or position in cuts or (tokens is not None and held + costs[group] > tokens):
            result.append([])
            held = 0
        result[-1].append(group)
        held += costs[group]
    parts = [batch.select(torch.isin(index, torch.tensor(groups, device=index.device))) for groups in result]
    return [MicroBatch(part, _pieces(part, tokens, cost)) for part in parts]


def _pieces(batch: Batch, tokens: int | None, cost: Cost) -> tuple[Tensor, ...]:
    ids, lengths = _plain(batch)
    if tokens is None or _read(batch, cost) <= tokens:
        return (torch.arange(len(batch)),)
    # Where nothing is shared, rows are taken as they come; so are those of several segments, which stay together.
    if cost is not distinct or batch.segments is not None:
        return tuple(_chunks(lengths, tokens))
    return tuple(torch.from_numpy(rows) for rows in cut(ids, lengths, tokens))


def _chunks(lengths: NDArray[np.int64], tokens: int) -> list[Tensor]:
    """Neighbouring rows of at most `tokens` tokens together."""
    parts: list[list[int]] = []
    held = 0
    for row, length in enumerate(lengths.tolist()):
        if not parts or held + length > tokens:
            parts.append([])
            held = 0
        parts[-1].append(row)
        held += length
    return [torch.tensor(rows) for rows in parts]


def _cuts(cost: list[int], pieces: int) -> set[int]:
    """Positions at which one of `pieces` runs of about equal cost begins."""
    total, done, piece, cuts = sum(cost), 0, 0, set()
    for position, value in enumerate(cost):
        here = min(int((done + value / 2) * pieces / total), pieces - 1)
        if position and here > piece:
            cuts.add(position)
        piece, done = max(piece, here), done + value
    return cuts


def _group_index(batch: Batch) -> Tensor:
    """`[N]` groups numbered 0, 1, ... without gaps."""
    _, index = torch.unique(batch.group, return_inverse=True)
    numbered: Tensor = index
    return numbered


def _costs(batch: Batch, cost: Cost) -> list[int]:
    """What each group costs."""
    index = _group_index(batch)
    if batch.segments is not None:
        return [_read(batch.select(index == group), cost) for group in range(int(index.max()) + 1)]
    of, (ids, lengths) = index.cpu().numpy(), _plain(batch)
    return [cost(ids[of == group], lengths[of == group]) for group in range(int(of.max()) + 1)]


def _read(batch: Batch, cost: Cost) -> int:
    """What reading the batch costs; a segment is read as a separate row."""
    ids, sizes, _ = by_segment(*_plain(batch), batch.segments)
    return cost(ids, sizes)


def _plain(batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows' tokens and lengths."""
    return batch.ids.cpu().numpy(), batch.mask.sum(1).cpu().numpy()
