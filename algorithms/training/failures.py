"""Steps that could not be taken: what is raised, and what its message says."""

from __future__ import annotations

from pathlib import Path

import torch

from polyturn.algorithms.batch import Batch
from polyturn.algorithms.training.options import TrainOptions


class NonFiniteError(ArithmeticError):
    """A loss or gradient was nan or infinite. Weights are as they were before the step; the batch is saved."""


class OutOfMemoryError(RuntimeError):
    """The device ran out of memory. Weights are as they were before the step."""


def not_finite(rows: Batch, step: int, loss: float, norm: float, stem: Path) -> str:
    """Saves the batch of a step at `stem`, and says what was not finite and what usually helps."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    rows.save(stem)
    return (
        f"step {step + 1}: expected finite numbers, got loss {loss} and gradient norm {norm}; the weights are as "
        f"before this step, and its batch is in {stem}.safetensors and .json (Batch.load). "
        "A smaller learning rate, a smaller clip, or float32 usually helps"
    )


def out_of_memory(step: int, device: torch.device, options: TrainOptions) -> str:
    """What to change where memory ran out."""
    ways = [f"a smaller tokens_per_micro_batch (now {options.tokens_per_micro_batch})"]
    ways += [] if options.gradient_checkpointing else ["gradient_checkpointing=True"]
    ways += [] if options.mixed_precision == "bf16" else ['mixed_precision="bf16"']
    ways += ["adapters (LoRA)", "a reference in bfloat16"]
    return (
        f"step {step + 1}: {device} ran out of memory; the weights are as before this step. What helps, in this order: "
        f"{', '.join(ways)}"
    )
