"""Fused kernels for norms and feed-forward blocks: compiled by torch, or Liger's; probed before they are trusted."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from polyturn.agents.transformer.scoring import acting, base_model
from polyturn.envs.extras import how_to_install

Kernels = Literal["eager", "compiled", "liger"]
# Largest difference of logits over their largest size, by the width of the numbers.
_WITHIN = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_ABSENT = object()


class KernelError(RuntimeError):
    """The kernels asked for cannot be had here, or give other numbers than the model's own."""


def use_kernels(model: Any, kind: Kernels) -> Callable[[], None]:
    """Has norms and feed-forward blocks of a language model's layers run by other kernels, in place.

    Attention is left out, which has kernels of its own (`polyturn.agents.transformer.forest_attention`), and so is the
    head, whose logits are never held whole. The logits of a few tokens are compared before and after.

    Args:
        model: A model of transformers, with or without adapters.
        kind: "eager" changes nothing; "compiled" is `torch.compile` of what stands in a layer beside its attention, for
            any number of tokens; "liger" takes the Triton kernels of the extra "liger" (arXiv 2410.10989), on a GPU.

    Returns:
        What takes it back.

    Raises:
        KernelError: They cannot be had here, or their logits differ by more than rounding.
    """
    if kind == "eager":
        return lambda: None
    if not hasattr(base_model(model), "config"):
        members = [use_kernels(member, kind) for member in model.children() if hasattr(base_model(member), "config")]
        if not members:
            raise KernelError(f'kernels="{kind}": expected a model of transformers, got {type(model).__name__}')

        def undo_all() -> None:
            for taken_back in members:
                taken_back()

        return undo_all
    if kind == "liger":
        _check_liger(model)
    before = _probe(model)
    known = [(module, dict(module.__dict__)) for module in model.modules()]
    changed: list[tuple[nn.Module, str, Any]] = []

    def undo() -> None:
        # Only what the kernels set: a training run changes other attributes in between.
        for module, name, value in changed or _differences(known):
            if value is _ABSENT:
                module.__dict__.pop(name, None)
            else:
                module.__dict__[name] = value

    try:
        if kind == "compiled":
            for part in _beside_attention(model):
                part.compile(dynamic=True)
        else:
            _apply_liger(model)
        changed += _differences(known)
        after = _probe(model)
    except Exception as error:
        undo()
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise KernelError(f'kernels="{kind}": {reason[:300]}; kernels="eager" needs nothing') from error
    apart = float((after - before).abs().max() / before.abs().max())
    within = _WITHIN[next(model.parameters()).dtype]
    if not apart <= within:
        undo()
        raise KernelError(
            f'kernels="{kind}": expected logits within {within:g} of the model\'s own, relative to the largest, got '
            f'{apart:.1e} for {type(base_model(model)).__name__}; use kernels="eager"'
        )
    return undo


def _differences(known: list[tuple[nn.Module, dict[str, Any]]]) -> list[tuple[nn.Module, str, Any]]:
    """Attributes of modules that are others than those known, each with its known value."""
    return [
        (module, name, before.get(name, _ABSENT))
        for module, before in known
        for name in {*before, *module.__dict__}
        if before.get(name, _ABSENT) is not module.__dict__.get(name, _ABSENT)
    ]


def _beside_attention(model: nn.Module) -> Iterator[nn.Module]:
    """The parts of every layer but those that attend or hold a state, which know the number of their layer."""
    found = False
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            for part in layer.children():
                if not hasattr(part, "layer_idx"):
                    found = True
                    yield part
    if not found:
        raise ValueError(f"{type(base_model(model)).__name__} has no layers that are known as such")


@torch.no_grad()
def _probe(model: Any) -> Tensor:
    """Logits of a few tokens."""
    inner = base_model(model)
    device = next(inner.parameters()).device
    ids = torch.arange(1, 8, device=device)[None] % inner.config.get_text_config().vocab_size
    with acting(model):
        return cast("Tensor", model(input_ids=ids, use_cache=False).logits).float()


def _check_liger(model: nn.Module) -> None:
    """Refuses before anything is changed."""
    if importlib.util.find_spec("liger_kernel") is None:
        raise KernelError(f'kernels="liger" needs liger-kernel, of the extra "liger": {how_to_install("liger")}')
    device = next(model.parameters()).device
    if device.type == "cpu":
        raise KernelError('kernels="liger": expected a model on a GPU, got one on the CPU; use kernels="compiled"')
    from liger_kernel.transformers.monkey_patch import (  # type: ignore[import-not-found, unused-ignore]  # an extra
        MODEL_TYPE_TO_APPLY_LIGER_FN,
    )

    kind = base_model(model).config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise KernelError(f'kernels="liger": Liger has none for {kind!r} models; use kernels="compiled"')


def _apply_liger(model: nn.Module) -> None:
    """Norms and feed-forward blocks of this model only: its rotary kernel would be set for all models at once."""
    from liger_kernel.transformers import (  # type: ignore[import-not-found, unused-ignore]  # an extra
        _apply_liger_kernel_to_instance,
    )

    _apply_liger_kernel_to_instance(
        model=base_model(model), rope=False, cross_entropy=False, fused_linear_cross_entropy=False
    )
