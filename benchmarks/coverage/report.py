"""The report of the suite `coverage`: tables, pictures, and what the intervals support of the paper's claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from polyturn.algorithms.exact.closed_forms import best_of_n
from polyturn.benchmarks.coverage.pictures import draw_learning, draw_reuse
from polyturn.benchmarks.coverage.runs import CONTRASTIVE, LIKELIHOOD, Runs, gather
from polyturn.benchmarks.coverage.training import LENGTH, METHODS, REWARDS, STORED, VOCABULARY
from polyturn.benchmarks.running.reporting import compare, paired_difference, plus_minus, side_of_zero
from polyturn.benchmarks.running.suite import Outcome, mean_interval, table
from polyturn.envs.games.bandits import data_policy, reward_table

NINTH = "tau_ninth-IPO"
"""The cells that train the GPT with IPO at a ninth of tau."""
SWEEP = "rates"
"""First word of the cells that train the MLP at every learning rate."""


def report(outcomes: Sequence[Outcome], out: Path) -> str:
    """Draws the pictures and returns the report."""
    swept = [o for o in outcomes if o.cell.name.startswith(SWEEP)]
    ninth = [o for o in outcomes if o.cell.name == NINTH]
    outcomes = [o for o in outcomes if o not in swept and o not in ninth]
    variants = list(dict.fromkeys(o.cell.name.partition("-")[0] for o in outcomes))
    found = [gather(outcomes, variant) for variant in variants]
    text = [
        "# coverage: on-policy samples, negative gradients, sample reuse\n",
        "Expected reward (best: 1); mean over seeds with the 95% Student interval. T is the number of updates on each "
        "fresh batch of the policy's samples, so at equal updates a larger T has fewer samples. Offline: "
        f"{STORED} groups of samples of the data policy.\n",
        "Claims (arXiv 2404.14367): where the data policy rarely samples the peak (R1), on-policy is far above offline "
        "and contrastive losses (DPO, IPO) are above likelihood (BoN, RWR); where it often samples the peak (R2), the "
        "differences are small; moderate reuse helps; much reuse hurts best-of-N more than PPO.\n",
        "## The claims, counted\n",
        "How often the 95% interval of a difference, paired by seed, lies above 0, below 0, or contains 0 (open). "
        "Not corrected for the number of comparisons.\n",
        table(["claim", *variants], _claims(found)),
    ]
    for runs in found:
        text += _section(runs)
        draw_learning(runs, out)
    draw_reuse(found, out)
    text.append("\n## Reuse: reward against samples drawn\n\n![reward against batches drawn](reuse.svg)\n")
    return "\n".join(text + _rate_sweep(swept) + _smaller_tau(ninth, found[variants.index("GPT")]))


def _claims(found: Sequence[Runs]) -> list[list[str]]:
    """One row a claim, one column a variant: how many of its comparisons the intervals support."""

    def counted(claim: str, differences: Callable[[Runs, str], list[list[float]]]) -> list[list[str]]:
        return [
            [f"{reward}{claim}", *(_count_sides(differences(runs, reward)) for runs in found)] for reward in REWARDS
        ]

    moments = ("offline, at the end", "T=1, after 1/8 of the updates", "T=1, at the end")
    rows = [
        *counted(
            f": on-policy (T=1) above offline, of {len(METHODS)} methods",
            lambda runs, reward: [runs.on_minus_offline(m, reward) for m in METHODS],
        ),
        *(
            [
                f"{reward}, {when}: DPO, IPO above BoN, RWR, of 4 pairs",
                *(_count_sides(_contrastive_minus_likelihood(runs, reward, *runs.moments()[place])) for runs in found),
            ]
            for reward in REWARDS
            for place, when in enumerate(moments)
        ),
        *counted(
            f": T=8 above T=1 after as many batches, of {len(METHODS)} methods",
            lambda runs, reward: [runs.gain_of_reuse(m, reward, 8) for m in METHODS],
        ),
        *counted(
            ": most reuse costs BoN more than PPO at equal updates",
            lambda runs, reward: [
                paired_difference(runs.cost_of_reuse("BoN", reward), runs.cost_of_reuse("PPO", reward))
            ],
        ),
    ]
    gaps = []
    for runs in found:
        gap = {r: paired_difference(runs.mean(METHODS, r, "T=1"), runs.mean(METHODS, r, "offline")) for r in REWARDS}
        gaps.append(" and ".join(plus_minus(gap[r]) for r in REWARDS))
    rows.append(["T=1 minus offline, mean of all methods, on R1 and R2", *gaps])
    return rows


def _contrastive_minus_likelihood(runs: Runs, reward: str, source: str, update: int) -> list[list[float]]:
    """DPO and IPO minus BoN and RWR: four pairs, each with one difference a seed."""
    return [
        paired_difference(runs.at(c, reward, source, update), runs.at(m, reward, source, update))
        for c in CONTRASTIVE
        for m in LIKELIHOOD
    ]


def _count_sides(differences: Sequence[Sequence[float]]) -> str:
    sides = [side_of_zero(*mean_interval(values)[1:]) for values in differences]
    return ", ".join(f"{sides.count(side)} {side}" for side in ("above", "below", "open"))


def _section(runs: Runs) -> list[str]:
    """One variant: its tables for each reward, its picture, and what the intervals support."""
    options, seeds, end = runs.options, runs.figures.shape[1], runs.records[-1]
    size = options["group_size"]
    text = [
        f"\n## {runs.variant}\n",
        f"{end} updates of Adam, batches of {options['groups']} x {size} samples, {seeds} seeds. "
        f"Differences are paired by seed.",
    ]
    for r, reward in enumerate(REWARDS):
        start, ceiling = float(runs.figures[:, :, 0, r].mean()), best_of_data(runs.variant, reward, size)
        by_source = [
            [
                method,
                *(plus_minus(runs.at(method, reward, source)) for source in runs.sources),
                plus_minus(runs.on_minus_offline(method, reward)),
            ]
            for method in METHODS
        ]
        text += [
            f"\n### {runs.variant}, {reward}\n",
            f"Before training {start:.3f}. The best of {size} samples of the data policy has an expected reward of "
            f"{ceiling:.3f}; offline BoN earns this if it learns the distribution of the best sample exactly.\n",
            table([f"after {end} updates", *runs.sources, "T=1 minus offline"], by_source),
        ]
        # Equal numbers of batches: at T=8, and at the largest T where it is larger.
        for most in sorted({8, max(runs.reuses)}):
            batches = end // most
            reuses = [t for t in runs.reuses if t <= most]
            by_reuse = [
                [
                    method,
                    *(plus_minus(runs.at(method, reward, f"T={t}", batches * t)) for t in reuses),
                    plus_minus(runs.gain_of_reuse(method, reward, most)),
                ]
                for method in METHODS
            ]
            header = [f"after {batches} batches", *(f"T={t}" for t in reuses), f"T={most} minus T=1"]
            text += ["", table(header, by_reuse)]
    text += [f"\n![{runs.variant}: reward over training](coverage_{runs.variant}.svg)\n", "Findings:\n"]
    for reward in REWARDS:
        for source, update in runs.moments():
            a, b = (runs.mean(group, reward, source, update) for group in (CONTRASTIVE, LIKELIHOOD))
            sentence = compare("the mean of DPO and IPO", a, "the mean of BoN and RWR", b)
            text.append(f"- {reward}, {source}, after {update} updates: {sentence}")
        most_name = runs.most_reuse
        bon, ppo = (runs.cost_of_reuse(method, reward) for method in ("BoN", "PPO"))
        sentence = compare(f"the cost of {most_name} for BoN", bon, "its cost for PPO", ppo)
        text.append(f"- {reward}, at equal updates: {sentence}")
    return text


def best_of_data(variant: str, reward: str, size: int) -> float:
    """Expected reward of the best of `size` answers of the data policy: exact, or for the GPT from 20,000 groups."""
    values = reward_table(reward, contexts=1, arms=VOCABULARY)[0]
    if variant != "GPT":
        return float(best_of_n(data_policy(), values, n=size) @ values)
    rng = np.random.default_rng(0)
    tokens = rng.choice(VOCABULARY, size=(20_000, size, LENGTH), p=data_policy() / data_policy().sum())
    return float(values[tokens].mean(-1).max(-1).mean())


def _rate_sweep(outcomes: Sequence[Outcome]) -> list[str]:
    """Whether on-policy differences between methods come from the methods or from their learning rates."""
    options = outcomes[0].cell.options
    rates, records = options["rates"], options["records"]
    # [seeds, rates, records, rewards] by method and threshold
    found = {
        (method, threshold): np.array([o.result[threshold] for o in outcomes if o.cell.name == f"{SWEEP}-{method}"])
        for method in METHODS
        for threshold in next(o.result for o in outcomes if o.cell.name == f"{SWEEP}-{method}")
    }
    text = [
        "\n## Methods or learning rates? The MLP on-policy (T=1) at every rate\n",
        "Above, each method has one learning rate for all sources of data. Here every rate of the tuning grid is run, "
        "and DPO and IPO are also run without a threshold for ties (threshold 0). A method's best rate is the one with "
        "the best mean.",
    ]
    for r, reward in enumerate(REWARDS):
        for place in (1, len(records) - 1):
            when = f"{reward}, after {records[place]} updates"
            at = {key: values[:, :, place, r] for key, values in found.items()}
            rows = [
                [
                    method if threshold == "0.2" else f"{method}, threshold 0",
                    *(plus_minus(values[:, rate].tolist()) for rate in range(len(rates))),
                ]
                for (method, threshold), values in at.items()
            ]
            text += ["", table([when, *(f"{rate:g}" for rate in rates)], rows), ""]
            # Each method at its best rate.
            best = {key: values[:, values.mean(axis=0).argmax()] for key, values in at.items()}
            likelihood = np.mean([best[m, "0.2"] for m in LIKELIHOOD], axis=0).tolist()
            for threshold in ("0.2", "0.0"):
                contrastive = np.mean([best[m, threshold] for m in CONTRASTIVE], axis=0).tolist()
                first = f"the mean of DPO and IPO (threshold {threshold})"
                sentence = compare(first, contrastive, "the mean of BoN and RWR", likelihood)
                text.append(f"- {when}, each at its best rate: {sentence}")
            sentence = compare("PPO", best["PPO", "0.2"].tolist(), "BoN", best["BoN", "0.2"].tolist())
            text.append(f"- {when}, each at its best rate: {sentence}")
    return text


def _smaller_tau(outcomes: Sequence[Outcome], runs: Runs) -> list[str]:
    """Whether IPO's margin limits it on sequences."""
    # [seeds, rewards, sources] at the end
    last = np.array([o.result["expected_reward"] for o in outcomes])[:, -1]
    sources = outcomes[0].cell.options["sources"]
    rows = []
    for r, reward in enumerate(REWARDS):
        for place, source in enumerate(sources):
            smaller, plain = last[:, r, place].tolist(), runs.at("IPO", reward, source)
            cells = [plus_minus(values) for values in (plain, smaller, paired_difference(smaller, plain))]
            rows.append([f"{reward}, {source}", *cells])
    return [
        "\n## IPO's margin on sequences\n",
        "IPO pulls the margin of a pair to 1 / (2 tau) nats: 10 with tau .05, which nine tokens share here. With a "
        "ninth of tau the margin of each token is that of an arm in the bandit.\n",
        table(["GPT, IPO, at the end", "tau .05", "tau .05 / 9", "difference"], rows),
        "",
    ]
