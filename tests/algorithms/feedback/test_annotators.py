"""Annotators by name: fitted models are read back, and a prompted judge is asked in both orders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms.feedback.annotators import annotator
from polyturn.algorithms.feedback.reward_models import PreferenceModel, RewardModel
from polyturn.envs.education.oracle import EducationOracle
from polyturn.envs.preference import Preference, by_return
from polyturn.envs.trajectory import Group, Trajectory, Turn


def talk(text: str, reward: float) -> Trajectory:
    return Trajectory("Toy-v0", 0, (Turn("hello", text, reward),), terminated=True)


PAIR = Group((talk("good day", 1.0), talk("bye", 0.0)))


def always_second(group: Group) -> Preference:
    return Preference(np.array([[0.5, 0.0], [1.0, 0.5]]), "human")


class Even:
    """A class stands for what it makes."""

    def __call__(self, group: Group) -> Preference:
        return Preference(np.full((len(group),) * 2, 0.5), "human")


@pytest.fixture(scope="module")
def policy() -> Any:
    return tiny_policy(["hello good day bye 1 2"], seed=0, vocab_size=300, hidden=16, layers=1, heads=2)


def test_names_of_functions() -> None:
    assert annotator("return") is by_return
    assert isinstance(annotator("education"), EducationOracle)
    assert annotator("json:dumps")(3) == "3"  # type: ignore[arg-type, comparison-overlap]


def test_own_functions_and_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colorsys.always_second", always_second, raising=False)
    monkeypatch.setattr("colorsys.Even", Even, raising=False)
    assert annotator("colorsys:always_second")(PAIR).matrix[1, 0] == 1.0
    assert annotator("colorsys:Even")(PAIR).matrix[1, 0] == 0.5
    with pytest.raises(ValueError, match="expected a function of a group at colorsys:ONE_THIRD, got float"):
        annotator("colorsys:ONE_THIRD")


@pytest.mark.parametrize(("kind", "make"), [("reward_model", RewardModel), ("preference_model", PreferenceModel)])
def test_fitted_models_are_read_back(kind: str, make: Any, policy: Any, tmp_path: Path) -> None:
    model = make(policy)
    model.scorer.head.weight.data.fill_(0.3)
    model.save_pretrained(tmp_path)
    read = annotator(f"{kind}:{tmp_path}")
    assert np.isfinite(read(PAIR).matrix[0, 1])
    assert read(PAIR).matrix == pytest.approx(model(PAIR).matrix, abs=1e-6, nan_ok=True)


def test_a_prompted_judge_is_asked_in_both_orders(policy: Any, tmp_path: Path) -> None:
    """Whatever a random model says, two equal conversations tie: its liking for a place cancels."""
    policy.save_pretrained(tmp_path)
    judge = annotator(f"judge:{tmp_path}", question="Who is kinder?")
    twins = Group((talk("good day", 0.0), talk("good day", 0.0)))
    assert judge(twins).matrix[0, 1] == pytest.approx(0.5)
    assert judge(PAIR).source == "judge"


@pytest.mark.parametrize("name", ["", "retrun", "judge", "reward_model:", "return:3"])
def test_what_is_nobody(name: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        annotator(name)
