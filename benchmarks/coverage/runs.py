"""The results of the suite `coverage`, by policy, method, reward and source of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyturn.benchmarks.coverage.training import METHODS, REWARDS
from polyturn.benchmarks.running.reporting import paired_difference
from polyturn.benchmarks.running.suite import Outcome

LIKELIHOOD, CONTRASTIVE = ("BoN", "RWR"), ("DPO", "IPO")


@dataclass(frozen=True, eq=False)
class Runs:
    """All results of one variant.

    Attributes:
        variant: "table", "MLP" or "GPT".
        figures: `[methods, seeds, records, rewards, sources]` expected reward.
        records: Number of updates at each record.
        sources: Names of the sources of data.
        options: Options of its first cell.
    """

    variant: str
    figures: NDArray[np.float64]
    records: Sequence[int]
    sources: Sequence[str]
    options: Mapping[str, Any]

    @property
    def reuses(self) -> list[int]:
        """T of each on-policy source."""
        return [int(name[2:]) for name in self.sources if name != "offline"]

    @property
    def most_reuse(self) -> str:
        """The source with the largest T."""
        return f"T={max(self.reuses)}"

    def over_training(self, method: str, reward: str, source: str) -> NDArray[np.float64]:
        """`[seeds, records]`."""
        return self.figures[METHODS.index(method), :, :, REWARDS.index(reward), list(self.sources).index(source)]

    def at(self, method: str, reward: str, source: str, update: int | None = None) -> list[float]:
        """The reward after a number of updates, by default at the end, one a seed."""
        record = len(self.records) - 1 if update is None else list(self.records).index(update)
        return [float(value) for value in self.over_training(method, reward, source)[:, record]]

    def mean(self, methods: Sequence[str], reward: str, source: str, update: int | None = None) -> list[float]:
        """The mean over methods, one a seed."""
        return [float(v) for v in np.mean([self.at(m, reward, source, update) for m in methods], axis=0)]

    def on_minus_offline(self, method: str, reward: str) -> list[float]:
        """On-policy (T=1) minus offline, one a seed."""
        return paired_difference(self.at(method, reward, "T=1"), self.at(method, reward, "offline"))

    def cost_of_reuse(self, method: str, reward: str) -> list[float]:
        """T=1 minus the largest T at equal updates, one a seed."""
        return paired_difference(self.at(method, reward, "T=1"), self.at(method, reward, self.most_reuse))

    def gain_of_reuse(self, method: str, reward: str, reuse: int) -> list[float]:
        """A reuse minus T=1 after equally many batches, one a seed."""
        batches = self.records[-1] // reuse
        return paired_difference(
            self.at(method, reward, f"T={reuse}", batches * reuse), self.at(method, reward, "T=1", batches)
        )

    def moments(self) -> list[tuple[str, int]]:
        """Where losses are compared: offline at the end; on-policy at the end, and early, before all converge."""
        end = int(self.records[-1])
        return [("offline", end), ("T=1", end // 8), ("T=1", end)]


def gather(outcomes: Sequence[Outcome], variant: str) -> Runs:
    """The results of one variant's cells."""
    mine = [o for o in outcomes if o.cell.name.partition("-")[0] == variant]
    by_method = [[o.result["expected_reward"] for o in mine if o.cell.name == f"{variant}-{m}"] for m in METHODS]
    options = mine[0].cell.options
    return Runs(variant, np.array(by_method), options["records"], options["sources"], options)
