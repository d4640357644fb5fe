"""The papers' losses as pure functions of log-probabilities: unreduced, one value a row (or a token), to be minimised.

Words and units, the same in every function:

- `logps`: log pi(y|x), in nats, summed over the policy's own tokens of a trajectory (or of a turn, or one token: the
  functions work element by element and broadcast like any torch expression).
- `logratio`: g = log pi(y|x) - log pi_ref(y|x), same tokens.
- `margin`: h = g(first) - g(second) of a pair. Positive means that the policy has moved towards the FIRST, relative to
  the reference.
- `probability`: P(first beats second). None says that the first won for certain. The pair's two orders are weighed p
  and 1 - p, which also serves label smoothing (`probability=1 - smoothing`) and ties (`probability=0.5`).

Environment tokens are masked before the sums are taken (`polyturn.algorithms.estimators`). Nothing is divided by a
length. Compute in float32 or wider. Nothing here looks at other rows, so padding or reordering a batch changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

MarginFunction = Callable[[Tensor], Tensor]
"""f(x) of x = beta * margin: the cost of a pair whose first member was preferred; decreasing around 0."""

# Beyond this exponent e^x continues along its tangent: the gradient stays at e^40 = 2.4e17, whose square still fits
# float32 when the gradient's norm is taken, instead of overflowing to inf (and to nan at the first inf * 0).
_LINEAR_BEYOND = 40.0


def safe_exp(x: Tensor) -> Tensor:
    """e^x, continued along its tangent beyond x = 40, so that neither value nor gradient overflows float32."""
    return torch.exp(x.clamp(max=_LINEAR_BEYOND)) * (1.0 + (x - _LINEAR_BEYOND).clamp(min=0.0))


def logistic(x: Tensor) -> Tensor:
    """log(1 + e^-x) = -log sigmoid(x): DPO (arXiv 2305.18290, eq. 7), and M-DPO when x sums over a trajectory."""
    return F.softplus(-x)


def hinge(x: Tensor) -> Tensor:
    """max(0, 1 - x): SLiC (arXiv 2305.10425), as a member of GPO (arXiv 2402.05749, table 1)."""
    return torch.relu(1.0 - x)


def squared(x: Tensor) -> Tensor:
    """(x - 1)^2: IPO as a member of GPO (arXiv 2402.05749, table 1).

    With beta = 2 tau it is (2 tau)^2 times `ipo`, hence the same minimiser.
    """
    return (x - 1.0).square()


def exponential(x: Tensor) -> Tensor:
    """e^-x (arXiv 2402.05749, table 1).

    Deviation: below x = -40 it continues along its tangent, so that the gradient stays finite.
    """
    return safe_exp(-x)


def truncated_quadratic(x: Tensor) -> Tensor:
    """max(0, 1 - x)^2 (arXiv 2402.05749, table 1): `squared` without the pull back from margins beyond 1."""
    return torch.relu(1.0 - x).square()


def savage(x: Tensor) -> Tensor:
    """1 / (1 + e^x)^2 (arXiv 2402.05749, table 1): bounded by 1 and not convex, so hopeless pairs are given up."""
    return torch.sigmoid(-x).square()


def _both_orders(x: Tensor, f: MarginFunction, probability: Tensor | float | None) -> Tensor:
    """p f(x) + (1 - p) f(-x); an order of weight zero is never evaluated where f may overflow (0 * inf is nan)."""
    if probability is None:
        return f(x)
    p = torch.as_tensor(probability, dtype=x.dtype, device=x.device)
    zero = torch.zeros_like(x)
    # The conditions are written so that nan, an unjudged pair, is not taken for a weight of zero.
    first = torch.where(p == 0, zero, x)
    second = torch.where(p == 1, zero, -x)
    return p * f(first) + (1.0 - p) * f(second)


def gpo(
    margin: Tensor,
    *,
    beta: float,
    f: MarginFunction = logistic,
    probability: Tensor | float | None = None,
) -> Tensor:
    """Generalised preference optimisation: p f(beta h) + (1 - p) f(-beta h).

    arXiv 2402.05749; DPO with `f=logistic`, SLiC with `hinge`, IPO with `squared` and beta = 2 tau. M-DPO
    (arXiv 2409.02392) is `logistic` with the margin summed over all policy turns. f decreases around 0, so descent
    raises the margin of the preferred order. The members of the family differ in their slope at 0 (1/2, 1, 2, 1, 2,
    1/4 for logistic, hinge, squared, exponential, truncated quadratic, Savage), so the same beta is not the same
    strength.

    M-DPO's target is exact only where the environment's replies are certain. Otherwise the optimal margin lacks the
    sum over turns of (V(s_{h+1}) - E[V(s_{h+1}) | s_h, y_h]) to explain the labels, the chance in what the environment
    said; M-DPO attributes it to the policy and is biased.

    Args:
        margin: `[...]` h in nats; positive where the policy favours the first more than the reference does.
        beta: Strength of the pull to the reference; larger stays closer.
        f: Decreasing function of beta * h.
        probability: `[...]` P(first beats second), None for 1. A nan stays nan: drop unjudged pairs.

    Returns:
        `[...]` loss. Its derivative in the margin is beta (p f'(beta h) - (1 - p) f'(-beta h)).

    Examples:
        >>> import torch
        >>> from polyturn.algorithms import losses
        >>> losses.gpo(torch.tensor([-10.0, 0.0, 10.0]), beta=0.1)  # DPO: log(1 + e), log 2, log(1 + 1/e)
        tensor([1.3133, 0.6931, 0.3133])
    """
    return _both_orders(beta * margin, f, probability)


def ipo(margin: Tensor, *, tau: float, probability: Tensor | float | None = None) -> Tensor:
    """Identity preference optimisation: p (h - 1/(2 tau))^2 + (1 - p) (h + 1/(2 tau))^2.

    arXiv 2310.12036. Unlike DPO, certain preferences have a finite target: the margin 1/(2 tau), and with
    soft labels (2p - 1) / (2 tau). Online IPO (arXiv 2403.08635) is this on fresh pairs from the policy, IPO-MD on
    pairs that are both drawn from the geometric mixture; neither takes a gradient through the sampling.

    Deviation to know of: some libraries average the margin over tokens; then the same tau asks for 1/(2 tau) nats PER
    TOKEN. Here the margin is a sum; for the average, divide it by the count of policy tokens before.

    Args:
        margin: `[...]` h in nats.
        tau: Strength of the pull to the reference, positive.
        probability: `[...]` P(first beats second), None for 1.

    Examples:
        >>> import torch
        >>> from polyturn.algorithms import losses
        >>> losses.ipo(torch.tensor([0.0, 2.0, 5.0]), tau=0.1)  # 0 at the target of 5 nats
        tensor([25.,  9.,  0.])
    """
    target = 1.0 / (2.0 * tau)
    return _both_orders(margin, lambda h: (h - target).square(), probability)


def kto(
    logratio: Tensor,
    desirable: Tensor,
    *,
    beta: float,
    z0: Tensor | float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Kahneman-Tversky optimisation: weight (1 - sigmoid(+-beta (g - z0))), plus where desirable.

    arXiv 2402.01306; M-KTO (arXiv 2409.02392) when g sums over all policy turns. Descent raises g of desirable
    rows and lowers it of undesirable ones, with vanishing force far from the reference point z0 on either side.

    Deviation: the M-KTO paper writes sigmoid(eta g - z0), with z0 not scaled by eta. As in the KTO paper z0 stays in
    nats here, and both are scaled.

    Args:
        logratio: `[N]` g in nats.
        desirable: `[N]` bool, or 0/1.
        beta: Scale of g; larger saturates sooner.
        z0: The reference point in nats, a scalar or `[N]`: the policy's KL to the reference
            (`polyturn.algorithms.estimators.kto_reference_point`). No gradient flows through it.
        desirable_weight: Weight of desirable rows.
        undesirable_weight: Weight of undesirable rows.
    """
    anchor = torch.as_tensor(z0, dtype=logratio.dtype, device=logratio.device).detach()
    good = desirable.to(torch.bool)
    gain = beta * (logratio - anchor)
    # sigmoid(-x) instead of 1 - sigmoid(x): no cancellation where the row is already far on its right side.
    return torch.where(good, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain))


def pmpo(
    logps: Tensor,
    accepted: Tensor,
    reference_kl: Tensor,
    *,
    alpha: float,
    beta: float,
) -> Tensor:
    """Preference optimisation as inference: -alpha log pi (accepted), +(1 - alpha) log pi (rejected), + beta KL.

    arXiv 2410.04166, negated. Pairs are not needed: alpha = 1 learns from accepted rows only, alpha = 0 from
    rejected rows only. The rejected term has no lower bound; where the KL is too weak, mass collapses to
    the boundary (`polyturn.algorithms.exact.closed_forms.pmpo_optimum` says when).

    The paper takes the mean over accepted and over rejected rows separately. The loss is linear in `logps`, so
    `pmpo(logps * class_balance(accepted), ...)` averaged over the rows does the same for sets of any sizes; without it
    each side counts by its share of the rows.

    Args:
        logps: `[N]` log pi in nats.
        accepted: `[N]` bool, or 0/1.
        reference_kl: `[N]` KL(pi_ref || pi) >= 0, REFERENCE first, over the full vocabulary, summed over the tokens of
            a text drawn from the reference. The other direction is another algorithm.
        alpha: Weight of accepted rows, in [0, 1].
        beta: Weight of the KL, >= 0.
    """
    sign = torch.where(accepted.to(torch.bool), torch.full_like(logps, -alpha), torch.full_like(logps, 1.0 - alpha))
    return sign * logps + beta * reference_kl


def dro(reward: Tensor, value: Tensor, logratio: Tensor, *, tau: float) -> tuple[Tensor, Tensor]:
    """Direct reward optimisation with a value: 1/2 (r - V - tau g)^2, one loss for each of the two networks.

    arXiv 2405.19107. Both are zero exactly at pi* proportional to pi_ref exp(r / tau) and
    V* = tau log E_ref[exp(r / tau)], for data of any full-support policy. V is no baseline for variance: a
    wrong V biases the policy. Give it a separate network.

    Where the value is given per token position, pass the log-ratio from that token on
    (`polyturn.algorithms.estimators.log_ratio_to_go`) and the reward repeated: the identity holds for every prefix.

    Args:
        reward: `[...]` scalar feedback, standardised over the data set in the paper.
        value: `[...]` V of the prompt (or of the prefix).
        logratio: `[...]` g in nats.
        tau: Temperature, positive.

    Returns:
        Policy loss `[...]`: (r - V - tau g)^2 / (2 tau) with V fixed; its gradient is
        -(r - V) grad g + tau/2 grad g^2, the paper's policy step with its rescaling by 1/tau.
        Value loss `[...]`: (r - V - tau g)^2 / 2 with g fixed; its gradient is (V - r + tau g) grad V.
    """
    policy_residual = reward - value.detach() - tau * logratio
    value_residual = reward - value - tau * logratio.detach()
    return policy_residual.square() / (2.0 * tau), value_residual.square() / 2.0


def policy_gradient(logps: Tensor, advantage: Tensor) -> Tensor:
    """REINFORCE: -A log pi, whose descent direction raises log pi where the advantage is positive.

    Its value means nothing; its gradient's expectation under the policy's own samples is minus the gradient of the
    expected advantage (Williams 1992). With a per-token `logps [N, T]` pass what each token can still influence
    (`[N, T]` returns to go), or one advantage a row, `[N, 1]`.

    Args:
        logps: `[...]` log pi in nats.
        advantage: `[...]` no gradient flows through it.
    """
    return -advantage.detach() * logps


def ppo_clip(logps: Tensor, behaviour_logps: Tensor, advantage: Tensor, *, clip: float) -> Tensor:
    """PPO's clipped surrogate: -min(rho A, clamp(rho, 1 - clip, 1 + clip) A), rho = pi / behaviour.

    arXiv 1707.06347, eq. 7, negated. The gradient is zero where the ratio has already moved beyond the clip in the
    advantage's direction, and is kept where it moved the wrong way. Deviation: above rho = e^40 the ratio continues
    along its tangent, so that the gradient stays finite.

    Args:
        logps: `[...]` log pi in nats, per token in the usual form.
        behaviour_logps: `[...]` log-probability under what sampled, as it was sampled. No gradient.
        advantage: `[...]` no gradient.
        clip: Half width of the trust interval, for example 0.2.
    """
    gain = advantage.detach()
    ratio = safe_exp(logps - behaviour_logps.detach())
    return -torch.minimum(ratio * gain, ratio.clamp(1.0 - clip, 1.0 + clip) * gain)


def nash_md(logps: Tensor, preference: Tensor, logratio_to_go: Tensor, *, tau: float) -> Tensor:
    """Nash-MD-PG and Nash-EMA-PG: -log pi(y) [P(y > y') - 1/2 - tau log pi/pi_ref (y)], gradient through y only.

    arXiv 2312.00886. y is drawn from the policy; y' from the per-token geometric mixture with the reference
    (Nash-MD), or from the moving average of the weights (Nash-EMA), or from the policy (self-play). Descent raises the
    log-probability of answers that beat the opponent by more than their cost in KL.

    A token's weight contains the log-ratio from that token ON. Weighing each token by only its own log-ratio is not
    the gradient of the KL.

    Args:
        logps: `[N, T]` per token, or `[N]` whole answers.
        preference: P(y beats y') in [0, 1], `[N, 1]` for per-token `logps`, `[N]` for whole answers. No gradient.
        logratio_to_go: Same shape as `logps`: log-ratio of this and all later policy tokens of the answer, in nats
            (`polyturn.algorithms.estimators.log_ratio_to_go`), or the whole answer's log-ratio. No gradient.
        tau: Strength of the pull to the reference.
    """
    return policy_gradient(logps, preference - 0.5 - tau * logratio_to_go)


def nll(logps: Tensor) -> Tensor:
    """-log pi: supervised fine-tuning; on winners only it is Pref-FT, on the best of N samples RAFT or best-of-N."""
    return -logps


def rwr(logps: Tensor, reward: Tensor, *, beta: float, max_weight: float = math.inf) -> Tensor:
    """Reward-weighted regression: -min(exp(r / beta), max_weight) log pi.

    Peters and Schaal 2007; clipped to [0, 20] in the runs of arXiv 2404.14367.

    Args:
        logps: `[...]` log pi in nats of sampled answers.
        reward: `[...]` no gradient.
        beta: Temperature, positive; smaller weighs the best answers more.
        max_weight: Upper limit of a row's weight.
    """
    return -safe_exp(reward.detach() / beta).clamp(max=max_weight) * logps
