"""Imitation: the likelihood of rows that are to be copied, with equal weights or others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from polyturn.algorithms.batch import Batch
from polyturn.algorithms.estimators import Turns, policy_mask, sequence_sum
from polyturn.algorithms.losses import rwr
from polyturn.algorithms.methods.base import Loss, Needs, scored
from polyturn.algorithms.pairing import Example, usable_members, winners
from polyturn.envs.preference import Preference
from polyturn.envs.settings import check_choice, check_range
from polyturn.envs.trajectory import Group


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
    name: ClassVar[str] = "sft"
    needs: ClassVar[Needs] = Needs(reference=False, preference=False)

    def __post_init__(self) -> None:
        check_choice(f"{type(self).__name__}.turns", self.turns, ("all", "last"))

    def examples(self, group: Group, preference: Preference | None, rng: np.random.Generator) -> Example | None:
        """Winners of the group, or every valid member where there is no preference."""
        if preference is None:
            rows = np.flatnonzero(usable_members(group))
        else:
            rows = winners(group, preference, rng, count=self.best, above=self.above)
        return Example(tuple(group[int(row)] for row in rows)) if len(rows) else None

    def token_mask(self, batch: Batch) -> Tensor:
        """`[N, T]` bool: the agent's tokens."""
        return policy_mask(batch.turn_ids, turns=self.turns)

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """NLL per row, counted by tokens.

        Rows marked undesirable are left out, and of a group with pairs all rows that are preferred in none.
        """
        keep = ~batch.mismatched & (batch.desirable != 0) & _preferred(batch)
        rows = keep.nonzero()[:, 0]
        values = -sequence_sum(logps, batch.turn_ids, turns=self.turns)[rows]
        count = policy_mask(batch.turn_ids, turns=self.turns).sum(1)[rows].to(values.dtype)
        return Loss(values, count, {"tokens_per_row": count})


def _preferred(batch: Batch) -> Tensor:
    """`[N]` bool: rows that are the better one of some pair, and all rows of groups without any pair.

    It is decided group by group, as the other groups of a step may be read in other micro-batches.
    """
    better = torch.where(batch.probability < 0.5, batch.pairs[:, 1], batch.pairs[:, 0])
    won = torch.zeros_like(batch.mismatched)
    won[better[batch.probability != 0.5]] = True
    return won | ~torch.isin(batch.group, batch.group[batch.pairs[:, 0]])


@dataclass(frozen=True)
class RAFT(SFT):
    """Reward-ranked fine-tuning (arXiv 2304.06767): SFT on every member whose score is positive.

    As M-DPO's baseline (arXiv 2409.02392, 1/0 rewards) that is every right answer of the policy's own samples.
    """

    best: int | None = None
    above: float | None = 0.0
    name: ClassVar[str] = "raft"
    needs: ClassVar[Needs] = Needs(reference=False)


@dataclass(frozen=True)
class BestOfN(SFT):
    """Imitation of the best of N samples (BoN distillation; arXiv 2404.14367 with N = 10).

    The best is the member with the highest win rate; of several, one at random. Groups of equals teach nothing.
    """

    name: ClassVar[str] = "best_of_n"
    needs: ClassVar[Needs] = Needs(reference=False)


@dataclass(frozen=True)
class RWR:
    """Reward-weighted regression: -min(exp(r / beta), max_weight) log pi (Peters and Schaal 2007).

    Settings as in the runs of arXiv 2404.14367, which clip the weight to [0, 20].

    Attributes:
        beta: Temperature of the reward; smaller imitates only the best.
        max_weight: Largest weight of a row.
    """

    beta: float = 1.0
    max_weight: float = 20.0
    name: ClassVar[str] = "rwr"
    needs: ClassVar[Needs] = Needs(reference=False)

    def __post_init__(self) -> None:
        check_range("RWR.beta", self.beta, 0, above=True)

    def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
        """Every valid member with its score; without scores, with its win rate."""
        return scored(group, preference)

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """Weighted negative log-likelihood of each row."""
        reward = batch.scores.to(logps.dtype)
        values = rwr(sequence_sum(logps, batch.turn_ids), reward, beta=self.beta, max_weight=self.max_weight)
        return Loss(values, None, {"score": batch.scores})
