"""What must hold on a GPU, run by `make gpu`; on a CPU small and in float32, and what that cannot show is skipped."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, Qwen3Config

from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.rows import Rows
from polyturn.agents.transformer.scoring import ModelScorer
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms import MDPO, MKTO, Example, TrainOptions, latest, minibatches, train
from polyturn.envs.trajectory import Trajectory, Turn

pytestmark = pytest.mark.gpu
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
needs_cuda = pytest.mark.skipif(not CUDA, reason="not seen: there is no CUDA device here")

SIZES: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 4, "vocab_size": 512}
MODELS = {
    "llama": LlamaConfig(**SIZES, intermediate_size=256, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SIZES, intermediate_size=256, num_key_value_heads=2, head_dim=32),
    "gemma2": Gemma2Config(**SIZES, intermediate_size=256, num_key_value_heads=2, head_dim=32, sliding_window=64),
    "gpt2": GPT2Config(n_layer=2, n_embd=128, n_head=4, vocab_size=512, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0),
}
DTYPES = [torch.float32, torch.bfloat16] if CUDA else [torch.float32]


def model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    made: Any = AutoModelForCausalLM.from_config(copy.deepcopy(MODELS[name]))
    return made.to(DEVICE, dtype)


def lines(kind: str) -> tuple[Tensor, Tensor]:
    """Rows with a shared beginning, or with none, `[N, T]` and which tokens are real."""
    rng = np.random.default_rng(0)
    length = 300 if CUDA else 60
    ids = rng.integers(10, 500, (5, length))
    if kind == "shared":
        ids[:, : length // 2] = ids[0, : length // 2]
        ids[1, : length * 3 // 4] = ids[0, : length * 3 // 4]
    mask = np.arange(length)[None] < np.array([length, length - 5, length - 50, length - 7, length // 2 + 2])[:, None]
    return torch.from_numpy(ids).to(DEVICE), torch.from_numpy(mask).to(DEVICE)


def plain_logps(its: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Row by row, without padding, by the model's own forward pass."""
    made = torch.zeros(ids.shape, device=ids.device)
    rows = []
    for row, real in zip(ids, mask, strict=True):
        short = row[real][None]
        logits = its(input_ids=short).logits.float()
        rows.append(torch.log_softmax(logits[:, :-1], -1).gather(-1, short[:, 1:, None])[0, :, 0])
    for n, values in enumerate(rows):
        made = made.index_put((torch.tensor(n), torch.arange(1, len(values) + 1)), values)
    return made


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["shared", "apart"])
@pytest.mark.parametrize("name", MODELS)
def test_packed_rows_score_and_learn_as_plain_ones(name: str, kind: str, dtype: torch.dtype) -> None:
    """Log-probabilities and every gradient: FlexAttention on a GPU where rows share, variable lengths where not."""
    its = model(name, dtype)
    ids, mask = lines(kind)
    wanted = mask.clone()
    wanted[:, 0] = False
    rows = Rows.of(ids, mask)
    scorer = ModelScorer(its)
    with scorer.engaged():
        packed = scorer(rows, wanted)["logps"].float()
        (packed * torch.linspace(-1, 1, packed.numel(), device=DEVICE).view_as(packed)).sum().backward()
    gradients = {n: p.grad.float().clone() for n, p in its.named_parameters()}
    its.zero_grad()
    plain = plain_logps(its, ids, mask)
    (plain * torch.linspace(-1, 1, plain.numel(), device=DEVICE).view_as(plain)).sum().backward()
    exact = dtype == torch.float32
    assert float((packed - plain).abs().max()) < (2e-4 if exact else 0.15)
    for n, parameter in its.named_parameters():
        size = float(parameter.grad.float().norm())
        assert float((gradients[n] - parameter.grad.float()).norm()) <= (2e-3 if exact else 0.08) * size + 1e-6, n


def example(seed: int) -> Example:
    rng = np.random.default_rng(seed)
    context = rng.integers(10, 60, 30).astype(np.int32)

    def one(token: int) -> Trajectory:
        turn = Turn("o", "a", 0.0, context_ids=context, action_ids=np.array([token] * 6, np.int32))
        return Trajectory("Toy-v0", seed, (turn,), terminated=True)

    return Example((one(20), one(30)), np.array([[0, 1]]), desirable=np.array([1, 0], np.float32))


def policy(context: int = 128) -> Policy:
    made = tiny_policy(["x"], seed=0, hidden=64, layers=2, heads=2, context=context)
    made.model.to(DEVICE)  # type: ignore[arg-type]
    return made


def go(start: Policy, out: Path | None = None, *, method: Any = None, steps: int = 6, **options: Any) -> Any:
    data = minibatches([example(seed) for seed in range(4)], 4, seed=0)
    settings = TrainOptions(**{"lr": 1e-3, **options})
    reference = start.copy()
    return train(
        method or MDPO(), start, reference, data, steps=steps, out=out, options=settings, progress=False,
        resume=out is not None,
    ).history  # fmt: skip


@pytest.mark.parametrize("options", [
    {}, {"mixed_precision": "bf16"}, {"gradient_checkpointing": True}, {"tokens_per_micro_batch": 50},
    {"mixed_precision": "bf16", "gradient_checkpointing": True},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("method", [MDPO(), MKTO()], ids=lambda method: method.name)
def test_every_precision_and_cut_learns(method: Any, options: dict[str, Any]) -> None:
    plain = go(policy(), method=method)
    found = go(policy(), method=method, **options)
    assert found[-1]["loss"] < 0.8 * found[0]["loss"]
    assert found[0]["loss"] == pytest.approx(plain[0]["loss"], abs=2e-2)
    assert found[0]["grad_norm"] == pytest.approx(plain[0]["grad_norm"], rel=0.1)


@pytest.mark.parametrize("kernels", ["compiled", pytest.param("liger", marks=needs_cuda)])
def test_other_kernels_take_the_same_steps(kernels: Any) -> None:
    if kernels == "liger":
        pytest.importorskip("liger_kernel", reason="not seen: liger-kernel is not installed here")
    plain, found = go(policy()), go(policy(), kernels=kernels)
    assert [entry["loss"] for entry in found] == pytest.approx([entry["loss"] for entry in plain], abs=1e-4)
    assert found[0]["grad_norm"] == pytest.approx(plain[0]["grad_norm"], rel=1e-3)


def test_adapters_learn_and_are_saved_where_they_are(tmp_path: Path) -> None:
    start = policy()
    start.save_pretrained(tmp_path / "base")
    adapted = Policy.from_pretrained(tmp_path / "base", device=DEVICE).with_adapters(4)
    history = go_adapted(adapted)
    assert history[-1]["loss"] < history[0]["loss"]
    adapted.save_pretrained(tmp_path / "saved")
    again = Policy.from_pretrained(tmp_path / "saved", device=DEVICE)
    ids, mask = lines("shared")
    ids, mask = ids % 60, mask.clone()
    with torch.no_grad():
        assert torch.equal(adapted.logps(ids[:, :60], mask[:, :60]), again.logps(ids[:, :60], mask[:, :60]))


def go_adapted(adapted: Policy) -> Any:
    data = minibatches([example(seed) for seed in range(4)], 4, seed=0)
    options = TrainOptions(lr=1e-2)
    return train(MDPO(), adapted, None, data, steps=6, options=options, progress=False).history


def test_a_run_goes_on_on_the_other_device(tmp_path: Path) -> None:
    """Three steps here, three on the CPU, as six on the CPU; and the other way round."""
    whole = policy()
    whole.model.to("cpu")  # type: ignore[arg-type]
    expected = go(whole, cpu=True)
    begun = policy()
    go(begun, tmp_path / "a", steps=3)
    on_cpu = policy()
    on_cpu.model.to("cpu")  # type: ignore[arg-type]
    assert go(on_cpu, tmp_path / "a", cpu=True)[-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=1e-2)
    begun = policy()
    begun.model.to("cpu")  # type: ignore[arg-type]
    go(begun, tmp_path / "b", steps=3, cpu=True)
    assert go(policy(), tmp_path / "b")[-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=1e-2)
    assert latest(tmp_path / "b") is not None


@needs_cuda
@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit"])
def test_quantized_optimizers_learn(name: str) -> None:
    pytest.importorskip({"adamw_8bit": "torchao", "paged_adamw_8bit": "bitsandbytes"}[name], reason="not carried")
    history = go(policy(), optimizer=name)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]


@needs_cuda
def test_a_full_device_is_said_with_a_remedy_and_changes_nothing() -> None:
    from polyturn.algorithms.training.failures import OutOfMemoryError

    start = policy()
    before = {n: p.detach().clone() for n, p in start.model.named_parameters()}
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(max(free - (200 << 20), 0), dtype=torch.uint8, device=DEVICE)
    rng = np.random.default_rng(0)

    def long(seed: int) -> Trajectory:
        turn = Turn("o", "a", 0.0, context_ids=np.array([5], np.int32),
                    action_ids=rng.integers(10, 60, 100).astype(np.int32))  # fmt: skip
        return Trajectory("Toy-v0", 0, (turn,), terminated=True)

    rows = Example(tuple(long(n) for n in range(4000)), np.array([[0, 1]]))
    options = TrainOptions(lr=1e-3, tokens_per_micro_batch=None)
    with pytest.raises(OutOfMemoryError, match=r"ran out of memory; the weights are as before this step. What helps"):
        train(MDPO(), start, start.copy(), [[rows]], steps=1, options=options, progress=False)
    del taken
    for name, parameter in start.model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_sampling_gives_the_log_probabilities_that_scoring_gives() -> None:
    """Greedy and at temperature 1, on the engine that the device has by default."""
    from polyturn.agents import Sampling, TransformerAgent, collect

    start = policy(context=2048)
    agent = TransformerAgent(start, sampling=Sampling(max_new_tokens=8))
    groups = collect(agent, "polyturn/Guess-v0", groups=2, group_size=2, seed=0, progress=False)
    rows = [row for group in groups for row in group if row.valid and row.turns]
    assert rows
    for row in rows:
        ids = torch.from_numpy(np.concatenate([np.concatenate([t.context_ids, t.action_ids]) for t in row.turns]))
        said = torch.from_numpy(np.concatenate([
            np.concatenate([np.zeros(len(t.context_ids), np.float32), t.logps]) for t in row.turns]))  # fmt: skip
        own = said != 0
        ids = ids.long()[None].to(DEVICE)
        with torch.no_grad():
            scored = start.logps(ids, torch.ones_like(ids, dtype=torch.bool))[0].float().cpu()
        assert float((scored[own] - said[own]).abs().max()) < 1e-3
