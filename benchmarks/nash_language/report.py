"""The report of the suite `nash_language`: settings, all against all, the mixture, and the control without cycles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyturn.benchmarks.nash_language.training import METHODS
from polyturn.benchmarks.running.plots import BLUE, COLOURS, NOT_NEGATIVE, Dot, picture
from polyturn.benchmarks.running.reporting import Comparison, compare_all, plus_minus
from polyturn.benchmarks.running.suite import Outcome, table

Array = NDArray[np.float64]

SETTINGS: Mapping[str, tuple[float, float]] = {
    "online DPO": (0.01, 25.0),
    "online IPO": (0.03, 25.0),
    "SLiC": (0.03, 25.0),
    "RLHF": (0.03, 25.0),
    "IPO-MD": (0.01, 25.0),
    "Nash-MD-PG": (0.03, 25.0),
    "Nash-EMA-PG": (0.03, 25.0),
}
"""Learning rate and reach of each method: the best of the grid on the pilot seeds."""
SMALLEST = 0.05
"""The difference of two win rates that the number of seeds should show."""
RIVALS = ("online DPO", "online IPO", "SLiC", "RLHF")


@dataclass(frozen=True, eq=False)
class Found:
    """The results of one kind of cells.

    Attributes:
        names: The policies, the start last.
        wins: `[seeds, policies, policies]` P(row beats column) by the oracle.
        figures: Other figures by name, `[seeds, policies]` each.
        accuracy: By what is measured, one a seed.
    """

    names: list[str]
    wins: Array
    figures: Mapping[str, Array]
    accuracy: Mapping[str, list[float]]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], kind: str) -> Found:
        """The cells of a kind."""
        results = [outcome.result for outcome in outcomes if outcome.cell.name == kind]
        first = results[0]
        return cls(
            list(first["names"]),
            np.array([result["wins"] for result in results]),
            {name: np.array([result[name] for result in results]) for name in ("model", "exploitability", "kl")},
            {name: [result["accuracy"][name] for result in results] for name in first["accuracy"]},
        )

    def duel(self, first: str, second: str) -> list[float]:
        """P(first beats second), one a seed."""
        return [float(v) for v in self.wins[:, self.names.index(first), self.names.index(second)]]

    def mean_over(self, name: str, rivals: Sequence[str]) -> list[float]:
        """P(a policy beats a random one of some others), one a seed."""
        return [float(v) for v in np.mean([self.duel(name, rival) for rival in rivals if rival != name], axis=0)]

    def figure(self, figure: str, name: str) -> list[float]:
        """A figure of a policy, one a seed."""
        return [float(v) for v in self.figures[figure][:, self.names.index(name)]]


def best_settings(grid: Found) -> dict[str, str]:
    """The policy of the grid with the highest mean win rate over all policies of the grid, for each method."""
    mean = grid.wins.mean(axis=(0, 2))
    found = {}
    for method in METHODS:
        mine = [place for place, name in enumerate(grid.names) if name.startswith(f"{method} ")]
        found[method] = grid.names[max(mine, key=lambda place: mean[place])]
    return found


def seeds_needed(grid: Found, chosen: Mapping[str, str]) -> tuple[float, int]:
    """The spread over pilot seeds of a win rate between two methods, pooled over all pairs, and the seeds that show a
    win rate of 1/2 plus `SMALLEST` in a two-sided test at 5% with a power of 80% (normal approximation)."""
    pairs = list(combinations(chosen.values(), 2))
    if len(grid.wins) < 2:
        return float("nan"), 0
    spread = float(np.sqrt(np.mean([np.var(grid.duel(a, b), ddof=1) for a, b in pairs])))
    return spread, int(np.ceil(((1.96 + 0.8416) * spread / SMALLEST) ** 2))


def report(
    outcomes: Sequence[Outcome], out: Path, *, mixtures: Sequence[float], mixed: Sequence[str], usual: float
) -> str:
    """The text of `report.md`; draws its picture."""
    grid, study, control = (Found.of(outcomes, kind) for kind in ("grid", "study", "no cycle"))
    options = outcomes[0].cell.options
    training, told = options["training"], options["feedback"]
    chosen = best_settings(grid)
    spread, needed = seeds_needed(grid, chosen)
    text = [
        "# nash_language: a preference with cycles, small transformers\n",
        f"{len(study.wins)} seeds (other weights, comparisons, models, prompts and samples); mean with the 95% Student "
        "interval over seeds, each of which has its own prompts and answers, so the interval covers both. GPT-2 of "
        "one layer and width 16 from random weights, answers of five digits to a prompt of one. A preference model "
        "and a reward model (Bradley-Terry) are fitted to the same "
        f"{told['comparisons']} comparisons of the start's answers; the oracle only labels these and measures. "
        f"{training['steps']} updates of {training['groups']} prompts with {training['group_size']} answers each for "
        "every method (an opponent's answers count). An ordering is claimed where Holm's rule allows it at 5% for all "
        "comparisons of its section.\n",
        "Claims: Nash-MD-PG is ahead of RLHF, most with a mixture of .125 to .375, and the best response to the "
        "reference (mixture 1) is far behind (arXiv 2312.00886); IPO and IPO-MD are ahead of online DPO, SLiC, "
        "Nash-MD-PG and RLHF (arXiv 2403.08635).\n",
        *_settings(grid, chosen, spread, needed),
        "\n## The learned models: share of pairs whose likelier winner they name\n",
        table(
            ["", "cycles", "no cycle"],
            [[name, plus_minus(study.accuracy[name]), plus_minus(control.accuracy[name])] for name in study.accuracy],
        ),
        "\n## Methods\n",
        _methods(study),
        "\n## P(row beats column), by the oracle\n",
        _duels(study),
        "\n## Findings: methods\n",
        *_orderings(study),
        "\n## The mixture\n",
        *_sweep(study, mixtures, mixed, usual),
        "\n## Without cycles\n",
        "The same study with a Bradley-Terry oracle: no answer is beaten by what it would beat in a cycle.\n",
        _methods(control),
        "\n",
        *_orderings(control),
        "\n![methods and mixtures](nash_language.svg)\n",
    ]
    _draw(study, control, out, mixtures, mixed, usual)
    return "\n".join(text)


def _settings(grid: Found, chosen: Mapping[str, str], spread: float, needed: int) -> list[str]:
    """The chosen settings, and whether the code has them."""
    rows = []
    for method, name in chosen.items():
        lr, reach = name.removeprefix(f"{method} ").split()
        used = SETTINGS[method]
        same = (float(lr), float(reach)) == used
        mean = float(grid.wins.mean(axis=(0, 2))[grid.names.index(name)])
        rows.append([method, lr, reach, f"{mean:.3f}", "the same" if same else f"{used[0]:g}, {used[1]:g}"])
    count = sum(name.startswith("RLHF ") for name in grid.names)
    text = [
        "\n## Settings\n",
        f"Best of {count} settings on {len(grid.wins)} pilot seeds, which are not reported below, by the mean win rate "
        "over all policies of the grid. Reach: how far from the start, in nats of log-ratio, a certain preference "
        "pulls.\n",
        table(["method", "best rate", "best reach", "its win rate over the grid", "used below"], rows),
    ]
    if needed:
        text.append(
            f"\n- A win rate between two methods varies over pilot seeds with a standard deviation of {spread:.3f}; a "
            f"difference of {SMALLEST:g} from 1/2 is seen with a power of 80% with {needed} seeds or more."
        )
    return text


def _methods(found: Found) -> str:
    rows = [
        [
            name,
            plus_minus(found.duel(name, "start")),
            plus_minus(found.figure("model", name)),
            plus_minus(found.mean_over(name, METHODS)),
            plus_minus(found.figure("exploitability", name)),
            plus_minus(found.figure("kl", name), 1),
        ]
        for name in METHODS
    ]
    header = ["method", "over the start", "by the model", "over the other methods", "exploitability", "KL, nats"]
    return table(header, rows)


def _duels(found: Found) -> str:
    rows = [
        [row, *("" if row == column else plus_minus(found.duel(row, column)) for column in METHODS)] for row in METHODS
    ]
    return table(["", *METHODS], rows)


def _orderings(found: Found) -> list[str]:
    """Win rates of the Nash methods and mixtures over the others, against one half; then exploitability."""
    half = [0.5] * len(found.wins)
    pairs = [(first, rival) for first in ("IPO-MD", "Nash-MD-PG", "Nash-EMA-PG") for rival in RIVALS]
    pairs += [
        ("IPO-MD", "Nash-MD-PG"),
        ("Nash-MD-PG", "Nash-EMA-PG"),
        ("online IPO", "online DPO"),
        ("online IPO", "RLHF"),
    ]
    duels = [Comparison(f"{a} over {b}", found.duel(a, b), "one half", half) for a, b in pairs]
    return [f"- Win rate: {sentence}" for sentence in compare_all(duels)] + [
        f"- Exploitability: {sentence}"
        for sentence in compare_all(
            [Comparison(a, found.figure("exploitability", a), b, found.figure("exploitability", b)) for a, b in pairs]
        )
    ]


def _at(method: str, mixture: float, usual: float) -> str:
    return method if mixture == usual else f"{method} {mixture:g}"


MEASURES = ("over RLHF", "over the methods", "exploitability")


def _swept(found: Found, name: str) -> dict[str, list[float]]:
    return {
        "over RLHF": found.duel(name, "RLHF"),
        "over the methods": found.mean_over(name, RIVALS),
        "exploitability": found.figure("exploitability", name),
        "KL, nats": found.figure("kl", name),
    }


def _sweep(found: Found, mixtures: Sequence[float], mixed: Sequence[str], usual: float) -> list[str]:
    """Each method over the mixture; the best mixture is selected on the first third of the seeds."""
    split = len(found.wins) // 3
    text: list[str] = []
    comparisons: list[Comparison] = []
    for method in mixed:
        swept = {m: _swept(found, _at(method, m, usual)) for m in mixtures}
        rows = [
            [f"{m:g}", *(plus_minus(values, 1 if "KL" in figure else 3) for figure, values in swept[m].items())]
            for m in mixtures
        ]
        text += [f"\n{method}:\n", table(["share of the reference", *swept[mixtures[0]]], rows), ""]
        for measure in MEASURES if split else ():
            sign = -1.0 if measure == "exploitability" else 1.0
            best = max(mixtures, key=lambda m: sign * float(np.mean(swept[m][measure][:split])))
            text.append(f"- {method}, {measure}: best on the first {split} seeds with a mixture of {best:g}.")
            comparisons += [
                Comparison(
                    f"{method}, {measure}: mixture {best:g}",
                    swept[best][measure][split:],
                    f"mixture {end:g}",
                    swept[end][measure][split:],
                )
                for end in (mixtures[0], mixtures[-1])
                if end != best
            ]
    return [*text, *(f"- On the other seeds, {sentence}" for sentence in compare_all(comparisons))]


def _draw(
    study: Found, control: Found, out: Path, mixtures: Sequence[float], mixed: Sequence[str], usual: float
) -> None:
    """Above: duels with RLHF and exploitability of every method, with and without cycles. Below: the mixture."""
    note = "Dot or line: mean. Bar or band: 95% Student interval over seeds. Ticks: single seeds."
    with picture(out / "nash_language", 2, 3, width=3.4, height=2.6, note=note, share_y=False) as (above, below):
        others = [name for name in METHODS if name != "RLHF"]
        for panel, found, title in ((above[0], study, "cycles"), (above[1], control, "no cycle")):
            dots = [Dot(name, [100 * v - 50 for v in found.duel(name, "RLHF")], BLUE) for name in others]
            panel.dots(dots, zero=0)
            panel.words(title=f"{title}: over RLHF", x="win rate minus 1/2, points")
        above[2].dots([Dot(name, study.figure("exploitability", name), BLUE) for name in METHODS], bounds=NOT_NEGATIVE)
        above[2].words(title="cycles: exploitability", x="P(best answer wins) minus 1/2")
        for panel, measure in zip(below, MEASURES, strict=True):
            for method, colour in zip(mixed, COLOURS, strict=False):
                curves = [_swept(study, _at(method, m, usual))[measure] for m in mixtures]
                panel.curve(mixtures, np.array(curves).T, colour=colour, label=method, each=False)
            panel.words(title=measure, x="share of the reference in the mixture")
        for panel in below[:2]:
            panel.level(0.5)


__all__ = ["SETTINGS", "Found", "best_settings", "report", "seeds_needed"]
