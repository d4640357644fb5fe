"""Pairs: one trajectory is better than another from the same start.

None of these methods depends on what sampled the groups. Over fresh groups of the policy's own
(`polyturn.algorithms.online`) they are their online forms: online DPO is `MDPO` or `GPO`, online SLiC `GPO(f="hinge")`,
online IPO `IPO`, and IPO over two samples of the geometric mixture is IPO-MD (arXiv 2403.08635).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from polyturn.algorithms import losses
from polyturn.algorithms.batch import Batch
from polyturn.algorithms.estimators import Turns, policy_mask, sequence_logratio, sequence_sum
from polyturn.algorithms.losses import MarginFunction, gpo, ipo, logistic
from polyturn.algorithms.methods.base import Loss, Needs, check_pairs
from polyturn.algorithms.pairing import Example, compare, judged_pairs, pairs_by_outcome
from polyturn.envs.preference import Preference
from polyturn.envs.settings import check_choice, check_range
from polyturn.envs.trajectory import Group

Mask = Literal["agent", "all"]


MARGIN_FUNCTIONS: Mapping[str, MarginFunction] = {
    "logistic": losses.logistic,
    "hinge": losses.hinge,
    "squared": losses.squared,
    "exponential": losses.exponential,
    "truncated_quadratic": losses.truncated_quadratic,
    "savage": losses.savage,
}
"""The GPO family (arXiv 2402.05749, table 1) by name."""


@dataclass(frozen=True, kw_only=True)
class Pairwise:
    """What the methods on pairs share: the pairs they take of a group, and the margin of a pair.

    Attributes:
        soft_labels: Weigh both orders of every judged pair, ties included, by the preference's probability; otherwise
            the likelier winner has won for certain and ties are left out.
        turns: "all", or "last": the single-turn form, which looks at the last turn only.
        pairs_per_group: Random pairs of a group; None for all.
        drop_error_winners: Leave out winners that ended on a tool error (hard labels only).
    """

    soft_labels: bool = False
    turns: Turns = "all"
    pairs_per_group: int | None = 1
    drop_error_winners: bool = False
    needs: ClassVar[Needs] = Needs()

    def __post_init__(self) -> None:
        kind = type(self).__name__
        check_pairs(kind, self.pairs_per_group)
        check_choice(f"{kind}.turns", self.turns, ("all", "last"))

    def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """Random pairs; None where nothing can be compared."""
        if self.soft_labels:
            pairs = judged_pairs(group, preference, rng, pairs_per_group=self.pairs_per_group)
        else:
            drop = self.drop_error_winners
            count = self.pairs_per_group
            pairs = pairs_by_outcome(group, preference, rng, pairs_per_group=count, drop_error_winners=drop)
        return compare(group, preference, pairs, soft=self.soft_labels)

    def token_mask(self, batch: Batch) -> Tensor:
        """`[N, T]` bool: tokens that count in the margin."""
        return policy_mask(self._turn_ids(batch), turns=self.turns)

    def _turn_ids(self, batch: Batch) -> Tensor:
        """`[N, T]` the turn that each counted token belongs to, -1 for all others."""
        return batch.turn_ids

    def _logratio(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Tensor:
        """`[N]` log-ratio of each row, in nats, summed over the counted tokens."""
        assert reference is not None
        return sequence_logratio(logps, reference, self._turn_ids(batch), turns=self.turns)


@dataclass(frozen=True, kw_only=True)
class MDPO(Pairwise):
    """Multi-turn direct preference optimisation (arXiv 2409.02392): f(beta h) over whole trajectories.

    h is the winner's log-ratio to the reference minus the loser's, summed in nats over the tokens the agent wrote.
    What a deterministic environment says cancels; with a stochastic one the objective is biased (the paper's own
    derivation leaves a term that is zero only for deterministic observations).

    Attributes:
        beta: Strength of the pull to the reference (eta in the paper).
        mask: "agent"; or "all", the ablation that also counts what the environment said after the first observation.
        f: Member of the GPO family (arXiv 2402.05749), a decreasing function of beta h.
        nll_weight: Adds this times the winner's NLL per agent token, as in the paper's ablation.
        soft_labels: See `Pairwise`, as for the other fields.
    """

    beta: float = 0.1
    mask: Mask = "agent"
    f: MarginFunction = logistic
    nll_weight: float = 0.0
    drop_error_winners: bool = True
    name: ClassVar[str] = "mdpo"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("MDPO.beta", self.beta, 0, above=True)
        check_range("MDPO.nll_weight", self.nll_weight, 0)
        check_choice("MDPO.mask", self.mask, ("agent", "all"))
        if self.mask == "all" and self.turns == "last":
            raise ValueError('MDPO: expected mask="agent" with turns="last"; the last turn holds no observation')

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """f(beta h) per pair, times the pair's weight."""
        margin, metrics = margins(self._logratio(logps, reference, batch), batch)
        values = gpo(margin, beta=self.beta, f=self.f, probability=batch.probability)
        if self.nll_weight:
            length = policy_mask(batch.turn_ids, turns=self.turns).sum(1).clamp(min=1)
            likelihood = sequence_sum(logps, batch.turn_ids, turns=self.turns) / length
            values = values - self.nll_weight * likelihood[batch.pairs[:, 0]]
        return Loss(values * batch.weight, batch.weight, metrics)

    def _turn_ids(self, batch: Batch) -> Tensor:
        if self.mask == "agent":
            return batch.turn_ids
        agent = batch.turn_ids >= 0
        started = agent.cumsum(1) > 0
        if batch.segments is not None:
            # The prompt of every segment stands before its first action, as that of an ordinary row does.
            number = batch.segments.long()
            first = torch.full_like(number, number.shape[1]).scatter_reduce(
                1,
                number,
                torch.where(agent, torch.arange(number.shape[1], device=number.device), number.shape[1]),
                "amin",
            )
            started = torch.arange(number.shape[1], device=number.device) >= first.gather(1, number)
        return torch.where(started & batch.mask, batch.turn_ids.clamp(min=0), torch.full_like(batch.turn_ids, -1))


@dataclass(frozen=True, kw_only=True)
class GPO(Pairwise):
    """Generalised preference optimisation (arXiv 2402.05749): f(beta h) of pairs, f by name.

    logistic is DPO (M-DPO over several turns), hinge is SLiC, squared is IPO with beta = 2 tau. h is the first's
    log-ratio to the reference minus the second's, in nats over the agent's tokens.

    Attributes:
        f: Member of the family.
        beta: Strength of the pull to the reference; the same number is another strength with another f.
        label_smoothing: Share of labels taken to be wrong: p becomes (1 - e) p + e (1 - p).
        soft_labels: See `Pairwise`, as for the other fields.
    """

    f: str = "logistic"
    beta: float = 0.1
    label_smoothing: float = 0.0
    name: ClassVar[str] = "gpo"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("GPO.beta", self.beta, 0, above=True)
        check_choice("GPO.f", self.f, tuple(MARGIN_FUNCTIONS))
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"GPO.label_smoothing: expected a number in [0, 0.5), got {self.label_smoothing}")

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """p f(beta h) + (1 - p) f(-beta h) per pair, times the pair's weight."""
        margin, metrics = margins(self._logratio(logps, reference, batch), batch)
        smooth = self.label_smoothing
        probability = (1.0 - smooth) * batch.probability + smooth * (1.0 - batch.probability)
        values = gpo(margin, beta=self.beta, f=MARGIN_FUNCTIONS[self.f], probability=probability)
        return Loss(values * batch.weight, batch.weight, metrics)


@dataclass(frozen=True, kw_only=True)
class IPO(Pairwise):
    """Identity preference optimisation (arXiv 2310.12036): the margin of a certain pair is drawn to 1 / (2 tau) nats.

    Over fresh pairs of the policy it is online IPO, over pairs that are both drawn from the geometric mixture IPO-MD
    (arXiv 2403.08635), whose fixed point at mixing 0 is the Nash equilibrium regularised with tau.

    Attributes:
        tau: Strength of the pull to the reference.
        average: Divide each row's log-ratio by its own number of agent tokens, as some libraries do; the target is then
            1 / (2 tau) nats PER TOKEN. Off in the paper.
        soft_labels: See `Pairwise`, as for the other fields. On by default: the paper's objective is in the
            preference's probability, and over all pairs.
    """

    tau: float = 0.1
    average: bool = False
    soft_labels: bool = True
    pairs_per_group: int | None = None
    name: ClassVar[str] = "ipo"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("IPO.tau", self.tau, 0, above=True)

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """p (h - 1/(2 tau))^2 + (1 - p) (h + 1/(2 tau))^2 per pair, times the pair's weight."""
        logratio = self._logratio(logps, reference, batch)
        if self.average:
            logratio = logratio / self.token_mask(batch).sum(1).clamp(min=1)
        margin, metrics = margins(logratio, batch)
        values = ipo(margin, tau=self.tau, probability=batch.probability)
        return Loss(values * batch.weight, batch.weight, metrics)


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
