"""Up to which length positions are those of any pass: real models, a short row alone and beside a long one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from polyturn.agents import Sampling, TransformerAgent, collect
from polyturn.agents.agent import ScriptedAgent
from polyturn.agents.transformer.engines.trial import way_for
from polyturn.agents.transformer.generation import GenerationError
from polyturn.agents.transformer.policy import Policy, position_limit
from polyturn.agents.transformer.positions import LengthError, length_limit
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms import ActorCritic, RewardModel

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


POLICIES: dict[str, tuple[dict[str, Any], int]] = {
    "dynamic": (rope(rope_type="dynamic", factor=8.0), 300),
    "longrope": (rope(rope_type="longrope", short_factor=[1.0] * 4, long_factor=[4.0] * 4,
                      original_max_position_embeddings=260), 260),
}  # fmt: skip


def policy(settings: dict[str, Any], context: int) -> Policy:
    """A small policy whose model has other position settings; it could read 4 times as far by its configuration."""
    own = tiny_policy(["higher", "lower"], seed=0, hidden=32, layers=2, heads=4, context=context, init=0.3)
    config = own.model.config.to_dict() | settings
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()
    return Policy(model, own.tokenizer)


@pytest.mark.parametrize("name", POLICIES)
def test_episodes_end_where_positions_would_begin_to_change_and_score_as_they_were_sampled(name: str) -> None:
    settings, limit = POLICIES[name]
    own = policy(settings, 300)
    agent = TransformerAgent(own, sampling=Sampling(max_new_tokens=12), slots=4, max_tokens=2000)
    assert agent.name.endswith(f"max_tokens={limit})")
    groups = collect(agent, "polyturn/Guess-v0", groups=3, group_size=2, seed=0, progress=False)
    members = [member for group in groups for member in group]
    lengths = [len(member.tokens[0]) for member in members]
    assert max(lengths) <= limit
    assert any(member.info.get("truncated_by") == "context" for member in members)
    # All rows in one pass, beside each other, as a training step reads them.
    ids = torch.zeros((len(members), max(lengths)), dtype=torch.int64)
    turn = torch.full(ids.shape, -1)
    for row, member in enumerate(members):
        ids[row, : lengths[row]], turn[row, : lengths[row]] = (torch.tensor(x) for x in member.tokens)
    mask = torch.arange(ids.shape[1])[None] < torch.tensor(lengths)[:, None]
    scored = own.logps(ids, mask, turn >= 0)
    sampled = torch.cat([torch.tensor(step.logps) for member in members for step in member.turns])
    torch.testing.assert_close(scored[turn >= 0], sampled, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", POLICIES)
def test_longer_rows_are_refused_wherever_they_are_read(name: str) -> None:
    settings, limit = POLICIES[name]
    own = policy(settings, 300)
    ids = torch.arange(2 * (limit + 1)).reshape(2, -1) % 200 + 1
    mask = torch.ones_like(ids, dtype=torch.bool)
    with pytest.raises(LengthError, match=rf"at most {limit} tokens, got one of {limit + 1}.*max_length"):
        own.logps(ids, mask)
    with pytest.raises(LengthError, match=f"at most {limit} tokens"):
        ActorCritic(own).values(ids, mask)
    mask[:, limit:] = False  # padding beyond the limit is read by no token
    assert torch.isfinite(own.logps(ids, mask)).all()
    model = RewardModel(own)
    assert model.limit == limit
    (group,) = collect(ScriptedAgent(["word " * limit]), "polyturn/Guess-v0", progress=False)
    with pytest.raises(ValueError, match=f"at most {limit} tokens"):
        model(group)


@pytest.mark.parametrize("family", ["GPT2", "OPT"])
def test_rows_beyond_a_learned_table_are_refused_by_name(family: str) -> None:
    config = {
        "GPT2": {"n_positions": 32, "n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 61},
        "OPT": {**SIZES, "ffn_dim": 32, "max_position_embeddings": 32, "word_embed_proj_dim": 32},
    }[family]
    kind = getattr(transformers, {"GPT2": "GPT2LMHeadModel", "OPT": "OPTForCausalLM"}[family])
    model = kind(getattr(transformers, f"{family}Config")(**config)).eval()
    assert length_limit(model) == 32
    from polyturn.agents.transformer.rows import Rows
    from polyturn.agents.transformer.scoring import ModelScorer

    ids = torch.ones((1, 33), dtype=torch.int64)
    with pytest.raises(LengthError, match="at most 32 tokens, got one of 33"):
        ModelScorer(model)(Rows.of(ids, ids > 0))
    assert torch.isfinite(ModelScorer(model)(Rows.of(ids[:, :32], ids[:, :32] > 0))["logps"]).all()
    with pytest.raises(GenerationError, match="at most 32 tokens"):
        way_for(model, 2, 33)


def test_the_probe_of_the_engine_reaches_the_longest_episode() -> None:
    """A model that no setting and no embedding gives away: its own forward pass looks at how far a row reaches."""
    own = tiny_policy(["higher"], seed=0, hidden=32, layers=1, heads=2, context=256, init=0.3)

    class Sly(type(own.model)):  # type: ignore[misc]
        def forward(self, input_ids: Tensor, position_ids: Tensor | None = None, **options: Any) -> Any:
            out = super().forward(input_ids=input_ids, position_ids=position_ids, **options)
            far = position_ids is not None and int(position_ids.max()) >= 100
            out.logits = out.logits * (0.5 if far else 1.0)
            return out

    own.model.__class__ = Sly
    with pytest.raises(Exception, match="positions that do not depend on the length of a pass, got Sly"):
        collect(TransformerAgent(own, slots=2, max_tokens=200), "polyturn/Guess-v0", progress=False)
    short = TransformerAgent(own, sampling=Sampling(max_new_tokens=4), slots=2, max_tokens=100)
    (group,) = collect(short, "polyturn/Guess-v0", progress=False)
    assert group[0].valid


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_keeps_the_frequencies_of_positions_whole(dtype: torch.dtype, tmp_path: Any) -> None:
    """`model.to(bfloat16)` rounds rotary frequencies, which loading the saved weights does not: .3 nats apart."""
    own = tiny_policy(["x"], seed=0, hidden=32, layers=2, heads=2, context=512, init=0.3)
    cast = Policy(own.model.to(dtype), own.tokenizer)
    assert all(b.dtype == torch.float32 for n, b in cast.model.named_buffers() if n.endswith("inv_freq"))
    cast.save_pretrained(tmp_path / "saved")
    ids = torch.randint(1, 200, (1, 400), generator=torch.Generator().manual_seed(0))
    again = Policy.from_pretrained(tmp_path / "saved")
    assert torch.equal(cast.logps(ids, ids > 0), again.logps(ids, ids > 0))
    cast.model.to(dtype)
    with pytest.warns(UserWarning, match=r"inv_freq is in half precision.*Cast the model before"):
        cast.save_pretrained(tmp_path / "rounded")
