"""Measures this package's steps in a separate process; `python -m` it with a JSON job as its argument."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from polyturn.agents.transformer.scoring import ModelScorer
from polyturn.algorithms import MDPO, MKTO, TrainOptions, collate, train
from polyturn.algorithms.pairing import Example
from polyturn.benchmarks.training_engine.measuring import Meter
from polyturn.benchmarks.training_engine.shapes import draw_groups, examples

WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "reference cached": {"cache_reference": True},
    "checkpointed": {"gradient_checkpointing": True},
    "compiled": {"kernels": "compiled"},
}
KINDS = {
    "matrix products": ("mm", "addmm", "addmm_", "bmm", "baddbmm"),
    "attention": ("scaled_dot_product",),
    "softmax of the head": ("exp_", "amax", "sub_", "logsumexp", "scatter_add_", "gather"),
    "optimizer": ("adamw", "linalg_vector_norm"),
}
"""Parts of a step by the names of the operations that make them; what is in none is elementwise, copies and indices."""


class Bare:
    """A model without a tokenizer, as `train` takes it."""

    version = ""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: Any = model
        self.scorer: nn.Module = ModelScorer(model)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the model."""
        self.model.save_pretrained(str(folder))

    @classmethod
    def from_pretrained(cls, source: str | Path, *, device: str | torch.device | None = None) -> Bare:
        """Reads it back."""
        loaded: Any = AutoModelForCausalLM.from_pretrained(str(source))
        return cls(loaded.to(device or "cpu"))


def make_model(folder: Path, *, vocabulary: int, hidden: int, layers: int) -> None:
    """Writes a random Llama-shaped model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 16 * 16,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        max_position_embeddings=32_768,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    made: Any = AutoModelForCausalLM.from_config(config)
    made.save_pretrained(str(folder))


def step_figures(job: dict[str, Any]) -> dict[str, Any]:
    """Costs of `repeats` steps after one more that warms up."""
    rows = examples(job["shape"], draw_groups(job["shape"], job["vocabulary"]))
    return measured(Path(job["model"]), rows, job["way"], job["repeats"], method=job.get("method", "mdpo"))


def measured(folder: Path, rows: list[Example], way: str, repeats: int, *, method: str = "mdpo") -> dict[str, Any]:
    """Costs of steps on the same rows."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(str(folder))
    other: Any = AutoModelForCausalLM.from_pretrained(str(folder))
    policy, reference = Bare(loaded), Bare(other.requires_grad_(False).eval())
    meter = Meter()

    def batches() -> Iterator[Any]:
        # What lies between one question for data and the next is one step.
        for _ in range(repeats + 1):
            batch = collate(rows, mismatched=method == "mkto")
            meter.begin()
            yield batch
        meter.end()

    learned = MDPO(beta=0.1) if method == "mdpo" else MKTO(beta=0.1)
    options = TrainOptions(lr=1e-6, **WAYS[way])
    history = train(
        learned, policy, reference, batches(), steps=repeats + 1, options=options, progress=False
    ).history  # fmt: skip
    meter.end()
    first = history[0]
    return {
        **meter.figures(),
        "loss": first["loss"],
        "grad_norm": first["grad_norm"],
        "tokens": first["tokens"],
        "distinct_tokens": first["distinct_tokens"],
    }


def profile(job: dict[str, Any]) -> dict[str, Any]:
    """Shares of one step's operations by kind, and the CPU-seconds of the step."""
    from torch.profiler import ProfilerActivity, profile as profiler

    rows = examples(job["shape"], draw_groups(job["shape"], job["vocabulary"]))
    watch = profiler(activities=[ProfilerActivity.CPU])
    loaded: Any = AutoModelForCausalLM.from_pretrained(job["model"])
    other: Any = AutoModelForCausalLM.from_pretrained(job["model"])
    policy, reference = Bare(loaded), Bare(other.requires_grad_(False).eval())
    taken: list[float] = []

    def batches() -> Iterator[Any]:
        yield collate(rows)  # warms up
        batch = collate(rows)
        with watch:
            begun = time.process_time()
            yield batch
            taken.append(time.process_time() - begun)
        yield batch

    train(MDPO(beta=0.1), policy, reference, batches(), steps=3, options=TrainOptions(lr=1e-6), progress=False)
    seconds = dict.fromkeys(KINDS, 0.0) | {"elementwise, copies, indices": 0.0}
    for event in watch.key_averages():
        name = event.key.removeprefix("aten::").lstrip("_")
        seconds[kind_of(name)] += event.self_cpu_time_total / 1e6
    return {"cpu": taken[0], "seconds": seconds}


def kind_of(operation: str) -> str:
    """The part of a step that an operation belongs to."""
    for kind, names in KINDS.items():
        whole = kind in ("matrix products", "softmax of the head")
        if operation in names if whole else any(name in operation for name in names):
            return kind
    return "elementwise, copies, indices"


def floor(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds that the step's matrix products take at the rate of `torch.mm` at these sizes.

    6 operations a parameter and distinct token, 6 x hidden x vocabulary for each token that the loss looks at, 12 x
    layers x hidden for each pair of a token and one it attends to; a third of them for the reference's pass.
    """
    import numpy as np

    from polyturn.agents.transformer.forest import pack

    rows = collate(examples(job["shape"], draw_groups(job["shape"], job["vocabulary"])))
    forest = pack(rows.ids.numpy(), rows.mask.sum(1).numpy())
    loaded: Any = AutoModelForCausalLM.from_pretrained(job["model"])
    config = loaded.config
    body = sum(p.numel() for name, p in loaded.named_parameters() if "embed" not in name and "lm_head" not in name)
    looked_at = len(np.unique(np.asarray(forest.place)[(rows.turn_ids >= 0).numpy()]))
    distinct, seen = len(forest.ids), int((np.asarray(forest.depth) + 1).sum())
    hidden, vocabulary = config.hidden_size, config.vocab_size
    flops = {
        "body": 6.0 * body * distinct + 12.0 * config.num_hidden_layers * hidden * seen,
        "head": 6.0 * hidden * vocabulary * looked_at,
    }
    rates = {
        "body": _rate(distinct, hidden, config.intermediate_size),
        "head": _rate(min(256, looked_at), hidden, vocabulary),
    }
    trained = sum(flops[part] / rates[part] for part in flops)
    return {"cached_s": trained, "default_s": trained * 4 / 3, "gflops": {k: v / 1e9 for k, v in rates.items()}}


def _rate(rows: int, inner: int, columns: int) -> float:
    """Operations a second of `torch.mm`, the best of several."""
    a, b = torch.randn(rows, inner), torch.randn(inner, columns)
    taken = []
    for _ in range(7):
        begun = time.process_time()
        torch.mm(a, b)
        taken.append(time.process_time() - begun)
    return 2.0 * rows * inner * columns / min(taken)


def scaling(job: dict[str, Any]) -> dict[str, Any]:
    """CPU-seconds and peak of one group by one quantity, the others fixed."""
    import numpy as np

    from polyturn.envs.trajectory import Trajectory, Turn

    rng = np.random.default_rng(0)
    size, members, share = job["length"], job["members"], job["share"]
    shared = max(1, int(size * share))
    prompt = rng.integers(10, 1000, shared).astype(np.int32)
    rows = tuple(
        Trajectory(
            "Tokens-v0",
            0,
            (
                Turn("o", "a", 0.0, context_ids=prompt,
                     action_ids=rng.integers(10, 1000, max(1, size - shared)).astype(np.int32)),
            ),
            terminated=True,
        )
        for _ in range(members)
    )  # fmt: skip
    pairs = np.array([(i, i + 1) for i in range(0, members, 2)])
    return measured(Path(job["model"]), [Example(rows, pairs)], "default", job["repeats"])


def model(job: dict[str, Any]) -> dict[str, Any]:
    """Writes the model that the others load."""
    make_model(Path(job["model"]), vocabulary=job["vocabulary"], hidden=job["hidden"], layers=job["layers"])
    return {}


JOBS = {"step": step_figures, "profile": profile, "floor": floor, "scaling": scaling, "model": model}


def main() -> None:
    """Does the job of the first argument and prints its figures."""
    torch.set_num_threads(1)
    job = json.loads(sys.argv[1])
    print(json.dumps(JOBS[job["kind"]](job)))


if __name__ == "__main__":
    main()
