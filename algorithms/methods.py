"""Methods: what each one takes of a group, which tokens it looks at, and its loss on log-probabilities.

A method is any object with `loss`. What else it may have is optional and read by the functions at the end of this file:
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
from polyturn.algorithms.estimators import Turns, kto_reference_point, policy_mask, sequence_logratio, sequence_sum
from polyturn.algorithms.losses import MarginFunction, gpo, kto, logistic
from polyturn.algorithms.pairing import Example, compare, pairs_by_outcome, winners
from polyturn.envs.preference import Preference
from polyturn.envs.suggest import did_you_mean
from polyturn.envs.trajectory import Group

Mask = Literal["agent", "all"]


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


@dataclass(frozen=True)
class SFT:
    """Negative log-likelihood of the agent's tokens, averaged over all tokens of a step.

    Without a preference every valid member is a demonstration. With one, only winners count; best-of-N and Pref-FT
    (arXiv 2404.14367) are this with `best=1`.

    Attributes:
        best: How many winners of a group at most, drawn at random; None for all.
        above: Members with a score greater than this win; None: those with the highest win rate.
        turns: "all" or only the "last" turn of a trajectory.
    """

    best: int | None = 1
    above: float | None = None
    turns: Turns = "all"
    name: str = "sft"
    needs_reference: bool = False

    def __post_init__(self) -> None:
        check_choice(f"{type(self).__name__}.turns", self.turns, ("all", "last"))

    def examples(self, group: Group, preference: Preference | None, rng: np.random.Generator) -> Example | None:
        """Winners of the group, or every valid member where there is no preference."""
        if preference is None:
            rows = np.flatnonzero([member.valid for member in group])
        else:
            rows = winners(group, preference, rng, count=self.best, above=self.above)
        return Example(tuple(group[int(row)] for row in rows)) if len(rows) else None

    def where(self, batch: Batch) -> Tensor:
        """`[N, T]` bool: the agent's tokens."""
        return policy_mask(batch.turn, turns=self.turns)

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """NLL per row, counted by tokens. Rows that lost a pair or are marked undesirable are left out."""
        keep = ~batch.mismatched & (batch.desirable != 0)
        if len(batch.pairs):
            keep &= torch.isin(torch.arange(len(batch), device=batch.pairs.device), batch.pairs[:, 0])
        rows = keep.nonzero()[:, 0]
        values = -sequence_sum(logps, batch.turn, turns=self.turns)[rows]
        count = policy_mask(batch.turn, turns=self.turns).sum(1)[rows].to(values.dtype)
        return Loss(values, count, {"tokens_per_row": count})


@dataclass(frozen=True)
class RAFT(SFT):
    """Reward-ranked fine-tuning (arXiv 2304.06767): SFT on every member whose score is positive.

    As M-DPO's baseline (arXiv 2409.02392, 1/0 rewards) that is every right answer of the policy's own samples.
    """

    best: int | None = None
    above: float | None = 0.0
    name: str = "raft"


@dataclass(frozen=True)
class MDPO:
    """Multi-turn direct preference optimisation (arXiv 2409.02392): f(beta h) over whole trajectories.

    h is the winner's log-ratio to the reference minus the loser's, summed in nats over the tokens the agent wrote.
    What a deterministic environment says cancels; with a stochastic one the objective is biased (the paper's own
    derivation leaves a term that is zero only for deterministic observations).

    Attributes:
        beta: Strength of the pull to the reference (eta in the paper).
        turns: "all", or "last": the single-turn DPO baseline, which looks at the last turn only.
        mask: "agent"; or "all", the ablation that also counts what the environment said after the first observation.
        f: Member of the GPO family (arXiv 2402.05749), a decreasing function of beta h.
        nll_weight: Adds this times the winner's NLL per token of its own, as in the paper's ablation.
        pairs_per_group: Random pairs of a group; None for all.
        drop_error_winners: Leave out winners that ended on a tool error.
        soft_labels: Weigh both orders of a pair by the preference's probabilities instead of the winner alone.
    """

    beta: float = 0.1
    turns: Turns = "all"
    mask: Mask = "agent"
    f: MarginFunction = logistic
    nll_weight: float = 0.0
    pairs_per_group: int | None = 1
    drop_error_winners: bool = True
    soft_labels: bool = False
    name: str = "mdpo"
    needs_reference: bool = True

    def __post_init__(self) -> None:
        check_range("MDPO.beta", self.beta, 0, above=True)
        check_range("MDPO.nll_weight", self.nll_weight, 0)
        check_pairs("MDPO", self.pairs_per_group)
        check_choice("MDPO.mask", self.mask, ("agent", "all"))
        check_choice("MDPO.turns", self.turns, ("all", "last"))
        if self.mask == "all" and self.turns == "last":
            raise ValueError('MDPO: expected mask="agent" with turns="last"; the last turn holds no observation')

    def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """Random pairs of a winner and a loser; None where nothing can be compared."""
        drop = self.drop_error_winners
        pairs = pairs_by_outcome(group, preference, rng, pairs_per_group=self.pairs_per_group, drop_error_winners=drop)
        return compare(group, preference, pairs, soft=self.soft_labels)

    def where(self, batch: Batch) -> Tensor:
        """`[N, T]` bool: tokens that count in the margin."""
        return policy_mask(self._turn(batch), turns=self.turns)

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """f(beta h) per pair, times the pair's weight."""
        assert reference is not None
        winner = batch.pairs[:, 0]
        logratio = sequence_logratio(logps, reference, self._turn(batch), turns=self.turns)
        margin, metrics = margins(logratio, batch)
        values = gpo(margin, beta=self.beta, f=self.f, probability=batch.probability)
        if self.nll_weight:
            length = policy_mask(batch.turn, turns=self.turns).sum(1).clamp(min=1)
            values = values - self.nll_weight * (sequence_sum(logps, batch.turn, turns=self.turns) / length)[winner]
        return Loss(values * batch.weight, batch.weight, metrics)

    def _turn(self, batch: Batch) -> Tensor:
        if self.mask == "agent":
            return batch.turn
        started = (batch.turn >= 0).cumsum(1) > 0
        return torch.where(started & batch.mask, batch.turn.clamp(min=0), torch.full_like(batch.turn, -1))


@dataclass(frozen=True)
class MKTO:
    """Multi-turn Kahneman-Tversky optimisation (arXiv 2409.02392): unpaired, desirable and undesirable trajectories.

    The loss of a row is weight * (1 - sigmoid(+-beta (g - z0))): g is its log-ratio in nats over the tokens the agent
    wrote, z0 the policy's KL to the reference over the whole step, estimated on mismatched prompts and continuations,
    clamped at 0, without gradient. z0 stays in nats as in the KTO paper (arXiv 2402.01306); M-KTO's text leaves it
    unscaled by eta.

    Attributes:
        beta: Strength of the pull to the reference.
        turns: "all", or "last" for the single-turn KTO baseline.
        desirable_weight: Weight of desirable rows.
        undesirable_weight: Weight of undesirable rows.
        pairs_per_group: How many desirable and as many undesirable rows of a group; None for all pairs' rows.
        drop_error_winners: Leave out desirable rows that ended on a tool error.
    """

    beta: float = 0.1
    turns: Turns = "all"
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    pairs_per_group: int | None = 1
    drop_error_winners: bool = True
    name: str = "mkto"
    needs_reference: bool = True
    mismatched: bool = True

    def __post_init__(self) -> None:
        check_range("MKTO.beta", self.beta, 0, above=True)
        check_range("MKTO.desirable_weight", self.desirable_weight, 0)
        check_range("MKTO.undesirable_weight", self.undesirable_weight, 0)
        check_pairs("MKTO", self.pairs_per_group)
        check_choice("MKTO.turns", self.turns, ("all", "last"))

    def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """Winners and losers of random pairs, as unpaired rows, so both kinds are balanced."""
        drop = self.drop_error_winners
        pairs = pairs_by_outcome(group, preference, rng, pairs_per_group=self.pairs_per_group, drop_error_winners=drop)
        if not len(pairs):
            return None
        # A member that wins one pair and loses another stays once for each side.
        members = np.unique(np.concatenate([pairs[:, [0]], pairs[:, [1]] + len(group)]))
        return Example(
            tuple(group[int(member) % len(group)] for member in members),
            desirable=(members < len(group)).astype(np.float32),
        )

    def where(self, batch: Batch) -> Tensor:
        """`[N, T]` bool: tokens that count in the log-ratio."""
        return policy_mask(batch.turn, turns=self.turns)

    def shared(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Mapping[str, Tensor]:
        """Log-ratios of mismatched rows; their mean over the whole step is the estimate of the KL."""
        assert reference is not None
        rows = batch.mismatched.nonzero()[:, 0]
        return {"kl": sequence_logratio(logps, reference, batch.turn, turns=self.turns)[rows].detach()}

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """KTO's value per labelled row."""
        assert reference is not None
        shared = batch.shared if "kl" in batch.shared else self.shared(logps, reference, batch)
        z0 = kto_reference_point(shared["kl"].reshape(-1))
        rows = (~batch.mismatched & ~batch.desirable.isnan()).nonzero()[:, 0]
        logratio = sequence_logratio(logps, reference, batch.turn, turns=self.turns)[rows]
        desirable = batch.desirable[rows] > 0
        values = kto(
            logratio,
            desirable,
            beta=self.beta,
            z0=z0,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
        fixed = logratio.detach()
        metrics = {
            "z0": z0.reshape(1),
            "desirable_logratio": fixed[desirable],
            "undesirable_logratio": fixed[~desirable],
        }
        return Loss(values, None, metrics)


def margins(logratio: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """`[P]` log-ratio of each pair's first minus its second, and the metrics of methods that compare pairs."""
    first, second = batch.pairs.unbind(1)
    margin = logratio[first] - logratio[second]
    metrics = {
        "margin": margin,
        "accuracy": (margin > 0).to(margin.dtype),
        "chosen_logratio": logratio[first],
        "rejected_logratio": logratio[second],
    }
    return margin, {name: value.detach() for name, value in metrics.items()}


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
