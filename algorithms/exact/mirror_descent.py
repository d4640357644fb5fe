"""Mirror descent to regularised equilibria: Nash-MD, Nash-EMA and self-play on a matrix, MTPO on multi-turn games.

Each function is an endless generator of iterates pi_0, pi_1, ...; take as many as wanted with `itertools.islice`. The
step size 2 / (tau (t + 2)) is the papers' own; at t = 0 it gives the old policy weight 0, so pi_0 has no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from numpy.typing import ArrayLike

from polyturn.algorithms.exact.closed_forms import (
    Vector,
    as_policy,
    as_preference,
    geometric_mixture,
    log_of,
    mix_logs,
    softmax,
)
from polyturn.algorithms.exact.tabular_games import TurnPolicy, q_values
from polyturn.envs.games.tabular_games import Array, TabularGame

StepSize = Callable[[int], float]
"""eta of step t = 0, 1, ...; eta times tau (or alpha) stays within [0, 1]."""


def nash_md(
    preference: ArrayLike, reference: ArrayLike, *, tau: float, start: ArrayLike | None = None
) -> Iterator[Vector]:
    """Nash-MD: pi_{t+1} prop. to pi_mix exp(eta P(y beats pi_mix)), pi_mix = pi_t^{1 - eta tau} ref^{eta tau}.

    arXiv 2312.00886, theorem 1: with eta = 2 / (tau (t + 2)), KL(pi* || pi_t) <= 8 / (tau^2 (t + 1)). The LAST
    iterate converges, to `regularised_nash`. The KL need not fall at every step.

    Args:
        preference: `[A, A]`.
        reference: `[A]`.
        tau: Weight of the KL, positive.
        start: pi_0, None for the reference.
    """
    payoff, anchor = as_preference(preference), as_policy(reference, name="reference")
    policy = anchor if start is None else as_policy(start, name="start")
    eta = _paper_step(tau)
    t = 0
    while True:
        yield policy
        mixture = geometric_mixture(policy, anchor, min(1.0, eta(t) * tau))
        policy = softmax(log_of(mixture) + eta(t) * (payoff @ mixture))
        t += 1


def nash_ema(
    preference: ArrayLike,
    reference: ArrayLike,
    *,
    tau: float,
    decay: float,
    step_size: float,
    start: ArrayLike | None = None,
) -> Iterator[Vector]:
    """Nash-EMA: regularised mirror steps against the exponential moving average of the policy's own logits.

    The tabular form of Nash-EMA-PG (arXiv 2312.00886): pi_{t+1} prop. to ref^{eta tau} pi_t^{1 - eta tau}
    exp(eta P(y beats average_t)), average_t the policy whose logits are the moving average. `decay=0` is self-play.
    The paper proves nothing for the average; a fixed point, where one is reached, is `regularised_nash`.

    Args:
        preference: `[A, A]`.
        reference: `[A]`.
        tau: Weight of the KL, positive.
        decay: Share of the old average at each step, in [0, 1); .999 in the paper's runs.
        step_size: Constant eta, with eta tau <= 1.
        start: pi_0, None for the reference.

    Raises:
        ValueError: decay or step_size out of range.
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"nash_ema: expected decay in [0, 1), got {decay}")
    if not 0.0 < step_size * tau <= 1.0:
        raise ValueError(f"nash_ema: expected 0 < step_size * tau <= 1, got {step_size * tau}")
    payoff, anchor = as_preference(preference), as_policy(reference, name="reference")
    policy = anchor if start is None else as_policy(start, name="start")
    average = policy
    while True:
        yield policy
        gain = payoff @ average
        policy = softmax(mix_logs(log_of(policy), log_of(anchor), step_size * tau) + step_size * gain)
        average = geometric_mixture(policy, average, decay)


def mtpo(
    game: TabularGame, reference: Sequence[Array], *, alpha: float, start: Sequence[Array] | None = None
) -> Iterator[TurnPolicy]:
    """MTPO: pi_{t+1} prop. to ref^{alpha eta} pi_t^{1 - alpha eta} exp(eta Q_t) in every state of every turn.

    arXiv 2405.14655, section 4: Q_t is pi_t's regularised Q-function against pi_t itself. With
    eta = 2 / (alpha (t + 2)), KL(pi* || pi_t) <= 32 H Q^2 / (alpha^2 (t + 1)), Q a bound on |Q_t|, the KL summed over
    turns along pi*.

    Args:
        game: The game.
        reference: One `[S_h, A]` array a turn.
        alpha: Weight of the KL, positive.
        start: pi_0, None for the reference.
    """
    policy = tuple(reference if start is None else start)
    eta = _paper_step(alpha)
    t = 0
    while True:
        yield policy
        q = q_values(game, policy, policy, reference, alpha=alpha)
        weight = min(1.0, alpha * eta(t))
        policy = tuple(
            softmax(mix_logs(log_of(p), log_of(r), weight) + eta(t) * own)
            for p, r, own in zip(policy, reference, q, strict=True)
        )
        t += 1


def mtpo_tau(
    game: TabularGame, reference: Sequence[Array], *, alpha: float, start: Sequence[Array] | None = None
) -> Iterator[TurnPolicy]:
    """MTPO-tau: as `mtpo`, but both players of the Q-function are the mixture pi_t^{1 - alpha eta} ref^{alpha eta}.

    arXiv 2405.14655, section 4, whose bound has 9 in place of 32. tau is a mixing coefficient there, no temperature. On
    a single turn this is Nash-MD.
    """
    policy = tuple(reference if start is None else start)
    eta = _paper_step(alpha)
    t = 0
    while True:
        yield policy
        weight = min(1.0, alpha * eta(t))
        mixture = tuple(geometric_mixture(p, r, weight) for p, r in zip(policy, reference, strict=True))
        q = q_values(game, mixture, mixture, reference, alpha=alpha)
        policy = tuple(softmax(log_of(m) + eta(t) * own) for m, own in zip(mixture, q, strict=True))
        t += 1


def _paper_step(tau: float) -> StepSize:
    if not tau > 0:
        raise ValueError(f"mirror descent: expected a positive weight of the KL, got {tau}")
    return lambda t: 2.0 / (tau * (t + 2))
