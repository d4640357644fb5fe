"""Suite `ipo_vs_dpo`: three answers, a handful of certain preferences: IPO listens to tau, DPO forgets the reference.

The experiment of arXiv 2310.12036, section 5: logits theta in R^3, uniform reference, Adam .01, batches of 9 pairs with
replacement, 18,000 steps. The margin of two answers is the difference of their logits (normaliser and uniform reference
cancel), so both gradients are written out and all settings of a seed are trained at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyturn.algorithms.exact.closed_forms import ipo_on_pairs, softmax
from polyturn.benchmarks.running.plots import save
from polyturn.benchmarks.running.reporting import compare, line, panels, plus_minus
from polyturn.benchmarks.running.suite import Cell, Outcome, Suite, table

Array = NDArray[np.float64]

DATA: Mapping[str, tuple[tuple[int, int], ...]] = {
    "order": ((0, 1), (1, 2), (0, 2)),
    "cycle": ((0, 1), (1, 2), (2, 0)),
    "never preferred": ((0, 1), (1, 0), (0, 2)),
}
"""Pairs (preferred, other) of the answers a, b, c = 0, 1, 2.

"order" is the paper's first data set. "cycle" is a control: nothing to learn. "never preferred" is the paper's third,
amended: with only (a, b) and (b, a), as printed, c gets no gradient at all, and the claim that DPO drives it to 0 could
not show; (a, c) is added.
"""

METHODS = ("IPO", "DPO")
WATCHED = {"order": ("a", 0), "cycle": ("a", 0), "never preferred": ("c", 2)}
"""The answer whose probability tells the methods apart."""


def train(taus: Sequence[float], *, steps: int, batch: int, lr: float, seed: int, every: int) -> Array:
    """Trains every data set, method and tau on the same batches of pairs.

    Args:
        taus: Of IPO; beta of DPO.
        steps: Updates.
        batch: Pairs an update, with replacement.
        lr: Adam's learning rate.
        seed: Of the batches.
        every: Steps between two records.

    Returns:
        Policies `[records, data sets, methods, taus, 3]`; the first is the uniform start.
    """
    rng = np.random.default_rng(seed)
    pairs = np.array(list(DATA.values()))
    design = np.eye(3)[pairs[..., 0]] - np.eye(3)[pairs[..., 1]]
    weights = rng.multinomial(batch, np.full(pairs.shape[1], 1 / pairs.shape[1]), size=(steps, len(pairs))) / batch
    tau = np.asarray(taus, np.float64)[:, None]
    theta = np.zeros((len(pairs), len(METHODS), len(tau), 3))
    first, second = np.zeros_like(theta), np.zeros_like(theta)
    records = [softmax(theta)]
    slope = np.zeros(theta.shape[:3] + pairs.shape[1:2])
    for step in range(1, steps + 1):
        margin = np.einsum("dmta,dpa->dmtp", theta, design)
        slope[:, 0] = 2.0 * (margin[:, 0] - 1.0 / (2.0 * tau))
        slope[:, 1] = -tau / (1.0 + np.exp(tau * margin[:, 1]))
        gradient = np.einsum("dmtp,dpa->dmta", slope * weights[step - 1][:, None, None], design)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        theta -= lr * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
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


def _report(outcomes: Sequence[Outcome], out: Path) -> str:
    options = outcomes[0].cell.options
    taus: list[float] = options["taus"]
    runs = np.array([outcome.result["policies"] for outcome in outcomes])
    text = [
        "# ipo_vs_dpo: certain preferences between three answers\n",
        f"{len(runs)} seeds, {options['steps']} steps of Adam {options['lr']}, batches of {options['batch']}; mean "
        "over seeds with the 95% Student interval. The exact IPO solution is the least-squares optimum on the data.\n",
        "Claim (arXiv 2310.12036): IPO's policy stays as close to the reference as tau says; DPO becomes deterministic "
        "whatever its beta, because certain preferences ask for an infinite margin.\n",
    ]
    for d, (name, pairs) in enumerate(DATA.items()):
        answer, index = WATCHED[name]
        shown = ", ".join("abc"[w] + ">" + "abc"[loser] for w, loser in pairs)
        rows = []
        for t, tau in enumerate(taus):
            exact = ipo_on_pairs(np.full(3, 1 / 3), pairs, tau=tau)[index]
            rows.append([tau, f"{exact:.3f}", *(plus_minus(runs[:, -1, d, m, t, index].tolist()) for m in (0, 1))])
        text += [
            f"\n## {name}: {shown}\n",
            table(["tau, beta", f"exact IPO pi({answer})", f"IPO pi({answer})", f"DPO pi({answer})"], rows) + "\n",
            *(
                f"- tau {tau}: "
                + compare("IPO", runs[:, -1, d, 0, t, index].tolist(), "DPO", runs[:, -1, d, 1, t, index].tolist())
                for t, tau in enumerate(taus)
            ),
        ]
    spread = runs[:, -1, 0, :, :, 0].mean(axis=0)
    text += [
        "\n## What the figures say\n",
        f"- Ordered data: from tau {taus[0]} to {taus[-1]} IPO's pi(a) goes from {spread[0, 0]:.3f} to "
        f"{spread[0, -1]:.3f}; DPO's from {spread[1, 0]:.3f} to {spread[1, -1]:.3f} over the same range of beta.",
        f"- An answer that was never preferred keeps {runs[:, -1, 2, 0, -1, 2].mean():.3f} under IPO at tau "
        f"{taus[-1]}; under DPO it is left {runs[:, -1, 2, 1, -1, 2].max():.1e} at most.",
        "- On the cycle the exact solution is the reference; what either method has beyond 1/3 is noise of batches.",
        "\n![probability over training](curves.svg)\n",
    ]
    with panels(11, 3.6, len(DATA)) as (canvas, axes):
        steps = np.arange(runs.shape[1]) * options["every"]
        for d, name in enumerate(DATA):
            answer, index = WATCHED[name]
            for m, method in enumerate(METHODS):
                for t, colour in ((0, 0), (2, 1), (3, 2)):
                    line(
                        axes[d],
                        steps,
                        runs[:, :, d, m, t, index],
                        label=f"{method} {taus[t]}",
                        color=f"C{colour}",
                        linestyle="-" if m == 0 else "--",
                    )
            axes[d].set(title=name, xlabel="step", ylabel=f"pi({answer})", ylim=(-0.02, 1.02))
        axes[1].legend(frameon=False, fontsize=8, ncols=2)
        save(canvas, out / "curves")
    return "\n".join(text)


SUITE = Suite(
    name="ipo_vs_dpo",
    summary="three answers, certain preferences: IPO keeps to the reference as tau says, DPO does not",
    cells=_cells,
    run=_run,
    report=_report,
    seeds=10,
)
