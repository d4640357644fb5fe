"""One optimisation step: share the batch out, score it twice, call the method, sum gradients, normalise, update."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from polyturn.algorithms.batch import Batch
from polyturn.algorithms.methods.base import Hooks, Loss
from polyturn.algorithms.training.metrics import Sums, add, merge
from polyturn.algorithms.training.microbatch import shard, split
from polyturn.algorithms.training.options import TrainOptions


class NonFiniteError(ArithmeticError):
    """A loss or gradient was nan or infinite. Weights are as they were before the step; the batch is saved."""


class Scorable(Protocol):
    """What a policy must have to be scored and trained."""

    @property
    def model(self) -> Any:
        """The network whose parameters are trained."""
        ...

    @property
    def scorer(self) -> nn.Module:
        """Module around `model`, from `(ids, mask, token_mask)`, all `[N, T]`, to log-probabilities `[N, T]`.

        Or to a dictionary of "logps" and whatever else it says of each token; that reaches the loss as
        `batch.outputs`. Where a method wants the KL over the whole vocabulary, it must work as
        `polyturn.agents.transformer.scoring.TokenScorer` does.
        """
        ...


class _Scoring(nn.Module):
    """The scorer in the mode that scoring and training share.

    Without dropout the policy scores as it samples, and a policy equal to its reference has a log-ratio of 0.
    transformers checkpoints activations only in modules in training mode, so just those are put into it.
    """

    def __init__(self, scorer: nn.Module, *, dropout: bool = False) -> None:
        super().__init__()
        self.scorer = scorer
        self._dropout = dropout

    def forward(self, ids: Tensor, mask: Tensor, token_mask: Tensor, **options: Any) -> Any:
        learning = torch.is_grad_enabled()
        self.train(self._dropout and learning)
        for module in self.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = learning
        if options.pop("predict", False):
            return cast("Any", self.scorer).predict(ids, mask)
        return self.scorer(ids, mask, token_mask, **options)


class Learner:
    """Holds policy, reference and optimizer on their devices; `step` learns from one batch.

    Args:
        method: What is learned; see `polyturn.algorithms.methods.base`.
        policy: What is trained, in place.
        reference: What the log-ratio is taken to; None where the method needs none, or where the policy is a peft
            model, whose base with the adapter off is the reference.
        accelerator: Where and in which precision.
        options: How.
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
        failures: Path,
    ) -> None:
        self._method, self._policy, self._accelerator = method, policy, accelerator
        self._options, self._failures = options, failures
        self._cache: dict[bytes, Tensor] | None = {} if options.cache_reference else None
        if options.gradient_checkpointing:
            _checkpoint_activations(policy.model)
        scoring = _Scoring(policy.scorer, dropout=options.dropout)
        # Some scorers look at the model on their first call; that must not fall into a step that checkpoints.
        device = next(policy.model.parameters()).device
        with torch.no_grad():
            scoring(torch.zeros((1, 2), dtype=torch.int64, device=device), *[_ones(device)] * 2)
        make = options.optimizer if callable(options.optimizer) else torch.optim.AdamW
        made = make(_parameter_groups(policy, options.lr, options.weight_decay))
        self._wrapped, self.optimizer = accelerator.prepare(scoring, made)
        self._plain = accelerator.unwrap_model(self._wrapped)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self._reference: nn.Module | None = None
        self._reference_context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
        if method.needs.reference:
            if reference is None:
                self._reference = self._plain
                self._reference_context = policy.model.disable_adapter
            else:
                self._reference = accelerator.prepare_model(_Scoring(reference.scorer), evaluation_mode=True)

    @property
    def plain_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer without Accelerate's wrapper, whose state is what gets saved."""
        return cast("torch.optim.Optimizer", self.optimizer.optimizer)

    def close(self) -> None:
        """Leaves the policy ready to act: evaluation mode, activations not checkpointed."""
        if self._options.gradient_checkpointing:
            _keep_activations(self._policy.model)
        self._policy.model.eval()

    def step(self, batch: Batch, step: int, *, lr_factor: float = 1.0) -> dict[str, float]:
        """One update.

        Args:
            batch: On the CPU; the whole step's, or this process's part.
            step: Counted from 0; names what is saved if it fails, and seeds dropout.
            lr_factor: Multiplies the learning rate.

        Returns:
            loss, grad_norm, lr, tokens, and the method's metrics, over all processes.

        Raises:
            NonFiniteError: The loss or the gradient was nan or infinite.
            ValueError: The batch holds nothing to learn from.
        """
        world = self._accelerator.num_processes
        # This process's part of the step's groups; mismatched rows only serve the step's statistics.
        part = shard(batch, world)[self._accelerator.process_index] if self._options.sharded else batch
        part = part.with_statistics({"step": torch.tensor(float(step))})
        learned = part.select(~part.mismatched)
        learned = learned.with_statistics(self._row_statistics(learned) | self._step_statistics(part))
        micros = split(learned, pieces=self._options.accumulate, tokens=self._options.tokens_per_micro_batch)
        own = len(micros)
        micros = self._evened(micros, batch)
        # Forward and backward, one micro-batch after another; gradients add up.
        value = count = 0.0
        sums: Sums = {}
        for index, micro in enumerate(micros):
            # Gradients are exchanged once, with the last micro-batch.
            last = index == len(micros) - 1
            with contextlib.nullcontext() if last else self._accelerator.no_sync(self._wrapped):
                loss = self._loss(micro.to(self._accelerator.device), self._stream(step, index), counts=index < own)
                total = loss.values.sum()
                self._accelerator.backward(total)
            value += float(total.detach())
            count += float(loss.values.numel() if loss.count is None else loss.count.sum()) if index < own else 0.0
            add(sums, loss.metrics)
        # The sum of gradients becomes their mean over all that counts, in all processes.
        parts = self._gather((value, count, sums, learned.tokens))
        value, count = sum(each[0] for each in parts), sum(each[1] for each in parts)
        if not count:
            raise ValueError("expected at least one comparison (or row) that counts in a training step, got none")
        norm = self._normalise(world / count)
        if not (math.isfinite(value) and math.isfinite(norm)):
            self.optimizer.zero_grad()
            raise NonFiniteError(self._report(learned, step, value / count, norm))
        # The update.
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * lr_factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {
            "loss": value / count,
            "grad_norm": norm,
            "lr": self._rates[0] * lr_factor,
            "tokens": float(sum(each[3] for each in parts)),
            **merge(each[2] for each in parts),
        }

    def _loss(self, micro: Batch, stream: int, *, counts: bool) -> Loss:
        token_mask = self._method.token_mask(micro)
        # The reference first, while no activations of the policy are alive.
        reference, options = self._compare(micro, token_mask)
        with self._dropout_stream(stream):
            logps, outputs = _unpacked(self._wrapped(micro.ids, micro.mask, token_mask, **options))
        if not counts:
            return Loss(sum((value.sum(1) for value in outputs.values()), logps.sum(1)) * 0.0)
        return self._method.loss(logps, reference, replace(micro, outputs=outputs))

    def _row_statistics(self, rows: Batch) -> dict[str, Tensor]:
        """Means over all rows of the step of what a method reads from the rows alone."""
        if self._method.row_statistics is None:
            return {}
        sums: Sums = {}
        add(sums, self._method.row_statistics(rows))
        return _means(self._gather(sums))

    @torch.no_grad()
    def _step_statistics(self, part: Batch) -> dict[str, Tensor]:
        """Means over rows of the whole step that need no gradient, and that every micro-batch needs.

        The rows are the mismatched ones, or all others where the method looks ahead on them.
        """
        needs, statistics = self._method.needs, self._method.step_statistics
        if statistics is None or not (needs.mismatched or needs.look_ahead):
            return {}
        rows = part.select(part.mismatched if needs.mismatched else ~part.mismatched)
        sums: Sums = {}
        for micro in split(rows, pieces=self._options.accumulate, tokens=self._options.tokens_per_micro_batch):
            micro = micro.to(self._accelerator.device)
            token_mask = self._method.token_mask(micro)
            reference, options = self._compare(micro, token_mask)
            logps, outputs = _unpacked(self._plain(micro.ids, micro.mask, token_mask, **options))
            add(sums, statistics(logps, reference, replace(micro, outputs=outputs)))
        return _means(self._gather(sums))

    @torch.no_grad()
    def _compare(self, micro: Batch, token_mask: Tensor) -> tuple[Tensor | None, dict[str, Any]]:
        """Log-probabilities under the reference, and what the policy's scorer needs to compare whole distributions."""
        direction = self._method.needs.full_kl
        if self._reference is None or direction is None:
            return self._score_reference(micro, token_mask), {}
        with self._reference_context():
            prediction = self._reference(micro.ids, micro.mask, token_mask, predict=True)
        # Such a loss has its pull to the reference from the KL; the reference's log-probs come at no further pass.
        wanted = token_mask & micro.mask
        wanted[:, 0] = False
        options = {"against": prediction, "reference_first": direction == "reference_first"}
        return prediction.logps(micro.ids, wanted), options

    @torch.no_grad()
    def _score_reference(self, batch: Batch, token_mask: Tensor) -> Tensor | None:
        if self._reference is None:
            return None
        with self._reference_context():
            if self._cache is None:
                return _unpacked(self._reference(batch.ids, batch.mask, token_mask))[0]
            result = torch.zeros(batch.ids.shape, dtype=torch.float32, device=batch.ids.device)
            for row, length in enumerate(batch.mask.sum(1).tolist()):
                # Scored one row at a time: what is kept must not depend on which rows it was batched with, or a
                # resumed run, whose cache is empty, would differ in the last bits.
                ids, mask, wanted = (x[row : row + 1, :length] for x in (batch.ids, batch.mask, token_mask))
                key = hashlib.blake2b(ids.cpu().numpy().tobytes() + wanted.cpu().numpy().tobytes()).digest()
                if key not in self._cache:
                    self._cache[key] = _unpacked(self._reference(ids, mask, wanted))[0][0].cpu()
                result[row, :length] = self._cache[key].to(result.device)
            return result

    def _evened(self, micros: list[Batch], batch: Batch) -> list[Batch]:
        """Processes must run backward equally often; those with fewer groups pass over one row that counts nothing."""
        longest = max(self._gather(len(micros)))
        return micros + [batch.select(torch.tensor([0]))] * (longest - len(micros))

    def _normalise(self, scale: float) -> float:
        """Turns the processes' mean of summed gradients into the mean over all that counts; returns its norm."""
        trained = [p for p in self._wrapped.parameters() if p.requires_grad]
        for parameter in trained:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        return float(
            self._accelerator.clip_grad_norm_(trained, math.inf if self._options.clip is None else self._options.clip)
        )

    def _report(self, rows: Batch, step: int, loss: float, norm: float) -> str:
        self._failures.mkdir(parents=True, exist_ok=True)
        stem = self._failures / f"step-{step + 1:08d}-process-{self._accelerator.process_index}"
        rows.save(stem)
        return (
            f"step {step + 1}: expected finite numbers, got loss {loss} and gradient norm {norm}; the weights are as "
            f"before this step, and its batch is in {stem}.safetensors and .json (Batch.load). "
            "A smaller learning rate, a smaller clip, or float32 usually helps"
        )

    def _gather(self, value: Any) -> list[Any]:
        """One value from every process, in order."""
        return list(gather_object([value]))

    def _stream(self, step: int, index: int) -> int:
        """Seed of one micro-batch's dropout: nothing to remember in a checkpoint."""
        key = repr((self._options.seed, step, index, self._accelerator.process_index)).encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big")

    @contextlib.contextmanager
    def _dropout_stream(self, stream: int) -> Iterator[None]:
        if not self._options.dropout:
            yield
            return
        device = self._accelerator.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(stream)
            yield


def _parameter_groups(policy: Scorable, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters by learning rate and decay; `policy.lr_scales` multiplies rates by prefixes of names."""
    scales: Mapping[str, float] = getattr(policy, "lr_scales", {})
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    for name, parameter in policy.model.named_parameters():
        if parameter.requires_grad:
            scale = next((scale for prefix, scale in scales.items() if name.startswith(prefix)), 1.0)
            groups.setdefault((scale, parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": parameters, "lr": lr * scale, "weight_decay": weight_decay if decays else 0.0}
        for (scale, decays), parameters in groups.items()
        if parameters
    ]


def _unpacked(scored: Tensor | Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities, and whatever else a scorer said."""
    if isinstance(scored, Tensor):
        return scored, {}
    outputs = dict(scored)
    return outputs.pop("logps"), outputs


def _means(parts: list[Sums]) -> dict[str, Tensor]:
    return {name: torch.tensor(mean, dtype=torch.float32) for name, mean in merge(parts).items()}


def _checkpoint_activations(model: Any) -> None:
    # transformers 5.2x renamed these; older versions of the same major have only the old names.
    if callable(enable := getattr(model, "activation_checkpointing_enable", None)):
        enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # transformers also hooks the embeddings, for reentrant checkpointing; the hook would outlive the training.
    if callable(unhook := getattr(model, "disable_input_require_grads", None)):
        unhook()


def _keep_activations(model: Any) -> None:
    (getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable)()


def _ones(device: torch.device) -> Tensor:
    return torch.ones((1, 2), dtype=torch.bool, device=device)
