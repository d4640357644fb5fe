"""MTPO against enumeration on a game with chance observations, and what PPO pays and reports turn by turn."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from polyturn.algorithms import MTPO, PPO, Batch, Example, collate
from polyturn.algorithms.exact.closed_forms import kl
from polyturn.algorithms.exact.tabular_games import occupancy, q_values, regularised_nash
from polyturn.envs.games.tabular_games import TabularGame, random_game
from polyturn.envs.preference import Preference
from polyturn.envs.trajectory import Group, Trajectory, Turn

ALPHA = 0.2
GAME = random_game(np.random.default_rng(4), states=(3, 4), actions=2)


def turn(token: int, reward: float = 0.0, logp: float = 0.0) -> Turn:
    return Turn(
        "o", "a", reward, np.array([9], np.int32), np.array([token, 8], np.int32), np.array([logp, 0.0], np.float32)
    )


def conversation(*tokens: int, rewards: tuple[float, ...] = (), agent: str = "", version: str = "") -> Trajectory:
    """One turn a token, each of two tokens: the answer and an end of turn that is certain."""
    paid = rewards or (0.0,) * len(tokens)
    turns = tuple(turn(token, reward) for token, reward in zip(tokens, paid, strict=True))
    return Trajectory("Toy-v0", 0, turns, agent=agent, policy_version=version, terminated=True)


class Plays:
    """Every play of the two-turn game: answer, what chance says, answer, end; `weight` is the chance of the chances."""

    def __init__(self, game: TabularGame) -> None:
        first, second = game.transitions
        every = itertools.product(range(2), range(3), range(2), range(4))
        rows = [row for row in every if first[0, row[0], row[1]] * second[row[1], row[2], row[3]] > 0]
        self.a, self.s, self.b, self.end = (torch.tensor(column) for column in zip(*rows, strict=True))
        self.weight = torch.tensor(first)[0, self.a, self.s] * torch.tensor(second)[self.s, self.b, self.end]
        self.batch = collate([Example((conversation(int(a), int(b)),)) for a, b in zip(self.a, self.b, strict=True)])

    def logps(self, logits: list[Tensor]) -> Tensor:
        """`[N, 6]`: context, answer, end of turn; twice."""
        one, two = (layer.log_softmax(-1) for layer in logits)
        zero = torch.zeros(len(self.a), dtype=one.dtype)
        return torch.stack([zero, one[0, self.a], zero, zero, two[self.s, self.b], zero], 1)

    def values(self, before: list[Tensor]) -> Tensor:
        """`[N, 6]` a value of each turn's state, where the turn begins."""
        zero = torch.zeros(len(self.a), dtype=torch.float64)
        return torch.stack([zero, before[0][0].expand_as(zero), zero, zero, before[1][self.s], zero], 1)


PLAYS = Plays(GAME)


def layers(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 2, generator=generator, dtype=torch.float64).requires_grad_() for size in (1, 3)]


def policy(logits: list[Tensor]) -> tuple[np.ndarray, ...]:
    return tuple(layer.detach().softmax(-1).numpy() for layer in logits)


def expected_gradient(
    method: PPO, logits: list[Tensor], anchor: list[Tensor], opponent: tuple[np.ndarray, ...], values: list[Tensor]
) -> list[Tensor]:
    """Of the method's loss over all plays of the policy, each with its probability."""
    own, reference = PLAYS.logps(logits), PLAYS.logps(anchor).detach()
    rate = torch.from_numpy(GAME.preference @ occupancy(GAME, opponent)[-1])[PLAYS.end]
    batch = replace(PLAYS.batch, scores=rate, behaviour_logps=own.detach(), outputs={"values": PLAYS.values(values)})
    loss = method.loss(own, reference, batch)
    return list(torch.autograd.grad((loss.values * PLAYS.weight * own.detach().sum(1).exp()).sum(), logits))


def objective(logits: list[Tensor], anchor: list[Tensor], opponent: tuple[np.ndarray, ...]) -> Tensor:
    """P(policy beats opponent) - alpha KL(policy || reference), by summing over all plays."""
    own, reference = PLAYS.logps(logits).sum(1), PLAYS.logps(anchor).sum(1).detach()
    rate = torch.from_numpy(GAME.preference @ occupancy(GAME, opponent)[-1])[PLAYS.end]
    return (PLAYS.weight * own.exp() * (rate - ALPHA * (own - reference))).sum()


NOTHING = [torch.zeros(1, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)]


@pytest.mark.parametrize("lam", [1.0, 0.0])
def test_the_expected_gradient_is_that_of_the_regularised_preference(lam: float) -> None:
    """With lambda 1 for any values; with lambda 0 where it is the true value of each state."""
    logits, anchor, opponent = layers(0), layers(1), policy(layers(2))
    q = q_values(GAME, policy(logits), opponent, policy(anchor), alpha=ALPHA)
    # Q leaves the present turn's KL out of its differences between answers; the value of a state counts it.
    true = [torch.from_numpy((p * (own)).sum(1)) for p, own in zip(policy(logits), q, strict=True)]
    wrong = [torch.full_like(value, 0.3) for value in true]
    method = MTPO(kl=ALPHA, lam=lam, whiten=False, value_weight=0.0)
    mine = expected_gradient(method, logits, anchor, opponent, wrong if lam == 1.0 else true)
    exact = torch.autograd.grad(objective(logits, anchor, opponent), logits)
    for found, wanted in zip(mine, exact, strict=True):
        torch.testing.assert_close(found, -wanted, rtol=1e-6, atol=1e-8)
    assert max(float(wanted.abs().max()) for wanted in exact) > 1e-2


def test_self_play_ends_at_the_regularised_equilibrium() -> None:
    """Descent on the expected loss with the policy itself as opponent, on a game whose replies are left to chance."""
    logits, anchor = layers(3), layers(1)
    nash = regularised_nash(GAME, policy(anchor), alpha=ALPHA)
    optimizer = torch.optim.Adam(logits, lr=0.05)
    method = MTPO(kl=ALPHA, lam=1.0, whiten=False, value_weight=0.0)
    for _ in range(400):
        for layer, grad in zip(logits, expected_gradient(method, logits, anchor, policy(logits), NOTHING), strict=True):
            layer.grad = grad
        optimizer.step()
    assert max(float(kl(p, q).max()) for p, q in zip(nash, policy(logits), strict=True)) < 1e-5


def test_the_value_learns_the_preference_and_what_the_kl_costs() -> None:
    """By hand, lambda 1: turns pay -alpha log-ratio (0.2 x 0.5 each), the end .75: targets .65 and .55."""
    batch = collate([Example((conversation(0, 1),), scores=np.array([0.75], np.float32))])
    reference = torch.tensor([[0.0, -0.5, 0.0, 0.0, -0.5, 0.0]])
    values = torch.zeros(1, 6, requires_grad=True)
    batch = replace(batch, outputs={"values": values})
    loss = MTPO(kl=0.2, lam=1.0, whiten=False).loss(torch.zeros(1, 6), reference, batch)
    (grad,) = torch.autograd.grad(loss.values.sum(), values)
    # The value's loss is the mean over the row's 2 turns times its 4 tokens; only where turns begin there is a value.
    assert grad[0].tolist() == pytest.approx([0, -0.55 * 2, 0, 0, -0.65 * 2, 0])
    assert loss.metrics["kl_turn_1"].tolist() == pytest.approx([0.5])
    assert loss.metrics["kl"].tolist() == pytest.approx([1.0])


def test_both_conversations_are_learned_from_one_with_p_and_the_other_with_the_rest() -> None:
    pair = Group((conversation(0), conversation(1)))
    example = MTPO().examples(pair, Preference(np.array([[0.5, 0.8], [0.2, 0.5]]), "oracle"), np.random.default_rng(0))
    assert example is not None
    assert example.scores.tolist() == pytest.approx([0.8, 0.2])


def test_members_of_the_mixture_are_only_beaten() -> None:
    """Two of the policy against one other: P(row beats the other), and never each other's."""
    group = Group((conversation(0), conversation(1), conversation(2, agent="mixture")))
    matrix = np.array([[0.5, 0.9, 0.7], [0.1, 0.5, 0.4], [0.3, 0.6, 0.5]])
    example = MTPO().examples(group, Preference(matrix, "oracle"), np.random.default_rng(0))
    assert example is not None
    assert len(example.trajectories) == 2
    assert example.scores.tolist() == pytest.approx([0.7, 0.4])


def test_an_unjudged_pair_is_not_learned_from() -> None:
    pair = Group((conversation(0), conversation(1)))
    unasked = Preference(np.full((2, 2), np.nan), "judge")
    assert MTPO().examples(pair, unasked, np.random.default_rng(0)) is None


def paid(over: str, discount: float) -> Batch:
    method = PPO(over=over, reward="turns", discount=discount, lam=1.0, whiten=False, value_weight=0.0)  # type: ignore[arg-type]
    group = Group((conversation(0, 1, 2, rewards=(1.0, 10.0, 100.0)),))
    example = method.examples(group, Preference(np.full((1, 1), np.nan), "reward"), np.random.default_rng(0))
    assert example is not None
    batch = replace(collate([example]), outputs={"values": torch.zeros(1, 9)})
    logps = torch.zeros(1, 9, requires_grad=True)
    loss = method.loss(logps, None, batch)
    return torch.autograd.grad(loss.values.sum(), logps)[0][0].tolist()  # type: ignore[return-value]


def test_turns_are_paid_where_they_end() -> None:
    """Each token's advantage is what follows it; with discount 0 a turn answers for only its own reward."""
    assert paid("turn", 1.0) == pytest.approx([0, -111, -111, 0, -110, -110, 0, -100, -100])
    assert paid("turn", 0.0) == pytest.approx([0, -1, -1, 0, -10, -10, 0, -100, -100])
    assert paid("token", 0.0) == pytest.approx([0, 0, -1, 0, 0, -10, 0, 0, -100])


def test_the_policy_rests_while_the_value_warms_up() -> None:
    batch = collate([Example((conversation(0, 1),), scores=np.array([1.0], np.float32))])
    batch = replace(batch, outputs={"values": torch.zeros(1, 6, requires_grad=True)})
    for step, moves in ((0.0, False), (4.0, False), (5.0, True)):
        logps = torch.zeros(1, 6, requires_grad=True)
        loss = PPO(value_warmup=5, whiten=False).loss(logps, None, batch.with_statistics({"step": torch.tensor(step)}))
        (grad,) = torch.autograd.grad(loss.values.sum(), logps)
        assert bool(grad.abs().max() > 0) is moves


def test_the_values_loss_of_a_row_is_the_mean_over_its_steps_times_its_tokens() -> None:
    """Score 1, values 0, lambda 1: every target is 1 and every error 1/2.

    Counted by tokens: a row of one turn of two tokens has 1/2 x 2 = 1; a row of two turns, four tokens, 1/2 x 4 = 2.
    """
    rows = [Example((conversation(*tokens),), scores=np.array([1.0], np.float32)) for tokens in ((0,), (0, 1))]
    batch = replace(collate(rows), outputs={"values": torch.zeros(2, 6)})
    for over in ("turn", "token"):
        method = PPO(over=over, lam=1.0, policy_weight=0.0, value_weight=1.0)  # type: ignore[arg-type]
        loss = method.loss(torch.zeros(2, 6), None, batch)
        assert loss.values.tolist() == pytest.approx([1.0, 2.0])
        assert loss.count is not None
        assert loss.count.tolist() == [2.0, 4.0]


def test_explained_variance_by_hand() -> None:
    """Targets 1 and 0 (variance 1/4) of two rows of one turn; values .5 explain nothing, the targets all."""
    rows = [Example((conversation(0),), scores=np.array([score], np.float32)) for score in (1.0, 0.0)]
    for values, wanted in (([0.5, 0.5], 0.0), ([1.0, 0.0], 1.0), ([0.0, 1.0], -3.0)):
        given = torch.zeros(2, 3)
        given[:, 1] = torch.tensor(values)
        batch = replace(collate(rows), outputs={"values": given})
        found = PPO(lam=1.0, over="turn").loss(torch.zeros(2, 3), None, batch).metrics["explained_variance"]
        assert float(found.mean()) == pytest.approx(wanted, abs=1e-5)


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r'MTPO\.reward: expected "score"'):
        MTPO(reward="turns")
    with pytest.raises(ValueError, match=r"MTPO\.over"):
        MTPO(over="word")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"PPO\.kl: expected 0 or more"):
        PPO(kl=-1.0)
