"""Policy gradients with a value network, over tokens or turns: PPO, and multi-turn preference optimisation (MTPO).

Train a `polyturn.algorithms.networks.value.ActorCritic` on groups from `polyturn.algorithms.online`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from polyturn.algorithms.batch import Batch
from polyturn.algorithms.estimators import gae, policy_mask, turn_sums
from polyturn.algorithms.losses import ppo_clip
from polyturn.algorithms.methods.base import Loss, Needs, behaviour, clipped, masked, output, scored
from polyturn.algorithms.networks.value import token_slots, turn_slots
from polyturn.algorithms.pairing import Example, against_opponents, own_members, usable_members
from polyturn.envs.preference import Preference
from polyturn.envs.settings import check_choice, check_range
from polyturn.envs.trajectory import Group


@dataclass(frozen=True, eq=False)
class _Estimate:
    """What GAE made of a batch.

    Attributes:
        advantage: `[N, T]` of each token; 0 where the agent did not write it.
        target: `[N, K]` of each step's value.
        column: `[N, K]` where a step's value stands.
        steps: `[N, K]` bool, steps that exist.
        logratio: `[N, T]` log pi / pi_ref of the agent's tokens as sampled; 0 without a KL.
    """

    advantage: Tensor
    target: Tensor
    column: Tensor
    steps: Tensor
    logratio: Tensor


@dataclass(frozen=True)
class PPO:
    """Proximal policy optimisation (arXiv 1707.06347) with a value network and GAE over tokens or turns.

    The KL to the reference is charged as it arises; rows end with value 0, truncated ones too. Advantages come from the
    value network as it is at each step, also where a draw is used again. Policy and reference are scored at the
    temperature of the samples, so the ratio to what sampled is 1 at the start.

    What it optimises depends on the scores: a reward model on whole conversations makes it multi-turn RLHF, the
    environment's own reward reward-based RL; with `reward="turns"`, `over="turn"` and `discount=0` every turn answers
    for only its own reward, as in single-turn RLHF.

    Reported besides the loss: "explained_variance" of the value (1 - mean squared error / variance of the targets),
    "entropy" (nats a token, from the sampled tokens), "kl" (nats a row) and "kl_turn_1", ... (nats of each turn), all
    estimated from the samples.

    Attributes:
        clip: Half width of the clip interval.
        kl: Weight of the KL to the reference inside the reward; 0 needs no reference.
        over: "token" or "turn": what GAE takes for a step. Each token of a turn has the turn's advantage.
        reward: What is paid: "score", the row's score, at its end; or "turns", the reward that the trajectory records
            of each turn (`online(turn_reward=...)` puts there what a model thinks), at that turn's end.
        discount: Per step.
        lam: GAE's lambda.
        value_weight: Weight of the value's loss, (V - target)^2 / 2.
        policy_weight: Weight of the policy's loss.
        value_warmup: Steps in which only the value learns, before the policy moves.
        whiten: Advantages to mean 0 and deviation 1 over all agent tokens of the step; costs one more forward pass.
    """

    clip: float = 0.2
    kl: float = 0.0
    over: Literal["token", "turn"] = "token"
    reward: Literal["score", "turns"] = "score"
    discount: float = 1.0
    lam: float = 0.95
    value_weight: float = 0.1
    policy_weight: float = 1.0
    value_warmup: int = 0
    whiten: bool = True
    name: ClassVar[str] = "ppo"

    def __post_init__(self) -> None:
        kind = type(self).__name__
        check_choice(f"{kind}.over", self.over, ("token", "turn"))
        check_choice(f"{kind}.reward", self.reward, ("score", "turns"))
        check_range(f"{kind}.clip", self.clip, 0, above=True)
        for what in ("kl", "value_warmup", "value_weight", "policy_weight"):
            check_range(f"{kind}.{what}", getattr(self, what), 0)
        for what in ("discount", "lam"):
            check_range(f"{kind}.{what}", getattr(self, what), 0, 1)

    @property
    def needs(self) -> Needs:
        """A reference only for the KL; a look ahead for the mean and deviation of advantages."""
        return Needs(reference=self.kl > 0, values=True, behaviour=True, sampled=True, look_ahead=self.whiten)

    def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """The policy's members with a score; all its valid ones where turns are paid."""
        if self.reward == "score":
            return scored(group, preference, own=True)
        valid = tuple(group[int(row)] for row in np.flatnonzero(own_members(group) & usable_members(group)))
        totals = np.array([member.total_reward for member in valid], np.float32)
        return Example(valid, scores=totals) if valid else None

    def step_statistics(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Mapping[str, Tensor]:
        """First and second moments of the advantages of all agent tokens and of the targets of all steps."""
        found = self._estimate(reference, batch)
        # In double precision, as the difference of the moments is a small one of large numbers.
        advantage = found.advantage[policy_mask(batch.turn_ids)].double()
        target = found.target[found.steps].double()
        return {
            "advantage": advantage,
            "advantage_squared": advantage.square(),
            "target": target,
            "target_squared": target.square(),
        }

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """Clipped surrogate and value loss of each row, counted by its tokens."""
        mask = policy_mask(batch.turn_ids)
        found = self._estimate(reference, batch)
        given = batch.statistics if "advantage" in batch.statistics else self.step_statistics(logps, reference, batch)
        moments = {name: given[name].mean() for name in ("advantage", "advantage_squared", "target", "target_squared")}
        advantage = found.advantage
        if self.whiten:
            variance = moments["advantage_squared"] - moments["advantage"].square()
            # Equal advantages are all 0; the deviation of their rounding would make it look like a preference.
            rounding = (8 * torch.finfo(advantage.dtype).eps) ** 2 * moments["advantage_squared"]
            scale = torch.where(variance > rounding, 1.0 / (variance.clamp(min=0.0).sqrt() + 1e-8), 0.0)
            advantage = (advantage - moments["advantage"].to(advantage.dtype)) * scale.to(advantage.dtype)
        own, before = masked(mask, logps, behaviour(batch, self.name))
        zero = torch.zeros_like(own)
        surrogate = torch.where(mask, ppo_clip(own, before, advantage.to(own.dtype), clip=self.clip), zero).sum(1)
        value = output(batch, "values", self.name).gather(1, found.column)
        error = torch.where(found.steps, (value - found.target).square() / 2.0, torch.zeros_like(found.target))
        tokens = mask.sum(1).to(own.dtype)
        value_loss = error.sum(1) / found.steps.sum(1).clamp(min=1) * tokens
        spread = (moments["target_squared"] - moments["target"].square()).clamp(min=1e-8)
        metrics = {
            "score": batch.scores,
            "value_error": error[found.steps],
            "value": value[found.steps],
            "explained_variance": 1.0 - 2.0 * error[found.steps] / spread,
            "entropy": -own[mask],
            "clipped": clipped(own, before, self.clip)[mask],
            **(_turn_kl(found.logratio, batch) if self.kl else {}),
        }
        moving = float(batch.statistics.get("step", torch.tensor(torch.inf))) >= self.value_warmup
        return Loss(
            (self.policy_weight if moving else 0.0) * surrogate + self.value_weight * value_loss,
            tokens,
            {name: number.detach() for name, number in metrics.items()},
        )

    @torch.no_grad()
    def _estimate(self, reference: Tensor | None, batch: Batch) -> _Estimate:
        values = output(batch, "values", self.name)
        column, steps = (token_slots if self.over == "token" else turn_slots)(batch.turn_ids)
        mask = policy_mask(batch.turn_ids)
        logratio = torch.zeros_like(values)
        if self.kl:
            assert reference is not None
            before, anchor = masked(mask, behaviour(batch, self.name), reference)
            logratio = (before - anchor).to(values.dtype)
        paid = self._paid(batch, mask).to(values.dtype) - self.kl * logratio
        rewards = (
            paid.gather(1, column) if self.over == "token" else turn_sums(paid, batch.turn_ids, count=column.shape[1])
        )
        rewards = torch.where(steps, rewards, torch.zeros_like(rewards))
        advantage, target = gae(rewards, values.gather(1, column), steps, discount=self.discount, lam=self.lam)
        step_of = mask.cumsum(1) - 1 if self.over == "token" else batch.turn_ids.long()
        spread = torch.where(mask, advantage.gather(1, step_of.clamp(min=0)), torch.zeros_like(values))
        return _Estimate(spread, target, column, steps, logratio)

    def _paid(self, batch: Batch, mask: Tensor) -> Tensor:
        """`[N, T]` what is paid, at the last token of the row or of each turn."""
        # Tokens that the agent did not write may stand inside a turn too: the last of its own closes it.
        last_turn = batch.rewards.shape[1]
        later = torch.where(mask, batch.turn_ids, torch.full_like(batch.turn_ids, last_turn)).flip(1).cummin(1).values
        following = torch.cat([later.flip(1)[:, 1:], torch.full_like(batch.turn_ids[:, :1], last_turn)], 1)
        closes = mask & (batch.turn_ids != following)
        if self.reward == "turns":
            due = batch.rewards.gather(1, batch.turn_ids.long().clamp(min=0))
            return torch.where(closes, due, torch.zeros_like(due))
        last = closes & (closes.flip(1).cumsum(1).flip(1) == 1)
        return torch.where(last, batch.scores[:, None], torch.zeros_like(batch.scores[:, None]))


@dataclass(frozen=True)
class MTPO(PPO):
    """Multi-turn preference optimisation (arXiv 2405.14655, sections 4 and 5): mirror descent to the Nash equilibrium.

    Two conversations from one start are compared at their ends; tau is paid P(tau beats tau') at its end and charged
    alpha times its log-ratio to the reference turn by turn, so the advantage of a turn holds the KL from that turn on.
    The value and GAE run over turns. In expectation over fresh samples the gradient is that of

        E[P(tau beats tau')] - alpha KL(pi || mu), KL summed over the turns along pi, tau' fixed,

    whose fixed point in self-play is the Nash equilibrium of the preference regularised with alpha. Nothing is assumed
    of what the environment says: it may be stochastic, where M-DPO is biased (`polyturn bench stochastic_bias`).

    The data source decides which policy plays tau': for MTPO the policy itself, both conversations are learned from,
    one with P and the other with 1 - P (`online(policy, env, preference=judge, group_size=2)`); for MTPO-tau
    `opponent=MixtureAgent(policy, reference, beta=...)`, whose members are not learned from.

    Deviations: the KL of a turn is the log-ratio of its sampled tokens inside the advantage, where the paper adds the
    exact KL of the present turn to the loss; in MTPO-tau the policy itself plays tau, and only tau' is the mixture's;
    advantages are normalised over the step, value targets, which lie in [0, 1] but for the KL, are not.

    Attributes:
        kl: alpha, in units of preference per nat (0.005 in the paper, 0.0025 for MTPO-tau).
    """

    clip: float = 0.2
    kl: float = 0.005
    over: Literal["token", "turn"] = "turn"
    value_weight: float = 1.0
    name: ClassVar[str] = "mtpo"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward != "score":
            raise ValueError(f'MTPO.reward: expected "score", the preference at the end, got {self.reward!r}; use PPO')

    def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """The policy's members, each with its mean probability to beat its opponents."""
        return against_opponents(group, preference)


def _turn_kl(logratio: Tensor, batch: Batch) -> dict[str, Tensor]:
    """The log-ratio of each row, and of each turn by its number; turns that a row has not are not counted."""
    by_turn = turn_sums(logratio, batch.turn_ids)
    count = batch.turn_ids.max(1).values + 1
    each = {f"kl_turn_{h + 1}": by_turn[count > h, h] for h in range(by_turn.shape[1])}
    return {"kl": by_turn.sum(1), **each}
