"""The pictures of the suite `coverage`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from polyturn.benchmarks.coverage.runs import Runs
from polyturn.benchmarks.coverage.training import METHODS, REWARDS
from polyturn.benchmarks.running.plots import BLUE, RUNS, SHARE, VERMILLION, picture


def draw_learning(runs: Runs, out: Path) -> None:
    """One row a reward, one column a method: on-policy and offline over training."""
    note = f"Blue, solid: on-policy, T=1. Red, dashed: offline. {RUNS}"
    with picture(
        out / f"coverage_{runs.variant}", len(REWARDS), len(METHODS), width=2.1, height=1.9, note=note
    ) as grid:
        for reward, row in zip(REWARDS, grid, strict=True):
            for method, panel in zip(METHODS, row, strict=True):
                for source, colour, dashes in (("offline", VERMILLION, "--"), ("T=1", BLUE, "-")):
                    values = runs.over_training(method, reward, source)
                    panel.curve(runs.records, values, colour=colour, dashes=dashes, bounds=SHARE)
                first, last = method == METHODS[0], reward == REWARDS[-1]
                panel.words(
                    title=f"{method}, {reward}", x="update" if last else "", y="expected reward" if first else ""
                )
            row[0].limits(y=SHARE)


def draw_reuse(found: Sequence[Runs], out: Path) -> None:
    """Reward on R1 over the batches drawn: one row a policy and method, one column a T; the other T in grey."""
    shown = [(runs, method) for runs in found if runs.variant != "table" for method in ("BoN", "PPO")]
    columns = max(len(runs.reuses) for runs, _ in shown)
    note = f"{RUNS} Grey: the other T."
    with picture(out / "reuse", len(shown), columns, width=2.3, height=1.8, note=note) as grid:
        for (runs, method), row in zip(shown, grid, strict=True):
            batches = {t: (np.array(runs.records) / t).tolist() for t in runs.reuses}
            values = {t: runs.over_training(method, "R1", f"T={t}") for t in runs.reuses}
            for t, panel in zip(runs.reuses, row, strict=False):
                for other in runs.reuses:
                    panel.context(batches[other], values[other].mean(axis=0).tolist())
                panel.curve(batches[t], values[t], colour=BLUE, bounds=SHARE)
                panel.axes.set_xscale("symlog", linthresh=1.0)
                panel.words(
                    title=f"{runs.variant}, {method}, T={t}",
                    x="batches drawn" if row is grid[-1] else "",
                    y="expected reward" if panel is row[0] else "",
                )
            for panel in row[len(runs.reuses) :]:
                panel.missing("not run")
            row[0].limits(y=SHARE)
