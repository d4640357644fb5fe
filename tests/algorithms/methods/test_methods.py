"""Each method: its loss by hand, its gradient by enumeration, what it must ignore."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import polyturn.algorithms
from polyturn.algorithms import GPO, GRPO, IPO, MTPO, PPO
from polyturn.algorithms.batch import Batch, collate
from polyturn.algorithms.losses import hinge, squared
from polyturn.algorithms.methods import base as methods
from polyturn.algorithms.methods.base import Loss
from polyturn.algorithms.methods.imitation import RAFT, SFT
from polyturn.algorithms.methods.pairwise import MDPO
from polyturn.algorithms.methods.table import METHODS, make
from polyturn.algorithms.methods.unpaired import MKTO
from polyturn.algorithms.pairing import Example
from polyturn.envs.preference import Preference, by_return
from polyturn.envs.trajectory import Group, Trajectory, Turn


def trajectory(seed: int, *actions: list[int], reward: float = 0.0) -> Trajectory:
    turns = tuple(
        Turn(
            observation="o",
            action="a",
            reward=reward if h == len(actions) - 1 else 0.0,
            context_ids=np.array([100 + seed, 50 + h], np.int32),
            action_ids=np.array(action, np.int32),
        )
        for h, action in enumerate(actions)
    )
    return Trajectory("Toy-v0", seed, turns, terminated=True)


def pair(seed: int) -> Example:
    """Two turns each: winner [1, 2] then [3]; loser [4] then [5, 6]."""
    return Example((trajectory(seed, [1, 2], [3]), trajectory(seed, [4], [5, 6])), np.array([[0, 1]]))


def labelled(seed: int) -> Example:
    return replace(pair(seed), pairs=np.zeros((0, 2), np.int64), probability=np.zeros(0), weight=np.zeros(0),
                   desirable=np.array([1.0, 0.0]))  # fmt: skip


def random_logps(batch: Batch, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return -torch.rand(batch.ids.shape, generator=generator, dtype=torch.float64)


def mean(loss: Loss) -> Tensor:
    count = torch.ones_like(loss.values) if loss.count is None else loss.count
    return loss.values.sum() / count.sum()


def test_policy_equal_to_reference_gives_the_known_loss() -> None:
    """h = 0: -log sigmoid(0) = log 2 for M-DPO; g = z0 = 0: 1 - sigmoid(0) = 1/2 for M-KTO."""
    batch = collate([pair(0), pair(1)])
    logps = random_logps(batch, 0)
    assert MDPO().loss(logps, logps, batch).values.tolist() == pytest.approx([math.log(2)] * 2)
    batch = collate([labelled(0), labelled(1)], mismatched=True)
    logps = random_logps(batch, 0)
    assert MKTO().loss(logps, logps, batch).values.tolist() == pytest.approx([0.5] * 4)


def test_mdpo_by_hand() -> None:
    """Log-ratio +0.5 on each of the winner's 3 tokens and -1 on each of the loser's 3.

    h = 1.5 - (-3) = 4.5; beta = 0.2: x = 0.9; log(1 + e^-0.9) = 0.341154. Last turn only: winner 1 token, loser 2:
    h = 0.5 + 2 = 2.5, x = 0.5, log(1 + e^-0.5) = 0.474077. Hinge: 1 - 0.9 = 0.1. Squared: 0.01.
    """
    batch = collate([pair(0)])
    reference = random_logps(batch, 0)
    ratio = torch.tensor([[0.5], [-1.0]], dtype=torch.float64)
    logps = reference + ratio
    assert MDPO(beta=0.2).loss(logps, reference, batch).values.item() == pytest.approx(0.341154, abs=1e-6)
    assert MDPO(beta=0.2, turns="last").loss(logps, reference, batch).values.item() == pytest.approx(0.474077, abs=1e-6)
    assert MDPO(beta=0.2, f=hinge).loss(logps, reference, batch).values.item() == pytest.approx(0.1)
    assert MDPO(beta=0.2, f=squared).loss(logps, reference, batch).values.item() == pytest.approx(0.01)
    metrics = MDPO(beta=0.2).loss(logps, reference, batch).metrics
    assert metrics["margin"].item() == pytest.approx(4.5)
    assert metrics["chosen_logratio"].item() == pytest.approx(1.5)


def test_mdpo_unmasked_counts_observations_after_the_first_action() -> None:
    """The second turn's context (2 tokens a row) joins in: winner 5 tokens at +0.5, loser 5 at -1: h = 7.5."""
    batch = collate([pair(0)])
    reference = random_logps(batch, 0)
    logps = reference + torch.tensor([[0.5], [-1.0]], dtype=torch.float64)
    unmasked = MDPO(mask="all")
    assert unmasked.loss(logps, reference, batch).metrics["margin"].item() == pytest.approx(7.5)
    wanted = methods.hooks_of(unmasked).token_mask(batch)
    assert wanted.tolist() == [[False] * 2 + [True] * 5] * 2
    assert methods.hooks_of(MDPO()).token_mask(batch).sum().item() == 6
    with pytest.raises(ValueError, match='mask="agent" with turns="last"'):
        MDPO(mask="all", turns="last")


def test_mdpo_soft_labels_and_weights() -> None:
    """h = 4.5, x = 0.9, p = 0.75: 0.75 * 0.341154 + 0.25 * 1.241154 = 0.566154; the weight multiplies and counts."""
    batch = collate([pair(0), pair(1)])
    reference = random_logps(batch, 0)
    logps = reference + torch.tensor([[0.5], [-1.0]] * 2, dtype=torch.float64)
    batch = replace(batch, probability=torch.tensor([0.75, 1.0]), weight=torch.tensor([2.0, 1.0]))
    loss = MDPO(beta=0.2).loss(logps, reference, batch)
    assert loss.values.tolist() == pytest.approx([2 * 0.566154, 0.341154], abs=1e-6)
    assert loss.count is not None
    assert loss.count.tolist() == [2.0, 1.0]


def test_mdpo_examples_keep_the_preferences_probability_only_when_asked() -> None:
    group = Group((trajectory(0, [1]), trajectory(0, [2])))
    preference = Preference(np.array([[np.nan, 0.8], [np.nan, np.nan]]), "judge")
    rng = np.random.default_rng(0)
    hard, soft = (MDPO(soft_labels=s).examples(group, preference, rng) for s in (False, True))
    assert hard is not None
    assert soft is not None
    assert (hard.probability.tolist(), soft.probability.tolist()) == ([1.0], [np.float32(0.8)])
    assert MDPO().examples(group, by_return(group), rng) is None


def test_mdpo_with_nll_adds_the_winners_mean_nll() -> None:
    """Log-probs -0.25 everywhere and equal to the reference's: log 2 + 2 * 0.25."""
    batch = collate([pair(0)])
    logps = torch.full(batch.ids.shape, -0.25)
    assert MDPO(nll_weight=2.0).loss(logps, logps, batch).values.item() == pytest.approx(math.log(2) + 0.5)


def test_mkto_by_hand() -> None:
    """g = +2 desirable, -1 undesirable (last tokens alone moved); mismatched g = 0.6 and -0.2: z0 = 0.2 nats.

    beta = 0.5: desirable 1 - sigmoid(0.5 * (2 - 0.2)) = sigmoid(-0.9) = 0.289050;
    undesirable 1 - sigmoid(-0.5 * (-1 - 0.2)) = sigmoid(-0.6) = 0.354344.
    """
    batch = collate([Example((trajectory(0, [1]),), desirable=np.array([1.0])),
                     Example((trajectory(1, [2]),), desirable=np.array([0.0]))], mismatched=True)  # fmt: skip
    reference = torch.zeros(batch.ids.shape, dtype=torch.float64)
    logps = torch.zeros_like(reference)
    logps[:, 2] = torch.tensor([2.0, -1.0, 0.6, -0.2], dtype=torch.float64)
    loss = MKTO(beta=0.5).loss(logps, reference, batch)
    assert loss.values.tolist() == pytest.approx([0.289050, 0.354344], abs=1e-6)
    assert loss.metrics["z0"].item() == pytest.approx(0.2)
    given = batch.with_statistics({"kl": torch.tensor(-3.0)})
    assert MKTO(beta=0.5).loss(logps, reference, given).metrics["z0"].item() == 0.0
    weighted = MKTO(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0).loss(logps, reference, batch)
    assert weighted.values.tolist() == pytest.approx([2 * 0.289050, 3 * 0.354344], abs=1e-6)


def test_mkto_balances_and_labels() -> None:
    group = Group((trajectory(0, [1], reward=1.0), trajectory(0, [2]), trajectory(0, [3])))
    example = MKTO().examples(group, by_return(group), np.random.default_rng(0))
    assert example is not None
    assert example.desirable.tolist() == [1.0, 0.0]
    middle = Group((trajectory(0, [1], reward=2.0), trajectory(0, [2], reward=1.0), trajectory(0, [3])))
    every = MKTO(pairs_per_group=None).examples(middle, by_return(middle), np.random.default_rng(0))
    assert every is not None
    assert every.desirable.tolist() == [1, 1, 0, 0]
    assert [t.turns[0].action_ids[0] for t in every.trajectories] == [1, 2, 2, 3]


def test_sft_is_the_mean_over_tokens_of_those_that_did_not_lose() -> None:
    """Log-probs -1 in row 0 (3 tokens) and -2 in row 1 (3 tokens): both (3 + 6) / 6 = 1.5; only the winner 1."""
    demonstrations = replace(pair(0), pairs=np.zeros((0, 2), np.int64), probability=np.zeros(0), weight=np.zeros(0))
    for examples, expected in (([demonstrations], 1.5), ([pair(0)], 1.0), ([labelled(0)], 1.0)):
        batch = collate(examples)
        logps = torch.tensor([[-1.0], [-2.0]]).expand(batch.ids.shape)
        assert mean(SFT().loss(logps, None, batch)).item() == pytest.approx(expected)


def test_sft_and_raft_choose_winners() -> None:
    group = Group(tuple(trajectory(0, [n], reward=r) for n, r in ((1, 1.0), (2, 0.0), (3, 1.0))))
    rng = np.random.default_rng(0)
    sft, raft = (m.examples(group, by_return(group), rng) for m in (SFT(), RAFT()))
    assert sft is not None
    assert raft is not None
    assert (len(sft.trajectories), len(raft.trajectories)) == (1, 2)
    everybody = SFT().examples(group, None, rng)
    assert everybody is not None
    assert len(everybody.trajectories) == 3


@pytest.mark.parametrize("method", [SFT(), MDPO(), MDPO(turns="last"), MDPO(mask="all"), MKTO(), MKTO(turns="last")])
def test_only_wanted_tokens_get_a_gradient_and_nothing_else_is_looked_at(method: methods.Method) -> None:
    """Outside `token_mask` the numbers are nan: no loss may show it, and no gradient may arrive there."""
    batch = collate([_for(method, 0), _for(method, 1)], mismatched=method.needs.mismatched)
    wanted = methods.hooks_of(method).token_mask(batch)
    reference = random_logps(batch, 1).masked_fill(~wanted, math.nan)
    logps = random_logps(batch, 0).masked_fill(~wanted, math.nan).requires_grad_()
    loss = mean(method.loss(logps, reference, batch))
    assert math.isfinite(loss.item())
    (gradient,) = torch.autograd.grad(loss, logps)
    assert (gradient[~wanted] == 0).all()
    assert (gradient[wanted & ~batch.mismatched[:, None]] != 0).sum() > 0
    assert (gradient[batch.mismatched] == 0).all()
    environment = (batch.turn_ids < 0) & batch.mask
    assert bool((gradient[environment] == 0).all()) == (getattr(method, "mask", "agent") == "agent")


@pytest.mark.parametrize("method", [SFT(), MDPO(), MDPO(mask="all"), MKTO()])
def test_padding_and_order_change_nothing(method: methods.Method) -> None:
    """The mean loss is that of the same rows the other way round and four columns wider."""
    batch = collate([_for(method, 0), _for(method, 1)], mismatched=method.needs.mismatched)
    logps, reference = random_logps(batch, 0), random_logps(batch, 1)
    expected = mean(method.loss(logps, reference, batch)).item()
    order = torch.arange(len(batch)).flip(0)
    turned = batch.select(order)
    assert mean(method.loss(logps[order], reference[order], turned)).item() == pytest.approx(expected, rel=1e-12)

    def wider(x: Tensor, fill: float) -> Tensor:
        return torch.cat([x, torch.full((len(x), 4), fill, dtype=x.dtype)], 1)

    padded = replace(batch, ids=wider(batch.ids, 7), mask=wider(batch.mask, 0), turn_ids=wider(batch.turn_ids, -1))
    noisy = wider(logps, math.nan), wider(reference, math.nan), padded
    assert mean(method.loss(*noisy)).item() == pytest.approx(expected, rel=1e-12)


def test_mdpo_gradient_is_the_expected_one_by_enumeration() -> None:
    """One-token actions, softmax policy p over 3 arms, pair (0, 1): dL/dlogits = -beta sigmoid(-beta h) (e0 - e1)."""
    example = Example((trajectory(0, [0]), trajectory(0, [1])), np.array([[0, 1]]))
    batch = collate([example])
    logits = torch.tensor([0.3, -0.2, 0.7], dtype=torch.float64, requires_grad=True)
    reference = torch.full((2, 3), math.log(1 / 3), dtype=torch.float64)
    arm = batch.ids[:, 2]
    logps = torch.zeros((2, 3), dtype=torch.float64)
    logps[:, 2] = logits.log_softmax(0)[arm]
    (gradient,) = torch.autograd.grad(mean(MDPO(beta=2.0).loss(logps, reference, batch)), logits)
    force = 2.0 / (1 + math.exp(2.0 * 0.5))
    assert gradient.tolist() == pytest.approx([-force, force, 0.0])


def test_names_and_options_are_checked() -> None:
    assert make("mdpo", beta=0.5) == MDPO(beta=0.5)
    assert {"sft", "raft", "mdpo", "mkto", "gpo", "ipo", "pmpo", "dro_v", "ppo", "nash_pg"} <= set(METHODS)
    assert all(made().name == name for name, made in METHODS.items())
    with pytest.raises(ValueError, match="Did you mean 'mdpo'"):
        make("mdop")
    with pytest.raises(ValueError, match="Did you mean 'beta'"):
        make("mkto", betta=1)
    with pytest.raises(ValueError, match="one of agent, all, got 'agents'"):
        MDPO(mask="agents")  # type: ignore[arg-type]


def test_the_package_gives_the_function_after_any_import_order() -> None:
    from polyturn.algorithms.training.loop import train

    assert polyturn.algorithms.train is train
    with pytest.raises(AttributeError, match="trian"):
        _ = polyturn.algorithms.trian


def _for(method: methods.Method, seed: int) -> Example:
    return labelled(seed) if isinstance(method, MKTO) else pair(seed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MDPO(beta=-0.1), r"MDPO\.beta: expected a number above 0, got -0\.1"),
        (lambda: MDPO(beta=math.nan), r"MDPO\.beta: .* got nan"),
        (lambda: MDPO(nll_weight=-1.0), r"MDPO\.nll_weight: expected 0 or more"),
        (lambda: MKTO(beta=0.0), r"MKTO\.beta: expected a number above 0"),
        (lambda: MKTO(undesirable_weight=-1.0), r"MKTO\.undesirable_weight"),
        (lambda: GPO(beta=-1.0), r"GPO\.beta"),
        (
            lambda: IPO(pairs_per_group=0),
            r"IPO\.pairs_per_group: expected a whole number of at least 1, or None, got 0",
        ),
        (lambda: GRPO(clip=-0.2), r"GRPO\.clip"),
        (lambda: GRPO(kl=-1.0), r"GRPO\.kl"),
        (lambda: PPO(lam=1.5), r"PPO\.lam: expected a number in \[0, 1\], got 1\.5"),
        (lambda: MTPO(clip=0.0), r"MTPO\.clip"),
        (lambda: MDPO(beta="much"), r"MDPO\.beta: .* got 'much'"),  # type: ignore[arg-type]
        (lambda: SFT(turns="lst"), r"SFT\.turns: .*got 'lst'.*Did you mean 'last'"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_would_learn_the_opposite_or_nothing_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
