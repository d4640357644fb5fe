"""Rows of tokens as a model reads them: packed into a forest, on a device, with the way back to rows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyturn.agents.transformer.forest import Forest, pack, spread
from polyturn.agents.transformer.forest_attention import Plan


@dataclass(frozen=True, eq=False)
class Rows:
    """N right-padded rows and the forest of their P distinct tokens.

    Attributes:
        forest: The distinct tokens.
        ids: `[P]` int64.
        parent: `[P]` int64, packed index of the token before each, -1 for the first of a row.
        place: `[N, T]` int64, packed index of each row's tokens; 0 beyond a row's length.
        mask: `[N, T]` bool, True on real tokens.
    """

    forest: Forest
    ids: Tensor
    parent: Tensor
    place: Tensor
    mask: Tensor

    @classmethod
    def of(cls, ids: Tensor, mask: Tensor, segments: Tensor | None = None) -> Rows:
        """Packs rows.

        Args:
            ids: `[N, T]` int64, right padded.
            mask: `[N, T]` bool, True on real tokens, which stand at the front of each row.
            segments: `[N, T]` which segment of its row each token is in, not falling along a row; a segment is read
                as a separate row, from position 0. None: every row is one segment.

        Raises:
            ValueError: Rows that are not padded at the right only, or that hold no token.
        """
        lengths = mask.sum(1)
        if ids.shape != mask.shape or ids.ndim != 2:
            raise ValueError(f"expected ids and mask of one shape [N, T], got {tuple(ids.shape)}, {tuple(mask.shape)}")
        if not bool((mask == (torch.arange(mask.shape[1], device=mask.device)[None] < lengths[:, None])).all()):
            raise ValueError("expected rows padded at the right only, got a mask with gaps")
        read, sizes, where = by_segment(ids.cpu().numpy(), lengths.cpu().numpy(), segments)
        forest = pack(read, sizes)
        return cls.on(forest, ids.device) if where is None else cls.joined(forest, where, ids.device)

    @classmethod
    def joined(cls, forest: Forest, where: NDArray[np.int64], device: torch.device) -> Rows:
        """Rows whose segments are the rows of a forest.

        Args:
            forest: Of the segments.
            where: `[N, T]` index of each token into the forest's `place`, read as one line; -1 beyond a row's length.
            device: Where the tensors are to be.
        """
        rows, place = cls.on(forest, device), forest.place.reshape(-1)
        mask = torch.from_numpy(where >= 0).to(device)
        return cls(forest, rows.ids, rows.parent, torch.from_numpy(place[where.clip(min=0)]).to(device), mask)

    @classmethod
    def on(cls, forest: Forest, device: torch.device) -> Rows:
        """A forest's rows on a device."""
        place = torch.from_numpy(forest.place).to(device)
        return cls(
            forest,
            torch.from_numpy(forest.ids).to(device),
            torch.from_numpy(forest.parent).to(device),
            place.clamp(min=0),
            place >= 0,
        )

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.ids.device

    @cached_property
    def plan(self) -> Plan:
        """How the forest attends; shared by all models that read it."""
        return Plan(self.forest, self.device)

    @cached_property
    def depth(self) -> Tensor:
        """`[P]` position of each token in its rows."""
        return torch.from_numpy(self.forest.depth).to(self.device)

    def edges(self, token_mask: Tensor | None) -> Tensor:
        """`[M]` packed tokens that some row asks for and that something predicts: never the first of a row.

        Args:
            token_mask: `[N, T]` bool, tokens that are asked for; None for all.
        """
        wanted = self.mask if token_mask is None else token_mask & self.mask
        asked = torch.zeros(len(self.ids), dtype=torch.bool, device=self.device)
        asked[self.place[wanted]] = True
        return (asked & (self.parent >= 0)).nonzero()[:, 0]

    def to_rows(self, packed: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """`[N, T]` each row's values of `packed [P]`; 0 beyond a row's length, where not asked for, and where a row or
        a segment begins."""
        wanted = self.mask if token_mask is None else token_mask & self.mask
        wanted = wanted & (self.parent[self.place] >= 0)
        return torch.where(wanted, packed[self.place], packed.new_zeros(()))


def by_segment(
    ids: NDArray[np.int64], lengths: NDArray[np.int64], segments: Tensor | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64] | None]:
    """Rows cut into their segments, as a model reads them.

    Args:
        ids: `[N, T]` tokens, right padded.
        lengths: `[N]` tokens of each row.
        segments: `[N, T]` segment of each token, or None.

    Returns:
        Segments `[M, S]` right padded, their lengths `[M]`, and `[N, T]` where each token is in the segments read as
        one line (-1 beyond a row's length), or None where segments are the rows themselves.
    """
    if segments is None:
        return ids, lengths, None
    number = segments.cpu().numpy()
    parts: list[NDArray[np.int64]] = []
    spans: list[tuple[int, int, int]] = []
    for row, length in enumerate(lengths.tolist()):
        begins = np.flatnonzero(np.diff(number[row, :length], prepend=-1))
        for begin, end in itertools.pairwise([*begins.tolist(), length]):
            spans.append((row, begin, end))
            parts.append(ids[row, begin:end])
    cut, sizes = spread(parts)
    where = np.full(ids.shape, -1, np.int64)
    for part, (row, begin, end) in enumerate(spans):
        where[row, begin:end] = part * cut.shape[1] + np.arange(end - begin)
    return cut, sizes, where


def leaf_batches(forest: Forest, *, waste: float = 0.1) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Leaves in batches of similar length, for models that cannot read a forest.

    Args:
        forest: The distinct tokens.
        waste: Largest share of padding in a batch.
    """
    leaves = forest.leaves()
    lengths = (forest.place[leaves] >= 0).sum(1)
    order = np.argsort(-lengths, kind="stable")
    batches: list[list[int]] = []
    longest = real = 0
    for row, length in zip(leaves[order].tolist(), lengths[order].tolist(), strict=True):
        if not batches or real + length < (1.0 - waste) * longest * (len(batches[-1]) + 1):
            batches.append([])
            longest, real = length, 0
        batches[-1].append(row)
        real += length
    return [np.array(batch, np.int64) for batch in batches]
