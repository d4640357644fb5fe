"""Adapters: whatever became of the base in memory, a saved policy comes back as it was, or saving says why not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from polyturn.agents.transformer import adapters
from polyturn.agents.transformer.adapters import AdapterError
from polyturn.agents.transformer.policy import Policy, PolicyLoadError
from polyturn.agents.transformer.rows import Rows
from polyturn.agents.transformer.snapshot import Snapshot
from polyturn.agents.transformer.tiny import tiny_policy

peft = pytest.importorskip("peft")
WORDS = ["the cat sat on the mat and counted 1 2 3 4 5 6 7 8 9 0 times\n"] * 20
IDS = torch.arange(5, 45)[None]


def start(**options: Any) -> Policy:
    made = {"seed": 0, "vocab_size": 280, "hidden": 16, "layers": 2, "heads": 2, "init": 0.3, **options}
    return tiny_policy(WORDS, **made)


@pytest.fixture
def base(tmp_path: Path) -> str:
    start().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def logps(policy: Policy) -> Tensor:
    with torch.no_grad():
        return policy.logps(IDS, torch.ones_like(IDS, dtype=torch.bool))


def apart(one: Policy, other: Policy) -> float:
    return float((logps(one) - logps(other)).abs().max())


def trained(policy: Policy, scale: float = 0.2) -> Policy:
    """As if something had been learned: every trained number is moved."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return policy


def lora(**settings: Any) -> Any:
    return peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **settings})


def adapted(policy: Policy, config: Any = None) -> Policy:
    model: Any = peft.get_peft_model(policy.model, lora() if config is None else config)
    return trained(Policy(model, policy.tokenizer))


def edited(policy: Policy) -> Policy:
    """One weight of one layer, past every counter of changes."""
    policy.model.model.layers[1].mlp.up_proj.weight.data[3, 5] += 1.0
    return adapted(policy)


def merged(policy: Policy) -> Policy:
    model: Any = adapted(policy).model
    return adapted(Policy(model.merge_and_unload(), policy.tokenizer))


def resized(policy: Policy) -> Policy:
    policy.model.resize_token_embeddings(len(policy.tokenizer) + 8)
    return adapted(policy)


def cast(policy: Policy) -> Policy:
    """Rounded to half precision and back: the numbers are others, their type is not."""
    policy.model.to(torch.bfloat16).to(torch.float32)
    return adapted(policy)


def other_settings(policy: Policy) -> Policy:
    policy.model.config.rms_norm_eps = 0.1
    for module in policy.model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.1
    return adapted(policy)


def two_active(policy: Policy) -> Policy:
    made = adapted(policy)
    model: Any = made.model
    model.add_adapter("second", lora(r=3, lora_alpha=7))
    model.base_model.set_adapter(["default", "second"])
    return trained(made)


def second_active(policy: Policy) -> Policy:
    made = adapted(policy)
    model: Any = made.model
    model.add_adapter("second", lora())
    model.set_adapter("second")
    return trained(made)


def named(policy: Policy) -> Policy:
    model: Any = peft.get_peft_model(policy.model, lora(), adapter_name="mine")
    return trained(Policy(model, policy.tokenizer))


def half_adapters(policy: Policy) -> Policy:
    model: Any = peft.get_peft_model(policy.model.to(torch.bfloat16), lora(), autocast_adapter_dtype=False)
    return trained(Policy(model, policy.tokenizer))


WAYS: dict[str, tuple[Callable[[Policy], Policy], bool]] = {  # and whether the base must go into the folder
    "untouched": (adapted, False),
    "edited": (edited, True),
    "merged, adapted anew": (merged, True),
    "resized": (resized, True),
    "rounded": (cast, True),
    "half precision": (lambda p: adapted(Policy(p.model.to(torch.bfloat16), p.tokenizer)), False),
    "adapters in half precision": (half_adapters, False),
    "other settings": (other_settings, True),
    "head kept whole": (lambda p: adapted(p, lora(modules_to_save=["lm_head"])), False),
    "embeddings kept whole": (lambda p: adapted(p, lora(modules_to_save=["embed_tokens"])), False),
    "embeddings adapted": (lambda p: adapted(p, lora(target_modules=["embed_tokens", "q_proj"])), False),
    "norms too": (lambda p: adapted(p, lora(modules_to_save=["norm"], use_dora=True)), False),
    "another kind": (lambda p: adapted(p, peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"],
                                                         feedforward_modules=["down_proj"])), False),
    "two that act": (two_active, False),
    "two of which one acts": (second_active, False),
    "named otherwise": (named, False),
    "everything linear": (lambda p: trained(p.with_adapters(2)), False),
    "stacked": (lambda p: trained(trained(p.with_adapters(2)).with_adapters(3, existing="stack")), False),
    "merged by name": (lambda p: trained(trained(p.with_adapters(2)).with_adapters(3, existing="merge")), True),
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_what_is_saved_comes_back(name: str, base: str, tmp_path: Path) -> None:
    """The same log-probabilities, the same trained weights; saved again from there, and without the first folder."""
    make, inside = WAYS[name]
    policy = make(Policy.from_pretrained(base))
    policy.save_pretrained(tmp_path / "one")
    assert (tmp_path / "one" / "base").exists() is inside
    assert not (tmp_path / "one" / "model.safetensors").exists()
    again = Policy.from_pretrained(tmp_path / "one")
    assert apart(again, policy) == 0.0
    assert apart(policy, Policy.from_pretrained(base)) > 1e-2
    shapes = [
        {n: (p.shape, p.dtype) for n, p in x.model.named_parameters() if p.requires_grad} for x in (again, policy)
    ]
    assert shapes[0] == shapes[1] != {}
    again.save_pretrained(tmp_path / "two")
    shutil.rmtree(tmp_path / "one")
    assert apart(Policy.from_pretrained(tmp_path / "two"), policy) == 0.0


def test_a_base_loaded_in_another_type_of_number_is_loaded_so_again(base: str, tmp_path: Path) -> None:
    policy = adapted(Policy.from_pretrained(base, dtype="bfloat16"))
    policy.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "base").exists()
    again = Policy.from_pretrained(tmp_path / "adapter")
    assert apart(again, policy) == 0.0
    assert apart(again, Policy.from_pretrained(tmp_path / "adapter", dtype="float32")) > 1e-3


def test_a_base_that_was_written_over_is_named(base: str, tmp_path: Path) -> None:
    adapted(Policy.from_pretrained(base)).save_pretrained(tmp_path / "adapter")
    trained(start()).save_pretrained(base)
    with pytest.raises(PolicyLoadError, match=r"that the adapters in .* were trained over .*, got other weights"):
        Policy.from_pretrained(tmp_path / "adapter")
    shutil.rmtree(base)
    with pytest.raises(PolicyLoadError, match="expected a causal language model"):
        Policy.from_pretrained(tmp_path / "adapter")


def test_a_relative_place_is_found_from_everywhere(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    policy = adapted(Policy.from_pretrained("base"))
    policy.save_pretrained("adapter")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert apart(Policy.from_pretrained(os.path.join("..", "adapter")), policy) == 0.0


def test_a_folder_is_saved_into_again(base: str, tmp_path: Path) -> None:
    """First with the base inside, then with one that stands elsewhere: what is left of the first must not act."""
    edited(Policy.from_pretrained(base)).save_pretrained(tmp_path / "adapter")
    policy = adapted(Policy.from_pretrained(base))
    policy.save_pretrained(tmp_path / "adapter")
    assert apart(Policy.from_pretrained(tmp_path / "adapter"), policy) == 0.0


def test_folders_that_peft_wrote_are_read(base: str, tmp_path: Path) -> None:
    policy = adapted(Policy.from_pretrained(base))
    policy.model.save_pretrained(str(tmp_path / "theirs"))
    policy.tokenizer.save_pretrained(str(tmp_path / "theirs"))
    assert apart(Policy.from_pretrained(tmp_path / "theirs"), policy) == 0.0


def test_ends_that_were_set_in_memory_come_back(base: str, tmp_path: Path) -> None:
    policy = Policy.from_pretrained(base)
    pad = policy.tokenizer.convert_tokens_to_ids("<|pad|>")
    policy.model.generation_config.eos_token_id = [policy.tokenizer.eos_token_id, pad]
    policy = adapted(policy)
    assert pad in policy.chat.stop_ids
    policy.save_pretrained(tmp_path / "adapter")
    assert Policy.from_pretrained(tmp_path / "adapter").chat.stop_ids == policy.chat.stop_ids


def rescaled(model: Any) -> None:
    model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] = 9.0


def hooked(model: Any) -> None:
    """Nothing that any file could hold."""
    model.get_base_model().model.layers[0].mlp.register_forward_hook(lambda module, given, made: made * 1.5)


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "merged in place": (lambda model: model.merge_adapter(), "merged into their base in place"),
    "another scale": (rescaled, r"scaling of .*q_proj is \{'default': 9.0\} in memory and"),
    "switched off": (lambda model: model.base_model.disable_adapter_layers(), "disable_adapters of"),
    "hooked": (hooked, "log-probabilities of a few tokens differ by"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_come_back_is_refused(name: str, base: str, tmp_path: Path) -> None:
    change, message = REFUSED[name]
    policy = adapted(Policy.from_pretrained(base))
    change(policy.model)
    with pytest.raises(AdapterError, match=message):
        policy.save_pretrained(tmp_path / "adapter")


def test_adapters_around_adapters_are_refused(base: str) -> None:
    policy = adapted(Policy.from_pretrained(base))
    with pytest.warns(UserWarning, match="second time"):
        nested: Any = peft.get_peft_model(policy.model, lora())
    with pytest.raises(AdapterError, match=r"a peft model around another, .* policy.with_adapters\(rank, existing="):
        Policy(nested, policy.tokenizer)


def test_a_model_is_loaded_for_comparison_only_when_more_than_adapters_changed(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints of a run: the first is compared with a model loaded beside it, later ones file by file."""
    loads: list[str] = []
    real = adapters._reloaded_differs
    monkeypatch.setattr(adapters, "_reloaded_differs", lambda *given: loads.append("load") or real(*given))
    policy = adapted(Policy.from_pretrained(base))
    for step in range(3):
        trained(policy).save_pretrained(tmp_path / f"step-{step}")
    assert len(loads) == 1
    assert apart(Policy.from_pretrained(tmp_path / "step-2"), policy) == 0.0
    policy.model.get_base_model().model.norm.weight.data += 0.5
    policy.save_pretrained(tmp_path / "step-3")
    assert len(loads) == 3
    assert apart(Policy.from_pretrained(tmp_path / "step-3"), policy) == 0.0
    # A file that does not hold what it should is found without a load.
    monkeypatch.setattr(adapters, "_write", lambda *given, **more: None)
    trained(policy)
    with pytest.raises(AdapterError, match="is not what was written"):
        policy.save_pretrained(tmp_path / "step-3")


@pytest.mark.parametrize("existing", ["continue", "merge", "stack"])
def test_new_training_begins_at_the_policy_as_it_is(existing: Any, base: str) -> None:
    """The adapters that are there act on; what is trained is what was asked for."""
    before = trained(Policy.from_pretrained(base, system="be brief").with_adapters(2))
    wanted = logps(before)
    after = before.with_adapters(2, existing=existing)
    assert float((logps(after) - wanted).abs().max()) < 1e-4
    assert after.chat.system == "be brief"
    learning = {name.split(".")[-2] for name, p in after.model.named_parameters() if p.requires_grad}
    assert learning == {"stacked-1"} if existing == "stack" else learning == {"default"}
    count = sum(p.requires_grad for p in after.model.parameters())
    assert count == 2 * 7 * 2  # A and B of seven linear layers in two blocks


def test_adapters_of_another_rank_are_not_continued(base: str) -> None:
    policy = Policy.from_pretrained(base).with_adapters(2)
    with pytest.raises(AdapterError, match=r"expected rank 2, .* got 4; pass that rank, or merge .* --adapter merge"):
        policy.with_adapters(4)
    with pytest.raises(ValueError, match="existing: expected one of continue, merge, stack, got 'stak'"):
        policy.with_adapters(4, existing="stak")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rank: expected a whole number of at least 1, got 0"):
        Policy.from_pretrained(base).with_adapters(0)


@pytest.mark.parametrize("name", ["everything linear", "head kept whole", "two that act", "embeddings adapted"])
def test_a_snapshot_scores_as_the_policy_did(name: str, base: str) -> None:
    """While the policy learns on; only what is trained is copied; afterwards the policy's weights are its own."""
    policy = WAYS[name][0](Policy.from_pretrained(base))
    before, print_before = logps(policy), policy.fingerprint()
    kept = policy.snapshot()
    assert isinstance(kept, Snapshot)
    trainable = sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    assert sum(p.numel() for p in kept.model.parameters()) == trainable
    trained(policy)
    after = logps(policy)
    mask = torch.ones_like(IDS, dtype=torch.bool)
    assert torch.equal(kept.scorer(Rows.of(IDS, mask))["logps"], before)
    # A prediction is read after the policy's own weights are back.
    rows = Rows.of(IDS, mask)
    edges = rows.edges(None)
    assert torch.allclose(
        kept.scorer.predict(rows).logps(rows.parent[edges], rows.ids[edges]), before[0, 1:], atol=1e-6
    )
    assert torch.equal(logps(policy), after)
    assert float((after - before).abs().max()) > 1e-2
    assert kept.fingerprint() == print_before != policy.fingerprint()
    with pytest.raises(AdapterError, match="the same adapters, got others"):
        kept.load({"other": torch.zeros(1)})


def test_the_bare_base_is_a_reference_too(base: str) -> None:
    policy = adapted(Policy.from_pretrained(base))
    mask = torch.ones_like(IDS, dtype=torch.bool)
    assert torch.allclose(
        policy.bare().scorer(Rows.of(IDS, mask))["logps"], logps(Policy.from_pretrained(base)), atol=1e-6
    )
    assert policy.bare().fingerprint() == adapted(Policy.from_pretrained(base)).bare().fingerprint()
    with pytest.raises(AdapterError, match="got one without"):
        Policy.from_pretrained(base).bare()


def test_the_note_saved_with_adapters_names_the_base(base: str, tmp_path: Path) -> None:
    policy = adapted(Policy.from_pretrained(base))
    policy.save_pretrained(tmp_path / "adapter")
    note = json.loads((tmp_path / "adapter" / "adapters.json").read_text("utf-8"))
    assert note["base"]["name"] == str(Path(base).absolute())
    assert (note["adapters"], note["active"], note["trained"]) == (["default"],) * 3
    tokenizer: PreTrainedTokenizerFast = policy.tokenizer
    assert (tmp_path / "adapter" / "tokenizer.json").is_file()
    assert tokenizer.chat_template == Policy.from_pretrained(tmp_path / "adapter").tokenizer.chat_template


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]], ids=str)
def test_adapters_on_tied_weights_are_not_merged(targets: list[str]) -> None:
    """Added to the one weight that head and embeddings share, they would act twice: hundreds of nats."""
    peft = pytest.importorskip("peft")
    own = tiny_policy(["x"], seed=0, hidden=32, layers=1, heads=2, context=64, init=0.3)
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    own = Policy(peft.get_peft_model(own.model, config), own.tokenizer)
    ids = torch.tensor([[5, 9, 17, 30]])
    before = own.logps(ids, ids > 0)
    with pytest.raises(AdapterError, match=r"weights of their own to merge.*another layer.*stack"):
        own.with_adapters(2, existing="merge")
    assert torch.equal(own.logps(ids, ids > 0), before)
    stacked = own.with_adapters(2, existing="stack")
    torch.testing.assert_close(stacked.logps(ids, ids > 0), before)
