"""Unpaired rows: a trajectory is desirable or not, or has a score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from polyturn.algorithms.batch import Batch
from polyturn.algorithms.estimators import (
    Turns,
    kto_reference_point,
    log_ratio_to_go,
    policy_mask,
    sequence_logratio,
    sequence_sum,
)
from polyturn.algorithms.losses import dro, kto, pmpo
from polyturn.algorithms.methods.base import Loss, Needs, check_pairs, output, scored
from polyturn.algorithms.pairing import Example, exceeds, pairs_by_outcome, unary
from polyturn.envs.preference import Preference
from polyturn.envs.settings import check_choice, check_range
from polyturn.envs.trajectory import Group


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
        pairs_per_group: Number of desirable, and of undesirable, rows of a group; None for all pairs' rows.
        drop_error_winners: Leave out desirable rows that ended on a tool error.
    """

    beta: float = 0.1
    turns: Turns = "all"
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    pairs_per_group: int | None = 1
    drop_error_winners: bool = True
    name: ClassVar[str] = "mkto"
    needs: ClassVar[Needs] = Needs(mismatched=True)

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

    def token_mask(self, batch: Batch) -> Tensor:
        """`[N, T]` bool: tokens that count in the log-ratio."""
        return policy_mask(batch.turn_ids, turns=self.turns)

    def step_statistics(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Mapping[str, Tensor]:
        """Log-ratios of mismatched rows; their mean over the whole step is the estimate of the KL."""
        assert reference is not None
        rows = batch.mismatched.nonzero()[:, 0]
        return {"kl": sequence_logratio(logps, reference, batch.turn_ids, turns=self.turns)[rows].detach()}

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """KTO's value per labelled row."""
        assert reference is not None
        statistics = batch.statistics if "kl" in batch.statistics else self.step_statistics(logps, reference, batch)
        z0 = kto_reference_point(statistics["kl"].reshape(-1))
        rows = (~batch.mismatched & ~batch.desirable.isnan()).nonzero()[:, 0]
        logratio = sequence_logratio(logps, reference, batch.turn_ids, turns=self.turns)[rows]
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


@dataclass(frozen=True)
class PMPO:
    """Preference optimisation as inference (arXiv 2410.04166): raise accepted rows, lower rejected ones, unpaired.

    The loss is -alpha mean(accepted log pi) + (1 - alpha) mean(rejected log pi) + beta mean KL(pi_ref || pi), the KL
    reference first, over the full vocabulary, at every token of the rows. That is the KL of whole answers only where
    the rows were drawn from the reference: collect with the policy that is the reference of the step (what `iterate`
    does), or put the policy that wrote the data there. A row without a label counts only in the KL.

    The rejected term has no lower bound: with alpha = 0 keep beta above 1, with alpha = 1/2 near 1/2 or above
    (`polyturn.algorithms.exact.closed_forms.pmpo_optimum`).

    Attributes:
        alpha: Weight of accepted rows, 1 - alpha of rejected ones; 1 and 0 learn from one side only.
        beta: Weight of the KL.
        above: Rows with a score above this are accepted, all other rejected (0: by the sign of an advantage). None: by
            win rate, above and below 1/2, ties neither; of 4 different samples the best 2 and the worst 2.
    """

    alpha: float = 0.5
    beta: float = 1.0
    above: float | None = None
    name: ClassVar[str] = "pmpo"
    needs: ClassVar[Needs] = Needs(full_kl="reference_first")

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
        label = exceeds(rate[rows], middle).astype(np.float32)
        if self.above is None:
            label[np.abs(rate[rows] - middle) < 1e-9] = np.nan
        if not len(rows) or bool(np.isnan(label).all()):
            return None
        return Example(tuple(group[int(row)] for row in rows), desirable=label)

    def row_statistics(self, batch: Batch) -> Mapping[str, Tensor]:
        """Shares of accepted and of rejected rows, so that either side is a mean over itself."""
        rows = batch.desirable[~batch.mismatched]
        return {"accepted": (rows == 1).float(), "rejected": (rows == 0).float()}

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """Each row's part of the three means."""
        if "kl" not in batch.outputs:
            raise ValueError('PMPO.loss: expected batch.outputs["kl"], the KL that `train` computes, got none')
        here = {name: values.mean() for name, values in self.row_statistics(batch).items()}
        share = {name: batch.statistics.get(name, here[name]).to(logps.dtype) for name in here}
        accepted, rejected = batch.desirable == 1, batch.desirable == 0
        zero = logps.new_zeros(())
        # A side without rows has the share 0, and no row that would be divided by it.
        balance = torch.where(accepted, 1 / share["accepted"], torch.where(rejected, 1 / share["rejected"], zero))
        total = sequence_sum(logps, batch.turn_ids)
        kl = sequence_sum(batch.outputs["kl"], batch.turn_ids)
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
    chance in a reply.

    Attributes:
        tau: Temperature, in units of the reward; the paper standardises rewards over the data set (`standardised`).
        per_token: One residual for each prefix, averaged over the row's tokens (the paper's better form); otherwise the
            value of only the prompt.
        value_weight: Weight of the value's loss; it moves the value network only.
    """

    tau: float = 1.0
    per_token: bool = True
    value_weight: float = 1.0
    name: ClassVar[str] = "dro_v"
    needs: ClassVar[Needs] = Needs(values=True)

    def __post_init__(self) -> None:
        check_range("DROV.tau", self.tau, 0, above=True)

    def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """Every valid member with its score; without scores, with its win rate."""
        return scored(group, preference)

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """Policy loss + value loss per row, means over the row's prefixes."""
        assert reference is not None
        values = output(batch, "values", self.name)
        mask = policy_mask(batch.turn_ids)
        if not self.per_token:
            mask = mask & (mask.cumsum(1) == 1)
        togo = log_ratio_to_go(logps, reference, batch.turn_ids)
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
            "logratio": sequence_logratio(logps, reference, batch.turn_ids),
        }
        return Loss(parts[0] + parts[1], None, {name: value.detach() for name, value in metrics.items()})


def standardised(examples: list[Example]) -> list[Example]:
    """The same examples with scores of mean 0 and deviation 1 over all of them, as DRO asks for.

    Raises:
        ValueError: All scores are equal, or there are none.
    """
    every = np.concatenate([example.scores for example in examples]) if examples else np.zeros(0)
    known = every[~np.isnan(every)].astype(np.float64)
    # Scores are float32: a spread of a few units in the last place is rounding, which a division would blow up to 1.
    rounding = 8 * float(np.finfo(np.float32).eps) * float(np.abs(known).max(initial=0.0))
    if not len(known) or float(np.ptp(known)) <= rounding:
        raise ValueError("standardised: expected scores that differ, got none or the same everywhere")
    mean, deviation = float(known.mean()), float(known.std())
    return [replace(example, scores=(example.scores - mean) / deviation) for example in examples]
