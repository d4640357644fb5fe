"""Rows of tokens as a model reads them: packed into a forest, on a device, with the way back to rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from polyturn.agents.transformer.forest import Forest, pack
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
    def of(cls, ids: Tensor, mask: Tensor) -> Rows:
        """Packs rows.

        Args:
            ids: `[N, T]` int64, right padded.
            mask: `[N, T]` bool, True on real tokens, which stand at the front of each row.

        Raises:
            ValueError: Rows that are not padded at the right only, or that hold no token.
        """
        lengths = mask.sum(1)
        if ids.shape != mask.shape or ids.ndim != 2:
            raise ValueError(f"expected ids and mask of one shape [N, T], got {tuple(ids.shape)}, {tuple(mask.shape)}")
        if not bool((mask == (torch.arange(mask.shape[1], device=mask.device)[None] < lengths[:, None])).all()):
            raise ValueError("expected rows padded at the right only, got a mask with gaps")
        forest = pack(ids.cpu().numpy(), lengths.cpu().numpy())
        return cls.on(forest, ids.device)

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
        """`[N, T]` each row's values of `packed [P]`; 0 beyond a row's length, where not asked for, and at t = 0."""
        wanted = (self.mask if token_mask is None else token_mask & self.mask).clone()
        wanted[:, 0] = False
        return torch.where(wanted, packed[self.place], packed.new_zeros(()))


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
