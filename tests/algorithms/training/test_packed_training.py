"""A step in any form is the same update: whole, in pieces, packed or row by row, for every method and architecture.

The plain side is an update of the same method on scores that are computed one row at a time from all logits.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from polyturn.agents.transformer.rows import Rows
from polyturn.agents.transformer.scoring import ModelScorer
from polyturn.algorithms import METHODS, TrainOptions, train
from polyturn.algorithms.networks.compound import Compound
from polyturn.algorithms.networks.value import ValueNetwork, _ActorCriticScorer
from polyturn.algorithms.pairing import Example
from polyturn.envs.trajectory import Trajectory, Turn

V = 47
SHAPE: dict[str, Any] = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None,
}  # fmt: skip
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SHAPE, head_dim=8, sliding_window=6, query_pre_attn_scalar=8, attn_logit_softcapping=2.0)
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=V, n_positions=64, n_embd=16, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None)
    ),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "reinforce": {"kl": 0.1}, "rloo": {"kl": 0.1}, "grpo": {"kl": 0.1}, "ppo": {"kl": 0.1}, "mtpo": {"kl": 0.1},
    "mdpo": {"nll_weight": 0.3}, "distillation": {"likelihood": 0.3},
}  # fmt: skip


class PlainScorer(nn.Module):
    """Each row by itself, all of its logits, one softmax; values by a head on the same hidden states."""

    def __init__(self, model: Any, head: nn.Module | None = None) -> None:
        super().__init__()
        self.model, self.head = model, head

    def predict(self, rows: Rows) -> Any:
        return self

    def forward(
        self, rows: Rows, token_mask: Tensor | None = None, *, against: Any = None, reference_first: bool = True
    ):  # type: ignore[no-untyped-def]
        width = rows.mask.shape[1]
        found: dict[str, list[Tensor]] = {"logps": [], "kl": [], "values": []}
        for row, length in zip(rows.place, rows.mask.sum(1).tolist(), strict=True):
            tokens = rows.ids[row[:length]][None]
            own = self._logps(tokens)
            chosen = own.gather(-1, tokens[0, 1:, None])[:, 0]
            found["logps"].append(nn.functional.pad(chosen, (1, width - length)))
            if against is not None:
                other = against._logps(tokens).detach()
                p, q = (other, own) if reference_first else (own, other)
                found["kl"].append(nn.functional.pad((p.exp() * (p - q)).sum(-1), (1, width - length)))
            if self.head is not None:
                states = self.model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state[0]
                values = self.head(states)[:-1, 0]
                found["values"].append(nn.functional.pad(values, (1, width - length)))
        wanted = (rows.mask if token_mask is None else token_mask & rows.mask).clone()
        wanted[:, 0] = False
        result = {name: torch.stack(values) for name, values in found.items() if values}
        return {name: value * wanted if name != "values" else value for name, value in result.items()}

    def logps(self, before: Tensor, tokens: Tensor) -> Tensor:
        return torch.zeros(len(tokens))  # no method with a divergence reads the reference's own log-probabilities

    def _logps(self, tokens: Tensor) -> Tensor:
        logits = self.model(input_ids=tokens, use_cache=False).logits[0, :-1]
        return torch.log_softmax(logits, -1)


class Held:
    """What `train` takes: a model and a scorer, without anything to save."""

    def __init__(self, model: nn.Module, scorer: nn.Module) -> None:
        self.model, self.scorer = model, scorer

    def save_pretrained(self, folder: Any) -> None: ...

    @classmethod
    def from_pretrained(cls, source: Any, *, device: Any = None) -> Held:
        raise AssertionError


def model_of(name: str, seed: int) -> Any:
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = MODELS[name]()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
    if name == "gemma2":
        made.set_attn_implementation("eager")
    return made.eval()


def groups(seed: int) -> list[Example]:
    """Three groups: a pair with one prompt, four members that branch at a turn, two that part inside one."""
    rng = np.random.default_rng(seed)

    def words(low: int, high: int) -> np.ndarray[Any, Any]:
        return rng.integers(1, V, rng.integers(low, high)).astype(np.int32)

    def turn(context: Any, action: Any) -> Turn:
        logps = -rng.random(len(action)).astype(np.float32)
        return Turn("o", "a", float(rng.random()), context, action, logps)

    found = []
    for number, members in enumerate((2, 4, 2)):
        prompt, first = words(4, 9), words(2, 5)
        rows = []
        for _ in range(members):
            head = first if members == 4 else np.concatenate([first[:1], words(1, 4)])
            turns = (turn(prompt, head), turn(words(1, 3), words(1, 6)))
            rows.append(Trajectory("Toy-v0", number, turns, terminated=True))
        pairs = np.array([[0, 1], [1, members - 1]] if members > 2 else [[0, 1]])
        scores = rng.normal(size=members).astype(np.float32)
        found.append(
            Example(
                tuple(rows), pairs, probability=rng.random(len(pairs)).astype(np.float32), scores=scores,
                desirable=(np.arange(members) % 2).astype(np.float32),
            )
        )  # fmt: skip
    return found


def update(name: str, architecture: str, how: Mapping[str, Any], *, plain: bool, seed: int) -> dict[str, Tensor]:
    """The gradient of one step, as the change of plain descent with rate 1."""
    method = METHODS[name](**OPTIONS.get(name, {}))
    model, other = model_of(architecture, seed), model_of(architecture, seed + 100).requires_grad_(False)
    head = ValueNetwork(None, 16)
    nn.init.normal_(head.head.weight, generator=torch.Generator().manual_seed(seed))
    trained: nn.Module = model
    scorer: nn.Module = PlainScorer(model, head.head if method.needs.values else None) if plain else ModelScorer(model)
    if method.needs.values:
        trained = Compound(model, value=head)
        if not plain:
            scorer = _ActorCriticScorer(ModelScorer(model), head)
    reference = Held(other, PlainScorer(other) if plain else ModelScorer(other)) if method.needs.reference else None
    before = {n: p.detach().clone() for n, p in trained.named_parameters()}
    options = TrainOptions(lr=1.0, clip=None, optimizer=torch.optim.SGD, cpu=True, **how)
    train(method, Held(trained, scorer), reference, [groups(seed)], steps=1, options=options, progress=False)
    return {n: before[n] - p.detach() for n, p in trained.named_parameters()}


WAYS: dict[str, dict[str, Any]] = {
    "whole": {"tokens_per_micro_batch": None},
    "micro-batches": {"accumulate": 3},
    "pieces": {"tokens_per_micro_batch": 14},
    "one row at a time": {"tokens_per_micro_batch": 1},
}


@pytest.mark.parametrize("architecture", MODELS)
@pytest.mark.parametrize("name", METHODS)
def test_every_way_to_make_a_step_is_the_plain_one(name: str, architecture: str) -> None:
    """In float32, relative to the largest change of each parameter."""
    seed = 3
    exact = update(name, architecture, WAYS["whole"], plain=True, seed=seed)
    assert max(float(change.abs().max()) for change in exact.values()) > 1e-4
    for way, how in WAYS.items():
        found = update(name, architecture, how, plain=False, seed=seed)
        largest = max(float(change.abs().max()) for change in exact.values())
        for parameter, change in exact.items():
            difference = float((found[parameter] - change).abs().max())
            assert difference <= 1e-5 * max(1.0, largest), f"{way}: {parameter} differs by {difference} of {largest}"
