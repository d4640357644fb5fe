"""Reading rows as a forest changes nothing: log-probabilities, divergences and every gradient are those of single rows.

The plain side reads one row at a time with the model's own forward pass and takes log-softmax of all its logits.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from polyturn.agents.transformer.forest import chains
from polyturn.agents.transformer.forest_attention import ForestMask, Plan, attending
from polyturn.agents.transformer.reading import PackingWarning
from polyturn.agents.transformer.rows import Rows
from polyturn.agents.transformer.scoring import ModelScorer, acting, base_model

V = 61
SHAPE: dict[str, Any] = {
    "vocab_size": V, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None,
}  # fmt: skip
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SHAPE)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=6)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SHAPE, head_dim=8, sliding_window=6, query_pre_attn_scalar=8, attn_logit_softcapping=2.0)
    ),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SHAPE, head_dim=8, sliding_window=6, query_pre_attn_scalar=8)
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=V, n_positions=64, n_embd=24, n_layer=3, n_head=4, bos_token_id=None, eos_token_id=None)
    ),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**{k: v for k, v in SHAPE.items() if k != "num_key_value_heads"})),
}
# ALiBi and state-space layers do not survive packing; they are read row by row.
UNPACKED: dict[str, Callable[[], Any]] = {
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=V, hidden_size=24, n_layer=2, n_head=4)),
    "falcon-alibi": lambda: FalconForCausalLM(
        FalconConfig(vocab_size=V, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, alibi=True)
    ),
    "mamba": lambda: MambaForCausalLM(MambaConfig(vocab_size=V, hidden_size=24, num_hidden_layers=2, state_size=4)),
}


def norm(module: Any, x: Tensor) -> Tensor:
    """RMSNorm in the type of its input; transformers takes float32, whose rounding would hide what is tested here."""
    epsilon = getattr(module, "variance_epsilon", None) or module.eps
    scale = 1.0 + module.weight if "Gemma" in type(module).__name__ else module.weight
    return scale * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)


def wide(make: Callable[[], Any], dtype: torch.dtype, *, lora: bool = False) -> Any:
    """A model whose attention matters: weights ten times wider than at usual starts."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10.0)
    model = model.to(dtype).eval()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(norm, module)
    if model.config.model_type == "gemma2":
        model.set_attn_implementation("eager")
    if lora:
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False))
        model = model.to(dtype).eval()
    return model


def lines(kind: str, seed: int) -> list[np.ndarray[Any, Any]]:
    """Rows of one to forty tokens that share what the kind says."""
    rng = np.random.default_rng(seed)

    def draw(low: int, high: int) -> np.ndarray[Any, Any]:
        return rng.integers(1, V, rng.integers(low, high))

    if kind == "pairs":
        made = []
        for _ in range(3):
            prompt = draw(3, 12)
            made += [np.concatenate([prompt, draw(2, 12)]) for _ in range(2)]
        return made
    if kind == "group":
        prompt = draw(12, 20)
        made = [np.concatenate([prompt, draw(1, 16)]) for _ in range(6)]
        return [*made, made[2], made[3][: len(prompt) + 1], prompt[:5]]
    # Branches at two turns, and rows that part inside one.
    shared = draw(14, 20)
    made = []
    for cut in (4, 4, 9, 9, len(shared), len(shared), len(shared)):
        made.append(np.concatenate([shared[:cut], draw(1, 18)]))
    return [*made, np.concatenate([made[-1][:-1], draw(1, 2)]), draw(1, 6)]


def padded(rows: list[np.ndarray[Any, Any]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), 5, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.from_numpy(row)
        mask[index, : len(row)] = True
    return ids, mask


def plain(model: Any, ids: Tensor, mask: Tensor, *, own_attention: bool) -> Tensor:
    """`[N, T]` one row at a time, all logits; `own_attention` False takes the packed path's attention on chains."""
    result = []
    for row, length in zip(ids, mask.sum(1).tolist(), strict=True):
        tokens = row[None, :length]
        if own_attention:
            logits = model(input_ids=tokens, use_cache=False).logits[0]
        else:
            plan = Plan(chains(tokens.numpy(), np.array([length])), torch.device("cpu"))
            with attending(base_model(model)):
                logits = model(input_ids=tokens, attention_mask=ForestMask.of(plan), use_cache=False).logits[0]
        kind = torch.promote_types(torch.float32, logits.dtype)
        logps = torch.log_softmax(logits[:-1].to(kind), -1).gather(-1, tokens[0, 1:, None])[:, 0]
        result.append(torch.nn.functional.pad(logps, (1, ids.shape[1] - length)))
    return torch.stack(result)


def gradients(model: Any) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


# Adapters change weights, not attention: four families stand for all.
FAMILIES = [(name, False) for name in MODELS] + [(name, True) for name in ("llama", "qwen3", "gemma2", "gpt2")]


@pytest.mark.parametrize("kind", ["pairs", "group", "branches"])
@pytest.mark.parametrize(("name", "lora"), FAMILIES, ids=[f"{name}{'-lora' * lora}" for name, lora in FAMILIES])
def test_a_forest_scores_as_its_rows_do(name: str, kind: str, lora: bool) -> None:
    """In float64, to rounding: log-probabilities, and the gradient of a random weighting of them."""
    model = wide(MODELS[name], torch.float64, lora=lora)
    scorer = ModelScorer(model)
    assert scorer.packs()
    for seed in range(2):
        ids, mask = padded(lines(kind, seed))
        rows = Rows.of(ids, mask)
        assert rows.forest.row_tokens > len(rows.forest)
        token_mask = mask & (torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) < 0.6)
        upstream = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        wanted = token_mask.clone()
        wanted[:, 0] = False
        # transformers' own eager attention takes its softmax in float32, so soft-capped models are held to ours.
        exact = plain(model, ids, mask, own_attention=name != "gemma2")
        (exact * upstream * wanted).sum().backward()
        expected = gradients(model)
        found = scorer(rows, token_mask)["logps"]
        with scorer.engaged():
            (found * upstream).sum().backward()
        torch.testing.assert_close(found, exact * wanted, rtol=1e-9, atol=1e-9)
        mine = gradients(model)
        assert mine.keys() == expected.keys()
        for parameter, gradient in expected.items():
            torch.testing.assert_close(
                mine[parameter], gradient, rtol=1e-9, atol=1e-9, msg=lambda m, p=parameter: f"{p}: {m}"
            )


@pytest.mark.parametrize("name", MODELS)
def test_in_float32_a_forest_agrees_with_the_models_own_forward_pass(name: str) -> None:
    model = wide(MODELS[name], torch.float32)
    ids, mask = padded(lines("branches", 3))
    with torch.no_grad():
        found = ModelScorer(model)(Rows.of(ids, mask))["logps"]
        exact = plain(model, ids, mask, own_attention=True)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", UNPACKED)
def test_what_cannot_be_packed_is_read_row_by_row_and_said_once(name: str) -> None:
    model = wide(UNPACKED[name], torch.float64)
    scorer = ModelScorer(model)
    ids, mask = padded(lines("group", 0))
    upstream = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.warns(PackingWarning, match="cannot read several rows packed as a tree"):
        found = scorer(Rows.of(ids, mask))["logps"]
    assert not scorer.packs()
    (found * upstream).sum().backward()
    mine = gradients(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PackingWarning)
        scorer(Rows.of(ids, mask))
    exact = plain(model, ids, mask, own_attention=True)
    (exact * upstream).sum().backward()
    # Some of these architectures work in float32 inside.
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5, check_dtype=False)
    for parameter, gradient in gradients(model).items():
        torch.testing.assert_close(mine[parameter], gradient, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_makes_the_forest_again() -> None:
    """Activations are recomputed in the backward pass, with the forest's attention."""
    ids, mask = padded(lines("branches", 1))
    found = []
    for checkpointing in (False, True):
        model = wide(MODELS["llama"], torch.float64)
        scorer = ModelScorer(model)
        scorer.packs()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.train()
        with scorer.engaged():
            scorer(Rows.of(ids, mask))["logps"].sum().backward()
        found.append(gradients(model))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-9)


def test_the_models_attention_is_its_own_again_afterwards() -> None:
    model = wide(MODELS["llama"], torch.float32)
    before = model.config._attn_implementation
    scorer = ModelScorer(model)
    ids, mask = padded(lines("group", 0))
    with torch.no_grad():
        first = model(input_ids=ids[:1, :10]).logits
        scorer(Rows.of(ids, mask))
        assert model.config._attn_implementation == before
        assert torch.equal(model(input_ids=ids[:1, :10]).logits, first)
    with pytest.raises(RuntimeError, match="stop"), scorer.engaged():
        raise RuntimeError("stop")
    assert model.config._attn_implementation == before


def test_blocks_of_long_trees_are_cut_and_still_exact() -> None:
    """More queries than one block: a prefix of 300 tokens, branches of 1 to 400, and a separate tree."""
    rng = np.random.default_rng(0)
    prefix = rng.integers(1, V, 300)
    rows = [np.concatenate([prefix, rng.integers(1, V, n)]) for n in (1, 3, 40, 400, 270)]
    rows.append(rng.integers(1, V, 350))
    model = wide(lambda: LlamaForCausalLM(LlamaConfig(**{**SHAPE, "max_position_embeddings": 1024})), torch.float64)
    ids, mask = padded(rows)
    with torch.no_grad(), acting(model):
        found = ModelScorer(model)(Rows.of(ids, mask))["logps"]
        torch.testing.assert_close(found, plain(model, ids, mask, own_attention=True), rtol=1e-9, atol=1e-9)


def test_a_copy_of_a_model_is_tried_out_anew() -> None:
    """What is known of a model is not inherited by a copy that was changed."""
    model = wide(MODELS["llama"], torch.float32)
    assert ModelScorer(model).packs()
    twin = copy.deepcopy(model)

    def odd(*args: Any, **kwargs: Any) -> Any:
        raise TypeError("got an unexpected keyword argument 'position_ids'")

    twin.model.layers[0].forward = odd
    with pytest.raises(TypeError):
        ModelScorer(twin).packs()  # its own forward pass does not work either
