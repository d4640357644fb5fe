"""The losses against values derived by hand, their slopes, and the properties a trainer relies on."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from polyturn.algorithms import losses
from polyturn.algorithms.losses import MarginFunction

FAMILY: list[MarginFunction] = [
    losses.logistic,
    losses.hinge,
    losses.squared,
    losses.exponential,
    losses.truncated_quadratic,
    losses.savage,
]
# Wall-clock never decides a test, and every run tries the same examples.
PROPERTY = settings(deadline=None, derandomize=True)
LN2 = math.log(2.0)
margins = st.floats(-30.0, 30.0, allow_nan=False, width=32)
probabilities = st.floats(0.0, 1.0, allow_nan=False)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def slope(loss: Callable[[Tensor], Tensor], at: float) -> float:
    x = number(at)
    loss(x).backward()
    assert x.grad is not None
    return float(x.grad)


@pytest.mark.parametrize(
    ("f", "at_zero", "at_ln2"),
    [
        # e^-ln2 = 1/2, sigmoid(-ln2) = 1 / (1 + 2) = 1/3
        (losses.logistic, LN2, math.log(1.5)),
        (losses.hinge, 1.0, 1.0 - LN2),
        (losses.squared, 1.0, (1.0 - LN2) ** 2),
        (losses.exponential, 1.0, 0.5),
        (losses.truncated_quadratic, 1.0, (1.0 - LN2) ** 2),
        (losses.savage, 0.25, 1.0 / 9.0),
    ],
)
def test_family_values(f: MarginFunction, at_zero: float, at_ln2: float) -> None:
    assert f(number(0.0)).item() == pytest.approx(at_zero, abs=1e-12)
    assert f(number(LN2)).item() == pytest.approx(at_ln2, abs=1e-12)


@pytest.mark.parametrize(
    ("f", "first", "ratio"),
    [
        # |f''(0) / f'(0)| of arXiv 2402.05749: 1/2, 0, 1, 1, 1, 1/2
        (losses.logistic, -0.5, 0.5),
        (losses.hinge, -1.0, 0.0),
        (losses.squared, -2.0, 1.0),
        (losses.exponential, -1.0, 1.0),
        (losses.truncated_quadratic, -2.0, 1.0),
        (losses.savage, -0.25, 0.5),
    ],
)
def test_family_slope_and_curvature_at_zero(f: MarginFunction, first: float, ratio: float) -> None:
    step = 1e-5
    assert slope(f, 0.0) == pytest.approx(first, abs=1e-12)
    curvature = (slope(f, step) - slope(f, -step)) / (2 * step)
    assert abs(curvature / first) == pytest.approx(ratio, abs=1e-8)


@pytest.mark.parametrize("f", FAMILY)
def test_descent_raises_the_preferred(f: MarginFunction) -> None:
    """A certain win pulls the margin up, a certain loss pulls it down, a tie holds it at 0."""
    margin = torch.zeros(3, requires_grad=True)
    loss = losses.gpo(margin, beta=0.3, f=f, probability=torch.tensor([1.0, 0.0, 0.5]))
    (grad,) = torch.autograd.grad(loss.sum(), margin)
    assert grad[0] < 0 < grad[1]
    assert grad[1] == -grad[0]
    assert grad[2] == 0


def test_dpo_value() -> None:
    """beta h = .5 * 2 = 1: log(1 + e^-1) = .3132617; smoothed by .1: .9 * .3132617 + .1 * 1.3132617 = .4132617."""
    margin = number(2.0)
    assert losses.gpo(margin, beta=0.5).item() == pytest.approx(0.3132617, abs=1e-7)
    assert losses.gpo(margin, beta=0.5, probability=0.9).item() == pytest.approx(0.4132617, abs=1e-7)
    # the reference itself costs log 2 for every beta
    assert losses.gpo(number(0.0), beta=7.0).item() == pytest.approx(LN2)


def test_dpo_minimum_is_the_bradley_terry_margin() -> None:
    """p sigmoid(-x) = (1 - p) sigmoid(x) at x = log(p / (1 - p)): for p = .8, beta = .1 the margin is 10 log 4."""
    assert slope(lambda h: losses.gpo(h, beta=0.1, probability=0.8), 10 * math.log(4.0)) == pytest.approx(0, abs=1e-12)


def test_ipo_value_and_minimum() -> None:
    """tau = .1 asks for h = 5: (2 - 5)^2 = 9; with p = .7: .7 * 9 + .3 * (2 + 5)^2 = 21; minimum at (2p - 1) 5 = 2."""
    assert losses.ipo(number(2.0), tau=0.1).item() == pytest.approx(9.0)
    assert losses.ipo(number(2.0), tau=0.1, probability=0.7).item() == pytest.approx(21.0)
    assert slope(lambda h: losses.ipo(h, tau=0.1, probability=0.7), 2.0) == pytest.approx(0.0, abs=1e-12)


@PROPERTY
@given(margins, probabilities, st.floats(0.05, 3.0))
def test_ipo_is_the_squared_member(margin: float, probability: float, tau: float) -> None:
    """(2 tau h - 1)^2 = (2 tau)^2 (h - 1/(2 tau))^2."""
    h = number(margin)
    member = losses.gpo(h, beta=2 * tau, f=losses.squared, probability=probability)
    own = losses.ipo(h, tau=tau, probability=probability)
    assert member.item() == pytest.approx((2 * tau) ** 2 * own.item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("f", FAMILY)
@PROPERTY
@given(margin=margins, probability=probabilities)
def test_swapping_the_pair_changes_nothing(f: MarginFunction, margin: float, probability: float) -> None:
    """loss(h, p) = loss(-h, 1 - p): the order of a pair is a convention."""
    forward = losses.gpo(number(margin), beta=0.7, f=f, probability=probability)
    swapped = losses.gpo(number(-margin), beta=0.7, f=f, probability=1.0 - probability)
    assert forward.item() == pytest.approx(swapped.item(), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("f", FAMILY)
@pytest.mark.parametrize("probability", [None, 0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_margins_stay_finite(f: MarginFunction, probability: float | None, dtype: torch.dtype) -> None:
    margin = torch.tensor([-1e5, -1e3, 0.0, 1e3, 1e5], dtype=dtype, requires_grad=True)
    loss = losses.gpo(margin, beta=1.0, f=f, probability=probability)
    (grad,) = torch.autograd.grad(loss.sum(), margin)
    assert bool(torch.isfinite(loss).all())
    assert bool(torch.isfinite(grad).all())
    # the norm of the gradient, which clipping takes, must not overflow either
    assert math.isfinite(grad.float().norm().item())


def test_certain_pairs_do_not_touch_the_other_order() -> None:
    """A user's own f that overflows on one side must not turn 0 * inf into nan."""

    def overflowing(x: Tensor) -> Tensor:
        return torch.exp(-x)

    margin = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = losses.gpo(margin, beta=1.0, f=overflowing, probability=torch.tensor([1.0, 0.0]))
    (grad,) = torch.autograd.grad(loss.sum(), margin)
    assert loss.tolist() == [0.0, 0.0]
    assert grad.tolist() == [0.0, 0.0]


def test_unjudged_pairs_are_not_hidden() -> None:
    assert math.isnan(losses.gpo(torch.tensor([1.0]), beta=0.1, probability=torch.tensor([math.nan])).item())


def test_kto_values() -> None:
    """beta (g - z0) = .5 (3 - 1) = 1: desirable 1 - sigmoid(1) = .2689414, undesirable 2 (1 - sigmoid(-1)) = 1.4621172.

    At g = z0 both are half their weight.
    """
    loss = losses.kto(
        torch.tensor([3.0, 3.0, 1.0, 1.0], dtype=torch.float64),
        torch.tensor([True, False, True, False]),
        beta=0.5,
        z0=1.0,
        undesirable_weight=2.0,
    )
    assert loss.tolist() == pytest.approx([0.2689414, 1.4621172, 0.5, 1.0], abs=1e-7)


def test_kto_gradient() -> None:
    """-+ beta s (1 - s); at g = z0 that is -+ beta / 4. None flows into z0."""
    logratio = torch.tensor([1.0, 1.0], requires_grad=True)
    z0 = torch.tensor(1.0, requires_grad=True)
    loss = losses.kto(logratio, torch.tensor([True, False]), beta=0.1, z0=z0).sum()
    grad, none = torch.autograd.grad(loss, (logratio, z0), allow_unused=True)
    assert grad.tolist() == pytest.approx([-0.025, 0.025])
    assert none is None


def test_kto_saturates_without_nan() -> None:
    logratio = torch.tensor([-1e6, 1e6, -1e6, 1e6], requires_grad=True)
    loss = losses.kto(logratio, torch.tensor([True, True, False, False]), beta=0.5, z0=0.0)
    (grad,) = torch.autograd.grad(loss.sum(), logratio)
    assert loss.tolist() == [1.0, 0.0, 0.0, 1.0]
    assert grad.tolist() == [0.0] * 4


def test_pmpo_values() -> None:
    """alpha = .75, beta = .5, log pi = -2, KL = .4: accepted .75 * 2 + .2 = 1.7, rejected -.25 * 2 + .2 = -.3."""
    loss = losses.pmpo(torch.tensor([-2.0, -2.0]), torch.tensor([1, 0]), torch.tensor([0.4, 0.4]), alpha=0.75, beta=0.5)
    assert loss.tolist() == pytest.approx([1.7, -0.3])


def test_pmpo_one_sided() -> None:
    logps = torch.tensor([-1.0, -3.0], requires_grad=True)
    for alpha, expected in ((1.0, [-1.0, 0.0]), (0.0, [0.0, 1.0])):
        loss = losses.pmpo(logps, torch.tensor([True, False]), torch.zeros(2), alpha=alpha, beta=1.0)
        (grad,) = torch.autograd.grad(loss.sum(), logps)
        assert grad.tolist() == expected


def test_losses_keep_the_precision_of_their_log_probabilities() -> None:
    """Settings given as plain numbers are not rounded to float32, and labels may be 0 and 1.

    KTO at g = 1, beta = 0.1: desirable 1 - sigmoid(0.1 (1 - 0.3)), undesirable sigmoid of the same. PMPO with
    alpha = 0.3 and log pi = -1: accepted 0.3, rejected -0.7.
    """
    g, label = torch.ones(2, dtype=torch.float64), torch.tensor([1.0, 0.0])
    good, bad = losses.kto(g, label, beta=0.1, z0=0.3).tolist()
    assert good == pytest.approx(1.0 / (1.0 + math.exp(0.07)), rel=1e-12)
    assert good + bad == pytest.approx(1.0, rel=1e-12)
    values = losses.pmpo(-g, label, torch.zeros(2, dtype=torch.float64), alpha=0.3, beta=1.0)
    assert values.tolist() == pytest.approx([0.3, -0.7], rel=1e-12)
    assert losses.gpo(g, beta=0.1, probability=0.3)[0].item() == pytest.approx(
        0.3 * math.log1p(math.exp(-0.1)) + 0.7 * math.log1p(math.exp(0.1)), rel=1e-12
    )


@pytest.mark.parametrize("tau", [0.25, 1.0, 2.0])
def test_dro_divides_the_policys_loss_by_the_temperature(tau: float) -> None:
    """r = 3, V = 1, g = 0.5: residual 2 - tau / 2, squared over 2 tau for the policy and over 2 for the value."""
    policy, value = losses.dro(torch.tensor(3.0), torch.tensor(1.0), torch.tensor(0.5), tau=tau)
    assert policy.item() == pytest.approx((2 - tau / 2) ** 2 / (2 * tau))
    assert value.item() == pytest.approx((2 - tau / 2) ** 2 / 2)


def test_dro_values_and_gradients() -> None:
    """r = 1, V = .2, tau g = .5 * .4 = .2: residual .6; policy .36 / (2 * .5) = .36, value .18.

    d policy / dg = -residual = -.6 = -(r - V) + tau g; d value / dV = V - r + tau g = -.6.
    """
    value, logratio = number(0.2), number(0.4)
    policy_loss, value_loss = losses.dro(torch.tensor(1.0, dtype=torch.float64), value, logratio, tau=0.5)
    assert policy_loss.item() == pytest.approx(0.36)
    assert value_loss.item() == pytest.approx(0.18)
    grads = torch.autograd.grad(policy_loss, (value, logratio), retain_graph=True, allow_unused=True)
    assert grads[0] is None
    assert grads[1].item() == pytest.approx(-0.6)
    grads = torch.autograd.grad(value_loss, (value, logratio), allow_unused=True)
    assert grads[0].item() == pytest.approx(-0.6)
    assert grads[1] is None


def test_policy_gradient() -> None:
    logps = torch.tensor([-1.0, -2.0], requires_grad=True)
    advantage = torch.tensor([0.5, -2.0], requires_grad=True)
    loss = losses.policy_gradient(logps, advantage)
    assert loss.tolist() == [0.5, -4.0]
    grad, none = torch.autograd.grad(loss.sum(), (logps, advantage), allow_unused=True)
    assert grad.tolist() == [-0.5, 2.0]
    assert none is None


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        # the gradient in log pi is -rho A where the clip is not active, 0 where it is
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 2.0, -2.4, 0.0),  # moved up far enough already: clamped to 1.2
        (0.5, 2.0, -1.0, -1.0),  # moved the wrong way: not clipped
        (1.5, -2.0, 3.0, 3.0),
        (0.5, -2.0, 1.6, 0.0),
    ],
)
def test_ppo_clip(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    logps = number(math.log(ratio) - 3.0)
    value = losses.ppo_clip(
        logps, torch.tensor(-3.0, dtype=torch.float64), torch.tensor(advantage, dtype=torch.float64), clip=0.2
    )
    assert value.item() == pytest.approx(loss)
    (grad,) = torch.autograd.grad(value, logps)
    assert grad.item() == pytest.approx(gradient)


def test_ppo_clip_first_step_is_the_policy_gradient() -> None:
    logps = torch.tensor([-1.0, -2.0, -0.3], requires_grad=True)
    advantage = torch.tensor([1.0, -2.0, 0.5])
    (clipped,) = torch.autograd.grad(losses.ppo_clip(logps, logps.detach(), advantage, clip=0.2).sum(), logps)
    (plain,) = torch.autograd.grad(losses.policy_gradient(logps, advantage).sum(), logps)
    torch.testing.assert_close(clipped, plain)


def test_ppo_clip_extreme_ratios_stay_finite() -> None:
    logps = torch.tensor([-1e4, 0.0, -1e4, 0.0], requires_grad=True)
    behaviour = torch.tensor([0.0, -1e4, 0.0, -1e4])
    loss = losses.ppo_clip(logps, behaviour, torch.tensor([1.0, 1.0, -1.0, -1.0]), clip=0.2)
    (grad,) = torch.autograd.grad(loss.sum(), logps)
    assert bool(torch.isfinite(loss).all())
    assert bool(torch.isfinite(grad).all())
    assert grad[3] > 0  # a bad action whose ratio exploded is still pushed down


def test_nash_md_value_and_sign() -> None:
    """(P - 1/2 - tau g) = .9 - .5 - .1 * 2 = .2; times -log pi = 3: .6. Winning raises, a costly KL lowers."""
    logps = torch.tensor([-3.0], requires_grad=True)
    loss = losses.nash_md(logps, torch.tensor([0.9]), torch.tensor([2.0]), tau=0.1)
    assert loss.item() == pytest.approx(0.6)
    for preference, logratio, sign in ((0.9, 0.0, -1), (0.1, 0.0, 1), (0.5, 5.0, 1), (0.5, 0.0, 0)):
        loss = losses.nash_md(logps, torch.tensor([preference]), torch.tensor([logratio]), tau=0.1)
        (grad,) = torch.autograd.grad(loss.sum(), logps)
        assert torch.sign(grad).item() == sign


def test_supervised_and_reward_weighted() -> None:
    """exp(1 / .5) = 7.389 without limit, 4 with; times -log pi = 2."""
    logps = torch.tensor([-2.0])
    assert losses.nll(logps).item() == 2.0
    assert losses.rwr(logps, torch.tensor([1.0]), beta=0.5).item() == pytest.approx(2 * math.exp(2.0))
    assert losses.rwr(logps, torch.tensor([1.0]), beta=0.5, max_weight=4.0).item() == 8.0


@PROPERTY
@given(st.lists(st.tuples(margins, probabilities), min_size=2, max_size=8))
def test_rows_are_independent(rows: list[tuple[float, float]]) -> None:
    """Reordering or dropping rows leaves each remaining row's loss bit for bit the same."""
    margin, probability = torch.tensor(rows).T
    whole = losses.gpo(margin, beta=0.1, probability=probability)
    order = torch.tensor(sorted(range(len(rows)), key=lambda i: rows[i]))[1:]
    part = losses.gpo(margin[order], beta=0.1, probability=probability[order])
    assert torch.equal(part, whole[order])
