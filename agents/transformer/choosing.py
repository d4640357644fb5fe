"""A policy as a chooser: how likely it is to answer with each of a few given texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from polyturn.agents.agent import Episode
from polyturn.agents.transformer.policy import Policy


class PolicyChooser:
    """Scores given answers instead of sampling one: a judge without parsing, a quiz-taker without sampling noise.

    Args:
        policy: The model; its present weights are used.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.name = type(policy.model).__name__
        self.version = policy.version

    @torch.no_grad()
    def choice_logps(self, episode: Episode, choices: Sequence[str]) -> list[float]:
        """Log-probability in nats of each choice's tokens right after `episode.observation`, in a fresh conversation.

        Raises:
            ValueError: A choice without tokens.
        """
        result = []
        for choice in choices:
            context, answer = self.policy.chat.answered(episode.observation, choice)
            if not len(answer):
                raise ValueError(f"PolicyChooser: expected choices with at least one token, got {choice!r}")
            row = torch.as_tensor(np.concatenate([context, answer]), dtype=torch.long)
            ids = row[None].to(self.policy.device)
            where = torch.zeros_like(ids, dtype=torch.bool)
            where[:, len(context) :] = True
            result.append(float(self.policy.logps(ids, torch.ones_like(where), where).sum()))
        return result

    def act(self, episode: Episode) -> str:
        """The likelier of "1" and "2"."""
        return ("1", "2")[int(np.argmax(self.choice_logps(episode, ("1", "2"))))]
