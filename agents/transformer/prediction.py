"""What a model predicts at every position, kept small enough to hand over: hidden states and the head that reads them.

Two models' whole distributions can then be compared a chunk at a time, without ever holding all their logits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from polyturn.agents.transformer.token_logps import (
    full_kl,
    full_kl_from_hidden,
    soft_cap,
    token_logps,
    token_logps_from_hidden,
)


class Prediction(NamedTuple):
    """A model's predictions for a batch of token rows.

    Attributes:
        states: `[N, T, D]` what the output projection reads; the logits `[N, T, V]` themselves where `weight` is None.
        weight: `[V, D]` output projection, or None.
        bias: `[V]` or None.
        softcap: c of c tanh(z / c) that turns projections into logits; None where `states` are logits already.
    """

    states: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    softcap: float | None = None

    def logps(self, ids: Tensor, wanted: Tensor) -> Tensor:
        """`[N, T]` log-probability in nats of the tokens `ids` where `wanted`, 0 elsewhere."""
        if self.weight is None:
            return token_logps(self.states, ids, wanted)
        return token_logps_from_hidden(self.states, self.weight, ids, wanted, bias=self.bias, softcap=self.softcap)

    def logits(self, row: Tensor, column: Tensor) -> Tensor:
        """`[M, V]` logits that stand at the given positions."""
        states = self.states[row, column]
        if self.weight is None:
            return states
        return soft_cap(torch.nn.functional.linear(states, self.weight, self.bias), self.softcap)


def divergence(policy: Prediction, reference: Prediction, wanted: Tensor, *, reference_first: bool) -> Tensor:
    """KL over the whole vocabulary between two models' predictions of every wanted token.

    Args:
        policy: What is trained; gradients flow into it.
        reference: Over the same rows.
        wanted: `[N, T]` bool, never the first token of a row.
        reference_first: True for KL(reference || policy), False for KL(policy || reference).

    Returns:
        `[N, T]` nats; entry t belongs to the prediction of token t; 0 where not wanted.
    """
    own, other = policy.weight, reference.weight
    plain = policy.bias is None and reference.bias is None and policy.softcap == reference.softcap
    if own is not None and other is not None and plain:
        return full_kl_from_hidden(
            policy.states, own, reference.states, other, wanted, reference_first=reference_first, softcap=policy.softcap
        )
    row, column = torch.nonzero(wanted, as_tuple=True)
    mine, theirs = policy.logits(row, column - 1), reference.logits(row, column - 1)
    values = full_kl(theirs, mine) if reference_first else full_kl(mine, theirs)
    return values.new_zeros(wanted.shape).index_put((row, column), values)
