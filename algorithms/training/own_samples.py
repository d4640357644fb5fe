"""What policy gradients ask of samples: that the policy drew them, from a distribution that it is scored under too.

The gradient of E[score] is E[score grad log pi] only for samples of pi itself. A temperature makes another policy of
the same weights, one that can be scored: softmax(z / T). What top_p cuts off has no log-probability, greedy decoding
has no distribution, and a mixture is another policy; the first step would clip most tokens and report a KL of the
policy to itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from polyturn.agents.transformer.agent import SampledAs
from polyturn.algorithms.methods.base import Hooks


def check_sampling(name: str, sampled: SampledAs) -> None:
    """Refuses samples that no policy gradient can be taken on.

    Args:
        name: The method's.
        sampled: How they are, or are to be, drawn.

    Raises:
        ValueError: From a mixture, greedily, or with tokens cut off.
    """
    if sampled.mixed:
        raise ValueError(
            f"{name}: expected samples of the policy itself, got those of a mixture with another; a mixture may be the "
            "opponent, and act for methods that compare pairs (IPO, GPO)"
        )
    if sampled.temperature == 0 or sampled.top_p < 1 or sampled.top_k or sampled.min_p:
        raise ValueError(
            f"{name}: expected samples of the policy's own distribution, with top_p 1, neither top_k nor min_p, and a "
            f"temperature above 0, got temperature {sampled.temperature:g}, top_p {sampled.top_p:g}, top_k "
            f"{sampled.top_k} and min_p {sampled.min_p:g}; what was cut off has no log-probability that could be "
            "learned from"
        )


def temperature_of(method: Hooks, names: Iterable[str]) -> float:
    """The temperature at which rows by these agents are to be scored; 1 where their names say nothing of it.

    Args:
        method: It needs the policy's own samples.
        names: As trajectories record agents.

    Raises:
        ValueError: Samples that no policy gradient can be taken on, or of several temperatures.
    """
    found = {SampledAs.of(name) or SampledAs() for name in names}
    for each in found:
        check_sampling(method.name, each)
    if len(temperatures := {each.temperature for each in found}) > 1:
        raise ValueError(
            f"{method.name}: expected samples of one temperature in a step, got {sorted(temperatures)}; they are "
            "samples of different policies"
        )
    return temperatures.pop() if temperatures else 1.0


def check_staleness(method: Hooks, staleness: int) -> None:
    """Refuses samples of earlier weights where nothing corrects for them.

    Args:
        method: What is trained.
        staleness: Draws between the weights that sampled and those that are trained.

    Raises:
        ValueError: The method takes the policy's gradient on its own samples, without ratios to what sampled.
    """
    if staleness and method.needs.sampled and not method.needs.behaviour:
        raise ValueError(
            f"{method.name}: expected staleness=0, got {staleness}: its gradient is that of samples of the present "
            "weights, and it has no importance ratios to correct for earlier ones; PPO and GRPO have, and methods that "
            "compare pairs (DPO, IPO, GPO) do not ask who sampled"
        )


def check_scoring(method: Hooks, dropout: bool, model: nn.Module) -> None:
    """Refuses dropout where the policy must be scored as it sampled.

    Raises:
        ValueError: Dropout is to be left on in a model that has some.
    """
    if dropout and method.needs.sampled and (names := _dropping(model)):
        raise ValueError(
            f"{method.name}: expected dropout=False, got True: samples were drawn without dropout, and {names[0]} "
            "would score them under another distribution"
        )


def _dropping(model: nn.Module) -> list[str]:
    """What drops something in a model: modules, or settings of attention."""
    found = [name for name, module in model.named_modules() if isinstance(module, nn.Dropout) and module.p > 0]
    config = getattr(model, "config", None)
    return found + [name for name in ("attention_dropout",) if getattr(config, name, 0)]
