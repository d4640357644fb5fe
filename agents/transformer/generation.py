"""How tokens are drawn from logits. The engines that make the logits are in `engines`.

Sampling draws one uniform number a token from the episode's own generator and inverts the distribution function.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polyturn.envs.settings import check_count, check_range

# Tokens of a block: masses are summed over blocks first, and token by token only within the one that is drawn.
_BLOCK = 128


class GenerationError(RuntimeError):
    """The model cannot be sampled from: an architecture the engine does not know, or logits that are no numbers."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The temperature is applied first, then top_k, top_p and min_p, each to what is left.

    Attributes:
        temperature: Divides the logits; 0 takes the most likely token (its log-probability is then 0).
        top_p: Keeps the smallest set of tokens with this much probability.
        max_new_tokens: Tokens per action.
        top_k: Keeps the k most likely tokens; 0 keeps all.
        min_p: Keeps tokens at least this share as likely as the most likely one (arXiv 2407.01082).
        stop: Texts that end an action where it contains one of them; the token that completes it is kept.
        max_episode_tokens: Tokens of all actions of an episode together; None for no such limit.
        max_thinking_tokens: Tokens of an action between `<think>` and `</think>`; then the closing mark is put there,
            which counts as not written by the agent (`Turn.forced`). None for no such limit.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    top_k: int = 0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    max_episode_tokens: int | None = None
    max_thinking_tokens: int | None = None

    def __post_init__(self) -> None:
        check_range("Sampling.temperature", self.temperature, 0)
        check_range("Sampling.top_p", self.top_p, 0, 1, above=True)
        check_count("Sampling.max_new_tokens", self.max_new_tokens)
        check_count("Sampling.top_k", self.top_k, 0)
        check_range("Sampling.min_p", self.min_p, 0, 1)
        check_count("Sampling.max_episode_tokens", self.max_episode_tokens, optional=True)
        check_count("Sampling.max_thinking_tokens", self.max_thinking_tokens, 0, optional=True)
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"Sampling.stop: expected a tuple of texts that are not empty, got {self.stop!r}")

    def kept(self, logits: Tensor) -> Tensor:
        """`[S, V]` logits to those that are sampled from, float32, unnormalised; -inf for what is never drawn."""
        logits = logits.float()
        if self.temperature == 0:
            best = torch.full_like(logits, -torch.inf)
            return best.scatter_(1, logits.argmax(-1, keepdim=True), 0.0)
        if self.temperature != 1:
            logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[1]:
            highest, order = logits.topk(self.top_k, -1)
            logits = torch.full_like(logits, -torch.inf).scatter_(1, order, highest)
        if self.top_p < 1:
            ordered, order = torch.log_softmax(logits, -1).sort(descending=True, stable=True)
            mass = ordered.exp().cumsum(-1)
            dropped = (mass - ordered.exp()) >= self.top_p
            logits = torch.full_like(logits, -torch.inf).scatter_(1, order, ordered.masked_fill(dropped, -torch.inf))
        if self.min_p > 0:
            # Relative to the highest logit, so that a share of 1 keeps the most likely token whatever the rounding.
            below = (logits - logits.amax(-1, keepdim=True)).exp() < self.min_p
            logits = logits.masked_fill(below, -torch.inf)
        return logits

    def log_probs(self, logits: Tensor) -> Tensor:
        """`[S, V]` logits to the log-probabilities that are sampled from, in nats, float32."""
        return torch.log_softmax(self.kept(logits), -1)


def draw(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Inverts each row's distribution function.

    Args:
        logits: `[S, V]` float32, unnormalised, finite or -inf, some of each row finite.
        uniform: `[S]` float64 in [0, 1).

    Returns:
        Tokens `[S]`, never one of -inf, and their log-probabilities `[S]` in nats, float64.
    """
    rows, size = logits.shape
    blocks = -(-size // _BLOCK)
    top = logits.amax(-1, keepdim=True)
    weights = logits - top
    if blocks * _BLOCK != size:
        weights = torch.nn.functional.pad(weights, (0, blocks * _BLOCK - size), value=-torch.inf)
    apart = weights.exp_().view(rows, blocks, _BLOCK)
    mass = apart.sum(-1).double().cumsum(-1)
    total = mass[:, -1:].clone()
    target = uniform[:, None] * total
    # Rounding may point past the last block, or token, with mass; step back to it.
    block = torch.minimum(torch.searchsorted(mass, target, right=True), torch.searchsorted(mass, total))
    before = torch.where(block > 0, mass.gather(1, (block - 1).clamp_(min=0)), 0.0)
    inside = apart.gather(1, block[:, :, None].expand(-1, -1, _BLOCK))[:, 0].double().cumsum(-1)
    last = torch.searchsorted(inside, inside[:, -1:].clone())
    place = torch.minimum(torch.searchsorted(inside, target - before, right=True), last)
    tokens = block * _BLOCK + place
    logps = (logits.gather(1, tokens) - top).double() - total.log()
    return tokens[:, 0], logps[:, 0]
