"""The report of the suite `stochastic_bias`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyturn.benchmarks.running.plots import BLUE, COLOURS, NOT_NEGATIVE, RUNS, SHARE, picture
from polyturn.benchmarks.running.reporting import compare, plus_minus
from polyturn.benchmarks.running.suite import Cell, Outcome, table
from polyturn.benchmarks.stochastic_bias.variants import BETA, SPREADS, TRAINED, VARIANTS

Exact = Mapping[str, Mapping[str, Any]]
"""The results of the exact cells by name, each by variant."""
Learned = Mapping[float, Sequence[Mapping[str, Any]]]
"""The results of the transformer's cells by spread, one a seed."""


def report(outcomes: Sequence[Outcome], out: Path) -> str:
    """Draws the pictures and returns the report."""
    outcomes = [_with_present_names(outcome) for outcome in outcomes]
    exact = {o.cell.name: o.result for o in outcomes if "spread" not in o.cell.options}
    learned = {spread: [o.result for o in outcomes if o.cell.options.get("spread") == spread] for spread in (0.0, 1.0)}
    options = next(o.cell.options for o in outcomes if "spread" in o.cell.options)
    noise_levels = [
        float(name.removeprefix("noise ")) for name in exact if name.startswith("noise ") and len(name.split()) == 2
    ]
    games = len(exact["noise 0.0"]["MTPO"]["left"])
    _draw_bias(exact, noise_levels, out)
    _draw_gamble(exact["gamble"], out)
    _draw_transformer(exact["gamble"], learned[1.0], out)
    text = [
        *_introduction(games, len(learned[1.0]), options),
        *_exact_tables(exact, noise_levels),
        "\n![exact: share of the regret left over noise](bias.svg)\n",
        "\n![exact: probability of the gamble over its spread](gamble.svg)\n",
        *_exact_findings(exact, noise_levels),
        *_learned_tables(learned),
        "\n![transformer: probability of the gamble over training](transformer.svg)\n",
        *_learned_findings(learned),
    ]
    return "\n".join(text) + "\n"


def _with_present_names(outcome: Outcome) -> Outcome:
    """The committed cells were run when their names and options said "luck" for noise."""
    cell = outcome.cell
    options = {name.replace("luck", "noise"): value for name, value in cell.options.items()}
    return Outcome(Cell(cell.name.replace("luck", "noise"), cell.seed, options), outcome.result)


def _introduction(games: int, seeds: int, options: Mapping[str, Any]) -> list[str]:
    return [
        "# stochastic_bias: the effect of noise in the replies on M-DPO and on MTPO\n",
        "Claim: the derivation of M-DPO drops a term that is zero only if replies are certain, so noise biases it; "
        "MTPO's gradient has no assumption about the replies.\n",
        "Every method is measured against the optimum that it claims. `left` is its regret as a share of the "
        "reference's regret in that objective: 0 at the optimum, 1 if it is no better than the reference.\n",
        "- M-DPO (soft labels, every pair of a group, ties count one half) and multi-turn RLHF (policy gradient on the "
        "reward): the largest E[r] - beta KL(pi || reference). Labels are Bradley-Terry in r, on the endings reached.",
        "- MTPO, and M-IPO (the squared loss of IPO on sums over turns) on pairs of the policy: the equilibrium of "
        "the preference regularised with alpha = beta / 4. Regret there is the gain of the best response with its KL "
        "penalty.",
        "- M-IPO on pairs of the reference: the largest P(beats the reference) - alpha KL.\n",
        "`M-DPO` without further words has fresh pairs of the policy. `without ties` leaves out pairs with the same "
        "ending, as the class `MDPO` does.\n",
        f"Exact part: expected losses on {games} random two-turn games (3 answers, 3 states, 4 endings, rewards with "
        f"standard deviation 3, beta {BETA['random']:g}) and on the gamble (beta {BETA['gamble']:g}); uniform "
        "reference; no sampling. A reply is uniformly random with probability `noise`, otherwise certain.\n",
        f"Transformer part: {seeds} seeds, {options['steps']} updates with {options['groups']} x "
        f"{options['group_size']} fresh episodes for every method, learning rate {options['lr']} falling to 0. "
        "Intervals are 95% Student, over games in the exact part and over seeds in the transformer part.\n",
    ]


def _left(found: Mapping[str, Any], name: str) -> list[float]:
    return _rounded(found[name]["left"])


def _rounded(values: Sequence[float]) -> list[float]:
    """Without the rounding errors of either sign around zero."""
    return [round(value, 7) + 0.0 for value in values]


def _exact_tables(exact: Exact, noise_levels: Sequence[float]) -> list[str]:
    """Shares left and KL on random games, games without a reward, and the gamble."""
    columns = [f"noise {noise}" for noise in noise_levels] + [name for name in exact if name.startswith("noise .4")]
    left = [[name, *(plus_minus(_left(exact[column], name), 4) for column in columns)] for name in VARIANTS]
    divergence = [
        [name, *(plus_minus(_rounded(exact[column][name]["kl"]), 4) for column in columns)] for name in VARIANTS
    ]
    cyclic = [name for name in exact if name.startswith("no order")]
    gambles = [
        [
            name,
            *(f"{p:.3f} ({left:.3f})" for p, left in zip(run["second_answer"], _rounded(run["left"]), strict=True)),
        ]
        for name, run in exact["gamble"].items()
    ]
    gradients = [run["gradient"] for found in exact.values() for run in found.values()]
    return [
        "\n## Exact: share of the reference's regret that is left, random games\n",
        table(["method", *columns], left),
        "\n`noise .4 first` and `last`: only that reply is random.\n",
        "\n## Exact: KL(optimum || policy), nats\n",
        table(["method", *columns], divergence),
        "\n## Exact: games whose preference no reward explains\n",
        table(
            ["method", *(f"noise {name.split()[-1]}" for name in cyclic)],
            [[name, *(plus_minus(_left(exact[cell], name), 4) for cell in cyclic)] for name in exact[cyclic[0]]],
        ),
        "\n## Exact: the gamble\n",
        "The gamble pays 1/2 on average at every spread, the safe answer 0. At spread 1 it pays 6.5 with probability "
        "1/5 and otherwise -1, so it beats the safe answer in only 41.5% of comparisons. Probability of the gamble, "
        "and in brackets the share of the reference's regret that is left:\n",
        table(["method", *(f"spread {spread:g}" for spread in SPREADS)], gambles),
        f"\nThe largest entry of any gradient at the last step of Adam: {max(gradients):.1e}. What is left at noise 0 "
        "is what Adam has not descended: with the policy's own pairs the loss is flat where the policy has little "
        "probability.\n",
    ]


def _exact_findings(exact: Exact, noise_levels: Sequence[float]) -> list[str]:
    text = ["\n## Findings of the exact part\n"]
    for noise in noise_levels:
        found = exact[f"noise {noise}"]
        for a, b in (("M-DPO", "multi-turn RLHF"), ("M-DPO, reference's pairs", "multi-turn RLHF"), ("M-IPO", "MTPO")):
            text.append(f"- Noise {noise}, share left: {compare(a, _left(found, a), b, _left(found, b), 4)}")
    worst = {name: max(max(run[name]["left"]) for run in exact.values() if name in run) for name in VARIANTS}
    listed = ", ".join(f"{name} {share:.4f}" for name, share in worst.items())
    return [
        *text,
        f"- Largest share left in any game at any noise: {listed}.",
        "- Why M-IPO on the policy's own pairs reaches MTPO's equilibrium: the gradient of "
        "(h - (2p - 1) / (2 alpha))^2 over two independent plays of the policy is, up to a factor, the gradient of "
        "P - alpha KL, because the score of an answer has mean zero after any replies. Its target is linear in p, so "
        "noise averages out. This fails with pairs of another policy, and with M-DPO's logistic link.",
        "- So noise does not bias every loss on margins. It biases the losses whose expected gradient is not a policy "
        "gradient.",
    ]


def _last(runs: Sequence[Mapping[str, Any]], name: str, figure: str) -> list[float]:
    """A figure at the last evaluation, one a seed."""
    return [float(run[name][-1][figure]) for run in runs]


def _own_left(runs: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """The share left by the method's own claim, one a seed."""
    return _last(runs, name, f"{VARIANTS[name].claim}_left")


def _optimum(runs: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """The probability of the gamble at the optimum that a method claims, one a seed."""
    return [float(run["optimum_gambles"][VARIANTS[name].claim]) for run in runs]


def _learned_tables(learned: Learned) -> list[str]:
    text = []
    for spread, runs in learned.items():
        rows = [
            [
                name,
                VARIANTS[name].claim,
                plus_minus(_last(runs, name, "reward_left")),
                plus_minus(_last(runs, name, "preference_left")),
                plus_minus(_last(runs, name, f"{VARIANTS[name].claim}_kl")),
                plus_minus(_last(runs, name, "gambles")),
                plus_minus(_optimum(runs, name)),
                plus_minus(_last(runs, name, "exploitability")),
            ]
            for name in TRAINED
        ]
        header = ["method", "claims", "left: reward", "left: preference", "KL", "gambles", "optimum", "exploitability"]
        control = ", where noise has no effect (control)" if spread == 0 else ""
        text += [f"\n## Transformer: the gamble at spread {spread:g}{control}\n", table(header, rows)]
    masses = [each["mass"] for runs in learned.values() for run in runs for name in TRAINED for each in run[name]]
    return [
        *text,
        "\n`left: reward` and `left: preference` measure every method by both objectives; `claims` says which one is "
        "its own. KL (from the optimum to the policy) and optimum (probability of the gamble) are those of the claimed "
        "objective. Optima are for the transformer's own reference, over policies that remember replies and answers; "
        "probabilities are exact. The smallest probability of a valid answer in any state at any evaluation was "
        f"{min(masses):.3f}; the other figures are among valid answers.\n",
    ]


def _learned_findings(learned: Learned) -> list[str]:
    text = ["\n## Findings of the transformer part\n"]
    own = {spread: {name: _own_left(runs, name) for name in TRAINED} for spread, runs in learned.items()}
    for spread, left in own.items():
        for a, b in (("M-DPO", "multi-turn RLHF"), ("M-DPO", "MTPO"), ("M-IPO", "MTPO")):
            text.append(f"- Spread {spread:g}, share left: {compare(a, left[a], b, left[b])}")
    text += [
        f"- {name}, share left: {compare('spread 1', own[1.0][name], 'spread 0', own[0.0][name])}" for name in TRAINED
    ]
    for a in ("M-DPO", "multi-turn RLHF"):
        sentence = compare(a, _last(learned[1.0], a, "preference_left"), "MTPO", own[1.0]["MTPO"])
        text.append(f"- Spread 1, share left of the preference's regret, which {a} does not claim: {sentence}")
    for name in TRAINED:
        gambles = _last(learned[1.0], name, "gambles")
        sentence = compare(name, gambles, "the optimum it claims", _optimum(learned[1.0], name))
        text.append(f"- Spread 1, probability of the gamble: {sentence}")
    return text


def _draw_bias(exact: Exact, noise_levels: Sequence[float], out: Path) -> None:
    """One panel a variant: the share of the regret left over noise; the other variants' means in grey."""
    left = {name: np.array([_left(exact[f"noise {noise}"], name) for noise in noise_levels]).T for name in VARIANTS}
    note = f"{RUNS} Runs are random games. Grey: the other methods."
    with picture(out / "bias", 2, 4, width=2.7, height=2.0, note=note) as grid:
        panels = [panel for row in grid for panel in row]
        for panel, name in zip(panels, VARIANTS, strict=False):
            for other in VARIANTS:
                panel.context(noise_levels, left[other].mean(axis=0).tolist())
            panel.curve(noise_levels, left[name], colour=BLUE, bounds=NOT_NEGATIVE)
            panel.words(title=name, x="noise of a reply", y="share left" if panel in (grid[0][0], grid[1][0]) else "")
        panels[-1].axes.set_axis_off()
        grid[1][0].axes.sharey(grid[0][0].axes)


def _draw_gamble(gamble: Mapping[str, Any], out: Path) -> None:
    """The exact probability of the gamble over its spread, by the claimed objective."""
    claims = {"claim: largest reward less KL": ("reward",), "claim: a preference": ("response", "preference")}
    note = "The policies that the expected losses reach. The optimum by reward does not depend on the spread."
    with picture(out / "gamble", 1, 2, width=4.2, height=2.6, note=note) as (row,):
        for panel, (title, kinds) in zip(row, claims.items(), strict=True):
            names = [name for name in gamble if VARIANTS[name].claim in kinds]
            # Some lines coincide: every second one is dashed.
            for place, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
                dashes = "--" if place % 2 == 0 else "-"
                panel.line(SPREADS, gamble[name]["second_answer"], colour=colour, label=name, marker="o", dashes=dashes)
            panel.words(title=title, x="spread of the gamble", y="probability of the gamble" if panel is row[0] else "")
        row[0].limits(y=SHARE)


def _draw_transformer(gamble: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], out: Path) -> None:
    """One panel a method: the transformer's probability of the gamble at spread 1 over training."""
    note = f"{RUNS} Dotted: the optimum that the method claims, mean over seeds."
    with picture(out / "transformer", 1, len(TRAINED), width=2.5, height=2.2, note=note) as (row,):
        for panel, name in zip(row, TRAINED, strict=True):
            curves = [[each["gambles"] for each in run[name]] for run in runs]
            panel.level(float(np.mean(_optimum(runs, name))))
            panel.curve([each["step"] for each in runs[0][name]], curves, colour=BLUE, bounds=SHARE)
            panel.words(title=name, x="update", y="probability of the gamble" if panel is row[0] else "")
        row[0].limits(y=SHARE)
