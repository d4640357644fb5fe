"""Closed-form optima: by hand, as stationary points of the losses to 1e-8, and as what descent reaches to 1e-3."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from polyturn.agents.transformer.token_logps import full_kl
from polyturn.algorithms import losses
from polyturn.algorithms.exact import closed_forms
from polyturn.algorithms.exact.closed_forms import Matrix, Vector

PROPERTY = settings(deadline=None, derandomize=True)
A = 5
RNG = np.random.default_rng(7)
REFERENCE = RNG.dirichlet(np.full(A, 2.0))
BEHAVIOUR = RNG.dirichlet(np.full(A, 2.0))
REWARD = RNG.normal(size=A)
NOISE = RNG.normal(size=(A, A))
PREFERENCE = 1 / (1 + np.exp(NOISE.T - NOISE))
BRADLEY_TERRY = 1 / (1 + np.exp(REWARD[None, :] - REWARD[:, None]))

Objective = Callable[[Tensor], Tensor]
"""A loss of log-probabilities `[A]`, already averaged over the data it is defined on."""


def on(array: Vector | Matrix) -> Tensor:
    return torch.from_numpy(np.asarray(array, np.float64))


def pairs(loss: Callable[[Tensor], Tensor], behaviour: Vector) -> Objective:
    """Average of a pair loss over two independent answers of the behaviour."""
    weight = on(np.outer(behaviour, behaviour))

    def objective(logps: Tensor) -> Tensor:
        g = logps - on(np.log(REFERENCE))
        return (weight * loss(g[:, None] - g[None, :])).sum()

    return objective


def dro_objective(tau: float) -> Objective:
    """The policy's half, with the value at its optimum."""
    _, value = closed_forms.dro_optimum(REFERENCE, REWARD, tau=tau)

    def objective(logps: Tensor) -> Tensor:
        policy_loss, _ = losses.dro(
            on(REWARD), torch.tensor(value, dtype=torch.float64), logps - on(np.log(REFERENCE)), tau=tau
        )
        return (on(BEHAVIOUR) * policy_loss).sum()

    return objective


ACCEPTED = RNG.dirichlet(np.full(A, 2.0))
REJECTED = RNG.dirichlet(np.full(A, 2.0))


def pmpo_objective(logps: Tensor) -> Tensor:
    divergence = full_kl(on(np.log(REFERENCE)), logps).expand(A)
    accepted = losses.pmpo(logps, torch.ones(A), divergence, alpha=0.4, beta=2.0)
    rejected = losses.pmpo(logps, torch.zeros(A), divergence, alpha=0.4, beta=2.0)
    # each row carries the KL, so the two means carry it twice: half of it stays with each
    return (on(ACCEPTED) * accepted + on(REJECTED) * rejected).sum() - 2.0 * divergence[0]


CASES: dict[str, tuple[Objective, Vector]] = {
    "rlhf": (
        lambda logps: -(logps.exp() * on(REWARD)).sum() + 0.3 * full_kl(logps, on(np.log(REFERENCE))),
        closed_forms.rlhf_optimum(REFERENCE, REWARD, tau=0.3),
    ),
    "dpo on Bradley-Terry labels": (
        pairs(lambda h: losses.gpo(h, beta=0.3, probability=on(BRADLEY_TERRY)), BEHAVIOUR),
        closed_forms.rlhf_optimum(REFERENCE, REWARD, tau=0.3),
    ),
    "ipo": (
        pairs(lambda h: losses.ipo(h, tau=0.3, probability=on(PREFERENCE)), BEHAVIOUR),
        closed_forms.psipo_optimum(REFERENCE, PREFERENCE, BEHAVIOUR, tau=0.3),
    ),
    "ipo as the squared member": (
        pairs(lambda h: losses.gpo(h, beta=0.6, f=losses.squared, probability=on(PREFERENCE)), BEHAVIOUR),
        closed_forms.psipo_optimum(REFERENCE, PREFERENCE, BEHAVIOUR, tau=0.3),
    ),
    "dro": (dro_objective(0.5), closed_forms.dro_optimum(REFERENCE, REWARD, tau=0.5)[0]),
    "pmpo": (pmpo_objective, closed_forms.pmpo_optimum(ACCEPTED, REJECTED, REFERENCE, alpha=0.4, beta=2.0)),
    "rwr": (
        lambda logps: (on(BEHAVIOUR) * losses.rwr(logps, on(REWARD), beta=0.5)).sum(),
        closed_forms.rwr_optimum(BEHAVIOUR, REWARD, beta=0.5),
    ),
    "best of 4": (
        lambda logps: (on(closed_forms.best_of_n(BEHAVIOUR, REWARD, n=4)) * losses.nll(logps)).sum(),
        closed_forms.best_of_n(BEHAVIOUR, REWARD, n=4),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_gradient_of_the_loss_vanishes_at_the_closed_form(name: str) -> None:
    objective, optimum = CASES[name]
    logits = on(np.log(optimum)).requires_grad_()
    (grad,) = torch.autograd.grad(objective(torch.log_softmax(logits, 0)), logits)
    assert grad.abs().max() < 1e-8
    elsewhere = on(np.log(REFERENCE)).requires_grad_()
    (grad,) = torch.autograd.grad(objective(torch.log_softmax(elsewhere, 0)), elsewhere)
    assert grad.abs().max() > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_descent_reaches_the_closed_form(name: str) -> None:
    objective, optimum = CASES[name]
    logits = on(np.log(REFERENCE)).requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=0.1)
    for _ in range(1500):
        optimiser.zero_grad()
        objective(torch.log_softmax(logits, 0)).backward()
        optimiser.step()
    assert np.abs(torch.softmax(logits, 0).detach().numpy() - optimum).max() < 1e-3


def test_dro_learns_policy_and_value_together() -> None:
    """Jointly, from an uninformed value, for data of any policy."""
    policy, value = closed_forms.dro_optimum(REFERENCE, REWARD, tau=0.5)
    for behaviour in (BEHAVIOUR, np.full(A, 1 / A)):
        logits, v = on(np.log(REFERENCE)).requires_grad_(), torch.zeros(1, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.Adam([logits, v], lr=0.03)
        for _ in range(1500):
            optimiser.zero_grad()
            g = torch.log_softmax(logits, 0) - on(np.log(REFERENCE))
            policy_loss, value_loss = losses.dro(on(REWARD), v, g, tau=0.5)
            (on(behaviour) * (policy_loss + value_loss)).sum().backward()
            optimiser.step()
        assert np.abs(torch.softmax(logits, 0).detach().numpy() - policy).max() < 1e-3
        assert v.item() == pytest.approx(value, abs=1e-3)


def test_a_wrong_value_biases_dro() -> None:
    """V is no baseline: with it fixed at V* + 1 the policy's minimum moves."""
    policy, value = closed_forms.dro_optimum(REFERENCE, REWARD, tau=0.5)
    logits = on(np.log(policy)).requires_grad_()
    loss, _ = losses.dro(
        on(REWARD), torch.tensor(value + 1.0), torch.log_softmax(logits, 0) - on(np.log(REFERENCE)), tau=0.5
    )
    (grad,) = torch.autograd.grad((on(BEHAVIOUR) * loss).sum(), logits)
    assert grad.abs().max() > 1e-2


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_two_action_oracle(tau: float) -> None:
    """y1 always beats y2, uniform reference and behaviour: P(y1 beats mu) - P(y2 beats mu) = 3/4 - 1/4.

    So pi*(y1) = sigmoid(1 / (2 tau)): .9933, .7311, .6225. IPO stops there; DPO's Psi is infinite.
    """
    preference = np.array([[0.5, 1.0], [0.0, 0.5]])
    best = closed_forms.psipo_optimum([0.5, 0.5], preference, [0.5, 0.5], tau=tau)
    assert best[0] == pytest.approx(1 / (1 + math.exp(-1 / (2 * tau))))


@pytest.mark.parametrize(("tau", "first"), [(0.1, 0.9644), (0.5, 0.5627), (1.0, 0.4484)])
def test_ipo_on_three_certain_pairs(tau: float, first: float) -> None:
    """D1 = {ab, bc, ac}, T = 1/(2 tau): least squares on the triangle gives log-ratios (2T/3, 0, -2T/3).

    Runs of stochastic descent end at .964, .567 and .446.
    """
    policy = closed_forms.ipo_on_pairs(np.full(3, 1 / 3), [(0, 1), (1, 2), (0, 2)], tau=tau)
    assert policy[0] == pytest.approx(first, abs=5e-5)
    logratio = np.log(policy / policy[1])
    assert logratio.tolist() == pytest.approx([1 / (3 * tau), 0.0, -1 / (3 * tau)])


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_ipo_keeps_what_dpo_forgets(tau: float) -> None:
    """{ab, ba, ac}: a and b tie, c loses once: log-ratios (0, 0, -T), so pi(c) = e^-T / (2 + e^-T) > 0."""
    policy = closed_forms.ipo_on_pairs(np.full(3, 1 / 3), [(0, 1), (1, 0), (0, 2)], tau=tau)
    e = math.exp(-1 / (2 * tau))
    assert policy.tolist() == pytest.approx([1 / (2 + e), 1 / (2 + e), e / (2 + e)])
    tied = closed_forms.ipo_on_pairs(np.full(3, 1 / 3), [(0, 1), (0, 2)], tau=tau, probability=[0.5, 1.0])
    assert tied == pytest.approx(policy)


def test_ipo_on_all_pairs_is_psipo() -> None:
    """Soft labels on every pair, a uniform behaviour: the list and the matrix say the same."""
    every = [(i, j) for i in range(A) for j in range(A)]
    listed = closed_forms.ipo_on_pairs(REFERENCE, every, tau=0.3, probability=PREFERENCE.ravel())
    matrix = closed_forms.psipo_optimum(REFERENCE, PREFERENCE, np.full(A, 1 / A), tau=0.3)
    np.testing.assert_allclose(listed, matrix, atol=1e-10)


def test_psipo_with_logit_is_rlhf() -> None:
    best = closed_forms.psipo_optimum(
        REFERENCE, BRADLEY_TERRY, BEHAVIOUR, tau=0.3, psi=lambda p: np.asarray(np.log(p / (1 - p)), np.float64)
    )
    np.testing.assert_allclose(best, closed_forms.rlhf_optimum(REFERENCE, REWARD, tau=0.3), atol=1e-12)


def test_rlhf_by_hand() -> None:
    """Weights (1/2) e^0 and (1/2) e^(log 3): 1/4 and 3/4. V = log((1 + 3) / 2) = log 2."""
    policy, value = closed_forms.dro_optimum([0.5, 0.5], [0.0, math.log(3.0)], tau=1.0)
    assert policy.tolist() == pytest.approx([0.25, 0.75])
    assert value == pytest.approx(math.log(2.0))
    # a tiny temperature neither overflows nor revives an answer that the reference excludes
    cold = closed_forms.rlhf_optimum([0.5, 0.5, 0.0], [1.0, 2.0, 9.0], tau=1e-6)
    assert cold.tolist() == [0.0, 1.0, 0.0]


def test_pmpo_by_hand() -> None:
    """alpha = 0, beta = 2, uniform reference: (2 * 1/2 - d_r) / (2 - 1): what was rejected with .3 keeps .7."""
    best = closed_forms.pmpo_optimum([0.5, 0.5], [0.3, 0.7], [0.5, 0.5], alpha=0.0, beta=2.0)
    assert best.tolist() == pytest.approx([0.7, 0.3])
    # accepted alone needs no KL: it is imitation
    assert closed_forms.pmpo_optimum([0.2, 0.8], [1.0, 0.0], [0.5, 0.5], alpha=1.0, beta=0.0).tolist() == [0.2, 0.8]


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_pmpo_without_enough_kl_has_no_optimum(beta: float) -> None:
    """alpha = 0 needs beta pi_ref >= d_r in every answer, so beta > 1."""
    with pytest.raises(ValueError, match="no finite optimum"):
        closed_forms.pmpo_optimum([0.5, 0.5], [0.3, 0.7], [0.5, 0.5], alpha=0.0, beta=beta)


def test_pmpo_the_other_kl_direction_is_another_algorithm() -> None:
    """At the optimum, replacing KL(ref || pi) by KL(pi || ref) leaves a gradient."""
    logits = on(np.log(CASES["pmpo"][1])).requires_grad_()
    logps = torch.log_softmax(logits, 0)
    other = pmpo_objective(logps) + 2.0 * (
        full_kl(logps, on(np.log(REFERENCE))) - full_kl(on(np.log(REFERENCE)), logps)
    )
    (grad,) = torch.autograd.grad(other, logits)
    assert grad.abs().max() > 1e-2


def test_best_of_n_by_hand() -> None:
    """Best of 2 of (1/2, 1/4, 1/4) with rewards 0, 1, 2: 1/4, (3/4)^2 - 1/4 = 5/16, 7/16. A tie shares by mass."""
    assert closed_forms.best_of_n([0.5, 0.25, 0.25], [0, 1, 2], n=2).tolist() == [0.25, 0.3125, 0.4375]
    assert closed_forms.best_of_n([0.5, 0.25, 0.25], [1, 0, 1], n=2) == pytest.approx([0.625, 0.0625, 0.3125])
    assert closed_forms.best_of_n([0.5, 0.25, 0.25], [0, 0, 0], n=9) == pytest.approx([0.5, 0.25, 0.25])


@PROPERTY
@given(st.integers(1, 6), st.integers(0, 2**31))
def test_best_of_n_against_enumeration(n: int, seed: int) -> None:
    """All 3^n draws, each won by its best; ties split evenly over the draws that have the best reward."""
    rng = np.random.default_rng(seed)
    behaviour, reward = rng.dirichlet(np.ones(3)), rng.integers(0, 3, size=3).astype(float)
    expected = np.zeros(3)
    for draw in np.ndindex(*(3,) * n):
        mass = np.prod(behaviour[list(draw)])
        best = [y for y in draw if reward[y] == reward[list(draw)].max()]
        np.add.at(expected, best, mass / len(best))
    np.testing.assert_allclose(closed_forms.best_of_n(behaviour, reward, n=n), expected, atol=1e-12)


@PROPERTY
@given(st.floats(-50, 50), st.integers(0, 2**31))
def test_a_constant_added_to_the_reward_changes_no_policy(shift: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference, reward = rng.dirichlet(np.ones(4)), rng.normal(size=4)
    for optimum in (
        lambda r: closed_forms.rlhf_optimum(reference, r, tau=0.2),
        lambda r: closed_forms.dro_optimum(reference, r, tau=0.2)[0],
        lambda r: closed_forms.rwr_optimum(reference, r, beta=0.2),
        lambda r: closed_forms.best_of_n(reference, r, n=3),
    ):
        np.testing.assert_allclose(optimum(reward + shift), optimum(reward), atol=1e-9)


def test_geometric_mixture() -> None:
    """sqrt(.8 * .2) = .4 for both answers: half way between (.8, .2) and (.2, .8) is a tie."""
    p, q = np.array([0.8, 0.2]), np.array([0.2, 0.8])
    assert closed_forms.geometric_mixture(p, q, 0.5).tolist() == pytest.approx([0.5, 0.5])
    np.testing.assert_allclose(closed_forms.geometric_mixture(p, q, 0.0), p)
    np.testing.assert_allclose(closed_forms.geometric_mixture(np.array([1.0, 0.0]), q, 1.0), q)


def test_kl_by_hand() -> None:
    assert closed_forms.kl(np.array([1.0, 0.0]), np.array([0.5, 0.5])) == pytest.approx(math.log(2))
    assert closed_forms.kl(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == math.inf
    assert closed_forms.kl(np.array([1.0, 0.0]), np.array([1.0, 0.0])) == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: closed_forms.rlhf_optimum([0.5, 0.4], [0, 1], tau=1), "add to 1"),
        (lambda: closed_forms.rlhf_optimum([[0.5, 0.5]], [0, 1], tau=1), r"shape \(1, 2\)"),
        (lambda: closed_forms.as_preference([[0.5, 0.7], [0.7, 0.5]]), "average the two orders"),
        (lambda: closed_forms.as_preference([[0.5, 1.2], [-0.2, 0.5]]), r"\[0, 1\]"),
        (lambda: closed_forms.as_preference([0.5]), r"\[A, A\]"),
        (lambda: closed_forms.ipo_on_pairs([0.5, 0.5], [(0, 2)], tau=1), "answers 0 to 1"),
        (lambda: closed_forms.ipo_on_pairs([1.0, 0.0], [(0, 1)], tau=1), "full support"),
    ],
)
def test_wrong_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
