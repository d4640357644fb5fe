"""Learned feedback: antisymmetry, padding, what each can represent, and that fitting calibrates it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms import PreferenceModel, RewardModel, calibration, fit
from polyturn.algorithms.training.options import TrainOptions
from polyturn.envs.preference import Preference, by_score
from polyturn.envs.trajectory import Group, Trajectory, Turn

torch.set_num_threads(1)
MODELS: list[Any] = [RewardModel, PreferenceModel]
WORDS = ("rock", "paper", "scissors")
CYCLE = np.array([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]])


def tiny() -> Policy:
    return tiny_policy([*WORDS, "Choose. First conversation: Second conversation:"], seed=0, vocab_size=320, hidden=32,
                       layers=1, heads=2, context=96)  # fmt: skip


def said(word: str, seed: int = 0, *, valid: bool = True, final: str = "") -> Trajectory:
    return Trajectory("Toy-v0", seed, (Turn("Choose.", word),), terminated=valid, final_observation=final)


def sharpened(model: Any) -> Any:
    """A head that says something: it starts at zero."""
    with torch.no_grad():
        model.scorer.head.weight.copy_(torch.linspace(-2, 2, 32)[None])
    return model


@pytest.mark.parametrize("make", MODELS)
def test_antisymmetric_and_silent_about_invalid_members(make: Any) -> None:
    """P(a, b) + P(b, a) = 1 for the same pair in either place, to the last bit; nothing is learned yet at 1/2."""
    model = sharpened(make(tiny()))
    group = Group((said("rock"), said("paper paper"), said("scissors", valid=False), said("rock rock rock")))
    swapped = Group(tuple(reversed(group.trajectories)))
    matrix, other = model(group).matrix, model(swapped).matrix
    np.testing.assert_allclose(other[::-1, ::-1], matrix, atol=1e-6)
    assert np.isnan(matrix[2]).all()
    known = matrix[np.ix_([0, 1, 3], [0, 1, 3])]
    off = ~np.eye(3, dtype=bool)
    assert ((known + known.T)[off] == 1.0).all()
    assert np.abs(known[off] - 0.5).min() > 1e-4
    assert model(group).source == "model"
    assert make(tiny())(group).matrix[0, 1] == 0.5


@pytest.mark.parametrize("make", MODELS)
def test_company_and_padding_change_nothing(make: Any) -> None:
    model = sharpened(make(tiny()))
    short, long = said("rock"), said("paper " * 8)
    alone = model(Group((short, said("paper")))).matrix[0, 1]
    crowd = model(Group((short, said("paper"), long))).matrix[0, 1]
    assert crowd == pytest.approx(alone, abs=1e-6)


def test_the_last_words_of_the_environment_count() -> None:
    model = sharpened(RewardModel(tiny()))
    scores = model.scores([said("rock"), said("rock", final="You lost."), said("rock", final="You won.")])
    assert len({round(float(score), 6) for score in scores}) == 3


@pytest.mark.parametrize("make", MODELS)
def test_saved_and_read_back(make: Any, tmp_path: Path) -> None:
    model = sharpened(make(tiny()))
    model.save_pretrained(tmp_path)
    again = make.from_pretrained(tmp_path, device="cpu")
    group = Group((said("rock"), said("paper")))
    assert again(group).matrix[0, 1] == model(group).matrix[0, 1]


def annotated(seeds: range, matrix: np.ndarray) -> list[tuple[Group, Preference]]:
    """Groups that hold each word, in a random order, with what the matrix says of them."""
    result = []
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(3)
        group = Group(tuple(said(WORDS[word], seed) for word in order))
        result.append((group, Preference(matrix[np.ix_(order, order)], "oracle")))
    return result


def test_the_pairwise_model_learns_a_cycle_and_no_score_can() -> None:
    """Rock, paper, scissors: the best score-based model is right on two thirds of the pairs at most."""
    train_set, held_out = annotated(range(12), CYCLE), annotated(range(100, 106), CYCLE)
    options: dict[str, Any] = {
        "batch_size": 12, "options": TrainOptions(lr=1e-2, cpu=True), "progress": False,
    }  # fmt: skip
    pairwise = fit(PreferenceModel(tiny()), train_set, held_out, steps=40, **options)
    assert pairwise.before.accuracy == 0.5
    assert pairwise.before.log_loss == pytest.approx(math.log(2))
    assert pairwise.after.accuracy == 1.0
    assert pairwise.after.ece < 0.2
    scalar = fit(RewardModel(tiny()), train_set, held_out, steps=20, **options)
    assert scalar.after.accuracy <= 2 / 3 + 1e-9


def test_the_reward_model_learns_soft_labels_with_calibration() -> None:
    """Bradley-Terry truth at 0, 1, 2: fitted probabilities end at sigmoid(1), sigmoid(2), so the ECE goes to 0."""
    truth = 1 / (1 + np.exp(np.arange(3)[None] - np.arange(3)[:, None]))
    model = RewardModel(tiny())
    options = TrainOptions(lr=1e-2, cpu=True)
    learned, held_out = annotated(range(8), truth), annotated(range(50, 54), truth)
    done = fit(model, learned, held_out, steps=60, batch_size=8, options=options, progress=False)
    assert done.after.accuracy == 1.0
    assert done.after.ece < 0.05
    # Half way is not enough: from knowing nothing (Brier .084 against these labels) to almost exact.
    assert done.after.brier < 0.01 * done.before.brier
    scores = model.scores([said(word) for word in WORDS])
    assert scores[2] - scores[0] == pytest.approx(2.0, abs=0.3)
    assert done.training.history[-1]["accuracy"] == 1.0


def test_calibration_by_hand() -> None:
    """Says .8 twice, right once: ECE .3, accuracy 1/2; log loss -(ln .8 + ln .2) / 2; Brier (.04 + .64) / 2."""
    group, other = (Group((said("rock", seed), said("paper", seed))) for seed in (0, 1))
    sure = Preference(np.array([[0.5, 0.8], [0.2, 0.5]]), "model")
    labels = [(group, by_score(np.array([1.0, 0.0]))), (other, by_score(np.array([0.0, 1.0])))]
    found = calibration(lambda _: sure, labels)
    assert found.accuracy == 0.5
    assert found.ece == pytest.approx(0.3)
    assert found.log_loss == pytest.approx(-(math.log(0.8) + math.log(0.2)) / 2)
    assert found.brier == pytest.approx(0.34)
    assert found.pairs == 2
    assert found.bins == ((pytest.approx(0.2), 0.5, 2), (pytest.approx(0.8), 0.5, 2))
    with pytest.raises(ValueError, match="both the annotator and the labels judged"):
        calibration(lambda _: Preference(np.full((2, 2), np.nan), "model"), labels)


def test_mistakes_are_named() -> None:
    data = annotated(range(2), CYCLE)
    with pytest.raises(ValueError, match="other starts, got 2 in both"):
        fit(RewardModel(tiny()), data, data, steps=1)
    unasked = [(group, Preference(np.full((3, 3), np.nan), "judge")) for group, _ in data]
    with pytest.raises(ValueError, match="judged pairs, got none"):
        fit(RewardModel(tiny()), unasked, annotated(range(5, 6), CYCLE), steps=1)
    with pytest.raises(ValueError, match="at most 96 tokens"):
        RewardModel(tiny()).scores([said("rock paper " * 90)])
