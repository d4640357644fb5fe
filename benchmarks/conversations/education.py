"""Suite `education`: which method of learning from preferences makes the best teacher?

The claim of multi-turn preference optimisation (arXiv 2405.14655): methods that compare whole conversations beat
methods that judge single turns, and MTPO, which does not assume a reward, beats RLHF, MTPO-tau by the
most. Small scale: a two-layer transformer that imitates scripted teachers of mixed quality, the scripted student, the
exact oracle. All policies are compared in pairs from the same starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyturn.agents.scripted.teachers import ScriptedTeacher
from polyturn.agents.transformer.policy import Policy
from polyturn.algorithms.feedback.dueling import duel
from polyturn.benchmarks.conversations.pages import samples
from polyturn.benchmarks.conversations.setting import Experiment, Setting, Task
from polyturn.benchmarks.conversations.study import Results, Study
from polyturn.benchmarks.running.plots import BLUE, VERMILLION, Dot, picture
from polyturn.benchmarks.running.reporting import plus_minus, side_of_zero
from polyturn.benchmarks.running.suite import mean_interval, table
from polyturn.envs.education.oracle import CRITERIA, EducationOracle, outcome, turn_scores
from polyturn.envs.education.topics import TOPICS
from polyturn.envs.trajectory import Trajectory

METHODS = ("RLHF-reward", "RLHF-value", "RLHF-multi", "MTPO", "MTPO-tau", "M-DPO")
CLAIMED_ORDER = (
    ("RLHF-reward", "SFT"),
    ("RLHF-value", "SFT"),
    ("RLHF-multi", "SFT"),
    ("MTPO", "SFT"),
    ("MTPO-tau", "SFT"),
    ("M-DPO", "SFT"),
    ("RLHF-multi", "RLHF-reward"),
    ("RLHF-multi", "RLHF-value"),
    ("MTPO", "RLHF-reward"),
    ("MTPO", "RLHF-value"),
    ("MTPO", "RLHF-multi"),
    ("MTPO-tau", "RLHF-multi"),
    ("MTPO-tau", "MTPO"),
    ("MTPO", "M-DPO"),
)
"""Pairs whose first policy is the better one by the paper, and comparisons with M-DPO."""


def _options(setting: Setting) -> dict[str, Any]:
    return {"turns": setting.turns, "topics": [topic.id for topic in TOPICS[: setting.topics]]}


def _effect(trajectory: Trajectory) -> NDArray[np.float64]:
    """`[H]` the change that each turn made to the mean of the oracle's criteria."""
    return np.diff(turn_scores(trajectory), prepend=0.0)


TASK = Task("polyturn/EducationDialogue-v0", _options, ScriptedTeacher, EducationOracle(), _effect)


def _compare(run: Experiment, policies: Mapping[str, Policy]) -> dict[str, Any]:
    """Win rates of all policies against all, from the same starts."""
    found = duel(
        {name: run.agent(policy) for name, policy in policies.items()},
        TASK.env,
        TASK.judge,
        starts=run.setting.duels,
        seed=run.seed + 3_000,
        env_options=run.env_options(),
        progress=False,
    )
    # From one group a start to one column a policy.
    columns = list(zip(*(list(group) for group in found.groups), strict=True))
    conversations = dict(zip(found.names, columns, strict=True))
    return {
        "names": list(found.names),
        "rate": found.rate.tolist(),
        "half": found.half.tolist(),
        "starts": found.starts,
        "invalid": sum(not member.valid for group in found.groups for member in group),
        "outcomes": {
            name: np.mean([outcome(member) for member in members if member.valid], axis=0).tolist()
            for name, members in conversations.items()
        },
        "turns": {
            name: float(np.mean([len(member.turns) for member in members])) for name, members in conversations.items()
        },
        "samples": {name: shown for name, members in conversations.items() if (shown := samples(members))},
    }


def _findings(duels: Results, out: Path) -> list[str]:
    """Win rates of all pairs, the claimed order, and what became of the students."""
    names = list(duels[0]["names"])
    starts = sum(int(result["starts"]) for result in duels) // len(duels)
    invalid = sum(int(result["invalid"]) for result in duels)
    win_rates = [
        [row, *("-" if row == column else plus_minus(_rates(duels, row, column), 1) for column in names)]
        for row in names
    ]
    outcomes = [
        [
            name,
            *(plus_minus([result["outcomes"][name][place] for result in duels]) for place in range(len(CRITERIA))),
            plus_minus([result["turns"][name] for result in duels], 1),
        ]
        for name in names
    ]
    _draw_order(duels, out)
    return [
        "# education: learning to teach from preferences over conversations\n",
        f"Win rate of the row over the column in %, judged by the exact oracle: mean over {len(duels)} seeds with the "
        f"95% Student interval over seeds. In each seed every policy has one conversation from each of {starts} common "
        f"starts; {invalid} conversations were invalid.\n",
        table(["", *names], win_rates),
        "\n## The claimed order, pair by pair\n",
        "Win rate minus 50, in points. Over seeds: 95% Student interval, for training with another seed; few seeds "
        "make it wide. Over starts: 95% interval over the starts of the comparison, for these trained policies only. "
        "Above or below: the interval excludes 0; open: it contains 0.\n",
        table(
            ["policy", "against", "over seeds", "", "over starts", ""],
            [_pair_row(duels, first, second) for first, second in CLAIMED_ORDER],
        ),
        "\n![win rate minus 50 for each pair](order.svg)\n",
        "\n## Outcomes of the students\n",
        table(["teacher", *CRITERIA, "turns"], outcomes),
    ]


def _samples(result: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = result["samples"]
    return found


def _rates(duels: Results, row: str, column: str) -> list[float]:
    """P(row beats column) in %, one a seed."""
    return [100 * float(result["rate"][result["names"].index(row)][result["names"].index(column)]) for result in duels]


def _margins(duels: Results, row: str, column: str) -> tuple[list[float], float, float]:
    """Win rate minus 50 in points: one a seed, their mean, and the half width of the interval over starts."""
    margins = [rate - 50 for rate in _rates(duels, row, column)]
    halves = [
        100 * float(result["half"][result["names"].index(row)][result["names"].index(column)]) for result in duels
    ]
    # The seeds' comparisons are independent, so the variance of their mean is that of the sum over the square.
    return margins, mean_interval(margins)[0], sum(half**2 for half in halves) ** 0.5 / len(halves)


def _pair_row(duels: Results, row: str, column: str) -> list[str]:
    """One pair: its mean with both intervals, and on which side of 0 each of them lies."""
    margins, mean, half = _margins(duels, row, column)
    _, low, high = mean_interval(margins)
    return [
        row,
        column,
        plus_minus(margins, 1),
        side_of_zero(low, high),
        f"{mean:.1f} ± {half:.1f}",
        side_of_zero(mean - half, mean + half),
    ]


def _draw_order(duels: Results, out: Path) -> None:
    """The claimed order as dots: intervals over seeds on the left, over starts on the right."""
    over_seeds, over_starts = [], []
    for first, second in CLAIMED_ORDER:
        margins, mean, half = _margins(duels, first, second)
        label = f"{first} against {second}"
        over_seeds.append(Dot(label, margins, BLUE))
        over_starts.append(Dot("", margins, VERMILLION, interval=(mean - half, mean + half)))
    note = "Dot: mean. Ticks: the seeds. Bar: 95% interval over seeds (left) or over starts (right)."
    with picture(out / "order", 1, 2, width=4.2, height=4.4, note=note, share_y=False) as ((left, right),):
        left.dots(over_seeds, bounds=(-50, 50), zero=0)
        right.dots(over_starts, bounds=(-50, 50), zero=0)
        right.axes.set_xlim(left.axes.get_xlim())
        left.words(title="training with other seeds", x="win rate minus 50, points")
        right.words(title="these policies", x="win rate minus 50, points")


STUDY = Study(
    name="education",
    summary="teaching by conversation: single-turn and multi-turn RLHF, MTPO, MTPO-tau and M-DPO, all against all",
    task=TASK,
    methods=METHODS,
    comparison="duels",
    compare=_compare,
    findings=_findings,
    samples=_samples,
    speakers=("S", "T"),
    labels="the likelier winner by the oracle's probability, so the cross-entropy cannot reach 0",
)
SUITE = STUDY.suite()
