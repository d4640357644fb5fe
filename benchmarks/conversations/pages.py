"""What the reports of the conversation studies share: fitted models, training, sample conversations, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyturn.benchmarks.running.plots import BLUE, GREEN, NOT_NEGATIVE, PERCENT, RUNS, picture
from polyturn.benchmarks.running.reporting import plus_minus
from polyturn.benchmarks.running.suite import table
from polyturn.envs.trajectory import Trajectory

Histories = Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]
"""The records of training steps, by method and seed."""


def samples(members: Sequence[Trajectory], count: int = 1) -> list[list[list[str]]]:
    """The first valid conversations, each as pairs of an observation and the agent's turn."""
    valid = [member for member in members if member.valid]
    return [
        [[turn.observation, turn.action] for turn in member.turns] + [[member.final_observation, ""]]
        for member in valid[:count]
    ]


def fit_section(quality: Sequence[Mapping[str, Any]], labels: str) -> list[str]:
    """Accuracy and log loss of the fitted models, one row a model."""
    rows = [
        [name, *(plus_minus([seed[name][figure] for seed in quality]) for figure in ("accuracy", "log_loss"))]
        for name in quality[0]
    ]
    return [
        "\n## Fitted models\n",
        f"On held-out starts: the share of pairs whose winner was predicted ({labels}), and the mean cross-entropy in "
        "nats. A model without information has 0.693.\n",
        table(["model", "accuracy", "log loss"], rows),
    ]


def training_section(histories: Histories) -> list[str]:
    """What training reports at its last step, one row a method."""
    rows = []
    for name, runs in histories.items():
        row = [name]
        for key, digits in (("kl", 1), ("explained_variance", 2), ("entropy", 2)):
            values = [float(run[-1][key]) for run in runs if key in run[-1]]
            row.append(plus_minus(values, digits) if len(values) == len(runs) else "")
        rows.append(row)
    return [
        "\n## Training\n",
        "At the last step, mean over seeds: KL to the SFT policy in nats a conversation, share of the variance of the "
        "value targets that the value network explains, entropy of a token in nats. Empty where the method does not "
        "report it.\n",
        table(["method", "KL", "explained variance", "entropy"], rows),
    ]


def sample_section(found: Mapping[str, Sequence[Sequence[Sequence[str]]]], speakers: tuple[str, str]) -> list[str]:
    """Conversations as code blocks, in which nothing that a model wrote is markup."""
    partner, agent = speakers
    text = [
        "## Sample conversations\n",
        "The first valid conversation of each policy in the comparison of the first seed; none was selected by hand.\n",
    ]
    for name, conversations in found.items():
        for exchanges in conversations:
            lines = [f"{partner}: {said}" + (f"\n{agent}: {reply}" if reply else "") for said, reply in exchanges]
            safe = "\n".join(lines).replace("`", "'")
            text += [f"**{name}**\n", f"```text\n{safe}\n```\n"]
    return text


def plot_histories(histories: Histories, stem: Path) -> None:
    """One column a method: the win rate against the SFT policy above, the KL to it below."""
    with picture(stem, 2, len(histories), width=2.1, height=1.9, note=RUNS) as (rates, divergences):
        for column, (name, runs) in enumerate(histories.items()):
            steps, values = _common_steps(runs, "eval/win_reference")
            rates[column].level(50)
            rates[column].curve(steps, [[100 * rate for rate in run] for run in values], colour=BLUE, bounds=PERCENT)
            rates[column].words(title=name, y="" if column else "win rate against SFT, %")
            rates[column].limits(y=PERCENT)
            steps, values = _common_steps(runs, "kl")
            if steps:
                divergences[column].curve(steps, values, colour=GREEN, bounds=NOT_NEGATIVE)
            else:
                divergences[column].missing("not reported")
            divergences[column].words(x="training step", y="" if column else "KL to SFT,\nnats a conversation")
        divergences[0].limits(y=NOT_NEGATIVE)
        # The same steps in every panel: some runs recorded only the later ones.
        last = max(record["step"] for runs in histories.values() for run in runs for record in run)
        for panel in (*rates, *divergences):
            panel.axes.set_xlim(-0.02 * last, 1.02 * last)


def _common_steps(runs: Sequence[Sequence[Mapping[str, Any]]], key: str) -> tuple[list[int], list[list[float]]]:
    """The steps at which every run recorded a quantity, and its values `[runs][steps]`."""
    known = [{int(record["step"]): float(record[key]) for record in run if key in record} for run in runs]
    steps = sorted(set.intersection(*(set(run) for run in known)))
    return steps, [[run[step] for step in steps] for run in known]
