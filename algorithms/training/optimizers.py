"""Optimizers by name, and their state as plain tensors, so that any of them can be written to a checkpoint."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from polyturn.envs.extras import how_to_install

Groups = list[dict[str, Any]]

_LIBRARIES = {
    "adamw_8bit": ("torchao.optim", "AdamW8bit"),
    "adamw_4bit": ("torchao.optim", "AdamW4bit"),
    "paged_adamw": ("bitsandbytes.optim", "PagedAdamW"),
    "paged_adamw_8bit": ("bitsandbytes.optim", "PagedAdamW8bit"),
}
OPTIMIZERS = ("adamw", *_LIBRARIES)
"""Names of optimizers; see `TrainOptions.optimizer`."""

# Classes of tensors that are made of several; a checkpoint names one, and only these are looked up.
_QUANTIZED = {
    "OptimState8bit": "torchao.optim.subclass_8bit",
    "OptimState4bit": "torchao.optim.subclass_4bit",
}


def make_optimizer(name: str, groups: Groups) -> torch.optim.Optimizer:
    """An optimizer of parameter groups, each with "params", "lr" and "weight_decay".

    Args:
        name: "adamw": torch's own, fused. "adamw_8bit" and "adamw_4bit": torchao's, whose two moments take 2 bytes and
            1 byte a parameter in place of 8, with a scale for each block (arXiv 2110.02861, 2309.01507).
            "paged_adamw" and "paged_adamw_8bit": bitsandbytes', whose state moves to the host's memory while a GPU is
            full; on a CPU it is never paged.
        groups: Of one or more parameters.

    Raises:
        ImportError: The name's library is not installed; the message says how to install it.
        ValueError: Parameters that the library cannot serve.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    module, kind = _LIBRARIES[name]
    library = module.partition(".")[0]
    if library == "bitsandbytes" and any(_is_sharded(p) for group in groups for p in group["params"]):
        raise ValueError(
            f"expected an optimizer that takes fully sharded parameters, got {name!r} of bitsandbytes, which does not; "
            'pass optimizer="adamw_8bit"'
        )
    try:
        with warnings.catch_warnings():
            # Both libraries warn, on import, of kernels for hardware that is not here.
            warnings.simplefilter("ignore")
            made = getattr(importlib.import_module(module), kind)(groups)
    except ImportError as error:
        raise ImportError(
            f'optimizer={name!r} needs {library}, of the extra "quantized": {how_to_install("quantized")}'
        ) from error
    return cast("torch.optim.Optimizer", made)


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Sets a group's learning rate; torchao keeps it in a tensor, which its compiled step reads."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def flatten_state(state: Mapping[Any, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors by path, and the rest as JSON values from which `unflatten_state` makes it again.

    Args:
        state: By name or number; values are tensors, dictionaries of the same kind, or JSON values.
        prefix: Of the paths.
    """
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for name, value in state.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            inner, described = flatten_state(value, f"{path}.")
            tensors |= inner
            rest[str(name)] = {"of": described}
        elif type(value).__name__ in _QUANTIZED:
            parts, context = value.__tensor_flatten__()
            tensors |= {f"{path}.{part}": _plain(getattr(value, part)) for part in parts}
            rest[str(name)] = {"class": type(value).__name__, "parts": parts, "context": [_word(c) for c in context]}
        elif isinstance(value, Tensor):
            tensors[path] = _plain(value)
            rest[str(name)] = {"tensor": True}
        else:
            rest[str(name)] = {"value": value}
    return tensors, rest


def unflatten_state(tensors: Mapping[str, Tensor], rest: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What `flatten_state` was given; numbers among its names are texts now.

    Raises:
        KeyError: A tensor is missing, or a class is not one that is written here.
    """
    made: dict[str, Any] = {}
    for name, described in rest.items():
        path = f"{prefix}{name}"
        if "of" in described:
            made[name] = unflatten_state(tensors, described["of"], f"{path}.")
        elif "class" in described:
            kind = getattr(importlib.import_module(_QUANTIZED[described["class"]]), described["class"])
            parts = {part: tensors[f"{path}.{part}"] for part in described["parts"]}
            context = [_meaning(word) for word in described["context"]]
            made[name] = kind.__tensor_unflatten__(parts, context)
        else:
            made[name] = tensors[path] if "tensor" in described else described["value"]
    return made


def _plain(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous()


def _word(value: Any) -> Any:
    """A part of a quantized tensor's context as a JSON value."""
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    return list(value) if isinstance(value, tuple) else value


def _meaning(word: Any) -> Any:
    if isinstance(word, dict):
        return getattr(torch, word["dtype"])
    return torch.Size(word) if isinstance(word, list) else word


def _is_sharded(parameter: Tensor) -> bool:
    return type(parameter).__name__ == "DTensor"
