"""Suite `coverage`: when do on-policy samples and negative gradients matter?

The bandit study of arXiv 2404.14367: on-policy samples and contrastive losses help where the data policy rarely samples
the peak of the reward (R1), and matter little where it often does (R2). Three policies are trained: a table of 100
logits, the paper's MLP over contexts that do not change the rewards, and the paper's sequence variant, a small GPT.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polyturn.benchmarks.coverage.report import NINTH, SWEEP, report
from polyturn.benchmarks.coverage.training import DATA, METHODS, train
from polyturn.benchmarks.running.suite import Cell, Suite

RATES: Mapping[str, Mapping[str, float]] = {
    "table": {"BoN": 0.1, "RWR": 0.03, "REINFORCE": 0.1, "PPO": 0.1, "DPO": 0.1, "IPO": 0.1},
    "MLP": {"BoN": 0.01, "RWR": 3e-4, "REINFORCE": 3e-3, "PPO": 0.01, "DPO": 1e-3, "IPO": 1e-3},
    "GPT": {"BoN": 0.01, "RWR": 3e-3, "REINFORCE": 0.01, "PPO": 0.01, "DPO": 0.01, "IPO": 3e-3},
}
"""Adam's learning rates: the best of a coarse grid for each method and policy (see the README of the results)."""

GRID = (3e-4, 1e-3, 3e-3, 1e-2)
"""Learning rates at which the MLP is also trained on-policy, to separate the methods from their rates."""

_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "table": {"updates": 320, "groups": 10, "fit": 0},
    "MLP": {"updates": 320, "groups": 10, "fit": 100},
    # Sequences cost more: fewer prompts in a batch, fewer updates, no T=32. One token changes the mean over 9 tokens by
    # at most a ninth, so the tie threshold is a ninth, and RWR's temperature is lower.
    "GPT": {"updates": 96, "groups": 4, "fit": 300, "threshold": 0.2 / 9, "temperature": 0.1},
}
_MOMENTS = (0, 1, 2, 4, 8, 12, 16, 20, 24, 28, 32)
"""Thirty-seconds of the updates after which the expected reward is recorded."""


def _cells(quick: bool, seeds: int) -> list[Cell]:
    settings = {variant: _options(variant, quick) for variant in _SETTINGS}
    # Seed by seed, so that the first seeds of an interrupted run are complete.
    cells = [
        Cell(f"{variant}-{method}", seed, {**options, "lr": RATES[variant][method]})
        for seed in range(seeds)
        for variant, options in settings.items()
        for method in METHODS
    ]
    mlp = settings["MLP"]
    rates = {**mlp, "records": [mlp["records"][_MOMENTS.index(m)] for m in (2, 4, 8, 16)], "sources": ["T=1"]}
    rates["rates"] = list(GRID[-1:] if quick else GRID)
    # IPO's margin is that of a whole answer: nine tokens share the margin that one arm has in the bandit.
    ninth = {**settings["GPT"], "lr": RATES["GPT"]["IPO"], "sources": ["T=1", "offline"], "tau": 0.05 / 9}
    return [
        *cells,
        *(Cell(f"{SWEEP}-{method}", seed, rates) for seed in range(seeds) for method in METHODS),
        *(Cell(NINTH, seed, ninth) for seed in range(seeds)),
    ]


def _options(variant: str, quick: bool) -> dict[str, Any]:
    options: dict[str, Any] = {**_SETTINGS[variant], "group_size": 10}
    if quick:
        options |= {"updates": 32, "groups": 2, "group_size": 4, "fit": min(options["fit"], 30)}
    updates = options.pop("updates")
    options["records"] = [updates * moment // 32 for moment in _MOMENTS]
    options["sources"] = [name for name in DATA if not (variant == "GPT" and name == "T=32")]
    return options


def _run(cell: Cell, work: Path) -> dict[str, Any]:
    variant, _, method = cell.name.partition("-")
    if variant == SWEEP:
        return _sweep(method, cell)
    if cell.name == NINTH:
        variant = "GPT"
    return {"expected_reward": np.round(train(variant, method, **cell.options, seed=cell.seed), 4).tolist()}


def _sweep(method: str, cell: Cell) -> dict[str, Any]:
    """The MLP at every learning rate: `[rates, records, rewards]` by tie threshold."""
    options = dict(cell.options)
    rates = options.pop("rates")
    found = {}
    for threshold in (0.2, 0.0) if method in ("DPO", "IPO") else (0.2,):
        runs = [train("MLP", method, **options, lr=lr, threshold=threshold, seed=cell.seed) for lr in rates]
        found[str(threshold)] = np.round(np.array(runs)[..., 0], 4).tolist()
    return found


SUITE = Suite(
    name="coverage",
    summary="the bandit study: on-policy or offline, six methods, two rewards, sample reuse; table, MLP and GPT",
    cells=_cells,
    run=_run,
    report=report,
    seeds=5,
    parallel=True,
)
