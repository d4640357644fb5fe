"""What the pages of the conversation studies share: learning curves, the runs' last figures, conversations to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyturn.benchmarks.running.plots import save
from polyturn.benchmarks.running.reporting import line, panels, plus_minus
from polyturn.benchmarks.running.suite import Outcome
from polyturn.envs.trajectory import Trajectory

Histories = Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]
"""The records of training steps, by way and seed."""


def trained(outcomes: Sequence[Outcome], *, but: str) -> dict[str, list[list[dict[str, Any]]]]:
    """The histories in the outcomes of all cells except those of one name, which compare."""
    names = dict.fromkeys(o.cell.name for o in outcomes if o.cell.name != but)
    return {name: [o.result["history"] for o in outcomes if o.cell.name == name] for name in names}


def samples(members: Sequence[Trajectory], count: int = 1) -> list[list[list[str]]]:
    """The first valid conversations, each as pairs of what was said and what was answered."""
    return [
        [[turn.observation, turn.action] for turn in member.turns] + [[member.final_observation, ""]]
        for member in [member for member in members if member.valid][:count]
    ]


def fit_rows(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One row a kind of model: accuracy and log loss over seeds."""
    return [
        [name, *(plus_minus([seed[name][figure] for seed in found], 3) for figure in ("accuracy", "log_loss"))]
        for name in found[0]
    ]


def training_rows(histories: Histories) -> list[list[str]]:
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


def plot_histories(histories: Histories, stem: Path) -> None:
    """Win rate against the SFT policy over training steps, and the KL to it, one line a way."""
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
