"""How good an agent is in an environment: mean return and success with intervals, turns, tool errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from polyturn.agents.agent import Agent
from polyturn.agents.collecting.collect import CollectError, EnvironmentSource, collect
from polyturn.envs.outcomes import (
    Estimate,
    Proportion as Proportion,
    clustered as clustered,
    mean_of_problems,
    success_of,
    wilson as wilson,
)
from polyturn.envs.store import Store
from polyturn.envs.trajectory import Group


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
        mean_return: Mean total reward, every problem with equal weight, with an interval over problems.
        success: Share of episodes that succeeded, every problem with equal weight (also called pass@1); None where the
            environment does not say what success is (see `success_of`). The interval counts problems, not episodes,
            as independent; see `clustered`.
        pass_at_n: Share of problems solved by at least one of n samples, among those with n valid ones (all problems
            where there are none such); None without `success`.
        samples: Samples a problem (n).
        turns: Mean number of turns.
        tokens: Mean number of tokens the agent wrote.
        tool_errors: Share of episodes in which a program failed.
        truncated: Share of episodes a limit ended.
        invalid: Episodes left out because something outside the agent failed.
        empty: Episodes without a turn, such as those whose first prompt did not fit; they count as they were rewarded.
    """

    mean_return: Estimate
    success: Proportion | None
    pass_at_n: Proportion | None
    samples: int
    turns: float
    tokens: float
    tool_errors: float
    truncated: float
    invalid: int
    empty: int = 0

    def to_json(self) -> dict[str, Any]:
        """All numbers, nested; None where there is no number."""
        made = asdict(self)
        made["mean_return"] = {k: None if math.isnan(v) else v for k, v in made["mean_return"].items()}
        return made

    def __str__(self) -> str:
        lines = [f"mean return  {self.mean_return}  ({self.mean_return.trials} problems x {self.samples})"]
        if self.success is None:
            lines.append('success      not declared by the environment (success_return, or an info\'s "success")')
        else:
            lines.append(f"success      {self.success}")
        if self.samples > 1 and self.pass_at_n is not None:
            lines.append(f"pass@{self.samples:<8}{self.pass_at_n}")
        lines += [
            f"turns        {self.turns:.2f}",
            f"tool errors  {100 * self.tool_errors:.1f}% of episodes",
            f"truncated    {100 * self.truncated:.1f}% of episodes",
        ]
        if self.empty:
            lines.append(
                f"empty        {self.empty} episodes had no turn, such as those whose first prompt did not fit"
            )
        if self.invalid:
            lines.append(f"invalid      {self.invalid} episodes left out: something outside the agent failed")
        return "\n".join(lines)


def report(groups: Sequence[Group], *, success_return: float | None = None) -> Report:
    """Summarises groups; invalid episodes are left out and counted.

    Args:
        groups: One a problem.
        success_return: Total reward from which an episode counts as a success; None: what the environment declares.

    Raises:
        ValueError: Not one episode is valid, or not one had a turn.
    """
    valid = [[m for m in group if m.valid] for group in groups]
    kept = [members for members in valid if members]
    if not kept:
        errors = {m.error for group in groups for m in group if m.error}
        raise ValueError(f"report: expected valid episodes, got none; errors were {sorted(errors)[:3]}")
    episodes = [m for members in kept for m in members]
    if silence := _why_silent(groups):
        raise ValueError(f"report: expected episodes with turns; {silence}")
    samples = max(len(group) for group in groups)
    outcomes = [[success_of(m, success_return=success_return) for m in members] for members in kept]
    # One episode without a rule leaves the share of all unknown.
    known = not any(outcome is None for marks in outcomes for outcome in marks)
    right = [[bool(outcome) for outcome in marks] for marks in outcomes]
    whole = [marks for marks in right if len(marks) == samples] or right
    return Report(
        mean_return=mean_of_problems([[m.total_reward for m in members] for members in kept]),
        success=clustered(right) if known else None,
        pass_at_n=wilson(sum(any(marks) for marks in whole), len(whole)) if known else None,
        samples=samples,
        turns=float(np.mean([len(m.turns) for m in episodes])),
        tokens=float(np.mean([sum(len(turn.action_ids) for turn in m.turns) for m in episodes])),
        tool_errors=float(np.mean([any(turn.info.get("tool_error") for turn in m.turns) for m in episodes])),
        truncated=float(np.mean([m.truncated for m in episodes])),
        invalid=sum(len(group) for group in groups) - len(episodes),
        empty=sum(not m.turns for m in episodes),
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
    success_return: float | None = None,
    concurrency: int = 64,
    store: Store | None = None,
    progress: bool = True,
    label: str = "evaluate",
) -> Report:
    """Runs `samples` episodes on each problem and summarises them; arguments as in `collect` and `report`.

    Raises:
        CollectError: Every episode failed, or none had a turn.
        ValueError: Arguments that do not fit together.
    """
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
    if silence := _why_silent(groups):
        raise CollectError(silence)
    return report(groups, success_return=success_return)


def _why_silent(groups: Sequence[Group]) -> str:
    """Why no valid episode has a turn, or "": then nothing was seen of the agent, and its return says nothing of it."""
    valid = [member for group in groups for member in group if member.valid]
    if not valid or any(member.turns for member in valid):
        return ""
    reasons = sorted({str(member.info.get("context", "the episode ended at its start")) for member in valid})
    return f"no episode had a turn: {'; '.join(reasons[:3])}"
