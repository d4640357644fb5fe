"""What a model predicts at every token, kept small enough to pass on: hidden states and the head that reads them.

Two models' whole distributions can then be compared a chunk at a time, without ever holding all their logits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from polyturn.agents.transformer.token_logps import chosen_logps, full_kl, projected_kl, projected_logps, soft_cap


class Prediction(NamedTuple):
    """A model's predictions after each of P packed tokens.

    Attributes:
        states: `[P, D]` what the output projection reads; the logits `[P, V]` themselves where `weight` is None.
        weight: `[V, D]` output projection, or None.
        bias: `[V]` or None.
        softcap: c of c tanh(z / c) that turns projections into logits; None where `states` are logits already.
    """

    states: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    softcap: float | None = None

    def logps(self, before: Tensor, tokens: Tensor, *, temperature: float = 1.0) -> Tensor:
        """`[M]` log-probability in nats of each token after the packed token `before`, at a temperature."""
        states = self.states.index_select(0, before)
        if self.weight is None:
            return chosen_logps(states, tokens, temperature=temperature)
        return projected_logps(
            states, self.weight, tokens, bias=self.bias, softcap=self.softcap, temperature=temperature
        )

    def logits(self, before: Tensor) -> Tensor:
        """`[M, V]` logits after the given packed tokens."""
        states = self.states.index_select(0, before)
        if self.weight is None:
            return states
        return soft_cap(torch.nn.functional.linear(states, self.weight, self.bias), self.softcap)


def divergence(policy: Prediction, reference: Prediction, before: Tensor, *, reference_first: bool) -> Tensor:
    """`[M]` KL over the whole vocabulary between two models' predictions after the same packed tokens, in nats.

    Args:
        policy: What is trained; gradients flow into it.
        reference: Over the same forest.
        before: `[M]` the packed tokens whose successors are predicted.
        reference_first: True for KL(reference || policy), False for KL(policy || reference).
    """
    own, other = policy.weight, reference.weight
    plain = policy.bias is None and reference.bias is None and policy.softcap == reference.softcap
    if own is not None and other is not None and plain:
        return projected_kl(
            policy.states.index_select(0, before),
            own,
            reference.states.index_select(0, before),
            other,
            reference_first=reference_first,
            softcap=policy.softcap,
        )
    mine, theirs = policy.logits(before), reference.logits(before)
    return full_kl(theirs, mine) if reference_first else full_kl(mine, theirs)
