"""Committed cells as numbers: one a seed, in the order of the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyturn.benchmarks.coverage.runs import CONTRASTIVE, LIKELIHOOD, Runs, gather
from polyturn.benchmarks.coverage.training import METHODS
from polyturn.benchmarks.gpo_frontier import Sweeps
from polyturn.benchmarks.nash_language.report import Found
from polyturn.benchmarks.running.rendering import saved_outcomes
from polyturn.benchmarks.running.reporting import fall_from_peak, paired_difference
from polyturn.benchmarks.running.suite import Outcome, load


class Cells:
    """The committed results of all suites, read when they are asked for.

    Args:
        results: Folder with one folder a suite.
    """

    def __init__(self, results: Path) -> None:
        self._results = results
        self._held: dict[str, list[Outcome]] = {}

    def of(self, suite: str) -> list[Outcome]:
        """All outcomes of a suite."""
        if suite not in self._held:
            self._held[suite] = saved_outcomes(load(suite), self._results / suite)
        return self._held[suite]

    def results(self, suite: str, name: str) -> list[Mapping[str, Any]]:
        """The results of a cell, one a seed."""
        found = [outcome for outcome in self.of(suite) if outcome.cell.name == name]
        return [outcome.result for outcome in sorted(found, key=lambda outcome: outcome.cell.seed)]

    def end(self, suite: str, name: str, figure: str) -> list[float]:
        """The last evaluation of a training run."""
        return [float(result[figure][-1]) for result in self.results(suite, name)]

    def ends(self, suite: str, first: str, second: str, figure: str) -> list[float]:
        """The last evaluation of the first minus that of the second."""
        return paired_difference(self.end(suite, first, figure), self.end(suite, second, figure))

    def fall(self, suite: str, name: str, figure: str = "win_rate") -> list[float]:
        """How far a figure ends below its highest point, which the other seeds choose."""
        return fall_from_peak([result[figure] for result in self.results(suite, name)])

    def solved(self, variant: str, iteration: int, decoding: str) -> list[float]:
        """tool_math: held-out success in points; iteration -1 is the last, 0 the SFT policy."""
        runs = self.results("tool_math", variant)
        return [100 * run["iterations"][iteration]["evaluation"][decoding]["success"]["value"] for run in runs]

    def gain(self, first: tuple[str, int], second: tuple[str, int], decoding: str) -> list[float]:
        """tool_math: points of the first variant and iteration minus those of the second."""
        return paired_difference(self.solved(*first, decoding), self.solved(*second, decoding))

    def taught(self, row: str, column: str) -> list[float]:
        """education: win rate of the row over the column minus 1/2."""
        found = []
        for result in self.results("education", "duels"):
            names = result["names"]
            found.append(float(result["rate"][names.index(row)][names.index(column)]) - 0.5)
        return found

    def sold(self, first: str, second: str) -> list[float]:
        """car_dealer: pay of the first minus that of the second, in 60,000 dollars."""
        return [float(r[first]["reward"] - r[second]["reward"]) for r in self.results("car_dealer", "sales")]

    def coverage(self, variant: str) -> Runs:
        """coverage: "table", "MLP" or "GPT"."""
        return gather(self.of("coverage"), variant)

    def frontier(self) -> Sweeps:
        """gpo_frontier: all seeds."""
        return Sweeps.of(self.of("gpo_frontier"), "table")

    def language(self, kind: str = "study") -> Found:
        """nash_language: one kind of cells."""
        return Found.of(self.of("nash_language"), kind)


def on_policy(runs: Runs, reward: str) -> list[float]:
    """Mean over the methods of on-policy minus offline."""
    return [float(v) for v in np.mean([runs.on_minus_offline(method, reward) for method in METHODS], axis=0)]


def contrastive(runs: Runs, source: str, update: int | None = None) -> list[float]:
    """R1: mean of DPO and IPO minus mean of best-of-N and RWR."""
    sides = (runs.mean(group, "R1", source, update) for group in (CONTRASTIVE, LIKELIHOOD))
    return paired_difference(*sides)


def reused(runs: Runs) -> list[float]:
    """R1: mean over the methods of T=8 minus T=1 after equally many samples."""
    return [float(v) for v in np.mean([runs.gain_of_reuse(method, "R1", 8) for method in METHODS], axis=0)]


def minus(values: Sequence[float], by: float = 0.5) -> list[float]:
    """Each value less a number."""
    return [value - by for value in values]
