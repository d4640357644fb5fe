"""Keys and values of many conversations, and forward passes over some tokens of some of them.

A pass is flat: tokens of several conversations stand one after another, and a plan says to which each belongs. Layers
that work on each token see one matrix; attention takes the tokens apart again (below transformers' own seam for
attention functions), each conversation against its own keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache

from polyturn.agents.transformer.forest_attention import attending
from polyturn.agents.transformer.policy import explicit_attention
from polyturn.agents.transformer.scoring import acting, base_model

NAME = "polyturn_rows"
TILE = 4
"""Neighbouring slots whose queries attend in one call when each has a single new token."""
_KEY_BLOCK = 64


@dataclass(frozen=True)
class Segment:
    """New tokens of one conversation.

    Attributes:
        slot: Where its keys are kept.
        start: Position of the first of them.
        ids: `[L]` the tokens.
    """

    slot: int
    start: int
    ids: np.ndarray


class RowCache(Cache):
    """Keys and values `[S, G, K, D]` of every layer, which grow with what is kept; the first slot takes padding.

    Slots are counted from 0 by its users: slot s stands in row s + `TILE`, after the rows for padding.

    Args:
        length: Tokens that a conversation may have.
    """

    def __init__(self, length: int) -> None:
        super().__init__(layers=[])
        self.length = length
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.where: tuple[Tensor, Tensor] | Segment | None = None
        self._rows, self._kept = TILE, _KEY_BLOCK

    def room(self, slot: int, tokens: int) -> None:
        """Makes room for a slot, and for this many tokens in every slot."""
        rows, kept = self._rows, self._kept
        while rows < slot + TILE + 1:
            rows = 2 * rows
        while kept < tokens:
            kept = -(-kept * 3 // 2 // _KEY_BLOCK) * _KEY_BLOCK
        if (rows, kept) != (self._rows, self._kept):
            self._rows, self._kept = rows, min(kept, max(self.length, tokens))
            self.keys, self.values = ([self._grown(store) for store in kind] for kind in (self.keys, self.values))

    def _grown(self, store: Tensor) -> Tensor:
        made = store.new_zeros(self._rows, store.shape[1], self._kept, store.shape[3])
        made[: store.shape[0], :, : store.shape[2]] = store
        return made

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Stores new keys and values; returns all there are, or those of the one conversation of a lone pass."""
        while len(self.keys) <= layer_idx:
            heads, width, value_width = key_states.shape[1], key_states.shape[3], value_states.shape[3]
            self.keys.append(key_states.new_zeros(self._rows, heads, self._kept, width))
            self.values.append(value_states.new_zeros(self._rows, heads, self._kept, value_width))
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        if isinstance(self.where, Segment):
            row, start, stop = self.where.slot + TILE, self.where.start, self.where.start + len(self.where.ids)
            keys[row, :, start:stop] = key_states[0]
            values[row, :, start:stop] = value_states[0]
            return keys[row : row + 1, :, :stop], values[row : row + 1, :, :stop]
        assert self.where is not None
        rows, positions = self.where
        keys[rows, :, positions] = key_states[0].transpose(0, 1)
        values[rows, :, positions] = value_states[0].transpose(0, 1)
        return keys, values

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        """Copies what one slot holds between two positions to another slot."""
        self.room(target, stop)
        for store in (*self.keys, *self.values):
            store[target + TILE, :, start:stop] = store[source + TILE, :, start:stop]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Zero: positions and masks are always given explicitly."""
        return 0


class Segments:
    """A pass over segments: how each attends to its own keys.

    Args:
        segments: In the order of their tokens.
        count: Tokens of the pass, padding included.
        device: Where attention is computed.
    """

    def __init__(self, segments: Sequence[Segment], count: int, device: torch.device) -> None:
        self._segments, self._count, self._device = segments, count, device
        self._masks: dict[tuple[int, int | None, int, torch.dtype], Tensor] = {}

    def attend(self, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`[1, H, M, D]` queries to `[1, M, H, E]`."""
        out = query.new_zeros(1, self._count, query.shape[1], value.shape[3])
        first = 0
        for number, segment in enumerate(self._segments):
            last, stop = first + len(segment.ids), segment.start + len(segment.ids)
            low = 0 if attention.window is None else max(0, segment.start - attention.window + 1)
            row = segment.slot + TILE
            k, v = key[row, None, :, low:stop], value[row, None, :, low:stop]
            q = query[:, :, first:last]
            groups = q.shape[1] // k.shape[1]
            plain = segment.start == 0 and attention.plain and (attention.window is None or stop <= attention.window)
            if plain and groups == 1:
                found = scaled_dot_product_attention(q, k, v, is_causal=True, scale=attention.scaling)
            else:
                mask = self._mask(number, segment, low, attention.window, groups, q.dtype)
                found = attention(q, k, v, mask)
            out[:, first:last] = found.transpose(1, 2)
            first = last
        return out

    def _mask(
        self, number: int, segment: Segment, low: int, window: int | None, groups: int, dtype: torch.dtype
    ) -> Tensor:
        """`[groups * L, keys]`: the queries of a head's group stand one after another."""
        kept = (number, window, groups, dtype)
        if kept not in self._masks:
            stop = segment.start + len(segment.ids)
            positions = torch.arange(segment.start, stop, device=self._device)[:, None]
            distance = positions - torch.arange(low, stop, device=self._device)
            self._masks[kept] = _additive(distance, window, dtype).repeat(groups, 1)
        return self._masks[kept]


class Steps:
    """A pass over one new token of each of some conversations, whose queries attend in tiles of neighbouring slots.

    A tile's keys are those of its longest conversation, in whole blocks: the kernel adds exact zeros for keys
    that a mask excludes, so that none sees how long its neighbours are (tried out when an engine begins).

    Args:
        slots: `[A]` ascending.
        positions: `[A]`.
        tile: Slots of a tile.
        device: Where attention is computed.
    """

    def __init__(self, slots: np.ndarray, positions: np.ndarray, tile: int, device: torch.device) -> None:
        tiles, place = np.unique(slots // tile, return_inverse=True)
        rows = place * tile + slots % tile
        index = np.zeros(len(tiles) * tile, np.int64)
        index[rows] = np.arange(len(slots))
        at = np.zeros(len(tiles) * tile, np.int64)
        at[rows] = positions
        keys = -(-(at.reshape(-1, tile).max(1) + 1) // _KEY_BLOCK) * _KEY_BLOCK
        if tile == 1:
            keys = at + 1
        self._keys = keys.tolist()
        self._tile, self._first = tile, (tiles * tile + TILE).tolist()
        self._index, self._rows = (torch.from_numpy(x).to(device) for x in (index, rows))
        self._distance = torch.from_numpy(at).to(device)[:, None] - torch.arange(max(self._keys), device=device)
        self._masks: dict[tuple[int | None, torch.dtype], Tensor] = {}

    def attend(self, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`[1, H, M, D]` queries to `[1, M, H, E]`."""
        tile = self._tile
        queries = query[0].transpose(0, 1).index_select(0, self._index)[:, :, None]
        kept = (attention.window, query.dtype)
        if kept not in self._masks:
            self._masks[kept] = _additive(self._distance, attention.window, query.dtype)[:, None, None]
        masks, parts = self._masks[kept], []
        for number, (first, keys) in enumerate(zip(self._first, self._keys, strict=True)):
            rows = slice(number * tile, number * tile + tile)
            k, v = key[first : first + tile, :, :keys], value[first : first + tile, :, :keys]
            parts.append(attention(queries[rows], k, v, masks[rows, :, :, :keys]))
        found = torch.cat(parts)[:, :, 0].index_select(0, self._rows)
        out = query.new_zeros(1, query.shape[2], *found.shape[1:])
        out[0, : len(found)] = found
        return out


@dataclass(frozen=True)
class Attention:
    """Attention of some rows to keys, as a layer wants it.

    Attributes:
        scaling: Of the scores; None for 1 / sqrt(D).
        window: Tokens that a query sees, itself included; None for all before it.
        softcap: c of c tanh(score / c) (arXiv 2408.00118); None for none.
    """

    scaling: float | None
    window: int | None
    softcap: float | None

    @property
    def plain(self) -> bool:
        """Whether the fused kernel knows it."""
        return self.softcap is None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """`[R, H, L, D]` queries to `[R, H, L, E]`; keys of `[R, G, K, D]` are shared by the H / G heads of a group."""
        groups = query.shape[1] // key.shape[1]
        count = query.shape[2]
        folded = query if groups == 1 else query.unflatten(1, (key.shape[1], groups)).flatten(2, 3)
        if self.softcap is None:
            out: Tensor = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=self.scaling)
        else:
            scale = query.shape[-1] ** -0.5 if self.scaling is None else self.scaling
            scores = self.softcap * torch.tanh(folded @ key.transpose(-1, -2) * scale / self.softcap) + mask
            wide = torch.promote_types(torch.float32, scores.dtype)
            out = torch.softmax(scores, -1, dtype=wide).to(value.dtype) @ value
        return out if groups == 1 else out.unflatten(2, (groups, count)).flatten(1, 2)


def _additive(distance: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """0 where a query sees a key so far before it, -inf elsewhere."""
    seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


class _PassMask(Tensor):
    """A pass in the place of a mask: four dimensions, so that models hand it on as one that is ready."""

    rows: Segments | Steps

    @staticmethod
    def of(rows: Segments | Steps, device: torch.device) -> _PassMask:
        made = torch.zeros((1, 1, 1, 1), device=device).as_subclass(_PassMask)
        made.rows = rows
        return made


def rows_attention(
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
    """Attention of a flat pass; the signature is transformers'. Keys and values are those of all slots."""
    rows = getattr(attention_mask, "rows", None)
    if rows is None or kwargs.get("s_aux") is not None:
        raise ValueError("rows_attention: expected a pass in the place of a mask, and no attention sinks")
    return rows.attend(Attention(scaling, sliding_window, softcap), query, key, value), None


AttentionInterface.register(NAME, rows_attention)


class FlatReader:
    """One model's passes over many conversations at once.

    Args:
        model: The model; adapters may be inside it.
        cache: Of all its conversations.
        tile: Slots of a tile of attention.
    """

    def __init__(self, model: PreTrainedModel, cache: RowCache, tile: int = TILE) -> None:
        self._whole, self._model, self.cache, self.tile = model, base_model(model), cache, tile
        find = getattr(self._model, "get_decoder", None)
        decoder = self._model if find is None else find()
        # What is only read needs no logits.
        self._decoder: Any = self._model if decoder is None else decoder

    def modes(self, stack: ExitStack) -> None:
        """Enters what must hold during passes."""
        stack.enter_context(acting(self._whole))
        stack.enter_context(attending(self._model, NAME))

    def read(self, segments: Sequence[Segment], size: int) -> None:
        """Reads segments, in a pass of `size` tokens."""
        ids, slots, positions = self._flat(size)
        first = 0
        for segment in segments:
            stop = first + len(segment.ids)
            ids[first:stop], slots[first:stop] = segment.ids, segment.slot
            positions[first:stop] = np.arange(segment.start, segment.start + len(segment.ids))
            first = stop
        only = {} if self._decoder is not self._model else {"logits_to_keep": 1}
        device = next(self._model.parameters()).device
        self._forward(self._decoder, ids, slots, positions, Segments(segments, size, device), **only)

    def step(self, tokens: np.ndarray, at: np.ndarray, lengths: np.ndarray, size: int) -> Tensor:
        """Reads one more token of each conversation; `[A, V]` logits of the next. `at` is ascending."""
        ids, slots, positions = self._flat(size)
        ids[: len(at)], slots[: len(at)], positions[: len(at)] = tokens, at, lengths
        device = next(self._model.parameters()).device
        steps = Steps(at, lengths, self.tile, device)
        found: Tensor = self._forward(self._model, ids, slots, positions, steps).logits[0, : len(at)]
        return found

    def _flat(self, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.zeros(size, np.int64), np.full(size, -TILE, np.int64), np.zeros(size, np.int64)

    def _forward(
        self, part: Any, ids: np.ndarray, slots: np.ndarray, positions: np.ndarray, rows: Segments | Steps, **only: Any
    ) -> Any:
        device = next(self._model.parameters()).device
        given, places, at = (torch.from_numpy(x).to(device) for x in (ids, positions, slots))
        self.cache.room(int(slots.max()), -(-(int(positions.max()) + 1) // _KEY_BLOCK) * _KEY_BLOCK)
        self.cache.where = (at + TILE, places)
        return part(
            input_ids=given[None],
            attention_mask=_PassMask.of(rows, device),
            position_ids=places[None],
            past_key_values=self.cache,
            use_cache=True,
            **only,
        )


class LoneReader:
    """One model's passes over one conversation at a time: slower, and the same numbers for any architecture that takes
    an explicit mask.

    Args:
        model: The model; adapters may be inside it.
        cache: Of all its conversations.
    """

    def __init__(self, model: PreTrainedModel, cache: RowCache) -> None:
        self._model, self.cache = model, cache

    def modes(self, stack: ExitStack) -> None:
        """Enters what must hold during passes."""
        stack.enter_context(acting(self._model))
        stack.enter_context(explicit_attention(self._model))

    def read(self, segments: Sequence[Segment], size: int) -> None:
        """Reads segments, one after another."""
        for segment in segments:
            self._forward(segment)

    def step(self, tokens: np.ndarray, at: np.ndarray, lengths: np.ndarray, size: int) -> Tensor:
        """Reads one more token of each conversation; `[A, V]` logits of the next."""
        found = [
            self._forward(Segment(int(slot), int(length), tokens[row : row + 1]))
            for row, (slot, length) in enumerate(zip(at, lengths, strict=True))
        ]
        return torch.cat(found)

    def _forward(self, segment: Segment) -> Tensor:
        device = next(self._model.parameters()).device
        positions = torch.arange(segment.start, segment.start + len(segment.ids), device=device)
        self.cache.room(segment.slot, segment.start + len(segment.ids))
        self.cache.where = segment
        found: Tensor = self._model(
            input_ids=torch.from_numpy(np.asarray(segment.ids, np.int64))[None].to(device),
            attention_mask=_masks(self._model, positions),
            position_ids=positions[None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return found


def _masks(model: PreTrainedModel, positions: Tensor) -> Tensor | dict[str, Tensor]:
    """Additive masks `[1, 1, L, keys]`: causal by absolute position, sliding where the architecture slides."""
    config: Any = model.config.get_text_config()
    dtype = next(model.parameters()).dtype
    distance = positions[:, None] - torch.arange(int(positions[-1]) + 1, device=positions.device)

    def additive(window: int | None) -> Tensor:
        # The smallest number in the place of -inf: some architectures add to masks.
        return _additive(distance, window, dtype)[None, None].clamp_(min=torch.finfo(dtype).min)

    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    if "sliding_attention" in kinds and window:
        return {kind: additive(window if kind == "sliding_attention" else None) for kind in kinds}
    if window and not kinds and getattr(config, "use_sliding_window", True):
        return additive(window)
    return additive(None)
