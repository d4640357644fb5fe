"""Expected gradients of the losses against the gradient of the objective they stand for, by summing over all answers.

A policy over three tokens and three positions has 27 answers: every expectation is an exact sum in float64, so these
tests know no sampling noise, and a wrong sign, factor or token weight cannot hide.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from polyturn.agents.transformer.token_logps import full_kl
from polyturn.algorithms import losses
from polyturn.algorithms.estimators import gae, log_ratio_to_go, sequence_logratio, turn_sums
from polyturn.algorithms.exact.closed_forms import dro_optimum
from polyturn.algorithms.exact.nash import regularised_nash

VOCABULARY, LENGTH = 3, 3
ANSWERS = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))
TURN = torch.zeros_like(ANSWERS)


def table(seed: int) -> Tensor:
    """Logits of a policy: one row for each of the 1 + 3 + 9 prefixes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1 + 3 + 9, VOCABULARY, generator=generator, dtype=torch.float64)


def prefix_rows() -> Tensor:
    """`[27, 3]`: the table's row that predicts each token of each answer."""
    first = torch.zeros(len(ANSWERS), dtype=torch.long)
    second = 1 + ANSWERS[:, 0]
    third = 4 + 3 * ANSWERS[:, 0] + ANSWERS[:, 1]
    return torch.stack([first, second, third], 1)


def answer_logps(logits: Tensor) -> Tensor:
    """`[27, 3]` log-probability of each token of each answer."""
    logps = torch.log_softmax(logits, -1)
    return logps[prefix_rows(), ANSWERS]


def grad(value: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(value, at, retain_graph=True)[0]


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


@pytest.fixture(params=[0, 1, 2])
def world(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Tensor]:
    """Policy logits, reference logits, and a preference matrix over the 27 answers that follows no order."""
    seed = 10 * request.param
    noise = torch.randn(27, 27, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return table(seed + 1).requires_grad_(), table(seed + 2), torch.sigmoid(noise - noise.T)


def test_nash_md_is_the_gradient_of_the_regularised_preference(world: tuple[Tensor, Tensor, Tensor]) -> None:
    """E_pi[loss] has the gradient of -(P(pi beats mixture) - tau KL(pi || ref)), per token or per answer."""
    policy, reference, preference = world
    tau, beta = 0.3, 0.25
    logps, ref = answer_logps(policy), answer_logps(reference)
    # the per-token geometric mixture, as it is sampled
    mixture = torch.log_softmax(
        (1 - beta) * torch.log_softmax(policy, -1) + beta * torch.log_softmax(reference, -1), -1
    )
    opponent = answer_logps(mixture.detach()).sum(1).exp()
    wins = preference @ opponent
    pi = logps.sum(1).exp()
    objective = pi @ wins - tau * (pi * (logps - ref).sum(1)).sum()
    truth = grad(-objective, policy)

    weight = pi.detach()
    togo = log_ratio_to_go(logps, ref, TURN).detach()
    per_token = (weight[:, None] * losses.nash_md(logps, wins[:, None], togo, tau=tau)).sum()
    torch.testing.assert_close(grad(per_token, policy), truth, rtol=1e-10, atol=1e-12)
    whole = sequence_logratio(logps, ref, TURN).detach()
    per_answer = (weight * losses.nash_md(logps.sum(1), wins, whole, tau=tau)).sum()
    torch.testing.assert_close(grad(per_answer, policy), truth, rtol=1e-10, atol=1e-12)


def test_a_tokens_own_log_ratio_is_not_the_kl_gradient(world: tuple[Tensor, Tensor, Tensor]) -> None:
    """The trap: weighing each token by its own log-ratio points near the gradient of the KL, and is not it."""
    policy, reference, _ = world
    logps, ref = answer_logps(policy), answer_logps(reference)
    pi = logps.sum(1).exp()
    truth = grad((pi * (logps - ref).sum(1)).sum(), policy)
    weight = pi.detach()[:, None]
    exact = grad(-(weight * losses.policy_gradient(logps, log_ratio_to_go(logps, ref, TURN))).sum(), policy)
    trap = grad(-(weight * losses.policy_gradient(logps, logps - ref)).sum(), policy)
    torch.testing.assert_close(exact, truth, rtol=1e-10, atol=1e-12)
    assert (trap - truth).norm() > 0.05 * truth.norm()
    assert 0.9 < cosine(trap, truth) < 0.999  # close enough to pass a careless look


def test_differentiating_the_log_ratio_is_no_kl_penalty(world: tuple[Tensor, Tensor, Tensor]) -> None:
    """E_pi[grad log pi] = 0: adding beta * log-ratio to an on-policy loss adds nothing on average."""
    policy, reference, _ = world
    logps, ref = answer_logps(policy), answer_logps(reference)
    penalty = (logps.sum(1).exp().detach() * sequence_logratio(logps, ref, TURN)).sum()
    assert grad(penalty, policy).abs().max() < 1e-12


def test_ipo_md_and_nash_md(world: tuple[Tensor, Tensor, Tensor]) -> None:
    """E over both from the mixture of IPO's gradient is -(4/tau) E_{y ~ mixture}[grad log pi(y) A(y)].

    A(y) = P(y beats mixture) - 1/2 - tau (g(y) - E_mixture g): twice from the square, twice because both members of the
    pair carry a gradient. Nash-MD has the same with y from the policy; where the mixture is the policy (beta = 0) the
    constants drop out and the two agree up to the factor 4/tau.
    """
    policy, reference, preference = world
    tau = 0.3
    logps, ref = answer_logps(policy), answer_logps(reference)
    g = sequence_logratio(logps, ref, TURN)
    margin = g[:, None] - g[None, :]
    for beta in (0.25, 0.0):
        logits = (1 - beta) * torch.log_softmax(policy, -1) + beta * torch.log_softmax(reference, -1)
        mixture = answer_logps(logits.detach()).sum(1).exp()
        pairs = mixture[:, None] * mixture[None, :]
        ipo_md = grad((pairs * losses.ipo(margin, tau=tau, probability=preference)).sum(), policy)
        fixed = g.detach()
        advantage = preference @ mixture - 0.5 - tau * (fixed - mixture @ fixed)
        weighted = grad((mixture * losses.policy_gradient(logps.sum(1), advantage)).sum(), policy)
        torch.testing.assert_close(ipo_md, 4 / tau * weighted, rtol=1e-9, atol=1e-11)
        if beta == 0.0:
            pi = mixture
            nash_md = grad((pi * losses.nash_md(logps.sum(1), preference @ pi, fixed, tau=tau)).sum(), policy)
            torch.testing.assert_close(ipo_md, 4 / tau * nash_md, rtol=1e-9, atol=1e-11)


def test_online_ipo_rests_at_the_regularised_nash(world: tuple[Tensor, Tensor, Tensor]) -> None:
    """With fresh pairs from the policy IPO's expected gradient vanishes at the regularised Nash, DPO's does not."""
    _, reference, preference = world
    tau = 0.3
    ref = answer_logps(reference).sum(1)
    nash = torch.from_numpy(regularised_nash(preference.numpy(), ref.exp().numpy(), tau=tau))
    logits = nash.log().requires_grad_()

    def online(loss: str) -> Tensor:
        g = torch.log_softmax(logits, 0) - ref
        margin = g[:, None] - g[None, :]
        pi = torch.softmax(logits, 0).detach()
        if loss == "ipo":
            value = losses.ipo(margin, tau=tau, probability=preference)
        else:
            value = losses.gpo(margin, beta=tau, probability=preference)
        return grad((pi[:, None] * pi[None, :] * value).sum(), logits)

    assert online("ipo").abs().max() < 1e-10
    assert online("dpo").abs().max() > 1e-5


def test_near_the_reference_the_family_agrees() -> None:
    """At h = 0 all members have the same gradient up to their slope f'(0) beta: they differ in second order only."""
    generator = torch.Generator().manual_seed(0)
    margin = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    probability = torch.rand(5, generator=generator, dtype=torch.float64)
    slopes = {
        losses.logistic: 0.5,
        losses.hinge: 1.0,
        losses.squared: 2.0,
        losses.exponential: 1.0,
        losses.truncated_quadratic: 2.0,
        losses.savage: 0.25,
    }
    for f, slope in slopes.items():
        own = grad(losses.gpo(margin, beta=0.7, f=f, probability=probability).sum(), margin)
        torch.testing.assert_close(own, -0.7 * slope * (2 * probability - 1).detach())


def test_squared_margin_is_four_times_the_kl_on_the_policys_own_pairs() -> None:
    """At pi = behaviour, grad E[h^2] = 4 grad KL(pi || ref) (arXiv 2402.05749); with pairs from elsewhere it is not."""
    generator = torch.Generator().manual_seed(0)
    policy, reference, other = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    policy.requires_grad_()
    g = torch.log_softmax(policy, 0) - torch.log_softmax(reference, 0)
    square = (g[:, None] - g[None, :]).square()
    four_kl = 4 * grad(full_kl(policy, reference), policy)
    for behaviour, same in ((policy, True), (other, False)):
        p = torch.softmax(behaviour, 0).detach()
        own = grad((p[:, None] * p[None, :] * square).sum(), policy)
        assert torch.allclose(own, four_kl, atol=1e-10) is same


def test_pmpo_reference_kl_by_tokens(world: tuple[Tensor, Tensor, Tensor]) -> None:
    """KL(ref || pi) of whole answers = E over the reference's own answers of the per-token full-vocabulary KL."""
    policy, reference, _ = world
    logps, ref = answer_logps(policy), answer_logps(reference)
    weight = ref.sum(1).exp()
    whole = (weight * (ref - logps).sum(1)).sum()
    per_row = full_kl(reference, policy)[prefix_rows()].sum(1)
    by_tokens = (weight * per_row).sum()
    torch.testing.assert_close(by_tokens, whole)
    accepted = torch.arange(27) % 2 == 0
    loss = losses.pmpo(logps.sum(1), accepted, per_row, alpha=0.7, beta=2.0)
    sign = torch.where(accepted, -0.7, 0.3).double()
    truth = grad((weight * sign * logps.sum(1)).sum() + 2.0 * whole, policy)
    torch.testing.assert_close(grad((weight * loss).sum(), policy), truth)


def test_dro_holds_for_every_prefix(world: tuple[Tensor, Tensor, Tensor]) -> None:
    """At pi* and V*(prefix) = tau log E_ref[exp(r / tau) | prefix] both losses vanish at every token position."""
    _, reference, noise = world
    tau, reward, ref = 0.6, noise[0], answer_logps(reference)
    weight = ref.sum(1).exp()
    best, value = dro_optimum(weight.numpy(), reward.numpy(), tau=tau)
    joint = torch.from_numpy(best)

    def conditional(mass: Tensor) -> Tensor:
        """`[27, 3]` log-probability of each token given its prefix, from the mass of whole answers."""
        cube = mass.reshape(3, 3, 3)
        first = cube.sum((1, 2))
        second = cube.sum(2)
        a, b, c = ANSWERS.T
        return torch.stack([first[a], second[a, b] / first[a], cube[a, b, c] / second[a, b]], 1).log()

    tilted = (weight * torch.exp(reward / tau)).reshape(3, 3, 3)
    plain = weight.reshape(3, 3, 3)
    a, b, _ = ANSWERS.T
    values = tau * torch.stack(
        [
            torch.log(tilted.sum() / plain.sum()).expand(27),
            torch.log(tilted.sum((1, 2)) / plain.sum((1, 2)))[a],
            torch.log(tilted.sum(2) / plain.sum(2))[a, b],
        ],
        1,
    )
    assert values[0, 0].item() == pytest.approx(value)
    togo = log_ratio_to_go(conditional(joint), ref, TURN)
    for loss in losses.dro(reward[:, None].expand(27, 3), values, togo, tau=tau):
        assert loss.max() < 1e-20


def test_mtpo_gradient_with_chance_between_the_turns() -> None:
    """Two turns with a random reply between: turn log-probs times returns to go (KL inside) give the true gradient.

    Row tokens: answer 1, the environment's reply, answer 2. J = E[P(end beats opponent)] - alpha E[sum of KL].
    """
    generator = torch.Generator().manual_seed(5)
    first, second = (
        torch.randn(3, generator=generator, dtype=torch.float64).requires_grad_(),
        torch.randn(3, 2, 3, generator=generator, dtype=torch.float64).requires_grad_(),
    )
    ref_first, ref_second = torch.randn(3, generator=generator, dtype=torch.float64), torch.zeros(3, 2, 3).double()
    reply = torch.softmax(torch.randn(3, 2, generator=generator, dtype=torch.float64), -1)
    wins = torch.rand(3, 2, 3, generator=generator, dtype=torch.float64)
    alpha = 0.2

    p1, p2 = torch.softmax(first, -1), torch.softmax(second, -1)
    kl1, kl2 = full_kl(first, ref_first), full_kl(second, ref_second)
    visits = p1[:, None] * reply
    objective = (visits[..., None] * p2 * wins).sum() - alpha * (kl1 + (visits * kl2).sum())
    truth = torch.autograd.grad(-objective, (first, second))

    rows = list(itertools.product(range(3), range(2), range(3)))
    a, o, b = (torch.tensor(column) for column in zip(*rows, strict=True))
    logps = torch.stack([torch.log_softmax(first, -1)[a], reply.log()[a, o], torch.log_softmax(second, -1)[a, o, b]], 1)
    ref = torch.stack(
        [torch.log_softmax(ref_first, -1)[a], torch.zeros(18).double(), torch.log_softmax(ref_second, -1)[a, o, b]], 1
    )
    turn = torch.tensor([[0, -1, 1]]).expand(18, 3)
    weight = logps.sum(1).exp().detach()
    rewards = -alpha * turn_sums(logps.detach() - ref, turn)
    rewards[:, 1] += wins[a, o, b]
    mask = torch.ones(18, 2, dtype=torch.bool)
    advantages, _ = gae(rewards, torch.zeros(18, 2).double(), mask, lam=1.0)
    loss = losses.policy_gradient(turn_sums(logps, turn), advantages)
    own = torch.autograd.grad((weight[:, None] * loss).sum(), (first, second))
    for mine, exact in zip(own, truth, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-10, atol=1e-12)


def test_gradient_through_masked_observations_is_nil() -> None:
    """M-DPO's margin does not see what the environment wrote, so its gradient there is exactly 0."""
    generator = torch.Generator().manual_seed(0)
    logps = torch.randn(2, 6, generator=generator).requires_grad_()
    turn = torch.tensor([[-1, 0, -1, 1, 1, -1], [-1, 0, 0, -1, 1, -1]])
    g = sequence_logratio(logps, torch.zeros(2, 6), turn)
    own = grad(losses.gpo(g[0] - g[1], beta=0.1), logps)
    assert torch.equal(own != 0, turn >= 0)
    assert bool((own[0][turn[0] >= 0] < 0).all())  # the winner's tokens are raised
    assert bool((own[1][turn[1] >= 0] > 0).all())


def test_no_gradient_reaches_the_reference() -> None:
    """A reference that shares parameters with the policy (adapters, a live copy) must not be trained through g."""
    logps = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    turn = torch.zeros(2, 3, dtype=torch.long)
    for values in (sequence_logratio(logps, logps, turn), log_ratio_to_go(logps, logps, turn)[:, 0]):
        assert values.tolist() == [0.0, 0.0]
        assert torch.equal(grad(values.sum(), logps), torch.ones(2, 3))
