"""Log-probabilities and divergences from hidden states, with logits one chunk at a time.

Everything here is flat: M predictions, each a hidden state (or logits) and, where one is asked for, the token that
came. Which state predicts which token is the business of `polyturn.agents.transformer.rows`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Logits of one chunk, and those that the backward pass finds ready instead of computing them again. On a GPU computing
# is cheap and memory dear.
_CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}
_KEPT_BYTES = {"cpu": 512 << 20, "cuda": 0}


def soft_cap(logits: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(logits / cap), or the logits themselves where `cap` is None (Gemma 2, arXiv 2408.00118)."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def chosen_logps(logits: Tensor, tokens: Tensor, *, softcap: float | None = None, temperature: float = 1.0) -> Tensor:
    """`[M]` log-probability in nats of each token from logits that are already there.

    Args:
        logits: `[M, V]`.
        tokens: `[M]`.
        softcap: c of c tanh(z / c) where the model has not applied it already.
        temperature: Divides the (capped) logits, as the sampler does.
    """
    scores = soft_cap(_wide(logits), softcap)
    scores = scores if temperature == 1.0 else scores / temperature
    return scores.gather(-1, tokens[:, None]).squeeze(-1) - torch.logsumexp(scores, -1)


def projected_logps(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Tensor:
    """`[M]` log-probability in nats of each token from the hidden state before it, without ever holding all logits.

    The backward pass applies softmax minus one-hot in the buffer of the logits themselves, which it keeps as far as a
    fixed budget of memory allows and computes again beyond. The gradient is exact. Not differentiable twice.

    Args:
        hidden: `[M, D]` what the output projection reads, after the final norm.
        weight: `[V, D]` output projection.
        tokens: `[M]`.
        bias: `[V]` or None.
        softcap: c of c tanh(z / c) on the final logits (30 in Gemma 2).
        temperature: Divides the capped logits.
        chunk: Predictions projected at once; default what fits a fixed size.

    Returns:
        `[M]` float32 or wider.

    Raises:
        ValueError: Shapes that do not fit, or a chunk below 1.
    """
    if hidden.ndim != 2 or hidden.shape[:1] != tokens.shape or hidden.shape[1] != weight.shape[1]:
        shapes = (tuple(hidden.shape), tuple(weight.shape), tuple(tokens.shape))
        raise ValueError(f"projected_logps: expected hidden [M, D], weight [V, D] and tokens [M], got {shapes}")
    chunk = _chunk(weight, hidden.device) if chunk is None else chunk
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1 position, got {chunk}")
    kind = hidden.device.type
    # The custom backward runs outside the caller's autocast region, so the type is settled here, once.
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    with torch.autocast(kind, enabled=False):
        logps: Tensor = _ProjectedLogps.apply(  # type: ignore[no-untyped-call]  # torch leaves Function.apply untyped
            hidden.to(dtype), weight, bias, tokens, softcap, temperature, chunk
        )
    return logps


class _ProjectedLogps(torch.autograd.Function):
    """log softmax(cap(h W^T + b) / temperature)[token], logits one chunk at a time."""

    @staticmethod
    def _scores(
        hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, temperature: float
    ) -> Tensor:
        """`[C, V]` scores in a separate buffer, float32 or wider."""
        scores = _wide(hidden @ weight.t())
        if bias is not None:
            scores.add_(bias)
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        return scores if temperature == 1.0 else scores.div_(temperature)

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        softcap: float | None,
        temperature: float,
        chunk: int,
    ) -> Tensor:
        ctx.options = (softcap, temperature, chunk)
        cast = weight.to(hidden.dtype)
        best = torch.empty(len(tokens), dtype=_wide(hidden[:0]).dtype, device=hidden.device)
        mass, logps = torch.empty_like(best), torch.empty_like(best)
        # A soft cap's slope needs the scores, not their exponentials: those are computed again.
        budget = _KEPT_BYTES.get(hidden.device.type, 0) if softcap is None and any(ctx.needs_input_grad) else 0
        ctx.kept = []
        for start in range(0, len(tokens), chunk):
            part = slice(start, start + chunk)
            scores = _ProjectedLogps._scores(hidden[part], cast, bias, softcap, temperature)
            best[part] = scores.amax(-1)
            chosen = scores.gather(-1, tokens[part, None]).squeeze(-1)
            mass[part] = scores.sub_(best[part, None]).exp_().sum(-1)
            logps[part] = chosen - best[part] - mass[part].log()
            budget -= scores.nbytes
            if budget >= 0:
                ctx.kept.append(scores)
        ctx.save_for_backward(hidden, weight, bias, tokens, best, mass)
        return logps

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, best, mass = ctx.saved_tensors
        softcap, temperature, chunk = ctx.options
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        cast = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=_wide(weight[:0]).dtype) if want_weight else None
        grad_bias = torch.zeros_like(bias) if want_bias else None
        for index, start in enumerate(range(0, len(tokens), chunk)):
            part = slice(start, start + chunk)
            slope = None
            if index < len(ctx.kept):
                exponentials = ctx.kept[index]
            else:
                scores = _ProjectedLogps._scores(hidden[part], cast, bias, softcap, temperature)
                slope = None if softcap is None else 1.0 - (scores * (temperature / softcap)).square()
                exponentials = scores.sub_(best[part, None]).exp_()
            # d log p(token) / d scores = one-hot - softmax
            share = grad[part, None] / temperature
            scores_grad = exponentials.mul_(-share / mass[part, None])
            scores_grad.scatter_add_(-1, tokens[part, None], share)
            if slope is not None:
                scores_grad.mul_(slope)
            logits_grad = scores_grad.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(logits_grad, cast, out=grad_hidden[part])
            if grad_weight is not None:
                if grad_weight.dtype == logits_grad.dtype:
                    grad_weight.addmm_(logits_grad.t(), hidden[part])
                else:  # half precision computes, float32 adds up
                    grad_weight.add_(logits_grad.t() @ hidden[part])
            if grad_bias is not None:
                grad_bias.add_(logits_grad.sum(0))
        ctx.kept = []  # what was kept has been overwritten
        weight_grad = None if grad_weight is None else grad_weight.to(weight.dtype)
        return grad_hidden, weight_grad, grad_bias, None, None, None, None


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


def projected_kl(
    hidden: Tensor,
    weight: Tensor,
    reference_hidden: Tensor,
    reference_weight: Tensor,
    *,
    reference_first: bool,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """`[M]` `full_kl` of policy and reference at every prediction, from hidden states, logits one chunk at a time.

    Args:
        hidden: `[M, D]` the policy's last hidden states.
        weight: `[V, D]` the policy's output projection.
        reference_hidden: `[M, E]` the reference's.
        reference_weight: `[V, E]`.
        reference_first: True for KL(reference || policy), False for KL(policy || reference).
        softcap: c of c tanh(z / c) on both models' final logits.
        chunk: Predictions projected at once; default what fits a fixed size.

    Returns:
        `[M]` float32 or wider, nats.

    Raises:
        ValueError: Shapes that do not fit, or a chunk below 1.
    """
    if len(hidden) != len(reference_hidden) or len(weight) != len(reference_weight):
        raise ValueError(
            f"projected_kl: expected equal numbers of predictions over one vocabulary, got {len(hidden)} and "
            f"{len(reference_hidden)} over {len(weight)} and {len(reference_weight)} tokens"
        )
    chunk = _chunk(weight, hidden.device) if chunk is None else chunk
    if chunk < 1:
        raise ValueError(f"chunk: expected at least 1 position, got {chunk}")

    def compare(own: Tensor, other: Tensor) -> Tensor:
        policy, reference = (
            soft_cap(_wide(own @ weight.t()), softcap),
            soft_cap(_wide(other @ reference_weight.t()), softcap),
        )
        return full_kl(reference, policy) if reference_first else full_kl(policy, reference)

    if not len(hidden):
        return hidden.new_zeros(0, dtype=_wide(hidden[:0]).dtype)
    return torch.cat(
        [
            checkpoint(compare, own, other, use_reentrant=False)
            for own, other in zip(hidden.split(chunk), reference_hidden.split(chunk), strict=True)
        ]
    )


def _chunk(weight: Tensor, device: torch.device) -> int:
    """Predictions whose logits fit one chunk."""
    return max(1, _CHUNK_BYTES.get(device.type, 256 << 20) // (4 * len(weight)))


def _wide(x: Tensor) -> Tensor:
    """At least float32: sums over a vocabulary lose too much in half precision."""
    return x if x.dtype == torch.float64 else x.float()
