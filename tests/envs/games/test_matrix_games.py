"""Matrix games as an environment and as an oracle; tabular games as an environment and as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyturn.agents import ScriptedAgent, collect
from polyturn.algorithms.exact import tabular_games as exact
from polyturn.envs import Group, Trajectory, Turn, check_text_env, make
from polyturn.envs.games.matrix_games import GAMES, MatrixGame, by_payoff, duels, payoff_matrix
from polyturn.envs.games.tabular_env import TabularGameEnv, by_final_state, play_games, tabular_games
from polyturn.envs.games.tabular_games import TabularGame


def played(env_id: str, task_id: str, info: dict[str, Any] | None) -> Trajectory:
    """A finished episode with this info, or a failed one."""
    return Trajectory(
        env_id=env_id,
        seed=0,
        turns=(Turn("?", "!"),),
        task_id=task_id,
        terminated=info is not None,
        error=None if info is not None else "lost",
        info=info or {},
    )


def test_rock_beats_scissors() -> None:
    env = MatrixGame(opponent=[0.0, 0.0, 1.0])
    for action, reward in (("rock", 1.0), (" Paper\n", 0.0), ("scissors", 0.5), ("my answer is 0", 1.0)):
        env.reset(seed=0)
        said, paid, terminated, _, info = env.step(action)
        assert (said, paid, terminated) == ("I chose scissors.", reward, True)
        assert info["opponent"] == 2
    for nonsense in ("", "lizard", "3"):
        env.reset(seed=0)
        assert env.step(nonsense)[1] == 0.0


def test_rounds_are_averaged_against_fresh_opponents() -> None:
    env = MatrixGame(payoff=[[0.5, 0.8], [0.2, 0.5]], opponent=[0.25, 0.75], rounds=4)
    total, episodes = 0.0, 500
    for seed in range(episodes):
        env.reset(seed=seed)
        steps = [env.step("0") for _ in range(4)]
        assert [step[2] for step in steps] == [False, False, False, True]
        total += sum(step[1] for step in steps) / episodes
    assert total == pytest.approx(0.25 * 0.5 + 0.75 * 0.8, abs=0.02)


def test_opponents_are_what_numpy_would_choose() -> None:
    """A seed's opponents are those of `Generator.choice` with the same probabilities."""
    opponent = [0.7, 0.0, 0.3]
    env = MatrixGame(opponent=opponent, rounds=20)
    for seed in range(30):
        env.reset(seed=seed)
        expected = np.random.default_rng(seed).choice(3, size=20, p=opponent).tolist()
        assert [env.step("rock")[4]["opponent"] for _ in range(20)] == expected


@pytest.mark.parametrize("name", GAMES)
def test_built_in_games_are_cycles(name: str) -> None:
    """Every answer beats one other and loses to one other: no order explains the preference."""
    matrix, names = payoff_matrix(name)
    assert len(names) == len(matrix) == 3
    assert ((matrix > 0.5).sum(axis=1) == 1).all()
    assert ((matrix < 0.5).sum(axis=1) == 1).all()


def test_the_oracle_reads_the_matrix() -> None:
    """rock, scissors, a failed episode, an episode without an answer, rock."""
    infos: list[dict[str, Any] | None] = [{"answer": 0}, {"answer": 2}, None, {}, {"answer": 0}]
    group = Group(tuple(played("polyturn/MatrixGame-v0", "", info) for info in infos))
    matrix = by_payoff("rock-paper-scissors")(group).matrix
    np.testing.assert_array_equal(matrix[[0, 1, 4]][:, [0, 1, 4]], [[0.5, 1.0, 0.5], [0.0, 0.5, 0.0], [0.5, 1.0, 0.5]])
    assert np.isnan(matrix[2:4]).all()
    assert np.isnan(matrix[:, 2:4]).all()


def test_duels_in_bulk() -> None:
    matrix, _ = payoff_matrix([[0.5, 0.9], [0.1, 0.5]])
    rng = np.random.default_rng(0)
    won = duels(matrix, np.zeros(20_000, int), np.ones(20_000, int), rng)
    assert won.mean() == pytest.approx(0.9, abs=0.02)
    assert duels(matrix, np.zeros(20_000, int), np.zeros(20_000, int), rng).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"payoff": "rock-paper"}, "Did you mean 'rock-paper-scissors'"),
        ({"payoff": [[0.5, 0.6], [0.6, 0.5]]}, r"P \+ P\^T = 1"),
        ({"payoff": [[0.5, 0.6]]}, r"expected \[A, A\]"),
        ({"opponent": [0.5, 0.5]}, r"opponent \[3\]"),
        ({"rounds": 0}, r"rounds\): expected a whole number of at least 1"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MatrixGame(**options)


def test_a_tabular_game_in_text() -> None:
    env = TabularGameEnv("detour")
    said, info = env.reset(seed=0)
    assert said == "Game 0, turn 1 of 2, state 0. Answer with a number from 0 to 1."
    assert info == {"task_id": "game-0"}
    said, reward, terminated, _, info = env.step("0")
    assert said == "Game 0, turn 2 of 2, state 0. Answer with a number from 0 to 1."
    assert (reward, terminated, info) == (0.0, False, {"state": 0, "answer": 0})
    _, reward, terminated, _, info = env.step("1")
    assert (terminated, info) == (True, {"state": 0, "answer": 1, "final_state": 1})
    # somebody at random ends in 0, 1, 2 with 3/8, 3/8, 1/4: ending 1 wins .1 * 3/8 + .5 * 3/8 + .9 / 4
    assert reward == pytest.approx(0.1 * 3 / 8 + 0.5 * 3 / 8 + 0.9 / 4)
    env.reset(seed=0)
    assert env.step("what?")[1:3] == (0.0, True)


def test_text_and_arrays_follow_the_same_chances() -> None:
    """Ending frequencies of both equal the exact occupancy within five standard errors."""
    game = tabular_games("random", count=1)[0]
    rng = np.random.default_rng(0)
    policy = exact.random_policy(game, rng)
    truth = exact.occupancy(game, policy)[-1]
    plays = play_games(game, policy, 40_000, rng)
    share = np.bincount(plays.states[:, -1], minlength=len(truth)) / 40_000
    assert np.abs(share - truth).max() < 5 * np.sqrt(0.25 / 40_000)
    rows = np.stack([policy[h][plays.states[:, h], plays.answers[:, h]] for h in range(game.turns)], 1)
    np.testing.assert_allclose(np.exp(plays.logps), rows)

    env = TabularGameEnv(game)
    counts = np.zeros(len(truth))
    for seed in range(2000):
        env.reset(seed=seed)
        state, done, h = 0, False, 0
        while not done:
            answer = int(rng.choice(policy[h].shape[1], p=policy[h][state]))
            said, _, done, _, info = env.step(str(answer))
            state, h = (info["final_state"] if done else int(said.split("state ")[1].split(".")[0])), h + 1
        counts[state] += 1
    assert np.abs(counts / 2000 - truth).max() < 5 * np.sqrt(0.25 / 2000)


def test_the_oracle_compares_final_states_of_the_groups_own_game() -> None:
    games = tabular_games("random", count=3)
    infos: list[dict[str, Any] | None] = [{"final_state": 2}, {"final_state": 0}, None, {}]
    group = Group(tuple(played("polyturn/TabularGame-v0", "game-1", info) for info in infos))
    matrix = by_final_state(games)(group).matrix
    assert matrix[0, 1] == games[1].preference[2, 0]
    assert matrix[0, 1] + matrix[1, 0] == 1.0
    assert np.isnan(matrix[2:]).all()


def test_a_family_is_made_from_its_seed() -> None:
    first, again, other = (tabular_games("random", count=2, game_seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first[1].preference, again[1].preference)
    assert not np.array_equal(first[1].preference, other[1].preference)
    assert not np.array_equal(first[0].preference, first[1].preference)
    assert tabular_games(first[0]) == (first[0],)
    with pytest.raises(ValueError, match="Did you mean 'detour'"):
        tabular_games("detours")
    with pytest.raises(ValueError, match="at least one game"):
        tabular_games([])


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("polyturn/MatrixGame-v0", {"payoff": "near-cycle", "rounds": 3}),
        ("polyturn/TabularGame-v0", {"games": "detour"}),
        ("polyturn/TabularGame-v0", {"states": [2, 3, 4], "answers": 2}),
    ],
)
def test_the_contract_holds(env_id: str, options: dict[str, Any]) -> None:
    check_text_env(env_id, actions=lambda rng, said: str(rng.integers(2)), **options)


def test_options_survive_json() -> None:
    """A trajectory records its options as JSON; made from them, the environment is the same."""
    env = make("polyturn/MatrixGame-v0", payoff=[[0.5, 0.8], [0.2, 0.5]], opponent=[0.0, 1.0])
    env.reset(seed=0)
    assert env.step("0")[1] == 0.8


def test_members_of_a_group_have_luck_of_their_own_after_the_same_start() -> None:
    """One game whose first reply is a fair coin, 200 pairs: both see the same reply in about half, not in all."""
    coin = np.array([[[0.5, 0.5], [0.5, 0.5]]])
    game = TabularGame((coin, np.tile(np.eye(2)[:, None], (1, 2, 1))), np.array([[0.5, 0.9], [0.1, 0.5]]))

    def same(groups: int, *, same_noise: bool) -> float:
        found = collect(
            ScriptedAgent(["0"] * 2), "polyturn/TabularGame-v0", groups=groups, group_size=2,
            env_options={"games": game}, same_noise=same_noise, progress=False,
        )  # fmt: skip
        return float(np.mean([one.info["final_state"] == other.info["final_state"] for one, other in found]))

    assert 0.35 < same(200, same_noise=False) < 0.65
    assert same(20, same_noise=True) == 1.0


def test_luck_is_renewed_from_a_snapshot_on_and_the_start_stays() -> None:
    env = TabularGameEnv("random", states=(3, 3, 3, 3, 3, 3))
    first, _ = env.reset(seed=3)
    again, _ = env.reset(seed=3, options={"noise": 5})
    assert first == again
    env.step("0")
    state = env.snapshot()
    endings = []
    for noise in (1, 1, *range(2, 9)):
        env.restore(state)
        env.renew_noise(noise)
        endings.append([env.step("0")[0] for _ in range(5)])
    assert endings[0] == endings[1]
    assert len({tuple(each) for each in endings}) > 3
    with pytest.raises(ValueError, match="no option of reset but 'noise', got 'nois'"):
        env.reset(options={"nois": 1})
