"""References that share a policy's weights: the policy as it was, or its base without adapters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from polyturn.agents.transformer.adapters import AdapterError, base_weights, weights_digest
from polyturn.agents.transformer.prediction import Prediction
from polyturn.agents.transformer.reading import carry_probes
from polyturn.agents.transformer.rows import Rows
from polyturn.agents.transformer.scoring import TokenScorer, acting


def copy_as_acting(module: nn.Module) -> nn.Module:
    """An independent copy of a module; scorers in it that borrow weights have those that they act with."""
    made = copy.copy(module)
    made._modules = dict(module._modules)
    for name, part in module._modules.items():
        if isinstance(part, _Borrowed):
            made._modules[name] = part.whole()
    found = copy.deepcopy(made)
    carry_probes(made, found)
    return found


class Snapshot:
    """A policy as it is now, for a reference: the weights that are trained are copied, all others shared.

    The policy goes on learning in place. Scoring puts the kept weights where the policy's are, and takes them back.

    Attributes:
        model: Holds the kept weights.
        scorer: Scores under them.

    Args:
        model: The policy's; usually a peft model, of which the adapters are trained.
        scorer: The policy's.
    """

    def __init__(self, model: nn.Module, scorer: nn.Module) -> None:
        self._of = model
        live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._kept = _Kept(scorer, live)
        self.model: nn.Module = self._kept.weights
        self.scorer: nn.Module = self._kept

    def fingerprint(self) -> str:
        """That of the policy when this was taken."""
        with self._kept.acting():
            return weights_digest(dict(self._of.named_parameters()))

    def tensors(self) -> dict[str, Tensor]:
        """The kept weights by name."""
        return {name: value.detach().cpu() for name, value in self._kept.by_name().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes weights that `tensors` gave.

        Raises:
            AdapterError: They are of another structure.
        """
        mine = self._kept.by_name()
        if tensors.keys() != mine.keys() or any(tensors[name].shape != value.shape for name, value in mine.items()):
            raise AdapterError("expected the kept weights of the same adapters, got others")
        with torch.no_grad():
            for name, value in mine.items():
                value.copy_(tensors[name])


class WithoutAdapters:
    """A peft model's bare base as a reference, sharing all weights.

    Attributes:
        model: A module without weights: all are the policy's.
        scorer: Scores with the adapters switched off.
    """

    def __init__(self, model: Any, scorer: nn.Module) -> None:
        self.scorer: nn.Module = _Borrowed(scorer, model.disable_adapter)
        self.model: nn.Module = self.scorer
        self._of = model

    def fingerprint(self) -> str:
        """That of the base."""
        return weights_digest(base_weights(self._of))


class _Borrowed(TokenScorer):
    """Another scorer, within a context; not a part of this module, whose modes and weights are its owner's."""

    def __init__(self, scorer: nn.Module, context: Callable[[], Any]) -> None:
        super().__init__()
        self._owned = (scorer,)
        self._context = context

    def predict(self, rows: Rows) -> Prediction:
        scorer = cast("TokenScorer", self._owned[0])
        with torch.no_grad(), self._context(), acting(scorer):
            made = scorer.predict(rows)
            # Detached tensors keep the weights of now; parameters would have others after the context.
            now: dict[str, Any] = {n: part.detach() for n, part in made._asdict().items() if isinstance(part, Tensor)}
            return made._replace(**now)

    def whole(self) -> nn.Module:
        """An independent copy of the scorer as it acts in the context."""
        scorer = self._owned[0]
        with self._context():
            made = copy.deepcopy(scorer)
        carry_probes(scorer, made)
        return made

    def forward(self, *args: Any, **options: Any) -> Any:
        scorer = self._owned[0]
        with torch.no_grad(), self._context(), acting(scorer):
            return scorer(*args, **options)


class _Kept(_Borrowed):
    """Copies of weights, which stand in their places while a scorer works."""

    def __init__(self, scorer: nn.Module, live: Mapping[str, nn.Parameter]) -> None:
        super().__init__(scorer, self.acting)
        self._live = dict(live)
        self.weights = nn.ParameterList([nn.Parameter(p.detach().clone(), requires_grad=False) for p in live.values()])

    def by_name(self) -> dict[str, Tensor]:
        return dict(zip(self._live, self.weights, strict=True))

    @contextmanager
    def acting(self) -> Iterator[None]:
        """The kept weights in the places of the present ones."""
        pairs = list(zip(self._live.values(), self.weights, strict=True))
        present = [live.data for live, _ in pairs]
        for live, kept in pairs:
            live.data = kept.data
        try:
            yield
        finally:
            for (live, _), data in zip(pairs, present, strict=True):
                live.data = data
