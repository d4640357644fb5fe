"""What methods need that look at the log-probabilities as sampled."""

from __future__ import annotations

import torch
from torch import Tensor

from polyturn.algorithms.batch import Batch
from polyturn.algorithms.estimators import policy_mask


def behaviour(batch: Batch, method: str) -> Tensor:
    """`[N, T]` log-probabilities as sampled.

    Raises:
        ValueError: Some were not recorded.
    """
    if bool(batch.behaviour_logps[policy_mask(batch.turn)].isnan().any()):
        raise ValueError(
            f"{method}: expected trajectories with log-probabilities as sampled, got tokens without; "
            "collect with TransformerAgent"
        )
    return batch.behaviour_logps


def masked(mask: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
    """Two `[N, T]` tensors of one type, 0 outside the mask."""
    first, second = (torch.where(mask, value, torch.zeros_like(value)) for value in values)
    return first, second.to(first.dtype)


def clipped(logps: Tensor, before: Tensor, clip: float) -> Tensor:
    """`[N, T]` 1 where the ratio to what sampled has left the interval."""
    return ((logps.detach() - before).exp() - 1.0).abs().gt(clip).float()
