"""Several networks trained, saved and resumed as one: the policy's first, the others in folders of theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def widened(module: nn.Module) -> nn.Module:
    """The module, in place, with weights in half precision made float32: those round away most of what is learned."""
    for part in [*module.parameters(), *module.buffers()]:
        if part.dtype in (torch.float16, torch.bfloat16):
            part.data = part.data.float()
    return module


class Compound(nn.Module):
    """Holds a policy's model and its companions, so that one checkpoint has all of their weights.

    What a trainer asks of a transformers model is passed on to every member that has it.

    Args:
        policy: The model that acts.
        companions: Networks by name, for example a value network or a moving average of the policy's weights.
    """

    def __init__(self, policy: nn.Module, **companions: nn.Module) -> None:
        super().__init__()
        self.policy = policy
        for name, companion in companions.items():
            self.add_module(name, companion)

    @property
    def disable_adapter(self) -> Callable[[], Any]:
        """A peft model's context in which its base acts; an AttributeError where the policy has no adapters."""
        context: Callable[[], Any] = self.policy.disable_adapter  # type: ignore[assignment]  # modules are typed loosely
        return context

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Computes activations twice in every member that knows how."""
        for member in self.children():
            for enable in _known(member, "activation_checkpointing_enable", "gradient_checkpointing_enable"):
                # transformers 5.2x renamed the option with the method.
                renamed = enable.__name__.startswith("activation")
                given = options.get("gradient_checkpointing_kwargs")
                enable(**{"activation_checkpointing_kwargs" if renamed else "gradient_checkpointing_kwargs": given})
                for unhook in _known(member, "disable_input_require_grads"):
                    unhook()

    def gradient_checkpointing_disable(self) -> None:
        """Keeps activations again."""
        for member in self.children():
            for disable in _known(member, "activation_checkpointing_disable", "gradient_checkpointing_disable"):
                disable()


def _known(member: nn.Module, *names: str) -> list[Callable[..., Any]]:
    """The first of these methods that a module has, if any."""
    found = [getattr(member, name) for name in names if callable(getattr(member, name, None))]
    return found[:1]
