"""The variants that the suite `stochastic_bias` compares, and the objective that each of them claims to optimise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from polyturn.benchmarks.stochastic_bias.games import PaidGame, preference_regret, response_regret, reward_regret

if TYPE_CHECKING:
    from polyturn.algorithms.methods.base import Method

Claim = Literal["reward", "response", "preference"]

NOISE_LEVELS = (0.0, 0.1, 0.2, 0.4, 0.6)
"""Probability that a reply of a random game is replaced by a uniformly random one."""
SPREADS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Spreads of the gamble."""
BETA = {"random": 1.0, "gamble": 0.25}
"""Weight of the KL in units of reward; in units of preference it is a quarter of that, the slope of sigmoid at 0."""


@dataclass(frozen=True)
class Variant:
    """A method with the pairs that it compares.

    Attributes:
        claim: Its optimum: "reward", the largest E[r] - beta KL; "response", the largest P(beats the reference) -
            alpha KL; "preference", the equilibrium regularised with alpha.
        pairs: As in `Plays.descend`.
        ties: As in `Plays.descend`.
    """

    claim: Claim
    pairs: Literal["own", "reference"] = "own"
    ties: bool = True


VARIANTS: Mapping[str, Variant] = {
    "M-DPO, reference's pairs": Variant("reward", "reference"),
    "M-DPO": Variant("reward"),
    "M-DPO without ties": Variant("reward", ties=False),
    "multi-turn RLHF": Variant("reward"),
    "M-IPO, reference's pairs": Variant("response", "reference"),
    "M-IPO": Variant("preference"),
    "MTPO": Variant("preference"),
}
TRAINED = ("M-DPO", "multi-turn RLHF", "M-IPO", "MTPO")
"""The variants that train the transformer."""


def method_of(name: str, *, beta: float, sampled: bool) -> Method:
    """A variant's method; with samples it has a value network and a warm-up of it, in the exact part none."""
    from polyturn.algorithms import GPO, IPO, MTPO, PPO

    alpha = beta / 4.0
    exact: dict[str, Any] = {"lam": 1.0, "whiten": False, "value_weight": 0.0}
    options = {"value_warmup": 5, "value_weight": 1.0} if sampled else exact
    if name == "MTPO":
        return MTPO(kl=alpha, **options)
    if name == "multi-turn RLHF":
        return PPO(kl=beta, over="turn", **options)
    if name.startswith("M-IPO"):
        return IPO(tau=alpha)
    return GPO(beta=beta, soft_labels=True, pairs_per_group=None)


def regret_figures(
    claim: Claim, paid: PaidGame, policy: Sequence[Any], reference: Sequence[Any], beta: float
) -> list[float]:
    """Regret by the claimed objective, its ratio to the reference's regret, and KL(optimum || policy)."""

    def regret(policy: Sequence[Any]) -> tuple[float, float]:
        if claim == "reward":
            return reward_regret(paid, policy, reference, beta=beta)
        if claim == "response":
            return response_regret(paid, policy, reference, alpha=beta / 4.0)
        return preference_regret(paid, policy, reference, alpha=beta / 4.0)

    found, divergence = regret(policy)
    return [found, found / regret(reference)[0], divergence]
