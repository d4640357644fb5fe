"""Online methods: expected gradients against enumerated objectives, fixed points, and identities between methods."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polyturn.algorithms import GRPO, IPO, PPO, REINFORCE, RLOO, Batch, Example, Loss, NashPG, collate
from polyturn.algorithms.exact.nash import regularised_nash
from polyturn.envs.preference import Preference, by_return
from polyturn.envs.trajectory import Group, Trajectory, Turn

torch.set_num_threads(1)
ANSWERS = list(itertools.product(range(3), repeat=2))


def answer(
    ids: tuple[int, ...], *, turns: int = 1, reward: float = 0.0, agent: str = "", version: str = ""
) -> Trajectory:
    """One turn of all tokens, or one turn a token."""
    pieces = [ids] if turns == 1 else [(token,) for token in ids]
    said = tuple(
        Turn("o", "a", reward if n == len(pieces) - 1 else 0.0, np.array([9], np.int32), np.array(piece, np.int32),
             np.zeros(len(piece), np.float32))
        for n, piece in enumerate(pieces)
    )  # fmt: skip
    return Trajectory("Toy-v0", 0, said, agent=agent, policy_version=version, terminated=True)


def table(seed: int) -> Tensor:
    """Logits over two tokens of three: the first token's row, and one after each first token."""
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logps(logits: Tensor, *, turns: int = 1) -> Tensor:
    """`[9, T]` log-probability of every answer's tokens, 0 at contexts."""
    ids = torch.tensor(ANSWERS)
    scores = logits.log_softmax(-1)
    each = scores[torch.stack([torch.zeros(9, dtype=torch.long), 1 + ids[:, 0]], 1), ids]
    zero = torch.zeros(9, 1, dtype=logits.dtype)
    return torch.cat([zero, each] if turns == 1 else [zero, each[:, :1], zero, each[:, 1:]], 1)


@functools.cache
def blank(turns: int) -> Batch:
    return collate([Example(tuple(answer(ids, turns=turns) for ids in ANSWERS))])


def every(scores: Tensor, *, turns: int = 1) -> Batch:
    """All nine answers with these scores."""
    return replace(blank(turns), scores=scores.float())


REWARD = torch.tensor(np.random.default_rng(0).normal(size=9).astype(np.float32)).double()
NOISE = torch.randn(9, 9, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
WINS = torch.sigmoid(2 * (NOISE - NOISE.T)).float().double()


def gradient(value: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(value, at, retain_graph=True)[0]


def close(first: Tensor, second: Tensor) -> None:
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-7)  # scores are float32 in a batch
    assert second.abs().max() > 1e-2


def objective(policy: Tensor, reference: Tensor, value: Tensor, weight: float) -> Tensor:
    """E_pi[value] - weight KL(pi || pi_ref), by summing over the nine answers."""
    total, anchor = logps(policy).sum(1), logps(reference).sum(1)
    return (total.exp() * value).sum() - weight * (total.exp() * (total - anchor)).sum()


def test_reinforce_is_the_gradient_of_score_minus_kl() -> None:
    policy, reference = table(0).requires_grad_(), table(1)
    loss = REINFORCE(kl=0.3).loss(logps(policy), logps(reference), every(REWARD))
    mine = gradient((loss.values * logps(policy).sum(1).exp().detach()).sum(), policy)
    close(mine, -gradient(objective(policy, reference, REWARD, 0.3), policy))
    free = REINFORCE().loss(logps(policy), None, every(REWARD))
    close(
        gradient((free.values * logps(policy).sum(1).exp().detach()).sum(), policy),
        -gradient(objective(policy, reference, REWARD, 0.0), policy),
    )


def groups_of_two() -> tuple[Batch, Tensor]:
    """All 81 groups of two answers, and `[162]` which answer each row is."""
    index = list(itertools.product(range(9), repeat=2))
    examples = [
        Example(tuple(answer(ANSWERS[i]) for i in pair), scores=REWARD[list(pair)].numpy().astype(np.float32))
        for pair in index
    ]
    return collate(examples), torch.tensor(index).flatten()


@pytest.mark.parametrize(
    ("method", "share"),
    [
        (RLOO(), 1.0),
        (REINFORCE(baseline="group"), 0.5),
        (GRPO(scale=False, length_norm=False), 0.5),
        (GRPO(scale=False), 0.25),
    ],
    ids=["leave one out", "group mean", "grpo", "grpo over 2 tokens"],
)
def test_group_baselines_over_all_groups(method: Any, share: float) -> None:
    """Leave-one-out is unbiased; the mean of a group of 2, which holds the row itself, halves the gradient."""
    policy = table(0).requires_grad_()
    batch, index = groups_of_two()
    each = logps(policy)[index]
    batch = replace(batch, behaviour_logps=each.detach())
    probability = each.detach().sum(1).exp().reshape(81, 2).prod(1)
    loss = method.loss(each, None, batch)
    mine = gradient((loss.values.reshape(81, 2).mean(1) * probability).sum(), policy)
    close(mine, -share * gradient(objective(policy, table(1), REWARD, 0.0), policy))


def test_score_clip() -> None:
    loss = REINFORCE(score_clip=1.0).loss(torch.zeros(9, 3), None, every(torch.arange(9.0) - 4))
    assert loss.metrics["advantage"].tolist() == [-1, -1, -1, -1, 0, 1, 1, 1, 1]


def test_grpo_by_hand() -> None:
    """Scores 1 and 0: advantages 1 and -1. Ratios e^.5 and e^-.5 leave 1 +- .2 on their good sides: no gradient."""
    batch = collate([Example((answer((0,)), answer((1,))), scores=np.array([1.0, 0.0], np.float32))])
    moved = torch.tensor([[0.0, 0.5], [0.0, -0.5]], requires_grad=True)
    loss = GRPO().loss(moved, None, batch)
    assert loss.values.tolist() == pytest.approx([-1.2, 0.8], abs=1e-5)
    assert gradient(loss.values.sum(), moved).abs().max() == 0
    assert loss.metrics["clipped"].tolist() == [1, 1]
    behind = torch.tensor([[0.0, -0.5], [0.0, 0.5]], requires_grad=True)
    loss = GRPO(kl=0.5).loss(behind, torch.zeros(2, 2), batch)
    # k3 = e^-d - 1 + d at d = log pi - log pi_ref
    expected = [-math.exp(-0.5) + 0.5 * (math.exp(0.5) - 1.5), math.exp(0.5) + 0.5 * (math.exp(-0.5) - 0.5)]
    assert loss.values.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("turns", [1, 2], ids=["over tokens", "over turns"])
@pytest.mark.parametrize("kl", [0.0, 0.4])
def test_ppo_starts_along_the_gradient_of_score_minus_kl(turns: int, kl: float) -> None:
    """With lambda 1 any values are a baseline: the expected gradient is exact for any values."""
    policy, reference = table(0).requires_grad_(), table(1)
    each, anchor = logps(policy, turns=turns), logps(reference, turns=turns)
    batch = every(REWARD, turns=turns)
    first = torch.tensor(ANSWERS)[:, 0]
    prefix = torch.tensor([0.3, -1.0, 0.5, 2.0], dtype=torch.float64)
    values = torch.zeros(batch.ids.shape, dtype=torch.float64)
    values[:, 1] = prefix[0]
    values[:, 2 if turns == 1 else 3] = prefix[1:][first]
    batch = replace(batch, behaviour_logps=each.detach(), outputs={"values": values})
    method = PPO(kl=kl, over="token" if turns == 1 else "turn", lam=1.0, whiten=False, value_weight=0.0)
    loss = method.loss(each, anchor, batch)
    assert loss.count is not None
    assert loss.count.tolist() == [2.0] * 9
    mine = gradient((loss.values * each.detach().sum(1).exp()).sum(), policy)
    close(mine, -gradient(objective(policy, reference, REWARD, kl), policy))


def test_ppo_values_go_to_what_follows() -> None:
    """Lambda 1: targets are the score at every token; (V - 3)^2 / 2 per token, so dV = V - 3."""
    batch = every(torch.full((9,), 3.0))
    values = torch.full(batch.ids.shape, 1.0, requires_grad=True)
    batch = replace(batch, outputs={"values": values})
    loss = PPO(lam=1.0, value_weight=2.0, policy_weight=0.0).loss(torch.zeros(9, 3), None, batch)
    assert loss.values.tolist() == pytest.approx([2.0 * (2.0 + 2.0)] * 9)
    assert gradient(loss.values.sum(), values)[0].tolist() == pytest.approx([0.0, -4.0, -4.0])


def test_ppo_whitens_over_the_step_and_not_over_the_micro_batch() -> None:
    """Shared moments 1 and 5 (deviation 2) make of an advantage 3 a 1: the surrogate is -1 at each of 2 tokens."""
    batch = every(torch.full((9,), 3.0))
    shared = {"advantage": torch.tensor(1.0), "advantage_squared": torch.tensor(5.0)}
    shared |= {"target": torch.tensor(3.0), "target_squared": torch.tensor(10.0)}
    batch = replace(batch, outputs={"values": torch.zeros(9, 3)}, statistics=shared)
    loss = PPO(lam=1.0, value_weight=0.0).loss(torch.zeros(9, 3), None, batch)
    assert loss.values.tolist() == pytest.approx([-2.0] * 9)
    assert PPO().needs.look_ahead
    assert not PPO(whiten=False).needs.look_ahead


def test_nash_pg_is_the_gradient_of_the_regularised_preference() -> None:
    """Against a fixed opponent: P(pi beats pi') - tau KL(pi || pi_ref)."""
    policy, reference = table(0).requires_grad_(), table(1)
    opponent = logps(table(2)).sum(1).exp()
    rate = WINS @ opponent
    loss = NashPG(tau=0.2).loss(logps(policy), logps(reference), every(rate))
    mine = gradient((loss.values * logps(policy).sum(1).exp().detach()).sum(), policy)
    close(mine, -gradient(objective(policy, reference, rate, 0.2), policy))


def online_ipo(policy: Tensor, reference: Tensor, tau: float) -> Tensor:
    """Expected online IPO loss: both answers from the policy as it is, every ordered pair with its probability."""
    pairs = torch.tensor(list(itertools.permutations(range(9), 2)))
    batch = replace(blank(1), pairs=pairs, probability=WINS[pairs[:, 0], pairs[:, 1]], weight=torch.ones(len(pairs)))
    mu = logps(policy).sum(1).exp().detach()
    loss = IPO(tau=tau).loss(logps(policy), logps(reference), batch)
    return (loss.values * mu[pairs[:, 0]] * mu[pairs[:, 1]]).sum()


def self_play(policy: Tensor, reference: Tensor, tau: float) -> Tensor:
    """Expected NashPG loss with the policy as its own opponent."""
    mu = logps(policy).sum(1).exp().detach()
    loss = NashPG(tau=tau).loss(logps(policy), logps(reference), every(WINS @ mu))
    return (loss.values * mu).sum()


def test_nash_pg_without_regularisation_is_the_gradient_of_the_win_rate() -> None:
    """tau = 0 is allowed and leaves -(P - 1/2) log pi; a negative tau is refused."""
    policy, reference = table(0).requires_grad_(), table(1)
    rate = WINS @ logps(table(2)).sum(1).exp()
    loss = NashPG(tau=0.0).loss(logps(policy), logps(reference), every(rate))
    mine = gradient((loss.values * logps(policy).sum(1).exp().detach()).sum(), policy)
    close(mine, -gradient(objective(policy, reference, rate, 0.0), policy))
    with pytest.raises(ValueError, match=r"NashPG\.tau: expected 0 or more, got -0.1"):
        NashPG(tau=-0.1)


def test_ipo_md_and_nash_md_pg_are_the_same_direction_without_mixing() -> None:
    """At beta = 0 both have the gradient E[grad log pi (tau g - P)], IPO on both orders 4 / tau times as long."""
    policy, reference, tau = table(0).requires_grad_(), table(1), 0.3
    ipo = gradient(online_ipo(policy, reference, tau), policy)
    close(ipo, (4 / tau) * gradient(self_play(policy, reference, tau), policy))


@pytest.mark.parametrize(("expected_loss", "lr"), [(online_ipo, 0.1), (self_play, 0.1)])
def test_online_ipo_and_self_play_end_in_the_regularised_nash_equilibrium(expected_loss: Any, lr: float) -> None:
    """A preference without an order over nine answers of two tokens; descent on fresh pairs, tau = 0.3."""
    reference, tau = table(1), 0.3
    policy = reference.clone().requires_grad_()
    optimizer = torch.optim.Adam([policy], lr=lr)
    steps = 500
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        expected_loss(policy, reference, tau).backward()
        optimizer.step()
    found = logps(policy.detach()).sum(1).exp().numpy()
    prior = logps(reference).sum(1).exp().numpy()
    np.testing.assert_allclose(found, regularised_nash(WINS.numpy(), prior / prior.sum(), tau=tau), atol=2e-3)
    assert np.abs(found - prior).max() > 0.05


def test_nash_pg_takes_the_policys_members_and_their_mean_win_rate() -> None:
    """Members 0 and 2 are the policy's, 1 and 3 another agent's: 0 beats them .9 and .5, 2 was asked once only."""
    nan = math.nan
    matrix = np.array([[nan, 0.9, 0.1, 0.5], [0.1, nan, nan, nan], [0.9, nan, nan, 0.2], [0.5, nan, 0.8, nan]])
    agent_id = ["policy", "mixture", "policy", "mixture"]
    group = Group(tuple(answer((0, n % 3), agent=name) for n, name in enumerate(agent_id)))
    example = NashPG().examples(group, Preference(matrix, "oracle"), np.random.default_rng(0))
    assert example is not None
    assert [row.agent for row in example.trajectories] == ["policy", "policy"]
    assert example.scores.tolist() == pytest.approx([0.7, 0.2])
    average = Group(tuple(answer((0, n), version=v) for n, v in enumerate(("now", "average"))))
    one = NashPG().examples(average, Preference(np.array([[0.5, 0.8], [0.2, 0.5]]), "oracle"), np.random.default_rng(0))
    assert one is not None
    assert one.scores.tolist() == pytest.approx([0.8])


@pytest.mark.parametrize("method", [REINFORCE(), RLOO(), GRPO(), PPO(), PPO(reward="turns")], ids=repr)
def test_policy_gradients_do_not_learn_from_an_opponents_samples(method: Any) -> None:
    """-A log pi is the gradient on only the policy's own samples; the others' part of it would be anything."""
    agent_id = ["policy", "mixture", "policy", "mixture"]
    group = Group(tuple(answer((0, n % 3), agent=name, reward=float(n)) for n, name in enumerate(agent_id)))
    example = method.examples(group, by_return(group), np.random.default_rng(0))
    assert [row.agent for row in example.trajectories] == ["policy", "policy"]
    assert example.scores.tolist() == [0.0, 2.0]


def test_nash_pg_without_opponents_is_self_play() -> None:
    group = Group(tuple(answer((0, n)) for n in range(3)))
    matrix = np.array([[0.5, 1.0, 0.6], [0.0, 0.5, 0.3], [0.4, 0.7, 0.5]])
    example = NashPG().examples(group, Preference(matrix, "oracle"), np.random.default_rng(0))
    assert example is not None
    assert example.scores.tolist() == pytest.approx([0.8, 0.15, 0.55])


def test_groups_that_teach_nothing() -> None:
    rng = np.random.default_rng(0)
    alone = Group((answer((0, 1), reward=1.0),))
    equal = Group((answer((0, 1), reward=1.0), answer((0, 2), reward=1.0)))
    assert RLOO().examples(alone, by_return(alone), rng) is None
    assert REINFORCE().examples(alone, by_return(alone), rng) is not None
    assert GRPO().examples(equal, by_return(equal), rng) is None
    assert NashPG().examples(alone, by_return(alone), rng) is None
    judged = RLOO().examples(equal, Preference(np.array([[0.5, 0.7], [0.3, 0.5]]), "judge"), rng)
    assert judged is not None
    assert judged.scores.tolist() == pytest.approx([0.7, 0.3])


METHODS: list[Any] = [REINFORCE(kl=0.1), RLOO(), GRPO(kl=0.1), PPO(kl=0.1), PPO(over="turn"), NashPG()]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name}")
def test_padding_order_and_environment_tokens_change_nothing(method: Any) -> None:
    """Two groups of two, uneven turns; rows turned round, columns of nan more, nan outside the agent's tokens."""
    groups = [
        Group((answer((0, 1, 2), turns=2, reward=1.0), answer((2,), reward=0.0))),
        Group((answer((1, 1), reward=0.5), answer((1, 2), turns=2, reward=2.0))),
    ]
    rng = np.random.default_rng(0)
    batch = collate([method.examples(group, by_return(group), rng) for group in groups])
    generator = torch.Generator().manual_seed(0)
    shape = batch.ids.shape
    policy, reference, behaviour, values = (
        -torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(4)
    )
    batch = replace(batch, behaviour_logps=behaviour, outputs={"values": values})

    def mean(loss: Loss) -> Tensor:
        return loss.values.sum() / (len(loss.values) if loss.count is None else loss.count.sum())

    expected = mean(method.loss(policy, reference, batch)).item()
    order = torch.tensor([3, 2, 1, 0])
    turned = batch.select(order)
    outside = torch.cat([turned.turn_ids, torch.full((4, 3), -1, dtype=torch.int16)], 1) < 0

    def wider(x: Tensor, fill: float) -> Tensor:
        return torch.cat([x, torch.full((4, 3), fill, dtype=x.dtype)], 1)

    def noisy(x: Tensor) -> Tensor:
        return wider(x, math.nan).masked_fill(outside, math.nan)

    padded = replace(
        turned,
        ids=wider(turned.ids, 7),
        mask=wider(turned.mask, 0),
        turn_ids=wider(turned.turn_ids, -1),
        behaviour_logps=noisy(turned.behaviour_logps),
        outputs={"values": noisy(turned.outputs["values"])},
    )
    scored = noisy(policy[order]).requires_grad_()
    found = mean(method.loss(scored, noisy(reference[order]), padded))
    assert found.item() == pytest.approx(expected, rel=1e-6)
    moved = gradient(found, scored)
    assert (moved[outside] == 0).all()
    assert (moved != 0).any()


def test_text_that_was_not_sampled_cannot_be_clipped() -> None:
    row = replace(answer((0,)), turns=(replace(answer((0,)).turns[0], logps=np.zeros(0, np.float32)),))
    batch = collate([Example((row, answer((1,))), scores=np.array([1.0, 0.0], np.float32))])
    with pytest.raises(ValueError, match="as sampled"):
        GRPO().loss(torch.zeros(2, 2), None, batch)
    with pytest.raises(ValueError, match="ActorCritic"):
        PPO().loss(torch.zeros(2, 2), None, batch)
    with pytest.raises(ValueError, match="Did you mean 'leave_one_out'"):
        REINFORCE(baseline="leave_one")  # type: ignore[arg-type]
