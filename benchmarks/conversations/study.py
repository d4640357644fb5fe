"""A study of conversations as a suite: one cell trains one method, a last cell of each seed compares all policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from polyturn.agents.transformer.policy import Policy
from polyturn.benchmarks.conversations.methods import all_policies, trained
from polyturn.benchmarks.conversations.models import fit_quality
from polyturn.benchmarks.conversations.pages import fit_section, plot_histories, sample_section, training_section
from polyturn.benchmarks.conversations.setting import QUICK, Experiment, Setting, Task, from_options
from polyturn.benchmarks.running.suite import Cell, Outcome, Suite

Results = Sequence[Mapping[str, Any]]
"""What the comparing cell returned, one a seed."""


@dataclass(frozen=True)
class Study:
    """A suite that trains several methods on one task and compares their policies.

    Attributes:
        name: As `polyturn bench` calls it.
        summary: One line.
        task: The environment and its judge.
        methods: Names out of `RECIPES`.
        comparison: Name of the cell that compares the policies.
        compare: From the seed and the policies by name to the results of the comparison.
        findings: From the comparisons and the output folder to the report's first part; draws its pictures.
        samples: From one comparison to the sample conversations by policy.
        speakers: Letters of the partner and the agent in the sample conversations.
        labels: Words on the labels of the fitted models, for the report.
        sizes: Where the sizes differ from `Setting`'s.
    """

    name: str
    summary: str
    task: Task
    methods: tuple[str, ...]
    comparison: str
    compare: Callable[[Experiment, Mapping[str, Policy]], dict[str, Any]]
    findings: Callable[[Results, Path], list[str]]
    samples: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    speakers: tuple[str, str]
    labels: str
    sizes: Mapping[str, Any] = field(default_factory=dict)

    def cells(self, quick: bool, seeds: int) -> list[Cell]:
        """One cell a method, and one that compares, for each seed."""
        options = asdict(replace(Setting(), **(QUICK if quick else self.sizes)))
        return [Cell(name, seed, options) for seed in range(seeds) for name in (*self.methods, self.comparison)]

    def run(self, cell: Cell, work: Path) -> dict[str, Any]:
        """Trains one method, or compares all policies of a seed."""
        run = Experiment(self.task, from_options(cell.options), cell.seed, work)
        if cell.name != self.comparison:
            return {"history": trained(run, cell.name)[1]}
        policies = all_policies(run, self.methods)
        compared = self.compare(run, policies)
        return {"fits": fit_quality(run), **compared}

    def report(self, outcomes: Sequence[Outcome], out: Path) -> str:
        """The findings of the study, then the sections that both studies share."""
        results = [outcome.result for outcome in outcomes if outcome.cell.name == self.comparison]
        histories: dict[str, list[Any]] = {}
        for outcome in outcomes:
            if outcome.cell.name != self.comparison:
                histories.setdefault(outcome.cell.name, []).append(outcome.result["history"])
        plot_histories(histories, out / "curves")
        text = [
            *self.findings(results, out),
            *fit_section([result["fits"] for result in results], self.labels),
            *training_section(histories),
            "\n![win rate against the SFT policy and KL to it, over training](curves.svg)\n",
            *sample_section(self.samples(results[0]), self.speakers),
            f"Settings: `{dict(outcomes[0].cell.options)}`\n",
        ]
        return "\n".join(text)

    def suite(self) -> Suite:
        """The suite that `polyturn bench` runs."""
        return Suite(
            name=self.name,
            summary=self.summary,
            cells=self.cells,
            run=self.run,
            report=self.report,
            parallel=True,
            takes_model=True,
        )
