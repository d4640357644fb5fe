"""Policy gradients without a critic, and the Nash methods: they learn from the policy's own fresh samples.

Give them groups from `polyturn.algorithms.online`. Scores are what the annotator gave; where it gave only preferences,
a member's score is its win rate over the others. In a group, members of the same agent and version as the first are the
policy's; others, an opponent's or an earlier policy's, are compared with and never learned from.

At another temperature than 1 what is optimised is the policy as it samples at that temperature: policy and reference
are scored at it. Samples of no policy that can be scored (top_p below 1, greedy, from a mixture) are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from polyturn.algorithms.batch import Batch
from polyturn.algorithms.estimators import (
    group_normalised,
    k3,
    leave_one_out,
    log_ratio_to_go,
    policy_mask,
    sequence_logratio,
    sequence_sum,
)
from polyturn.algorithms.losses import nash_md, policy_gradient, ppo_clip
from polyturn.algorithms.methods.base import Loss, Needs, behaviour, clipped, masked, scored
from polyturn.algorithms.pairing import Example, against_opponents
from polyturn.envs.preference import Preference
from polyturn.envs.settings import check_choice, check_range
from polyturn.envs.trajectory import Group

Baseline = Literal["none", "leave_one_out", "group"]


@dataclass(frozen=True)
class REINFORCE:
    """Policy gradient (Williams 1992) over whole trajectories: -A log pi, A the score minus a baseline.

    Its gradient is that of expected score - kl KL(pi || pi_ref), on samples from the policy as it is: no reuse. For a
    moving average of earlier scores as the baseline use `online(..., moving_baseline=0.9)` with "none" here.

    Attributes:
        baseline: "leave_one_out" is the mean of the group's other members (RLOO, arXiv 2402.14740), "group" the mean of
            all, which shrinks the gradient by (K - 1) / K, "none" takes scores as they are.
        kl: Weight of the KL to the reference, through the log-ratio to go; 0 needs no reference.
        score_clip: Largest size of an advantage before the KL, or None (10 in the runs of arXiv 2404.14367).
    """

    baseline: Baseline = "none"
    kl: float = 0.0
    score_clip: float | None = None
    name: ClassVar[str] = "reinforce"

    def __post_init__(self) -> None:
        check_choice("baseline", self.baseline, ("none", "leave_one_out", "group"))
        if not self.kl >= 0:
            raise ValueError(f"kl: expected 0 or more, got {self.kl}")

    @property
    def needs(self) -> Needs:
        """A reference only for the KL."""
        return Needs(reference=self.kl > 0, sampled=True)

    def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """The policy's members with a score; None where a baseline over the group has nothing to compare with."""
        example = scored(group, preference, own=True)
        single = example is not None and len(example.trajectories) < 2 and self.baseline != "none"
        return None if single else example

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """-(A - kl log-ratio to go) log pi, summed over the row's tokens."""
        mask = policy_mask(batch.turn_ids)
        advantage = self._advantage(batch).to(logps.dtype)[:, None]
        metrics = {"score": batch.scores, "advantage": advantage[:, 0]}
        if self.kl:
            assert reference is not None
            togo = log_ratio_to_go(logps.detach(), reference, batch.turn_ids)
            advantage = advantage - self.kl * togo
            metrics["logratio"] = sequence_logratio(logps.detach(), reference, batch.turn_ids)
        zero = torch.zeros_like(logps)
        values = policy_gradient(torch.where(mask, logps, zero), advantage.expand_as(logps))
        return Loss(values.sum(1), None, metrics)

    def _advantage(self, batch: Batch) -> Tensor:
        if self.baseline == "leave_one_out":
            advantage = leave_one_out(batch.scores, batch.group)
        elif self.baseline == "group":
            advantage = group_normalised(batch.scores, batch.group, scale=False)
        else:
            advantage = batch.scores
        return advantage if self.score_clip is None else advantage.clamp(-self.score_clip, self.score_clip)


@dataclass(frozen=True)
class RLOO(REINFORCE):
    """REINFORCE leave-one-out (arXiv 2402.14740): the baseline is the mean of the group's other members.

    Deviation: the KL is charged token by token through the log-ratio to go, not as part of the score; both have the
    same expected gradient.
    """

    baseline: Baseline = "leave_one_out"
    name: ClassVar[str] = "rloo"


@dataclass(frozen=True)
class GRPO:
    """Group relative policy optimisation (arXiv 2402.03300): scores normalised in the group, PPO's clip, no critic.

    Attributes:
        clip: Half width of the clip interval.
        kl: Weight of the k3 estimate of the KL to the reference, token by token, which is differentiated directly as
            in the paper: its gradient is that of the other direction, KL(pi_ref || pi). 0 needs no reference.
        scale: Divide by the group's standard deviation; without, groups that are almost always won weigh no more than
            others (arXiv 2503.20783).
        length_norm: Average over each row's tokens, as in the paper; without, tokens are summed, and long answers are
            not favoured where they fail.
    """

    clip: float = 0.2
    kl: float = 0.0
    scale: bool = True
    length_norm: bool = True
    name: ClassVar[str] = "grpo"

    def __post_init__(self) -> None:
        check_range("GRPO.clip", self.clip, 0, above=True)
        check_range("GRPO.kl", self.kl, 0)

    @property
    def needs(self) -> Needs:
        """A reference only for the KL."""
        return Needs(reference=self.kl > 0, behaviour=True, sampled=True)

    def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """The policy's members with a score; None where there are not two, or all have the same."""
        example = scored(group, preference, own=True)
        return None if example is None or len(np.unique(example.scores)) < 2 else example

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """Clipped surrogate of each row's tokens, plus the KL."""
        mask = policy_mask(batch.turn_ids)
        advantage = group_normalised(batch.scores, batch.group, scale=self.scale).to(logps.dtype)
        own, before = masked(mask, logps, behaviour(batch, self.name))
        values = ppo_clip(own, before, advantage[:, None].expand_as(own), clip=self.clip)
        metrics = {"score": batch.scores, "clipped": clipped(own, before, self.clip)[mask]}
        if self.kl:
            assert reference is not None
            penalty = k3(*masked(mask, logps, reference.detach()))
            values = values + self.kl * penalty
            metrics["kl"] = sequence_sum(penalty.detach(), batch.turn_ids)
        rows = torch.where(mask, values, torch.zeros_like(values)).sum(1)
        return Loss(rows / mask.sum(1).clamp(min=1) if self.length_norm else rows, None, metrics)


@dataclass(frozen=True)
class NashPG:
    """Nash-MD-PG, Nash-EMA-PG and self-play (arXiv 2312.00886): -log pi(y) [P(y > y') - 1/2 - tau log pi/pi_ref (y)].

    The data source decides which policy samples y': `MixtureAgent(policy, reference, beta=...)` for Nash-MD-PG, a
    `MovingAverage` for Nash-EMA-PG, none for self-play (the group's other members). The gradient goes only through y,
    and a token answers for the log-ratio from itself on. With the policy itself as opponent the fixed point is the Nash
    equilibrium regularised with tau.

    In a group, members of the same agent and version as the first are the policy's, all other are opponents.

    Attributes:
        tau: Strength of the pull to the reference.
    """

    tau: float = 0.01
    name: ClassVar[str] = "nash_pg"
    needs: ClassVar[Needs] = Needs(sampled=True)

    def __post_init__(self) -> None:
        if not self.tau >= 0:
            raise ValueError(f"NashPG.tau: expected 0 or more, got {self.tau}")

    def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """The policy's members, each with its mean probability to beat the opponents it was compared with."""
        return against_opponents(group, preference)

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """The policy gradient of each row, summed over its tokens."""
        assert reference is not None
        mask = policy_mask(batch.turn_ids)
        togo = log_ratio_to_go(logps.detach(), reference, batch.turn_ids)
        own = torch.where(mask, logps, torch.zeros_like(logps))
        values = nash_md(own, batch.scores[:, None].to(own.dtype), togo, tau=self.tau)
        metrics = {
            "win_rate": batch.scores,
            "logratio": sequence_logratio(logps.detach(), reference, batch.turn_ids),
        }
        return Loss(values.sum(1), None, metrics)
