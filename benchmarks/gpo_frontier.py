"""Suite `gpo_frontier`: win rate against KL for six losses of the GPO family, as beta sweeps.

The claim of arXiv 2402.05749: all variants trace similar frontiers, each at its own betas. Tables of logits over a few
prompts, offline pairs drawn from the reference, soft labels from a Bradley-Terry table, the library's own losses, and
the exact frontier, which no policy can cross.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyturn.algorithms.exact.closed_forms import kl, psipo_optimum
from polyturn.benchmarks.running.plots import COLOURS, DOTS, NOT_NEGATIVE, Dot, picture
from polyturn.benchmarks.running.reporting import Comparison, compare_all, paired_difference, plus_minus
from polyturn.benchmarks.running.suite import Cell, Outcome, Suite, mean_interval, table

Array = NDArray[np.float64]

FAMILY = ("logistic", "hinge", "squared", "exponential", "truncated_quadratic", "savage")
"""Names in `polyturn.algorithms.losses`."""
BETAS = tuple(np.geomspace(0.05, 20.0, 33).round(4).tolist())
CERTAIN = "certain labels"
"""The cells in which a label says only who is the likelier winner, to see what a loss makes of how likely."""
LEVELS = (0.25, 0.5, 1.0, 1.5)
"""KL to the reference, in nats, at which the losses are compared."""


def problem(*, prompts: int, answers: int, seed: int) -> tuple[Array, Array]:
    """Dirichlet references `[C, A]`, and Bradley-Terry preferences `[C, A, A]` of normal rewards."""
    rng = np.random.default_rng([seed, 7])
    reference = rng.dirichlet(np.ones(answers), size=prompts)
    reward = 1.5 * rng.standard_normal((prompts, answers))
    return reference, 1.0 / (1.0 + np.exp(reward[:, None, :] - reward[:, :, None]))


def measures(policy: Array, reference: Array, preference: Array) -> tuple[float, float]:
    """KL(policy || reference) and P(policy beats reference), means over prompts.

    Args:
        policy: `[C, A]`.
        reference: `[C, A]`.
        preference: `[C, A, A]`.
    """
    wins = np.einsum("ca,cab,cb->c", policy, preference, reference)
    return float(kl(policy, reference).mean()), float(wins.mean())


def exact_frontier(reference: Array, preference: Array) -> Array:
    """`[points, 2]` KL and highest win rate: the closed-form maximum of E[P(y > y_ref)] - tau KL for many tau."""
    points = []
    for tau in np.geomspace(3.0, 0.01, 60):
        policy = [psipo_optimum(r, p, r, tau=float(tau)) for r, p in zip(reference, preference, strict=True)]
        points.append(measures(np.array(policy), reference, preference))
    return np.array(points)


def train(reference: Array, preference: Array, *, pairs: int, steps: int, lr: float, seed: int) -> Array:
    """Trains every loss of the family with every beta on the same pairs, all at once, by full-batch Adam.

    Args:
        reference: `[C, A]`.
        preference: `[C, A, A]`.
        pairs: Pairs for each prompt, both answers from the reference; equal answers are drawn again.
        steps: Updates.
        lr: Adam's first learning rate; it falls to 0.
        seed: Seed of the pairs.

    Returns:
        Policies `[losses, betas, C, A]`.
    """
    import torch

    from polyturn.algorithms import losses

    # Pairs of different answers, with the exact probability that the first one wins.
    rng = np.random.default_rng([seed, 1])
    drawn = np.empty((len(reference), pairs, 2), np.int64)
    for c, probabilities in enumerate(reference):
        both = rng.choice(len(probabilities), size=(20 * pairs, 2), p=probabilities)
        drawn[c] = both[both[:, 0] != both[:, 1]][:pairs]
    row = np.arange(len(reference))[:, None]
    label = torch.tensor(preference[row, drawn[..., 0], drawn[..., 1]])
    first, second = torch.tensor(drawn[..., 0]), torch.tensor(drawn[..., 1])
    # The parameters are log-ratios: a margin is their difference, the normaliser cancels.
    logratio = torch.zeros(len(FAMILY), len(BETAS), *reference.shape, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(BETAS, dtype=torch.float64)[:, None, None]
    prompt = torch.arange(len(reference))[:, None]
    optimizer = torch.optim.Adam([logratio], lr=lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1.0 - step / steps)
        margin = logratio[:, :, prompt, first] - logratio[:, :, prompt, second]
        loss = torch.stack(
            [
                losses.gpo(scale * margin[k], beta=1.0, f=getattr(losses, name), probability=label).mean(dim=-1)
                for k, name in enumerate(FAMILY)
            ]
        ).sum()
        optimizer.zero_grad()
        torch.autograd.backward([loss])
        optimizer.step()
    scores = logratio.detach() + torch.tensor(np.log(reference))
    return np.asarray(torch.softmax(scores, dim=-1).numpy(), np.float64)


def _cells(quick: bool, seeds: int) -> list[Cell]:
    options = {"prompts": 8, "answers": 10, "pairs": 60, "steps": 40 if quick else 800, "lr": 0.1}
    certain = max(1, seeds // 3)
    return [
        *(Cell("table", seed, options) for seed in range(seeds)),
        *(Cell(CERTAIN, seed, options) for seed in range(certain)),
    ]


def _run(cell: Cell, work: Path) -> dict[str, Any]:
    options = dict(cell.options)
    reference, preference = problem(prompts=options.pop("prompts"), answers=options.pop("answers"), seed=cell.seed)
    # The likelier winner has won for certain, as if every pair had been compared very often.
    label = np.where(preference == 0.5, 0.5, preference > 0.5) if cell.name == CERTAIN else preference
    policies = train(reference, np.asarray(label, np.float64), **options, seed=cell.seed)
    curves = [[measures(policy, reference, preference) for policy in betas] for betas in policies]
    exact = exact_frontier(reference, preference)
    return {"curves": np.round(curves, 6).tolist(), "exact": np.round(exact, 6).tolist()}


def at_level(curve: Array, values: Array, level: float) -> float:
    """`values` where the KL of `curve [points, 2]` is `level`, by interpolation; nan where it is not reached."""
    order = np.argsort(curve[:, 0])
    return float(np.interp(level, curve[order, 0], values[order], left=np.nan, right=np.nan))


def _shown(values: list[float], digits: int = 3) -> str:
    reached = [value for value in values if np.isfinite(value)]
    if len(reached) < len(values):
        return f"reached by {len(reached)} of {len(values)} seeds"
    return plus_minus(values, digits)


@dataclass(frozen=True, eq=False)
class Sweeps:
    """The results of all seeds.

    Attributes:
        curves: `[seeds, losses, betas, 2]` KL and win rate.
        exact: `[seeds, points, 2]` the same of the exact frontier.
    """

    curves: Array
    exact: Array

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], kind: str) -> Sweeps:
        """The cells of a kind."""
        found = [outcome.result for outcome in outcomes if outcome.cell.name == kind]
        return cls(np.array([run["curves"] for run in found]), np.array([run["exact"] for run in found]))

    def wins(self, loss: str, level: float, *, every: int = 1) -> list[float]:
        """Win rate of a loss at a KL, one a seed; from each `every`-th beta."""
        k = FAMILY.index(loss)
        return [at_level(run[k, ::every], run[k, ::every, 1], level) for run in self.curves]

    def beta(self, loss: str, level: float) -> list[float]:
        """The beta with which a loss has a KL, one a seed."""
        k = FAMILY.index(loss)
        return [float(np.exp(at_level(run[k], np.log(BETAS), level))) for run in self.curves]

    def exact_wins(self, level: float) -> list[float]:
        """The highest win rate possible at a KL, one a seed."""
        return [at_level(run, run[:, 1], level) for run in self.exact]

    def compared(self) -> list[tuple[float, list[str]]]:
        """The levels at which every seed reached the KL, with the losses that can be compared with the logistic."""
        found = []
        for level in LEVELS:
            base = self.wins("logistic", level)
            names = [name for name in FAMILY[1:] if np.isfinite([*base, *self.wins(name, level)]).all()]
            if names:
                found.append((level, names))
        return found


def _report(outcomes: Sequence[Outcome], out: Path) -> str:
    sweeps = Sweeps.of(outcomes, "table")
    options, curves = outcomes[0].cell.options, sweeps.curves
    win_rates = [[name, *(_shown(sweeps.wins(name, level)) for level in LEVELS)] for name in FAMILY]
    win_rates.append(["exact optimum", *(_shown(sweeps.exact_wins(level)) for level in LEVELS)])
    betas = [[name, *(_shown(sweeps.beta(name, level), 2) for level in LEVELS)] for name in FAMILY]
    header = ["loss", *(f"KL {level}" for level in LEVELS)]
    text = [
        "# gpo_frontier: win rate against KL over the loss and beta\n",
        f"{len(curves)} seeds (other rewards, references and pairs), {options['prompts']} prompts with "
        f"{options['answers']} answers, {options['pairs']} soft-labelled pairs for each prompt drawn from the "
        f"reference, {options['steps']} full-batch steps; {len(BETAS)} betas from {BETAS[0]} to {BETAS[-1]}. Mean over "
        "seeds with the 95% Student interval. An ordering is claimed where Holm's rule allows it at 5% for all "
        "comparisons of this page together.\n",
        "Claim (arXiv 2402.05749): all variants trace similar frontiers, at different betas.\n",
        "\n## P(policy beats reference) at equal KL(policy || reference)\n",
        table(header, win_rates),
        "\n## The beta that gives this KL\n",
        table(header, betas),
        "\n## Findings\n",
    ]
    compared = sweeps.compared()
    comparisons = [
        Comparison(
            f"KL {level}: {name}'s win rate", sweeps.wins(name, level), "logistic's", sweeps.wins("logistic", level)
        )
        for level, names in compared
        for name in names
    ]
    text += [f"- {sentence}" for sentence in compare_all(comparisons, 4)]
    text += [f"- {line}" for line in _sizes(sweeps)]
    if any(outcome.cell.name == CERTAIN for outcome in outcomes):
        text += [f"- {line}" for line in _without_degrees(sweeps, Sweeps.of(outcomes, CERTAIN))]
    highest = curves[..., 1].mean(axis=0)
    best = {name: BETAS[int(highest[k].argmax())] for k, name in enumerate(FAMILY)}
    text += [
        "- Highest win rate of the sweep at any KL: "
        + ", ".join(f"{name} {highest[k].max():.3f} at beta {best[name]}" for k, name in enumerate(FAMILY))
        + ".",
        f"- Savage is not convex: its KL is {curves[:, -1, -1, 0].mean():.3f} at the largest beta, and "
        f"{curves[:, -1, :, 0].mean(axis=0).min():.3f} where it is smallest over the sweep; for the convex logistic "
        f"{curves[:, 0, -1, 0].mean():.3f} and {curves[:, 0, :, 0].mean(axis=0).min():.3f}.",
        "- Between neighbouring betas the curves are interpolated linearly in KL. With every second beta left out, the "
        f"differences above move by at most {_interpolation_error(sweeps):.4f} on average over seeds.",
        "\n![frontiers, win rates over beta, differences at equal KL](frontier.svg)\n",
    ]
    _draw(sweeps, out)
    return "\n".join(text)


def _sizes(sweeps: Sweeps) -> list[str]:
    """How far each loss may be from the logistic one at equal KL: the end of its widest interval over the levels."""
    lines = []
    for name in FAMILY[1:]:
        ends = [
            max(
                map(abs, mean_interval(paired_difference(sweeps.wins(name, level), sweeps.wins("logistic", level)))[1:])
            )
            for level, names in sweeps.compared()
            if name in names
        ]
        if ends:
            lines.append(
                f"{name} is within {max(ends):.4f} of logistic's win rate at every compared KL (95%, each alone)."
            )
    return lines


def _without_degrees(soft: Sweeps, certain: Sweeps) -> list[str]:
    """What the labels' degrees are worth to the logistic loss and to hinge, at equal KL and on the same problems."""
    count = len(certain.curves)
    comparisons = []
    for level in LEVELS:
        for name in ("logistic", "hinge"):
            pair = soft.wins(name, level)[:count], certain.wins(name, level)
            if np.isfinite(pair).all():
                comparisons.append(
                    Comparison(f"KL {level}: {name} with soft labels", pair[0], "with certain labels", pair[1])
                )
    return compare_all(comparisons, 4)


def _interpolation_error(sweeps: Sweeps) -> float:
    """The largest change of a mean difference to the logistic loss when every second beta is left out."""
    return max(
        abs(
            float(np.mean(np.subtract(sweeps.wins(name, level), sweeps.wins("logistic", level))))
            - float(np.mean(np.subtract(sweeps.wins(name, level, every=2), sweeps.wins("logistic", level, every=2))))
        )
        for level, names in sweeps.compared()
        for name in names
    )


def _draw(sweeps: Sweeps, out: Path) -> None:
    """Every loss with the exact frontier; then, at equal KL, differences to the logistic loss, and the betas."""
    compared = sweeps.compared()
    exact = sweeps.exact.mean(axis=0)
    colours = dict(zip(FAMILY, COLOURS, strict=False))
    note = f"Curves: means over seeds; grey: the exact optimum. {DOTS}"
    with picture(out / "frontier", 4, 3, width=3.4, height=1.9, note=note, share_y=False) as grid:
        for panel, (k, name) in zip([*grid[0], *grid[1]], enumerate(FAMILY), strict=True):
            mean = sweeps.curves[:, k].mean(axis=0)
            panel.context(exact[:, 0], exact[:, 1])
            panel.line(mean[:, 0], mean[:, 1], colour=colours[name], marker="o")
            panel.words(
                title=_spaced(name),
                x="KL to the reference, nats",
                y="win rate" if panel in (grid[0][0], grid[1][0]) else "",
            )
            panel.axes.set(xlim=(-0.05, float(exact[:, 0].max())), ylim=(0.45, 0.9))
        for differences, betas, (level, names) in zip(grid[2], grid[3], compared, strict=False):
            base = sweeps.wins("logistic", level)
            points = {
                name: [100 * value for value in paired_difference(sweeps.wins(name, level), base)] for name in names
            }
            differences.dots([Dot(_spaced(name), points[name], colours[name]) for name in names], zero=0)
            differences.words(title=f"at KL {level}: minus logistic", x="win rate, points")
            betas.dots(
                [Dot(_spaced(name), sweeps.beta(name, level), colours[name]) for name in ("logistic", *names)],
                bounds=NOT_NEGATIVE,
            )
            betas.words(title=f"at KL {level}: the beta", x="beta")
        for panel in (*grid[2][len(compared) :], *grid[3][len(compared) :]):
            panel.missing("not reached by every seed")


def _spaced(name: str) -> str:
    return name.replace("_", " ")


SUITE = Suite(
    name="gpo_frontier",
    summary="six losses of the GPO family: win rate against KL as beta sweeps",
    cells=_cells,
    run=_run,
    report=_report,
    seeds=24,
)
