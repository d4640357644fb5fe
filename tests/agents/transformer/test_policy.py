"""Policies: scoring equals the plain log-softmax, and folders come back as they were or say what is wrong."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from polyturn.agents.transformer.policy import Policy, PolicyLoadError
from polyturn.agents.transformer.rows import Rows
from polyturn.agents.transformer.scoring import ModelScorer, acting
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.agents.transformer.tokens import ChatTemplateError, HistoryRewrittenWarning

WORDS = ["the cat sat on the mat and counted 1 2 3 4 5 6 7 8 9 0 times\n"] * 20
SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": None,
    "eos_token_id": 5,
}  # fmt: skip


def policy(seed: int = 0, **options: Any) -> Policy:
    return tiny_policy(WORDS, seed=seed, **{"vocab_size": 280, "hidden": 32, "layers": 2, "heads": 2, **options})


def seeded(make: Callable[[Any], PreTrainedModel], config: Any) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(config).eval()


def llama() -> PreTrainedModel:
    return seeded(LlamaForCausalLM, LlamaConfig(**SIZES))


def gemma2() -> PreTrainedModel:
    caps = {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 0.5, "sliding_window": 6}
    return seeded(Gemma2ForCausalLM, Gemma2Config(**SIZES, head_dim=8, **caps))


def granite() -> PreTrainedModel:
    return seeded(GraniteForCausalLM, GraniteConfig(**SIZES, logits_scaling=4.0))


def cohere() -> PreTrainedModel:
    return seeded(CohereForCausalLM, CohereConfig(**SIZES, logit_scale=0.25))


def biased() -> PreTrainedModel:
    def make(config: LlamaConfig) -> PreTrainedModel:
        model = LlamaForCausalLM(config)
        model.lm_head = nn.Linear(32, 61)
        return model

    return seeded(make, LlamaConfig(**SIZES))


ARCHITECTURES: dict[str, tuple[Callable[[], PreTrainedModel], bool]] = {
    "llama": (llama, True),
    "gemma2, capped": (gemma2, True),
    "granite, scaled": (granite, False),
    "cohere, scaled": (cohere, False),
    "biased head": (biased, True),
}


def rows() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 61, (3, 11), generator=generator)
    mask = torch.arange(11)[None] < torch.tensor([11, 7, 3])[:, None]
    token_mask = torch.rand(3, 11, generator=generator) < 0.6
    return ids, mask, token_mask


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_are_those_of_the_plain_log_softmax(name: str) -> None:
    """Values and gradients, of every architecture, through the projection in chunks or through full logits."""
    build, direct = ARCHITECTURES[name]
    ids, mask, token_mask = rows()
    weights = torch.rand(3, 11, generator=torch.Generator().manual_seed(2))

    def plain(model: PreTrainedModel) -> Tensor:
        logits = model(input_ids=ids, attention_mask=mask.long()).logits.float()
        picked = torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0]
        wanted = (token_mask & mask)[:, 1:]
        return nn.functional.pad(torch.where(wanted, picked, 0.0), (1, 0))

    mine, theirs = build(), build()
    scorer = ModelScorer(mine)
    found, expected = scorer(Rows.of(ids, mask), token_mask)["logps"], plain(theirs)
    assert scorer._direct_head is direct
    assert torch.allclose(found, expected, atol=2e-6)
    assert not found[~(token_mask & mask)].any()
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for (parameter, other), label in zip(
        zip(mine.parameters(), theirs.parameters(), strict=True), dict(mine.named_parameters()), strict=True
    ):
        assert parameter.grad is not None
        assert other.grad is not None
        assert torch.allclose(parameter.grad, other.grad, atol=1e-5), label


def test_all_real_tokens_are_scored_unless_said_otherwise() -> None:
    ids, mask, _ = rows()
    found = Policy.logps(_holding(llama()), ids, mask)
    assert bool((found[:, 1:][mask[:, 1:]] < 0).all())
    assert not found[:, 0].any()
    assert not found[~mask].any()


def test_padding_and_neighbours_change_no_score() -> None:
    scorer = ModelScorer(llama())
    ids, mask, _ = rows()
    together = scorer(Rows.of(ids, mask))["logps"]
    for row, length in enumerate((11, 7, 3)):
        alone = scorer(Rows.of(ids[row : row + 1, :length], torch.ones(1, length, dtype=torch.bool)))["logps"]
        assert torch.allclose(together[row, :length], alone[0], atol=1e-5)


def test_adapters_on_the_head_are_scored_through_it() -> None:
    """They start as the identity, where a look at the head's own weight would find nothing wrong."""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=["lm_head", "q_proj"]))
    scorer = ModelScorer(model)
    ids, mask, _ = rows()
    before = scorer(Rows.of(ids, mask))["logps"]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lm_head.lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    assert float((scorer(Rows.of(ids, mask))["logps"] - before).detach().abs().max()) > 1e-2


def test_modes_come_back_part_by_part() -> None:
    model = llama().train()
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    during = []

    def fail() -> None:
        with acting(model):
            during.extend(module.training for module in model.modules())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert not any(during)
    assert [module.training for module in model.modules()] == before
    ModelScorer(model)(Rows.of(torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.bool)))
    assert [module.training for module in model.modules()] == before


def same(one: Policy, other: Policy) -> bool:
    ids = torch.from_numpy(one.chat.context("the cat sat")[None]).long()
    mask = torch.ones_like(ids, dtype=torch.bool)
    return torch.equal(one.logps(ids, mask), other.logps(ids, mask))


def test_a_folder_comes_back_as_it_was(tmp_path: Path) -> None:
    """Weights bit for bit, tokens, template, version and system prompt; the layout is the Hub's."""
    saved = Policy(policy().model, policy().tokenizer, version="iteration-3", system="be brief")
    saved.save_pretrained(tmp_path / "a")
    loaded = Policy.from_pretrained(tmp_path / "a")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in (tmp_path / "a").iterdir()}
    assert same(saved, loaded)
    assert (loaded.version, loaded.chat.system) == ("iteration-3", "be brief")
    assert loaded.chat.context("x").tolist() == saved.chat.context("x").tolist()
    assert not loaded.model.training
    named = Policy.from_pretrained(tmp_path / "a", version="mine", system="be long")
    assert (named.version, named.chat.system) == ("mine", "be long")
    (tmp_path / "a" / "polyturn.json").unlink()
    assert Policy.from_pretrained(tmp_path / "a").version == str(tmp_path / "a")


def test_the_same_seed_makes_the_same_policy_and_no_global_generator_moves() -> None:
    before = torch.get_rng_state()
    assert same(policy(), policy())
    assert not same(policy(), policy(seed=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_copy_is_frozen_and_its_own() -> None:
    original = policy()
    twin = original.copy(version="reference")
    assert (twin.version, original.copy().version) == ("reference", "random")
    assert same(original, twin)
    assert not any(parameter.requires_grad for parameter in twin.model.parameters())
    with torch.no_grad():
        next(original.model.parameters()).add_(1.0)
    assert not same(original, twin)


def test_a_copy_does_not_warn_again() -> None:
    original = policy()
    original.tokenizer.chat_template = original.tokenizer.chat_template.replace(
        "message['content']", "message['content'].split('</think>')[-1]"
    )
    with pytest.warns(HistoryRewrittenWarning):
        again = Policy(original.model, original.tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.copy()


@pytest.mark.parametrize("placed", [False, True])
def test_an_adapter_folder_comes_back_with_its_base(tmp_path: Path, placed: bool) -> None:
    """The base is loaded from where it came from, or from inside the folder if it never stood anywhere."""
    peft = pytest.importorskip("peft")
    start = policy()
    if placed:
        start.save_pretrained(tmp_path / "base")
        start = Policy.from_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(
        start.model, peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"])
    )
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    learner = Policy(adapted, start.tokenizer, version="adapted")
    learner.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    assert (tmp_path / "adapter" / "base").exists() is not placed
    loaded = Policy.from_pretrained(tmp_path / "adapter")
    assert same(loaded, learner)
    assert loaded.version == "adapted"
    trained = {name for name, p in loaded.model.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert same(loaded.copy(), learner)
    with loaded.model.disable_adapter():
        assert same(loaded, policy())


def test_virtual_tokens_are_refused() -> None:
    peft = pytest.importorskip("peft")
    start = policy()
    model = peft.get_peft_model(start.model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="such as LoRA, got PromptTuningConfig"):
        Policy(model, start.tokenizer)


def _no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def _other_weights(folder: Path) -> None:
    policy(layers=1).model.save_pretrained(folder / "other")
    shutil.copy(folder / "other" / "model.safetensors", folder / "model.safetensors")


def _wider(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 200}), "utf-8")


def _unknown(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "nosuch"}), "utf-8")


DAMAGES: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "no template": (_no_template, ChatTemplateError, "expected a tokenizer with a chat template, got one without"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), PolicyLoadError, "expected a causal language model"),
    "torn weights": (lambda f: (f / "model.safetensors").write_bytes(b"torn"), PolicyLoadError, "loading said"),
    "too few weights": (_other_weights, PolicyLoadError, r"weights that its config.json describes, .* model.layers.1"),
    "other sizes": (_wider, PolicyLoadError, "expected"),
    "unknown architecture": (_unknown, PolicyLoadError, "nosuch"),
    "no config": (lambda f: (f / "config.json").unlink(), PolicyLoadError, "expected a causal language model"),
    "no tokenizer": (lambda f: [(f / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")], PolicyLoadError,
                     "with its tokenizer"),
    "empty": (lambda f: [p.unlink() for p in f.iterdir()], PolicyLoadError, "expected a causal language model"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_folders_say_what_is_wrong(name: str, tmp_path: Path) -> None:
    damage, error, message = DAMAGES[name]
    folder = tmp_path / "policy"
    policy().save_pretrained(folder)
    damage(folder)
    with pytest.raises(error, match=message) as caught:
        Policy.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["./nosuch", "/nosuch/policy", "runs/nosuch/policy", "~/nosuch", "nosuch/model"])
def test_missing_folders_are_named(source: str) -> None:
    with pytest.raises(PolicyLoadError, match=source) as caught:
        Policy.from_pretrained(source)
    assert "not a folder" in str(caught.value) or "no such folder here" in str(caught.value)


def _holding(model: PreTrainedModel) -> Any:
    return type("Holder", (), {"scorer": ModelScorer(model)})()
