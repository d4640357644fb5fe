"""The bandits: the paper's numbers, the text environment and its array form saying the same, and the duels."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from polyturn.algorithms.exact.closed_forms import best_of_n, kl
from polyturn.envs import by_return, check_text_env, make
from polyturn.envs.games.bandits import Bandit, context_features, data_policy, play, reward_table
from polyturn.envs.games.paired_bandit import PairedBandit

VALUES = [0.0, 1.0, 0.25]


def test_the_papers_data_policy() -> None:
    """Mass of bins of tanh(Cauchy(-.7, .4)): by the distribution function .5 + atan((atanh(x) + .7) / .4) / pi."""
    policy = data_policy()
    assert policy.sum() == pytest.approx(1.0)
    assert policy[0] == pytest.approx(0.078, abs=1e-3)
    assert policy[99] == pytest.approx(0.042, abs=1e-3)
    assert 14 <= policy[1:99].argmax() + 1 <= 20
    assert policy[1:99].max() == pytest.approx(0.027, abs=2e-3)
    assert policy[20] == pytest.approx(0.024, abs=2e-3)
    assert policy[70] == pytest.approx(0.002, abs=5e-4)


def test_the_data_policy_from_draws() -> None:
    drawn = data_policy(draws=10_000, rng=np.random.default_rng(0))
    assert kl(drawn, data_policy()) < 0.02
    np.testing.assert_array_equal(drawn, data_policy(draws=10_000, rng=np.random.default_rng(0)))
    with pytest.raises(ValueError, match="rng with draws"):
        data_policy(draws=10)


def test_rewards_and_where_they_start() -> None:
    """R1 peaks at arm 70 (start .042 in the paper's runs), R2 at arm 20 (start .380)."""
    r1, r2 = (reward_table(name, contexts=3, arms=100) for name in ("R1", "R2"))
    assert r1.shape == (3, 100)
    assert (r1[0].argmax(), r2[0].argmax()) == (70, 20)
    assert r1[0, 60] == pytest.approx(math.exp(-1))
    assert data_policy() @ r1[0] == pytest.approx(0.042, abs=0.01)
    assert data_policy() @ r2[0] == pytest.approx(0.380, abs=0.02)


@pytest.mark.parametrize(("name", "ceiling"), [("R1", 0.31), ("R2", 0.94)])
def test_what_one_round_of_best_of_ten_can_reach(name: str, ceiling: float) -> None:
    """Maximum likelihood on the best of 10 samples learns their distribution and no more."""
    reward = reward_table(name, contexts=1, arms=100)[0]
    assert best_of_n(data_policy(), reward, n=10) @ reward == pytest.approx(ceiling, abs=0.02)


def test_custom_rewards() -> None:
    by_function = reward_table(lambda context, arm: context - arm, contexts=2, arms=2)
    np.testing.assert_array_equal(by_function, [[0, -1], [1, 0]])
    np.testing.assert_array_equal(reward_table([1.0, 2.0], contexts=2, arms=2), [[1, 2], [1, 2]])
    with pytest.raises(ValueError, match="R1, R2, got 'R3'"):
        reward_table("R3", contexts=1, arms=2)
    with pytest.raises(ValueError, match=r"got shape \(3,\)"):
        reward_table([1.0, 2.0, 3.0], contexts=2, arms=2)
    with pytest.raises(ValueError, match="finite"):
        reward_table([1.0, math.nan], contexts=1, arms=2)


def test_context_features_depend_on_the_number_only() -> None:
    whole = context_features(5, dimension=4)
    np.testing.assert_array_equal(context_features(2, dimension=4, first=3), whole[3:])
    assert whole.shape == (5, 4)
    assert ((whole >= 0) & (whole < 1)).all()
    assert len(np.unique(whole)) == 20


def test_one_episode() -> None:
    env = make("polyturn/Bandit-v0", reward=VALUES, arms=3, contexts=4)
    said, info = env.reset(seed=1)
    assert said == f"Context {info['task_id'].removeprefix('context-')}. Choose an arm: write a number from 0 to 2."
    assert env.step("I think 2, no: arm 1!") == ("You chose arm 1.", 1.0, True, False, {"arm": 1})
    for nonsense in ("", "one", "3", "1 99", "²"):
        env.reset(seed=1)
        assert env.step(nonsense)[1:] == (0.0, True, False, {})


def test_contexts_can_be_fixed_and_moved() -> None:
    table = [[0.0, 1.0], [5.0, 2.0]]
    env = make("polyturn/Bandit-v0", reward=table, arms=2, contexts=2, first_context=10, context=11)
    assert env.reset(seed=0)[1] == {"task_id": "context-11"}
    assert env.step("0")[1] == 5.0
    moved = make("polyturn/Bandit-v0", arms=2, contexts=2, first_context=10)
    assert {moved.reset(seed=seed)[1]["task_id"] for seed in range(20)} == {"context-10", "context-11"}
    with pytest.raises(ValueError, match="expected context 10 to 11, got 1"):
        Bandit(arms=2, contexts=2, first_context=10, context=1)
    with pytest.raises(ValueError, match="rewards that differ"):
        Bandit(reward=[1.0, 1.0], arms=2)


def test_arrays_draw_from_the_policy() -> None:
    """Frequencies within five standard errors, an excluded arm never, log-probs those of the policy."""
    policy = np.array([[0.2, 0.0, 0.8], [0.5, 0.5, 0.0]])
    table = reward_table(VALUES, contexts=2, arms=3)
    plays = play(policy, table, np.array([0, 1] * 100), group_size=1000, rng=np.random.default_rng(0))
    for context in (0, 1):
        rows = plays.contexts == context
        share = np.bincount(plays.arms[rows].ravel(), minlength=3) / rows.sum() / 1000
        assert np.abs(share - policy[context]).max() < 5 * math.sqrt(0.25 / 100_000)
        assert share[policy[context] == 0].sum() == 0
    np.testing.assert_allclose(np.exp(plays.logps), policy[plays.contexts[:, None], plays.arms])
    np.testing.assert_array_equal(plays.rewards, np.array(VALUES)[plays.arms])
    again = play(policy, table, np.array([0, 1] * 100), group_size=1000, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(plays.arms, again.arms)
    with pytest.raises(ValueError, match="add to 1"):
        play([0.5, 0.4, 0.0], table, [0], group_size=1, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="expected a policy"):
        play([0.5, 0.5], table, [0], group_size=1, rng=np.random.default_rng(0))


def test_arrays_become_the_trajectories_the_environment_would_give() -> None:
    options = {"reward": VALUES, "arms": 3, "contexts": 5, "first_context": 100}
    table = reward_table(VALUES, contexts=5, arms=3)
    plays = play([0.3, 0.3, 0.4], table, [4, 0], group_size=3, rng=np.random.default_rng(0))
    groups = plays.groups(policy_version="start", **options)
    assert [group[0].task_id for group in groups] == ["context-104", "context-100"]
    for group in groups:
        for member in group:
            env = make(member.env_id, **member.env_options)
            said, info = env.reset(seed=member.seed)
            (turn,) = member.turns
            assert said == turn.observation
            final, reward, terminated, _, last = env.step(turn.action)
            assert (final, reward, terminated) == (member.final_observation, turn.reward, member.terminated)
            assert info | last == member.info
            assert turn.action_ids.tolist() == [last["arm"]]
            assert member.valid
        scores = by_return(group).scores
        assert scores is not None
        assert scores.tolist() == [member.total_reward for member in group]


def test_a_duel_by_hand() -> None:
    """Utilities 1 and 0, temperature .5: the better arm wins with probability sigmoid(2) = .8808; pay is their mean."""
    env = PairedBandit(reward=[0.0, 1.0], arms=2, duels=1, temperature=0.5, shuffle=False)
    wins = Counter[int]()
    for seed in range(2000):
        env.reset(seed=seed)
        _, reward, terminated, _, info = env.step("0 against 1")
        assert (reward, terminated) == (0.5, True)
        assert info["probability"] == pytest.approx(1 - 0.8807971)
        wins[info["winner"]] += 1
    assert wins[1] / 2000 == pytest.approx(0.8808, abs=0.035)


def test_keeping_the_winner_earns_more_than_ignoring_it() -> None:
    """Challenging the last winner with every arm in turn finds the best; the return is the mean worth per duel."""
    env = PairedBandit(reward=list(np.linspace(0, 1, 5)), arms=5, duels=20, temperature=0.05)
    returns = {"listens": 0.0, "deaf": 0.0}
    for seed in range(100):
        for player in returns:
            env.reset(seed=seed)
            best = 0
            for turn in range(20):
                challenger = 1 + turn if turn < 4 else best
                said, reward, *_ = env.step(f"{best} {challenger}" if player == "listens" else f"0 {turn % 5}")
                best = int(said.split()[1])
                returns[player] += reward / 100
    assert returns["listens"] > returns["deaf"] + 0.2


def test_a_single_number_challenges_the_last_winner() -> None:
    env = PairedBandit(reward=[0.0, 1.0, 0.5], arms=3, duels=3, temperature=0.01, shuffle=False)
    env.reset(seed=0)
    assert env.step("2")[4]["arms"] == [2, 2]
    assert env.step("1")[4] == {"arms": [1, 2], "winner": 1, "probability": pytest.approx(1.0)}
    assert env.step("nothing")[1] == 0.0


def test_the_numbering_of_arms_changes_with_the_episode() -> None:
    env = PairedBandit(reward=[0.0, 1.0, 0.5], arms=3, duels=1)
    pay = set()
    for seed in range(20):
        env.reset(seed=seed)
        pay.add(env.step("0 0")[1])
    assert pay == {0.0, 0.5, 1.0}


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("polyturn/Bandit-v0", {"reward": "R2"}),
        ("polyturn/Bandit-v0", {"reward": VALUES, "arms": 3, "contexts": 3}),
        ("polyturn/PairedBandit-v0", {}),
        ("polyturn/PairedBandit-v0", {"reward": VALUES, "arms": 3, "shuffle": False}),
    ],
)
def test_the_contract_holds(env_id: str, options: dict[str, object]) -> None:
    check_text_env(env_id, actions=lambda rng, said: f"{rng.integers(12)} {rng.integers(12)}", **options)
