"""An agent as the annotator: steered by its instructions, without a favourite place, and never guessing."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from polyturn.agents.agent import Episode, ScriptedAgent
from polyturn.agents.collecting.options import CollectOptions
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms import GPO, Online, ai_feedback, online, position_bias, train
from polyturn.algorithms.training.options import TrainOptions
from polyturn.envs.trajectory import Group, Trajectory, Turn

torch.set_num_threads(1)


def said(*words: str) -> Trajectory:
    return Trajectory("Toy-v0", 0, tuple(Turn("Go on.", text) for text in words), terminated=True)


GROUP = Group((said("short"), said("a very much longer answer"), said("middling words")))


def lengths(prompt: str) -> list[int]:
    """Characters that the assistant wrote in each of the two conversations of a prompt."""
    parts = prompt.split("### Conversation ")[1:]
    return [sum(len(line) for line in re.findall(r"Assistant: (.*)", part)) for part in parts]


def by_length(episode: Episode) -> str:
    """A judge that prefers what it is configured for: short or long."""
    first, second = lengths(episode.observation)
    if first == second:
        return "0"
    short = "short" in episode.observation.split("###")[0]
    return "1" if (first < second) == short else "2"


def test_instructions_decide() -> None:
    short, long = (ai_feedback(ScriptedAgent(by_length), f"Prefer the {how} answer.") for how in ("short", "long"))
    np.testing.assert_array_equal(short(GROUP).matrix[0, 1:], [1.0, 1.0])
    np.testing.assert_array_equal(long(GROUP).matrix[0, 1:], [0.0, 0.0])
    assert short(GROUP).source == "judge"


def test_a_favourite_place_makes_a_tie_and_is_measured() -> None:
    """Who always says the first beats nobody; its bias is 1, that of an honest judge 0."""
    stubborn = ai_feedback(ScriptedAgent(["1"]))
    off = ~np.eye(3, dtype=bool)
    assert (stubborn(GROUP).matrix[off] == 0.5).all()
    assert position_bias(stubborn.judge, [GROUP]) == 1.0
    assert position_bias(ai_feedback(ScriptedAgent(by_length)).judge, [GROUP]) == 0.0


def test_ties_and_what_cannot_be_read() -> None:
    tie, silent = (ai_feedback(ScriptedAgent([text])) for text in ("0", "I would rather not say."))
    assert tie(GROUP).matrix[0, 1] == 0.5
    assert math.isnan(silent(GROUP).matrix[0, 1])
    with pytest.raises(ValueError, match="answered in both orders, got none"):
        position_bias(silent.judge, [GROUP])


def letters_after(instructions: str, *, steps: int = 15) -> float:
    """Letters of an answer (of at most 4 tokens, at the start nearly always 4) once trained with such a judge."""
    policy = tiny_policy(["Prompt 1."], seed=0, vocab_size=262, hidden=16, layers=1, heads=2, context=64)
    judge = ai_feedback(ScriptedAgent(by_length), instructions)

    def stream(seed: int) -> Online:
        return online(
            policy, "polyturn/TokenLength-v0", preference=judge, seed=seed,
            collect=CollectOptions(
                groups=6, group_size=4, env_options={"prompts": 4}, sampling=Sampling(max_new_tokens=4), max_tokens=60,
                slots=24,
            ),
        )  # fmt: skip

    method = GPO(beta=0.1, pairs_per_group=None)
    train(
        method, policy, policy.copy(), stream(0), steps=steps, options=TrainOptions(lr=2e-2, cpu=True), progress=False
    )
    return float(np.mean([len(m.turns[0].action) for item in next(stream(99)) for m in item.group]))


def test_the_policy_follows_the_instructions() -> None:
    """OAIF in small: the same judge, loss and start; only the instructions differ."""
    assert letters_after("Prefer the short answer.") < letters_after("Prefer the long answer.") - 0.25
