"""Sums of rewards: rounded once, and compared without taking rounding for a preference."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from polyturn.envs.export import export_sft
from polyturn.envs.preference import by_return, by_score
from polyturn.envs.returns import at_least, settled, total
from polyturn.envs.store import Store
from polyturn.envs.trajectory import Group, Trajectory, Turn


def played(rewards: list[float], member: int = 0, **fields: object) -> Trajectory:
    turns = tuple(Turn("o", "a", reward) for reward in rewards)
    return Trajectory("Toy-v0", 0, turns, member=member, terminated=True, **fields)  # type: ignore[arg-type]


def group(*rewards: list[float]) -> Group:
    return Group(tuple(played(each, member) for member, each in enumerate(rewards)))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1]),
        ([0.1] * 3, [0.3]),  # summed exactly they still differ, as 0.1 is no double
        ([0.7, 0.1, -0.8], [0.0, 0.0]),  # what cancels leaves its rounding
        ([1 / 3] * 3, [1.0]),
        ([1e-3] * 1000, [1.0]),
        ([1e9 + 0.1, -1e9], [0.1]),  # 0.1 + 1e9 has lost digits before it was ever paid
        ([0.3 - 0.1], [0.2]),
    ],
)
def test_what_differs_by_rounding_is_a_tie(left: list[float], right: list[float]) -> None:
    for first, second in ((left, right), (right, left)):
        made = by_return(group(first, second))
        assert len(made.pairs()) == 0
        assert made.matrix[0, 1] == made.matrix[1, 0] == 0.5
        assert made.scores is not None
        assert made.scores[0] == made.scores[1]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ([1e16, 1.0, -1e16], [1e16, -1e16]),  # whole numbers are exact: a plain sum loses the 1
        ([0.1, 0.2], [0.3 - 1e-9]),
        ([-0.1], [-0.2]),
        ([2.0**53], [2.0**53 - 1]),
        ([1e-12], [0.0]),
        ([math.inf], [5.0]),
    ],
)
def test_what_differs_by_more_is_none(better: list[float], worse: list[float]) -> None:
    assert by_return(group(worse, better)).pairs().tolist() == [[1, 0]]


def test_every_order_of_the_same_rewards_has_the_same_total() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        rewards = rng.choice([0.1, -0.05, 0.3, 1e8, -1e8, 1e-7], size=12)
        assert total(rewards.tolist()) == total(rng.permutation(rewards).tolist())


def test_sums_that_have_no_value_do_not_raise() -> None:
    assert math.isnan(total([math.inf, -math.inf]))
    assert total([1e308, 1e308]) == math.inf
    assert played([1e308, 1e308, 1.0]).total_reward == math.inf


def test_scores_of_a_function_are_settled_too() -> None:
    made = by_score(np.array([0.1 + 0.2, 0.3, np.nan, 0.5]))
    assert made.scores is not None
    assert made.scores[0] == made.scores[1] == 0.3
    assert made.pairs().tolist() == [[3, 0], [3, 1]]
    margin = by_score(np.array([0.1 + 0.2, 0.0, 0.1 + 0.7]), margin=0.3)  # the margin is met but for rounding
    assert margin.matrix[0, 1] == 0.5


def test_settling_keeps_what_is_apart() -> None:
    values = np.array([0.3, 0.1 + 0.2, 0.3 + 1e-9, np.inf, np.nan])
    made = settled(values)
    assert made[0] == made[1]
    assert made[2] > made[0]
    assert np.isinf(made[3])
    assert np.isnan(made[4])


def test_a_bound_is_reached_up_to_rounding() -> None:
    assert at_least(0.1 * 3 + 0.7 - 1e-16, 1.0)
    assert not at_least(1.0 - 1e-9, 1.0)
    assert at_least(math.inf, 1.0)
    assert not at_least(math.nan, 1.0)


def test_export_by_return_counts_what_reaches_the_bound(tmp_path: Path) -> None:
    with Store(tmp_path / "all.jsonl") as store:
        for member, rewards in enumerate(([0.7 / 7] * 7, [0.69])):
            store.append(played(rewards, member))
    assert export_sft(tmp_path / "all.jsonl", tmp_path / "sft.jsonl", min_return=0.7) == 1
    assert json.loads((tmp_path / "sft.jsonl").read_text())["return"] == pytest.approx(0.7)
