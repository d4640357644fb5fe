"""Estimators against values by hand, plain PyTorch, and enumeration."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from polyturn.agents.transformer import token_logps
from polyturn.algorithms import estimators

# Wall-clock never decides a test, and every run tries the same examples.
PROPERTY = settings(deadline=None, derandomize=True)
#  context, turn 0 (two tokens), observation, turn 1 (one token), padding
TURN = torch.tensor([[-1, 0, 0, -1, 1, -1], [-1, -1, 0, 0, 0, -1]])
LOGPS = torch.tensor([[9.0, -1.0, -2.0, 9.0, -4.0, 9.0], [9.0, 9.0, -1.0, -1.0, -1.0, 9.0]])
REFERENCE = torch.tensor([[7.0, -2.0, -2.0, 7.0, -1.0, 7.0], [7.0, 7.0, -3.0, -1.0, -2.0, 7.0]])


def test_sequence_logratio_by_hand() -> None:
    """Row 0: (-1 + 2) + 0 + (-4 + 1) = -2, its last turn alone -3. Row 1: 2 + 0 + 1 = 3, one turn only."""
    assert estimators.sequence_logratio(LOGPS, REFERENCE, TURN).tolist() == [-2.0, 3.0]
    assert estimators.sequence_logratio(LOGPS, REFERENCE, TURN, turns="last").tolist() == [-3.0, 3.0]
    assert estimators.sequence_sum(LOGPS, TURN).tolist() == [-7.0, -3.0]


def test_log_ratio_to_go_by_hand() -> None:
    expected = [[0.0, -2.0, -3.0, 0.0, -3.0, 0.0], [0.0, 0.0, 3.0, 1.0, 1.0, 0.0]]
    assert estimators.log_ratio_to_go(LOGPS, REFERENCE, TURN).tolist() == expected


def test_turn_sums_by_hand() -> None:
    assert estimators.turn_sums(LOGPS, TURN).tolist() == [[-3.0, -4.0], [-3.0, 0.0]]
    assert estimators.turn_sums(LOGPS, TURN, count=3).tolist() == [[-3.0, -4.0, 0.0], [-3.0, 0.0, 0.0]]
    with pytest.raises(ValueError, match="below count=1, got turn 1"):
        estimators.turn_sums(LOGPS, TURN, count=1)


def test_turns_is_checked() -> None:
    with pytest.raises(ValueError, match='"all" or "last"'):
        estimators.sequence_sum(LOGPS, TURN, turns="first")


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_the_agent_did_not_write_never_counts(poison: float) -> None:
    """Neither in value nor in gradient, even where a padded position holds nan."""
    logps = torch.where(TURN >= 0, LOGPS, poison).requires_grad_()
    reference = torch.where(TURN >= 0, REFERENCE, poison)
    clean = estimators.sequence_logratio(LOGPS, REFERENCE, TURN)
    result = estimators.sequence_logratio(logps, reference, TURN)
    assert torch.equal(result, clean)
    (grad,) = torch.autograd.grad(result.sum(), logps)
    assert torch.equal(grad, (TURN >= 0).float())
    assert torch.equal(
        estimators.log_ratio_to_go(logps, reference, TURN), estimators.log_ratio_to_go(LOGPS, REFERENCE, TURN)
    )
    assert torch.equal(estimators.turn_sums(logps, TURN), estimators.turn_sums(LOGPS, TURN))


def test_a_row_the_agent_never_spoke_in_sums_to_zero() -> None:
    nobody = torch.full((1, 4), -1)
    for turns in ("all", "last"):
        assert estimators.sequence_sum(torch.ones(1, 4), nobody, turns=turns).tolist() == [0.0]
    assert estimators.turn_sums(torch.ones(1, 4), nobody).shape == (1, 0)


@PROPERTY
@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2**31))
def test_padding_and_row_order_change_nothing(left: int, right: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    turn = torch.randint(-1, 3, (3, 7), generator=generator)
    logps, reference = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)
    pad = (left, right)
    order = torch.randperm(3, generator=generator)
    padded = [
        torch.nn.functional.pad(x, pad, value=fill)[order] for x, fill in ((logps, 5.0), (reference, -5.0), (turn, -1))
    ]
    for turns in ("all", "last"):
        plain = estimators.sequence_logratio(logps, reference, turn, turns=turns)
        torch.testing.assert_close(estimators.sequence_logratio(*padded, turns=turns), plain[order])
    togo = estimators.log_ratio_to_go(logps, reference, turn)[order]
    torch.testing.assert_close(estimators.log_ratio_to_go(*padded)[:, left : left + 7], togo)


# ---- KL estimates


def test_k1_and_k3_average_to_the_kl() -> None:
    """Exact expectations under pi by enumeration; k3's gradient is that of KL(ref || pi), k1's is zero."""
    generator = torch.Generator().manual_seed(3)
    policy, reference = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    policy.requires_grad_()
    logps, ref = torch.log_softmax(policy, 0), torch.log_softmax(reference, 0)
    p = logps.detach().exp()
    kl = token_logps.full_kl(policy, reference)
    for estimate in (estimators.k1(logps, ref), estimators.k3(logps, ref)):
        torch.testing.assert_close((p * estimate).sum(), kl)
    (zero,) = torch.autograd.grad((p * estimators.k1(logps, ref)).sum(), policy, retain_graph=True)
    assert zero.abs().max() < 1e-12
    (own,) = torch.autograd.grad((p * estimators.k3(logps, ref)).sum(), policy, retain_graph=True)
    (other,) = torch.autograd.grad(token_logps.full_kl(reference, policy), policy)
    torch.testing.assert_close(own, other)


def test_k3_is_never_negative_nor_infinite() -> None:
    near = torch.linspace(-1e-3, 1e-3, 2001)
    assert bool((estimators.k3(torch.zeros(2001), near) >= 0).all())
    far = torch.tensor([-1e4, 1e4], requires_grad=True)
    value = estimators.k3(far, torch.zeros(2))
    (grad,) = torch.autograd.grad(value.sum(), far)
    assert bool(torch.isfinite(value).all())
    assert bool(torch.isfinite(grad).all())


@pytest.mark.parametrize("log_r", [1e-4, 1e-3, 9.9e-3, 1.01e-2, 0.1, 2.0])
def test_k3_is_the_exact_form_on_both_sides_of_its_series(log_r: float) -> None:
    """exp(x) - 1 - x at x and -x, through expm1, which does not cancel."""
    for x in (log_r, -log_r):
        value = estimators.k3(torch.zeros(1, dtype=torch.float64), torch.tensor([x], dtype=torch.float64))
        assert value.item() == pytest.approx(math.expm1(x) - x, rel=1e-7)


# ---- KTO's reference point


@PROPERTY
@given(st.lists(st.integers(0, 4), min_size=2, max_size=24))
def test_nothing_is_matched_with_its_own_prompt(prompts: list[int]) -> None:
    if len(set(prompts)) < 2:
        with pytest.raises(ValueError, match="two different prompts"):
            estimators.mismatched_partners(prompts)
        return
    partner = estimators.mismatched_partners(prompts)
    assert all(prompts[i] != prompts[j] for i, j in enumerate(partner))
    if 2 * max(prompts.count(p) for p in prompts) <= len(prompts):
        assert sorted(partner) == list(range(len(prompts)))  # every completion is used once


def test_a_block_of_one_is_invalid() -> None:
    with pytest.raises(ValueError, match="got 1 in 1 rows"):
        estimators.mismatched_partners(["a"])
    with pytest.raises(ValueError, match="got none"):
        estimators.kto_reference_point(torch.zeros(0))


def test_reference_point_is_a_clamped_mean_without_gradient() -> None:
    """(3 - 1) / 2 = 1; (-3 + 1) / 2 = -1, clamped to 0: a KL is not negative."""
    logratio = torch.tensor([3.0, -1.0], requires_grad=True)
    z0 = estimators.kto_reference_point(logratio)
    assert z0.item() == 1.0
    assert not z0.requires_grad
    assert estimators.kto_reference_point(torch.tensor([-3.0, 1.0])).item() == 0.0


# ---- advantages


def test_gae_by_hand() -> None:
    """discount .5, lambda .5, r = (1, 2), V = (.4, .6), terminated.

    delta_1 = 2 - .6 = 1.4; delta_0 = 1 + .5 * .6 - .4 = .9; A_1 = 1.4, A_0 = .9 + .25 * 1.4 = 1.25. Targets 1.65, 2.
    Truncated with V_2 = .8: delta_1 = 1.8, A_0 = .9 + .45 = 1.35.
    """
    rewards, values = torch.tensor([[1.0, 2.0, 7.0]]), torch.tensor([[0.4, 0.6, math.nan]])
    mask = torch.tensor([[True, True, False]])
    advantages, targets = estimators.gae(rewards, values, mask, discount=0.5, lam=0.5)
    assert advantages[0].tolist() == pytest.approx([1.25, 1.4, 0.0])
    assert targets[0].tolist() == pytest.approx([1.65, 2.0, 0.0])
    advantages, _ = estimators.gae(rewards, values, mask, discount=0.5, lam=0.5, bootstrap=torch.tensor([0.8]))
    assert advantages[0].tolist() == pytest.approx([1.35, 1.8, 0.0])


def test_gae_lambda_one_is_monte_carlo() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([[6], [4], [1], [0]])
    _, targets = estimators.gae(rewards, values, mask, lam=1.0)
    to_go = torch.where(mask, rewards, 0.0).flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(targets, torch.where(mask, to_go, 0.0))


def test_gae_defaults_to_no_discount_and_lambda_095() -> None:
    """r = (0, 1), V = 0: A_1 = 1 and A_0 = 0.95. A mask of 0 and 1, and a bootstrap of another type, will do."""
    rewards, mask = torch.tensor([[0.0, 1.0, 5.0]]), torch.tensor([[1, 1, 0]])
    bootstrap = torch.zeros(1, dtype=torch.float64)
    advantages, targets = estimators.gae(rewards, torch.zeros(1, 3), mask, bootstrap=bootstrap)
    assert advantages[0].tolist() == targets[0].tolist() == pytest.approx([0.95, 1.0, 0.0])
    assert advantages.dtype == torch.float32


def test_leave_one_out_by_hand() -> None:
    """Group 5: 1 - (2 + 6)/2 = -3, 2 - 3.5 = -1.5, 6 - 1.5 = 4.5. The only member of group 2 learns nothing.

    Of two members each is compared with the other: 1 - 3 = -2 and 3 - 1 = 2.
    """
    assert estimators.leave_one_out(torch.tensor([1.0, 3.0]), torch.tensor([7, 7])).tolist() == [-2.0, 2.0]
    scores, group = torch.tensor([1.0, 9.0, 2.0, 6.0]), torch.tensor([5, 2, 5, 5])
    assert estimators.leave_one_out(scores, group).tolist() == pytest.approx([-3.0, 0.0, -1.5, 4.5])


def test_group_normalised_by_hand() -> None:
    """(1, 3): mean 2, deviation 1 -> -1, 1. Equal scores give 0 exactly, not amplified rounding."""
    scores = torch.tensor([1.0, 0.1, 3.0, 0.1, 0.1])
    group = torch.tensor([0, 1, 0, 1, 1])
    assert estimators.group_normalised(scores, group).tolist() == pytest.approx([-1.0, 0.0, 1.0, 0.0, 0.0], abs=1e-5)
    assert estimators.group_normalised(scores, group)[1].item() == 0.0
    assert estimators.group_normalised(scores, group, scale=False).tolist() == [-1.0, 0.0, 1.0, 0.0, 0.0]
    wide = estimators.group_normalised(torch.tensor([0.0, 4.0]), torch.tensor([0, 0]))  # deviation 2
    assert wide.tolist() == pytest.approx([-1.0, 1.0], abs=1e-5)
    # Differences as small as the deviation's guard of 1e-6 are damped: deviation 1e-6, so 1e-6 / 2e-6.
    tiny = estimators.group_normalised(torch.tensor([0.0, 2e-6], dtype=torch.float64), torch.tensor([0, 0]))
    assert tiny.tolist() == pytest.approx([-0.5, 0.5])


@pytest.mark.parametrize("size", [2, 3, 6, 7, 11, 13])
def test_equal_scores_in_a_group_of_any_size_have_no_advantage(size: int) -> None:
    """A plain mean of equal float32 numbers may differ from them by rounding; another group is present as well."""
    for score in (0.1, 0.7, 1 / 3, 1e-3, 12345.678):
        scores = torch.cat([torch.full((size,), score), torch.tensor([0.0, 1.0])])
        group = torch.tensor([4] * size + [2, 2])
        for advantage in (estimators.leave_one_out, estimators.group_normalised):
            assert advantage(scores, group)[:size].tolist() == [0.0] * size


def test_no_rows_give_no_numbers() -> None:
    nothing, group = torch.zeros(0), torch.zeros(0, dtype=torch.long)
    assert estimators.leave_one_out(nothing, group).shape == (0,)
    assert estimators.group_normalised(nothing, group).shape == (0,)
    assert estimators.turn_sums(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long)).shape == (0, 0)


@PROPERTY
@given(st.lists(st.integers(-8, 8), min_size=2, max_size=8), st.integers(-100, 100))
def test_advantages_do_not_see_a_shift_of_the_scores(scores: list[int], shift: int) -> None:
    group = torch.zeros(len(scores), dtype=torch.long)
    plain = torch.tensor(scores, dtype=torch.float64)
    for advantage in (estimators.leave_one_out, estimators.group_normalised):
        torch.testing.assert_close(advantage(plain + shift, group), advantage(plain, group))
        assert advantage(plain, group).sum().item() == pytest.approx(0.0, abs=1e-9)


def test_class_balance_makes_a_mean_of_means() -> None:
    """Rows (accepted 1, 3; rejected 10): mean(accepted) + mean(rejected) = 2 + 10."""
    values, accepted = torch.tensor([1.0, 3.0, 10.0]), torch.tensor([True, True, False])
    assert (values * estimators.class_balance(accepted)).mean().item() == pytest.approx(12.0)
    assert (torch.ones(3) * estimators.class_balance(torch.ones(3))).mean().item() == 1.0


def test_whiten_by_hand() -> None:
    """(1, 3) inside the mask: mean 2, deviation 1. A nan outside does not leak."""
    values, mask = torch.tensor([1.0, math.nan, 3.0]), torch.tensor([True, False, True])
    assert estimators.whiten(values, mask).tolist() == pytest.approx([-1.0, 0.0, 1.0])
    assert estimators.whiten(values, mask, shift_mean=False).tolist() == pytest.approx([1.0, 0.0, 3.0])
    assert estimators.whiten(torch.full((3,), 0.1)).tolist() == [0.0] * 3
    assert estimators.whiten(torch.tensor([0.0, 7.0, 4.0]), torch.tensor([1, 0, 1])).tolist() == [-1.0, 0.0, 1.0]
    tiny = torch.tensor([0.0, 2e-8], dtype=torch.float64)  # deviation 1e-8, as large as the guard of 1e-8
    assert estimators.whiten(tiny).tolist() == pytest.approx([-0.5, 0.5])
    assert estimators.whiten(values, torch.zeros(3, dtype=torch.bool)).tolist() == [0.0] * 3
