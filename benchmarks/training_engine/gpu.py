"""Preference steps on a GPU: tokens a second, share of the card's arithmetic, memory. `make gpu` runs it.

    python -m polyturn.benchmarks.training_engine.gpu OUT.json

Random models of real shapes, bf16 compute with float32 master weights, groups of four trajectories of 8,192 tokens of
which half are shared. The arithmetic is measured on the same card in the same run, as the rate of large bf16 products.
Without a GPU a small form runs on the CPU, in float32, and says so.
"""

from __future__ import annotations

import copy
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, PretrainedConfig

from polyturn.algorithms import MDPO, TrainOptions, train
from polyturn.algorithms.pairing import Example
from polyturn.benchmarks.training_engine.worker import Bare
from polyturn.envs.trajectory import Trajectory, Turn

_SMALL: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 1000,
}  # fmt: skip


def shapes(small: bool) -> dict[str, PretrainedConfig]:
    """Llama 3.2 1B's and Gemma 2 2B's shapes (arXiv 2407.21783, 2408.00118), or small ones of the same kinds."""
    if small:
        return {"small Llama": LlamaConfig(**_SMALL), "small Gemma 2": Gemma2Config(**_SMALL, head_dim=16)}
    return {
        "Llama 3.2 1B": LlamaConfig(
            hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
            num_key_value_heads=8, head_dim=64, vocab_size=128_256, max_position_embeddings=131_072,
            tie_word_embeddings=True,
        ),
        "Gemma 2 2B": Gemma2Config(
            hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=8,
            num_key_value_heads=4, head_dim=256, vocab_size=256_000, max_position_embeddings=8192,
        ),
    }  # fmt: skip


def group(vocabulary: int, length: int) -> Example:
    """Four trajectories with one shared half, as two pairs."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(10, vocabulary, length // 2).astype(np.int32)
    rows = []
    for _ in range(4):
        action = rng.integers(10, vocabulary, length - length // 2).astype(np.int32)
        turn = Turn("o", "a", 0.0, context_ids=prompt, action_ids=action)
        rows.append(Trajectory("Tokens-v0", 0, (turn,), terminated=True))
    return Example(tuple(rows), np.array([[0, 1], [2, 3]]))


def step(config: PretrainedConfig, *, length: int, repeats: int, cuda: bool) -> dict[str, Any]:
    """Medians over steps after two that warm up and compile."""
    torch.manual_seed(0)
    device = torch.device("cuda" if cuda else "cpu")
    made: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    policy = Bare(made.to(device))
    other: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    other.load_state_dict(made.state_dict())
    reference = Bare(other.to(device, torch.bfloat16 if cuda else torch.float32).requires_grad_(False).eval())
    example = group(config.get_text_config().vocab_size, length)
    moments: list[float] = []

    def batches() -> Iterator[Any]:
        for _ in range(repeats + 2):
            _settle(cuda)
            moments.append(time.perf_counter())
            yield [example]
        _settle(cuda)
        moments.append(time.perf_counter())

    if cuda:
        torch.cuda.reset_peak_memory_stats()
    options = TrainOptions(
        lr=1e-6,
        mixed_precision="bf16" if cuda else None,
        gradient_checkpointing=True,
        tokens_per_micro_batch=None,
        cpu=not cuda,
    )
    history = train(
        MDPO(), policy, reference, batches(), steps=repeats + 2, options=options, progress=False
    ).history  # fmt: skip
    _settle(cuda)
    if len(moments) == repeats + 2:
        moments.append(time.perf_counter())
    seconds = statistics.median(np.diff(moments)[2:].tolist())
    distinct = history[-1]["distinct_tokens"]
    weights = sum(p.numel() for p in made.parameters())
    text = config.get_text_config()
    body = weights - text.vocab_size * text.hidden_size * (1 if text.tie_word_embeddings else 2)
    looked_at = 4 * (length - length // 2)
    seen = sum(range(length // 2)) + 4 * sum(range(length // 2, length))
    # Model operations: the policy's forward and backward, and the reference's forward; what checkpointing does twice
    # is not counted.
    flops = 8.0 * (body * distinct + text.hidden_size * text.vocab_size * looked_at)
    flops += 16.0 * text.num_hidden_layers * text.num_attention_heads * _head(text) * seen
    found = {
        "parameters": weights,
        "distinct_tokens": distinct,
        "row_tokens": history[-1]["tokens"],
        "seconds": seconds,
        "distinct_tokens_per_second": distinct / seconds,
        "row_tokens_per_second": history[-1]["tokens"] / seconds,
        "flops": flops,
        "flops_per_second": flops / seconds,
        "loss": history[0]["loss"],
    }
    if cuda:
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def _settle(cuda: bool) -> None:
    """Waits until the device has done all that it was given."""
    if cuda:
        torch.cuda.synchronize()


def _head(text: Any) -> int:
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def matrix_rate(cuda: bool) -> float:
    """Operations a second of large products, the best of several."""
    size = 8192 if cuda else 512
    device = "cuda" if cuda else "cpu"
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
    best = float("inf")
    for _ in range(10):
        _settle(cuda)
        begun = time.perf_counter()
        a @ a
        _settle(cuda)
        best = min(best, time.perf_counter() - begun)
    return 2.0 * size**3 / best


def main(out: Path) -> None:
    """Measures everything and writes the figures with card, driver and versions."""
    cuda = torch.cuda.is_available()
    record: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else f"CPU ({platform.processor() or platform.machine()})",
        "cuda": torch.version.cuda if cuda else None,
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, accelerate)},
        "note": "" if cuda else "small form in float32: this machine has no GPU, so no figure here is one of a GPU",
        "matrix_rate": matrix_rate(cuda),
        "steps": {},
    }
    for name, config in shapes(not cuda).items():
        try:
            found = step(config, length=8192 if cuda else 128, repeats=5 if cuda else 2, cuda=cuda)
            found["share_of_matrix_rate"] = found["flops_per_second"] / record["matrix_rate"]
        except RuntimeError as error:
            found = {"failed": str(error).splitlines()[0]}
        record["steps"][name] = found
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
