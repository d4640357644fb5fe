"""A training step's batch cut by whole groups: among processes, and into micro-batches that fit memory."""

from __future__ import annotations

import torch
from torch import Tensor

from polyturn.algorithms.batch import Batch


def shard(batch: Batch, processes: int) -> list[Batch]:
    """One batch a process, whole groups, real tokens balanced: the largest group goes to whoever has least so far.

    Some are empty where there are fewer groups than processes.
    """
    if processes == 1:
        return [batch]
    cost = _per_group(batch, "sum")
    load, owner = [0] * processes, torch.zeros(len(cost), dtype=torch.int64)
    for index in torch.argsort(cost, descending=True, stable=True).tolist():
        least = load.index(min(load))
        owner[index], load[least] = least, load[least] + int(cost[index])
    mine = owner[_group_index(batch)]
    return [batch.select(mine == process) for process in range(processes)]


def split(batch: Batch, *, pieces: int = 1, tokens: int | None = None) -> list[Batch]:
    """Micro-batches of whole groups of similar length, longest first.

    Args:
        batch: Whole groups.
        pieces: About how many micro-batches; fewer where there are fewer groups.
        tokens: A micro-batch's rows times its longest row never exceed this, except where one group alone does.

    Returns:
        Together every row once; empty for an empty batch.
    """
    if not len(batch):
        return []
    index = _group_index(batch)
    longest = _per_group(batch, "amax")
    rows = torch.bincount(index)
    order = torch.argsort(longest, descending=True, stable=True).tolist()
    cuts = _cuts([int(rows[i] * longest[i]) for i in order], pieces)
    result: list[list[int]] = []
    held = width = 0
    for position, group in enumerate(order):
        full = tokens is not None and (held + int(rows[group])) * width > tokens
        if not result or full or position in cuts:
            result.append([])
            held, width = 0, int(longest[group])
        result[-1].append(group)
        held += int(rows[group])
    return [batch.select(torch.isin(index, torch.tensor(groups, device=index.device))) for groups in result]


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


def _per_group(batch: Batch, reduce: str) -> Tensor:
    """`[G]` the rows' lengths, summed or their largest."""
    index, length = _group_index(batch), batch.mask.sum(1)
    empty = length.new_zeros(int(index.max()) + 1)
    result: Tensor = empty.scatter_reduce(0, index, length, reduce, include_self=False)
    return result
