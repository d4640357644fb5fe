"""Attention over a packed forest by GPU kernels: FlexAttention where rows share tokens, else FlashAttention's varlen.

Both compute what `polyturn.agents.transformer.forest_attention` computes block by block on any device. A kernel is
taken where its limits allow it; `kernel_for` says which, and the blocks serve the rest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from polyturn.agents.transformer.forest import Forest

Kernel = Literal["varlen", "flex", "blocks"]
# Tokens along each side of a tile of the block mask: FlexAttention's own default.
_TILE = 128
_EAGER = cast("Callable[..., Any]", flex_attention)
_SMALLEST_HEAD = 16  # FlexAttention's smallest head dimension


def kernel_for(query: Tensor, forest: Forest, *, softcap: float | None, dropout: float) -> Kernel:
    """Which implementation serves these queries.

    Args:
        query: `[1, H, P, D]`.
        forest: The P tokens.
        softcap: c of c tanh(score / c), or None.
        dropout: Share of weights dropped.
    """
    head = query.shape[-1]
    if not query.is_cuda or dropout or query.dtype == torch.float64 or head < _SMALLEST_HEAD:
        return "blocks"
    half = query.dtype in (torch.bfloat16, torch.float16)
    flash = half and head % 8 == 0 and head <= 256 and torch.cuda.get_device_capability(query.device) >= (8, 0)
    return "varlen" if flash and softcap is None and _only_chains(forest) else "flex"


def varlen(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, **options: Any) -> Tensor:
    """Attention of rows that share nothing.

    Args:
        query: `[1, H, P, D]`.
        key: `[1, G, P, D]`.
        value: `[1, G, P, D]`.
        bounds: `[S + 1]` int32, where each row begins, and P.
        longest: Tokens of the longest row.
        **options: scale (None for 1 / sqrt(D)) and window (tokens that a query sees, itself included; None for all).

    Returns:
        `[1, H, P, D]`.
    """
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    window, scale = options["window"], options["scale"]
    found = varlen_attn(
        q,
        k,
        v,
        bounds,
        bounds,
        longest,
        longest,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return cast("Tensor", found).transpose(0, 1)[None]


def flex(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, **options: Any) -> Tensor:
    """Attention under a block mask; shapes as for `varlen`.

    Args:
        query: `[1, H, P, D]`.
        key: `[1, G, P, D]`.
        value: `[1, G, P, D]`.
        mask: Made by `block_mask`.
        **options: scale (None for 1 / sqrt(D)) and softcap (c of c tanh(score / c), or None).
    """
    run = _compiled() if query.is_cuda else _EAGER
    softcap, scale = options["softcap"], options["scale"]
    groups = query.shape[1] != key.shape[1]
    cap = None if softcap is None else _cap(softcap)
    found: Tensor = run(query, key, value, score_mod=cap, block_mask=mask, scale=scale, enable_gqa=groups)
    return found


def block_mask(forest: Forest, window: int | None, device: torch.device) -> BlockMask:
    """Which tokens see which, tile by tile: tiles without a pair are left out, tiles of nothing but pairs need no test.

    Made from the forest's integers in time linear in the number of tiles, without any `[P, P]` array.

    Args:
        forest: P tokens.
        window: Tokens that a query sees, itself included; None for all on its path.
        device: Where the mask is used.
    """
    some, every = _tiles(forest, window)
    end = torch.from_numpy(forest.end).to(device)
    depth = torch.from_numpy(forest.depth).to(device)

    def on_path(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q < end[k])

    def on_path_in_window(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q < end[k]) & (depth[q] - depth[k] < cast("int", window))

    partial, whole = _indices(some & ~every, device), _indices(every, device)
    return BlockMask.from_kv_blocks(
        *partial,
        *whole,
        BLOCK_SIZE=_TILE,
        mask_mod=on_path if window is None else on_path_in_window,
        seq_lengths=(len(forest), len(forest)),
    )


def _tiles(forest: Forest, window: int | None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """`[tiles, tiles]` (query, key): whether some pair of a tile sees each other, at most, and whether all do."""
    starts = np.arange(0, len(forest), _TILE)
    stops = np.minimum(starts + _TILE, len(forest))
    first, last = starts[:, None], stops[:, None] - 1  # of the queries
    ends_last, ends_first = np.maximum.reduceat(forest.end, starts), np.minimum.reduceat(forest.end, starts)
    some = (starts[None] <= last) & (ends_last[None] > first)
    every = (stops[None] - 1 <= first) & (ends_first[None] > last)
    # An incomplete tile at the line's end has places without tokens, which only the test keeps out.
    every &= ((stops - starts) == _TILE)[:, None] & ((stops - starts) == _TILE)[None]
    if window is not None:
        deepest, highest = np.maximum.reduceat(forest.depth, starts), np.minimum.reduceat(forest.depth, starts)
        some &= highest[:, None] - deepest[None] < window
        every &= deepest[:, None] - highest[None] < window
    return some, every


def _indices(tiles: NDArray[np.bool_], device: torch.device) -> tuple[Tensor, Tensor]:
    """`[1, 1, tiles]` how many key tiles each query tile has, and `[1, 1, tiles, tiles]` which, these first."""
    order = np.argsort(~tiles, axis=1, kind="stable").astype(np.int32)
    count = tiles.sum(1).astype(np.int32)
    return torch.from_numpy(count)[None, None].to(device), torch.from_numpy(order)[None, None].to(device)


def _only_chains(forest: Forest) -> bool:
    return bool((forest.depth[forest.starts] == 0).all())


@functools.cache
def _compiled() -> Callable[..., Any]:
    # Lengths change from batch to batch; without `dynamic` each new one would be compiled anew.
    return torch.compile(_EAGER, dynamic=True)


@functools.cache
def _cap(softcap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped
