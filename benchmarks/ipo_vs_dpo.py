"""Suite `ipo_vs_dpo`: three answers and a few certain preferences: tau bounds IPO's policy, DPO becomes deterministic.

The experiment of arXiv 2310.12036, section 5: logits theta in R^3, uniform reference, Adam .01, batches of 9 pairs with
replacement, 18,000 steps. The margin of two answers is the difference of their logits (the normaliser and the uniform
reference cancel), so both gradients are written out here and all settings of a seed are trained at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyturn.algorithms.exact.closed_forms import ipo_on_pairs, softmax
from polyturn.benchmarks.running.plots import COLOURS, MEANS, SHARE, picture
from polyturn.benchmarks.running.reporting import compare, plus_minus
from polyturn.benchmarks.running.suite import Cell, Outcome, Suite, table

Array = NDArray[np.float64]

DATA: Mapping[str, tuple[tuple[int, int], ...]] = {
    "order": ((0, 1), (1, 2), (0, 2)),
    "cycle": ((0, 1), (1, 2), (2, 0)),
    "never preferred": ((0, 1), (1, 0), (0, 2)),
}
"""Pairs (preferred, other) of the answers a, b, c = 0, 1, 2.

"order" is the paper's first data set. "cycle" is a control without anything to learn. "never preferred" is the paper's
third data set with (a, c) added: with only (a, b) and (b, a), as printed, c gets no gradient, so the claim that DPO
drives its probability to 0 could not be seen.
"""

METHODS = ("IPO", "DPO")
WATCHED = {"order": ("a", 0), "cycle": ("a", 0), "never preferred": ("c", 2)}
"""The answer of each data set whose probability shows the difference between the methods."""
SHOWN_TAUS = (0, 2, 3)
"""Places of the taus that are drawn."""


def train(taus: Sequence[float], *, steps: int, batch: int, lr: float, seed: int, every: int) -> Array:
    """Trains every data set, method and tau on the same batches of pairs.

    Args:
        taus: IPO's tau, and DPO's beta.
        steps: Updates.
        batch: Pairs in an update, drawn with replacement.
        lr: Adam's learning rate.
        seed: Seed of the batches.
        every: Steps between two records.

    Returns:
        Policies `[records, data sets, methods, taus, 3]`; the first is the uniform start.
    """
    rng = np.random.default_rng(seed)
    # design @ theta is the margin of each pair; weights say how often each pair is in each batch.
    pairs = np.array(list(DATA.values()))
    design = np.eye(3)[pairs[..., 0]] - np.eye(3)[pairs[..., 1]]
    weights = rng.multinomial(batch, np.full(pairs.shape[1], 1 / pairs.shape[1]), size=(steps, len(pairs))) / batch
    tau = np.asarray(taus, np.float64)[:, None]
    theta = np.zeros((len(pairs), len(METHODS), len(tau), 3))
    first_moment, second_moment = np.zeros_like(theta), np.zeros_like(theta)
    records = [softmax(theta)]
    slope = np.zeros(theta.shape[:3] + pairs.shape[1:2])
    for step in range(1, steps + 1):
        # Derivatives of both losses by the margin: IPO (m - 1/(2 tau))^2, DPO -log sigmoid(tau m).
        margin = np.einsum("dmta,dpa->dmtp", theta, design)
        slope[:, 0] = 2.0 * (margin[:, 0] - 1.0 / (2.0 * tau))
        slope[:, 1] = -tau / (1.0 + np.exp(tau * margin[:, 1]))
        gradient = np.einsum("dmtp,dpa->dmta", slope * weights[step - 1][:, None, None], design)
        # Adam.
        first_moment = 0.9 * first_moment + 0.1 * gradient
        second_moment = 0.999 * second_moment + 0.001 * gradient**2
        theta -= lr * (first_moment / (1 - 0.9**step)) / (np.sqrt(second_moment / (1 - 0.999**step)) + 1e-8)
        if step % every == 0:
            records.append(softmax(theta))
    return np.array(records)


def _cells(quick: bool, seeds: int) -> list[Cell]:
    options = {
        "taus": [0.1, 0.2, 0.5, 1.0, 2.0],
        "steps": 1000 if quick else 18_000,
        "batch": 9,
        "lr": 0.01,
        "every": 1000,
    }
    return [Cell("three answers", seed, options) for seed in range(seeds)]


def _run(cell: Cell, work: Path) -> dict[str, Any]:
    return {"policies": np.round(train(**cell.options, seed=cell.seed), 6).tolist()}


def _exact(pairs: Sequence[tuple[int, int]], tau: float) -> Array:
    """IPO's optimum on a data set, `[3]`."""
    return ipo_on_pairs(np.full(3, 1 / 3), pairs, tau=tau)


def _report(outcomes: Sequence[Outcome], out: Path) -> str:
    options = outcomes[0].cell.options
    taus: list[float] = options["taus"]
    # [seeds, records, data sets, methods, taus, answers]
    runs = np.array([outcome.result["policies"] for outcome in outcomes])
    text = [
        "# ipo_vs_dpo: certain preferences between three answers\n",
        f"{len(runs)} seeds, {options['steps']} steps of Adam {options['lr']}, batches of {options['batch']}; mean "
        "over seeds with the 95% Student interval. The exact IPO solution is the least-squares optimum on the data.\n",
        "Claim (arXiv 2310.12036): tau sets how close IPO's policy stays to the reference; DPO becomes deterministic "
        "for every beta, because certain preferences ask for an infinite margin.\n",
    ]
    for d, (name, pairs) in enumerate(DATA.items()):
        answer, index = WATCHED[name]
        # [seeds, methods, taus] probability of the watched answer at the end
        last = runs[:, -1, d, :, :, index]
        rows = [
            [tau, f"{_exact(pairs, tau)[index]:.3f}", *(plus_minus(last[:, m, t].tolist()) for m in (0, 1))]
            for t, tau in enumerate(taus)
        ]
        text += [
            f"\n## {name}: {', '.join('abc'[first] + '>' + 'abc'[second] for first, second in pairs)}\n",
            table(["tau, beta", f"exact IPO pi({answer})", f"IPO pi({answer})", f"DPO pi({answer})"], rows) + "\n",
            *(
                f"- tau {tau}: {compare('IPO', last[:, 0, t].tolist(), 'DPO', last[:, 1, t].tolist())}"
                for t, tau in enumerate(taus)
            ),
        ]
    ordered = runs[:, -1, 0, :, :, 0].mean(axis=0)
    text += [
        "\n## Findings\n",
        f"- Ordered data: from tau {taus[0]} to {taus[-1]} IPO's pi(a) goes from {ordered[0, 0]:.3f} to "
        f"{ordered[0, -1]:.3f}; DPO's goes from {ordered[1, 0]:.3f} to {ordered[1, -1]:.3f} over the same range of "
        "beta.",
        f"- An answer that was never preferred keeps a probability of {runs[:, -1, 2, 0, -1, 2].mean():.3f} under IPO "
        f"at tau {taus[-1]}, and of at most {runs[:, -1, 2, 1, -1, 2].max():.1e} under DPO.",
        "- On the cycle the exact solution is the reference; every difference from 1/3 is noise of the batches.",
        "\n![probability over training](curves.svg)\n",
    ]
    _draw(runs, options, out)
    return "\n".join(text)


def _draw(runs: Array, options: Mapping[str, Any], out: Path) -> None:
    """One row a method, one column a data set, three taus in each panel; dotted: IPO's exact solution."""
    taus: list[float] = options["taus"]
    steps = (np.arange(runs.shape[1]) * options["every"] / 1000).tolist()
    note = f"{MEANS} Dotted: IPO's exact solution."
    with picture(out / "curves", len(METHODS), len(DATA), width=3.6, height=2.3, note=note) as grid:
        for m, (method, row) in enumerate(zip(METHODS, grid, strict=True)):
            for d, (panel, (name, pairs)) in enumerate(zip(row, DATA.items(), strict=True)):
                answer, index = WATCHED[name]
                for t, colour in zip(SHOWN_TAUS, COLOURS, strict=False):
                    if method == "IPO":
                        panel.level(float(_exact(pairs, taus[t])[index]), colour=colour)
                    label = f"{'tau' if method == 'IPO' else 'beta'} {taus[t]:g}"
                    panel.curve(steps, runs[:, :, d, m, t, index], colour=colour, label=label, bounds=SHARE, each=False)
                panel.words(title=f"{method}, {name}", x="thousand steps", y=f"pi({answer})")
            row[0].limits(y=SHARE)


SUITE = Suite(
    name="ipo_vs_dpo",
    summary="three answers, certain preferences: tau keeps IPO near the reference, DPO becomes deterministic",
    cells=_cells,
    run=_run,
    report=_report,
    seeds=10,
)
