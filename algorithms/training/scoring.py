"""What is scored and trained: a policy's scorer in the mode of training, its parameters, its activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from polyturn.agents.transformer.rows import Rows


class Scorable(Protocol):
    """What a policy must have to be scored and trained."""

    @property
    def model(self) -> Any:
        """The network whose parameters are trained."""
        ...

    @property
    def scorer(self) -> nn.Module:
        """Module around `model`, from `Rows` and a mask `[N, T]` to a dictionary of `[N, T]` tensors.

        "logps" are log-probabilities; its other tensors reach the loss as `batch.outputs`. Where a
        method wants the KL over the whole vocabulary, it must work as
        `polyturn.agents.transformer.scoring.TokenScorer` does.
        """
        ...


class Scoring(nn.Module):
    """The scorer in the mode that scoring and training share.

    Without dropout the policy scores as it samples, and a policy equal to its reference has a log-ratio of 0.
    transformers checkpoints activations only in modules in training mode, so just those are put into it.
    """

    def __init__(self, scorer: nn.Module, *, dropout: bool = False) -> None:
        super().__init__()
        self.scorer = scorer
        self._dropout = dropout

    def forward(self, rows: Rows, token_mask: Tensor | None = None, **options: Any) -> Any:
        learning, rehearsal = torch.is_grad_enabled(), options.pop("rehearsal", False)
        self.train(self._dropout and (learning or rehearsal))
        for module in self.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = learning
        if options.pop("predict", False):
            return cast("Any", self.scorer).predict(rows)
        return self.scorer(rows, token_mask, **options)


def packs(scorer: nn.Module) -> bool:
    """Whether a scorer reads what rows share only once."""
    known = getattr(scorer, "packs", None)
    return True if known is None else bool(known())


def parameter_groups(policy: Scorable, lr: float, weight_decay: float) -> list[dict[str, Any]]:
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


def checkpoint_activations(model: Any) -> None:
    """Has a transformers model make activations again in the backward pass, and keep few."""
    # transformers 5.2x renamed these; older versions of the same major have only the old names.
    if callable(enable := getattr(model, "activation_checkpointing_enable", None)):
        enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # transformers also hooks the embeddings, for reentrant checkpointing; the hook would outlive the training.
    if callable(unhook := getattr(model, "disable_input_require_grads", None)):
        unhook()


def keep_activations(model: Any) -> None:
    """Takes `checkpoint_activations` back."""
    (getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable)()
