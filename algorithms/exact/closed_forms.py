"""What the methods converge to when nothing is approximated: optimal policies over a finite set of answers.

Every function works on one prompt with A answers: `reference [A]` and results are probability vectors, rewards `[A]`
and preference matrices `[A, A]` hold numbers per answer, P[i, j] = P(i beats j). numpy float64 throughout. They are
oracles: trust a loss, an estimator or a training loop as far as it reaches these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


def as_policy(probabilities: ArrayLike, *, name: str = "policy") -> Vector:
    """A checked probability vector.

    Raises:
        ValueError: Not one dimension, negative, not finite, or not adding to 1 (within 1e-9).
    """
    policy = np.asarray(probabilities, np.float64)
    if policy.ndim != 1 or not len(policy):
        raise ValueError(f"{name}: expected probabilities [A], got shape {policy.shape}")
    if not np.all(policy >= 0) or abs(policy.sum() - 1.0) > 1e-9:
        raise ValueError(f"{name}: expected entries >= 0 that add to 1, got {policy} (sum {policy.sum()})")
    return policy


def as_preference(matrix: ArrayLike) -> Matrix:
    """A checked preference matrix: P[i, j] = P(i beats j), P + P^T = 1.

    Raises:
        ValueError: Not square, outside [0, 1], or its two orders contradict each other.
    """
    preference = np.asarray(matrix, np.float64)
    if preference.ndim != 2 or preference.shape[0] != preference.shape[1] or not len(preference):
        raise ValueError(f"preference: expected [A, A], got shape {preference.shape}")
    if not np.all((preference >= 0) & (preference <= 1)):
        raise ValueError("preference: expected probabilities in [0, 1]")
    if not np.allclose(preference + preference.T, 1.0, atol=1e-9):
        row, column = np.argwhere(~np.isclose(preference + preference.T, 1.0, atol=1e-9))[0]
        raise ValueError(
            f"preference: expected P + P^T = 1, got P[{row}, {column}] = {preference[row, column]} and "
            f"P[{column}, {row}] = {preference[column, row]}; average the two orders first"
        )
    return preference


def log_of(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """log p, -inf where p is 0, without numpy's warning."""
    with np.errstate(divide="ignore"):
        return np.log(probabilities)


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(scores) normalised over the last axis; -inf gives exactly 0."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), np.float64)


def logsumexp(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """log sum exp over the last axis."""
    top = scores.max(axis=-1, keepdims=True)
    return np.asarray(np.log(np.exp(scores - top).sum(axis=-1)) + top[..., 0], np.float64)


def kl(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL(p || q) in nats over the last axis; inf where p allows what q excludes."""
    ratio = np.where(p > 0, log_of(p) - np.where(p > 0, log_of(q), 0.0), 0.0)
    return np.asarray(np.where(p > 0, p * ratio, 0.0).sum(axis=-1), np.float64)


def mix_logs(first: NDArray[np.float64], second: NDArray[np.float64], weight: float) -> NDArray[np.float64]:
    """(1 - weight) first + weight second, where a weight of exactly 0 silences even -inf (0 log 0 = 0)."""
    if weight == 0.0:
        return first
    return second if weight == 1.0 else (1.0 - weight) * first + weight * second


def geometric_mixture(
    policy: NDArray[np.float64], reference: NDArray[np.float64], weight: float
) -> NDArray[np.float64]:
    """policy^(1 - weight) reference^weight, normalised over the last axis: weight 0 is the policy, 1 the reference."""
    return softmax(mix_logs(log_of(policy), log_of(reference), weight))


def tilt(reference: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """reference * exp(scores), normalised over the last axis."""
    return softmax(log_of(reference) + scores)


def rlhf_optimum(reference: ArrayLike, reward: ArrayLike, *, tau: float) -> Vector:
    """argmax E_pi[r] - tau KL(pi || pi_ref): pi_ref exp(r / tau), normalised.

    DPO reaches it too, wherever preferences are Bradley-Terry in r: P(i beats j) = sigmoid(r_i - r_j).

    Args:
        reference: `[A]`.
        reward: `[A]`.
        tau: Weight of the KL (beta in DPO), positive.
    """
    return tilt(as_policy(reference, name="reference"), np.asarray(reward, np.float64) / tau)


def psipo_optimum(
    reference: ArrayLike,
    preference: ArrayLike,
    behaviour: ArrayLike,
    *,
    tau: float,
    psi: Callable[[Matrix], Matrix] = lambda p: p,
) -> Vector:
    """argmax E_{y ~ pi, y' ~ behaviour}[Psi(P(y beats y'))] - tau KL(pi || pi_ref) (arXiv 2310.12036, eq. 6 and 7).

    The default Psi, the identity, is IPO. Psi(q) = log(q / (1 - q)) is RLHF and DPO on a Bradley-Terry preference; it
    is infinite at certain preferences, which is why DPO forgets the reference there.

    Args:
        reference: `[A]`.
        preference: `[A, A]`.
        behaviour: `[A]`, the distribution of y'.
        tau: Weight of the KL, positive.
        psi: Elementwise, non-decreasing.
    """
    scores: Vector = psi(as_preference(preference)) @ as_policy(behaviour, name="behaviour")
    return tilt(as_policy(reference, name="reference"), scores / tau)


def ipo_on_pairs(
    reference: ArrayLike,
    pairs: Sequence[tuple[int, int]],
    *,
    tau: float,
    probability: ArrayLike | None = None,
) -> Vector:
    """The policy that minimises the sum of `ipo` over a given list of pairs, exactly: a least-squares problem.

    Each pair asks for the margin (2p - 1) / (2 tau). Answers are tied together only by pairs: where the pairs fall into
    several components, the solution of least change is taken.

    Args:
        reference: `[A]` full support.
        pairs: (first, second) answer indices; repetitions count.
        tau: IPO's tau.
        probability: P(first beats second) for each pair, None for 1.

    Raises:
        ValueError: The reference excludes an answer, or a pair names an answer that does not exist.
    """
    policy = as_policy(reference, name="reference")
    if np.any(policy == 0):
        raise ValueError("ipo_on_pairs: expected a reference of full support")
    index = np.asarray(pairs, np.int64).reshape(-1, 2)
    if np.any((index < 0) | (index >= len(policy))):
        raise ValueError(f"ipo_on_pairs: expected answers 0 to {len(policy) - 1}, got {index.min()} to {index.max()}")
    p = np.ones(len(index)) if probability is None else np.asarray(probability, np.float64)
    rows = np.arange(len(index))
    design = np.zeros((len(index), len(policy)))
    np.add.at(design, (rows, index[:, 0]), 1.0)
    np.add.at(design, (rows, index[:, 1]), -1.0)
    logratio, *_ = np.linalg.lstsq(design, (2.0 * p - 1.0) / (2.0 * tau), rcond=None)
    return tilt(policy, np.asarray(logratio, np.float64))


def dro_optimum(reference: ArrayLike, reward: ArrayLike, *, tau: float) -> tuple[Vector, float]:
    """Where both DRO losses vanish: pi_ref exp(r / tau) normalised, and V = tau log E_ref[exp(r / tau)].

    arXiv 2405.19107. It does not depend on the policy that wrote the data, as long as every answer has mass there.

    Returns:
        The policy `[A]` and the value.
    """
    policy = as_policy(reference, name="reference")
    scores = log_of(policy) + np.asarray(reward, np.float64) / tau
    return softmax(scores), tau * float(logsumexp(scores))


def pmpo_optimum(
    accepted: ArrayLike, rejected: ArrayLike, reference: ArrayLike, *, alpha: float, beta: float
) -> Vector:
    """argmax alpha E_accepted[log pi] - (1 - alpha) E_rejected[log pi] - beta KL(pi_ref || pi).

    Stationary where pi = (alpha d_a - (1 - alpha) d_r + beta pi_ref) / (2 alpha - 1 + beta), for the objective of
    arXiv 2410.04166 on one prompt: it is linear in log pi with these coefficients.

    Args:
        accepted: `[A]` distribution d_a of accepted answers.
        rejected: `[A]` distribution d_r of rejected answers.
        reference: `[A]`.
        alpha: Weight of accepted answers, in [0, 1].
        beta: Weight of the KL.

    Raises:
        ValueError: A coefficient is negative: the objective is unbounded, mass leaves that answer without limit. Or all
            are zero.
    """
    coefficients = (
        alpha * as_policy(accepted, name="accepted")
        - (1.0 - alpha) * as_policy(rejected, name="rejected")
        + beta * as_policy(reference, name="reference")
    )
    if np.any(coefficients < 0) or coefficients.sum() <= 0:
        raise ValueError(
            f"pmpo_optimum: no finite optimum, the coefficients of log pi are {coefficients}; expected all >= 0 "
            "(raise beta or alpha)"
        )
    return np.asarray(coefficients / coefficients.sum(), np.float64)


def rwr_optimum(behaviour: ArrayLike, reward: ArrayLike, *, beta: float) -> Vector:
    """The maximiser of E_behaviour[exp(r / beta) log pi]: the behaviour, tilted; it never looks at a reference."""
    return tilt(as_policy(behaviour, name="behaviour"), np.asarray(reward, np.float64) / beta)


def best_of_n(behaviour: ArrayLike, reward: ArrayLike, *, n: int) -> Vector:
    """Distribution of the best of n independent samples: what one round of maximum likelihood on winners reaches.

    P(best reward <= r) = F(r)^n; answers of equal reward share in proportion to their own mass.

    Args:
        behaviour: `[A]` the distribution of the n samples.
        reward: `[A]`.
        n: At least 1.
    """
    policy, scores = as_policy(behaviour, name="behaviour"), np.asarray(reward, np.float64)
    _, level = np.unique(scores, return_inverse=True)
    mass = np.bincount(level, weights=policy)
    cumulative = np.minimum(np.cumsum(mass), 1.0)
    won = np.diff(cumulative**n, prepend=0.0)
    share = np.divide(won, mass, out=np.zeros_like(won), where=mass > 0)
    best = policy * share[level]
    return np.asarray(best / best.sum(), np.float64)
