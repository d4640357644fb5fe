"""The sizes of the conversation studies, and their tasks: an environment, a demonstrator and an exact judge."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polyturn.agents.agent import Agent
from polyturn.agents.transformer.agent import TransformerAgent
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.policy import Policy
from polyturn.envs.preference import Annotator
from polyturn.envs.trajectory import Trajectory


@dataclass(frozen=True)
class Setting:
    """Sizes of a study.

    Attributes:
        turns: Turns of the agent in a conversation.
        topics: Number of topics, where the environment has topics.
        demonstrations: Conversations to imitate.
        hidden: Width of the transformer.
        layers: Layers of the transformer.
        vocabulary: Size of its vocabulary.
        sft_steps: Updates of the imitation.
        sft_lr: Highest learning rate of the imitation.
        comparisons: Starts whose conversations reward and preference models are fitted to.
        compared: Conversations from each of these starts; all pairs are judged.
        fit_steps: Updates of reward and preference models.
        fit_lr: Learning rate of reward and preference models.
        steps: Updates of every method.
        groups: Starts in an update.
        group_size: Conversations of the policy from each start.
        lr: Learning rate of the policy.
        value_lr: Learning rate of the value network, as a multiple of the policy's.
        value_warmup: First steps, in which only the value network learns.
        alpha: Weight of the KL in units of preference (MTPO).
        alpha_tau: The same, with the mixture as opponent (MTPO-tau).
        mixing: Share of the reference in that mixture.
        kl: Weight of the KL in units of reward (the log-odds of a reward model), for RLHF.
        kl_reward: Weight of the KL where exact effects or the environment's own reward are maximised.
        beta: M-DPO's beta.
        evaluate_every: Steps between points of the learning curve.
        starts: Starts played at each point of the learning curve.
        duels: Starts of the final comparison.
        max_tokens: Longest conversation, in tokens.
        max_new_tokens: Longest turn of the agent, in tokens.
        model: Folder or Hub id of a policy to start from; None trains a small one from random weights.
    """

    turns: int = 5
    topics: int = 6
    demonstrations: int = 2500
    hidden: int = 96
    layers: int = 2
    vocabulary: int = 1024
    sft_steps: int = 200
    sft_lr: float = 3e-3
    comparisons: int = 160
    compared: int = 6
    fit_steps: int = 80
    fit_lr: float = 3e-4
    steps: int = 45
    groups: int = 12
    group_size: int = 2
    lr: float = 3e-4
    value_lr: float = 3.0
    value_warmup: int = 8
    alpha: float = 0.005
    alpha_tau: float = 0.0025
    mixing: float = 0.125
    kl: float = 0.025
    kl_reward: float = 0.005
    beta: float = 0.1
    evaluate_every: int = 15
    starts: int = 24
    duels: int = 120
    max_tokens: int = 400
    max_new_tokens: int = 48
    model: str | None = None

    @property
    def sampling(self) -> Sampling:
        """How the policy's tokens are sampled."""
        return Sampling(max_new_tokens=self.max_new_tokens)

    @property
    def device(self) -> str | None:
        """The processor for small policies; None lets a given model choose."""
        return "cpu" if self.model is None else None

    @property
    def training(self) -> dict[str, Any]:
        """Arguments that every call of `train` shares."""
        return {
            "optimizer": functools.partial(torch.optim.AdamW, betas=(0.9, 0.98)),
            "tokens_per_micro_batch": 8192,
            "cpu": self.model is None,
        }


QUICK: dict[str, Any] = {
    "demonstrations": 300, "sft_steps": 40, "hidden": 48, "comparisons": 12, "compared": 3, "fit_steps": 8, "steps": 4,
    "groups": 4, "value_warmup": 1, "evaluate_every": 4, "starts": 6, "duels": 10, "turns": 4, "topics": 4,
}  # fmt: skip
"""Sizes of the quick form; its figures support no claim."""


def from_options(options: Mapping[str, Any]) -> Setting:
    """The setting of a cell. A given model keeps its own sizes and is trained with small steps."""
    setting = replace(Setting(), **options)
    if setting.model is None:
        return setting
    return replace(setting, sft_lr=2e-5, fit_lr=1e-5, lr=1e-6, max_tokens=4096, max_new_tokens=256)


@dataclass(frozen=True)
class Task:
    """An environment and the exact judge of its conversations.

    Attributes:
        env: Registered id.
        options: From the setting to the environment's options.
        demonstrator: Makes the agent that the policy imitates first.
        judge: The exact preference over whole conversations.
        effect: From a trajectory to `[H]`, the exact effect of each turn; None where it is not known.
    """

    env: str
    options: Callable[[Setting], dict[str, Any]]
    demonstrator: Callable[[], Agent]
    judge: Annotator
    effect: Callable[[Trajectory], NDArray[np.float64]] | None = None


@dataclass(frozen=True)
class Experiment:
    """One seed of a study.

    Attributes:
        task: The environment and its judge.
        setting: The study's sizes.
        seed: Seed of everything random in it.
        work: Folder of its intermediate results, shared by the cells of a suite.
    """

    task: Task
    setting: Setting
    seed: int
    work: Path

    def folder(self, name: str) -> Path:
        """The folder of one intermediate result."""
        return self.work / f"{name}-seed{self.seed}"

    def env_options(self) -> dict[str, Any]:
        """The environment's options."""
        return self.task.options(self.setting)

    def agent(self, policy: Policy, *, slots: int = 32) -> TransformerAgent:
        """A policy as an agent of the study."""
        return TransformerAgent(policy, sampling=self.setting.sampling, max_tokens=self.setting.max_tokens, slots=slots)

    def load(self, folder: Path) -> Policy:
        """Reads a saved policy."""
        return Policy.from_pretrained(folder, device=self.setting.device)
