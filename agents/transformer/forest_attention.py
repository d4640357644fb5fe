"""Attention over a packed forest, below transformers' own seam for attention functions.

The forest reaches the attention function in the place of the attention mask: a `ForestMask`, which models hand on
unopened. Queries are taken in blocks, each against the keys on their paths, by the exact fused kernel; on a GPU by
the kernels in `polyturn.agents.transformer.forest_kernels`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from polyturn.agents.transformer.forest import Forest
from polyturn.agents.transformer.forest_kernels import block_mask, flex, kernel_for, varlen

NAME = "polyturn_forest"
_BLOCK = 256  # queries of one call: fewer calls cost less, smaller blocks waste less on keys that are masked


@dataclass(frozen=True, eq=False)
class _Block:
    """Some neighbouring queries and the keys on their paths.

    Attributes:
        queries: Which.
        keys: Which, as a slice where they are neighbours.
        mask: `[Q, K]` bool, or None where the block is a chain from a root, whose mask is the plain causal one.
    """

    queries: slice
    keys: slice | Tensor
    mask: Tensor | None


class Plan:
    """How a forest's tokens attend, made once and used by every layer.

    Args:
        forest: The tokens.
        device: Where attention is computed.
    """

    def __init__(self, forest: Forest, device: torch.device) -> None:
        self.forest, self.device = forest, device
        self._blocks: dict[int | None, list[_Block]] = {}
        self._masks: dict[int | None, BlockMask] = {}

    def blocks(self, window: int | None) -> list[_Block]:
        """The blocks under a sliding window of `window` tokens, the query's own included; None for no window."""
        if window not in self._blocks:
            self._blocks[window] = list(self._made(window))
        return self._blocks[window]

    def block_mask(self, window: int | None) -> BlockMask:
        """The same for FlexAttention."""
        if window not in self._masks:
            self._masks[window] = block_mask(self.forest, window, self.device)
        return self._masks[window]

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.forest.depth.max()) + 1

    @cached_property
    def bounds(self) -> Tensor:
        """`[S + 1]` int32: where each row begins where none are shared, and P."""
        starts = np.append(self.forest.starts, len(self.forest)).astype(np.int32)
        return torch.from_numpy(starts).to(self.device)

    def _made(self, window: int | None) -> Iterator[_Block]:
        forest = self.forest
        for start, stop in _stretches(forest, windowed=window is not None):
            if window is None and forest.depth[start] == 0 and _is_chain(forest, start, stop):
                yield _Block(slice(start, stop), slice(start, stop), None)
                continue
            queries = np.arange(start, stop)
            keys = np.flatnonzero(forest.end[:stop] > start)
            mask = forest.sees(queries, keys)
            if window is not None:
                mask &= forest.depth[queries][:, None] - forest.depth[keys][None, :] < window
                kept = mask.any(0)
                keys, mask = keys[kept], mask[:, kept]
            whole = keys[-1] - keys[0] + 1 == len(keys)
            where = slice(int(keys[0]), int(keys[-1]) + 1) if whole else torch.from_numpy(keys).to(self.device)
            yield _Block(slice(start, stop), where, torch.from_numpy(mask).to(self.device))


def _stretches(forest: Forest, *, windowed: bool) -> Iterator[tuple[int, int]]:
    """Where blocks begin and end: a chain from a root whole, everything else in pieces of about `_BLOCK` queries."""
    bounds = [*forest.starts.tolist(), len(forest)]
    start = bounds[0]
    for left, right in itertools.pairwise(bounds):
        if not windowed and forest.depth[left] == 0:
            if left > start:
                yield start, left
            yield left, right
            start = right
            continue
        while right - start >= _BLOCK:
            yield start, start + _BLOCK
            start += _BLOCK
    if start < bounds[-1]:
        yield start, bounds[-1]


def _is_chain(forest: Forest, start: int, stop: int) -> bool:
    return bool((forest.parent[start + 1 : stop] == np.arange(start, stop - 1)).all())


class ForestMask(Tensor):
    """A plan in the place of a mask: four dimensions, so that models pass it on as one that is ready."""

    plan: Plan

    @staticmethod
    def of(plan: Plan) -> ForestMask:
        made = torch.zeros((1, 1, 1, 1), device=plan.device).as_subclass(ForestMask)
        made.plan = plan
        return made


def forest_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed forest; the signature is transformers'.

    Args:
        query: `[1, H, P, D]`.
        key: `[1, G, P, D]`, G a divisor of H (grouped queries).
        value: `[1, G, P, E]`.
        attention_mask: The `ForestMask`.
        scaling: Of the scores; default 1 / sqrt(D).
        dropout: Share of weights dropped.
        sliding_window: Tokens that a query sees, itself included; None for all on its path.
        softcap: c of c tanh(score / c).

    Returns:
        `[1, P, H, E]`.
    """
    plan = getattr(attention_mask, "plan", None)
    if plan is None:
        raise ValueError("forest_attention: expected a ForestMask, which the model did not hand on")
    if sliding_window is not None and plan.longest <= sliding_window:
        sliding_window = None
    kernel = kernel_for(query, plan.forest, softcap=softcap, dropout=dropout)
    if kernel == "varlen":
        found = varlen(query, key, value, plan.bounds, plan.longest, scale=scaling, window=sliding_window)
        return found.transpose(1, 2).contiguous(), None
    if kernel == "flex":
        found = flex(query, key, value, plan.block_mask(sliding_window), scale=scaling, softcap=softcap)
        return found.transpose(1, 2).contiguous(), None
    parts = [_attend(query, key, value, block, scaling, dropout, softcap) for block in plan.blocks(sliding_window)]
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block: _Block,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
) -> Tensor:
    """`[1, H, Q, E]` of one block."""
    q = query[:, :, block.queries]
    if isinstance(block.keys, slice):
        k, v = key[:, :, block.keys], value[:, :, block.keys]
    else:
        k, v = key.index_select(2, block.keys), value.index_select(2, block.keys)
    groups = q.shape[1] // k.shape[1]
    if softcap is not None:
        return _capped(q, k, v, block.mask, scaling, dropout, softcap, groups)
    if block.mask is None:
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, dropout_p=dropout)
    if groups == 1:
        return scaled_dot_product_attention(q, k, v, attn_mask=block.mask, scale=scaling, dropout_p=dropout)
    # The queries that share a key's head stand one after another: no copy of the keys for each of them.
    count = q.shape[2]
    folded = q.unflatten(1, (k.shape[1], groups)).flatten(2, 3)
    mask = block.mask.repeat(groups, 1)
    out: Tensor = scaled_dot_product_attention(folded, k, v, attn_mask=mask, scale=scaling, dropout_p=dropout)
    apart: Tensor = out.unflatten(2, (groups, count))
    return apart.flatten(1, 2)


def _capped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float,
    groups: int,
) -> Tensor:
    """Soft-capped scores (arXiv 2408.00118), which the fused kernels do not know."""
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    scores = scores.masked_fill(~mask, -torch.inf)
    weights = torch.softmax(scores, -1, dtype=torch.promote_types(torch.float32, scores.dtype)).to(q.dtype)
    dropped: Tensor = nn.functional.dropout(weights, dropout)
    attended: Tensor = torch.matmul(dropped, v)
    return attended


AttentionInterface.register(NAME, forest_attention)


@contextmanager
def attending(model: PreTrainedModel, name: str = NAME) -> Iterator[None]:
    """Within: the model attends by the function of that name (over forests); afterwards as before. May be nested."""
    configs = list({id(config): config for module in model.modules() if (config := _config(module))}.values())
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = name
        yield
    finally:
        for config, earlier in zip(configs, before, strict=True):
            config._attn_implementation_internal = earlier


def _config(module: nn.Module) -> Any:
    return getattr(module, "config", None) if isinstance(module, PreTrainedModel) else None
