"""The suite `stochastic_bias`: its games and oracles by hand, the exact ends of losses, and its quick form."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from polyturn.algorithms import GPO, IPO, MTPO, PPO
from polyturn.algorithms.exact.tabular_games import occupancy, uniform_policy, win_probability
from polyturn.benchmarks.running.suite import load, run_suite
from polyturn.benchmarks.stochastic_bias.games import (
    GambleEnv,
    Plays,
    by_history,
    gamble,
    noisy_game,
    preference_regret,
    response_regret,
    reward_optimum,
    reward_regret,
)
from polyturn.benchmarks.stochastic_bias.suite import INVALID_REWARD, SUITE

torch.set_num_threads(1)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_gamble_by_hand() -> None:
    """In every room the ends differ by 1 and have the same soft value, so the first margin is 1/2 / beta."""
    always = (np.array([[0.0, 1.0]]), uniform_policy(gamble(1.0).game)[1])
    never = (np.array([[1.0, 0.0]]), always[1])
    for spread in (0.0, 0.5, 1.0):
        paid = gamble(spread)
        assert paid.reward is not None
        assert occupancy(paid.game, always)[-1] @ paid.reward == pytest.approx(0.5)
        assert occupancy(paid.game, never)[-1] @ paid.reward == pytest.approx(0.0)
        best, _ = reward_optimum(paid.game, paid.reward, uniform_policy(paid.game), beta=0.25)
        assert best[0][0, 1] == pytest.approx(sigmoid(2.0))
        assert best[1].max(axis=1) == pytest.approx(sigmoid(4.0))
    # Ends that are equally good: the better one of each room.
    good = (always[0], np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]))
    safe = (never[0], good[1])
    assert win_probability(gamble(1.0).game, good, safe) == pytest.approx(0.2 * sigmoid(6.5) + 0.8 * sigmoid(-1))
    assert min(gamble(1.0).reward) > INVALID_REWARD  # type: ignore[arg-type,type-var]


def test_noise_replaces_replies_with_its_probability() -> None:
    certain, both = noisy_game(3, noise=0.0).game, noisy_game(3, noise=0.4).game
    first = noisy_game(3, noise=0.4, where="first").game
    assert certain.deterministic
    for before, after in zip(certain.transitions, both.transitions, strict=True):
        np.testing.assert_allclose(after, 0.6 * before + 0.4 / before.shape[2])
    np.testing.assert_array_equal(first.transitions[0], both.transitions[0])
    np.testing.assert_array_equal(first.transitions[1], certain.transitions[1])
    np.testing.assert_array_equal(certain.preference, both.preference)


def test_a_policy_with_memory_plays_the_same_game() -> None:
    """Probabilities that depend only on the state, given for each (answer, state), lead to the same endings."""
    paid = noisy_game(1, noise=0.3)
    rng = np.random.default_rng(0)
    policy = (rng.dirichlet(np.ones(3), size=1), rng.dirichlet(np.ones(3), size=3))
    remembered = (policy[0], np.tile(policy[1], (3, 1)))
    np.testing.assert_allclose(occupancy(by_history(paid.game), remembered)[-1], occupancy(paid.game, policy)[-1])


def test_regrets_vanish_only_at_their_optima() -> None:
    paid = noisy_game(2, noise=0.3)
    assert paid.reward is not None
    reference = uniform_policy(paid.game)
    best, _ = reward_optimum(paid.game, paid.reward, reference, beta=1.0)
    assert reward_regret(paid, best, reference, beta=1.0) == pytest.approx((0.0, 0.0), abs=1e-12)
    for regret in (response_regret, preference_regret):
        assert regret(paid, reference, reference, alpha=0.25)[0] > 1e-3
    assert reward_regret(paid, reference, reference, beta=1.0)[0] > 1e-2


EXACT = {"lam": 1.0, "whiten": False, "value_weight": 0.0}


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_where_the_losses_end(noise: float) -> None:
    """Without noise all reach the optimum that they claim; with noise only policy gradients and IPO on own pairs do."""
    games = [noisy_game(seed, noise=noise, scale=1.5) for seed in range(2)]
    plays, reference = Plays(games), uniform_policy(games[0].game)

    def regret(policies: list[tuple[np.ndarray, ...]], claim: str) -> float:
        of = {
            "reward": lambda paid, policy: reward_regret(paid, policy, reference, beta=1.0),
            "response": lambda paid, policy: response_regret(paid, policy, reference, alpha=0.25),
            "preference": lambda paid, policy: preference_regret(paid, policy, reference, alpha=0.25),
        }[claim]
        return max(of(paid, policy)[0] for paid, policy in zip(games, policies, strict=True))

    def end(method: object, **options: object) -> list[tuple[np.ndarray, ...]]:
        return plays.descend(method, steps=400, lr=0.1, **options)[0]  # type: ignore[arg-type]

    exact = [
        regret(end(PPO(kl=1.0, over="turn", **EXACT)), "reward"),  # type: ignore[arg-type]
        regret(end(IPO(tau=0.25)), "preference"),
        regret(end(MTPO(kl=0.25, **EXACT)), "preference"),  # type: ignore[arg-type]
    ]
    logistic = [
        regret(end(GPO(beta=1.0)), "reward"),
        regret(end(GPO(beta=1.0), ties=False), "reward"),
        regret(end(GPO(beta=1.0), pairs="reference"), "reward"),
    ]
    squared = regret(end(IPO(tau=0.25), pairs="reference"), "response")
    assert max(exact) < 1e-5
    # On own pairs the logistic loss is flat where the policy has little probability: after 400 steps 2e-3 are left.
    assert (min(logistic) > 5e-2 and squared > 1e-4) if noise else (max(logistic) < 5e-3 and squared < 1e-9)


def test_the_gamble_reverses_for_mdpo() -> None:
    """At spread 0 the optimum, sigmoid(2); at spread 1 less than half, though the optimum is the same."""
    games = [gamble(0.0), gamble(1.0)]
    policies, gradient = Plays(games).descend(GPO(beta=0.25), steps=500, lr=0.1)
    assert gradient < 1e-3
    assert policies[0][0][0, 1] == pytest.approx(sigmoid(2.0), abs=1e-3)
    assert policies[1][0][0, 1] < 0.4


def test_each_member_of_a_group_has_its_own_noise() -> None:
    """Ten groups of eight that all gamble: with shared noise no group would reach both rooms."""
    from polyturn.agents.agent import ScriptedAgent
    from polyturn.agents.collecting.collect import collect

    env = GambleEnv(games=gamble(1.0).game)
    assert env.question(1, 2) == "unlucky"
    groups = collect(
        ScriptedAgent(["1", "0"]),
        lambda: GambleEnv(games=gamble(1.0).game),
        groups=10,
        group_size=8,
        seed=1,
        progress=False,
    )
    ends = [{member.info["final_state"] for member in group} for group in groups]
    assert all(each <= {2, 4} for each in ends)
    assert sum(len(each) == 2 for each in ends) >= 5


def test_quick(tmp_path: Path) -> None:
    assert load("stochastic_bias") is SUITE
    record = run_suite(SUITE, tmp_path, quick=True, progress=False)
    assert json.loads((tmp_path / "results.json").read_text()) == record
    text = (tmp_path / "report.md").read_text()
    for picture in ("bias", "gamble", "transformer"):
        assert f"]({picture}.svg)" in text
        assert all((tmp_path / f"{picture}.{kind}").stat().st_size > 1000 for kind in ("png", "svg"))
    cells = {cell["name"]: cell["result"] for cell in record["cells"]}
    certain, noisy = cells["noise 0.0"], cells["noise 0.4"]
    assert max(noisy["multi-turn RLHF"]["left"]) < 0.02 < min(noisy["M-DPO"]["left"])
    assert sum(certain["M-DPO"]["left"]) < sum(noisy["M-DPO"]["left"]) / 2
    learned = cells["transformer 1.0"]
    assert learned["M-DPO"][0]["reward_left"] == pytest.approx(1.0)
    assert learned["MTPO"][-1]["preference_left"] != pytest.approx(1.0, abs=1e-6)
