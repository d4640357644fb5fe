"""Suite `nash`: does the last iterate reach the regularised equilibrium within the bound, and which mixture is best?

First exact updates: Nash-MD and Nash-EMA on random preference matrices (arXiv 2312.00886), MTPO and MTPO-tau on random
two-turn games with chance observations (arXiv 2405.14655), with their KL to the solved equilibrium and the proven
bound. Then sampled Nash-MD-PG on a table of logits, over beta, the share of the reference in the opponent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyturn.algorithms.exact import mirror_descent, nash, tabular_games
from polyturn.algorithms.exact.closed_forms import kl, log_of, softmax
from polyturn.benchmarks.running.plots import COLOURS, MEANS, NOT_NEGATIVE, SHARE, picture
from polyturn.benchmarks.running.reporting import Comparison, by_name, compare_all, plus_minus
from polyturn.benchmarks.running.suite import Cell, Outcome, Suite, table
from polyturn.envs.games.tabular_games import random_game, random_preference

Array = NDArray[np.float64]

TAUS = (0.1, 0.5)
"""Weights of the KL (alpha in MTPO)."""
BETAS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
MEASURES = ("exploitability", "regularised exploitability", "win rate over the best response to the reference")


def matrix_game(tau: float, *, answers: int, steps: int, seed: int) -> dict[str, dict[str, Any]]:
    """KL(pi* || pi_t) for t = 0 to `steps`, and the last exploitability, for a random matrix and reference."""
    rng = np.random.default_rng([seed, 1])
    preference, reference = random_preference(answers, rng), rng.dirichlet(np.ones(answers))
    best = nash.regularised_nash(preference, reference, tau=tau)
    t = np.arange(steps + 1)
    runs: dict[str, tuple[Iterable[Array], Array | None]] = {
        "Nash-MD": (
            mirror_descent.nash_md(preference, reference, tau=tau),
            np.asarray(8.0 / (tau**2 * (t + 1)), np.float64),
        ),
        "self-play": (mirror_descent.nash_ema(preference, reference, tau=tau, decay=0.0, step_size=0.1), None),
        "Nash-EMA": (mirror_descent.nash_ema(preference, reference, tau=tau, decay=0.9, step_size=0.1), None),
    }
    found = {}
    for name, (iterates, bound) in runs.items():
        policies = np.array(list(islice(iterates, steps + 1)))
        last = nash.regularised_exploitability(preference, policies[-1], reference, tau=tau)
        found[name] = _curve(kl(best, policies), bound, last)
    return found


def multi_turn_game(tau: float, *, steps: int, seed: int) -> dict[str, dict[str, Any]]:
    """As `matrix_game`, for MTPO and MTPO-tau on a random two-turn game; Q in the bound is the largest |Q| met."""
    rng = np.random.default_rng([seed, 2])
    game = random_game(rng)
    reference = tabular_games.random_policy(game, rng)
    best = tabular_games.regularised_nash(game, reference, alpha=tau)
    found = {}
    for name, method, constant in (("MTPO", mirror_descent.mtpo, 32), ("MTPO-tau", mirror_descent.mtpo_tau, 9)):
        distances, largest = [], 0.0
        for policy in islice(method(game, reference, alpha=tau), steps + 1):
            distances.append(tabular_games.turn_kl(game, best, policy))
            q = tabular_games.q_values(game, policy, policy, reference, alpha=tau)
            largest = max(largest, *(float(np.abs(layer).max()) for layer in q))
        bound: Array = constant * game.turns * largest**2 / (tau**2 * np.arange(1.0, steps + 2.0))
        last = tabular_games.regularised_exploitability(game, policy, reference, alpha=tau)
        found[name] = _curve(np.array(distances), bound, last)
    return found


def _curve(distances: Array, bound: Array | None, last: float) -> dict[str, Any]:
    """What is kept of a run: KL at 25 times, the largest share of the bound at any time, the last exploitability."""
    kept = np.unique(np.rint(np.geomspace(1, len(distances) - 1, 25)).astype(int))
    # Where the equilibrium is reached, rounding leaves distances of about 1e-16 of either sign.
    distances = np.maximum(distances, 1e-16)
    return {
        "t": kept.tolist(),
        "kl": distances[kept].tolist(),
        "of_bound": None if bound is None else float((distances / bound)[1:].max()),
        "regularised_exploitability": last,
    }


def mixture_sweep(*, answers: int, tau: float, steps: int, batch: int, lr: float, seed: int) -> dict[str, list[float]]:
    """Nash-MD-PG with sampled answers for every beta in `BETAS`: the measures of the last iterate.

    Logits move by lr * mean of grad log pi(y) [P(y > y') - 1/2 - tau log pi/ref (y)], with y from the policy and y'
    from the geometric mixture pi^{1 - beta} ref^beta.
    """
    rng = np.random.default_rng([seed, 3])
    preference, reference = random_preference(answers, rng), rng.dirichlet(np.ones(answers))
    logits = np.tile(log_of(reference), (len(BETAS), 1))
    rows, anchor, beta = np.arange(len(BETAS))[:, None], log_of(reference), np.array(BETAS)[:, None]
    for _ in range(steps):
        policy = softmax(logits)
        logps = log_of(policy)
        opponent = softmax((1.0 - beta) * logps + beta * anchor)
        # Answers of both, by inverting their distribution functions.
        own, other = (
            (rng.random((len(BETAS), batch, 1)) > np.cumsum(p, axis=1)[:, None, :-1]).sum(axis=2)
            for p in (policy, opponent)
        )
        weight = preference[own, other] - 0.5 - tau * (logps - anchor)[rows, own]
        # The mean of weight * (one-hot(y) - policy).
        gradient = -policy * weight.mean(axis=1, keepdims=True)
        np.add.at(gradient, (np.broadcast_to(rows, own.shape), own), weight / batch)
        logits += lr * gradient
    policies = softmax(logits)
    greedy = nash.regularised_best_response(preference, reference, reference, tau=tau)
    return {
        MEASURES[0]: [nash.exploitability(preference, p) for p in policies],
        MEASURES[1]: [nash.regularised_exploitability(preference, p, reference, tau=tau) for p in policies],
        MEASURES[2]: [nash.win_probability(preference, p, greedy) for p in policies],
    }


def fixed_points(*, answers: int, tau: float, seed: int) -> list[float]:
    """Regularised exploitability without noise at both ends of beta: of the equilibrium, and of the best response to
    the reference.

    `mixture_sweep` with the same seed has the same game.
    """
    rng = np.random.default_rng([seed, 3])
    preference, reference = random_preference(answers, rng), rng.dirichlet(np.ones(answers))
    ends = (
        nash.regularised_nash(preference, reference, tau=tau),
        nash.regularised_best_response(preference, reference, reference, tau=tau),
    )
    return [nash.regularised_exploitability(preference, p, reference, tau=tau) for p in ends]


def _cells(quick: bool, seeds: int) -> list[Cell]:
    steps = 50 if quick else 300
    kinds: dict[str, dict[str, Any]] = {
        "matrix": {"answers": 6, "steps": steps},
        "multi-turn": {"steps": steps},
        "mixture": {"answers": 8, "tau": 0.05, "steps": 100 if quick else 2000, "batch": 16, "lr": 0.5},
    }
    return [Cell(name, seed, options) for seed in range(seeds) for name, options in kinds.items()]


def _run(cell: Cell, work: Path) -> Mapping[str, Any]:
    options = dict(cell.options)
    if cell.name == "mixture":
        ends = fixed_points(answers=options["answers"], tau=options["tau"], seed=cell.seed)
        return {**mixture_sweep(**options, seed=cell.seed), "fixed points": ends}
    play = matrix_game if cell.name == "matrix" else multi_turn_game
    return {str(tau): play(tau, **options, seed=cell.seed) for tau in TAUS}


Results = Mapping[str, list[Mapping[str, Any]]]
"""The results of all seeds by the cell's name."""
KINDS = ("matrix", "multi-turn")


def _exact_part(found: Results) -> list[str]:
    """KL to the equilibrium at three times, shares of the bound, and whether every bound held."""
    rows, worst = [], 0.0
    for kind in KINDS:
        for tau in map(str, TAUS):
            for method, first in found[kind][0][tau].items():
                runs = [result[tau][method] for result in found[kind]]
                distances = np.array([run["kl"] for run in runs])
                shares = [run["of_bound"] for run in runs if run["of_bound"] is not None]
                worst = max([worst, *shares])
                middle = len(first["t"]) // 2
                gap = max(run["regularised_exploitability"] for run in runs)
                rows.append([
                    kind, tau, method,
                    *(f"{np.median(distances[:, k]):.1e} / {distances[:, k].max():.1e}" for k in (0, middle, -1)),
                    f"{max(shares):.1e}" if shares else "no bound", f"{max(gap, 0.0):.1e}",
                ])  # fmt: skip
    times = found["matrix"][0][str(TAUS[0])]["Nash-MD"]["t"]
    header = [f"KL at t={times[k]}, median / largest" for k in (0, len(times) // 2, -1)]
    return [
        "\n## Exact updates\n",
        table(["games", "tau", "method", *header, "largest share of the bound", "last reg. exploitability"], rows),
        f"\n- The largest share of any bound, over every step t >= 1, method and seed: {worst:.2g}; "
        + ("every bound held." if worst <= 1 else "a bound was BROKEN."),
    ]


def _mixture_part(sweep: Mapping[str, Array], ends: Array, options: Mapping[str, Any]) -> list[str]:
    """The measures over beta, and how the best beta compares with both ends."""
    text = [
        "\n## Sampled Nash-MD-PG over the mixture\n",
        f"{options['answers']} answers, tau {options['tau']}, {options['steps']} steps of {options['batch']} duels, "
        f"learning rate {options['lr']}. Claim (arXiv 2312.00886): an interior beta is best, and beta = 1, the best "
        "response to the reference, is worst. The paper measures the win rate over RLHF with a language model. Here "
        "the measures are the exploitability, which is best at 0, and the win rate over the best response to the "
        "reference.\n",
        table(
            ["beta", *MEASURES],
            [[b, *(plus_minus(sweep[m][:, k].tolist()) for m in MEASURES)] for k, b in enumerate(BETAS)],
        ),
        "",
    ]
    # The best beta is selected on the first third of the seeds and compared on the others.
    split = len(ends) // 3
    comparisons = []
    for measure, values in sweep.items() if split else ():
        mean = values[:split].mean(axis=0)
        best = int(mean.argmax() if measure == MEASURES[2] else mean.argmin())
        text.append(f"- {measure}: best on average over the first {split} seeds at beta {BETAS[best]}.")
        a, first = values[split:, best].tolist(), f"{measure}: beta {BETAS[best]}"
        comparisons += [
            Comparison(first, a, f"beta {BETAS[end]}", values[split:, end].tolist())
            for end in (0, -1)
            if best != end % len(BETAS)
        ]
    return [
        *text,
        *(f"- On the other seeds, {sentence}" for sentence in compare_all(comparisons)),
        f"- Without noise and after infinitely many steps the regularised exploitability is "
        f"{max(ends[:, 0].max(), 0):.0e} at beta 0 and {plus_minus(ends[:, 1].tolist())} at beta 1.",
    ]


def _report(outcomes: Sequence[Outcome], out: Path) -> str:
    found = by_name(outcomes)
    sweep = {measure: np.array([result[measure] for result in found["mixture"]]) for measure in MEASURES}
    ends = np.array([result["fixed points"] for result in found["mixture"]])
    options = next(outcome.cell.options for outcome in outcomes if outcome.cell.name == "mixture")
    text = [
        "# nash: last iterates, bounds, and the mixture of Nash-MD\n",
        f"{len(found['mixture'])} seeds, each with its own game and reference. Intervals: 95% Student over seeds. KL "
        "spans orders of magnitude, so its median and its largest value over seeds are given.\n",
        "Claims: the LAST iterate converges, KL(pi* || pi_t) <= 8 / (tau^2 (t + 1)) for Nash-MD (arXiv 2312.00886) and "
        "<= c H Q^2 / (alpha^2 (t + 1)), c = 32 for MTPO and 9 for MTPO-tau (arXiv 2405.14655). A share of the "
        "bound above 1 would refute it. Self-play and Nash-EMA have no bound.\n",
        *_exact_part(found),
        *_mixture_part(sweep, ends, options),
        "\n![convergence and mixture](nash.svg)\n",
    ]
    _draw(found, sweep, out)
    return "\n".join(text)


def _draw(found: Results, sweep: Mapping[str, Array], out: Path) -> None:
    """Above: KL over time, one panel for each kind of games and tau. Below: one panel for each measure over beta."""
    note = f"Above: one line a method, median over seeds. Below: {MEANS[0].lower()}{MEANS[1:]} Thin: single runs."
    with picture(out / "nash", 2, 4, width=3.1, height=2.3, note=note, share_y=False) as (above, below):
        settings = [(kind, str(tau)) for kind in KINDS for tau in TAUS]
        for panel, (kind, tau) in zip(above, settings, strict=True):
            for colour, (method, first) in zip(COLOURS, found[kind][0][tau].items(), strict=False):
                middle = np.median([result[tau][method]["kl"] for result in found[kind]], axis=0)
                panel.line(first["t"], middle.tolist(), colour=colour, label=method)
            panel.axes.set(xscale="log", yscale="log")
            panel.words(title=f"{kind} games, tau {tau}", x="t", y="KL(pi* || pi_t)" if panel is above[0] else "")
        for panel, (measure, values), colour, bounds in zip(
            below, sweep.items(), COLOURS, (NOT_NEGATIVE, NOT_NEGATIVE, SHARE), strict=False
        ):
            panel.curve(BETAS, values, colour=colour, bounds=bounds)
            panel.words(title=measure.replace(" to the ", "\nto the "), x="beta: share of the reference")
        below[2].level(0.5)
        below[3].axes.set_axis_off()


SUITE = Suite(
    name="nash",
    summary="last iterates of Nash-MD, Nash-EMA, MTPO against their bounds; Nash-MD-PG over the mixture",
    cells=_cells,
    run=_run,
    report=_report,
    seeds=24,
)
