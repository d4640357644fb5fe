"""Distillation: a policy learns a teacher's whole prediction of every token, on stored conversations or on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from polyturn.algorithms.batch import Batch
from polyturn.algorithms.estimators import Turns, policy_mask, sequence_sum
from polyturn.algorithms.methods.base import FullKL, Loss, Needs
from polyturn.algorithms.pairing import Example, usable_members
from polyturn.envs.preference import Preference
from polyturn.envs.settings import check_choice
from polyturn.envs.trajectory import Group

First = Literal["teacher", "student"]
"""Whose distribution the divergence is an expectation under."""


@dataclass(frozen=True)
class Distillation:
    """Knowledge distillation over the full vocabulary, averaged over the agent's tokens of a step.

    The `reference` given to `train` is the TEACHER. With `first="teacher"` a token costs KL(teacher || policy), which
    is Gemma 2's -sum_x P_T(x | context) log P_S(x | context) (arXiv 2408.00118) less the teacher's own entropy: the
    same gradient, and 0 where the teacher is matched. With `first="student"` it costs KL(policy || teacher), which
    gives up what the student cannot cover instead of spreading over it (arXiv 2306.08543).

    Where the conversations come from is the source's business: stored ones (`minibatches(demonstrations(...))`), the
    teacher's, or the student's own as it trains (`online(policy, env)`), as in Gemma 2's post-training and in
    generalised knowledge distillation (arXiv 2306.13649). As there, no gradient flows through the sampling: with
    `first="student"` this is not the whole gradient of the KL between conversations, which would also credit a token
    with the divergence of later ones.

    Teacher and student must share one tokenizer; each keeps its own size and soft-capping.

    Attributes:
        first: "teacher" or "student".
        likelihood: Weight of the negative log-likelihood of the tokens that stand there, added to the divergence.
        turns: "all" or only the "last" turn of a conversation.
    """

    first: First = "teacher"
    likelihood: float = 0.0
    turns: Turns = "all"
    name: ClassVar[str] = "distillation"

    def __post_init__(self) -> None:
        check_choice("Distillation.first", self.first, ("teacher", "student"))
        check_choice("Distillation.turns", self.turns, ("all", "last"))
        if not self.likelihood >= 0:
            raise ValueError(f"Distillation.likelihood: expected 0 or more, got {self.likelihood}")

    @property
    def needs(self) -> Needs:
        """A teacher in the reference's place, and the divergence from it that training computes for the loss."""
        direction: FullKL = "reference_first" if self.first == "teacher" else "policy_first"
        return Needs(teacher=True, preference=False, full_kl=direction)

    def examples(self, group: Group, preference: Preference | None, rng: np.random.Generator) -> Example | None:
        """Every usable member; none is compared with another."""
        rows = np.flatnonzero(usable_members(group))
        return Example(tuple(group[int(row)] for row in rows)) if len(rows) else None

    def token_mask(self, batch: Batch) -> Tensor:
        """`[N, T]` bool: the agent's tokens."""
        return policy_mask(batch.turn_ids, turns=self.turns)

    def loss(self, logps: Tensor, reference: Tensor | None, batch: Batch) -> Loss:
        """The divergence of each row, counted by tokens.

        Raises:
            ValueError: The batch comes without the divergence, which `train` computes.
        """
        if "kl" not in batch.outputs:
            raise ValueError('Distillation.loss: expected batch.outputs["kl"], which `train` computes, got none')
        divergence = sequence_sum(batch.outputs["kl"], batch.turn_ids, turns=self.turns)
        likelihood = sequence_sum(logps, batch.turn_ids, turns=self.turns)
        count = policy_mask(batch.turn_ids, turns=self.turns).sum(1).to(divergence.dtype)
        values = divergence - self.likelihood * likelihood
        written = torch.clamp(count, min=1)
        metrics = {"divergence": divergence / written, "nll": -likelihood / written}
        return Loss(values, count, {name: value.detach() for name, value in metrics.items()})
