"""One optimisation step: share the batch out, score it twice, call the method, sum gradients, normalise, update."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor, nn

from polyturn.agents.transformer.adapters import weights_digest
from polyturn.agents.transformer.forest import distinct, pack
from polyturn.agents.transformer.rows import Rows, by_segment
from polyturn.algorithms.batch import Batch
from polyturn.algorithms.methods.base import Hooks, Loss
from polyturn.algorithms.training.failures import NonFiniteError, OutOfMemoryError, not_finite, out_of_memory
from polyturn.algorithms.training.kernels import KernelError, use_kernels
from polyturn.algorithms.training.metrics import Sums, add, merge
from polyturn.algorithms.training.microbatch import Cost, MicroBatch, shard, split
from polyturn.algorithms.training.optimizers import make_optimizer, set_rate
from polyturn.algorithms.training.options import TrainOptions
from polyturn.algorithms.training.reference import Reference, ReferenceCache
from polyturn.algorithms.training.scoring import (
    Scorable,
    Scoring,
    checkpoint_activations,
    keep_activations,
    packs,
    parameter_groups,
)
from polyturn.algorithms.training.sharding import ShardedModule, clip, make_mesh, shard_reference, whole_state


class Learner:
    """Holds policy, reference and optimizer on their devices; `step` learns from one batch.

    Attributes:
        positions: Where every process's source was at the last update, known to all; empty before the first.

    Args:
        method: What is learned; see `polyturn.algorithms.methods.base`.
        policy: What is trained, in place.
        reference: What the log-ratio is taken to; None where the method needs none.
        accelerator: Where and in which precision.
        options: How.
        place: Folder of the run, for what a resumed one needs; None where nothing is kept.
        failures: Folder for batches that made a nan.
    """

    def __init__(
        self,
        method: Hooks,
        policy: Scorable,
        reference: Scorable | None,
        accelerator: Accelerator,
        options: TrainOptions,
        *,
        place: Path | None,
        failures: Path,
    ) -> None:
        self._method, self._policy, self._accelerator = method, policy, accelerator
        self._options, self._failures = options, failures
        self.positions: list[Any] = []
        if options.gradient_checkpointing:
            checkpoint_activations(policy.model)
        self._undo = [self._with_kernels(policy)]
        scoring = Scoring(policy.scorer, dropout=options.dropout)
        # Some scorers look at the model on their first call; that must not fall into a step that checkpoints.
        device = next(policy.model.parameters()).device
        with torch.no_grad():
            scoring(Rows.of(torch.zeros((1, 2), dtype=torch.int64, device=device), _ones(device)))
        self._cost: Cost = distinct if packs(policy.scorer) else _leaf_tokens
        groups, choice = parameter_groups(policy, options.lr, options.weight_decay), options.optimizer
        # Cut over the processes, or whole in each.
        self._mesh = make_mesh(accelerator.device) if options.fully_sharded else None
        self._sharded = None if self._mesh is None else ShardedModule(scoring, self._mesh)
        if self._sharded is not None:
            groups = [{**group, "params": self._sharded.parts_of(group["params"])} for group in groups]
        made = choice(groups) if callable(choice) else make_optimizer(choice, groups)
        if self._sharded is None:
            self._wrapped, self.optimizer = accelerator.prepare(scoring, made)
            self._plain = accelerator.unwrap_model(self._wrapped)
        else:
            self._wrapped = self._plain = self._sharded.module
            self.optimizer = accelerator.prepare_optimizer(made)
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._reference: Reference | None = None
        self._cache: ReferenceCache | None = None
        if method.needs.reference and reference is not None:
            if reference.model is not policy.model:
                self._undo.append(self._with_kernels(reference))
            self._reference = self._made_reference(reference, place)

    def _with_kernels(self, which: Scorable) -> Callable[[], None]:
        kind = self._options.kernels
        if kind != "eager" and self._options.fully_sharded:
            raise KernelError(f'kernels="{kind}": not with fully_sharded, which cuts weights before they are compared')
        if kind == "eager":
            return use_kernels(which.model, kind)
        return use_kernels(which.model.to(self._accelerator.device), kind)

    def _made_reference(self, reference: Scorable, place: Path | None) -> Reference:
        if self._options.cache_reference:
            known = getattr(reference, "fingerprint", None)
            weights = known() if known is not None else weights_digest(dict(reference.model.named_parameters()))
            name = f"reference-{self._accelerator.process_index}.sqlite"
            self._cache = ReferenceCache(None if place is None else place / name, weights)
        scoring: nn.Module = Scoring(reference.scorer)
        if self._mesh is None:
            scoring = self._accelerator.prepare_model(scoring, evaluation_mode=True)
        # Looks at the model, as above, before the policy's step begins: the two may share a configuration.
        packs(reference.scorer)
        if self._mesh is None:
            return Reference(scoring, self._cache)
        return Reference(shard_reference(scoring, self._mesh), self._cache, together=self._any)

    @property
    def plain_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer without Accelerate's wrapper."""
        return cast("torch.optim.Optimizer", self.optimizer.optimizer)

    @property
    def sharded(self) -> bool:
        """Whether weights are cut over the processes."""
        return self._sharded is not None

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer's state, whole, for a checkpoint; asked for by all processes together."""
        return whole_state(self.plain_optimizer) if self.sharded else self.plain_optimizer.state_dict()

    def close(self) -> None:
        """Leaves the policy ready to act: evaluation mode, activations not checkpointed."""
        if self._options.gradient_checkpointing:
            keep_activations(self._policy.model)
        for undo in self._undo:
            undo()
        if self._cache is not None:
            self._cache.close()
        self._policy.model.eval()

    def step(self, batch: Batch, step: int, *, lr_factor: float = 1.0, position: Any = None) -> dict[str, float]:
        """One update.

        Args:
            batch: On the CPU; the whole step's, or this process's part.
            step: Counted from 0; names what is saved if it fails, and seeds dropout.
            lr_factor: Multiplies the learning rate.
            position: Where this process's source is after the batch; see `positions`.

        Returns:
            loss, grad_norm, lr, tokens (of all rows), distinct_tokens (read for them), and the method's metrics, over
            all processes.

        Raises:
            NonFiniteError: The loss or the gradient was nan or infinite.
            OutOfMemoryError: The device ran out of memory.
            ValueError: The batch holds nothing to learn from.
        """
        try:
            return self._step(batch, step, lr_factor, position)
        except torch.OutOfMemoryError as error:
            self.optimizer.zero_grad()
            raise OutOfMemoryError(out_of_memory(step, self._accelerator.device, self._options)) from error

    def _step(self, batch: Batch, step: int, lr_factor: float, position: Any) -> dict[str, float]:
        world = self._accelerator.num_processes
        # This process's part of the step's groups; mismatched rows only serve the step's statistics.
        part = shard(batch, world)[self._accelerator.process_index] if self._options.sharded else batch
        part = part.with_statistics({"step": torch.tensor(float(step))})
        learned = part.select(~part.mismatched)
        learned = learned.with_statistics(self._row_statistics(learned) | self._step_statistics(part, step))
        micros = self._split(learned)
        # Processes read equally often; those with less to do read two tokens that count nothing.
        passes = self._passes([len(micro.pieces) for micro in micros])
        # Forward and backward, one micro-batch after another; gradients add up.
        value = count = 0.0
        sums: Sums = {}
        packed = 0
        with self._engaged():
            for index, pieces in enumerate(passes):
                final = index == len(passes) - 1
                if index >= len(micros):
                    self._idle(pieces, final=final)
                    continue
                loss, read = self._learn(micros[index], (step, index), pieces, final=final)
                value += float(loss.values.detach().sum())
                count += float(loss.values.numel() if loss.count is None else loss.count.sum())
                packed += read
                add(sums, loss.metrics)
        # The sum of gradients becomes their mean over all that counts, in all processes.
        parts = self._gather((value, count, sums, learned.tokens, packed, position))
        value, count = sum(each[0] for each in parts), sum(each[1] for each in parts)
        if not count:
            raise ValueError("expected at least one comparison (or row) that counts in a training step, got none")
        norm = self._normalise(world / count)
        if not (math.isfinite(value) and math.isfinite(norm)):
            self.optimizer.zero_grad()
            stem = self._failures / f"step-{step + 1:08d}-process-{self._accelerator.process_index}"
            raise NonFiniteError(not_finite(learned, step, value / count, norm, stem))
        # The update.
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            set_rate(group, rate * lr_factor)
        self.optimizer.step()
        self.positions = [each[5] for each in parts]
        self.optimizer.zero_grad()
        if self._sharded is not None:
            self._sharded.pull()
        return {
            "loss": value / count,
            "grad_norm": norm,
            "lr": self._rates[0] * lr_factor,
            "tokens": float(sum(each[3] for each in parts)),
            "distinct_tokens": float(sum(each[4] for each in parts)),
            **merge(each[2] for each in parts),
        }

    def _split(self, rows: Batch) -> list[MicroBatch]:
        options = self._options
        return split(rows, pieces=options.accumulate, tokens=options.tokens_per_micro_batch, cost=self._cost)

    def _passes(self, own: list[int]) -> list[int]:
        """How many pieces of every micro-batch are read, in each process equally many: the most that one has."""
        everywhere = self._gather(own)
        longest = max(len(each) for each in everywhere)
        return [max(each[n] for each in everywhere if n < len(each)) for n in range(longest)]

    def _idle(self, pieces: int, *, final: bool) -> None:
        """Reads as often as a process that has a micro-batch, and learns nothing of it."""
        for _ in range(pieces if pieces > 1 else 0):
            self._nothing(learns=False)
        for number in range(pieces):
            self._nothing(learns=True, compared=pieces == 1, final=final and number == pieces - 1)

    def _nothing(self, *, learns: bool, compared: bool = True, final: bool = False) -> None:
        """One pass over two tokens, forward and where it `learns` backward, with what others read at the same time."""
        device = self._accelerator.device
        mask = _ones(device)
        rows = Rows.of(torch.zeros((1, 2), dtype=torch.int64, device=device), mask)
        options: dict[str, Any] = {}
        if self._reference is not None and (compared or self._method.needs.full_kl is not None):
            options = self._idle_reference(rows, mask)
        if not learns:
            with torch.no_grad():
                self._plain(rows, mask, rehearsal=True, **options)
            return
        with self._exchange(final):
            found = self._wrapped(rows, mask, **options)
            self._accelerator.backward(sum((value.sum() for value in found.values()), mask.new_zeros(())) * 0.0)

    @torch.no_grad()
    def _idle_reference(self, rows: Rows, mask: Tensor) -> dict[str, Any]:
        """The reference's pass over the same two tokens."""
        assert self._reference is not None
        direction = self._method.needs.full_kl
        if direction is None:
            self._reference.idle(rows, mask)
            return {}
        return {"against": self._reference.predict(rows), "reference_first": direction == "reference_first"}

    def _learn(self, micro: MicroBatch, stream: tuple[int, int], pieces: int, *, final: bool) -> tuple[Loss, int]:
        """Forward and backward of one micro-batch; its loss, and how many distinct tokens were read.

        Args:
            micro: On the CPU.
            stream: Seeds dropout.
            pieces: How many are read, at least as many as there are; see `_passes`.
            final: Whether gradients are exchanged between processes after it.
        """
        batch = micro.batch.to(self._accelerator.device)
        token_mask = self._method.token_mask(batch)
        if pieces > 1:
            return self._learn_in_pieces(micro, batch, token_mask, stream, pieces - len(micro.pieces), final=final)
        rows = self._rows(micro.batch)
        # The reference first, while no activations of the policy are alive.
        reference, options = self._compare(batch, rows, token_mask)
        with self._exchange(final):
            with self._dropout_stream(*stream, 0):
                outputs = dict(self._wrapped(rows, token_mask, **options))
            logps = outputs.pop("logps")
            loss = self._method.loss(logps, reference, replace(batch, outputs=outputs))
            self._accelerator.backward(loss.values.sum())
        return loss, len(rows.ids)

    def _learn_in_pieces(
        self, micro: MicroBatch, batch: Batch, token_mask: Tensor, stream: tuple[int, int], idle: int, *, final: bool
    ) -> tuple[Loss, int]:
        """As `_learn`, for groups that do not fit: a loss couples rows only through what is scored of them.

        All pieces are scored without gradient; the loss is differentiated with respect to those numbers; then each
        piece is read again, with gradient, and passed back with its own coefficients. Exact for every method.
        """
        parts = [(index, micro.batch.select(index)) for index in micro.pieces]
        packed = [self._rows(part) for _, part in parts]
        options: dict[str, Any] = {}

        def whole(found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            made = {name: value.new_zeros(batch.ids.shape) for name, value in found[0].items()}
            for (index, _), values in zip(parts, found, strict=True):
                for name, value in values.items():
                    made[name][index.to(value.device), : value.shape[1]] = value
            return made

        # 1. Score.
        references, scores, asked = [], [], []
        with torch.no_grad():
            for number, ((index, part), rows) in enumerate(zip(parts, packed, strict=True)):
                mask = token_mask[index.to(token_mask.device), : rows.mask.shape[1]]
                reference, options = self._compare(part.to(batch.ids.device), rows, mask)
                references.append({} if reference is None else {"reference": reference})
                asked.append({} if "against" in options else options)
                with self._dropout_stream(*stream, number):
                    scores.append(dict(self._plain(rows, mask, rehearsal=True, **options)))
        for _ in range(idle):
            self._nothing(learns=False)
        # 2. Differentiate the loss with respect to the scores.
        leaves = {name: value.requires_grad_() for name, value in whole(scores).items()}
        outputs = {name: value for name, value in leaves.items() if name != "logps"}
        loss = self._method.loss(leaves["logps"], whole(references).get("reference"), replace(batch, outputs=outputs))
        loss.values.sum().backward()
        # 3. Pass each piece back with its coefficients.
        for number, ((index, part), rows) in enumerate(zip(parts, packed, strict=True)):
            mask = token_mask[index.to(token_mask.device), : rows.mask.shape[1]]
            options = self._compare(part.to(batch.ids.device), rows, mask)[1] if "kl" in leaves else asked[number]
            with self._exchange(final and not idle and number == len(parts) - 1):
                with self._dropout_stream(*stream, number):
                    found = self._wrapped(rows, mask, **options)
                total = torch.zeros((), device=batch.ids.device)
                for name, value in found.items():
                    slope = leaves[name].grad
                    if slope is not None:
                        total = total + (value * slope[index.to(slope.device), : value.shape[1]]).sum()
                self._accelerator.backward(total)
        for number in range(idle):
            self._nothing(learns=True, compared=False, final=final and number == idle - 1)
        return loss, sum(len(rows.ids) for rows in packed)

    def _rows(self, rows: Batch) -> Rows:
        """Rows packed on the CPU, on the device."""
        lengths = rows.mask.sum(1).cpu().numpy()
        ids, sizes, where = by_segment(rows.ids.cpu().numpy(), lengths, rows.segments)
        device = self._accelerator.device
        return Rows.on(pack(ids, sizes), device) if where is None else Rows.joined(pack(ids, sizes), where, device)

    @contextlib.contextmanager
    def _engaged(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            engaged = getattr(self._plain.scorer, "engaged", None)
            if engaged is not None:
                stack.enter_context(engaged())
            yield

    def _exchange(self, final: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients are exchanged once, with the last backward pass."""
        waits = not (final or self.sharded)
        context: contextlib.AbstractContextManager[Any] = (
            self._accelerator.no_sync(self._wrapped) if waits else contextlib.nullcontext()
        )
        return context

    def _row_statistics(self, rows: Batch) -> dict[str, Tensor]:
        """Means over all rows of the step of what a method reads from the rows only."""
        if self._method.row_statistics is None:
            return {}
        sums: Sums = {}
        add(sums, self._method.row_statistics(rows))
        return _means(self._gather(sums))

    @torch.no_grad()
    def _step_statistics(self, part: Batch, step: int) -> dict[str, Tensor]:
        """Means over rows of the whole step that need no gradient, and that every micro-batch needs.

        The rows are the mismatched ones, or all others where the method looks ahead on them.
        """
        needs, statistics = self._method.needs, self._method.step_statistics
        if statistics is None or not (needs.mismatched or needs.look_ahead):
            return {}
        selected = part.select(part.mismatched if needs.mismatched else ~part.mismatched)
        sums: Sums = {}
        pieces = [micro.batch.select(index) for micro in self._split(selected) for index in micro.pieces]
        most = max(self._gather(len(pieces)))
        for piece in pieces:
            batch, rows = piece.to(self._accelerator.device), self._rows(piece)
            token_mask = self._method.token_mask(batch)
            reference, options = self._compare(batch, rows, token_mask)
            outputs = dict(self._plain(rows, token_mask, **options))
            logps = outputs.pop("logps")
            add(sums, statistics(logps, reference, replace(batch, outputs=outputs)))
        for _ in range(most - len(pieces)):
            self._nothing(learns=False)
        return _means(self._gather(sums))

    @torch.no_grad()
    def _compare(self, batch: Batch, rows: Rows, token_mask: Tensor) -> tuple[Tensor | None, dict[str, Any]]:
        """Log-probabilities under the reference, and what the policy's scorer is asked with: to compare whole
        distributions, or at the temperature of the samples."""
        direction = self._method.needs.full_kl
        temperature = float(batch.statistics.get("temperature", torch.tensor(1.0)))
        sampled: dict[str, Any] = {} if temperature == 1.0 else {"temperature": temperature}
        if self._reference is None:
            return None, sampled
        if direction is None:
            return self._reference.logps(batch, rows, token_mask, temperature=temperature), sampled
        prediction = self._reference.predict(rows)
        # Such a loss has its pull to the reference from the KL; the reference's log-probs come at no further pass.
        edges = rows.edges(token_mask)
        values = prediction.logps(rows.parent[edges], rows.ids[edges])
        logps = rows.to_rows(values.new_zeros(len(rows.ids)).index_put((edges,), values), token_mask)
        return logps, {"against": prediction, "reference_first": direction == "reference_first"}

    def _normalise(self, scale: float) -> float:
        """Turns the processes' mean of summed gradients into the mean over all that counts; returns its norm."""
        trained = [p for p in self._wrapped.parameters() if p.requires_grad]
        for parameter in trained:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        return clip(trained, math.inf if self._options.clip is None else self._options.clip)

    def _any(self, value: bool) -> bool:
        """Whether it is so in any process."""
        return any(self._gather(value))

    def _gather(self, value: Any) -> list[Any]:
        """One value from every process, in order."""
        return list(gather_object([value]))

    @contextlib.contextmanager
    def _dropout_stream(self, step: int, micro: int, piece: int) -> Iterator[None]:
        """The same dropout for the same part of a step, so that a checkpoint need not keep its state."""
        if not self._options.dropout:
            yield
            return
        key = repr((self._options.seed, step, micro, piece, self._accelerator.process_index)).encode()
        device = self._accelerator.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big"))
            yield


def _leaf_tokens(ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> int:
    """What rows cost a model that reads them one by one."""
    return int(lengths.sum())


def _means(parts: list[Sums]) -> dict[str, Tensor]:
    return {name: torch.tensor(mean, dtype=torch.float64) for name, mean in merge(parts).items()}


def _ones(device: torch.device) -> Tensor:
    return torch.ones((1, 2), dtype=torch.bool, device=device)
