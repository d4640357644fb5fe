"""The task of the suite `nash_language`: short answers of digits, and an oracle whose preferences form cycles.

A digit has a worth, 0 to 2 worst, 6 to 8 best, and a kind, its remainder by 3: kind 1 beats kind 0, 2 beats 1 and 0
beats 2. The prompt is another digit, which changes nothing. The start writes mostly digits of kind 0, so what beats it
most often is of kind 1, and that is beaten by kind 2: the situation in which a best response to the start and an
equilibrium differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Ids = NDArray[np.int64]

TOKENS, LENGTH, KINDS = 9, 5, 3
"""Digits of the vocabulary, digits of an answer, and kinds of digits: a digit's kind is its remainder by 3."""
SHARES = (0.6, 0.2, 0.2)
"""Shares of the kinds in what the start writes."""
WORTH, CYCLE = 1.0, 3.0
"""Log-odds for one unit of worth (of -1 to 1), and for a pure kind against the kind that it beats."""


def start_mass() -> Array:
    """`[V]` probability of each digit in the answers that the start imitates, whatever the prompt."""
    mass = np.array([SHARES[token % KINDS] for token in range(TOKENS)])
    return np.asarray(mass / mass.sum(), np.float64)


_BEATS = np.roll(np.eye(KINDS), 1, axis=0) - np.roll(np.eye(KINDS), -1, axis=0)
"""[i, j] is 1 where kind i beats kind j, -1 where it loses: 1 beats 0, 2 beats 1, 0 beats 2."""


@dataclass(frozen=True)
class Oracle:
    """P(a beats b) = sigmoid(worth(a) - worth(b) + cycle * how far a's kinds beat b's), of the digits' means.

    Attributes:
        cycle: Log-odds for a pure kind against the kind that it beats; 0 makes a Bradley-Terry preference.
    """

    cycle: float = CYCLE

    def __call__(self, first: Ids, second: Ids) -> Array:
        """`[n]` P(the first is better), for answers `[n, L]`."""
        (worth, kinds), (other_worth, other_kinds) = map(_features, (first, second))
        return _sigmoid(WORTH * (worth - other_worth) + self.cycle * ((kinds @ _BEATS) * other_kinds).sum(-1))

    def every(self, first: Ids, second: Ids) -> Array:
        """`[n, m]` P(row of the first `[n, L]` beats row of the second `[m, L]`)."""
        (worth, kinds), (other_worth, other_kinds) = map(_features, (first, second))
        cyclic = kinds @ _BEATS @ other_kinds.T
        return _sigmoid(WORTH * (worth[:, None] - other_worth[None]) + self.cycle * cyclic)

    def duels(self, answers: Ids) -> Array:
        """`[P, P]` P(row beats column) of P policies over all pairs of answers to the same prompt.

        Args:
            answers: `[P, prompts, answers, L]`.
        """
        policies, prompts, size, length = answers.shape
        total = np.zeros((policies, policies))
        for x in range(prompts):
            flat = answers[:, x].reshape(-1, length)
            total += self.every(flat, flat).reshape(policies, size, policies, size).mean((1, 3))
        return np.asarray(total / prompts, np.float64)

    def exploitability(self, policy: Ids) -> float:
        """max over answers of P(answer beats the policy) - 1/2, mean over prompts; 0 at the Nash equilibrium.

        All answers are tried, against the policy's `[prompts, answers, L]`; their number adds a little noise.
        """
        best = [self.every(_every_answer(), mine).mean(axis=1).max() for mine in policy]
        return float(np.mean(best)) - 0.5


@cache
def _every_answer() -> Ids:
    """`[n, L]` all answers up to the order of their digits, which does not matter to the oracle."""
    return np.array(list(combinations_with_replacement(range(TOKENS), LENGTH)), np.int64)


def _features(answers: Ids) -> tuple[Array, Array]:
    """`[n]` mean worth, -1 to 1, and `[n, 3]` shares of the kinds."""
    kinds = answers[..., None] % KINDS == np.arange(KINDS)
    return (answers // KINDS - 1.0).mean(axis=-1), kinds.mean(axis=-2)


def _sigmoid(odds: Array) -> Array:
    return np.asarray(0.5 + 0.5 * np.tanh(odds / 2.0), np.float64)


@dataclass(frozen=True, eq=False)
class Learned:
    """A network fitted to comparisons: a preference model, or a reward model.

    Attributes:
        network: From one-hot digits to one number.
        pairwise: Reads both answers, P(a beats b) = sigmoid(s(a, b) - s(b, a)), antisymmetric and free to have cycles;
            otherwise reads one, P = sigmoid(s(a) - s(b)) (Bradley-Terry).
    """

    network: torch.nn.Module
    pairwise: bool

    def odds(self, prompt: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """`[...]` log-odds that the first is better."""
        if not self.pairwise:
            return self.scores(prompt, first) - self.scores(prompt, second)
        forward, backward = (self._read(prompt, *pair) for pair in ((first, second), (second, first)))
        return forward - backward

    def scores(self, prompt: Tensor, answers: Tensor) -> Tensor:
        """`[...]` the reward of answers, of a model that is not pairwise."""
        return self._read(prompt, answers)

    def _read(self, prompt: Tensor, *answers: Tensor) -> Tensor:
        parts = [_one_hot(prompt[..., None]), *map(_one_hot, answers)]
        read: Tensor = self.network(torch.cat(parts, -1))[..., 0]
        return read


def _one_hot(ids: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(ids, TOKENS).flatten(-2).float()


def fitted(
    prompt: Ids,
    answers: Ids,
    label: Array,
    *,
    pairwise: bool,
    width: int,
    steps: int,
    lr: float,
    decay: float,
    seed: int,
) -> Learned:
    """Fits a model to comparisons: prompts `[n]`, answers `[n, 2, L]`, and 1 where the first won, else 0.

    Adam with decoupled weight decay, minibatches of 256, the rate falling to 0.
    """
    inputs = TOKENS * (1 + LENGTH * (1 + pairwise))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = torch.nn.Sequential(
            torch.nn.Linear(inputs, width), torch.nn.ReLU(), torch.nn.Linear(width, width), torch.nn.ReLU(),
            torch.nn.Linear(width, 1),
        )  # fmt: skip
    model = Learned(network, pairwise)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=decay)
    rng = np.random.default_rng([seed, 6])
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1.0 - step / steps)
        rows = rng.integers(len(prompt), size=256)
        x, both, y = (torch.from_numpy(each[rows]) for each in (prompt, answers, label))
        odds = model.odds(x, both[:, 0], both[:, 1])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(odds, y.float())
        optimizer.zero_grad()
        torch.autograd.backward([loss])
        optimizer.step()
    network.requires_grad_(False)
    return model
