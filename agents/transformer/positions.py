"""Up to which length the position of a token does not depend on the pass that it stands in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_HALF = (torch.float16, torch.bfloat16)
_KNOWN: WeakKeyDictionary[nn.Module, int | None] = WeakKeyDictionary()

# Kinds of rotary embeddings that change beyond a length, and the setting that names the length.
_CHANGING = {
    "dynamic": "max_position_embeddings",
    "longrope": "original_max_position_embeddings",
    "su": "original_max_position_embeddings",
}


def base_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model under peft's wrapper, adapters still in place."""
    base = getattr(model, "get_base_model", None)
    return cast("PreTrainedModel", base() if base is not None else model)


class LengthError(ValueError):
    """A row is longer than its model can read as it reads others."""


def position_limit(model: nn.Module) -> int | None:
    """The longest pass in which every token's position is what it would be in any shorter pass.

    Some rotary embeddings are recomputed from the length of a pass once it exceeds what the model was trained at
    (dynamic NTK scaling; the long factors of LongRoPE, arXiv 2402.13753). Beyond that length a row's log-probabilities
    depend on the other rows of the batch, and those of a conversation that grew token by token are not those of the
    whole: such passes cannot be trained on. The model's own embeddings are asked, so that kinds unknown here are found
    too; the names of its settings count for code that cannot be asked.

    Args:
        model: A transformers model, or a peft model around one. Neither its state nor its weights change.

    Returns:
        Tokens, or None if positions never depend on the pass.
    """
    inner = base_model(model)
    config: Any = inner.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    limits = list(_named(text))
    longest = 2 * max([int(getattr(text, "max_position_embeddings", None) or 0), *limits, 2048])
    for module in inner.modules():
        if any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False)):
            limits += [found for found in _measured(module, longest) if found is not None]
    return min(limits, default=None)


def length_limit(model: nn.Module) -> int | None:
    """The longest row that a model reads as it reads every shorter one: `position_limit`, and learned positions.

    Found once for each model. None where there is no limit.
    """
    inner = base_model(model)
    if inner not in _KNOWN:
        limits = [limit for limit in (position_limit(inner), _learned(inner)) if limit is not None]
        _KNOWN[inner] = min(limits, default=None)
    return _KNOWN[inner]


def check_length(model: nn.Module, length: int, *, what: str) -> None:
    """Refuses a row that is longer than the model's limit.

    Args:
        model: A transformers model, or a part of one.
        length: Tokens of the row.
        what: Who refuses, for the message.

    Raises:
        LengthError: It is longer.
    """
    limit = length_limit(model)
    if limit is not None and length > limit:
        raise LengthError(
            f"{what}: expected rows of at most {limit} tokens, got one of {length}; beyond that "
            f"{type(base_model(model)).__name__} has no positions, or others for all tokens of a pass, so that scores "
            "would not be those of what was sampled. Leave longer ones out (max_tokens where they are collected, "
            "max_length where they are trained on), or take a model with a longer original context"
        )


def _learned(model: nn.Module) -> int | None:
    """Rows of a learned table of positions, or None."""
    config: Any = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and (last == "wpe" or "position" in last):
            # Some tables have a few rows more, which stand for padding.
            return min(module.num_embeddings, int(getattr(text, "max_position_embeddings", module.num_embeddings)))
    return None


def restore_frequencies(model: nn.Module) -> bool:
    """Puts rotary frequencies that a cast has rounded back to float32; whether they are whole now.

    `model.half()` and `model.to(torch.bfloat16)` round the frequencies too, which moves tokens far into a row by whole
    positions; loading the same weights in half precision does not.
    """
    whole = True
    for module in base_model(model).modules():
        half = [n for n, b in module.named_buffers(recurse=False) if n.endswith("inv_freq") and b.dtype in _HALF]
        if not half:
            continue
        try:
            exact = dict(type(module)(config=module.config).named_buffers(recurse=False))
            for name in half:
                module._buffers[name] = exact[name].to(module._buffers[name].device)  # type: ignore[union-attr]
        except (TypeError, AttributeError, KeyError):  # an embedding that is made in another way
            whole = False
    return whole


def _named(config: Any) -> Iterator[int]:
    """Limits by the settings' names."""
    for settings in _rope_settings(config):
        kind = str(settings.get("rope_type", settings.get("type", "default")))
        for name, setting in _CHANGING.items():
            if name in kind:
                own = settings.get(setting) if setting.startswith("original") else None
                length = own or getattr(config, setting, None) or getattr(config, "max_position_embeddings", None)
                if length:
                    yield int(length)
    # Qwen's first models, whose code comes with their weights.
    if getattr(config, "use_dynamic_ntk", False) or getattr(config, "use_logn_attn", False):
        yield int(getattr(config, "seq_length", None) or config.max_position_embeddings)


def _rope_settings(config: Any) -> Iterator[Mapping[str, Any]]:
    """All settings of rotary embeddings: one set, or one for each kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        found = getattr(config, name, None)
        if isinstance(found, Mapping):
            inner = [each for each in found.values() if isinstance(each, Mapping)]
            yield from inner or [found]


def _measured(module: nn.Module, longest: int) -> Iterator[int | None]:
    """Limits of an embedding, one for each kind of layer that it knows, as it answers."""
    kinds = getattr(module, "rope_type", None)
    for kind in list(kinds) if isinstance(kinds, Mapping) else [None]:
        ask = _question(module, {} if kind is None else {"layer_type": kind})
        if ask is not None:
            yield _first_change(ask, longest)


def _question(module: nn.Module, options: Mapping[str, Any]) -> Callable[[int], Tensor] | None:
    """From the length of a pass to the embedding of its first tokens; None where the module cannot be asked so."""
    buffer = next(module.buffers(recurse=False))

    @torch.no_grad()
    def ask(length: int) -> Tensor:
        # Lengths are read off the largest position; the tokens between need not be there. A copy, as it keeps a cache.
        places = torch.tensor([[0, 1, 2, 3, length - 1]], device=buffer.device)
        given = torch.zeros((1, places.shape[1], 1), dtype=torch.float32, device=buffer.device)
        made: Any = copy.deepcopy(module)(given, places, **options)
        parts = made if isinstance(made, tuple) else (made,)
        return torch.cat([part[0, :4].flatten() for part in parts if isinstance(part, Tensor)])

    try:
        ask(8)
    except Exception:  # another signature: its code is not of this kind
        return None
    return ask


def _first_change(ask: Callable[[int], Tensor], longest: int) -> int | None:
    """The longest length with the embeddings of a short pass, or None if `longest` still has them."""
    short = ask(8)
    if torch.equal(short, ask(longest)):
        return None
    low, high = 8, longest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if torch.equal(short, ask(middle)) else (low, middle)
    return low
