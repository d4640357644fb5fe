"""A small transformer on a one-turn token task: warm-started once a seed, sampled, and measured against its reference.

What the suites on token tasks share. The start is trained on answers that a function wrote; every seed has its own
weights, demonstrations and samples.
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
"""Tokens of an episode at most."""


@dataclass(frozen=True)
class Task:
    """A one-turn environment and who writes the demonstrations.

    Attributes:
        env: Registered id.
        options: Its keyword arguments.
        write: From a generator to an answer.
        longest: Tokens of an answer at most.
        proper: Whether the environment took an answer for one.
    """

    env: str
    options: Mapping[str, Any]
    write: Callable[[np.random.Generator], str]
    longest: int
    proper: Callable[[Turn], bool]

    def play(self, agent: Agent, *, groups: int, group_size: int, seed: int) -> list[Group]:
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
        return Sampling(max_new_tokens=self.longest)

    def speaking(self, policy: Policy) -> TransformerAgent:
        """The policy as an agent."""
        return TransformerAgent(policy, sampling=self.sampling(), max_tokens=CONTEXT, slots=64)


@contextmanager
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from a second thread, and lose much where other programs want the processor."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def written(policy: Policy, groups: Sequence[Group]) -> list[Group]:
    """The groups of an agent without tokens, with the policy's tokens for their texts."""
    return [Group(tuple(policy.chat.written(member) for member in group)) for group in groups]


def scripted(write: Callable[[np.random.Generator], str]) -> ScriptedAgent:
    """An agent whose answers `write` draws from the episode's generator."""
    return ScriptedAgent(lambda episode: write(episode.rng), name="script")


def start(task: Task, folder: Path, *, seed: int, demonstrations: int, steps: int, lr: float) -> Policy:
    """The warm-started policy of a seed, read from `folder` where it is there already and had the same settings."""
    settings = {"env": task.env, "seed": seed, "demonstrations": demonstrations, "steps": steps, "lr": lr}
    note = folder / "settings.json"
    if note.is_file() and json.loads(note.read_text("utf-8")) == settings:
        return Policy.from_pretrained(folder, device="cpu")
    groups = task.play(scripted(task.write), groups=demonstrations, group_size=1, seed=seed + 10_000)
    told = [member for group in groups for member in group]
    texts = [part for member in told for part in (member.turns[0].observation, member.turns[0].action)]
    policy = tiny_policy(texts, seed=seed, hidden=32, layers=2, heads=2, context=CONTEXT, init=0.1)
    options = imitation_options(steps, lr=lr, cpu=True)
    warm_start(policy, told, steps=steps, batch_size=64, options=options, seed=seed, progress=False)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        # The settings are written last: a folder without them is not used.
        policy.save_pretrained(unfinished)
        folder.mkdir(exist_ok=True)
        for file in sorted(Path(unfinished).iterdir()):
            os.replace(file, folder / file.name)
    note.write_text(json.dumps(settings) + "\n", "utf-8")
    return policy


def rewards(groups: Sequence[Group]) -> Array:
    """Every member's total reward, `[members]`."""
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


class Measure:
    """What `train` calls to evaluate: true reward, win rate over the reference, KL, length, share of proper answers.

    Args:
        task: Where it plays.
        reference: Whose answers the policy's are compared with; twice `samples` of them are drawn once.
        samples: Answers an evaluation.
        seed: The same starts and random numbers at every evaluation.
    """

    def __init__(self, task: Task, reference: Policy, *, samples: int, seed: int) -> None:
        self.task, self.reference, self.samples, self.seed = task, reference, samples, seed
        self.theirs = rewards(task.play(task.speaking(reference), groups=2 * samples, group_size=1, seed=seed + 20_000))
        self.answers: Array = np.zeros(0)

    def __call__(self, trained: Any, step: int) -> dict[str, float]:
        """Numbers by name; the rewards themselves stay in `answers`."""
        policy: Policy = getattr(trained, "policy", trained)
        groups = self.task.play(self.task.speaking(policy), groups=self.samples, group_size=1, seed=self.seed + 30_000)
        members = [member for group in groups for member in group]
        self.answers = rewards(groups)
        return {
            "reward": float(self.answers.mean()),
            "win_rate": win_rate(self.answers, self.theirs),
            "kl": float(log_ratios(policy, self.reference, members).mean()),
            "words": float(np.mean([len(member.turns[0].action.split()) for member in members])),
            "proper": float(np.mean([self.task.proper(member.turns[0]) for member in members])),
        }


def curve(history: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The evaluations of a training run, by name, with the "step" of each.

    Where the method compares, "preferred" and "other" are the log-ratios of the two answers of a pair in the step
    before, 0 at the start.
    """
    found = [record for record in history if any(name.startswith("eval/") for name in record)]
    names = {name.removeprefix("eval/"): name for name in found[0] if name.startswith("eval/")}
    if "chosen_logratio" in history[-1]:
        names |= {"preferred": "chosen_logratio", "other": "rejected_logratio"}
    values = {name: [round(float(record.get(key, 0.0)), 5) for record in found] for name, key in names.items()}
    return {"step": [float(record["step"]) for record in found], **values}
