"""What a run writes into its folder, and that no other run does at the same time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from filelock import FileLock, Timeout
from torch import Tensor

from polyturn.algorithms.training import checkpoint
from polyturn.algorithms.training.checkpoint import CheckpointError, Saveable
from polyturn.algorithms.training.learner import Learner
from polyturn.algorithms.training.options import TrainOptions

# Without `save_every`, checkpoints take at most this share of the time, and none is written more often than this.
_SAVING_SHARE, _SAVING_PAUSE_S = 0.05, 60.0


class Saver:
    """Writes a run's checkpoints, and says when one is due."""

    def __init__(
        self,
        place: Path | None,
        policy: Saveable,
        learner: Learner,
        accelerator: Accelerator,
        options: TrainOptions,
        state: Mapping[str, Any],
        tensors: Mapping[str, Mapping[str, Tensor]],
    ) -> None:
        self._place, self._policy, self._learner, self._accelerator = place, policy, learner, accelerator
        self._options, self._state, self._tensors = options, state, tensors
        self._last, self._took = time.monotonic(), 0.0

    def due(self, done: int) -> bool:
        """Whether to save after `done` steps; the clock decides where `save_every` does not, never what is computed."""
        if self._place is None:
            return False
        if self._options.save_every is not None:
            return done % self._options.save_every == 0
        waited = time.monotonic() - self._last
        now = waited >= max(_SAVING_PAUSE_S, self._took / _SAVING_SHARE)
        return bool(gather_object([now])[0])

    def save(self, done: int, position: Any) -> Path | None:
        """Writes a checkpoint; None where nothing is kept."""
        if self._place is None:
            return None
        begun = time.monotonic()
        place, state = self._place, {**self._state, "sources": gather_object([position])}
        policy, keep = self._policy, self._options.keep
        tuned, tuning = type(self._learner.plain_optimizer).__name__, self._learner.optimizer_state()
        everywhere(
            self._accelerator,
            lambda: checkpoint.save(
                place,
                done,
                policy=policy,
                optimizer=tuned,
                optimizer_state=tuning,
                state=state,
                keep=keep,
                tensors=self._tensors,
            ),
        )
        self._last = time.monotonic()
        self._took = self._last - begun
        return place / "checkpoints" / checkpoint.name_of_step(done) / "model"

    def rescue(self, done: int, steps: int) -> str:
        """Saves after another process has died, without the others; returns what to say.

        Every process has the whole of what was learned, unless it was cut over them. The main process writes it, or the
        first that finds the run's folder free.
        """
        died = f"another process died after {done} of {steps} steps"
        if self._place is None:
            return f"{died}; nothing is saved, because no out was given"
        if self._learner.sharded:
            kept = checkpoint.checkpoints(self._place)
            last = f"the last checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet (see save_every)"
            return f"{died}, and with it a part of the optimizer's state; {last}; go on from there with resume=True"
        folder = self._place / "checkpoints" / checkpoint.name_of_step(done)
        own = contextlib.nullcontext() if self._accelerator.is_main_process else FileLock(self._place / ".lock")
        try:
            with own:
                if not self._accelerator.is_main_process:
                    # transformers writes models in a group's first process only, which is gone.
                    torch.distributed.destroy_process_group()
                checkpoint.save(
                    self._place,
                    done,
                    policy=self._policy,
                    optimizer=type(self._learner.plain_optimizer).__name__,
                    optimizer_state=self._learner.optimizer_state(),
                    state={**self._state, "sources": self._learner.positions},
                    keep=self._options.keep,
                    tensors=self._tensors,
                )
        except CheckpointError as error:
            return f"{died}, and what was learned could not be saved: {error}"
        return f"{died}; what was learned is saved in {folder}; go on with the same call and resume=True"


def process_has_died(error: Exception) -> bool:
    """Whether an exchange between processes failed, as it does when one of them is gone."""
    said = str(error)
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(word in said for word in ("gloo", "NCCL", "ProcessGroup"))
    )


@contextlib.contextmanager
def alone_in(place: Path | None, accelerator: Accelerator) -> Iterator[None]:
    """Keeps every other run out of the folder; two in one would delete each other's checkpoints."""
    if place is None:
        yield
        return
    lock = FileLock(place / ".lock")

    def take() -> None:
        try:
            place.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise CheckpointError(
                f"expected a folder of this run's own, got {str(place)!r}, in which another run is training; wait for "
                "it, stop it, or pass another out"
            ) from None
        except OSError as error:
            raise CheckpointError(
                f"expected a folder to write checkpoints to, got {str(place)!r}: {error.strerror or error}; pass "
                "another out"
            ) from error

    everywhere(accelerator, take)
    try:
        yield
    finally:
        lock.release()


def everywhere(accelerator: Accelerator, action: Callable[[], object]) -> None:
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


def farewell(path: Path | None, done: int, steps: int) -> str:
    if path is None:
        return f"stopped after {done} of {steps} steps; nothing is saved, because no out was given"
    return f"stopped after {done} of {steps} steps and saved in {path.parent}; go on with the same call and resume=True"
