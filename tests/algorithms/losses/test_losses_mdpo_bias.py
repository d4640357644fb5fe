"""M-DPO on known dynamics: exact where the environment is deterministic, biased where it is not (arXiv 2409.02392).

The optimum of the KL-regularised return satisfies r(trajectory) = beta g(trajectory) + V(start) + sum over turns of
(V(s_{h+1}) - E[V(s_{h+1}) | s_h, y_h]). Between two trajectories from one start V(start) cancels; the sum is zero only
if what the environment says is certain. M-DPO drops it always.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from polyturn.algorithms import losses
from polyturn.algorithms.estimators import sequence_logratio
from polyturn.algorithms.exact.closed_forms import log_of, logsumexp, softmax
from polyturn.envs.games.tabular_games import TabularGame, random_game

BETA = 0.5


def soft_optimum(game: TabularGame, reward: np.ndarray) -> list[np.ndarray]:
    """argmax E[r(final)] - beta KL(pi || uniform), by soft backward induction."""
    value, policy = reward, []
    for layer in reversed(game.transitions):
        scores = log_of(np.full(layer.shape[:2], 1 / layer.shape[1])) + layer @ value / BETA
        policy.insert(0, softmax(scores))
        value = BETA * logsumexp(scores)
    return policy


class Population:
    """M-DPO's expected loss over all pairs of plays by the uniform policy, labelled by Bradley-Terry on rewards."""

    def __init__(self, game: TabularGame, reward: np.ndarray) -> None:
        first, second = game.transitions
        answers, states, ends = first.shape[1], first.shape[2], second.shape[2]
        every = itertools.product(range(answers), range(states), range(second.shape[1]), range(ends))
        rows = [row for row in every if first[0, row[0], row[1]] * second[row[1], row[2], row[3]] > 0]
        self.a, self.s, self.b, end = (torch.tensor(column) for column in zip(*rows, strict=True))
        chance = torch.tensor(first[0])[self.a, self.s] * torch.tensor(second)[self.s, self.b, end]
        self.weight = chance / (answers * second.shape[1])
        r = torch.from_numpy(reward)[end]
        self.probability = torch.sigmoid(r[:, None] - r[None, :])
        self.sizes = answers, second.shape[1]

    def loss(self, logits: list[Tensor]) -> Tensor:
        first, second = (torch.log_softmax(layer, -1) for layer in logits)
        # columns: first answer, what the environment said, second answer
        logps = torch.stack([first[0, self.a], torch.zeros(len(self.a)).double(), second[self.s, self.b]], 1)
        reference = torch.tensor([-math.log(self.sizes[0]), 0.0, -math.log(self.sizes[1])]).double().expand_as(logps)
        g = sequence_logratio(logps, reference, torch.tensor([[0, -1, 1]]).expand_as(logps))
        pair = losses.gpo(g[:, None] - g[None, :], beta=BETA, probability=self.probability)
        return (self.weight[:, None] * self.weight[None, :] * pair).sum()


def gradient_at(game: TabularGame, reward: np.ndarray, policy: list[np.ndarray]) -> float:
    logits = [torch.from_numpy(np.log(layer)).requires_grad_() for layer in policy]
    grads = torch.autograd.grad(Population(game, reward).loss(logits), logits)
    return max(float(grad.abs().max()) for grad in grads)


@pytest.mark.parametrize("seed", range(5))
def test_exact_in_a_deterministic_environment_biased_in_a_stochastic_one(seed: int) -> None:
    """The optimum is where M-DPO's gradient vanishes if, and only if, replies are certain."""
    for concentration, certain in ((0.0, True), (0.5, False)):
        rng = np.random.default_rng(seed)
        game = random_game(rng, states=(3, 4), actions=2, concentration=concentration)
        reward = rng.normal(size=4) * 2
        gradient = gradient_at(game, reward, soft_optimum(game, reward))
        assert (gradient < 1e-10) if certain else (gradient > 1e-3)


def test_descent_finds_the_optimum_only_without_chance() -> None:
    rng = np.random.default_rng(3)
    gaps = []
    for concentration in (0.0, 0.3):
        game = random_game(rng, states=(3, 4), actions=2, concentration=concentration)
        reward = rng.normal(size=4) * 2
        best, population = soft_optimum(game, reward), Population(game, reward)
        logits = [torch.zeros(layer.shape, dtype=torch.float64, requires_grad=True) for layer in best]
        optimiser = torch.optim.Adam(logits, lr=0.05)
        for _ in range(800):
            optimiser.zero_grad()
            population.loss(logits).backward()
            optimiser.step()
        # a state that is never reached keeps the reference; compare the first answer only
        gaps.append(float(np.abs(torch.softmax(logits[0], -1).detach().numpy() - best[0]).max()))
    assert gaps[0] < 1e-3
    assert gaps[1] > 0.02


def test_a_lottery_reverses_the_choice() -> None:
    """Safe: reward 0. Risky: +3 with chance 1/3, else -1; mean 1/3, so the optimum prefers risky.

    The labels say P(risky beats safe) = sigmoid(3)/3 + 2 sigmoid(-1)/3 = .4968 < 1/2: M-DPO's minimum is at the margin
    logit(.4968) / beta < 0 and prefers safe. Its pair loss cannot know that the outcome was not the policy's.
    """
    won = (1 / (1 + math.exp(-3))) / 3 + 2 * (1 / (1 + math.exp(1))) / 3
    assert won == pytest.approx(0.4968, abs=1e-4)
    margin = torch.tensor(math.log(won / (1 - won)) / BETA, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(losses.gpo(margin, beta=BETA, probability=won), margin)
    assert grad.item() == pytest.approx(0.0, abs=1e-12)
    optimum = (1 / 3) / BETA
    assert margin.item() < 0 < optimum
