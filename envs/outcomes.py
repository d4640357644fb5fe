"""How episodes came out: success where the environment says what it is, and means and shares with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polyturn.envs.registration import UnknownEnv, creator, env_spec
from polyturn.envs.returns import at_least
from polyturn.envs.trajectory import Trajectory

_Z95 = 1.959963984540054
# What environments call it in their last info; the second is the custom of Gymnasium's robotics environments.
SUCCESS_KEYS = ("success", "is_success")


def success_of(trajectory: Trajectory, *, success_return: float | None = None) -> bool | None:
    """Whether an episode succeeded, by the rule of its environment; None where the environment has no such rule.

    A reward may be a price or a mark, and no number of it is a success unless the environment says so: with the
    attribute `success_return`, the total reward from which an episode is one, or with `"success": bool` in the info of
    the last step. `collect` puts the outcome there. Where it is missing, as in stores of other programs, the registered
    class of `trajectory.env_id` is asked.

    Args:
        trajectory: A valid one.
        success_return: Total reward from which an episode counts, instead of the environment's rule.
    """
    if success_return is not None:
        return at_least(trajectory.total_reward, success_return)
    for key in SUCCESS_KEYS:
        if isinstance(found := trajectory.info.get(key), bool):
            return found
    bound = declared_success(trajectory.env_id)
    return None if bound is None else at_least(trajectory.total_reward, bound)


def declared_success(env_id: str) -> float | None:
    """The `success_return` of the class that is registered under an id, or None."""
    try:
        made = creator(env_spec(env_id))
    except (UnknownEnv, ImportError, AttributeError):
        return None
    bound = getattr(made, "success_return", None)
    return float(bound) if isinstance(bound, int | float) else None


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval.

    Attributes:
        value: The mean.
        low: Lower end; nan for a single problem, which says nothing of others.
        high: Upper end; nan there too.
        trials: Number of problems.
    """

    value: float
    low: float
    high: float
    trials: int

    def __str__(self) -> str:
        ends = "no interval from one problem" if math.isnan(self.low) else f"{self.low:.4f}, {self.high:.4f}"
        return f"{self.value:.4f} [{ends}]"


def mean_of_problems(values: Sequence[Sequence[float]]) -> Estimate:
    """The mean over problems, each with equal weight, with Student's interval over problems.

    Samples of one problem are not independent of each other, so problems are what is counted.

    Args:
        values: For every problem, one number a sample.

    Raises:
        ValueError: No problem, or one without samples.
    """
    if not values or not all(len(each) for each in values):
        raise ValueError("mean_of_problems: expected problems with at least one sample each")
    from scipy import special  # type: ignore[import-untyped]  # slow to import, and only needed here

    means = np.array([math.fsum(each) / len(each) for each in values])
    value, count = math.fsum(means) / len(means), len(means)
    if count == 1:
        return Estimate(value, math.nan, math.nan, 1)
    half = float(special.stdtrit(count - 1, 0.975)) * float(means.std(ddof=1)) / math.sqrt(count)
    return Estimate(value, value - half, value + half, count)


@dataclass(frozen=True)
class Proportion:
    """A share with its 95% interval.

    Attributes:
        value: Successes / trials.
        low: Lower end.
        high: Upper end.
        trials: Number of trials.
    """

    value: float
    low: float
    high: float
    trials: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson(successes: float, trials: float, *, z: float = _Z95) -> Proportion:
    """Wilson's score interval of a share (JASA 22, 1927, page 209); [0, 1] where nothing was tried.

    Args:
        successes: Between 0 and `trials`.
        trials: Number of independent trials; need not be whole where it is an effective number.
        z: Normal quantile; 1.96 gives 95%.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"wilson: expected 0 <= successes <= trials, got {successes} of {trials}")
    if trials == 0:
        return Proportion(math.nan, 0.0, 1.0, 0)
    share = successes / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return Proportion(share, max(0.0, middle - half), min(1.0, middle + half), int(trials))


def clustered(right: Sequence[Sequence[bool]]) -> Proportion:
    """Share of successes with an interval over problems: samples of one problem are not independent of each other.

    Wilson's interval at the effective number of trials, p (1 - p) / var, where var is the variance of the mean of the
    problem means: the trials divided by the design effect, as for clustered survey samples (Franco, Little, Louis and
    Slud, J. Survey Statistics and Methodology 7, 2019). The number is kept between that of problems and that of
    episodes; where all or none succeeded the variance says nothing, and it is that of problems.

    Args:
        right: For every problem, whether each of its samples succeeded.

    Raises:
        ValueError: No problem, or one without samples.
    """
    if not right or not all(right):
        raise ValueError("clustered: expected problems with at least one sample each")
    means = np.array([np.mean(marks) for marks in right])
    value = float(means.mean())
    problems, episodes = len(means), sum(len(marks) for marks in right)
    variance = float(means.var(ddof=1)) / problems if problems > 1 else 0.0
    if problems == 1 or value in (0.0, 1.0):
        effective = float(problems)
    elif variance == 0.0:
        effective = float(episodes)
    else:
        effective = min(max(value * (1.0 - value) / variance, problems), episodes)
    interval = wilson(value * effective, effective)
    return Proportion(value, interval.low, interval.high, problems)
