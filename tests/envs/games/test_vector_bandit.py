"""Bandits as arrays: the numbers of the text environments, and clear refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from polyturn.envs import Bandit, BanditVector


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"contexts": 7, "first_context": 100, "reward": lambda context, arm: float(context - arm), "arms": 5},
        {"contexts": 64, "context": 3, "arms": 4},
        {"contexts": 1, "arms": 2},
    ],
)
@pytest.mark.parametrize("seed", [5, [3, 3, 900]])
def test_the_numbers_are_those_of_single_text_environments(options: dict[str, Any], seed: Any) -> None:
    """Over more steps than are drawn ahead, and over resets with and without a seed."""
    fast = BanditVector(3, **options)
    slow = SyncVectorEnv([lambda: Bandit(**options)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    arms = np.random.default_rng(0).integers(fast.bandit.arms, size=(300, 3))

    def read(observation: Any) -> list[int]:
        return [int(said.split()[1].rstrip(".")) for said in observation]

    for given in (seed, None, seed):
        contexts = fast.reset(seed=given)[0]
        assert contexts.tolist() == read(slow.reset(seed=given)[0])
        for played in arms:
            before = contexts
            contexts, rewards, ended, cut, infos = fast.step(played)
            said, expected, *flags, _ = slow.step([str(arm) for arm in played])
            assert contexts.tolist() == read(said)
            assert contexts in fast.observation_space
            np.testing.assert_array_equal(rewards, expected)
            np.testing.assert_array_equal([ended, cut], flags)
            np.testing.assert_array_equal(infos["final_obs"], before)
            assert infos["_final_obs"].all()


def test_without_a_seed_two_vectors_differ() -> None:
    first, second = BanditVector(50), BanditVector(50)
    assert (first.reset()[0] != second.reset()[0]).any()


def test_arrays_given_out_stay_as_they_were() -> None:
    bandits = BanditVector(4)
    kept = bandits.reset(seed=0)[0]
    copy = kept.copy()
    kept_infos = bandits.step([0, 1, 2, 3])[4]
    kept += 1
    np.testing.assert_array_equal(kept_infos["final_obs"], copy)


def test_what_is_refused() -> None:
    bandits = BanditVector(2, arms=3)
    with pytest.raises(ResetNeeded):
        bandits.step([0, 1])
    with pytest.raises(ValueError, match="expected 2 seeds, got 3"):
        bandits.reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match="options of reset: expected none"):
        bandits.reset(options={"task": 1})
    bandits.reset(seed=0)
    for wrong in ([0, 3], [-1, 0]):
        with pytest.raises(ValueError, match="expected arms from 0 to 2"):
            bandits.step(wrong)
    for wrong_kind in ([0], [0.0, 1.0], ["0", "1"], [[0, 1]]):
        with pytest.raises(ValueError, match="expected 2 whole numbers"):
            bandits.step(wrong_kind)
    with pytest.raises(ValueError, match="num_envs"):
        BanditVector(0)
    with pytest.raises(ValueError, match="rewards that differ"):
        BanditVector(2, reward=[1.0, 1.0], arms=2)
