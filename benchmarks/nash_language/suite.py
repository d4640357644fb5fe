"""Suite `nash_language`: Nash methods and mixtures against online DPO, IPO, SLiC and RLHF on a preference with cycles.

The comparisons of arXiv 2312.00886 (Nash-MD-PG and Nash-EMA-PG against RLHF, over the mixture) and of arXiv 2403.08635
(online IPO, IPO-MD, DPO, SLiC, Nash-MD-PG and RLHF) on small transformers, with a learned preference model. All methods
have the same start, prompts, feedback, number of answers and number of updates, and each its own best rate and pull to
the reference out of one grid, chosen on seeds that are not reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyturn.benchmarks.nash_language.report import SETTINGS, report
from polyturn.benchmarks.nash_language.task import KINDS, Ids, Oracle
from polyturn.benchmarks.nash_language.training import METHODS, Feedback, Run, learn, prepare
from polyturn.benchmarks.running.suite import Cell, Suite
from polyturn.benchmarks.token_policies import one_thread

RATES, REACHES = (1e-2, 3e-2), (3.0, 8.0, 25.0)
"""The grid out of which each method has its best learning rate and pull to the reference."""
MIXTURES = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
MIXED = ("IPO-MD", "Nash-MD-PG")
USUAL = 0.125
"""The mixture of both papers' comparisons."""
PILOTS = (1000, 1001, 1002)
"""Seeds on which settings are chosen and the number of seeds is computed."""


def study_runs(settings: Mapping[str, Sequence[float]]) -> dict[str, Run]:
    """Every method at its learning rate and reach, then the sweep over the mixture."""

    def run(name: str, mixture: float) -> Run:
        lr, reach = settings[name]
        return Run(name, lr, reach, mixture=mixture)

    runs = {name: run(name, USUAL) for name in METHODS}
    for name in MIXED:
        runs |= {f"{name} {m:g}": run(name, m) for m in MIXTURES if m != USUAL}
    return runs


def grid_runs(rates: Sequence[float], reaches: Sequence[float]) -> dict[str, Run]:
    """Every method at every setting of the grid."""
    return {
        f"{name} {lr:g} {reach:g}": Run(name, lr, reach, mixture=USUAL)
        for name in METHODS
        for lr in rates
        for reach in reaches
    }


def _cells(quick: bool, seeds: int) -> list[Cell]:
    options: dict[str, Any] = {
        "feedback": {
            "start_steps": 30 if quick else 200,
            "comparisons": 500 if quick else 12_000,
            "held_out": 500 if quick else 2000,
            "models": {"width": 64, "steps": 50 if quick else 300, "lr": 3e-3, "decay": 0.1},
        },
        "training": {
            "steps": 6 if quick else 150,
            "groups": 4 if quick else 8,
            "group_size": 4,
            "answers": 8 if quick else 64,
        },
    }
    grid = {**options, "rates": list(RATES[: 1 if quick else None]), "reaches": list(REACHES)}
    set_to = {**options, "settings": {name: list(setting) for name, setting in SETTINGS.items()}}
    return [
        *(Cell("grid", seed, grid) for seed in PILOTS[: 1 if quick else None]),
        *(Cell("study", seed, set_to) for seed in range(seeds)),
        *(Cell("no cycle", seed, set_to) for seed in range(seeds)),
    ]


def _run(cell: Cell, work: Path) -> Mapping[str, Any]:
    oracle = Oracle(cycle=0.0) if cell.name == "no cycle" else Oracle()
    runs = (
        grid_runs(cell.options["rates"], cell.options["reaches"])
        if cell.name == "grid"
        else study_runs(cell.options["settings"])
    )
    if cell.name == "no cycle":
        runs = {name: runs[name] for name in METHODS}
    with one_thread():
        feedback = prepare(cell.options["feedback"], oracle, cell.seed)
        answers, spent = learn(list(runs.values()), feedback, **cell.options["training"], seed=cell.seed)
    return {
        "names": [*runs, "start"],
        "wins": np.round(oracle.duels(answers), 4).tolist(),
        "model": [round(_model_wins(feedback, each, answers[-1]), 4) for each in answers],
        "exploitability": [round(oracle.exploitability(each), 4) for each in answers],
        "kl": np.round(spent, 3).tolist(),
        "kinds": np.round([np.eye(KINDS)[each % KINDS].mean((0, 1, 2)) for each in answers], 3).tolist(),
        "accuracy": {name: round(value, 4) for name, value in feedback.accuracy.items()},
    }


def _model_wins(feedback: Feedback, mine: Ids, start: Ids) -> float:
    """P(a policy beats the start) by the learned preference model, over answers with the same number."""
    prompt = torch.arange(len(mine))[:, None].expand(mine.shape[:2])
    odds = feedback.preference.odds(prompt, torch.from_numpy(mine), torch.from_numpy(start))
    return float(torch.sigmoid(odds).mean())


def _report(outcomes: Sequence[Any], out: Path) -> str:
    return report(outcomes, out, mixtures=MIXTURES, mixed=MIXED, usual=USUAL)


SUITE = Suite(
    name="nash_language",
    summary="Nash-MD-PG, Nash-EMA-PG and IPO-MD against online DPO, IPO, SLiC and RLHF on a preference with cycles",
    cells=_cells,
    run=_run,
    report=_report,
    seeds=18,
    parallel=True,
)
