"""Exact evaluation of multi-turn tabular games: win rates, Q-functions, best responses, exploitability, equilibrium.

A policy is one `[S_h, A]` array of probabilities a turn. KL between policies is summed over turns along the FIRST
policy's own play. The regularised objective of arXiv 2405.14655 is

    P_alpha(pi beats pi') = P(pi beats pi') - alpha KL(pi || ref) + alpha KL(pi' || ref).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyturn.algorithms.exact.closed_forms import kl, log_of, logsumexp, softmax
from polyturn.algorithms.exact.nash import mutual_response_values
from polyturn.envs.games.tabular_games import Array, TabularGame

TurnPolicy = tuple[Array, ...]
"""One `[S_h, A]` array a turn: P(answer | state)."""


def uniform_policy(game: TabularGame) -> TurnPolicy:
    """Every answer equally likely in every state."""
    return tuple(np.full(layer.shape[:2], 1.0 / layer.shape[1]) for layer in game.transitions)


def random_policy(game: TabularGame, rng: np.random.Generator, *, concentration: float = 1.0) -> TurnPolicy:
    """Every state's distribution drawn from a symmetric Dirichlet."""
    return tuple(
        rng.dirichlet(np.full(layer.shape[1], concentration), size=layer.shape[0]) for layer in game.transitions
    )


def occupancy(game: TabularGame, policy: Sequence[Array]) -> list[Array]:
    """Probability of each state before each turn and at the end: H + 1 arrays `[S_h]`."""
    visited: list[Array] = [np.ones(1)]
    for layer, answers in zip(game.transitions, policy, strict=True):
        visited.append(np.einsum("s,sa,sat->t", visited[-1], answers, layer))
    return visited


def win_probability(game: TabularGame, policy: Sequence[Array], opponent: Sequence[Array]) -> float:
    """P(policy beats opponent): both play from the first state, their endings are compared."""
    return float(occupancy(game, policy)[-1] @ game.preference @ occupancy(game, opponent)[-1])


def turn_kl(game: TabularGame, policy: Sequence[Array], other: Sequence[Array]) -> float:
    """KL(policy || other) in nats, summed over turns along the policy's own play: the KL of whole conversations."""
    visited = occupancy(game, policy)
    return float(sum(states @ kl(p, q) for states, p, q in zip(visited, policy, other, strict=False)))


def q_values(
    game: TabularGame, policy: Sequence[Array], opponent: Sequence[Array], reference: Sequence[Array], *, alpha: float
) -> TurnPolicy:
    """Q(x_h, y_h): regularised chance to win after answering y_h in x_h and following the policy from then on.

    E[P(final state beats the opponent's) - alpha sum over h' >= h of KL(policy || reference)[x_h']], arXiv 2405.14655.
    The opponent starts at the first state, not at x_h. The KL of turn h itself is the same for every answer.

    Args:
        game: The game.
        policy: The policy that is evaluated.
        opponent: The policy that it is compared with.
        reference: What the KL is taken to.
        alpha: Weight of the KL.

    Returns:
        One `[S_h, A]` array a turn.
    """
    value = game.preference @ occupancy(game, opponent)[-1]
    result: list[Array] = []
    for layer, p, q in reversed(list(zip(game.transitions, policy, reference, strict=True))):
        # With alpha = 0 the KL does not count, not even where it is infinite.
        own = layer @ value - (alpha * kl(p, q)[:, None] if alpha else 0.0)
        result.append(own)
        # 0 times the -inf of an answer that is never given is 0.
        value = np.where(p > 0, p * np.where(p > 0, own, 0.0), 0.0).sum(axis=1)
    return tuple(reversed(result))


def best_response(game: TabularGame, opponent: Sequence[Array]) -> tuple[TurnPolicy, float]:
    """The policy that beats the opponent most often, by backward induction, and how often it does.

    Returns:
        A deterministic policy (the first of equally good answers) and P(it beats the opponent).
    """
    value = game.preference @ occupancy(game, opponent)[-1]
    result: list[Array] = []
    for layer in reversed(game.transitions):
        scores = layer @ value
        result.append(np.eye(layer.shape[1])[scores.argmax(axis=1)])
        value = scores.max(axis=1)
    return tuple(reversed(result)), float(value[0])


def exploitability(game: TabularGame, policy: Sequence[Array]) -> float:
    """How much more than 1/2 the best response wins against the policy; 0 exactly at a Nash equilibrium."""
    return best_response(game, policy)[1] - 0.5


def regularised_best_response(
    game: TabularGame, opponent: Sequence[Array], reference: Sequence[Array], *, alpha: float
) -> tuple[TurnPolicy, float]:
    """argmax over policies of P(policy beats opponent) - alpha KL(policy || reference), by soft backward induction.

    Returns:
        The policy, reference * exp(Q / alpha) in every state, and the maximum.
    """
    return _soft_backward(game, game.preference @ occupancy(game, opponent)[-1], reference, alpha=alpha)


def regularised_exploitability(
    game: TabularGame, policy: Sequence[Array], reference: Sequence[Array], *, alpha: float
) -> float:
    """What the best KL-paying response gains against the policy; 0 exactly at the regularised equilibrium."""
    _, best = regularised_best_response(game, policy, reference, alpha=alpha)
    return best + alpha * turn_kl(game, policy, reference) - 0.5


def regularised_nash(
    game: TabularGame, reference: Sequence[Array], *, alpha: float, tolerance: float = 1e-12
) -> TurnPolicy:
    """The unique policy that is its own regularised best response: pi prop. to reference * exp(Q / alpha) everywhere.

    The opponent matters only through the distribution of its final states, so the equation to solve is one in values
    of final states (`polyturn.algorithms.exact.nash.mutual_response_values`), however many turns there are.

    Args:
        game: The game.
        reference: One `[S_h, A]` array a turn; answers it excludes stay excluded.
        alpha: Weight of the KL, positive.
        tolerance: Largest error of the fixed-point equation, in Q / alpha.

    Raises:
        ValueError: alpha <= 0.
        RuntimeError: The tolerance was not reached.
    """
    if not alpha > 0:
        raise ValueError(f"regularised_nash: expected alpha > 0, got {alpha}")

    def response(values: Array) -> tuple[Array, Array]:
        """Final states under the soft best response to `values`, and their derivative, by backward induction."""
        endings = len(values)
        value, reached, jacobian = values, np.eye(endings), np.zeros((endings, endings, endings))
        for layer, anchor in reversed(list(zip(game.transitions, reference, strict=True))):
            scores = log_of(anchor) + layer @ value / alpha
            answers = softmax(scores)
            ahead = layer @ reached
            mean = np.einsum("sa,sai->si", answers, ahead)
            centred = ahead - mean[:, None]
            jacobian = np.einsum("sa,sat,tij->sij", answers, layer, jacobian, optimize=True)
            jacobian += np.einsum("sa,sai,saj->sij", answers, centred, centred, optimize=True) / alpha
            value, reached = alpha * logsumexp(scores), mean
        return reached[0], jacobian[0]

    values = mutual_response_values(game.preference, response, tolerance=tolerance * alpha)
    return _soft_backward(game, values, reference, alpha=alpha)[0]


def _soft_backward(
    game: TabularGame, values: Array, reference: Sequence[Array], *, alpha: float
) -> tuple[TurnPolicy, float]:
    """argmax and maximum of E[values of the final state] - alpha KL(policy || reference)."""
    result: list[Array] = []
    for layer, anchor in reversed(list(zip(game.transitions, reference, strict=True))):
        scores = log_of(anchor) + layer @ values / alpha
        result.append(softmax(scores))
        values = alpha * logsumexp(scores)
    return tuple(reversed(result)), float(values[0])
