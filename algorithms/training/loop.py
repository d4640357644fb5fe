"""The one training loop: batches in, a trained policy out. It never asks which method it serves."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from tqdm.auto import tqdm

from polyturn.agents.transformer.snapshot import Snapshot
from polyturn.algorithms.methods.base import Hooks, Method, hooks_of
from polyturn.algorithms.training import checkpoint
from polyturn.algorithms.training.checkpoint import CheckpointError, Saveable
from polyturn.algorithms.training.data_source import DataSource, Source
from polyturn.algorithms.training.drawing import next_batch
from polyturn.algorithms.training.failures import NonFiniteError
from polyturn.algorithms.training.learner import Learner
from polyturn.algorithms.training.metrics import MetricsFile
from polyturn.algorithms.training.options import TrainOptions
from polyturn.algorithms.training.origin import check_origin, origin_of
from polyturn.algorithms.training.own_samples import check_scoring, check_staleness, temperature_of
from polyturn.algorithms.training.run_folder import Saver, alone_in, everywhere, farewell, process_has_died
from polyturn.algorithms.training.schedule import factor
from polyturn.algorithms.training.scoring import Scorable
from polyturn.algorithms.training.signals import Interrupted, Interruptions
from polyturn.envs.settings import changes, check_count, record

# Name of the file, in checkpoints, of a reference that is the policy as it was at the start.
_REFERENCE = "reference"


# After this many steps, the first of which is slow, a run says how long it will take.
_MEASURED_STEPS = 4


class Trainable(Scorable, Saveable, Protocol):
    """A policy that `train` can train: scored, and written to checkpoints.

    `polyturn.agents.transformer.policy.Policy` is one.
    """


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
    options: TrainOptions | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    evaluate: Evaluate | None = None,
    trackers: Sequence[str | GeneralTracker] = (),
    progress: bool = True,
) -> TrainResult:
    """Trains a policy in place, on one device or under `accelerate launch` on many.

    A step's loss is sum(values) / sum(count) over ALL its rows, however many micro-batches and processes they were cut
    into, so those change speed and memory but not the update. A resumed run on CPU ends with the same weights, bit for
    bit, as one that was never interrupted.

    Args:
        method: Any object with `name`, `needs` and `loss`; see `polyturn.algorithms.methods.base`.
        policy: What is trained; its `version` stays, so name the new weights before they act into a store that the old
            ones have filled (`iterate` and `warm_start` do). A warning says so where its weights are in half precision,
            which loses most updates; with float32 weights `mixed_precision="bf16"` computes in it all the same.
        reference: What log-ratios are taken to, usually `policy.copy()`. None if the method needs none, or if the
            policy's model is a peft model: then the policy as it is at the start is the reference, of which only the
            adapters are kept, in checkpoints too. For its base without adapters pass `policy.bare()`.
        batches: One step's examples (or batch) after another; see `polyturn.algorithms.training.data_source.Source`.
        steps: How many updates in all, resumed ones included.
        options: Learning rate and all other settings; default `TrainOptions()`.
        out: Folder for checkpoints and metrics.jsonl, locked while the run is in it; None keeps nothing.
        resume: Go on from the newest checkpoint in `out`, if there is one.
        evaluate: Called before the first step, every `options.evaluate_every` steps and after the last, in every
            process.
        trackers: Accelerate's trackers, by name or object.
        progress: Show a progress bar.

    Raises:
        CheckpointError: `out` cannot be written, is full, is another run's at this moment, holds another run's
            checkpoints, or one trained against another reference, or `resume` was not said.
        NonFiniteError: A loss or gradient was nan or infinite; its batch is saved.
        OutOfMemoryError: The device ran out of memory; the message says what would take less.
        Interrupted: Ctrl-C or SIGTERM.
        ValueError: Wrong arguments, or a step with nothing to learn from.
        Exception: Whatever `batches` or `evaluate` raise. With `out`, all that was learned until then is saved first.
    """
    # What is asked for, checked before any work.
    options = TrainOptions() if options is None else options
    check_count("steps", steps)
    hooks = hooks_of(method)
    _check(hooks, policy, reference)
    check_scoring(hooks, options.dropout, policy.model)
    check_staleness(hooks, getattr(batches, "staleness", 0))
    if hooks.needs.sampled:
        # Said before any draw where the source knows; rows are looked at again as they come.
        temperature_of(hooks, getattr(batches, "samplers", ()))
    _warn_of_half_precision(policy, stacklevel=3)
    settings = {"steps": steps, **options.recorded()}
    identity = {**(record(method) if hasattr(method, "__dataclass_fields__") else {}), "name": hooks.name}
    place = None if out is None else Path(out)
    options = _with_sharding(options)
    accelerator = _accelerator(options, trackers, place)
    with alone_in(place, accelerator):
        # Where an earlier run stopped.
        found = None
        if place is not None:
            saves = 20 if options.save_every is None else -(-steps // options.save_every)
            everywhere(
                accelerator,
                lambda: _prepare(place, policy, identity, saves=saves, keep=options.keep, resume=resume),
            )
            found = checkpoint.latest(place)
        started = None
        origin: dict[str, Any] = {}
        if place is not None and accelerator.is_main_process:
            origin = origin_of(policy, reference if hooks.needs.reference else None, batches)
        if hooks.needs.reference and reference is None:
            # Taken before a checkpoint's weights take the place of the policy's.
            reference = started = _snapshot(policy)
        before: dict[str, Any] = {"step": 0, "settings": settings, "sources": [None]}
        if found is not None:
            before = checkpoint.load_state(found)
            checkpoint.load_weights(found, policy)
            other: list[str] = []

            def compare() -> None:
                latest = origin_of(policy, None, ())["policy"]
                other.extend(check_origin(found, before.get("origin", {}), origin, latest=latest))

            everywhere(accelerator, compare)
            _warn_of_changes(before["settings"], settings, other)
            origin = before.get("origin", origin)
            if started is not None and (kept := checkpoint.load_tensors(found, _REFERENCE)) is not None:
                started.load(kept)
        start = int(before["step"])
        log = MetricsFile(
            place / "metrics.jsonl" if place and accelerator.is_main_process else None, upto=start if found else None
        )
        if start >= steps:
            return TrainResult(log.records, start, found / "model" if found else None)
        # The source, the optimizer and the trackers, each where it was.
        sources = before["sources"]
        data = DataSource(batches, start=start, state=sources[accelerator.process_index % len(sources)])
        failures = place / "nonfinite" if place else Path(tempfile.gettempdir()) / "polyturn-nonfinite"
        learner = Learner(hooks, policy, reference, accelerator, options, place=place, failures=failures)
        if found is not None:
            checkpoint.load_optimizer(found, learner.plain_optimizer)
        accelerator.init_trackers("polyturn", config={k: v for k, v in settings.items() if v is not None})
        saver = Saver(
            place,
            policy,
            learner,
            accelerator,
            options,
            {"method": identity, "settings": settings, "origin": origin},
            {} if started is None else {_REFERENCE: started.tensors()},
        )

        def note(entry: dict[str, Any]) -> None:
            log.append(entry)
            accelerator.log({name: value for name, value in entry.items() if name != "step"}, step=entry["step"])

        def evaluated(done: int) -> dict[str, float]:
            due = options.evaluate_every is not None and done % options.evaluate_every == 0
            if evaluate is None or not (due or done in (0, steps)):
                return {}
            return {f"eval/{name}": float(value) for name, value in evaluate(policy, done).items()}

        # `position` is the source's as of the last whole step: one that fails may have moved it on already.
        done, position = start, data.state
        # None: only where standard error is a terminal.
        hidden = None if progress and accelerator.is_main_process else True
        bar = tqdm(total=steps, initial=start, disable=hidden, desc=hooks.name)
        try:
            with Interruptions() as interruptions, bar:
                # A run that stopped because its evaluation failed has a checkpoint without one.
                known = any(key.startswith("eval/") for entry in log.records if entry["step"] == start for key in entry)
                if not any(gather_object([known])) and (first := evaluated(start)):
                    note({"step": start, **first})
                while done < steps:
                    # One step: draw, learn, evaluate, record.
                    begun = time.perf_counter()
                    batch = next_batch(data, hooks, options.max_length)
                    if batch is None:
                        warnings.warn(f"batches ended after {done} of {steps} steps", stacklevel=2)
                        break
                    rate = factor(done, steps=steps, warmup=options.warmup, schedule=options.schedule)
                    numbers = learner.step(batch, done, lr_factor=rate, position=data.state)
                    done, position = done + 1, data.state
                    entry = {"step": done, **numbers, **data.metrics, "seconds": time.perf_counter() - begun}
                    try:
                        entry |= evaluated(done)
                    finally:
                        note(entry)
                    bar.update()
                    if done - start == _MEASURED_STEPS and not bar.disable and (left := _forecast(bar, steps - done)):
                        bar.write(left)
                    bar.set_postfix({name: f"{numbers[name]:.3g}" for name in _shown(numbers)})
                    # Checkpoints: when due, and when asked to stop.
                    if any(gather_object([interruptions.received])):
                        raise Interrupted(farewell(saver.save(done, position), done, steps))
                    if done < steps and saver.due(done):
                        saver.save(done, position)
                # Still under the guard: Ctrl-C while the last checkpoint is written must not cost it.
                path = saver.save(done, position)
                if interruptions.received:
                    raise Interrupted(farewell(path, done, steps))
        except Exception as error:
            # A step that fails changes nothing, so what was learned before is worth keeping. If only one
            # process fails, it cannot save: the others are waiting elsewhere.
            together = accelerator.num_processes == 1 or isinstance(error, NonFiniteError)
            if done > start and together and not isinstance(error, CheckpointError):
                with contextlib.suppress(CheckpointError):
                    error.add_note(farewell(saver.save(done, position), done, steps))
            elif done > start and process_has_died(error):
                with Interruptions():  # the launcher stops those that are left
                    error.add_note(saver.rescue(done, steps))
            raise
        finally:
            learner.close()
            for tracker in accelerator.trackers:
                tracker.finish()
        return TrainResult(log.records, done, path)


def _check(method: Hooks, policy: Trainable, reference: Scorable | None) -> None:
    if not any(parameter.requires_grad for parameter in policy.model.parameters()):
        raise ValueError(
            "expected a policy to train, got one whose parameters are all frozen (policy.copy() is frozen)"
        )
    if reference is not None and any(module is reference.model for module in _trained(policy.model)):
        raise ValueError("expected a reference that stays as it is, got the policy itself; pass policy.copy()")
    sizes = [_vocabulary(each.model) for each in (policy, reference) if each is not None]
    if method.needs.full_kl is not None and len(sizes) == 2 and None not in sizes and sizes[0] != sizes[1]:
        raise ValueError(
            f"{method.name} compares whole predictions: expected two models over one vocabulary, got "
            f"{sizes[0]} and {sizes[1]} tokens; take models that share a tokenizer"
        )
    adapters = callable(getattr(policy.model, "disable_adapter", None))
    if method.needs.reference and reference is None and not adapters:
        raise ValueError(
            f"{method.name} needs a reference, got None; pass policy.copy(), or a policy whose model is a "
            "peft model, which as it is at the start is then the reference"
        )


def _snapshot(policy: Trainable) -> Snapshot:
    """The policy as it is, without networks that are trained with it."""
    acting: Any = getattr(policy, "policy", policy)
    return Snapshot(acting.model, acting.scorer)


def _warn_of_half_precision(policy: Trainable, *, stacklevel: int) -> None:
    """Says so where most updates would be rounded away: in bfloat16 numbers lie 1/256 apart, relative to their size."""
    trained = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    if any(parameter.dtype == torch.float16 for parameter in trained):
        raise ValueError(
            "expected trained weights in float32 (or bfloat16), got float16, in which Adam's small numbers are 0 and "
            "its first update is not finite; load the policy with dtype=torch.float32 and train with "
            'mixed_precision="bf16", or train adapters, which peft keeps in float32'
        )
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


def _with_sharding(options: TrainOptions) -> TrainOptions:
    """The options, with what `accelerate launch` says about sharding where they say nothing.

    Raises:
        ValueError: Settings of the launcher, or an optimizer, that sharding does not serve here.
    """
    said = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")
    wanted = said if options.fully_sharded is None else options.fully_sharded
    if wanted and int(os.environ.get("WORLD_SIZE") or 1) == 1:
        wanted = False
    if wanted and os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() in ("1", "true"):
        raise ValueError(
            "expected sharded weights that stay on their devices, got fsdp_offload_params from `accelerate launch`; "
            "switch it off (`accelerate config`), or train adapters (LoRA) to fit"
        )
    if wanted and not callable(options.optimizer) and options.optimizer != "adamw":
        raise ValueError(
            f'optimizer: expected "adamw" with fully sharded weights, got {options.optimizer!r}, whose state cannot be '
            'put together for a checkpoint; pass "adamw", whose state is cut over the processes too'
        )
    return options.with_changes(fully_sharded=wanted)


def _accelerator(options: TrainOptions, trackers: Sequence[str | GeneralTracker], place: Path | None) -> Accelerator:
    # Accelerate keeps the first precision for the whole process, refuses another, and gives it to runs that name none;
    # runs here are independent, so one that names none has what the launcher says.
    precision = options.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    with _without("ACCELERATE_USE_FSDP"):  # weights are cut by FSDP2 itself; Accelerate launches, places and gathers
        accelerator = Accelerator(
            mixed_precision=precision,
            cpu=options.cpu,
            log_with=list(trackers) or None,
            project_dir=None if place is None else str(place),
            # Buffers never change in training, and exchanging them at every forward pass would tie processes together.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    promised = int(os.environ.get("WORLD_SIZE") or 1)
    if promised > accelerator.num_processes:
        raise ValueError(
            f"expected one run of {promised} processes, as WORLD_SIZE says, but Accelerate sees "
            f"{accelerator.num_processes}: each process would train a separate run; start them with `accelerate "
            "launch` or torchrun (on a CPU with ACCELERATE_USE_CPU=true), or unset WORLD_SIZE"
        )
    known = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in known:
        raise ValueError(
            f"expected one device, data parallelism (DDP) or sharding (FSDP), got {accelerator.distributed_type}; "
            "run `accelerate config` again, or train adapters (LoRA) to fit one device"
        )
    return accelerator


@contextlib.contextmanager
def _without(name: str) -> Iterator[None]:
    """An environment variable is not there for a while."""
    kept = os.environ.pop(name, None)
    try:
        yield
    finally:
        if kept is not None:
            os.environ[name] = kept


def _warn_of_changes(then: Mapping[str, Any], now: Mapping[str, Any], other: Sequence[str]) -> None:
    if changed := [*changes(then, now), *other]:
        warnings.warn(f"resuming with other settings: {'; '.join(changed)}", ResumeWarning, stacklevel=3)


def _forecast(bar: Any, left: int) -> str:
    """How long the remaining steps are going to take at the present rate; "" where it is less than a minute."""
    rate = bar.format_dict["rate"] or (bar.n - bar.initial) / max(bar.format_dict["elapsed"], 1e-9)
    seconds = left / rate
    return "" if seconds < 60 else f"{bar.desc}: about {seconds / 60:.0f} minutes for {left} more steps"


def _shown(numbers: Mapping[str, float]) -> list[str]:
    """The numbers that are shown at the progress bar: the loss, and the first three of the method's own."""
    own = [name for name in numbers if name not in ("loss", "grad_norm", "lr", "tokens", "distinct_tokens")]
    return ["loss", *own[:3]]
