"""The settings of a training run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from polyturn.algorithms.training.kernels import Kernels
from polyturn.algorithms.training.optimizers import OPTIMIZERS
from polyturn.algorithms.training.schedule import Schedule
from polyturn.envs.settings import check_choice, check_count, check_flag, check_range, record

OptimizerFactory = Callable[[list[dict[str, Any]]], Any]
"""Makes a torch optimizer of parameter groups, each with "params", "lr" and "weight_decay"."""
Precision = Literal["no", "bf16"]

# These change how a run is carried out or watched, not what it computes.
_NOT_RECORDED = (
    "keep", "save_every", "evaluate_every", "gradient_checkpointing", "cache_reference", "cpu", "sharded",
    "fully_sharded",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How a policy is trained; checked when made, written into a run's record, compared when a run is resumed.

    Attributes:
        lr: Learning rate.
        weight_decay: Weight decay of matrices; biases and norms have none.
        warmup: Steps over which the learning rate rises.
        schedule: What the learning rate does after the warmup: "constant", "linear" or "cosine".
        clip: Largest gradient norm; None for no limit.
        optimizer: "adamw"; "adamw_8bit", "adamw_4bit", "paged_adamw" or "paged_adamw_8bit", which take less memory and
            need the extra "quantized"; or a function from parameter groups to an optimizer, for example
            `functools.partial(torch.optim.AdamW, betas=...)`.
        accumulate: Micro-batches a step, of whole groups.
        tokens_per_micro_batch: Largest padded size of a micro-batch; more are made where needed. None for no limit.
        max_length: Trajectories of more tokens are left out, and a warning counts them; None takes all. No trajectory
            is ever cut. Needs examples, not ready batches.
        mixed_precision: Precision of the computation, "no" or "bf16"; None for what `accelerate launch` says.
        gradient_checkpointing: Compute activations twice and keep few.
        kernels: What runs norms and feed-forward blocks of policy and reference: "eager", the model's own; "compiled",
            `torch.compile`; "liger", Triton kernels on a GPU (extra "liger"). Equal to rounding, and probed to be.
        dropout: Leave dropout on; off by default, because a policy must score as it samples.
        cache_reference: Keep reference log-probabilities, for data that repeats.
        sharded: With several processes: True if all see the same batches and each takes its part of every step; False
            if each iterates over its own batches.
        fully_sharded: Cut weights, gradients and the optimizer's state over all processes (FSDP2), the reference's
            weights too, instead of keeping them whole in each. None for what `accelerate launch` says; one process has
            nothing to cut.
        save_every: Steps between checkpoints; None saves at the end only.
        keep: Checkpoints that stay.
        evaluate_every: Steps between evaluations; None evaluates before the first step and after the last only.
        seed: Seed of dropout. Data has its own.
        cpu: Stay on the CPU even where there is an accelerator.

    Raises:
        ValueError: A value out of range; the message names the field.
    """

    lr: float = 1e-6
    weight_decay: float = 0.0
    warmup: int = 0
    schedule: Schedule = "constant"
    clip: float | None = 1.0
    optimizer: str | OptimizerFactory = "adamw"
    accumulate: int = 1
    tokens_per_micro_batch: int | None = 8192
    max_length: int | None = None
    mixed_precision: Precision | None = None
    gradient_checkpointing: bool = False
    kernels: Kernels = "eager"
    dropout: bool = False
    cache_reference: bool = False
    sharded: bool = True
    fully_sharded: bool | None = None
    save_every: int | None = None
    keep: int = 2
    evaluate_every: int | None = None
    seed: int = 0
    cpu: bool = False

    def __post_init__(self) -> None:
        check_range("lr", self.lr, 0)
        check_range("weight_decay", self.weight_decay, 0)
        check_count("warmup", self.warmup, 0)
        check_choice("schedule", self.schedule, get_args(Schedule))
        if self.clip is not None:
            check_range("clip", self.clip, 0, above=True)
        if not callable(self.optimizer):
            check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_count("accumulate", self.accumulate)
        for name in ("tokens_per_micro_batch", "max_length", "save_every", "evaluate_every"):
            check_count(name, getattr(self, name), optional=True)
        if self.mixed_precision is not None:
            check_choice("mixed_precision", self.mixed_precision, get_args(Precision))
        check_choice("kernels", self.kernels, get_args(Kernels))
        check_count("keep", self.keep)
        check_count("seed", self.seed, 0)
        for name in ("gradient_checkpointing", "dropout", "cache_reference", "sharded", "cpu"):
            check_flag(name, getattr(self, name))
        if self.fully_sharded is not None:
            check_flag("fully_sharded", self.fully_sharded)

    def with_changes(self, **changed: Any) -> TrainOptions:
        """The same options with some changed, and checked again."""
        return replace(self, **changed)

    def recorded(self) -> dict[str, Any]:
        """What decides the weights that come out, as JSON values."""
        return record(self, without=_NOT_RECORDED)
