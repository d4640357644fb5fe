"""A small transformer on a one-turn token task: warm-started once for each seed, sampled, compared with its reference.

Shared by the suites on token tasks. The transformer starts from random weights and imitates answers that a function
writes; every seed has its own weights, demonstrations and samples.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polyturn.agents.agent import Agent, ScriptedAgent
from polyturn.agents.collecting.collect import collect
from polyturn.agents.transformer.agent import TransformerAgent
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms.batch import collate
from polyturn.algorithms.estimators import sequence_logratio
from polyturn.algorithms.pairing import Example
from polyturn.algorithms.protocols.warmup import imitation_options, warm_start
from polyturn.envs.trajectory import Group, Trajectory, Turn

Array = NDArray[np.float64]
CONTEXT = 96
"""Longest episode, in tokens."""


@dataclass(frozen=True)
class Task:
    """A one-turn environment and the demonstrations that are imitated in it.

    Attributes:
        env: Registered id.
        options: Keyword arguments of the environment.
        demonstrate: From a generator to an answer.
        max_answer_tokens: Longest answer, in tokens.
        is_valid: Whether the environment accepted an answer as valid.
    """

    env: str
    options: Mapping[str, Any]
    demonstrate: Callable[[np.random.Generator], str]
    max_answer_tokens: int
    is_valid: Callable[[Turn], bool]

    def collect(self, agent: Agent, *, groups: int, group_size: int, seed: int) -> list[Group]:
        """Groups of valid episodes."""
        return collect(
            agent,
            self.env,
            groups=groups,
            group_size=group_size,
            seed=seed,
            env_options=self.options,
            progress=False,
        )

    def sampling(self) -> Sampling:
        """Plain sampling, cut at the longest answer."""
        return Sampling(max_new_tokens=self.max_answer_tokens)

    def agent(self, policy: Policy) -> TransformerAgent:
        """The policy as an agent."""
        return TransformerAgent(policy, sampling=self.sampling(), max_tokens=CONTEXT, slots=64)


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch on one thread: a second one gains nothing for models this small, and costs much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def trainable_copy(reference: Policy) -> Policy:
    """A copy of the reference that can be trained."""
    policy = reference.copy()
    policy.model.requires_grad_(True)
    return policy


def with_tokens(policy: Policy, groups: Sequence[Group]) -> list[Group]:
    """Groups of an agent without tokens, with the policy's tokens for their texts."""
    return [Group(tuple(policy.chat.written(member) for member in group)) for group in groups]


def scripted_agent(demonstrate: Callable[[np.random.Generator], str]) -> ScriptedAgent:
    """An agent whose answers `demonstrate` draws from the episode's generator."""
    return ScriptedAgent(lambda episode: demonstrate(episode.rng), name="script")


def start_policy(task: Task, folder: Path, *, seed: int, demonstrations: int, steps: int, lr: float) -> Policy:
    """The warm-started policy of a seed; read from `folder` if it was saved there with the same settings."""
    settings = {"env": task.env, "seed": seed, "demonstrations": demonstrations, "steps": steps, "lr": lr}
    note = folder / "settings.json"
    if note.is_file() and json.loads(note.read_text("utf-8")) == settings:
        return Policy.from_pretrained(folder, device="cpu")
    # Demonstrations, and a small model whose vocabulary is that of the demonstrations.
    agent = scripted_agent(task.demonstrate)
    groups = task.collect(agent, groups=demonstrations, group_size=1, seed=seed + 10_000)
    shown = [member for group in groups for member in group]
    texts = [part for member in shown for part in (member.turns[0].observation, member.turns[0].action)]
    policy = tiny_policy(texts, seed=seed, hidden=32, layers=2, heads=2, context=CONTEXT, init=0.1)
    warm_start(
        policy,
        shown,
        steps=steps,
        batch_size=64,
        options=imitation_options(steps, lr=lr, cpu=True),
        seed=seed,
        progress=False,
    )
    # Saved elsewhere first and moved; the settings are written last, so a folder without them is not used.
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        policy.save_pretrained(unfinished)
        folder.mkdir(exist_ok=True)
        for file in sorted(Path(unfinished).iterdir()):
            os.replace(file, folder / file.name)
    note.write_text(json.dumps(settings) + "\n", "utf-8")
    return policy


def rewards(groups: Sequence[Group]) -> Array:
    """Total reward of every member, `[members]`."""
    return np.array([member.total_reward for group in groups for member in group], np.float64)


def win_rate(ours: Array, theirs: Array) -> float:
    """P(a random one of ours is above a random one of theirs) + P(equal) / 2, over all pairs."""
    difference = ours[:, None] - theirs[None, :]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


@torch.no_grad()
def log_ratios(policy: Policy, reference: Policy, members: Sequence[Trajectory]) -> Array:
    """log pi - log pi_ref of every answer, in nats; the mean over the policy's own answers estimates KL(pi || ref)."""
    batch = collate([Example((member,)) for member in members])
    own, other = (each.logps(batch.ids, batch.mask, batch.turn_ids >= 0) for each in (policy, reference))
    return np.asarray(sequence_logratio(own, other, batch.turn_ids).numpy(), np.float64)


class Evaluator:
    """The `evaluate` of `train`: reward, win rate over the reference, KL, length, share of valid answers.

    Args:
        task: Where answers are sampled.
        reference: The policy to compare with; twice `samples` of its answers are drawn once.
        samples: Answers in an evaluation.
        seed: Every evaluation has the same starts and random numbers.
    """

    def __init__(self, task: Task, reference: Policy, *, samples: int, seed: int) -> None:
        self.task, self.reference, self.samples, self.seed = task, reference, samples, seed
        groups = task.collect(task.agent(reference), groups=2 * samples, group_size=1, seed=seed + 20_000)
        self.reference_rewards = rewards(groups)
        self.rewards: Array = np.zeros(0)
        """Of the last evaluation's answers."""

    def __call__(self, trained: Any, step: int) -> dict[str, float]:
        """Figures by name."""
        policy: Policy = getattr(trained, "policy", trained)
        agent = self.task.agent(policy)
        groups = self.task.collect(agent, groups=self.samples, group_size=1, seed=self.seed + 30_000)
        members = [member for group in groups for member in group]
        self.rewards = rewards(groups)
        return {
            "reward": float(self.rewards.mean()),
            "win_rate": win_rate(self.rewards, self.reference_rewards),
            "kl": float(log_ratios(policy, self.reference, members).mean()),
            "words": float(np.mean([len(member.turns[0].action.split()) for member in members])),
            "proper": float(np.mean([self.task.is_valid(member.turns[0]) for member in members])),
        }


def evaluations(history: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The evaluations of a training run: one list for each figure, and the "step" of each evaluation.

    Where the method compares, "preferred" and "other" are the log-ratios of both answers of a pair in the step before;
    they are 0 at the start.
    """
    records = [record for record in history if any(name.startswith("eval/") for name in record)]
    names = {name.removeprefix("eval/"): name for name in records[0] if name.startswith("eval/")}
    if "chosen_logratio" in history[-1]:
        names |= {"preferred": "chosen_logratio", "other": "rejected_logratio"}
    values = {name: [round(float(record.get(key, 0.0)), 5) for record in records] for name, key in names.items()}
    return {"step": [float(record["step"]) for record in records], **values}


def at_the_end(runs: Sequence[Mapping[str, Any]], figure: str) -> list[float]:
    """The last evaluation of a figure, one a run."""
    return [float(run[figure][-1]) for run in runs]


def over_training(runs: Sequence[Mapping[str, Any]], figure: str) -> Array:
    """`[runs, evaluations]` of a figure."""
    return np.array([run[figure] for run in runs], np.float64)
