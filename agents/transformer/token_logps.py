"""Log-probabilities and divergences of tokens under a causal language model, with logits one chunk at a time.

Everywhere here entry t of a result belongs to token t, scored with the logits of position t - 1: the shift is done
inside, so nobody else has to remember it. The first token of a row is predicted by nothing and is never scored.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def soft_cap(logits: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(logits / cap), or the logits themselves where `cap` is None (Gemma 2, arXiv 2408.00118)."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _predicting_positions(ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Row and column of every token to score.

    Raises:
        ValueError: Wrong shapes, or a mask that asks for the first token of a row.
    """
    if ids.ndim != 2 or (mask is not None and mask.shape != ids.shape):
        shape = None if mask is None else tuple(mask.shape)
        raise ValueError(f"token log-probs: expected ids and mask of one shape [N, T], got {tuple(ids.shape)}, {shape}")
    if mask is None:
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[:, 0] = False
    mask = mask.to(torch.bool)
    row, column = torch.nonzero(mask, as_tuple=True)
    if bool((column == 0).any()):
        raise ValueError(
            "token log-probs: the mask asks for the first token of a row, which nothing predicts; "
            "put a context token (for example <bos>) before it"
        )
    return row, column


def token_logps(
    logits: Tensor,
    ids: Tensor,
    mask: Tensor | None = None,
    *,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Log-probability of each given token from logits that are already there.

    Args:
        logits: `[N, T, V]`.
        ids: `[N, T]` tokens; values outside the mask are not looked at.
        mask: `[N, T]` bool, tokens to score; None scores all but the first of a row.
        softcap: c of c tanh(z / c) where the model has not applied it already.
        temperature: Divides the (capped) logits, as the sampler does.

    Returns:
        `[N, T]` float32 or wider, nats, 0 outside the mask.

    Raises:
        ValueError: Wrong shapes, or a mask that asks for the first token of a row.
    """
    row, column = _predicting_positions(ids, mask)
    chosen = soft_cap(_wide(logits[row, column - 1]), softcap) / temperature
    logps = chosen.gather(-1, ids[row, column, None]).squeeze(-1) - torch.logsumexp(chosen, -1)
    return logps.new_zeros(ids.shape).index_put((row, column), logps)


def token_logps_from_hidden(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    mask: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    chunk: int = 512,
) -> Tensor:
    """Log-probability of each given token from the last hidden states, without ever holding all the logits.

    Only positions that predict a masked token are projected, `chunk` of them at a time; the backward pass projects them
    again and applies softmax minus one-hot in place. The gradient is exact, memory is O(chunk * V) instead of
    O(N * T * V). Not differentiable twice.

    Args:
        hidden: `[N, T, D]` what the output projection reads, after the final norm.
        weight: `[V, D]` output projection.
        ids: `[N, T]` tokens.
        mask: `[N, T]` bool, tokens to score; None scores all but the first of a row.
        bias: `[V]` or None.
        softcap: c of c tanh(z / c) on the final logits (30 in Gemma 2).
        temperature: Divides the capped logits.
        chunk: Positions projected at once.

    Returns:
        `[N, T]` float32 or wider, nats, 0 outside the mask.

    Raises:
        ValueError: Wrong shapes, a chunk below 1, or a mask that asks for the first token of a row.
    """
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1 position, got {chunk}")
    row, column = _predicting_positions(ids, mask)
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        # The custom backward runs outside the caller's autocast region, so the casts are made here, once.
        dtype = torch.get_autocast_dtype(kind)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    with torch.autocast(kind, enabled=False):
        logps: Tensor = _ProjectedLogps.apply(  # type: ignore[no-untyped-call]  # torch leaves Function.apply untyped
            hidden[row, column - 1], weight, bias, ids[row, column], softcap, temperature, chunk
        )
    return logps.new_zeros(ids.shape).index_put((row, column), logps)


class _ProjectedLogps(torch.autograd.Function):
    """log softmax(cap(h W^T + b) / temperature)[id] for `[M, D]` positions, logits one chunk at a time."""

    @staticmethod
    def _scores(
        hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, temperature: float
    ) -> Tensor:
        logits = hidden @ weight.t() if bias is None else torch.addmm(bias, hidden, weight.t())
        return soft_cap(_wide(logits), softcap) / temperature

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        softcap: float | None,
        temperature: float,
        chunk: int,
    ) -> Tensor:
        ctx.options = (softcap, temperature, chunk)
        total = torch.empty(len(ids), dtype=_wide(hidden[:0]).dtype, device=hidden.device)
        logps = torch.empty_like(total)
        for start in range(0, len(ids), chunk):
            part = slice(start, start + chunk)
            scores = _ProjectedLogps._scores(hidden[part], weight, bias, softcap, temperature)
            total[part] = torch.logsumexp(scores, -1)
            logps[part] = scores.gather(-1, ids[part, None]).squeeze(-1) - total[part]
        ctx.save_for_backward(hidden, weight, bias, ids, total)
        return logps

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, total = ctx.saved_tensors
        softcap, temperature, chunk = ctx.options
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        grad_weight = torch.zeros_like(weight) if want_weight else None
        grad_bias = torch.zeros_like(bias) if want_bias else None
        for start in range(0, len(ids), chunk):
            part = slice(start, start + chunk)
            scores = _ProjectedLogps._scores(hidden[part], weight, bias, softcap, temperature)
            slope = None if softcap is None else 1.0 - (scores * (temperature / softcap)).square()
            # d log p(id) / d scores = one-hot - softmax
            grad_scores = scores.sub_(total[part, None]).exp_().neg_()
            grad_scores.scatter_add_(-1, ids[part, None], torch.ones_like(grad_scores[:, :1]))
            grad_scores.mul_(grad[part, None] / temperature)
            if slope is not None:
                grad_scores.mul_(slope)
            grad_logits = grad_scores.to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight.addmm_(grad_logits.t(), hidden[part])
            if grad_bias is not None:
                grad_bias.add_(grad_logits.sum(0))
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def full_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) in nats over the whole vocabulary, from logits, exact, position by position.

    `full_kl(policy, reference)` is the KL that RLHF and the Nash methods penalise; `full_kl(reference, policy)` is the
    reference-first KL of PMPO. Gradients flow into both arguments.

    Args:
        p_logits: `[..., V]`, soft-capped already; -inf excludes a token.
        q_logits: `[..., V]`.

    Returns:
        `[...]` float32 or wider, >= 0 up to rounding; inf where p allows what q excludes.
    """
    p, q = torch.log_softmax(_wide(p_logits), -1), torch.log_softmax(_wide(q_logits), -1)
    allowed = torch.isfinite(p)
    # Excluded tokens are replaced before the subtraction: -inf - -inf is nan, and so would be its gradient.
    zero = torch.zeros((), dtype=p.dtype, device=p.device)
    p_safe, q_safe = torch.where(allowed, p, zero), torch.where(allowed, q, zero)
    return torch.where(allowed, p_safe.exp() * (p_safe - q_safe), zero).sum(-1)


def full_kl_from_hidden(
    hidden: Tensor,
    weight: Tensor,
    reference_hidden: Tensor,
    reference_weight: Tensor,
    mask: Tensor,
    *,
    reference_first: bool,
    softcap: float | None = None,
    chunk: int = 512,
) -> Tensor:
    """`full_kl` of policy and reference at every masked token, from hidden states, logits one chunk at a time.

    Args:
        hidden: `[N, T, D]` the policy's last hidden states.
        weight: `[V, D]` the policy's output projection.
        reference_hidden: `[N, T, E]` the reference's.
        reference_weight: `[V, E]`.
        mask: `[N, T]` bool, tokens whose prediction is compared.
        reference_first: True for KL(reference || policy), False for KL(policy || reference).
        softcap: c of c tanh(z / c) on both models' final logits.
        chunk: Positions projected at once.

    Returns:
        `[N, T]` float32 or wider, nats, 0 outside the mask; entry t belongs to the prediction of token t.

    Raises:
        ValueError: Wrong shapes, a chunk below 1, or a mask that asks for the first token of a row.
    """
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1 position, got {chunk}")
    row, column = _predicting_positions(mask, mask)
    own, other = hidden[row, column - 1], reference_hidden[row, column - 1]

    def compare(a: Tensor, b: Tensor) -> Tensor:
        policy, reference = soft_cap(_wide(a @ weight.t()), softcap), soft_cap(_wide(b @ reference_weight.t()), softcap)
        return full_kl(reference, policy) if reference_first else full_kl(policy, reference)

    parts = [
        checkpoint(compare, a, b, use_reentrant=False)
        for a, b in zip(own.split(chunk), other.split(chunk), strict=True)
    ]
    values = torch.cat(parts) if parts else own.sum(-1)
    return values.new_zeros(mask.shape).index_put((row, column), values)


def _wide(x: Tensor) -> Tensor:
    """At least float32: sums over a vocabulary lose too much in half precision."""
    return x if x.dtype == torch.float64 else x.float()
