"""What every method is made of: its protocol, what it may need, its loss values, checks of its settings, shared parts.

A method is an object with a `name`, `needs` and `loss`. It may also have

- `examples(group, preference, rng)`: what it takes of an annotated group, an `Example` or None;
- `token_mask(batch)`: the tokens whose log-probability it needs, by default all that the agent wrote;
- `step_statistics(logps, reference, batch)`: numbers whose mean over the whole step its loss reads from
  `batch.statistics`, however the step is cut into micro-batches;
- `row_statistics(batch)`: the same from the rows only, without log-probabilities.

`hooks_of` reads all of these once, at the start of a run, and refuses what looks like a mistyped one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from polyturn.algorithms.batch import Batch
from polyturn.algorithms.estimators import policy_mask
from polyturn.algorithms.pairing import Example, own_members, unary
from polyturn.envs.preference import Preference
from polyturn.envs.settings import check_choice, check_count
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


FullKL = Literal["reference_first", "policy_first"]
"""Direction of a KL over the whole vocabulary: KL(reference || policy), or KL(policy || reference)."""


@dataclass(frozen=True)
class Needs:
    """What a method asks of training besides the policy's log-probabilities.

    Attributes:
        reference: Log-probabilities under a reference.
        teacher: The reference is another model that the user names, not the policy as it was at the start.
        preference: A preference over the group; without one, `examples(group, None, rng)` takes every valid member.
        values: `batch.outputs["values"]`: the policy is an `ActorCritic`.
        behaviour: The log-probabilities as sampled. Without them, as for text of other sources, a run is refused.
        sampled: Rows are the policy's own samples: log-probabilities are taken at the temperature that they were drawn
            at, and rows that were drawn in another way (greedily, with top_p, from a mixture) are refused.
        mismatched: Rows that join one example's prompt with another's continuation; `step_statistics` is asked on them.
        look_ahead: `step_statistics` is asked on all rows before the step, at the cost of one more forward pass.
        full_kl: Which KL over the whole vocabulary, token by token, the loss reads from `batch.outputs["kl"]`.

    Raises:
        ValueError: Needs that exclude each other.
    """

    reference: bool = True
    teacher: bool = False
    preference: bool = True
    values: bool = False
    behaviour: bool = False
    sampled: bool = False
    mismatched: bool = False
    look_ahead: bool = False
    full_kl: FullKL | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.name != "full_kl" and not isinstance(getattr(self, each.name), bool):
                raise ValueError(f"Needs.{each.name}: expected True or False, got {getattr(self, each.name)!r}")
        if self.full_kl is not None:
            check_choice("Needs.full_kl", self.full_kl, get_args(FullKL))
        if not self.reference and (self.teacher or self.full_kl):
            raise ValueError("Needs: expected reference=True with teacher or full_kl, got False")
        if self.mismatched and self.look_ahead:
            raise ValueError(
                "Needs: expected mismatched or look_ahead, got both; step statistics are of one kind of row"
            )


@runtime_checkable
class Method(Protocol):
    """The whole of what training needs."""

    @property
    def name(self) -> str:
        """What records and messages call it."""
        ...

    @property
    def needs(self) -> Needs:
        """What it asks of training."""
        ...

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """The loss of a batch.

        Args:
            logps: `[N, T]` log-probability of each token under the policy, 0 outside `token_mask`.
            reference: `[N, T]` under the reference, without gradient; None where the method needs none.
            batch: The rows and their comparisons.
        """
        ...


@runtime_checkable
class GroupMethod(Method, Protocol):
    """A method that can learn from annotated groups."""

    def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """What is learned from the group, or None where it teaches nothing."""
        ...


Statistics = Mapping[str, Tensor]
Examples = Callable[[Group, Preference, np.random.Generator], Example | None]


@dataclass(frozen=True, eq=False)
class Hooks:
    """A method with every optional part filled in: what training calls.

    Attributes:
        name: The method's.
        needs: The method's.
        loss: The method's.
        token_mask: From a batch to `[N, T]` bool.
        step_statistics: From log-probabilities, reference and batch to entries by name, or None.
        row_statistics: From a batch to entries by name, or None.
        examples: From an annotated group to an example, or None.
    """

    name: str
    needs: Needs
    loss: Callable[[Tensor, Tensor | None, Batch], Loss]
    token_mask: Callable[[Batch], Tensor]
    step_statistics: Callable[[Tensor, Tensor | None, Batch], Statistics] | None
    row_statistics: Callable[[Batch], Statistics] | None
    examples: Examples | None


_REQUIRED = ("name", "needs", "loss")
_OPTIONAL = ("examples", "token_mask", "step_statistics", "row_statistics")


def hooks_of(method: Method) -> Hooks:
    """Reads a method.

    Raises:
        ValueError: It is a class, lacks a required part, has a part of the wrong kind, or one whose name is nearly that
            of an optional part and so would be overlooked.
    """
    if isinstance(method, type):
        raise ValueError(f"expected a method, got the class {method.__name__}; write {method.__name__}()")
    kind = type(method).__name__
    if missing := [part for part in _REQUIRED if not hasattr(method, part)]:
        raise ValueError(
            f"expected a method with name, needs and loss(logps, reference, batch), got {kind} without "
            f'{", ".join(missing)}; for example name = "mine" and needs = Needs(reference=True) in the class'
        )
    if not isinstance(method.name, str) or not isinstance(method.needs, Needs):
        raise ValueError(
            f"{kind}: expected a name (str) and needs (polyturn.algorithms.Needs), got {method.name!r} and "
            f"{method.needs!r}"
        )
    found = {part: getattr(method, part) for part in ("loss", *_OPTIONAL) if hasattr(method, part)}
    if wrong := [part for part, value in found.items() if not callable(value)]:
        raise ValueError(f"{method.name}: expected {wrong[0]} to be a method, got {found[wrong[0]]!r:.200}")
    settings: set[str] = {each.name for each in fields(method)} if is_dataclass(method) else set()
    for part in {name for name in dir(method) if not name.startswith("_")} - {*_REQUIRED, *_OPTIONAL} - settings:
        if hint := did_you_mean(part, (*_REQUIRED, *_OPTIONAL)):
            raise ValueError(
                f"{method.name}: expected parts named {', '.join((*_REQUIRED, *_OPTIONAL))}, got {part!r}.{hint} "
                "If it is another part of your class, give it a leading underscore."
            )
    if (method.needs.mismatched or method.needs.look_ahead) and "step_statistics" not in found:
        raise ValueError(f"{method.name}: expected step_statistics with needs {method.needs}, got none")
    return Hooks(
        name=method.name,
        needs=method.needs,
        loss=method.loss,
        token_mask=found.get("token_mask", _agent_tokens),
        step_statistics=found.get("step_statistics"),
        row_statistics=found.get("row_statistics"),
        examples=found.get("examples"),
    )


def _agent_tokens(batch: Batch) -> Tensor:
    """`[N, T]` bool: all tokens that the agent wrote."""
    return policy_mask(batch.turn_ids)


def scored(group: Group, preference: Preference, *, own: bool = False) -> Example | None:
    """Every member that has a score (without scores: a win rate) as a row; None where there is none.

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
            f"{', '.join(sorted(batch.outputs)) or 'log-probabilities only'}; train "
            "polyturn.algorithms.networks.value.ActorCritic(policy)"
        )
    return batch.outputs[name]


def behaviour(batch: Batch, method: str) -> Tensor:
    """`[N, T]` log-probabilities as sampled.

    Raises:
        ValueError: Some were not recorded.
    """
    if bool(batch.behaviour_logps[policy_mask(batch.turn_ids)].isnan().any()):
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


def check_pairs(what: str, pairs_per_group: int | None) -> None:
    """Raises ValueError unless it is a number of pairs, or None for every pair."""
    check_count(f"{what}.pairs_per_group", pairs_per_group, optional=True)
