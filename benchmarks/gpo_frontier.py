"""Suite `gpo_frontier`: six losses of the GPO family, their win rate against their KL as beta sweeps.

The claim of arXiv 2402.05749: all variants trace similar frontiers, each at betas of its own. Tables of logits over a
few prompts, offline pairs drawn from the reference, soft labels from a Bradley-Terry table, the losses that users train
with, and beside them the exact frontier, which no policy can cross.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyturn.algorithms.exact.closed_forms import kl, psipo_optimum
from polyturn.benchmarks.running.plots import save
from polyturn.benchmarks.running.reporting import compare, panels, plus_minus
from polyturn.benchmarks.running.suite import Cell, Outcome, Suite, table

Array = NDArray[np.float64]

FAMILY = ("logistic", "hinge", "squared", "exponential", "truncated_quadratic", "savage")
"""Names in `polyturn.algorithms.losses`."""
BETAS = tuple(np.geomspace(0.05, 20.0, 17).round(4).tolist())
LEVELS = (0.25, 0.5, 1.0, 1.5)
"""KL to the reference, in nats, at which the losses are compared."""


def problem(*, prompts: int, answers: int, seed: int) -> tuple[Array, Array]:
    """References `[C, A]`, Dirichlet, and Bradley-Terry preferences `[C, A, A]` of normal rewards."""
    rng = np.random.default_rng(seed)
    reference = rng.dirichlet(np.ones(answers), size=prompts)
    reward = 1.5 * rng.standard_normal((prompts, answers))
    return reference, 1.0 / (1.0 + np.exp(reward[:, None, :] - reward[:, :, None]))


def measures(policy: Array, reference: Array, preference: Array) -> tuple[float, float]:
    """KL(policy || reference) and P(policy beats reference), means over prompts; all `[C, A]` and `[C, A, A]`."""
    wins = np.einsum("ca,cab,cb->c", policy, preference, reference)
    return float(kl(policy, reference).mean()), float(wins.mean())


def exact_frontier(reference: Array, preference: Array) -> Array:
    """`[points, 2]` KL and highest win rate, from E[P(y > y_ref)] - tau KL maximised in closed form for many tau."""
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
        pairs: Pairs a prompt, both answers from the reference; equal answers are drawn again.
        steps: Updates.
        lr: Adam's learning rate.
        seed: Of the pairs.

    Returns:
        Policies `[losses, betas, C, A]`.
    """
    import torch

    from polyturn.algorithms import losses

    rng = np.random.default_rng([seed, 1])
    drawn = np.empty((len(reference), pairs, 2), np.int64)
    for c, probabilities in enumerate(reference):
        both = rng.choice(len(probabilities), size=(20 * pairs, 2), p=probabilities)
        drawn[c] = both[both[:, 0] != both[:, 1]][:pairs]
    row = np.arange(len(reference))[:, None]
    label = torch.tensor(preference[row, drawn[..., 0], drawn[..., 1]])
    first, second = torch.tensor(drawn[..., 0]), torch.tensor(drawn[..., 1])
    # Log-ratios are the parameters: the margin needs no normaliser.
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
    return [Cell("table", seed, options) for seed in range(seeds)]


def _run(cell: Cell, work: Path) -> dict[str, Any]:
    options = dict(cell.options)
    reference, preference = problem(prompts=options.pop("prompts"), answers=options.pop("answers"), seed=cell.seed)
    policies = train(reference, preference, **options, seed=cell.seed)
    curves = [[list(measures(policy, reference, preference)) for policy in betas] for betas in policies]
    return {"curves": curves, "exact": exact_frontier(reference, preference).tolist()}


def at_level(curve: Array, values: Array, level: float) -> float:
    """`values` where the KL of `curve [points, 2]` is `level`, by interpolation; nan where it is not reached."""
    order = np.argsort(curve[:, 0])
    return float(np.interp(level, curve[order, 0], values[order], left=np.nan, right=np.nan))


def _shown(values: list[float], digits: int = 3) -> str:
    reached = [value for value in values if np.isfinite(value)]
    if len(reached) < len(values):
        return f"reached by {len(reached)} of {len(values)} seeds"
    return plus_minus(values, digits)


def _report(outcomes: Sequence[Outcome], out: Path) -> str:
    curves = np.array([outcome.result["curves"] for outcome in outcomes])
    exact = np.array([outcome.result["exact"] for outcome in outcomes])
    options = outcomes[0].cell.options
    wins = {
        name: [[at_level(run[k], run[k, :, 1], level) for run in curves] for level in LEVELS]
        for k, name in enumerate(FAMILY)
    }
    wins["exact optimum"] = [[at_level(run, run[:, 1], level) for run in exact] for level in LEVELS]
    betas = {
        name: [[float(np.exp(at_level(run[k], np.log(BETAS), level))) for run in curves] for level in LEVELS]
        for k, name in enumerate(FAMILY)
    }
    levels = [f"KL {level}" for level in LEVELS]
    text = [
        "# gpo_frontier: win rate against KL over the loss and beta\n",
        f"{len(curves)} seeds (rewards, references and pairs anew), {options['prompts']} prompts of "
        f"{options['answers']} answers, {options['pairs']} soft-labelled pairs a prompt drawn from the reference, "
        f"{options['steps']} full-batch steps; {len(BETAS)} betas from {BETAS[0]} to {BETAS[-1]}. Mean over seeds with "
        "the 95% Student interval.\n",
        "Claim (arXiv 2402.05749): all variants trace similar frontiers, at different betas.\n",
        "\n## P(policy beats reference) at equal KL(policy || reference)\n",
        table(["loss", *levels], [[name, *map(_shown, runs)] for name, runs in wins.items()]),
        "\n## The beta that gives this KL\n",
        table(["loss", *levels], [[name, *(_shown(run, 2) for run in runs)] for name, runs in betas.items()]),
        "\n## What the figures say\n",
    ]
    for number, level in enumerate(LEVELS):
        base = wins["logistic"][number]
        for name in FAMILY[1:]:
            if np.isfinite([*base, *wins[name][number]]).all():
                sentence = compare(f"{name}'s win rate", wins[name][number], "logistic's", base, 4)
                text.append(f"- KL {level}: {sentence}")
    highest = curves[..., 1].mean(axis=0)
    best = {name: BETAS[int(highest[k].argmax())] for k, name in enumerate(FAMILY)}
    text += [
        "- Highest win rate of the sweep, whatever its KL: "
        + ", ".join(f"{name} {highest[k].max():.3f} at beta {best[name]}" for k, name in enumerate(FAMILY))
        + ".",
        f"- Savage is not convex: at the largest beta its KL is {curves[:, -1, -1, 0].mean():.3f}, the smallest over "
        f"the sweep {curves[:, -1, :, 0].mean(axis=0).min():.3f}; for the convex logistic "
        f"{curves[:, 0, -1, 0].mean():.3f} and {curves[:, 0, :, 0].mean(axis=0).min():.3f}.",
        "- Between neighbouring betas the curves are interpolated linearly in KL, so the smallest differences may come "
        "from that alone.",
        "\n![frontiers](frontier.svg)\n",
    ]
    with panels(10, 4, 2) as (canvas, axes):
        for k, name in enumerate(FAMILY):
            mean = curves[:, k].mean(axis=0)
            axes[0].plot(mean[:, 0], mean[:, 1], marker="o", markersize=3, label=name.replace("_", " "))
            axes[1].semilogx(BETAS, mean[:, 1], marker="o", markersize=3)
        mean = exact.mean(axis=0)
        axes[0].plot(mean[:, 0], mean[:, 1], "k--", label="exact optimum")
        axes[0].set(xlabel="KL(policy || reference), nats", ylabel="P(policy beats reference)", title="frontier")
        axes[1].set(xlabel="beta", title="the same over beta")
        axes[0].legend(frameon=False, fontsize=8)
        save(canvas, out / "frontier")
    return "\n".join(text)


SUITE = Suite(
    name="gpo_frontier",
    summary="six losses of the GPO family: win rate against KL as beta sweeps",
    cells=_cells,
    run=_run,
    report=_report,
    seeds=6,
)
