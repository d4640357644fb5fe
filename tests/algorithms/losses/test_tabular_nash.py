"""Equilibria of preference matrices and the mirror descent that finds them."""

from __future__ import annotations

import sys
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from polyturn.algorithms.exact import mirror_descent, nash
from polyturn.algorithms.exact.closed_forms import kl, softmax
from polyturn.envs.games.tabular_games import random_preference

PROPERTY = settings(deadline=None, derandomize=True, max_examples=60)
UNIFORM = np.full(3, 1 / 3)
# rock beats scissors beats paper beats rock, certain
CYCLE = np.array([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]])
# a beats b beats c beats a, unevenly
NEAR_CYCLE = np.array([[0.5, 0.96, 0.24], [0.04, 0.5, 0.79], [0.76, 0.21, 0.5]])


def test_nash_of_the_cycle_is_uniform() -> None:
    np.testing.assert_allclose(nash.nash_equilibrium(CYCLE), UNIFORM, atol=1e-12)
    assert nash.exploitability(CYCLE, UNIFORM) == pytest.approx(0.0, abs=1e-15)
    # always rock loses to paper for certain
    assert nash.exploitability(CYCLE, [1.0, 0.0, 0.0]) == 0.5


def test_nash_of_an_uneven_cycle_by_hand() -> None:
    """Skew payoffs ab = .46, bc = .29, ca = .26: each answer gets the edge it is not on, (bc, ca, ab) / sum."""
    expected = np.array([0.29, 0.26, 0.46]) / 1.01
    np.testing.assert_allclose(nash.nash_equilibrium(NEAR_CYCLE), expected, atol=1e-12)


def test_nash_of_a_ranking_is_its_best_answer() -> None:
    preference = np.array([[0.5, 0.6, 0.7], [0.4, 0.5, 0.6], [0.3, 0.4, 0.5]])
    np.testing.assert_allclose(nash.nash_equilibrium(preference), [1, 0, 0], atol=1e-12)


@PROPERTY
@given(st.integers(1, 9), st.integers(0, 2**31))
def test_no_policy_beats_the_nash_equilibrium(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    preference = random_preference(size, rng)
    policy = nash.nash_equilibrium(preference)
    assert nash.exploitability(preference, policy) == pytest.approx(0.0, abs=1e-9)
    other = rng.dirichlet(np.ones(size))
    assert nash.exploitability(preference, other) >= -1e-12
    # antisymmetry: the two players' chances add to 1, and a policy ties with itself
    won = nash.win_probability(preference, policy, other)
    assert won + nash.win_probability(preference, other, policy) == pytest.approx(1.0)
    assert nash.win_probability(preference, other, other) == pytest.approx(0.5)


@PROPERTY
@given(st.integers(1, 9), st.integers(0, 2**31), st.sampled_from([0.003, 0.02, 0.1, 1.0, 30.0]))
def test_regularised_nash_is_its_own_best_response(size: int, seed: int, tau: float) -> None:
    rng = np.random.default_rng(seed)
    preference, reference = random_preference(size, rng), rng.dirichlet(np.ones(size))
    policy = nash.regularised_nash(preference, reference, tau=tau)
    response = nash.regularised_best_response(preference, policy, reference, tau=tau)
    np.testing.assert_allclose(response, policy, rtol=1e-8)
    assert nash.regularised_exploitability(preference, policy, reference, tau=tau) == pytest.approx(0, abs=1e-9)
    other = rng.dirichlet(np.ones(size))
    assert nash.regularised_exploitability(preference, other, reference, tau=tau) >= -1e-12


def test_regularised_nash_by_hand() -> None:
    """Two answers, p = P(a beats b): the skew game adds p - 1/2 to a whatever b does, so pi is sigmoid((p - 1/2)/tau).

    p = .9, tau = .2, uniform reference: sigmoid(2) = .8807971.
    """
    policy = nash.regularised_nash([[0.5, 0.9], [0.1, 0.5]], [0.5, 0.5], tau=0.2)
    assert policy[0] == pytest.approx(0.8807971, abs=1e-7)


def test_regularised_nash_between_its_limits() -> None:
    """A huge tau leaves the reference, a tiny one reaches Nash; what the reference excludes stays out."""
    reference = np.array([0.6, 0.3, 0.1])
    np.testing.assert_allclose(nash.regularised_nash(NEAR_CYCLE, reference, tau=1e4), reference, atol=1e-4)
    np.testing.assert_allclose(
        nash.regularised_nash(NEAR_CYCLE, reference, tau=1e-4), nash.nash_equilibrium(NEAR_CYCLE), atol=1e-3
    )
    assert nash.regularised_nash(NEAR_CYCLE, [0.5, 0.5, 0.0], tau=0.1)[2] == 0.0


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="3 answers in the preference, 2 in the reference"):
        nash.regularised_nash(CYCLE, [0.5, 0.5], tau=1.0)
    with pytest.raises(ValueError, match="expected tau > 0"):
        nash.regularised_nash(CYCLE, UNIFORM, tau=0.0)
    with pytest.raises(ValueError, match="average the two orders"):
        nash.nash_equilibrium([[0.5, 0.5], [0.6, 0.5]])
    with pytest.raises(ValueError, match="decay"):
        next(mirror_descent.nash_ema(CYCLE, UNIFORM, tau=0.1, decay=1.0, step_size=1.0))
    with pytest.raises(ValueError, match="step_size"):
        next(mirror_descent.nash_ema(CYCLE, UNIFORM, tau=0.1, decay=0.5, step_size=11.0))
    with pytest.raises(ValueError, match="positive weight"):
        next(mirror_descent.nash_md(CYCLE, UNIFORM, tau=0.0))


def test_a_missing_scipy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        nash.nash_equilibrium(CYCLE)


def test_nash_md_bound_holds_at_every_step_on_100_random_games() -> None:
    """KL(pi* || pi_t) <= 8 / (tau^2 (t + 1)) (arXiv 2312.00886, theorem 1), for t = 0 to 150."""
    rng = np.random.default_rng(0)
    for game in range(100):
        size, tau = int(rng.integers(2, 8)), float(rng.choice([0.02, 0.1, 0.5, 2.0]))
        preference = random_preference(size, rng)
        if game % 4 == 0:  # certain wins
            preference = 0.5 + 0.5 * np.sign(preference - 0.5)
        reference = rng.dirichlet(np.ones(size))
        best = nash.regularised_nash(preference, reference, tau=tau)
        for t, policy in enumerate(islice(mirror_descent.nash_md(preference, reference, tau=tau), 151)):
            bound = 8 / (tau**2 * (t + 1))
            distance = float(kl(best, policy))
            assert distance <= bound, (game, t)


@pytest.mark.parametrize(
    ("tau", "measured"), [(0.1, [1.04e-1, 3.47e-4, 8.03e-6, 9.46e-8]), (0.02, [2.23, 2.58, 0.283, 4.31e-4])]
)
def test_nash_md_measured_on_an_uneven_cycle(tau: float, measured: list[float]) -> None:
    """KL to the equilibrium at t = 1, 10, 100, 1000, uniform reference; with a small tau it RISES first."""
    best = nash.regularised_nash(NEAR_CYCLE, UNIFORM, tau=tau)
    iterates = islice(mirror_descent.nash_md(NEAR_CYCLE, UNIFORM, tau=tau), 1001)
    distance = [float(kl(best, policy)) for t, policy in enumerate(iterates) if t in (1, 10, 100, 1000)]
    assert distance == pytest.approx(measured, rel=0.005)


def test_nash_md_forgets_where_it_started() -> None:
    """At t = 0 the weight of pi_0 is 0, so pi_1 is the same from anywhere, even from a corner (0 log 0 = 0)."""
    corner = mirror_descent.nash_md(NEAR_CYCLE, UNIFORM, tau=0.1, start=[1.0, 0.0, 0.0])
    plain = mirror_descent.nash_md(NEAR_CYCLE, UNIFORM, tau=0.1)
    for a, b in list(zip(islice(corner, 5), islice(plain, 5), strict=True))[1:]:
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_nash_ema_and_self_play_rest_at_the_regularised_nash(decay: float) -> None:
    best = nash.regularised_nash(NEAR_CYCLE, UNIFORM, tau=0.1)
    iterates = mirror_descent.nash_ema(NEAR_CYCLE, UNIFORM, tau=0.1, decay=decay, step_size=0.05)
    last = list(islice(iterates, 5001))[-1]
    assert kl(best, last) < 1e-12


def test_last_iterates_of_unregularised_self_play_do_not_converge() -> None:
    """Why the KL is there: without it, mirror descent on a cycle runs around the equilibrium in growing circles."""
    scores, distance = np.array([1.0, 0.0, 0.0]), []
    for _ in range(300):
        policy = softmax(scores)
        distance.append(float(kl(UNIFORM, policy)))
        scores = scores + 0.2 * (CYCLE @ policy)
    assert distance[-1] > distance[0]
