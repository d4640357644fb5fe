"""Up to which length positions are those of any pass: real models, a short row alone and beside a long one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from polyturn.agents.transformer.policy import position_limit

SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 32}  # fmt: skip


def rope(**settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, **settings}}


CASES: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "plain": ("Llama", {}, None),
    "linear": ("Llama", rope(rope_type="linear", factor=4.0), None),
    "yarn": ("Llama", rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32), None),
    "llama3": ("Llama", rope(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                             original_max_position_embeddings=32), None),
    "dynamic": ("Llama", rope(rope_type="dynamic", factor=8.0) | {"max_position_embeddings": 48}, 48),
    "longrope": ("Phi3", rope(**LONG) | {"original_max_position_embeddings": 32}, 32),
    "longrope, scaled": ("Phimoe", rope(**LONG, short_mscale=1.0, long_mscale=1.3) | {"num_local_experts": 2}, 32),
    "layers of two kinds": ("Gemma3", {"rope_parameters": {
        "full_attention": {"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 8.0},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}}, "max_position_embeddings": 48,
        "head_dim": 8, "sliding_window": 16, "layer_types": ["full_attention"]}, 48),
    "learned": ("GPT2", {}, None),
    "alibi": ("Bloom", {}, None),
}  # fmt: skip


def made(name: str) -> Any:
    family, settings, _ = CASES[name]
    config = getattr(transformers, f"{family}TextConfig", None) or getattr(transformers, f"{family}Config")
    kinds = (f"{family}ForCausalLM", f"{family}LMHeadModel")
    model = next(getattr(transformers, kind) for kind in kinds if hasattr(transformers, kind))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model(config(**{**SIZES, **settings})).eval()


@torch.no_grad()
def beside(model: Any, length: int, short: int = 12) -> float:
    """How much the logits of a short row change where a row of `length` stands beside it."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 61, (2, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, short:] = 0

    def logits(rows: Tensor, seen: Tensor) -> Tensor:
        found: Tensor = model(input_ids=rows, attention_mask=seen, use_cache=False).logits[0, :short]
        return found

    alone = logits(ids[:1, :short], mask[:1, :short])
    return float((logits(ids, mask) - alone).abs().max())


@pytest.mark.parametrize("name", CASES)
def test_a_limit_is_where_neighbours_begin_to_count(name: str) -> None:
    """At the limit a row is what it is alone, one token beyond it is not; without one it always is."""
    model, limit = made(name), CASES[name][2]
    state = {key: value.clone() for key, value in model.named_buffers()}
    assert position_limit(model) == limit
    assert all(torch.equal(value, state[key]) for key, value in model.named_buffers())
    if limit is None:
        assert beside(model, 120) < 1e-4
    else:
        assert beside(model, limit) < 1e-4
        assert beside(model, limit + 1) > 1e-3


def test_a_limit_is_found_under_adapters() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(made("dynamic"), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert position_limit(model) == 48


def test_an_embedding_of_another_kind_is_asked_what_it_does() -> None:
    """No setting names it: the model's own code decides by the length of the pass."""
    model = made("plain")

    class Stretched(type(model.model.rotary_emb)):  # type: ignore[misc]
        def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
            factor = 0.5 if int(position_ids.max()) >= 77 else 1.0
            cos, sin = super().forward(x, position_ids)
            return cos * factor, sin * factor

    model.model.rotary_emb.__class__ = Stretched
    assert position_limit(model) == 77
    assert beside(model, 77) < 1e-4
    assert beside(model, 78) > 1e-3
