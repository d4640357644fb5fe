"""What every method is made of: its protocol, its loss values, checks of its settings, and parts that several share.

A method is any object with `loss`. What else it may have is optional and read by functions of this file:
a `name`, whether it `needs_reference`, the tokens `where` it needs log-probabilities, whether it wants `mismatched`
rows, what couples all rows of a step (`shared`, `tally`), whether it `looks_ahead` on them, and which KL over the whole
vocabulary it wants (`full_kl`). `examples` says what it takes of an annotated group.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from polyturn.algorithms.batch import Batch
from polyturn.algorithms.estimators import policy_mask
from polyturn.algorithms.pairing import Example, own_members, unary
from polyturn.envs.preference import Preference
from polyturn.envs.suggest import did_you_mean
from polyturn.envs.trajectory import Group


@dataclass(frozen=True, eq=False)
class Loss:
    """What `loss` returns, unreduced; a training step minimises sum(values) / sum(count) over ALL its rows.

    Attributes:
        values: `[C]` one value for each comparison (or row); gradients flow from here.
        count: `[C]` what each counts in the denominator; default 1 each.
        metrics: Numbers to report by name, each `[M]` and averaged over all its entries in the step.
    """

    values: Tensor
    count: Tensor | None = None
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Method(Protocol):
    """The whole of what training needs."""

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """The loss of a batch.

        Args:
            logps: `[N, T]` log-probability of each token under the policy, 0 outside `where`.
            reference: `[N, T]` under the reference, without gradient; None where the method needs none.
            batch: The rows and their comparisons.
        """
        ...


def name_of(method: Method) -> str:
    """The method's name; its class's where it has none."""
    return str(getattr(method, "name", type(method).__name__))


def needs_reference(method: Method) -> bool:
    """Whether the loss looks at reference log-probabilities; yes unless it says otherwise."""
    return bool(getattr(method, "needs_reference", True))


def full_kl(method: Method) -> Literal["reference_first", "policy_first"] | None:
    """Which KL over the whole vocabulary, token by token, the loss reads from `batch.outputs["kl"]`; none by default.

    "reference_first" is KL(reference || policy), "policy_first" KL(policy || reference).
    """
    direction: Literal["reference_first", "policy_first"] | None = getattr(method, "full_kl", None)
    return direction


def wants_mismatched(method: Method) -> bool:
    """Whether batches need mismatched rows; no unless it says so."""
    return bool(getattr(method, "mismatched", False))


def where(method: Method, batch: Batch) -> Tensor:
    """`[N, T]` bool: tokens whose log-probability the loss needs; all the agent's tokens unless it says otherwise."""
    chosen: Callable[[Batch], Tensor] | None = getattr(method, "where", None)
    return policy_mask(batch.turn) if chosen is None else chosen(batch)


def shared(method: Method, logps: Tensor, reference: Tensor | None, batch: Batch) -> Mapping[str, Tensor]:
    """Numbers whose mean over the whole step the loss reads from `batch.shared`; none unless it has `shared`."""
    function = getattr(method, "shared", None)
    return {} if function is None else function(logps, reference, batch)


def looks_ahead(method: Method) -> bool:
    """Whether `shared` is asked on all rows before the step, at the price of one more forward pass."""
    return bool(getattr(method, "looks_ahead", False))


def tallies(method: Method) -> bool:
    """Whether the method has a `tally`."""
    return callable(getattr(method, "tally", None))


def tally(method: Method, batch: Batch) -> Mapping[str, Tensor]:
    """As `shared`, of the rows alone, without any log-probabilities: counts, means and deviations of scores."""
    function = getattr(method, "tally", None)
    return {} if function is None else function(batch)


def scored(group: Group, preference: Preference, *, own: bool = False) -> Example | None:
    """Every member that has a score (without scores: a win rate) as a row of its own; None where there is none.

    With `own` only the policy's members: others may have been compared with it, but are not its samples.
    """
    score = unary(group, preference, scores=preference.scores is not None)
    rows = np.flatnonzero(~np.isnan(score) & (own_members(group) if own else True))
    if not len(rows):
        return None
    return Example(tuple(group[int(row)] for row in rows), scores=score[rows].astype(np.float32))


def output(batch: Batch, name: str, method: str) -> Tensor:
    """What the policy's network said of each token besides its log-probability.

    Raises:
        ValueError: It has no such output.
    """
    if name not in batch.outputs:
        raise ValueError(
            f'{method}: expected a policy whose scorer also gives "{name}", got one that gives '
            f"{', '.join(sorted(batch.outputs)) or 'log-probabilities alone'}; train "
            "polyturn.algorithms.networks.value.ActorCritic(policy)"
        )
    return batch.outputs[name]


def behaviour(batch: Batch, method: str) -> Tensor:
    """`[N, T]` log-probabilities as sampled.

    Raises:
        ValueError: Some were not recorded.
    """
    if bool(batch.behaviour_logps[policy_mask(batch.turn)].isnan().any()):
        raise ValueError(
            f"{method}: expected trajectories with log-probabilities as sampled, got tokens without; "
            "collect with TransformerAgent"
        )
    return batch.behaviour_logps


def masked(mask: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
    """Two `[N, T]` tensors of one type, 0 outside the mask."""
    first, second = (torch.where(mask, value, torch.zeros_like(value)) for value in values)
    return first, second.to(first.dtype)


def clipped(logps: Tensor, before: Tensor, clip: float) -> Tensor:
    """`[N, T]` 1 where the ratio to what sampled has left the interval."""
    return ((logps.detach() - before).exp() - 1.0).abs().gt(clip).float()


def check_range(what: str, value: float, low: float, high: float = math.inf, *, above: bool = False) -> None:
    """Raises ValueError unless `value` is in [low, high], or in (low, high] with `above`."""
    if not isinstance(value, numbers.Real) or not (low < value if above else low <= value) or not value <= high:
        wanted = f"a number above {low:g}" if above else f"{low:g} or more"
        if high < math.inf:
            wanted = f"a number in {'(' if above else '['}{low:g}, {high:g}]"
        raise ValueError(f"{what}: expected {wanted}, got {value!r}")


def check_pairs(what: str, pairs_per_group: int | None) -> None:
    if pairs_per_group is not None and pairs_per_group < 1:
        raise ValueError(f"{what}.pairs_per_group: expected at least 1, or None for every pair, got {pairs_per_group}")


def check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{what}: expected one of {', '.join(choices)}, got {value!r}.{did_you_mean(value, choices)}")


def check_positive(what: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{what}: expected a positive number, got {value}")
