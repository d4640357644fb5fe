"""The space of all text."""

from __future__ import annotations

import json
import pickle
import unicodedata
from copy import deepcopy

import gymnasium
import numpy as np
import pytest
from gymnasium.vector.utils import batch_space

import polyturn.envs
from polyturn.envs.checking.hostile import HOSTILE
from polyturn.envs.spaces import UnicodeText


def test_any_text_within_the_length_is_in_it() -> None:
    space = UnicodeText(200_000)
    assert all(text in space for text in HOSTILE.values())
    assert "x" * 200_000 in space
    assert "x" * 200_001 not in space
    assert "" not in UnicodeText(5, min_length=1)
    # Length is counted in characters, not in bytes or UTF-16 units.
    assert "\U0001f600" * 5 in UnicodeText(5)


@pytest.mark.parametrize("value", [b"bytes", 1, None, ["a"], np.array("a")])
def test_nothing_but_text_is_in_it(value: object) -> None:
    assert value not in UnicodeText()


def test_samples_are_in_the_space_and_can_be_encoded() -> None:
    for space in (UnicodeText(seed=0), UnicodeText(3, min_length=2, seed=0), UnicodeText(500, min_length=400, seed=0)):
        for _ in range(200):
            sample = space.sample()
            assert sample in space
            sample.encode()  # no lone surrogate


def test_samples_are_deterministic_and_diverse() -> None:
    """Thirty samples hold letters, symbols, controls, right-to-left and combining characters, of two planes."""
    first, second = UnicodeText(seed=7), UnicodeText()
    second.seed(7)
    samples = [first.sample() for _ in range(30)]
    assert samples == [second.sample() for _ in range(30)]
    assert samples != [UnicodeText(seed=8).sample() for _ in range(30)]
    characters = set("".join(samples))
    assert {"Lu", "Ll", "Lo", "Mn", "Cc", "Sm", "Co", "Cf"} <= {unicodedata.category(c) for c in characters}
    assert max(characters) > "\U00010000"
    assert sum(sample.isascii() for sample in samples) < 30


def test_sampling_takes_nothing_from_the_global_generator() -> None:
    before = repr(np.random.get_state())  # noqa: NPY002
    UnicodeText(seed=1).sample()
    assert repr(np.random.get_state()) == before  # noqa: NPY002


def test_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="no mask"):
        UnicodeText().sample(mask=1)
    with pytest.raises(ValueError, match="no probability"):
        UnicodeText().sample(probability=1)


@pytest.mark.parametrize("bounds", [(-1, 0), (3, 4)])
def test_impossible_bounds_are_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="0 <= min_length <= max_length"):
        UnicodeText(bounds[0], min_length=bounds[1])


def test_equality_and_copies() -> None:
    space = UnicodeText(10, min_length=1, seed=3)
    assert space == UnicodeText(10, min_length=1)
    assert hash(space) == hash(UnicodeText(10, min_length=1))
    assert space != UnicodeText(10)
    assert space != UnicodeText(11, min_length=1)
    assert space != gymnasium.spaces.Text(10)
    for copy in (deepcopy(space), pickle.loads(pickle.dumps(space))):
        assert copy == space
        assert copy.sample() == UnicodeText(10, min_length=1, seed=3).sample()
    assert repr(space) == "UnicodeText(10, min_length=1)"
    assert eval(repr(space)) == space


def test_json() -> None:
    space = UnicodeText(seed=0)
    samples = [space.sample() for _ in range(10)]
    assert space.from_jsonable(json.loads(json.dumps(space.to_jsonable(samples)))) == samples


def test_it_nests_in_gymnasiums_spaces() -> None:
    space = gymnasium.spaces.Dict({"text": UnicodeText(9), "n": gymnasium.spaces.Discrete(3)}, seed=0)
    assert space.sample() in space
    batch = batch_space(UnicodeText(9, seed=1), 3)
    sample = batch.sample()
    assert len(sample) == 3
    assert len(set(sample)) == 3
    assert sample in batch


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vector_environments(mode: str) -> None:
    """Two games of Guess step together; asynchronous ones run in separate processes."""
    assert "polyturn/Guess-v0" in polyturn.envs.registered()
    arguments = {} if mode == "sync" else {"shared_memory": False}
    env = gymnasium.make_vec("polyturn/Guess-v0", 2, vectorization_mode=mode, vector_kwargs=arguments)
    try:
        observations, infos = env.reset(seed=[1, 2])
        assert len(observations) == 2
        assert list(infos["task_id"]) == ["number-48", "number-84"]
        observations, rewards, terminated, truncated, _ = env.step(("48", "\U0001f600 \u0663 \0"))
        assert observations[0] == "Correct!"
        assert observations[1].startswith("Write one whole number")
        assert rewards.tolist() == [1.0, 0.0]
        assert (terminated.tolist(), truncated.tolist()) == ([True, False], [False, False])
        assert env.action_space.sample() in env.action_space
    finally:
        env.close()
