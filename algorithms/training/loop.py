"""The one training loop: batches in, a trained policy out. It never asks which method it serves."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from tqdm.auto import tqdm

from polyturn.algorithms.batch import Batch, collate, drop_long
from polyturn.algorithms.methods import base as methods
from polyturn.algorithms.methods.base import Method
from polyturn.algorithms.pairing import Example
from polyturn.algorithms.training import checkpoint
from polyturn.algorithms.training.checkpoint import CheckpointError, Saveable
from polyturn.algorithms.training.data_source import AnnotatedGroup, DataSource, Source
from polyturn.algorithms.training.learner import Learner, NonFiniteError, OptimizerFactory, Scorable
from polyturn.algorithms.training.metrics import MetricsFile
from polyturn.algorithms.training.schedule import Schedule, factor
from polyturn.algorithms.training.signals import Interrupted, Interruptions

# A source of fresh groups is asked this often for something to learn from before training gives up.
_EMPTY_DRAWS = 16


class Trainable(Scorable, Saveable, Protocol):
    """A policy that `train` can train: scored, and written to checkpoints. `polyturn.agents.transformer.policy.Policy`
    is one."""


Evaluate = Callable[[Any, int], Mapping[str, float]]
"""From the policy and the number of steps done to named numbers."""


class ResumeWarning(UserWarning):
    """A run is resumed with other settings than it was started with."""


@dataclass(frozen=True)
class TrainResult:
    """What training leaves.

    Attributes:
        history: One record a step: step (from 1), loss, grad_norm, lr, tokens, seconds, the method's and the source's
            metrics, and "eval/..." where it was evaluated (step 0 is before training). A resumed run's includes what
            came before.
        steps: Steps done.
        path: Folder of the trained policy, for `from_pretrained`; None without `out`.
    """

    history: list[dict[str, Any]]
    steps: int
    path: Path | None


def train(
    method: Method,
    policy: Trainable,
    reference: Scorable | None,
    batches: Source,
    *,
    steps: int,
    lr: float = 1e-6,
    weight_decay: float = 0.0,
    warmup: int = 0,
    schedule: Schedule = "constant",
    clip: float | None = 1.0,
    optimizer: OptimizerFactory = torch.optim.AdamW,
    accumulate: int = 1,
    tokens_per_micro_batch: int | None = 8192,
    max_length: int | None = None,
    mixed_precision: Literal["no", "bf16"] | None = None,
    gradient_checkpointing: bool = False,
    dropout: bool = False,
    cache_reference: bool = False,
    sharded: bool = True,
    out: str | Path | None = None,
    save_every: int | None = None,
    keep: int = 2,
    resume: bool = False,
    evaluate: Evaluate | None = None,
    evaluate_every: int | None = None,
    trackers: Sequence[str | GeneralTracker] = (),
    progress: bool = True,
    seed: int = 0,
    cpu: bool = False,
) -> TrainResult:
    """Trains a policy in place, on one device or under `accelerate launch` on many.

    A step's loss is sum(values) / sum(count) over ALL its rows, whatever the micro-batches and processes they were cut
    into, so those change speed and memory but not the update. A resumed run on CPU ends with the same weights, bit for
    bit, as one that was never interrupted.

    Args:
        method: Any object with `loss`; see `polyturn.algorithms.methods`.
        policy: What is trained; its `version` stays, so name the new weights before they act into a store that the old
            ones have filled (`iterate` and `warm_start` do). A warning says so where its weights are in half precision,
            which loses most updates; with float32 weights `mixed_precision="bf16"` computes in it all the same.
        reference: What log-ratios are taken to, usually `policy.copy()`. None if the method needs none, or if the
            policy's model is a peft model: then its base, with the adapter switched off, is the reference.
        batches: One step's examples (or batch) after another; see `polyturn.algorithms.training.data_source.Source`.
        steps: How many updates in all, resumed ones included.
        lr: Learning rate.
        weight_decay: Of matrices; biases and norms have none.
        warmup: Steps over which the learning rate rises.
        schedule: "constant", "linear" or "cosine" after the warmup.
        clip: Largest gradient norm, None for no limit.
        optimizer: From parameter groups to an optimizer, for example `functools.partial(torch.optim.AdamW, betas=...)`.
        accumulate: Micro-batches a step, of whole groups.
        tokens_per_micro_batch: Largest padded size of a micro-batch; more are made where needed. None: no limit.
        max_length: Trajectories of more tokens are left out with a warning that counts them; None takes all. None is
            ever cut. Needs examples, not ready batches.
        mixed_precision: "bf16", "no", or None for what `accelerate launch` says.
        gradient_checkpointing: Compute activations twice and keep few.
        dropout: Leave dropout on; off by default, because a policy must score as it samples.
        cache_reference: Keep reference log-probabilities, for data that repeats.
        sharded: With several processes: True if all see the same `batches` and each takes its part of every step;
            False if each iterates over batches of its own.
        out: Folder for checkpoints and metrics.jsonl; None keeps nothing.
        save_every: Steps between checkpoints; None saves at the end alone.
        keep: Checkpoints that stay.
        resume: Go on from the newest checkpoint in `out`, if there is one.
        evaluate: Called before the first step, every `evaluate_every` steps and after the last, in every process.
        evaluate_every: Steps between evaluations.
        trackers: Accelerate's trackers, by name or object.
        progress: Show a progress bar.
        seed: Of dropout. Data has its own.
        cpu: Stay on the CPU even where there is an accelerator.

    Raises:
        CheckpointError: `out` cannot be written, is full, holds another run's checkpoints, or `resume` was not said.
        NonFiniteError: A loss or gradient was nan or infinite; its batch is saved.
        Interrupted: Ctrl-C or SIGTERM.
        ValueError: Wrong arguments, or a step with nothing to learn from.
        Exception: Whatever `batches` or `evaluate` raise. With `out`, all that was learned until then is saved first.
    """
    settings: dict[str, Any] = {
        "steps": steps, "lr": lr, "weight_decay": weight_decay, "warmup": warmup, "schedule": schedule, "clip": clip,
        "accumulate": accumulate, "tokens_per_micro_batch": tokens_per_micro_batch, "max_length": max_length,
        "mixed_precision": mixed_precision, "dropout": dropout, "seed": seed,
    }  # fmt: skip
    _check(method, policy, reference)
    counts = {
        "steps": steps, "accumulate": accumulate, "keep": keep, "save_every": save_every,
        "evaluate_every": evaluate_every, "tokens_per_micro_batch": tokens_per_micro_batch, "max_length": max_length,
    }  # fmt: skip
    _check_numbers(counts, lr=lr, weight_decay=weight_decay, warmup=warmup, clip=clip)
    _warn_of_half_precision(policy, stacklevel=3)
    factor(0, steps=steps, warmup=warmup, schedule=schedule)
    place = None if out is None else Path(out)
    accelerator = _accelerator(mixed_precision, cpu, trackers, place)
    identity = _describe(method)
    start, found = 0, None
    before: dict[str, Any] = {"settings": settings, "sources": [None]}
    if place is not None:
        saves = -(-steps // (save_every or steps))
        _everywhere(accelerator, lambda: _prepare(place, policy, identity, saves=saves, keep=keep, resume=resume))
        found = checkpoint.latest(place)
    if found is not None:
        before = checkpoint.load_state(found)
        start = int(before["step"])
        _warn_of_changes(before["settings"], settings)
        checkpoint.load_weights(found, policy)
    log = MetricsFile(
        place / "metrics.jsonl" if place and accelerator.is_main_process else None, upto=start if found else None
    )
    if start >= steps:
        return TrainResult(log.records, start, found / "model" if found else None)
    data_source = DataSource(
        batches, start=start, state=before["sources"][accelerator.process_index % len(before["sources"])]
    )
    learner = Learner(
        method, policy, reference, accelerator,
        optimizer=optimizer, lr=lr, weight_decay=weight_decay, clip=clip, accumulate=accumulate,
        tokens=tokens_per_micro_batch, dropout=dropout, gradient_checkpointing=gradient_checkpointing,
        cache_reference=cache_reference, sharded=sharded, seed=seed,
        failures=place / "nonfinite" if place else Path(tempfile.gettempdir()) / "polyturn-nonfinite",
    )  # fmt: skip
    if found is not None:
        checkpoint.load_optimizer(found, learner.plain_optimizer)
    accelerator.init_trackers("polyturn", config={k: v for k, v in settings.items() if v is not None})

    def save(done: int, position: Any) -> Path | None:
        if place is None:
            return None
        state = {"method": identity, "settings": settings, "sources": gather_object([position])}
        tuned = learner.plain_optimizer
        _everywhere(
            accelerator,
            lambda: checkpoint.save(place, done, policy=policy, optimizer=tuned, state=state, keep=keep),
        )
        return place / "checkpoints" / checkpoint.name_of_step(done) / "model"

    def note(record: dict[str, Any]) -> None:
        log.append(record)
        accelerator.log({name: value for name, value in record.items() if name != "step"}, step=record["step"])

    def evaluated(done: int) -> dict[str, float]:
        due = evaluate_every is not None and done % evaluate_every == 0
        if evaluate is None or not (due or done in (0, steps)):
            return {}
        return {f"eval/{name}": float(value) for name, value in evaluate(policy, done).items()}

    # `position` is the source's as of the last whole step: one that fails may have moved it on already.
    done, position = start, data_source.state
    bar = tqdm(
        total=steps, initial=start, disable=not (progress and accelerator.is_main_process), desc=identity["name"]
    )
    try:
        with Interruptions() as interruptions, bar:
            # A run that stopped because its evaluation failed has a checkpoint without one.
            known = any(key.startswith("eval/") for record in log.records if record["step"] == start for key in record)
            if not any(gather_object([known])) and (first := evaluated(start)):
                note({"step": start, **first})
            while done < steps:
                begun = time.perf_counter()
                batch = _next_batch(data_source, method, max_length)
                if batch is None:
                    warnings.warn(f"batches ended after {done} of {steps} steps", stacklevel=2)
                    break
                rate = factor(done, steps=steps, warmup=warmup, schedule=schedule)
                numbers = learner.step(batch, done, lr_factor=rate)
                done, position = done + 1, data_source.state
                record = {"step": done, **numbers, **data_source.metrics, "seconds": time.perf_counter() - begun}
                try:
                    record |= evaluated(done)
                finally:
                    note(record)
                bar.update()
                bar.set_postfix({name: f"{numbers[name]:.3g}" for name in list(numbers)[:1] + list(numbers)[4:7]})
                if any(gather_object([interruptions.received])):
                    raise Interrupted(_farewell(save(done, position), done, steps))
                if save_every is not None and done % save_every == 0 and done < steps:
                    save(done, position)
        path = save(done, position)
    except Exception as error:
        # A step that fails changes nothing, so what was learned before is worth keeping. One process that fails alone
        # cannot save: the others are waiting elsewhere.
        together = accelerator.num_processes == 1 or isinstance(error, NonFiniteError)
        if done > start and together and not isinstance(error, CheckpointError):
            with contextlib.suppress(CheckpointError):
                error.add_note(_farewell(save(done, position), done, steps))
        raise
    finally:
        learner.close()
        for tracker in accelerator.trackers:
            tracker.finish()
    return TrainResult(log.records, done, path)


def _check_numbers(
    counts: Mapping[str, int | None], *, lr: float, weight_decay: float, warmup: int, clip: float | None
) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    for name, rate in (("lr", lr), ("weight_decay", weight_decay), ("warmup", warmup)):
        methods.check_range(name, rate, 0)
    if clip is not None:
        methods.check_range("clip", clip, 0, above=True)


def _check(method: Method, policy: Trainable, reference: Scorable | None) -> None:
    if isinstance(method, type):
        raise ValueError(f"expected a method, got the class {method.__name__}; write {method.__name__}()")
    if not callable(getattr(method, "loss", None)):
        raise ValueError(f"expected a method, an object with loss(logps, reference, batch), got {method!r}")
    if not any(parameter.requires_grad for parameter in policy.model.parameters()):
        raise ValueError(
            "expected a policy to train, got one whose parameters are all frozen (policy.copy() is frozen)"
        )
    if reference is not None and any(module is reference.model for module in _trained(policy.model)):
        raise ValueError("expected a reference that stays as it is, got the policy itself; pass policy.copy()")
    sizes = [_vocabulary(each.model) for each in (policy, reference) if each is not None]
    if methods.full_kl(method) is not None and len(sizes) == 2 and None not in sizes and sizes[0] != sizes[1]:
        raise ValueError(
            f"{methods.name_of(method)} compares whole predictions: expected two models over one vocabulary, got "
            f"{sizes[0]} and {sizes[1]} tokens; take models that share a tokenizer"
        )
    adapters = callable(getattr(policy.model, "disable_adapter", None))
    if methods.needs_reference(method) and reference is None and not adapters:
        raise ValueError(
            f"{methods.name_of(method)} needs a reference, got None; pass policy.copy(), or a policy whose model is a "
            "peft model, whose base is then the reference"
        )


def _warn_of_half_precision(policy: Trainable, *, stacklevel: int) -> None:
    """Says so where most updates would be rounded away: in bfloat16 numbers lie 1/256 apart, relative to their size."""
    trained = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    half = {str(p.dtype).removeprefix("torch.") for p in trained if p.dtype in (torch.bfloat16, torch.float16)}
    if half:
        warnings.warn(
            f"the trained weights are {' and '.join(sorted(half))}: what is much smaller than a weight rounds away, "
            "at the learning rates of preference methods nearly every update; load the policy with dtype=torch.float32 "
            'and train with mixed_precision="bf16", or train adapters, which peft keeps in float32',
            stacklevel=stacklevel + 1,
        )


def _vocabulary(model: Any) -> int | None:
    """Tokens that a model predicts over, where its configuration says so."""
    size: int | None = getattr(getattr(model, "config", None), "vocab_size", None)
    return size


def _trained(model: Any) -> list[Any]:
    """A model and its parts that hold something to train."""
    return [module for module in model.modules() if any(p.requires_grad for p in module.parameters())]


def _prepare(
    place: Path, policy: Trainable, identity: Mapping[str, Any], *, saves: int, keep: int, resume: bool
) -> None:
    found = checkpoint.latest(place)
    if found is not None and not resume:
        raise CheckpointError(
            f"expected an empty folder, got {str(place)!r}, which holds {found.name} of an earlier run; pass "
            "resume=True to go on with it, or another out"
        )
    if found is not None:
        checkpoint.check_same_run(found, policy, identity)
    checkpoint.prepare(place, size=checkpoint.size_of(policy.model), saves=saves, keep=keep)


def _accelerator(
    mixed_precision: str | None, cpu: bool, trackers: Sequence[str | GeneralTracker], place: Path | None
) -> Accelerator:
    # Accelerate keeps the first precision for the whole process and refuses another; runs here are independent.
    if mixed_precision and AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        cpu=cpu,
        log_with=list(trackers) or None,
        project_dir=None if place is None else str(place),
        # Buffers never change in training, and exchanging them at every forward pass would tie processes together.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    known = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in known:
        raise ValueError(
            f"expected one device or data parallelism (DDP), got {accelerator.distributed_type}; "
            "run `accelerate config` again, or train adapters (LoRA) to fit one device"
        )
    return accelerator


def _everywhere(accelerator: Accelerator, action: Callable[[], object]) -> None:
    """Runs `action` in the main process alone; if it fails, all processes stop with its message, none waits forever."""
    failure: CheckpointError | None = None
    if accelerator.is_main_process:
        try:
            action()
        except CheckpointError as error:
            failure = error
    messages = [text for text in gather_object([None if failure is None else str(failure)]) if text]
    if failure is not None:
        raise failure
    if messages:
        raise CheckpointError(messages[0])


def _describe(method: Method) -> dict[str, Any]:
    """The method's name and settings as JSON values, to recognise it by."""
    names: list[str] = [f.name for f in dataclasses.fields(method)] if dataclasses.is_dataclass(method) else []
    values = {name: getattr(method, name) for name in names}
    plain = {name: getattr(v, "__qualname__", v if _is_json(v) else repr(v)) for name, v in values.items()}
    return {**plain, "name": methods.name_of(method)}


def _is_json(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _warn_of_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [f"{name} was {then.get(name)!r}, is {now[name]!r}" for name in now if then.get(name) != now[name]]
    if changed:
        warnings.warn(f"resuming with other settings: {'; '.join(changed)}", ResumeWarning, stacklevel=3)


def _next_batch(data_source: DataSource, method: Method, max_length: int | None) -> Batch | None:
    """The next step's batch; None where the source has ended.

    Fresh groups may hold nothing to compare (all right, all wrong); then the source is asked again.
    """
    for _ in range(_EMPTY_DRAWS):
        item: Any = data_source.next()
        if item is None:
            return None
        if isinstance(item, Batch):
            return _checked(item, method, max_length)
        items = list(item) if isinstance(item, Iterable) else []
        strange = [one for one in items if not isinstance(one, (Example, AnnotatedGroup))]
        if not isinstance(item, Iterable):
            strange = [item]
        if strange:
            raise ValueError(
                "batches: expected step after step, each a Batch or a list of Examples or AnnotatedGroups, got a step "
                f"that is or holds one {type(strange[0]).__name__}; minibatches(examples, size, seed=0) makes steps of "
                "examples, method.examples(group, preference, rng) an example of a group"
            )
        examples = [one if isinstance(one, Example) else _taught(method, one) for one in items]
        found = [example for example in examples if example is not None]
        kept = found if max_length is None else drop_long(found, max_length)
        mismatched = methods.wants_mismatched(method)
        fresh = not items or any(isinstance(one, AnnotatedGroup) for one in items)
        # Of fresh groups a single one may be left, which has no other prompt to be mismatched with.
        lonely = fresh and mismatched and len({example.trajectories[0].start for example in kept}) < 2
        if kept and not lonely:
            return collate(kept, mismatched=mismatched)
        if (found and not kept) or not fresh:
            raise ValueError(f"expected examples to learn from, got none of at most {max_length} tokens")
    raise ValueError(
        f"{methods.name_of(method)}: expected groups with something to learn from, got none in {_EMPTY_DRAWS} draws; "
        "use larger groups, a higher temperature or other tasks"
    )


def _taught(method: Method, annotated: AnnotatedGroup) -> Example | None:
    examples = getattr(method, "examples", None)
    if examples is None:
        raise ValueError(
            f"{methods.name_of(method)}: expected a method with examples(group, preference, rng) to learn from "
            "annotated groups, got one without; give it batches or examples"
        )
    rng = np.random.default_rng(annotated.seed)
    example: Example | None = examples(annotated.group, annotated.preference, rng)
    return example


def _checked(batch: Batch, method: Method, max_length: int | None) -> Batch:
    if max_length is not None:
        raise ValueError("max_length: expected examples to choose from, got a ready batch; use drop_long before")
    if methods.wants_mismatched(method) and not bool(batch.mismatched.any()):
        raise ValueError(f"{methods.name_of(method)} needs collate(examples, mismatched=True), got a batch without")
    return batch


def _farewell(path: Path | None, done: int, steps: int) -> str:
    if path is None:
        return f"stopped after {done} of {steps} steps; nothing is saved, because no out was given"
    return f"stopped after {done} of {steps} steps and saved in {path.parent}; go on with the same call and resume=True"
