"""Methods that learn from given groups: pairs (GPO family, IPO), unpaired rows (PMPO, DRO-V), weighted rows (RWR).

None asks who sampled the groups, so over fresh groups of the policy's own (`polyturn.algorithms.online`) they are their
online forms: online DPO is `MDPO` or `GPO`, online SLiC `GPO(f="hinge")`, online IPO `IPO`, and IPO over two samples of
the geometric mixture is IPO-MD (arXiv 2403.08635).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from polyturn.algorithms import losses
from polyturn.algorithms.batch import Batch
from polyturn.algorithms.estimators import Turns, log_ratio_to_go, policy_mask, sequence_logratio, sequence_sum
from polyturn.algorithms.losses import MarginFunction, dro, gpo, ipo, pmpo, rwr
from polyturn.algorithms.methods import SFT, Loss, check_choice, check_pairs, check_range, margins
from polyturn.algorithms.pairing import Example, compare, judged_pairs, own_members, pairs_by_outcome, unary
from polyturn.envs.preference import Preference
from polyturn.envs.trajectory import Group

MARGIN_FUNCTIONS: Mapping[str, MarginFunction] = {
    "logistic": losses.logistic,
    "hinge": losses.hinge,
    "squared": losses.squared,
    "exponential": losses.exponential,
    "truncated_quadratic": losses.truncated_quadratic,
    "savage": losses.savage,
}
"""The GPO family (arXiv 2402.05749, table 1) by name."""


@dataclass(frozen=True)
class GPO:
    """Generalised preference optimisation (arXiv 2402.05749): f(beta h) of pairs, f by name.

    logistic is DPO (M-DPO over several turns), hinge is SLiC, squared is IPO with beta = 2 tau. h is the first's
    log-ratio to the reference minus the second's, in nats over the agent's tokens.

    Attributes:
        f: Member of the family.
        beta: Strength of the pull to the reference; the same number is another strength with another f.
        soft_labels: Weigh both orders of every judged pair, ties included, by the preference's probability; otherwise
            the likelier winner has won for certain and ties are left out.
        label_smoothing: Share of labels taken to be wrong: p becomes (1 - e) p + e (1 - p).
        turns: "all", or "last" for the single-turn form.
        pairs_per_group: Random pairs of a group; None for all.
        drop_error_winners: Leave out winners that ended on a tool error (hard labels only).
    """

    f: str = "logistic"
    beta: float = 0.1
    soft_labels: bool = False
    label_smoothing: float = 0.0
    turns: Turns = "all"
    pairs_per_group: int | None = 1
    drop_error_winners: bool = False
    name: str = "gpo"
    needs_reference: bool = True

    def __post_init__(self) -> None:
        check_range("GPO.beta", self.beta, 0, above=True)
        check_pairs("GPO", self.pairs_per_group)
        check_choice("GPO.f", self.f, tuple(MARGIN_FUNCTIONS))
        check_choice("GPO.turns", self.turns, ("all", "last"))
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"GPO.label_smoothing: expected a number in [0, 0.5), got {self.label_smoothing}")

    def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """Random pairs; None where nothing can be compared."""
        return _pairs(self, group, preference, rng)

    def where(self, batch: Batch) -> Tensor:
        """`[N, T]` bool: tokens that count in the margin."""
        return policy_mask(batch.turn, turns=self.turns)

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """p f(beta h) + (1 - p) f(-beta h) per pair, times the pair's weight."""
        assert reference is not None
        logratio = sequence_logratio(logps, reference, batch.turn, turns=self.turns)
        margin, metrics = margins(logratio, batch)
        smooth = self.label_smoothing
        probability = (1.0 - smooth) * batch.probability + smooth * (1.0 - batch.probability)
        values = gpo(margin, beta=self.beta, f=MARGIN_FUNCTIONS[self.f], probability=probability)
        return Loss(values * batch.weight, batch.weight, metrics)


@dataclass(frozen=True)
class IPO:
    """Identity preference optimisation (arXiv 2310.12036): the margin of a certain pair is drawn to 1 / (2 tau) nats.

    Over fresh pairs of the policy it is online IPO, over pairs that are both drawn from the geometric mixture IPO-MD
    (arXiv 2403.08635), whose fixed point at mixing 0 is the Nash equilibrium regularised with tau.

    Attributes:
        tau: Strength of the pull to the reference.
        soft_labels: As in `GPO`. On by default: the paper's objective is in the preference's probability.
        average: Divide each row's log-ratio by its own number of agent tokens, as some libraries do; the target is then
            1 / (2 tau) nats PER TOKEN. Off in the paper.
        turns: "all", or "last" for the single-turn form.
        pairs_per_group: Random pairs of a group; None for all.
        drop_error_winners: Leave out winners that ended on a tool error (hard labels only).
    """

    tau: float = 0.1
    soft_labels: bool = True
    average: bool = False
    turns: Turns = "all"
    pairs_per_group: int | None = None
    drop_error_winners: bool = False
    name: str = "ipo"
    needs_reference: bool = True

    def __post_init__(self) -> None:
        check_pairs("IPO", self.pairs_per_group)
        check_choice("IPO.turns", self.turns, ("all", "last"))
        _check_positive("IPO.tau", self.tau)

    def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """Judged pairs; None where there are none."""
        return _pairs(self, group, preference, rng)

    def where(self, batch: Batch) -> Tensor:
        """`[N, T]` bool: tokens that count in the margin."""
        return policy_mask(batch.turn, turns=self.turns)

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """p (h - 1/(2 tau))^2 + (1 - p) (h + 1/(2 tau))^2 per pair, times the pair's weight."""
        assert reference is not None
        logratio = sequence_logratio(logps, reference, batch.turn, turns=self.turns)
        if self.average:
            logratio = logratio / self.where(batch).sum(1).clamp(min=1)
        margin, metrics = margins(logratio, batch)
        values = ipo(margin, tau=self.tau, probability=batch.probability)
        return Loss(values * batch.weight, batch.weight, metrics)


@dataclass(frozen=True)
class PMPO:
    """Preference optimisation as inference (arXiv 2410.04166): raise accepted rows, lower rejected ones, unpaired.

    The loss is -alpha mean(accepted log pi) + (1 - alpha) mean(rejected log pi) + beta mean KL(pi_ref || pi), the KL
    reference first, over the full vocabulary, at every token of the rows. That is the KL of whole answers only where
    the rows were drawn from the reference: collect with the policy that is the reference of the step (what `iterate`
    does), or put the policy that wrote the data there. Without any label a row counts in the KL alone.

    The rejected term has no lower bound: with alpha = 0 keep beta above 1, with alpha = 1/2 near 1/2 or above
    (`polyturn.algorithms.exact.closed_forms.pmpo_optimum`).

    Attributes:
        alpha: Weight of accepted rows, 1 - alpha of rejected ones; 1 and 0 learn from one side alone.
        beta: Weight of the KL.
        above: Rows with a score above this are accepted, all other rejected (0: by the sign of an advantage). None: by
            win rate, above and below 1/2, ties neither; of 4 different samples the best 2 and the worst 2.
    """

    alpha: float = 0.5
    beta: float = 1.0
    above: float | None = None
    name: str = "pmpo"
    needs_reference: bool = True
    full_kl: Literal["reference_first"] = "reference_first"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"PMPO.alpha: expected a number in [0, 1], got {self.alpha}")
        if not self.beta >= 0:
            raise ValueError(f"PMPO.beta: expected 0 or more, got {self.beta}")

    def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """All compared members, labelled; None where none is better than another."""
        if self.above is not None and preference.scores is None:
            raise ValueError("PMPO: expected a preference with scores to compare with `above`, got one without")
        rate = unary(group, preference, scores=self.above is not None)
        middle = 0.5 if self.above is None else self.above
        rows = np.flatnonzero(~np.isnan(rate))
        label = (rate[rows] > middle).astype(np.float32)
        if self.above is None:
            label[np.abs(rate[rows] - middle) < 1e-9] = np.nan
        if not len(rows) or bool(np.isnan(label).all()):
            return None
        return Example(tuple(group[int(row)] for row in rows), desirable=label)

    def tally(self, batch: Batch) -> Mapping[str, Tensor]:
        """Shares of accepted and of rejected rows, so that either side is a mean over itself."""
        rows = batch.desirable[~batch.mismatched]
        return {"accepted": (rows == 1).float(), "rejected": (rows == 0).float()}

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """Each row's part of the three means."""
        if "kl" not in batch.outputs:
            raise ValueError('PMPO.loss: expected batch.outputs["kl"], the KL that `train` computes, got none')
        tally = {name: values.mean() for name, values in self.tally(batch).items()}
        share = {name: batch.shared.get(name, tally[name]).to(logps.dtype) for name in tally}
        accepted, rejected = batch.desirable == 1, batch.desirable == 0
        zero = torch.zeros((), dtype=logps.dtype, device=logps.device)
        # A side without rows has the share 0, and no row that would be divided by it.
        balance = torch.where(accepted, 1 / share["accepted"], torch.where(rejected, 1 / share["rejected"], zero))
        total = sequence_sum(logps, batch.turn)
        kl = sequence_sum(batch.outputs["kl"], batch.turn)
        values = pmpo(total * balance, accepted, kl, alpha=self.alpha, beta=self.beta)
        metrics = {"kl": kl, "accepted_logp": total[accepted], "rejected_logp": total[rejected]}
        return Loss(values, None, {name: value.detach() for name, value in metrics.items()})


@dataclass(frozen=True)
class DROV:
    """Direct reward optimisation with a value (DRO-V, arXiv 2405.19107): single trajectories with a scalar each.

    Minimises (r - V - tau g)^2 / 2 in policy and value together, so the value must not share weights with the policy:
    train a `polyturn.algorithms.networks.value.ActorCritic`. The optimum, for any behaviour that reaches every answer,
    is pi proportional to pi_ref exp(r / tau) and V = tau log E_ref[exp(r / tau)].

    Like M-DPO this is exact only where what the environment says is certain: V of a later prefix may not explain the
    luck of a reply.

    Attributes:
        tau: Temperature, in units of the reward; the paper standardises rewards over the data set (`standardised`).
        per_token: One residual for each prefix, averaged over the row's tokens (the paper's better form); otherwise the
            value of the prompt alone.
        value_weight: Weight of the value's loss; it moves the value network only.
    """

    tau: float = 1.0
    per_token: bool = True
    value_weight: float = 1.0
    name: str = "dro_v"
    needs_reference: bool = True

    def __post_init__(self) -> None:
        _check_positive("DROV.tau", self.tau)

    def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """Every valid member with its score; without scores, with its win rate."""
        return scored(group, preference)

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """Policy loss + value loss per row, means over the row's prefixes."""
        assert reference is not None
        values = output(batch, "values", self.name)
        mask = policy_mask(batch.turn)
        if not self.per_token:
            mask = mask & (mask.cumsum(1) == 1)
        togo = log_ratio_to_go(logps, reference, batch.turn)
        zero = torch.zeros_like(togo)
        reward = torch.where(mask, batch.scores[:, None].to(togo.dtype), zero)
        guess = torch.where(mask, values, zero)
        policy_loss, value_loss = dro(reward, guess, torch.where(mask, togo, zero), tau=self.tau)
        length = mask.sum(1).clamp(min=1)
        parts = (policy_loss.sum(1) / length, self.value_weight * value_loss.sum(1) / length)
        metrics = {
            "policy_loss": parts[0],
            "value_loss": parts[1],
            "value": guess[mask],
            "logratio": sequence_logratio(logps, reference, batch.turn),
        }
        return Loss(parts[0] + parts[1], None, {name: value.detach() for name, value in metrics.items()})


@dataclass(frozen=True)
class RWR:
    """Reward-weighted regression: -min(exp(r / beta), max_weight) log pi (Peters and Schaal 2007).

    Settings as in the runs of arXiv 2404.14367, which clip the weight to [0, 20].

    Attributes:
        beta: Temperature of the reward; smaller imitates the best alone.
        max_weight: Largest weight of a row.
    """

    beta: float = 1.0
    max_weight: float = 20.0
    name: str = "rwr"
    needs_reference: bool = False

    def __post_init__(self) -> None:
        _check_positive("RWR.beta", self.beta)

    def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """Every valid member with its score; without scores, with its win rate."""
        return scored(group, preference)

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """Weighted negative log-likelihood of each row."""
        reward = batch.scores.to(logps.dtype)
        values = rwr(sequence_sum(logps, batch.turn), reward, beta=self.beta, max_weight=self.max_weight)
        return Loss(values, None, {"score": batch.scores})


@dataclass(frozen=True)
class BestOfN(SFT):
    """Imitation of the best of N samples (BoN distillation; arXiv 2404.14367 with N = 10).

    The best is the member with the highest win rate; of several, one at random. Groups of equals teach nothing.
    """

    name: str = "best_of_n"


def standardised(examples: list[Example]) -> list[Example]:
    """The same examples with scores of mean 0 and deviation 1 over all of them, as DRO asks for.

    Raises:
        ValueError: All scores are equal, or there are none.
    """
    every = np.concatenate([example.scores for example in examples]) if examples else np.zeros(0)
    known = every[~np.isnan(every)].astype(np.float64)
    if not len(known) or float(known.std()) == 0.0:
        raise ValueError("standardised: expected scores that differ, got none or the same everywhere")
    mean, deviation = float(known.mean()), float(known.std())
    return [replace(example, scores=(example.scores - mean) / deviation) for example in examples]


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


def _pairs(method: GPO | IPO, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
    if method.soft_labels:
        pairs = judged_pairs(group, preference, rng, pairs_per_group=method.pairs_per_group)
    else:
        drop = method.drop_error_winners
        pairs = pairs_by_outcome(
            group, preference, rng, pairs_per_group=method.pairs_per_group, drop_error_winners=drop
        )
    return compare(group, preference, pairs, soft=method.soft_labels)


def _check_positive(what: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{what}: expected a positive number, got {value}")
