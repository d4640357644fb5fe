"""Environments of other packages, each the real one: the contract, and what the other side breaks of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

from polyturn.envs import ContractViolation, check_text_env, make
from polyturn.envs.adapters.numbered import GymnasiumText, action_of
from polyturn.envs.adapters.replayed import OtherSideFailed, ReplayDiffers, Replayed
from polyturn.envs.checking.contract import RULES

adapters = pytest.mark.adapters


def numbers(count: int) -> Callable[[np.random.Generator, str], str]:
    return lambda rng, observation: f"I take {rng.integers(count)}."


def bracketed(low: int, high: int) -> Callable[[np.random.Generator, str], str]:
    return lambda rng, observation: f"[{rng.integers(low, high)}]"


def holds(env_id: str, actions: Callable[[np.random.Generator, str], str], **options: Any) -> None:
    report = check_text_env(env_id, actions=actions, seeds=range(4), **options)
    assert report.rules == tuple(RULES)


@pytest.mark.parametrize(
    ("game", "bounds", "actions"),
    [("FrozenLake-v1", (0, 1), 5), ("CartPole-v1", (0, 500), 2), ("Blackjack-v1", (-1, 2), 2)],
)
def test_gymnasium_through_text_keeps_the_contract(game: str, bounds: tuple[float, float], actions: int) -> None:
    holds("polyturn/GymnasiumText-v0", numbers(actions), game=game, reward_bounds=bounds)


def test_a_lake_is_shown_and_a_turn_without_an_action_changes_nothing() -> None:
    env = make("polyturn/GymnasiumText-v0", names=["left", "down", "right", "up"], options={"is_slippery": False})
    observation, _ = env.reset(seed=0)
    assert observation == (
        "(S)FFF\nFHFH\nFFFH\nHFFG\nActions: 0 left, 1 down, 2 right, 3 up. Answer with the number of one."
    )
    same, reward, terminated, truncated, info = env.step("I go nowhere, 7.")
    assert same.endswith("(S)FFF\nFHFH\nFFFH\nHFFG")
    assert (reward, terminated, truncated, info) == (0.0, False, False, {"valid": False})
    for action in "1122":
        env.step(action)
    env.step("first 3, no: 1")
    assert env.step("2")[1:3] == (1.0, True)


def test_continuous_actions_are_refused() -> None:
    with pytest.raises(ValueError, match="expected discrete actions, got Box"):
        GymnasiumText("Pendulum-v1")


@pytest.mark.parametrize(
    ("text", "action"),
    [("2", 2), ("1 or 2: 2.", 2), ("1.5", None), ("x2", None), ("-1", None), ("", None), ("9" * 50, None)],
)
def test_the_last_whole_number_is_the_action(text: str, action: int | None) -> None:
    assert action_of(text, range(4)) == action


class _Dice(Replayed):
    """Draws from the global generators, as other packages do; fails where it is told to."""

    def __init__(self) -> None:
        super().__init__(3, (0.0, 60.0))

    def _begin(self, seed: int) -> tuple[str, dict[str, Any]]:
        return f"{random.random()} {np.random.random()}", {}  # noqa: NPY002

    def _turn(self, action: str) -> tuple[str, float, bool, dict[str, Any]]:
        if action == "crash":
            raise KeyError("lost")
        return str(random.random()), 0.0, False, {}


class _Clock(_Dice):
    ticks = 0

    def _turn(self, action: str) -> tuple[str, float, bool, dict[str, Any]]:
        _Clock.ticks += 1
        return str(_Clock.ticks), 0.0, False, {}


def test_global_random_numbers_belong_to_the_episode_and_stay_as_they_were() -> None:
    assert check_text_env(_Dice).rules == tuple(RULES)


def test_a_crash_of_the_other_side_is_no_reward() -> None:
    env = _Dice()
    env.reset(seed=0)
    before = random.getstate()
    with pytest.raises(OtherSideFailed, match="KeyError: 'lost'"):
        env.step("crash")
    assert random.getstate() == before
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("x")


def test_a_snapshot_of_what_no_seed_reaches_is_refused() -> None:
    env = _Clock()
    env.reset(seed=0)
    env.step("x")
    with pytest.raises(ReplayDiffers, match="no seed reaches"):
        _Clock().restore(env.snapshot())
    with pytest.raises(ContractViolation, match=r"reproducible: .*the adapted package breaks this: .*not repeated or"):
        check_text_env(_Clock)


def test_a_breach_of_another_package_says_what_follows_and_not_how_its_author_mends_it() -> None:
    with pytest.raises(ContractViolation, match=r"reward-bounds: .*the environment of Gymnasium breaks this: give rew"):
        check_text_env("polyturn/GymnasiumText-v0", game="CartPole-v1", actions=numbers(2))
    with pytest.raises(ContractViolation, match=r"any-text: .*breaks this: it raises at this text, and the episode is"):
        check_text_env(_Dice, actions=lambda rng, seen: "crash")


@adapters
@pytest.mark.parametrize(
    ("options", "actions"),
    [
        ({"game": "GuessTheNumber-v0"}, bracketed(1, 21)),
        ({"game": "TicTacToe-v0", "players": 2}, bracketed(0, 9)),
        ({"game": "TicTacToe-v0", "players": 2, "seat": 1}, bracketed(0, 9)),
        ({"game": "Mastermind-v0"}, lambda rng, observation: str(rng.permutation(6)[:4] + 1)),
        ({"game": "2048-v0"}, lambda rng, observation: ("[up]", "[left]", "[down]", "[right]")[rng.integers(4)]),
    ],
)
def test_textarena_keeps_the_contract(options: dict[str, Any], actions: Any) -> None:
    holds("polyturn/TextArena-v0", actions, **options)


@adapters
def test_textarena_starts_that_ignore_the_seed_are_reported() -> None:
    """The disks of this game stand where they stand, and the environment does not say so."""
    with pytest.raises(ContractViolation, match=r"seeds-differ: .*TextArena breaks this: every seed"):
        check_text_env("polyturn/TextArena-v0", actions=bracketed(0, 9), seeds=range(3), game="TowerOfHanoi-v0")


@adapters
def test_textarena_sends_each_message_once_and_pays_the_winner() -> None:
    def loser(seen: str, numbers: random.Random) -> str:
        return next(move for move in ("[8]", "[6]", "[1]") if move in seen.rpartition("Available Moves")[2])

    env = gymnasium.make("polyturn/TextArena-v0", game="TicTacToe-v0", players=2, opponent=loser).unwrapped
    first, _ = env.reset(seed=0)
    assert "You are Player 0" in first
    second = env.step("[0]")[0]
    assert "You are Player 0" not in second
    assert "[0]\n" not in second.partition("Available Moves")[0]
    env.step("[3]")
    env.step("[4]")
    observation, reward, terminated, truncated, info = env.step("[5]")
    assert (observation, reward, terminated, truncated, info["success"]) == ("", 1.0, True, False, True)
    assert "won" in info["reason"]


@adapters
def test_textarena_names_what_was_meant() -> None:
    with pytest.raises(ValueError, match="Did you mean 'TicTacToe-v0'"):
        make("polyturn/TextArena-v0", game="TicTacTo-v0")


@adapters
@pytest.mark.parametrize("dataset", ["chain_sum", "countdown", "word_ladder"])
def test_reasoning_gym_keeps_the_contract(dataset: str) -> None:
    holds("polyturn/ReasoningGym-v0", lambda rng, observation: "<answer>3</answer>", dataset=dataset, size=20)


@adapters
def test_reasoning_gym_scores_its_own_answer() -> None:
    from reasoning_gym import create_dataset

    env = make("polyturn/ReasoningGym-v0", dataset="chain_sum", size=20, dataset_seed=3)
    question, info = env.reset(seed=1)
    entry = create_dataset("chain_sum", seed=3, size=20)[int(info["task_id"].rpartition("/")[2])]
    assert question == entry["question"]
    assert env.step(f"So <answer>{entry['answer']}</answer>")[1:3] == (1.0, True)


@adapters
@pytest.mark.parametrize("player", [0, 1])
@pytest.mark.parametrize(
    ("game", "options", "bound", "actions"),
    [("tictactoe_v3", {}, 1, 9), ("connect_four_v3", {}, 1, 7), ("rps_v2", {"max_cycles": 5}, 5, 3)],
)
def test_pettingzoo_keeps_the_contract(
    game: str, options: dict[str, Any], bound: int, actions: int, player: int
) -> None:
    holds(
        "polyturn/PettingZoo-v0",
        numbers(actions),
        game=f"pettingzoo.classic.{game}:env",
        player=player,
        options=options,
        reward_bounds=(-bound, bound),
    )


@adapters
def test_pettingzoo_plays_the_others_and_pays_the_winner() -> None:
    env = make(
        "polyturn/PettingZoo-v0",
        game="pettingzoo.classic.tictactoe_v3:env",
        opponent=lambda seen, legal, numbers: max(legal),
    )
    env.reset(seed=0)
    assert "No legal action" in env.step("0 and 9")[0]
    env.step("0")
    env.step("1")
    assert env.step("2")[1:3] == (1.0, True)
