"""Offline methods: objectives by enumeration, known optima by descent, what must change nothing, and learning."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flat_settings import flat
from torch import Tensor

from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms import (
    DROV,
    GPO,
    IPO,
    MDPO,
    PMPO,
    RWR,
    ActorCritic,
    Batch,
    BestOfN,
    Example,
    Loss,
    collate,
    minibatches,
    standardised,
    train,
)
from polyturn.algorithms.exact import closed_forms as exact
from polyturn.algorithms.methods.pairwise import MARGIN_FUNCTIONS
from polyturn.algorithms.training.options import TrainOptions
from polyturn.envs.preference import Preference, by_return, by_score
from polyturn.envs.trajectory import Group, Trajectory, Turn

torch.set_num_threads(1)
ANSWERS = list(itertools.product(range(3), repeat=2))


def answer(ids: tuple[int, ...], *, seed: int = 0, reward: float = 0.0) -> Trajectory:
    turn = Turn("o", "a", reward, np.array([9], np.int32), np.array(ids, np.int32), np.zeros(len(ids), np.float32))
    return Trajectory("Toy-v0", seed, (turn,), terminated=True)


EVERY = tuple(answer(ids) for ids in ANSWERS)
ALL_PAIRS = np.array(list(itertools.permutations(range(9), 2)))


def table(seed: int) -> Tensor:
    """Logits of a policy over two tokens of three: the first token's row, and one row after each first token."""
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logps(logits: Tensor) -> Tensor:
    """`[9, 3]` as a scorer gives them for `collate([Example(EVERY)])`: context 0, then two tokens."""
    ids = torch.tensor(ANSWERS)
    scores = logits.log_softmax(-1)
    rows = torch.stack([torch.zeros(9, dtype=torch.long), 1 + ids[:, 0]], 1)
    return torch.cat([torch.zeros(9, 1, dtype=logits.dtype), scores[rows, ids]], 1)


def full_kl(policy: Tensor, reference: Tensor) -> Tensor:
    """`[9, 3]` KL(reference || policy) of the prediction of each token of each answer."""
    p, q = policy.log_softmax(-1), reference.log_softmax(-1)
    row = (q.exp() * (q - p)).sum(-1)
    first = torch.tensor(ANSWERS)[:, 0]
    return torch.stack([torch.zeros(9, dtype=row.dtype), row[0].expand(9), row[1 + first]], 1)


def weighted(loss: Loss, weights: Tensor) -> Tensor:
    """The expected value of a loss whose rows (or pairs) occur with these probabilities."""
    return (loss.values * weights).sum() / weights.sum()


def gradient(value: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(value, at)[0]


def descend(loss: Any, start: Tensor, *, steps: int = 400, lr: float = 0.1) -> Tensor:
    logits = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=lr)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        loss(logits).backward()
        optimizer.step()
    return logits.detach()


# --- pairs ---


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        ("logistic", math.log(1 + math.exp(-1))),
        ("hinge", 0.0),
        ("squared", 0.0),
        ("exponential", math.exp(-1)),
        ("truncated_quadratic", 0.0),
        ("savage", (1 / (1 + math.e)) ** 2),
    ],
)
def test_gpo_by_name(f: str, expected: float) -> None:
    """h = (2 + 3) - 0 = 5 nats at beta 0.2 is x = 1; smoothing 0.25 adds a quarter of f(-1) and takes one of f(1)."""
    batch = collate([Example((answer((0, 1)), answer((1, 1))), np.array([[0, 1]]))])
    policy = torch.tensor([[0.0, -1.0, -1.0], [0.0, -2.0, -2.0]])
    reference = torch.tensor([[0.0, -3.0, -4.0], [0.0, -2.0, -2.0]])
    loss = GPO(f=f, beta=0.2).loss(policy, reference, batch)
    assert loss.values.item() == pytest.approx(expected, abs=1e-6)
    assert loss.metrics["margin"].item() == pytest.approx(5.0)
    wrong = MARGIN_FUNCTIONS[f](torch.tensor(-1.0)).item()
    smooth = GPO(f=f, beta=0.2, label_smoothing=0.25).loss(policy, reference, batch)
    assert smooth.values.item() == pytest.approx(0.75 * expected + 0.25 * wrong, abs=1e-6)


def test_gpo_with_logistic_is_mdpo() -> None:
    batch = collate([Example(EVERY, ALL_PAIRS)])
    ours, theirs = (method.loss(logps(table(0)), logps(table(1)), batch) for method in (GPO(), MDPO()))
    torch.testing.assert_close(ours.values, theirs.values)


def test_ipo_gradient_is_that_of_the_objective() -> None:
    """Both orders of every pair, weighed by mu(y) mu(y') and p: the paper's expectation, with nothing sampled."""
    policy, reference = table(0).requires_grad_(), table(1)
    mu = logps(table(2)).sum(1).exp()
    noise = torch.randn(9, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    wins = torch.sigmoid(noise - noise.T)
    first, second = torch.from_numpy(ALL_PAIRS).unbind(1)
    batch = collate([Example(EVERY, ALL_PAIRS)])
    batch = replace(batch, probability=wins[first, second])
    mine = gradient(weighted(IPO(tau=0.3).loss(logps(policy), logps(reference), batch), mu[first] * mu[second]), policy)

    g = (logps(policy) - logps(reference)).sum(1)
    margin = g[:, None] - g[None]
    weight = mu[:, None] * mu[None] * (1 - torch.eye(9, dtype=torch.float64))
    value = wins * (margin - 1 / 0.6) ** 2 + (1 - wins) * (margin + 1 / 0.6) ** 2
    theirs = gradient((weight * value).sum() / weight.sum(), policy)
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)  # probabilities pass through float32
    assert mine.abs().max() > 0.1


def test_ipo_two_answers() -> None:
    """One certain pair: the margin ends at 1 / (2 tau), so pi(winner) = sigmoid(1 / (2 tau)) from a uniform start."""
    rows = (answer((0,)), answer((1,)))
    batch = collate([Example(rows, np.array([[0, 1]]))])

    def loss(logits: Tensor) -> Tensor:
        scores = torch.cat([torch.zeros(2, 1, dtype=torch.float64), logits.log_softmax(0)[:, None]], 1)
        return IPO(tau=0.4).loss(scores, torch.log(torch.full((2, 2), 0.5, dtype=torch.float64)), batch).values.mean()

    found = descend(loss, torch.zeros(2, dtype=torch.float64)).softmax(0)
    assert found[0].item() == pytest.approx(1 / (1 + math.exp(-1 / 0.8)), abs=1e-3)


def test_ipo_average_divides_each_row_by_its_own_tokens() -> None:
    """g = 6 over 3 tokens and 4 over 1 token: sums differ by 2, averages by 2 - 4 = -2."""
    batch = collate([Example((answer((1, 1, 1)), answer((2,))), np.array([[0, 1]]))])
    policy = torch.tensor([[0.0, 2.0, 2.0, 2.0], [0.0, 4.0, 0.0, 0.0]])
    methods = IPO(), IPO(average=True)
    margins = [method.loss(policy, torch.zeros(2, 4), batch).metrics["margin"].item() for method in methods]
    assert margins == pytest.approx([2.0, -2.0])


def test_soft_labels_keep_ties_and_hard_ones_drop_them() -> None:
    group = Group((answer((0, 0)), answer((0, 1)), answer((0, 2))))
    matrix = np.array([[0.5, 0.9, 0.5], [0.1, 0.5, np.nan], [0.5, np.nan, 0.5]])
    preference = Preference(matrix, "judge")
    rng = np.random.default_rng(0)
    soft, hard = (method.examples(group, preference, rng) for method in (IPO(), GPO(pairs_per_group=None)))
    assert soft is not None
    assert soft.pairs.tolist() == [[0, 1], [0, 2]]
    assert soft.probability.tolist() == pytest.approx([0.9, 0.5])
    assert hard is not None
    assert hard.pairs.tolist() == [[0, 1]]
    assert hard.probability.tolist() == [1.0]
    nobody = Preference(np.full((3, 3), np.nan), "judge")
    assert IPO().examples(group, nobody, rng) is None


# --- PMPO ---


def test_pmpo_gradient_is_that_of_the_objective() -> None:
    """Accepted and rejected in unequal numbers, each a mean over its own side, and the KL of whole answers.

    Rows weighed by the reference make the per-token KL of their prefixes the KL between the two distributions of
    answers, which is enumerated here.
    """
    policy, reference = table(0).requires_grad_(), table(1)
    label = np.array([1, 0, 0, np.nan, 0, 1, 0, np.nan, 0], np.float32)
    method = PMPO(alpha=0.7, beta=1.3)
    batch = replace(collate([Example(EVERY, desirable=label)]), outputs={"kl": full_kl(policy, reference)})
    prior = logps(reference).sum(1).exp()
    accepted, rejected = torch.from_numpy(label == 1), torch.from_numpy(label == 0)
    # The three expectations are taken apart: labelled rows count evenly, the KL by the reference.
    even = method.loss(logps(policy), logps(reference), replace(batch, outputs={"kl": torch.zeros(9, 3)})).values.mean()
    alone = replace(batch, desirable=torch.full((9,), math.nan))
    mine = even + weighted(method.loss(logps(policy), logps(reference), alone), prior)
    total = logps(policy).sum(1)
    kl = (prior * (prior.log() - total)).sum()
    theirs = -0.7 * total[accepted].mean() + 0.3 * total[rejected].mean() + 1.3 * kl
    torch.testing.assert_close(gradient(mine, policy), gradient(theirs, policy), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.5), (0.5, 1.0), (0.0, 2.0)])
def test_pmpo_reaches_its_closed_form(alpha: float, beta: float) -> None:
    """One token of three, two accepted rows of answer 0 and one of answer 1, rejected rows of 2 and 1."""
    rows = tuple(answer((arm,)) for arm in (0, 0, 1, 2, 1))
    label = np.array([1, 1, 1, 0, 0], np.float32)
    reference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    batch = collate([Example(rows, desirable=label)])
    arms = batch.ids[:, 1]

    def loss(logits: Tensor) -> Tensor:
        scores = logits.log_softmax(0)
        kl = (reference * (reference.log() - scores)).sum()
        outputs = {"kl": torch.stack([torch.zeros(5, dtype=torch.float64), kl.expand(5)], 1)}
        values = torch.stack([torch.zeros(5, dtype=torch.float64), scores[arms]], 1)
        return PMPO(alpha=alpha, beta=beta).loss(values, None, replace(batch, outputs=outputs)).values.mean()

    expected = exact.pmpo_optimum([2 / 3, 1 / 3, 0], [0, 0.5, 0.5], reference.numpy(), alpha=alpha, beta=beta)
    found = descend(loss, torch.zeros(3, dtype=torch.float64)).softmax(0)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_pmpo_labels() -> None:
    """Of four different samples the best two and the worst two; ties neither; with `above` by the score's sign."""
    group = Group(tuple(answer((0, n), reward=r) for n, r in ((0, 3.0), (1, 1.0), (2, -1.0), (1, -2.0))))
    rng = np.random.default_rng(0)
    preference = by_return(group)
    first, second = (method.examples(group, preference, rng) for method in (PMPO(), PMPO(above=1.0)))
    assert first is not None
    assert first.desirable.tolist() == [1, 1, 0, 0]
    assert second is not None
    assert second.desirable.tolist() == [1, 0, 0, 0]
    middle = by_score(np.array([1.0, 0.0, -1.0, np.nan]))
    third = PMPO().examples(group, middle, rng)
    assert third is not None
    assert third.desirable.tolist()[::2] == [1, 0]
    assert math.isnan(third.desirable[1])
    assert PMPO().examples(group, by_score(np.ones(4)), rng) is None
    with pytest.raises(ValueError, match="scores to compare with `above`"):
        PMPO(above=0.0).examples(group, Preference(preference.matrix, "judge"), rng)


# --- DRO-V, RWR, best of N ---


def test_dro_v_reaches_its_closed_form_in_policy_and_in_the_value_of_every_prefix() -> None:
    """Answers drawn from a third policy; V after the first token is tau log E_ref[exp(r / tau) | first token]."""
    tau, reward = 0.7, np.linspace(-1.0, 1.5, 9)[np.random.default_rng(0).permutation(9)]
    reference, behaviour = table(1), logps(table(2)).sum(1).exp()
    batch = collate([Example(EVERY, scores=reward.astype(np.float32))])
    first = torch.tensor(ANSWERS)[:, 0]

    def loss(parameters: Tensor) -> Tensor:
        values = torch.stack(
            [torch.zeros(9, dtype=torch.float64), parameters[4, 0].expand(9), parameters[5][first]], 1
        )  # fmt: skip
        given = replace(batch, outputs={"values": values})
        return weighted(DROV(tau=tau).loss(logps(parameters[:4]), logps(reference), given), behaviour)

    found = descend(loss, torch.zeros(6, 3, dtype=torch.float64), steps=1500)
    prior = logps(reference).sum(1).exp()
    policy, value = exact.dro_optimum(prior.numpy(), reward, tau=tau)
    np.testing.assert_allclose(logps(found[:4]).sum(1).exp().numpy(), policy, atol=1e-3)
    assert found[4, 0].item() == pytest.approx(value, abs=1e-3)
    conditional = reference[1:].softmax(-1).numpy()
    for token in range(3):
        _, after = exact.dro_optimum(conditional[token], reward[3 * token : 3 * token + 3], tau=tau)
        assert found[5, token].item() == pytest.approx(after, abs=1e-3)


def test_dro_v_moves_each_network_by_its_own_loss() -> None:
    """Two tokens, log-ratio 1 and 2 to go 3 and 2, r = 4, V = 0.5 and 1, tau = 2: residuals -2.5 and -1.

    Policy loss (6.25 + 1) / (2 * 2) / 2 tokens; value loss (6.25 + 1) / 2 / 2 tokens; dV = -residual / 2 tokens.
    """
    batch = collate([Example((answer((1, 2)),), scores=np.array([4.0], np.float32))])
    values = torch.tensor([[9.0, 0.5, 1.0]], requires_grad=True)
    policy = torch.tensor([[9.0, 1.0, 2.0]], requires_grad=True)
    loss = DROV(tau=2.0).loss(policy, torch.zeros(1, 3), replace(batch, outputs={"values": values}))
    assert loss.metrics["policy_loss"].item() == pytest.approx(7.25 / 8)
    assert loss.metrics["value_loss"].item() == pytest.approx(7.25 / 4)
    loss.values.sum().backward()
    assert values.grad is not None
    assert values.grad[0].tolist() == pytest.approx([0.0, 1.25, 0.5])
    assert policy.grad is not None
    assert policy.grad[0].tolist() == pytest.approx([0.0, 1.25, 1.75])  # token 2 is in both residuals
    prompt = DROV(tau=2.0, per_token=False).loss(policy, torch.zeros(1, 3), replace(batch, outputs={"values": values}))
    assert prompt.values.item() == pytest.approx(6.25 / 4 + 6.25 / 2)
    with pytest.raises(ValueError, match="ActorCritic"):
        DROV().loss(policy, torch.zeros(1, 3), batch)


def test_standardised_scores() -> None:
    examples = [Example((answer((1,)),), scores=np.array([score], np.float32)) for score in (1.0, 3.0)]
    assert [float(example.scores[0]) for example in standardised(examples)] == [-1.0, 1.0]
    with pytest.raises(ValueError, match="the same everywhere"):
        standardised(examples[:1])


def test_rwr_gradient_and_clip() -> None:
    """Weights exp(1 / 0.5) = 7.389 and exp(4 / 0.5) = 2981, clipped to 20."""
    rows = (answer((1, 2)), answer((2, 2)))
    batch = collate([Example(rows, scores=np.array([1.0, 4.0], np.float32))])
    policy = torch.full((2, 3), -1.0, requires_grad=True)
    loss = RWR(beta=0.5).loss(policy, None, batch)
    assert loss.values.tolist() == pytest.approx([2 * math.exp(2), 40.0])
    assert gradient(loss.values.sum(), policy).tolist()[1] == [0.0, -20.0, -20.0]


def test_best_of_n_takes_the_best() -> None:
    group = Group(tuple(answer((0, n), reward=r) for n, r in ((0, 0.2), (1, 0.9), (2, 0.5))))
    example = BestOfN().examples(group, by_return(group), np.random.default_rng(0))
    assert example is not None
    assert [row.total_reward for row in example.trajectories] == [0.9]
    equal = Group(tuple(answer((0, n), reward=1.0) for n in range(3)))
    assert BestOfN().examples(equal, by_return(equal), np.random.default_rng(0)) is None


# --- all of them ---

METHODS: list[Any] = [
    GPO(f="hinge", beta=0.5),
    GPO(f="truncated_quadratic", beta=0.5, label_smoothing=0.1),
    IPO(tau=0.05),
    PMPO(alpha=0.5, beta=0.5),
    DROV(tau=0.1),
    RWR(beta=0.5),
    BestOfN(),
]


def outputs_for(method: Any, batch: Batch, seed: int) -> dict[str, Tensor]:
    name = {"pmpo": "kl", "dro_v": "values"}.get(method.name)
    generator = torch.Generator().manual_seed(seed)
    return {} if name is None else {name: torch.rand(batch.ids.shape, generator=generator, dtype=torch.float64)}


def mean(loss: Loss) -> Tensor:
    return loss.values.sum() / (len(loss.values) if loss.count is None else loss.count.sum())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_padding_order_and_environment_tokens_change_nothing(method: Any) -> None:
    """Rows turned round, four columns of nan more, and nan wherever the agent did not write."""
    examples = [
        method.examples(group, by_return(group), np.random.default_rng(0)) for group in map(toy_group, range(3))
    ]
    batch = collate(examples)
    generator = torch.Generator().manual_seed(0)
    first, second = (-torch.rand(batch.ids.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    batch = replace(batch, outputs=outputs_for(method, batch, 1))
    expected = mean(method.loss(first, second, batch)).item()
    order = torch.arange(len(batch)).flip(0)

    def wider(x: Tensor, fill: float) -> Tensor:
        return torch.cat([x, torch.full((len(x), 4), fill, dtype=x.dtype)], 1)

    turned = batch.select(order)
    noise = math.nan
    outside = wider(turned.turn_ids, -1) < 0
    padded = replace(
        turned,
        ids=wider(turned.ids, 7),
        mask=wider(turned.mask, 0),
        turn_ids=wider(turned.turn_ids, -1),
        behaviour_logps=wider(turned.behaviour_logps, 0),
        outputs={name: wider(x, noise).masked_fill(outside, noise) for name, x in turned.outputs.items()},
    )
    scored = [wider(x[order], noise).masked_fill(outside, noise).requires_grad_() for x in (first, second)]
    found = mean(method.loss(*scored, padded))
    assert found.item() == pytest.approx(expected, rel=1e-9)
    moved = gradient(found, scored[0])
    assert (moved[outside] == 0).all()
    assert (moved != 0).any()


def toy_group(seed: int) -> Group:
    """The better of two writes 20s, the worse 30s; lengths differ from group to group."""

    def row(reward: float, *ids: int) -> Trajectory:
        context = np.array([100 + seed, 50], np.int32)
        turn = Turn("o", "a", reward, context, np.array(ids, np.int32), np.zeros(len(ids), np.float32))
        return Trajectory("Toy-v0", seed, (turn,), terminated=True)

    return Group((row(1.0, *[20] * (1 + seed), 21), row(0.0, 30, *[31] * seed, 32)))


def toy_examples(method: Any, count: int) -> list[Example]:
    rng = np.random.default_rng(0)
    return [method.examples(group, by_return(group), rng) for group in map(toy_group, range(count))]


def tiny(seed: int = 0) -> Policy:
    return tiny_policy(["x"], seed=seed, hidden=16, layers=1, heads=2, context=32)


def learner(method: Any) -> Any:
    return ActorCritic(tiny()) if method.name == "dro_v" else tiny()


def run(method: Any, trained: Any, *, steps: int, data: Any = None, **options: Any) -> Any:
    examples = toy_examples(method, 4)
    source = minibatches(examples, 4, seed=0) if data is None else data
    reference = getattr(trained, "policy", trained).copy()
    settings = flat({"cpu": True, **options}, train=True)
    return train(method, trained, reference, source, steps=steps, progress=False, **settings)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name}")
def test_every_method_learns_to_prefer_the_better(method: Any) -> None:
    trained = learner(method)
    policy = getattr(trained, "policy", trained)
    before = policy.copy()
    run(method, trained, steps=60, lr=1e-2)
    for seed in range(4):
        batch = collate([Example(toy_group(seed).trajectories)])
        where = batch.turn_ids >= 0
        with torch.no_grad():
            now, then = (each.logps(batch.ids, batch.mask, where).sum(1) for each in (policy, before))
        gain = now - then
        assert gain[0] - gain[1] > 0.5, method


@pytest.mark.parametrize("method", [METHODS[3], METHODS[4]], ids=lambda method: method.name)
def test_micro_batches_do_not_change_the_update(method: Any) -> None:
    """PMPO's two sides are means over the step, not over the micro-batch: here one side has its own rows."""
    sgd = functools.partial(torch.optim.SGD, momentum=0.0)
    examples = toy_examples(method, 3)
    extra = toy_group(5)
    examples.append(Example((extra[0],), scores=np.ones(1, np.float32), desirable=np.ones(1, np.float32)))
    results = []
    for options in ({}, {"accumulate": 3}):
        trained = learner(method)
        result = run(method, trained, steps=2, data=[examples], lr=0.1, optimizer=sgd, clip=None, **options)
        results.append((dict(trained.model.named_parameters()), result.history))
    for name, value in results[0][0].items():
        torch.testing.assert_close(results[1][0][name], value, atol=1e-6, rtol=1e-4)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4, abs=1e-6)


def test_the_loop_computes_the_full_kl_reference_first() -> None:
    """The metric of a step against KL(reference || policy) from both models' whole logits; at the start it is 0."""
    method, trained, other = PMPO(beta=0.7), tiny(), tiny(seed=1)
    with torch.no_grad():
        for parameter in [*trained.model.parameters(), *other.model.parameters()]:
            parameter.mul_(3.0)
    examples = toy_examples(method, 2)
    batch = collate(examples)
    with torch.no_grad():
        logits = [m.model(input_ids=batch.ids, attention_mask=batch.mask.long()).logits for m in (trained, other)]
        p, q = (x.log_softmax(-1) for x in logits)
        kl = (q.exp() * (q - p)).sum(-1)
        expected = sum(float(kl[row, batch.turn_ids[row].roll(-1) >= 0].sum()) for row in range(len(batch))) / len(
            batch
        )
    result = train(method, trained, other, [examples], steps=1, options=TrainOptions(lr=1e-9, cpu=True), progress=False)
    assert result.history[0]["kl"] == pytest.approx(expected, rel=1e-3)
    assert expected > 0.05
    same = run(method, tiny(), steps=1, lr=1e-9)
    assert same.history[0]["kl"] == pytest.approx(0.0, abs=1e-6)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="Did you mean 'hinge'"):
        GPO(f="hing")
    with pytest.raises(ValueError, match=r"\[0, 0.5\)"):
        GPO(label_smoothing=0.5)
    with pytest.raises(ValueError, match="tau: expected a number above 0"):
        IPO(tau=0.0)
    with pytest.raises(ValueError, match=r"alpha: expected a number in \[0, 1\]"):
        PMPO(alpha=2.0)
