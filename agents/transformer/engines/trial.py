"""Tries out how a model can be read: whether in flat passes, of which sizes, and with which tiles of attention.

Results are identical at any concurrency only if a token's numbers do not depend on what else is in its pass. Kernels
that multiply matrices sum in an order that may change with the number of rows, never with what is in them: so sizes
are compared once, on random rows, bit by bit, and only those that agree are used.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from polyturn.agents.transformer.engines.rows import TILE, FlatReader, LoneReader, RowCache, Segment
from polyturn.agents.transformer.generation import GenerationError
from polyturn.agents.transformer.positions import length_limit
from polyturn.agents.transformer.scoring import acting, base_model

EXPECTED = "expected a causal language model with ordinary (full or sliding) key-value attention"
NOT_FINITE = (
    "expected finite logits, got nan or infinity: the weights are broken (a training run that diverged, a damaged "
    "file) or half precision overflows; try dtype=torch.float32"
)
_SIZES = (4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256)
_READ = (16, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512)
_FAILURES = (TypeError, ValueError, AttributeError, RuntimeError, IndexError, KeyError, NotImplementedError)
_FOUND: WeakKeyDictionary[nn.Module, dict[Any, Way]] = WeakKeyDictionary()

_REACHED: WeakKeyDictionary[nn.Module, set[int]] = WeakKeyDictionary()


class ConcurrencyWarning(UserWarning):
    """A model cannot be sampled from many conversations at once with numbers that do not depend on them."""


@dataclass(frozen=True)
class Way:
    """How a model is read.

    Attributes:
        flat: Many conversations in a pass, or one.
        tile: Slots of a tile of attention.
        steps: Sizes of passes over one token of each conversation, ascending; the last holds all.
        reads: Sizes of passes over more.
        exact: Whether a token's numbers depend on its own conversation only.
    """

    flat: bool
    tile: int
    steps: tuple[int, ...]
    reads: tuple[int, ...]
    exact: bool

    def reader(self, model: PreTrainedModel, length: int) -> FlatReader | LoneReader:
        """A reader for conversations of this many tokens."""
        cache = RowCache(length)
        return FlatReader(model, cache, self.tile) if self.flat else LoneReader(model, cache)


def way_for(model: PreTrainedModel, slots: int, capacity: int) -> Way:
    """How a model is read here, tried out once for a model and a number of conversations.

    Args:
        model: The model; adapters may be inside it.
        slots: Conversations that are held at once.
        capacity: Tokens of the longest of them.

    Raises:
        GenerationError: It cannot be sampled from: its logits over a cache are not those without.
    """
    first = next(model.parameters())
    limit = length_limit(model)
    if limit is not None and capacity > limit:
        raise GenerationError(
            f"expected conversations of at most {limit} tokens, beyond which the positions of {type(model).__name__} "
            f"depend on the length of a pass and log-probabilities on what else is in it, got {capacity}; "
            f"set max_tokens={limit}, or a fixed scaling of its rotary embeddings (linear, yarn, llama3)"
        )
    _check_far(model, capacity)
    key = (slots, torch.get_num_threads(), first.device, first.dtype)
    found = _FOUND.setdefault(model, {})
    if key not in found:
        found[key] = _tried(model, slots)
    return found[key]


@torch.inference_mode()
def _check_far(model: PreTrainedModel, capacity: int) -> None:
    """Whether tokens are read alike where a further one stands at the end of the longest conversation.

    Raises:
        GenerationError: The length of a pass counts, in a way that neither settings nor embeddings give away.
    """
    if capacity in _REACHED.setdefault(model, set()):
        return
    device = next(model.parameters()).device
    stated = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tokens = _tokens(model.config.get_text_config().vocab_size, 7)
    last = max(len(tokens), min(capacity, stated or capacity)) - 1
    ids = torch.from_numpy(tokens[None]).to(device)
    places = torch.tensor([[*range(len(tokens) - 1), last]], device=device)
    if "position_ids" in inspect.signature(base_model(model).forward).parameters:
        with acting(model):
            near = model(input_ids=ids[:, :-1], use_cache=False).logits[0, -1].float()
            far = model(input_ids=ids, position_ids=places, use_cache=False).logits[0, -2].float()
        moved, spread = float((far - near).abs().max()), float(near.abs().max())
        # What is not finite is named where it is found.
        if torch.isfinite(near).all() and not _close(model, moved, spread):
            raise GenerationError(
                f"expected positions that do not depend on the length of a pass, got {type(model).__name__}, whose "
                f"logits of its first tokens change by {moved:.3g} (they reach {spread:.3g}) where a conversation has "
                f"{capacity} tokens; use fewer max_tokens"
            )
    _REACHED[model].add(capacity)


def check_layers(model: PreTrainedModel) -> None:
    """Refuses layers whose state is not keys and values.

    Raises:
        GenerationError: There are such layers.
    """
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or [])
    if other := sorted(kinds - {"full_attention", "sliding_attention"}):
        raise GenerationError(f"{EXPECTED}, got {type(model).__name__} with layers of {', '.join(other)}")


def _tried(model: PreTrainedModel, slots: int) -> Way:
    most = -(-slots // 4) * 4
    steps = tuple(size for size in _SIZES if size < most)
    wanted = (*steps, most)
    why, own = "", _own(model)
    for tile in (TILE, 1):
        flat = Way(True, tile, _agreeing(model, wanted, head=True), _agreeing(model, _READ, head=False), True)
        try:
            reader = flat.reader(model, _LENGTH)
            with ExitStack() as modes:
                reader.modes(modes)
                difference, spread, same = _compared(own, reader, flat, *_bounds(model))
        except (GenerationError, torch.OutOfMemoryError):
            raise
        except _FAILURES as error:
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            break
        if not _close(model, difference, spread):
            why = f"logits differ by {difference:.3g} of {spread:.3g}"
            break
        if same:
            return flat
        why = "results depend on what else is in a pass"
    else:
        if next(model.parameters()).device.type != "cpu":
            warnings.warn(
                f"{type(model).__name__} on {next(model.parameters()).device}: {why}; the last bits of "
                "log-probabilities depend on how many conversations run at once",
                ConcurrencyWarning,
                stacklevel=2,
            )
            return Way(True, TILE, wanted, _READ, False)
    lone = _lone(model)
    warnings.warn(
        f"{type(model).__name__} is sampled from one conversation at a time, which takes longer and gives the same at "
        f"any concurrency: flat passes do not serve it ({why})",
        ConcurrencyWarning,
        stacklevel=2,
    )
    return lone


_LENGTH = 192


def _lone(model: PreTrainedModel) -> Way:
    """Checks the slower way.

    Raises:
        GenerationError: It does not serve the model either.
    """
    way = Way(False, 1, (1,), _READ, True)
    own = _own(model)
    try:
        reader = way.reader(model, _LENGTH)
        with ExitStack() as modes:
            reader.modes(modes)
            difference, spread, _ = _compared(own, reader, way, *_bounds(model))
    except (GenerationError, torch.OutOfMemoryError):
        raise
    except _FAILURES as error:
        raise GenerationError(
            f"{EXPECTED}, got {type(model).__name__}, which does not run on the engine's cache: {error}"
        ) from error
    if not _close(model, difference, spread):
        raise GenerationError(
            f"{EXPECTED}, got {type(model).__name__}, whose logits with the engine's cache differ by "
            f"{difference:.3g} from those without (they reach {spread:.3g})"
        )
    return way


def _close(model: PreTrainedModel, difference: float, spread: float) -> bool:
    exact = next(model.parameters()).dtype in (torch.float32, torch.float64)
    return difference <= spread * (1e-3 if exact else 0.1)


def _bounds(model: PreTrainedModel) -> tuple[int, int, int]:
    """Tokens of the vocabulary, of the row to compare, beyond a short window, and of the longest row read with it."""
    config = model.config.get_text_config()
    limit = min(_LENGTH, int(getattr(config, "max_position_embeddings", None) or _LENGTH))
    window = getattr(config, "sliding_window", None) or getattr(config, "window_size", None) or 0
    return int(config.vocab_size), max(3, min(max(24, window + 8), limit - 9)), limit


@torch.inference_mode()
def _own(model: PreTrainedModel) -> Tensor:
    """`[V]` logits after a few tokens, by the model's own pass.

    Raises:
        GenerationError: They are not finite.
    """
    tokens = torch.from_numpy(_tokens(*_bounds(model)[:2]))[None].to(next(model.parameters()).device)
    with acting(model):
        found: Tensor = model(input_ids=tokens, use_cache=False).logits[0, -1].float()
    if not bool(torch.isfinite(found.amax())):
        raise GenerationError(NOT_FINITE)
    return found


def _tokens(vocabulary: int, length: int) -> np.ndarray:
    return np.arange(1, length + 1) * 7 % vocabulary


@torch.inference_mode()
def _compared(
    own: Tensor, reader: FlatReader | LoneReader, way: Way, vocabulary: int, length: int, limit: int
) -> tuple[float, float, bool]:
    """Reads a few tokens in pieces, together with others, and compares with the model's own pass over all of them.

    Returns:
        The largest difference of logits, the largest logit, and whether other neighbours change no bit.
    """
    tokens = _tokens(vocabulary, length)
    others = [np.arange(3, 3 + length) * 5 % vocabulary for length in (limit - 8, 2, limit // 2)]

    def last(lines: Sequence[np.ndarray], step_size: int, read_size: int) -> Tensor:
        """Logits after the first line: read but for its last two tokens, which come one by one."""
        slots = np.arange(len(lines))
        for slot, line in enumerate(lines):
            for start in range(0, len(line) - 2, 16):
                reader.read([Segment(slot, start, line[start : min(start + 16, len(line) - 2)])], read_size)
        for back in (2, 1):
            ids = np.array([line[len(line) - back] for line in lines])
            lengths = np.array([len(line) - back for line in lines])
            found = reader.step(ids, slots, lengths, step_size)
        return found[0]

    alone = last([tokens], way.steps[0], way.reads[0])
    difference, spread = float((alone.float() - own).abs().max()), float(own.abs().max())
    if not way.flat or way.steps[-1] < len(others) + 1:
        return difference, spread, True
    beside = last([tokens, *others], way.steps[-1], way.reads[-1])
    return difference, spread, torch.equal(alone, beside)


@torch.inference_mode()
def _agreeing(model: PreTrainedModel, sizes: Sequence[int], *, head: bool) -> tuple[int, ...]:
    """Those of the sizes, the last included, whose rows are those of the last to the last bit in every kind of layer.

    Args:
        model: The model.
        sizes: Rows of a pass, ascending.
        head: Whether the projection to the vocabulary is among the layers.
    """
    inner = base_model(model)
    last = inner.get_output_embeddings()
    kinds: dict[tuple[int, int], nn.Linear] = {}
    for module in inner.modules():
        if isinstance(module, nn.Linear) and (head or module is not last):
            kinds[module.in_features, module.out_features] = module
    agreeing = list(sizes)
    generator = torch.Generator().manual_seed(0)
    for layer in kinds.values():
        given = torch.randn(sizes[-1], layer.in_features, generator=generator).to(layer.weight)
        whole = nn.functional.linear(given, layer.weight)
        agreeing = [size for size in agreeing if torch.equal(nn.functional.linear(given[:size], layer.weight),
                                                             whole[:size])]  # fmt: skip
    return tuple(agreeing)
