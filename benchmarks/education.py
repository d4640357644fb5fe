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

from turnwise.agents.teachers import ScriptedTeacher
from turnwise.algorithms.dueling import duel
from turnwise.benchmarks.conversations import (
    QUICK,
    Setting,
    Task,
    agent,
    fit_rows,
    fits,
    improved,
    supervised,
    with_model,
)
from turnwise.benchmarks.reporting import line, panels, plus_minus
from turnwise.benchmarks.suite import Cell, Outcome, Suite, mean_interval, table
from turnwise.envs.education_oracle import CRITERIA, EducationOracle, outcome, turn_scores
from turnwise.envs.education_topics import TOPICS
from turnwise.envs.trajectory import Trajectory

NAMES = ("RLHF-reward", "RLHF-value", "RLHF-multi", "MTPO", "MTPO-tau", "M-DPO")
_SHOWN = 1


def _options(setting: Setting) -> dict[str, Any]:
    return {"turns": setting.turns, "topics": [topic.id for topic in TOPICS[: setting.topics]]}


def _effect(trajectory: Trajectory) -> NDArray[np.float64]:
    """`[H]` by how much each turn changed the mean of the oracle's criteria."""
    return np.diff(turn_scores(trajectory), prepend=0.0)


TASK = Task("turnwise/EducationDialogue-v0", _options, ScriptedTeacher, EducationOracle(), _effect)
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
    policies = {"SFT": supervised(TASK, setting, cell.seed, work)}
    policies |= {name: improved(TASK, setting, name, cell.seed, work)[0] for name in NAMES}
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
        "samples": {
            name: [[[turn.observation, turn.action] for turn in m.turns] + [[m.final_observation, ""]] for m in some]
            for name, members in talks.items()
            if (some := [m for m in members if m.valid][:_SHOWN])
        },
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
    histories = {
        name: [o.result["history"] for o in outcomes if o.cell.name == name]
        for name in dict.fromkeys(o.cell.name for o in outcomes)
        if name != DUELS
    }
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


def training_rows(histories: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> list[list[str]]:
    """What runs report at their last step: one row a way."""
    rows = []
    for name, runs in histories.items():
        last = [run[-1] for run in runs]
        row = [name]
        for key, digits in (("kl", 1), ("explained_variance", 2), ("entropy", 2)):
            values = [float(record[key]) for record in last if key in record]
            row.append(plus_minus(values, digits) if len(values) == len(last) else "")
        rows.append(row)
    return rows


def plot_histories(histories: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], stem: Path) -> None:
    """Win rate against the SFT policy over training steps, and the KL to it, one line a way."""
    from turnwise.benchmarks.plots import save

    with panels(11, 4, 2) as (canvas, (left, right)):
        for name, runs in histories.items():
            steps, won = _common(runs, "eval/win_reference")
            line(left, steps, [[100 * rate for rate in run] for run in won], label=name, marker="o")
            steps, spent = _common(runs, "kl")
            if steps:
                line(right, steps, spent, label=name)
        left.axhline(50, color="grey", linewidth=0.8)
        left.set(xlabel="training step", ylabel="win rate against SFT, %")
        right.set(xlabel="training step", ylabel="KL to SFT, nats a conversation")
        left.legend(frameon=False, fontsize=8)
        save(canvas, stem)


def _common(runs: Sequence[Sequence[Mapping[str, Any]]], key: str) -> tuple[list[int], list[list[float]]]:
    """The steps of which every run tells a number, and the numbers `[runs][steps]`."""
    known = [{int(record["step"]): float(record[key]) for record in run if key in record} for run in runs]
    steps = sorted(set.intersection(*(set(run) for run in known)))
    return steps, [[run[step] for step in steps] for run in known]


def conversations_shown(
    samples: Mapping[str, Sequence[Sequence[Sequence[str]]]], speakers: tuple[str, str]
) -> list[str]:
    """Conversations as quoted blocks; model text stands in code blocks, where nothing in it is markup."""
    text = []
    for name, talks in samples.items():
        for talk in talks:
            lines = [f"{speakers[0]}: {said}" + (f"\n{speakers[1]}: {reply}" if reply else "") for said, reply in talk]
            safe = "\n".join(lines).replace("`", "'")
            text += [f"**{name}**\n", f"```text\n{safe}\n```\n"]
    return text


SUITE = Suite(
    name="education",
    summary="teaching by conversation: single-turn and multi-turn RLHF, MTPO, MTPO-tau and M-DPO, all against all",
    cells=_cells,
    run=_run,
    report=_report,
    parallel=True,
    takes_model=True,
)
