"""How good an agent is in an environment: success rates with intervals, turns, tool errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from polyturn.agents.agent import Agent
from polyturn.agents.collecting.collect import EnvironmentSource, collect
from polyturn.envs.store import Store
from polyturn.envs.trajectory import Group

_Z95 = 1.959963984540054


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


def pass_at(correct: int, samples: int, k: int) -> float:
    """Chance that at least one of k samples drawn without replacement is right (unbiased; arXiv 2107.03374, eq. 1)."""
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(
            f"pass_at: expected 1 <= k <= samples and 0 <= correct <= samples, got k={k}, {correct} of {samples}"
        )
    if samples - correct < k:
        return 1.0
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Attributes:
        success: Share of episodes whose total reward reached `success_reward`, every problem with equal weight. The
            interval counts problems, not episodes, as independent; see `clustered`.
        pass_at_n: Share of problems solved by at least one of n samples, among those with n valid ones (all problems
            where there are none such).
        samples: Samples a problem (n).
        mean_return: Mean total reward.
        turns: Mean number of turns.
        tokens: Mean number of tokens the agent wrote.
        tool_errors: Share of episodes in which a program failed.
        truncated: Share of episodes a limit ended.
        invalid: Episodes left out because something outside the agent failed.
    """

    success: Proportion
    pass_at_n: Proportion
    samples: int
    mean_return: float
    turns: float
    tokens: float
    tool_errors: float
    truncated: float
    invalid: int

    def to_json(self) -> dict[str, Any]:
        """All numbers, nested."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"pass@1       {self.success}  ({self.success.trials} problems x {self.samples})"]
        if self.samples > 1:
            lines.append(f"pass@{self.samples:<8}{self.pass_at_n}")
        lines += [
            f"turns        {self.turns:.2f}",
            f"tool errors  {100 * self.tool_errors:.1f}% of episodes",
            f"truncated    {100 * self.truncated:.1f}% of episodes",
        ]
        if self.invalid:
            lines.append(f"invalid      {self.invalid} episodes left out: something outside the agent failed")
        return "\n".join(lines)


def report(groups: Sequence[Group], *, success_reward: float = 1.0) -> Report:
    """Summarises groups; invalid episodes are left out and counted.

    Args:
        groups: One a problem.
        success_reward: Total reward from which an episode counts as a success.

    Raises:
        ValueError: Not one episode is valid.
    """
    valid = [[m for m in group if m.valid] for group in groups]
    kept = [members for members in valid if members]
    if not kept:
        errors = {m.error for group in groups for m in group if m.error}
        raise ValueError(f"report: expected valid episodes, got none; errors were {sorted(errors)[:3]}")
    episodes = [m for members in kept for m in members]
    right = [[m.total_reward >= success_reward for m in members] for members in kept]
    samples = max(len(group) for group in groups)
    whole = [marks for marks in right if len(marks) == samples] or right
    return Report(
        success=clustered(right),
        pass_at_n=wilson(sum(any(marks) for marks in whole), len(whole)),
        samples=samples,
        mean_return=float(np.mean([m.total_reward for m in episodes])),
        turns=float(np.mean([len(m.turns) for m in episodes])),
        tokens=float(np.mean([sum(len(turn.action_ids) for turn in m.turns) for m in episodes])),
        tool_errors=float(np.mean([any(turn.info.get("tool_error") for turn in m.turns) for m in episodes])),
        truncated=float(np.mean([m.truncated for m in episodes])),
        invalid=sum(len(group) for group in groups) - len(episodes),
    )


def evaluate(
    agent: Agent,
    env: EnvironmentSource,
    *,
    tasks: Sequence[int] | None = None,
    problems: int | None = None,
    samples: int = 1,
    seed: int = 0,
    env_options: Mapping[str, Any] | None = None,
    success_reward: float = 1.0,
    concurrency: int = 64,
    store: Store | None = None,
    progress: bool = True,
    label: str = "evaluate",
) -> Report:
    """Runs `samples` episodes on each problem and summarises them; arguments as in `collect` and `report`."""
    groups = collect(
        agent,
        env,
        groups=problems,
        group_size=samples,
        seed=seed,
        tasks=tasks,
        env_options=env_options,
        concurrency=concurrency,
        store=store,
        progress=progress,
        label=label,
    )
    return report(groups, success_reward=success_reward)


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
