"""The synthetic language tasks: rewards by hand, what does not count, and the contract."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from polyturn.envs import check_text_env, make
from polyturn.envs.games.token_tasks import (
    MODE,
    TokenBandit,
    TokenLength,
    length_rewards,
    skewed_lengths,
    token_rewards,
)


def reward(env: Any, action: str) -> float:
    env.reset(seed=0)
    return float(env.step(action)[1])


def test_token_bandit_by_hand() -> None:
    """Tokens worth 0, .5, 1; three to write: (1 + .5 + 0) / 3 = .5. A missing or foreign word is worth the lowest."""
    env = TokenBandit(reward=[0.0, 0.5, 1.0], vocabulary=3, length=3)
    assert reward(env, "2 1 0") == pytest.approx(0.5)
    assert reward(env, "2 2") == pytest.approx(2 / 3)
    assert reward(env, "2 two 2") == pytest.approx(2 / 3)
    assert reward(env, "2 9 -1") == pytest.approx(1 / 3)
    assert reward(env, "2 2 2 0 0 0") == 1.0  # what is beyond the length does not count
    assert reward(env, "") == 0.0


def test_the_prompt_token_is_given_and_does_not_count() -> None:
    env = TokenBandit()
    said = {env.reset(seed=seed)[0] for seed in range(200)}
    assert said <= {str(token) for token in range(100)}
    assert len(said) > 50
    assert {reward(env, "70 " * 9) for _ in range(3)} == {1.0}
    assert reward(env, "60 " * 9) == pytest.approx(math.exp(-1))


@pytest.mark.parametrize("length", [1, 9, 130])
def test_token_rewards_in_bulk_equal_the_environment(length: int) -> None:
    """To the last bit."""
    rng = np.random.default_rng(0)
    env = TokenBandit(length=length)
    tokens = rng.integers(-5, 105, size=(50, length))
    bulk = token_rewards(tokens, env.values)
    assert bulk.shape == (50,)
    for row, value in zip(tokens, bulk, strict=True):
        assert reward(env, " ".join(map(str, row))) == value


@pytest.mark.parametrize(
    ("task", "length", "expected"),
    [("minimum", 1, -1.0), ("minimum", 40, -40.0), ("skew", 40, -40.0), ("mode", 203, 0.0), ("mode", 200, -3.0)],
)
def test_length_rewards_by_hand(task: Any, length: int, expected: float) -> None:
    assert reward(TokenLength(task=task), "word " * length) == expected
    assert length_rewards([length], task).tolist() == [expected]


def test_silence_noise_and_excess_are_worse_than_any_answer() -> None:
    for task, worst in (("minimum", -512.0), ("mode", -309.0)):
        env = TokenLength(task=task)  # type: ignore[arg-type]
        assert length_rewards(np.arange(1, 513), env.task).min() == worst
        for action in ("", "   ", "word \u2588\u2588", "w" * 3 + " ++", "word " * 513):
            assert reward(env, action) == worst - 1.0
    assert MODE == 203


def test_punctuation_is_part_of_its_word() -> None:
    assert reward(TokenLength(), "Yes, it is 42.") == -4.0


def test_prompts_differ_and_do_not_matter() -> None:
    env = make("polyturn/TokenLength-v0", prompts=4)
    prompts = {env.reset(seed=seed)[0] for seed in range(40)}
    assert prompts == {f"Prompt {index}." for index in range(4)}


def test_skewed_lengths_are_mostly_long() -> None:
    """P(length < limit - d) = exp(-d / scale): with scale 10, short of 64 by 30 or more in e^-3 = 5% of the data."""
    lengths = skewed_lengths(20_000, np.random.default_rng(0), limit=64, scale=10.0)
    assert lengths.min() >= 1
    assert lengths.max() == 64
    assert (lengths <= 34).mean() == pytest.approx(math.exp(-2.95), abs=0.01)


@pytest.mark.parametrize(
    ("make_wrong", "message"),
    [
        (lambda: TokenLength(task="shortest"), "minimum, mode, skew, got 'shortest'"),
        (lambda: TokenLength(task="mode", limit=100), "mode within 1 to limit"),
        (lambda: TokenBandit(reward=[1.0, 1.0], vocabulary=2), "values that differ"),
        (lambda: TokenBandit(length=0), r"length\): expected a whole number of at least 1"),
    ],
)
def test_wrong_options_are_named(make_wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_wrong()


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("polyturn/TokenBandit-v0", {"vocabulary": 10, "length": 3}),
        ("polyturn/TokenLength-v0", {"task": "mode"}),
        ("polyturn/TokenLength-v0", {"task": "skew", "limit": 64}),
    ],
)
def test_the_contract_holds(env_id: str, options: dict[str, Any]) -> None:
    check_text_env(env_id, actions=lambda rng, said: "7 " * int(rng.integers(1, 9)), **options)
