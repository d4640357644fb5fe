"""Methods that learn from the policy's own fresh samples: policy gradients, and the Nash methods.

Give them groups from `turnwise.algorithms.online`. Scores are what the annotator gave; where it gave preferences alone,
a member's score is its win rate over the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from turnwise.algorithms.batch import Batch
from turnwise.algorithms.estimators import (
    gae,
    group_normalised,
    k3,
    leave_one_out,
    log_ratio_to_go,
    policy_mask,
    sequence_logratio,
    sequence_sum,
    turn_sums,
)
from turnwise.algorithms.losses import nash_md, policy_gradient, ppo_clip
from turnwise.algorithms.methods import Loss, check_choice
from turnwise.algorithms.offline_methods import output, scored
from turnwise.algorithms.pairing import Example
from turnwise.algorithms.value import token_slots, turn_slots
from turnwise.envs.preference import Preference
from turnwise.envs.trajectory import Group

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
    name: str = "reinforce"

    def __post_init__(self) -> None:
        check_choice("baseline", self.baseline, ("none", "leave_one_out", "group"))
        if not self.kl >= 0:
            raise ValueError(f"kl: expected 0 or more, got {self.kl}")

    @property
    def needs_reference(self) -> bool:
        """Only for the KL."""
        return self.kl > 0

    def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """Every member with a score; None where a baseline over the group has nobody to compare with."""
        example = scored(group, preference)
        alone = example is not None and len(example.trajectories) < 2 and self.baseline != "none"
        return None if alone else example

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """-(A - kl log-ratio to go) log pi, summed over the row's tokens."""
        mask = policy_mask(batch.turn)
        advantage = self._advantage(batch).to(logps.dtype)[:, None]
        metrics = {"score": batch.scores, "advantage": advantage[:, 0]}
        if self.kl:
            assert reference is not None
            togo = log_ratio_to_go(logps.detach(), reference, batch.turn)
            advantage = advantage - self.kl * togo
            metrics["logratio"] = sequence_logratio(logps.detach(), reference, batch.turn)
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
    name: str = "rloo"


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
    name: str = "grpo"

    @property
    def needs_reference(self) -> bool:
        """Only for the KL."""
        return self.kl > 0

    def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """Every member with a score; None where there are not two, or all have the same."""
        example = scored(group, preference)
        return None if example is None or len(np.unique(example.scores)) < 2 else example

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """Clipped surrogate of each row's tokens, plus the KL."""
        mask = policy_mask(batch.turn)
        advantage = group_normalised(batch.scores, batch.group, scale=self.scale).to(logps.dtype)
        own, before = _masked(mask, logps, _behaviour(batch, self.name))
        values = ppo_clip(own, before, advantage[:, None].expand_as(own), clip=self.clip)
        metrics = {"score": batch.scores, "clipped": _clipped(own, before, self.clip)[mask]}
        if self.kl:
            assert reference is not None
            penalty = k3(*_masked(mask, logps, reference.detach()))
            values = values + self.kl * penalty
            metrics["kl"] = sequence_sum(penalty.detach(), batch.turn)
        rows = torch.where(mask, values, torch.zeros_like(values)).sum(1)
        return Loss(rows / mask.sum(1).clamp(min=1) if self.length_norm else rows, None, metrics)


@dataclass(frozen=True)
class PPO:
    """Proximal policy optimisation (arXiv 1707.06347) with a value network and GAE over tokens or turns.

    Train a `turnwise.algorithms.value.ActorCritic`. The score is paid at the end, the KL to the reference as it arises;
    rows end with value 0, truncated ones too. Advantages come from the value network as it is at each step, also where
    a draw is used again. Sample at temperature 1, or the ratio to what sampled is not 1 at the start.

    Attributes:
        clip: Half width of the clip interval.
        kl: Weight of the KL to the reference inside the reward; 0 needs no reference.
        over: "token" or "turn": what GAE takes for a step. Each token of a turn has the turn's advantage.
        discount: Per step.
        lam: GAE's lambda.
        value_weight: Weight of the value's loss, (V - target)^2 / 2.
        policy_weight: Weight of the policy's loss; 0 trains the value alone, before the policy moves.
        whiten: Advantages to mean 0 and deviation 1 over all agent tokens of the step; costs one more forward pass.
    """

    clip: float = 0.2
    kl: float = 0.0
    over: Literal["token", "turn"] = "token"
    discount: float = 1.0
    lam: float = 0.95
    value_weight: float = 0.1
    policy_weight: float = 1.0
    whiten: bool = True
    name: str = "ppo"
    needs_values: bool = True

    def __post_init__(self) -> None:
        check_choice("PPO.over", self.over, ("token", "turn"))

    @property
    def needs_reference(self) -> bool:
        """Only for the KL."""
        return self.kl > 0

    @property
    def looks_ahead(self) -> bool:
        """For the mean and deviation of advantages."""
        return self.whiten

    def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """Every member with a score."""
        return scored(group, preference)

    def shared(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Mapping[str, Tensor]:
        """First and second moments of the advantages of all agent tokens."""
        advantage = self._advantages(reference, batch)[0][policy_mask(batch.turn)]
        return {"advantage": advantage, "advantage_squared": advantage.square()}

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """Clipped surrogate and value loss of each row, counted by its tokens."""
        mask = policy_mask(batch.turn)
        advantage, target, column, steps = self._advantages(reference, batch)
        if self.whiten:
            given = batch.shared if "advantage" in batch.shared else self.shared(logps, reference, batch)
            mean, square = (given[name].mean() for name in ("advantage", "advantage_squared"))
            advantage = (advantage - mean) / ((square - mean.square()).clamp(min=0.0).sqrt() + 1e-8)
        own, before = _masked(mask, logps, _behaviour(batch, self.name))
        zero = torch.zeros_like(own)
        surrogate = torch.where(mask, ppo_clip(own, before, advantage.to(own.dtype), clip=self.clip), zero).sum(1)
        value = output(batch, "values", self.name).gather(1, column)
        error = torch.where(steps, (value - target).square() / 2.0, torch.zeros_like(target))
        tokens = mask.sum(1).to(own.dtype)
        value_loss = error.sum(1) / steps.sum(1).clamp(min=1) * tokens
        metrics = {
            "score": batch.scores,
            "value_error": error[steps],
            "value": value[steps],
            "clipped": _clipped(own, before, self.clip)[mask],
        }
        return Loss(
            self.policy_weight * surrogate + self.value_weight * value_loss,
            tokens,
            {name: number.detach() for name, number in metrics.items()},
        )

    @torch.no_grad()
    def _advantages(self, reference: Tensor | None, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Advantage of each token `[N, T]`; value targets, where their values stand, and which steps exist `[N, K]`."""
        values = output(batch, "values", self.name)
        column, steps = (token_slots if self.over == "token" else turn_slots)(batch.turn)
        mask = policy_mask(batch.turn)
        penalty = torch.zeros_like(values)
        if self.kl:
            assert reference is not None
            before, anchor = _masked(mask, _behaviour(batch, self.name), reference)
            penalty = self.kl * (before - anchor).to(values.dtype)
        if self.over == "token":
            rewards = -penalty.gather(1, column)
        else:
            rewards = -turn_sums(penalty, batch.turn, count=column.shape[1])
        rewards = torch.where(steps, rewards, torch.zeros_like(rewards))
        last = (steps.sum(1) - 1).clamp(min=0)[:, None]
        rewards.scatter_add_(1, last, batch.scores[:, None].to(rewards.dtype))
        advantage, target = gae(rewards, values.gather(1, column), steps, discount=self.discount, lam=self.lam)
        step_of = mask.cumsum(1) - 1 if self.over == "token" else batch.turn.long()
        spread = torch.where(mask, advantage.gather(1, step_of.clamp(min=0)), torch.zeros_like(values))
        return spread, target, column, steps


@dataclass(frozen=True)
class NashPG:
    """Nash-MD-PG, Nash-EMA-PG and self-play (arXiv 2312.00886): -log pi(y) [P(y > y') - 1/2 - tau log pi/pi_ref (y)].

    Who y' is from, the source decides: `MixtureAgent(policy, reference, beta=...)` for Nash-MD-PG, a `MovingAverage`
    for Nash-EMA-PG, nobody for self-play (the group's other members). The gradient goes through y alone, and a token
    answers for the log-ratio from itself on. With the policy itself as opponent the fixed point is the Nash equilibrium
    regularised with tau.

    In a group, members of the same agent and version as the first are the policy's, all other are opponents.

    Attributes:
        tau: Strength of the pull to the reference.
    """

    tau: float = 0.01
    name: str = "nash_pg"
    needs_reference: bool = True

    def __post_init__(self) -> None:
        if not self.tau >= 0:
            raise ValueError(f"NashPG.tau: expected 0 or more, got {self.tau}")

    def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """The policy's members, each with its mean probability to beat the opponents it was compared with."""
        who = [(member.agent, member.policy_version) for member in group]
        mine = np.array([each == who[0] for each in who])
        matrix = np.where(np.isnan(preference.matrix), 1.0 - preference.matrix.T, preference.matrix)
        np.fill_diagonal(matrix, np.nan)
        if not mine.all():
            matrix[:, mine] = np.nan
        asked = (~np.isnan(matrix)).sum(1)
        rows = np.flatnonzero(mine & (asked > 0) & np.array([member.valid for member in group]))
        if not len(rows):
            return None
        rate = np.nansum(matrix[rows], 1) / asked[rows]
        return Example(tuple(group[int(row)] for row in rows), scores=rate.astype(np.float32))

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """The policy gradient of each row, summed over its tokens."""
        assert reference is not None
        mask = policy_mask(batch.turn)
        togo = log_ratio_to_go(logps.detach(), reference, batch.turn)
        own = torch.where(mask, logps, torch.zeros_like(logps))
        values = nash_md(own, batch.scores[:, None].to(own.dtype), togo, tau=self.tau)
        metrics = {
            "win_rate": batch.scores,
            "logratio": sequence_logratio(logps.detach(), reference, batch.turn),
        }
        return Loss(values.sum(1), None, metrics)


def _behaviour(batch: Batch, method: str) -> Tensor:
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


def _masked(mask: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
    first, second = (torch.where(mask, value, torch.zeros_like(value)) for value in values)
    return first, second.to(first.dtype)


def _clipped(logps: Tensor, before: Tensor, clip: float) -> Tensor:
    """`[N, T]` 1 where the ratio to what sampled has left the interval."""
    return ((logps.detach() - before).exp() - 1.0).abs().gt(clip).float()
