"""Equilibria of a preference matrix: Nash by linear programming, regularised Nash by a safeguarded Newton method.

A preference matrix P[i, j] = P(i beats j) with P + P^T = 1 is a symmetric two-player game of value 1/2. Policies are
probability vectors `[A]`, everything in numpy float64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from polyturn.algorithms.exact.closed_forms import Matrix, Vector, as_policy, as_preference, kl, log_of, logsumexp, tilt


def nash_equilibrium(preference: ArrayLike) -> Vector:
    """A policy that no other beats: P(y beats pi) <= 1/2 for every answer y (arXiv 2312.00886, section 3).

    Found as max v subject to pi^T P >= v, which linear programming solves exactly. Where equilibria are many, one of
    them.

    Args:
        preference: `[A, A]`.

    Returns:
        `[A]`.

    Raises:
        ValueError: Not a preference matrix.
        ImportError: scipy is not installed.
        RuntimeError: The solver failed.
    """
    # Imported here: it takes longer than everything else in this file, and nothing else needs it.
    try:
        from scipy.optimize import linprog  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("nash_equilibrium: needs scipy for linear programming; pip install scipy") from error

    payoff = as_preference(preference)
    size = len(payoff)
    # Variables pi and v; -v is minimised; v - sum_i pi_i P[i, j] <= 0 for every answer j of the opponent.
    result = linprog(
        c=np.append(np.zeros(size), -1.0),
        A_ub=np.hstack([-payoff.T, np.ones((size, 1))]),
        b_ub=np.zeros(size),
        A_eq=np.append(np.ones(size), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0.0, 1.0)] * (size + 1),
        method="highs",
    )
    if not result.success:
        raise RuntimeError(f"nash_equilibrium: the linear program failed: {result.message}")
    policy = np.maximum(np.asarray(result.x[:size], np.float64), 0.0)
    return np.asarray(policy / policy.sum(), np.float64)


def regularised_nash(preference: ArrayLike, reference: ArrayLike, *, tau: float, tolerance: float = 1e-12) -> Vector:
    """The equilibrium when both sides pay tau KL(. || reference): pi prop. to pi_ref exp(P(y beats pi) / tau).

    It is unique, and what Nash-MD, Nash-EMA, self-play and online IPO converge to (arXiv 2312.00886, 2403.08635).

    Args:
        preference: `[A, A]`.
        reference: `[A]`; answers it excludes stay excluded.
        tau: Weight of the KL, positive.
        tolerance: Largest error of the fixed-point equation in log pi.

    Returns:
        `[A]`.

    Raises:
        ValueError: Not a preference matrix, not a policy, sizes that differ, or tau <= 0.
        RuntimeError: The tolerance was not reached.
    """
    payoff, anchor = as_preference(preference), as_policy(reference, name="reference")
    if len(payoff) != len(anchor):
        raise ValueError(f"regularised_nash: {len(payoff)} answers in the preference, {len(anchor)} in the reference")
    if not tau > 0:
        raise ValueError(f"regularised_nash: expected tau > 0, got {tau}; without a KL use nash_equilibrium")

    def response(values: Vector) -> tuple[Vector, Matrix]:
        policy = tilt(anchor, values / tau)
        return policy, (np.diag(policy) - np.outer(policy, policy)) / tau

    policy, _ = response(mutual_response_values(payoff, response, tolerance=tolerance * tau))
    return policy


def mutual_response_values(
    preference: Matrix, response: Callable[[Vector], tuple[Vector, Matrix]], *, tolerance: float
) -> Vector:
    """Values v of the outcomes such that v = (P - 1/2) d(v): d responds to values that d itself brings about.

    Newton steps, halved until the error falls. d is the gradient of a convex function (a regularised best response's
    value), so its Jacobian D is positive semi-definite, and P - 1/2 is skew-symmetric: I - (P - 1/2) D has eigenvalues
    1 - ix. It is never singular, so the steps cannot get stuck, however weak the regularisation.

    Args:
        preference: `[S, S]`, P + P^T = 1, over the outcomes.
        response: Of values `[S]`: the distribution d over outcomes `[S]` and its Jacobian `[S, S]`.
        tolerance: Largest error in v; rounding sets a floor of about 1e-15.

    Raises:
        RuntimeError: The tolerance was not reached.
    """
    skew = (preference - preference.T) / 2.0
    values = np.zeros(len(skew))
    outcome, jacobian = response(values)
    error = values - skew @ outcome
    tolerance = max(tolerance, 32 * float(np.finfo(np.float64).eps))
    for _ in range(1000):
        if np.abs(error).max() <= tolerance:
            return values
        direction = np.linalg.solve(np.eye(len(skew)) - skew @ jacobian, error)
        length = 1.0
        while length > 1e-10:
            candidate = values - length * direction
            outcome, jacobian = response(candidate)
            left = candidate - skew @ outcome
            if np.linalg.norm(left) < (1.0 - 0.1 * length) * np.linalg.norm(error):
                break
            length /= 2.0
        values, error = candidate, left
    raise RuntimeError(
        f"regularised Nash: error {np.abs(error).max():.3g} after the last Newton step, wanted {tolerance:.3g}"
    )


def win_probability(preference: ArrayLike, policy: ArrayLike, opponent: ArrayLike) -> float:
    """P(policy beats opponent), a fresh answer from each."""
    return float(as_policy(policy) @ as_preference(preference) @ as_policy(opponent, name="opponent"))


def exploitability(preference: ArrayLike, policy: ArrayLike) -> float:
    """How much more than 1/2 the best response wins against the policy; 0 exactly at a Nash equilibrium."""
    return float((as_preference(preference) @ as_policy(policy)).max() - 0.5)


def regularised_exploitability(preference: ArrayLike, policy: ArrayLike, reference: ArrayLike, *, tau: float) -> float:
    """What the best KL-paying response gains: 0 exactly at the regularised Nash equilibrium, else positive.

    max over pi' of P(pi' > pi) - tau KL(pi' || ref) + tau KL(pi || ref), less 1/2; the maximum is
    tau log E_ref[exp(P(y > pi) / tau)].
    """
    own, anchor = as_policy(policy), as_policy(reference, name="reference")
    best = tau * float(logsumexp(log_of(anchor) + as_preference(preference) @ own / tau))
    return best + tau * float(kl(own, anchor)) - 0.5


def regularised_best_response(
    preference: ArrayLike, opponent: ArrayLike, reference: ArrayLike, *, tau: float
) -> Vector:
    """argmax over pi of P(pi > opponent) - tau KL(pi || ref): the map whose fixed point is `regularised_nash`."""
    return tilt(
        as_policy(reference, name="reference"),
        as_preference(preference) @ as_policy(opponent, name="opponent") / tau,
    )
