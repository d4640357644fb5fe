"""Games make the generators that Gymnasium makes, from seeds seen or not."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from gymnasium.error import Error
from gymnasium.utils import seeding

from polyturn.envs import Bandit, Guess, MatrixGame, PairedBandit, TokenBandit, TokenLength
from polyturn.envs.games.seeding import SeededGame


def draws(generator: np.random.Generator) -> list[Any]:
    """Numbers of several kinds, and those of two generations of children."""
    own = [generator.random(3).tolist(), generator.integers(100, size=3).tolist(), generator.normal()]
    return own + [child.random() for _ in range(2) for child in generator.spawn(2)]


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**63, 2**200])
def test_numbers_and_children_are_gymnasiums(seed: int) -> None:
    """Also for the second environment with the same seed, whatever the first one drew and spawned."""
    expected = draws(seeding.np_random(seed)[0])
    for _ in range(2):
        env = Bandit(context=0)
        env.reset(seed=seed)
        assert env.np_random_seed == seed
        plain = seeding.np_random(seed)[0]
        plain.integers(100)  # the bandit's own draw, which a fixed context does not skip
        assert env.np_random.bit_generator.state == plain.bit_generator.state
        SeededGame.reset(env, seed=seed)  # the seeding alone, without a game's draws
        assert draws(env.np_random) == expected


def test_generators_can_be_copied_and_pickled() -> None:
    env = Guess()
    env.reset(seed=3)
    copies = [copy.deepcopy(env.np_random), pickle.loads(pickle.dumps(env.np_random))]
    expected = draws(env.np_random)
    assert [draws(each) for each in copies] == [expected, expected]


@pytest.mark.parametrize("game", [Bandit, Guess, MatrixGame, PairedBandit, TokenBandit, TokenLength])
def test_wrong_seeds_are_refused_and_none_goes_on(game: Any) -> None:
    env = game()
    env.reset(seed=5)
    before = env.np_random
    env.reset()
    assert env.np_random is before
    for wrong in (-1, 1.5, np.int64(3), "3"):
        with pytest.raises(Error, match="Seed must be"):
            env.reset(seed=wrong)
