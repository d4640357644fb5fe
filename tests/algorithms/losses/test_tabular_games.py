"""Multi-turn tabular games: exact values against brute force, best responses, MTPO's bounds and convergence."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from polyturn.algorithms.exact import mirror_descent, nash, tabular_games as exact
from polyturn.algorithms.exact.closed_forms import kl
from polyturn.envs.games.tabular_games import Array, TabularGame, detour_game, random_game, random_preference

PROPERTY = settings(deadline=None, derandomize=True, max_examples=30)
games = st.builds(
    lambda seed, states, concentration: random_game(
        np.random.default_rng(seed), states=states, actions=2 + seed % 2, concentration=concentration
    ),
    st.integers(0, 2**31),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.3, 3.0]),
)


def plays(game: TabularGame, policy: Sequence[Array]) -> Iterator[tuple[float, list[tuple[int, int]], int]]:
    """Every way the game can go: its probability, (state, answer) of each turn, and the final state."""
    shapes = (
        [range(layer.shape[1]) for layer in game.transitions],
        [range(layer.shape[2]) for layer in game.transitions],
    )
    for answers in itertools.product(*shapes[0]):
        for path in itertools.product(*shapes[1]):
            states = (0, *path)
            probability = 1.0
            for h, (layer, answer) in enumerate(zip(game.transitions, answers, strict=True)):
                probability *= policy[h][states[h], answer] * layer[states[h], answer, states[h + 1]]
            if probability > 0:
                yield probability, list(zip(states[:-1], answers, strict=True)), states[-1]


@PROPERTY
@given(games, st.integers(0, 2**31))
def test_values_equal_the_sum_over_all_plays(game: TabularGame, seed: int) -> None:
    """P(win), KL and Q by definition, play by play; Q's opponent starts at the first state."""
    rng = np.random.default_rng(seed)
    policy, opponent, reference = (exact.random_policy(game, rng) for _ in range(3))
    alpha = 0.3
    final = np.zeros(len(game.preference))
    for probability, _, end in plays(game, opponent):
        final[end] += probability
    wins = game.preference @ final
    won = divergence = 0.0
    totals, weights = ([np.zeros_like(layer) for layer in policy] for _ in range(2))
    for probability, turns, end in plays(game, policy):
        won += probability * wins[end]
        divergence += probability * sum(np.log(policy[h][t] / reference[h][t]) for h, t in enumerate(turns))
        for h, t in enumerate(turns):
            later = sum(float(kl(policy[k][s], reference[k][s])) for k, (s, _) in enumerate(turns) if k >= h)
            totals[h][t] += probability * (wins[end] - alpha * later)
            weights[h][t] += probability
    assert exact.win_probability(game, policy, opponent) == pytest.approx(won)
    assert exact.turn_kl(game, policy, reference) == pytest.approx(divergence)
    q = exact.q_values(game, policy, opponent, reference, alpha=alpha)
    for own, total, weight in zip(q, totals, weights, strict=True):
        np.testing.assert_allclose(own[weight > 0], total[weight > 0] / weight[weight > 0], atol=1e-9)


@PROPERTY
@given(games, st.integers(0, 2**31))
def test_players_swap_and_tie(game: TabularGame, seed: int) -> None:
    rng = np.random.default_rng(seed)
    policy, opponent = exact.random_policy(game, rng), exact.random_policy(game, rng)
    won = exact.win_probability(game, policy, opponent)
    assert won + exact.win_probability(game, opponent, policy) == pytest.approx(1.0)
    assert exact.win_probability(game, policy, policy) == pytest.approx(0.5)


def test_best_response_against_every_deterministic_policy() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        game = random_game(rng, states=(2, 3), actions=2)
        opponent = exact.random_policy(game, rng)
        response, value = exact.best_response(game, opponent)
        rivals = [
            exact.win_probability(game, (np.eye(2)[[a]], np.eye(2)[[b, c]]), opponent)
            for a, b, c in itertools.product(range(2), repeat=3)
        ]
        assert value == pytest.approx(max(rivals))
        assert exact.win_probability(game, response, opponent) == pytest.approx(value)
        assert exact.exploitability(game, opponent) == pytest.approx(max(rivals) - 0.5)


def test_detour_game_by_hand() -> None:
    """Asking and always taking the ending both states share: 2 and 0 from state 2, 1 and 2 from state 1.

    Against "always ending 0", asking first reaches ending 2 from either state, which wins .9; answering at once wins
    at most .5. Ending uniformly in all three is the equilibrium: no policy gains against it.
    """
    game = detour_game()
    assert game.turns == 2
    assert not game.deterministic
    direct = (np.array([[1.0, 0.0]]), np.array([[1.0, 0.0]] * 3))
    np.testing.assert_allclose(exact.occupancy(game, direct)[-1], [1, 0, 0])
    response, value = exact.best_response(game, direct)
    assert value == pytest.approx(0.9)
    np.testing.assert_array_equal(response[0], [[0, 1]])
    np.testing.assert_array_equal(response[1][1:], [[0, 1], [1, 0]])
    # answer at once with 2/3 and end in 0 or 1 evenly; ask with 1/3 and end in 2
    fair = (np.array([[2 / 3, 1 / 3]]), np.array([[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]]))
    np.testing.assert_allclose(exact.occupancy(game, fair)[-1], np.full(3, 1 / 3))
    assert exact.exploitability(game, fair) == pytest.approx(0.0, abs=1e-12)


@PROPERTY
@given(st.integers(2, 6), st.integers(0, 2**31))
def test_one_turn_without_chance_is_a_matrix_game(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    preference, reference = random_preference(size, rng), rng.dirichlet(np.ones(size))
    game = TabularGame((np.eye(size)[None],), preference)
    assert game.deterministic
    np.testing.assert_allclose(
        exact.regularised_nash(game, (reference[None],), alpha=0.2)[0][0],
        nash.regularised_nash(preference, reference, tau=0.2),
        atol=1e-9,
    )
    mine = mirror_descent.mtpo_tau(game, (reference[None],), alpha=0.2)
    theirs = mirror_descent.nash_md(preference, reference, tau=0.2)
    for a, b in islice(zip(mine, theirs, strict=False), 20):
        np.testing.assert_allclose(a[0][0], b, atol=1e-10)


@PROPERTY
@given(games, st.integers(0, 2**31), st.sampled_from([0.05, 0.3, 2.0]))
def test_regularised_nash_is_its_own_best_response(game: TabularGame, seed: int, alpha: float) -> None:
    reference = exact.random_policy(game, np.random.default_rng(seed))
    policy = exact.regularised_nash(game, reference, alpha=alpha)
    response, _ = exact.regularised_best_response(game, policy, reference, alpha=alpha)
    for own, best in zip(policy, response, strict=True):
        np.testing.assert_allclose(own, best, atol=1e-8)
    assert exact.regularised_exploitability(game, policy, reference, alpha=alpha) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize(("variant", "constant"), [("mtpo", 32), ("mtpo_tau", 9)])
def test_mtpo_bounds_hold_at_every_step_on_100_random_games(variant: str, constant: int) -> None:
    """KL(pi* || pi_t) <= c H Q^2 / (alpha^2 (t + 1)), Q the largest |Q_t| so far (arXiv 2405.14655), t = 1 to 60."""
    rng = np.random.default_rng(1)
    for number in range(100):
        states = tuple(rng.integers(2, 5, size=int(rng.integers(1, 4))))
        game = random_game(rng, states=states, concentration=float(rng.choice([0.0, 0.3, 2.0])))
        reference = exact.random_policy(game, rng)
        alpha = float(rng.choice([0.05, 0.2, 1.0]))
        best = exact.regularised_nash(game, reference, alpha=alpha)
        largest = 0.0
        for t, policy in enumerate(islice(getattr(mirror_descent, variant)(game, reference, alpha=alpha), 61)):
            if t > 0:
                bound = constant * game.turns * largest**2 / (alpha**2 * (t + 1))
                assert exact.turn_kl(game, best, policy) <= bound, (number, t)
            q = exact.q_values(game, policy, policy, reference, alpha=alpha)
            largest = max(largest, *(float(np.abs(layer).max()) for layer in q))


def test_mtpo_converges_and_cannot_be_exploited() -> None:
    """H = 2, chance replies, no transitivity, alpha = .1: measured orders of magnitude at t = 1, 10, 100."""
    rng = np.random.default_rng(0)
    for _ in range(3):
        game = random_game(rng, states=(3, 4))
        reference = exact.uniform_policy(game)
        best = exact.regularised_nash(game, reference, alpha=0.1)
        iterates = dict(enumerate(islice(mirror_descent.mtpo(game, reference, alpha=0.1), 101)))
        distance = [exact.turn_kl(game, best, iterates[t]) for t in (1, 10, 100)]
        assert distance[0] < 0.2
        assert distance[1] < 1e-3
        assert distance[2] < 1e-6
        gain = [exact.regularised_exploitability(game, iterates[t], reference, alpha=0.1) for t in (1, 10, 100)]
        assert gain[2] < 1e-6 < gain[0]
        start = mirror_descent.mtpo(game, reference, alpha=0.1, start=exact.best_response(game, reference)[0])
        for own, other in zip(list(islice(start, 2))[1], iterates[1], strict=True):
            assert np.isfinite(own).all()  # pi_0 is a corner: its weight at t = 0 is 0, and 0 log 0 is 0
            assert own.shape == other.shape


def test_less_regularisation_is_harder_to_exploit() -> None:
    """As alpha falls, the regularised equilibrium of the detour game approaches the Nash equilibrium."""
    game = detour_game()
    # a reference that leans to one side, or symmetry would make every alpha optimal
    reference = (np.array([[0.8, 0.2]]), np.array([[0.7, 0.3], [0.6, 0.4], [0.9, 0.1]]))
    gains = [
        exact.exploitability(game, exact.regularised_nash(game, reference, alpha=alpha)) for alpha in (1, 0.1, 0.01)
    ]
    assert gains[0] > gains[1] > gains[2]
    assert gains[2] < 0.02


def test_random_games_keep_their_promises() -> None:
    rng = np.random.default_rng(0)
    assert random_game(rng, concentration=0).deterministic
    assert not random_game(rng, concentration=1.0).deterministic
    assert np.all(random_preference(4, rng, sharpness=0.0) == 0.5)
    a, b = (random_game(np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(a.preference, b.preference)
    with pytest.raises(ValueError, match="read-only"):
        a.preference[0, 0] = 1.0


@pytest.mark.parametrize(
    ("transitions", "preference", "message"),
    [
        ((), np.full((1, 1), 0.5), "at least one turn"),
        ((np.ones((2, 1, 1)),), np.full((1, 1), 0.5), r"transitions\[0\] \[1, A, S\]"),
        ((np.full((1, 2, 2), 0.4),), np.full((2, 2), 0.5), "distributions"),
        ((np.full((1, 2, 2), 0.5),), np.full((3, 3), 0.5), r"expected preference \[2, 2\]"),
        ((np.full((1, 2, 2), 0.5),), np.full((2, 2), 0.6), r"P \+ P\^T = 1"),
    ],
)
def test_wrong_games_are_named(transitions: tuple[Array, ...], preference: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TabularGame(transitions, preference)
