"""A student fitted to recorded dialogues by supervised fine-tuning plays the other side of the conversation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from polyturn.agents.collecting.collect import collect
from polyturn.agents.collecting.roles import AgentPartner, other_sides
from polyturn.agents.scripted.teachers import ScriptedTeacher
from polyturn.agents.transformer.agent import TransformerAgent
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms.protocols.warmup import imitation_options, warm_start
from polyturn.algorithms.training.options import TrainOptions
from polyturn.envs.conversation import END
from polyturn.envs.education.data import dialogue_of, load_dialogues, write_dialogues
from polyturn.envs.trajectory import Group, Trajectory

ID = "polyturn/EducationDialogue-v0"


def blank(data: list[Trajectory], vocab_size: int = 700) -> Policy:
    texts = [text for each in data for turn in each.turns for text in (turn.observation, turn.action)]
    return tiny_policy(texts, seed=0, vocab_size=vocab_size, hidden=64, layers=2, heads=4, context=1024)


def play(policy: Policy, groups: int, **options: object) -> list[Group]:
    sampling = Sampling(max_new_tokens=48, temperature=0.7)
    student = AgentPartner(TransformerAgent(policy, sampling=sampling, max_tokens=1024, slots=8))
    env_options = {"student": student, **options}
    return collect(ScriptedTeacher(), ID, groups=groups, env_options=env_options, seed=1, progress=False)


def test_the_shipped_dialogues_suffice_to_try_it() -> None:
    data = load_dialogues(side="student")
    policy = blank(data, vocab_size=400)
    result = warm_start(
        policy, data, steps=3, batch_size=2, options=TrainOptions(lr=3e-3, warmup=0, cpu=True), progress=False
    )
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    (sides,) = other_sides(play(policy, 1, turns=2))
    assert sides[0].valid
    assert sides[0].policy_version == "sft"


@pytest.mark.slow
def test_a_fitted_student_speaks_as_the_recorded_ones_did(tmp_path: Path) -> None:
    """Recorded with the scripted student, two turns each: the second is always its farewell, the first never.

    A blank policy writes 48 random tokens: no farewell, and nothing that was ever recorded.
    """
    options = {"topics": ["photosynthesis"], "turns": 2}
    recorded = collect(ScriptedTeacher(), ID, groups=200, env_options=options, progress=False)
    write_dialogues(tmp_path / "recorded.json", (dialogue_of(group[0]) for group in recorded))
    data = load_dialogues(tmp_path / "recorded.json", "student")
    policy = blank(data)
    result = warm_start(
        policy, data, steps=60, batch_size=8, options=imitation_options(60, lr=1e-2, cpu=True), progress=False
    )
    assert result.history[0]["loss"] > 6 > 1 > np.mean([row["loss"] for row in result.history[-10:]])
    sides = [side for group in other_sides(play(policy, 12, **options)) for side in group]
    assert all(side.valid and len(side.turns) == 2 for side in sides)
    assert sum(END in side.turns[1].action for side in sides) >= 9
    assert sum(END in side.turns[0].action for side in sides) <= 3
    said = {turn.action for each in data for turn in each.turns}
    assert any(turn.action in said for side in sides for turn in side.turns)
    briefs = {each.turns[0].observation.partition("\n\n")[0] for each in data}
    known = [side.turns[0].observation.partition("\n\n")[0] in briefs for side in sides]
    assert np.mean(known) > 0.6  # 72 kinds of students, 200 recorded: what it is told is what it was trained on
