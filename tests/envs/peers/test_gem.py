"""GEM, the real package: the contract through `polyturn/Gem-v0`, and our environments in `gem.make`."""

from __future__ import annotations

import functools
import logging
import random

import numpy as np
import pytest

from polyturn.envs import ContractViolation, as_gem, check_text_env, make
from polyturn.envs.checking.contract import RULES

pytestmark = pytest.mark.peer(name="gem")


def test_an_import_leaves_logging_alone() -> None:
    before = list(logging.getLogger().handlers), logging.getLogger().level
    make("polyturn/Gem-v0")
    assert (list(logging.getLogger().handlers), logging.getLogger().level) == before


@pytest.mark.parametrize(
    ("game", "text"),
    [
        ("game:GuessTheNumber-v0-easy", lambda rng: f"{rng.integers(1, 11)}"),
        ("game:Mastermind-v0-easy", lambda rng: "".join(map(str, rng.permutation(6)[:2] + 1))),
        ("game:Minesweeper-v0-easy", lambda rng: f"reveal {rng.integers(5)} {rng.integers(5)}"),
        ("game:FifteenPuzzle-v0-easy", lambda rng: ("up", "down", "left", "right")[rng.integers(4)]),
        ("rg:chain_sum", lambda rng: f"{rng.integers(100)}"),
    ],
)
def test_its_games_keep_the_contract(game: str, text: object) -> None:
    def actions(rng: np.random.Generator, observation: str) -> str:
        return f"\\boxed{{{text(rng)}}}"  # type: ignore[operator]

    report = check_text_env("polyturn/Gem-v0", actions=actions, seeds=range(4), game=game, reward_bounds=(-5, 5))
    assert report.rules == tuple(RULES)
    assert report.longest > 1 or game.startswith("rg:")


def test_a_number_is_guessed() -> None:
    env = make("polyturn/Gem-v0", game="game:GuessTheNumber-v0-hard")
    observation, info = env.reset(seed=3)
    assert observation.endswith("Enter your next guess.")
    assert info == {}
    low, high = 1, 50
    for _ in range(7):
        middle = (low + high) // 2
        observation, reward, terminated, truncated, _ = env.step(f"\\boxed{{{middle}}}")
        if terminated:
            break
        low, high = (low, middle - 1) if "lower" in observation else (middle + 1, high)
    assert (reward, terminated, truncated) == (1.0, True, False)


def test_what_it_breaks_is_reported() -> None:
    """With bounds that are too narrow for its penalty of a format error."""
    with pytest.raises(ContractViolation, match=r"reward-bounds: expected a return in \[0, 1\], got -0\.1"):
        check_text_env("polyturn/Gem-v0", seeds=range(2), reward_bounds=(0, 1))


def test_names_what_was_meant() -> None:
    with pytest.raises(ValueError, match="Did you mean 'game:Sudoku-v0-easy'"):
        make("polyturn/Gem-v0", game="game:Sudoku-v0-eazy")


def test_an_environment_of_ours_in_gem_make() -> None:
    import gem

    gem.register("polyturn-test:Guess", functools.partial(as_gem, "polyturn/Guess-v0"))
    before = random.getstate()
    env, ours = gem.make("polyturn-test:Guess", high=10), make("polyturn/Guess-v0", high=10)
    assert isinstance(env, gem.Env)
    assert env.reset(seed=5) == ours.reset(seed=5)
    assert env.step("3") == ours.step("3")
    child = env.spawn(same_state=True)
    env.step("4")
    assert child.step("9") == ours.step("9")
    assert random.getstate() == before


def test_environments_of_ours_in_a_vector_of_gem() -> None:
    import gem

    gem.register("polyturn-test:Vector", functools.partial(as_gem, "polyturn/Guess-v0"))
    together = gem.make_vec(["polyturn-test:Vector"] * 2, seed=7)
    together.reset()
    alone = [make("polyturn/Guess-v0") for _ in range(2)]
    for place, env in enumerate(alone):
        env.reset(seed=7 + place)
    observations, rewards, *_ = together.step(["20", "30"])
    expected = [env.step(action)[:2] for env, action in zip(alone, ["20", "30"], strict=True)]
    assert [(seen, float(paid)) for seen, paid in zip(observations, rewards, strict=True)] == expected
