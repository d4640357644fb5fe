"""How good an agent is in an environment: success rates with intervals, turns, tool errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from turnwise.agents.agent import Agent
from turnwise.agents.collecting import EnvironmentSource, collect
from turnwise.envs.store import Store
from turnwise.envs.trajectory import Group

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


def wilson(successes: float, trials: int, *, z: float = _Z95) -> Proportion:
    """Wilson's score interval of a share; [0, 1] where nothing was tried.

    Args:
        successes: Between 0 and `trials`.
        trials: Number of independent trials.
        z: Normal quantile; 1.96 gives 95%.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"wilson: expected 0 <= successes <= trials, got {successes} of {trials}")
    if trials == 0:
        return Proportion(math.nan, 0.0, 1.0, 0)
    share = successes / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return Proportion(share, max(0.0, middle - half), min(1.0, middle + half), trials)


def pass_at(correct: int, samples: int, k: int) -> float:
    """Chance that at least one of k samples drawn without replacement is right (unbiased; arXiv 2107.03374, eq. 1)."""
    if not 1 <= k <= samples:
        raise ValueError(f"pass_at: expected 1 <= k <= {samples} samples, got {k}")
    if samples - correct < k:
        return 1.0
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Attributes:
        success: Share of episodes whose total reward reached `success_reward`. The interval counts problems, not
            episodes, as independent: with several samples a problem it is the normal interval of the problem means.
        pass_at_n: Share of problems solved by at least one of n samples.
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
    return Report(
        success=_mean_over_problems(right),
        pass_at_n=wilson(sum(any(marks) for marks in right), len(right)),
        samples=max(len(group) for group in groups),
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


def _mean_over_problems(right: Sequence[Sequence[bool]]) -> Proportion:
    means = np.array([np.mean(marks) for marks in right])
    if all(len(marks) == 1 for marks in right):
        return wilson(float(means.sum()), len(means))
    value = float(means.mean())
    # Samples of one problem are not independent; problems are. Wilson with the design effect keeps the interval
    # inside [0, 1] and honest at the edges, where the normal interval collapses.
    episodes = sum(len(marks) for marks in right)
    binomial = value * (1 - value) / episodes
    clustered = float(means.var(ddof=1)) / len(means) if len(means) > 1 else binomial
    effective = (
        episodes if binomial == 0 else max(len(means), round(episodes * min(1.0, binomial / max(clustered, 1e-12))))
    )
    interval = wilson(value * effective, effective)
    return Proportion(value, interval.low, interval.high, len(means))
