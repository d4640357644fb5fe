"""Many small policies in one pass: every parameter has a leading axis of runs.

The study trains dozens of networks with a few thousand weights each; a loop over networks would spend most of its time
on overhead. For each run, the results are those of `polyturn.agents.tabular` and of GPT-2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Parameters = Mapping[str, Tensor]
"""Tensors by name, each `[R, ...]`."""


class Stack(Protocol):
    """R policies over V tokens; an answer to a context has L tokens.

    Attributes:
        parameters: The trained tensors by name.
        contexts: Number of contexts that batches are drawn from.
    """

    parameters: dict[str, Tensor]
    contexts: int

    def logps(self, context: NDArray[np.int64], tokens: NDArray[np.int64]) -> Tensor:
        """`[R, G, K, L]` log-probability of tokens `[R, G, K, L]` in contexts `[R, G]`, with gradient."""
        ...

    def sample(
        self, runs: NDArray[np.int64], context: NDArray[np.int64], size: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], Tensor]:
        """Tokens `[r, G, size, L]` of the given runs `[r]` in contexts `[r, G]`, and their log-probabilities."""
        ...

    def expected_reward(self, values: Tensor, rng: np.random.Generator) -> NDArray[np.float64]:
        """`[R]` expected reward, with the rewards of tokens `values [R, V]`."""
        ...


class OneToken:
    """Policies whose answer is one token: a table of logits, or an MLP over features of the context.

    Args:
        parameters: `[R, ...]` each; "rows" of a table with one context, or the layers of a `ContextMLP`.
        features: `[C, D]` of an MLP's contexts, the ones for evaluation last; None for a table.
        train: Number of contexts to train on; the others are for evaluation.
    """

    def __init__(self, parameters: Parameters, features: Tensor | None = None, *, train: int = 1) -> None:
        self.parameters = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
        self._features, self.contexts = features, train
        # Positions of the linear layers in the module; a LayerNorm and ReLUs are between them.
        self._linear = sorted({int(n.split(".")[1]) for n, v in self.parameters.items() if v.ndim == 3 and "." in n})

    def logits(self, context: NDArray[np.int64], runs: NDArray[np.int64] | None = None) -> Tensor:
        """`[r, G, V]` in contexts `[r, G]`, for all runs or for the given ones."""
        own = self.parameters if runs is None else {n: v[torch.from_numpy(runs)] for n, v in self.parameters.items()}
        if self._features is None:
            return own["rows"].expand(-1, context.shape[1], -1)
        x = self._features[torch.from_numpy(context)]
        for place, layer in enumerate(self._linear):
            x = torch.baddbmm(own[f"layers.{layer}.bias"][:, None], x, own[f"layers.{layer}.weight"].transpose(1, 2))
            if place == 0:
                scale, shift = own[f"layers.{layer + 1}.weight"], own[f"layers.{layer + 1}.bias"]
                x = F.layer_norm(x, x.shape[-1:]) * scale[:, None] + shift[:, None]
            x = x if layer == self._linear[-1] else torch.relu(x)
        return x

    def logps(self, context: NDArray[np.int64], tokens: NDArray[np.int64]) -> Tensor:
        """See `Stack`."""
        every = torch.log_softmax(self.logits(context), -1)
        return every.gather(-1, torch.from_numpy(tokens[..., 0]))[..., None]

    @torch.no_grad()
    def sample(
        self, runs: NDArray[np.int64], context: NDArray[np.int64], size: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], Tensor]:
        """See `Stack`."""
        every = torch.log_softmax(self.logits(context, runs), -1)
        tokens = draw(every.exp()[:, :, None], rng.random((*context.shape, size)))
        return tokens[..., None], every.gather(-1, torch.from_numpy(tokens))[..., None]

    @torch.no_grad()
    def expected_reward(self, values: Tensor, rng: np.random.Generator) -> NDArray[np.float64]:
        """Exact, over the contexts for evaluation."""
        kept = np.zeros(1, np.int64) if self._features is None else np.arange(self.contexts, len(self._features))
        mass = torch.softmax(self.logits(np.tile(kept, (len(values), 1))).double(), -1).mean(1)
        return np.asarray((mass * values.double()).sum(-1).numpy(), np.float64)


class GPT:
    """GPT-2's architecture for each run, over one prompt token and L generated tokens.

    Token t is scored from the tokens before it: the prompt is never scored, the last token is never an input.

    Args:
        parameters: `[R, ...]` each, by GPT-2's names in `transformers`, without dropout and with a separate head.
        heads: Attention heads.
        length: L.
        evaluated: Answers that `expected_reward` samples for each run.

    Attributes:
        layers: Number of layers.
    """

    def __init__(self, parameters: Parameters, *, heads: int, length: int, evaluated: int = 128) -> None:
        self.parameters = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
        self._heads, self._length, self._evaluated = heads, length, evaluated
        self.layers = 1 + max(int(name.split(".")[2]) for name in parameters if name.startswith("transformer.h."))
        self.contexts = parameters["lm_head.weight"].shape[1]

    def logits(self, own: Parameters, ids: Tensor, cache: list[list[Tensor]] | None = None) -> Tensor:
        """`[r, B, T, V]` after every token of `ids [r, B, T]`; with a cache, `ids` continue the tokens in it."""
        # Embeddings, at the positions after those in the cache.
        runs, rows, size = ids.shape
        start = cache[0][0].shape[2] if cache and cache[0] else 0
        which = torch.arange(runs)[:, None, None]
        x = own["transformer.wte.weight"][which, ids] + own["transformer.wpe.weight"][:, None, start : start + size]
        x = x.reshape(runs, rows * size, -1)
        for layer in range(self.layers):
            name = f"transformer.h.{layer}"
            mixed = _linear(own, f"{name}.attn.c_attn", _norm(own, f"{name}.ln_1", x))
            # Attention over the cached and the new tokens.
            parts = mixed.reshape(runs * rows, size, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
            query, key, value = parts.unbind(0)
            if cache is not None:
                if cache[layer]:
                    key, value = torch.cat([cache[layer][0], key], 2), torch.cat([cache[layer][1], value], 2)
                cache[layer] = [key, value]
            read = F.scaled_dot_product_attention(query, key, value, is_causal=size > 1)
            read = read.transpose(1, 2).reshape(runs, rows * size, -1)
            x = x + _linear(own, f"{name}.attn.c_proj", read)
            # The feed-forward layer.
            inner = _linear(own, f"{name}.mlp.c_fc", _norm(own, f"{name}.ln_2", x))
            x = x + _linear(own, f"{name}.mlp.c_proj", F.gelu(inner, approximate="tanh"))
        x = torch.bmm(_norm(own, "transformer.ln_f", x), own["lm_head.weight"].transpose(1, 2))
        return x.reshape(runs, rows, size, -1)

    def logps(self, context: NDArray[np.int64], tokens: NDArray[np.int64]) -> Tensor:
        """See `Stack`."""
        prompt = np.broadcast_to(context[:, :, None, None], (*tokens.shape[:3], 1))
        read = torch.from_numpy(np.concatenate([prompt, tokens[..., :-1]], -1))
        every = torch.log_softmax(self.logits(self.parameters, read.flatten(1, 2)), -1)
        return every.gather(-1, torch.from_numpy(tokens).flatten(1, 2)[..., None])[..., 0].reshape(tokens.shape)

    @torch.no_grad()
    def sample(
        self, runs: NDArray[np.int64], context: NDArray[np.int64], size: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], Tensor]:
        """See `Stack`."""
        own = {name: value[torch.from_numpy(runs)] for name, value in self.parameters.items()}
        cache: list[list[Tensor]] = [[] for _ in range(self.layers)]
        last = torch.from_numpy(np.repeat(context, size, axis=1))
        tokens, logps = [], []
        for _ in range(self._length):
            every = torch.log_softmax(self.logits(own, last[..., None], cache)[:, :, 0], -1)
            last = torch.from_numpy(draw(every.exp()[:, :, None], rng.random((*last.shape, 1)))[..., 0])
            tokens.append(last)
            logps.append(every.gather(-1, last[..., None])[..., 0])
        shape = (*context.shape, size, self._length)
        return torch.stack(tokens, -1).numpy().reshape(shape), torch.stack(logps, -1).reshape(shape)

    @torch.no_grad()
    def expected_reward(self, values: Tensor, rng: np.random.Generator) -> NDArray[np.float64]:
        """Estimated from fresh answers to random prompts: the mean reward of the generated tokens."""
        prompts = np.tile(rng.integers(self.contexts, size=self._evaluated), (len(values), 1))
        tokens, _ = self.sample(np.arange(len(values)), prompts, 1, rng)
        flat = torch.from_numpy(tokens).flatten(1)
        return np.asarray(values.double().gather(1, flat).mean(1).numpy(), np.float64)


def draw(mass: Tensor, uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """Tokens `[..., K]` from probabilities `[..., 1, V]`, by inverting the distribution function at `uniform`."""
    below = mass.double().cumsum(-1)[..., :-1]
    # Relative to the total mass: a rounded sum must not favour the last token.
    found: NDArray[np.int64] = (
        (torch.from_numpy(uniform)[..., None] * mass.double().sum(-1, True) > below).sum(-1).numpy()
    )
    return found


def gpt2(vocabulary: int, *, length: int, seed: int, layers: int = 3, heads: int = 3, width: int = 48) -> Any:
    """A GPT-2 with random weights, no dropout and a separate head; by default of the paper's size."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary, n_positions=length + 1, n_embd=width, n_layer=layers, n_head=heads,
        tie_word_embeddings=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)


def stacked(model: torch.nn.Module, runs: int) -> dict[str, Tensor]:
    """A model's parameters, repeated for each run."""
    return {name: value.detach().expand(runs, *value.shape) for name, value in model.named_parameters()}


def _linear(own: Parameters, name: str, x: Tensor) -> Tensor:
    """A linear layer; GPT-2's weights are `[inputs, outputs]`."""
    return torch.baddbmm(own[f"{name}.bias"][:, None], x, own[f"{name}.weight"])


def _norm(own: Parameters, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:]) * own[f"{name}.weight"][:, None] + own[f"{name}.bias"][:, None]
