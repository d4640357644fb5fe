"""Suite `education`: which way of learning from preferences makes the best teacher?

The claim is that of multi-turn preference optimisation (arXiv 2405.14655): methods that compare whole conversations
beat those that judge single turns, and MTPO, which needs no reward behind the preferences, beats RLHF, MTPO-tau most of
all. Small scale: a two-layer transformer that imitates scripted teachers of mixed quality, the scripted student, the
exact oracle. All policies meet each other in pairs from the same starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyturn.agents.scripted.teachers import ScriptedTeacher
from polyturn.algorithms.feedback.dueling import duel
from polyturn.benchmarks.conversations.pages import (
    conversations_shown,
    fit_rows,
    plot_histories,
    samples,
    trained,
    training_rows,
)
from polyturn.benchmarks.conversations.training import (
    QUICK,
    Setting,
    Task,
    agent,
    everybody,
    fits,
    improved,
    with_model,
)
from polyturn.benchmarks.running.reporting import plus_minus
from polyturn.benchmarks.running.suite import Cell, Outcome, Suite, mean_interval, table
from polyturn.envs.education.oracle import CRITERIA, EducationOracle, outcome, turn_scores
from polyturn.envs.education.topics import TOPICS
from polyturn.envs.trajectory import Trajectory

NAMES = ("RLHF-reward", "RLHF-value", "RLHF-multi", "MTPO", "MTPO-tau", "M-DPO")


def _options(setting: Setting) -> dict[str, Any]:
    return {"turns": setting.turns, "topics": [topic.id for topic in TOPICS[: setting.topics]]}


def _effect(trajectory: Trajectory) -> NDArray[np.float64]:
    """`[H]` by how much each turn changed the mean of the oracle's criteria."""
    return np.diff(turn_scores(trajectory), prepend=0.0)


TASK = Task("polyturn/EducationDialogue-v0", _options, ScriptedTeacher, EducationOracle(), _effect)
DUELS = "duels"
LINKS = (
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
"""The paper's order, link by link, and M-DPO."""


def _cells(quick: bool, seeds: int) -> list[Cell]:
    setting = replace(Setting(), **QUICK) if quick else Setting()
    options = asdict(setting)
    return [Cell(name, seed, options) for seed in range(seeds) for name in (*NAMES, DUELS)]


def _run(cell: Cell, work: Path) -> dict[str, Any]:
    setting = with_model(Setting(), cell.options)
    if cell.name != DUELS:
        return {"history": improved(TASK, setting, cell.name, cell.seed, work)[1]}
    policies = everybody(TASK, setting, NAMES, cell.seed, work)
    found = duel(
        {name: agent(setting, policy) for name, policy in policies.items()},
        TASK.env,
        TASK.judge,
        starts=setting.duels,
        seed=cell.seed + 3_000,
        env_options=TASK.options(setting),
        progress=False,
    )
    columns = list(zip(*(list(group) for group in found.groups), strict=True))
    talks = dict(zip(found.names, columns, strict=True))
    return {
        "names": list(found.names),
        "rate": found.rate.tolist(),
        "half": found.half.tolist(),
        "starts": found.starts,
        "fits": fits(cell.seed, work),
        "invalid": sum(not member.valid for group in found.groups for member in group),
        "outcomes": {
            name: np.mean([outcome(member) for member in members if member.valid], axis=0).tolist()
            for name, members in talks.items()
        },
        "turns": {name: float(np.mean([len(m.turns) for m in members])) for name, members in talks.items()},
        "samples": {name: shown for name, members in talks.items() if (shown := samples(members))},
    }


def _report(outcomes: Sequence[Outcome], out: Path) -> str:
    duels = [o.result for o in outcomes if o.cell.name == DUELS]
    names = list(duels[0]["names"])
    setting = outcomes[0].cell.options

    def rates(row: str, column: str) -> list[float]:
        return [100 * float(d["rate"][names.index(row)][names.index(column)]) for d in duels]

    matrix = [
        [row, *("-" if row == column else plus_minus(rates(row, column), 1) for column in names)] for row in names
    ]
    shares = [
        [
            name,
            *(plus_minus([d["outcomes"][name][place] for d in duels]) for place in range(len(CRITERIA))),
            plus_minus([d["turns"][name] for d in duels], 1),
        ]
        for name in names
    ]
    histories = trained(outcomes, but=DUELS)
    plot_histories(histories, out / "curves")
    episodes = sum(int(d["starts"]) for d in duels)
    text = [
        "# education: learning to teach from preferences over conversations\n",
        f"Row's win rate over column in %, by the exact oracle, mean over {len(duels)} seeds with the 95% Student "
        f"interval over seeds; {episodes // len(duels)} starts a seed, one conversation of each policy from each, "
        f"{sum(int(d['invalid']) for d in duels)} invalid.\n",
        table(["", *names], matrix),
        "\n## The claimed order, link by link\n",
        "Win rate minus 50 in points. Over seeds: 95% Student interval, says what to expect of training anew; few "
        "seeds make it wide. Over starts: 95% interval of the same conversations, for these trained policies alone.\n",
        table(
            ["", "against", "over seeds", "", "over starts", ""], [_link(duels, row, column) for row, column in LINKS]
        ),
        "\n## What happened to the students\n",
        table(["", *CRITERIA, "turns"], shares),
        "\n## Fitted models\n",
        "On held-out starts: share of pairs whose likelier winner was predicted, and the mean cross-entropy in nats "
        "(0.693 for a model that knows nothing; labels are probabilities, so 0 cannot be reached).\n",
        table(["", "accuracy", "log loss"], fit_rows([d["fits"] for d in duels])),
        "\n## Training\n",
        "At the last step, mean over seeds: KL to the SFT policy in nats a conversation (where the method reports "
        "it), share of the value targets' variance that the value explains, entropy of a token in nats.\n",
        table(["", "KL", "explained variance", "entropy"], training_rows(histories)),
        "\n![win rate against the SFT policy while training](curves.svg)\n",
        "## One conversation each\n",
        "The first of the first seed's comparison; nothing was chosen by hand.\n",
        *conversations_shown(duels[0]["samples"], ("S", "T")),
        f"Settings: `{dict(setting)}`\n",
    ]
    return "\n".join(text)


def _link(duels: Sequence[Mapping[str, Any]], row: str, column: str) -> list[str]:
    """One pair of ways: the mean over seeds with both intervals, and what each of them carries."""
    at = [(d["names"].index(row), d["names"].index(column)) for d in duels]
    rates = [100 * float(d["rate"][i][j]) - 50 for d, (i, j) in zip(duels, at, strict=True)]
    halves = [100 * float(d["half"][i][j]) for d, (i, j) in zip(duels, at, strict=True)]
    mean, low, high = mean_interval(rates)
    half = sum(value**2 for value in halves) ** 0.5 / len(halves)
    return [
        row,
        column,
        f"{plus_minus(rates, 1)}",
        _verdict(low, high),
        f"{mean:.1f} ± {half:.1f}",
        _verdict(mean - half, mean + half),
    ]


def _verdict(low: float, high: float) -> str:
    return "above" if low > 0 else "below" if high < 0 else "open"


SUITE = Suite(
    name="education",
    summary="teaching by conversation: single-turn and multi-turn RLHF, MTPO, MTPO-tau and M-DPO, all against all",
    cells=_cells,
    run=_run,
    report=_report,
    parallel=True,
    takes_model=True,
)
