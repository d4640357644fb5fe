"""The page of the suite `coverage`: tables, plots, and what the intervals allow to be said of the paper's claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyturn.algorithms.exact.closed_forms import best_of_n
from polyturn.benchmarks.coverage.training import LENGTH, METHODS, REWARDS, STORED, VOCABULARY
from polyturn.benchmarks.running.plots import save
from polyturn.benchmarks.running.reporting import compare, line, panels, plus_minus
from polyturn.benchmarks.running.suite import Outcome, mean_interval, table
from polyturn.envs.games.bandits import data_policy, reward_table

NINTH = "tau_ninth-IPO"
"""The cells that train the GPT with IPO at a ninth of tau."""
LIKELIHOOD, CONTRASTIVE = ("BoN", "RWR"), ("DPO", "IPO")
SWEEP = "rates"
"""First word of the cells that train the MLP at every rate."""


@dataclass(frozen=True, eq=False)
class Runs:
    """Everything measured of one variant.

    Attributes:
        variant: Its name.
        figures: `[methods, seeds, records, rewards, sources]`.
        records: Updates done at each record.
        sources: Names of the sources of data.
        options: Of its first cell.
    """

    variant: str
    figures: NDArray[np.float64]
    records: Sequence[int]
    sources: Sequence[str]
    options: Mapping[str, Any]

    def at(self, method: str, reward: str, source: str, update: int | None = None) -> list[float]:
        """One figure a seed, after the given number of updates or at the end."""
        record = len(self.records) - 1 if update is None else list(self.records).index(update)
        part = self.figures[METHODS.index(method), :, record, REWARDS.index(reward), list(self.sources).index(source)]
        return [float(value) for value in part]

    def mean(self, methods: Sequence[str], reward: str, source: str, update: int | None = None) -> list[float]:
        """Mean over methods, one figure a seed."""
        return [float(v) for v in np.mean([self.at(m, reward, source, update) for m in methods], axis=0)]

    @property
    def reuses(self) -> list[int]:
        """T of each on-policy source."""
        return [int(name[2:]) for name in self.sources if name != "offline"]


def report(outcomes: Sequence[Outcome], out: Path) -> str:
    """Writes the plots and returns the page."""
    swept = [o for o in outcomes if o.cell.name.startswith(SWEEP)]
    ninth = [o for o in outcomes if o.cell.name == NINTH]
    outcomes = [o for o in outcomes if o not in swept and o not in ninth]
    variants = list(dict.fromkeys(o.cell.name.partition("-")[0] for o in outcomes))
    found = [_gather(outcomes, variant) for variant in variants]
    text = [
        "# coverage: on-policy samples, negative gradients, sample reuse\n",
        "Expected reward (best: 1); mean over seeds with the 95% Student interval. T: updates on each fresh batch of "
        "the policy's own samples, so at equal updates a larger T sees fewer samples. Offline: "
        f"{STORED} groups that the data policy wrote.\n",
        "Claims (arXiv 2404.14367): where the peak is rarely sampled (R1) on-policy is far above offline and "
        "contrastive losses (DPO, IPO) above likelihood (BoN, RWR); where it is often sampled (R2) little differs; "
        "moderate reuse helps; much reuse hurts best-of-N more than PPO.\n",
        "## The claims, counted\n",
        "How often the 95% interval of a difference, paired by seed, lies above 0, below 0, or holds it. "
        "Not corrected for the number of comparisons.\n",
        table(["claim", *variants], _verdicts(found)),
    ]
    for runs in found:
        text += _section(runs)
        _learning(runs, out)
    _reuse(found, out)
    text.append("\n## Reuse: reward against samples drawn\n\n![reward against batches drawn](reuse.svg)\n")
    return "\n".join(text + _sweep(swept) + _ninth(ninth, found[variants.index("GPT")]))


def _ninth(outcomes: Sequence[Outcome], runs: Runs) -> list[str]:
    """Whether IPO on sequences is held back by its margin."""
    # [seeds, rewards, sources] at the end
    last = np.array([o.result["expected_reward"] for o in outcomes])[:, -1]
    sources = outcomes[0].cell.options["sources"]
    text = [
        "\n## IPO's margin on sequences\n",
        "IPO draws a pair's margin to 1 / (2 tau) nats: 10 with tau .05, which nine tokens share here. With a ninth of "
        "tau each token has as much as an arm has in the bandit.\n",
    ]
    rows = []
    for r, reward in enumerate(REWARDS):
        for place, source in enumerate(sources):
            mine, theirs = last[:, r, place].tolist(), runs.at("IPO", reward, source)
            cells = [plus_minus(values) for values in (theirs, mine, _minus(mine, theirs))]
            rows.append([f"{reward}, {source}", *cells])
    return [*text, table(["GPT, IPO, at the end", "tau .05", "tau .05 / 9", "difference"], rows), ""]


def _sweep(outcomes: Sequence[Outcome]) -> list[str]:
    """Whether on-policy differences between methods are the methods' or their rates'."""
    options = outcomes[0].cell.options
    rates, records = options["rates"], options["records"]
    # [seeds, rates, records, rewards] by method and threshold
    found = {
        (method, threshold): np.array([o.result[threshold] for o in outcomes if o.cell.name == f"{SWEEP}-{method}"])
        for method in METHODS
        for threshold in next(o.result for o in outcomes if o.cell.name == f"{SWEEP}-{method}")
    }
    text = [
        "\n## Methods or rates? The MLP on-policy (T=1) at every rate\n",
        "Above, each method has one rate for all sources of data. Here every rate of the tuning grid is run, and pairs "
        "are also taken without leaving out near ties (threshold 0). A method's best rate is that of the best mean.",
    ]
    for r, reward in enumerate(REWARDS):
        for place in (1, len(records) - 1):
            at = {key: values[:, :, place, r] for key, values in found.items()}
            label = {key: key[0] if key[1] == "0.2" else f"{key[0]}, threshold 0" for key in at}
            rows = [[label[k], *(plus_minus(v[:, c].tolist()) for c in range(len(rates)))] for k, v in at.items()]
            header = [f"{reward}, after {records[place]} updates", *(f"{rate:g}" for rate in rates)]
            text += ["", table(header, rows), ""]
            best = {key: values[:, values.mean(axis=0).argmax()] for key, values in at.items()}
            for threshold in ("0.2", "0.0"):
                a = np.mean([best[m, threshold] for m in CONTRASTIVE], axis=0).tolist()
                b = np.mean([best[m, "0.2"] for m in LIKELIHOOD], axis=0).tolist()
                first = f"the mean of DPO and IPO (threshold {threshold})"
                sentence = compare(first, a, "the mean of BoN and RWR", b)
                text.append(f"- {reward}, after {records[place]} updates, each at its best rate: {sentence}")
            a, b = best["PPO", "0.2"].tolist(), best["BoN", "0.2"].tolist()
            text.append(
                f"- {reward}, after {records[place]} updates, each at its best rate: {compare('PPO', a, 'BoN', b)}"
            )
    return text


def _gather(outcomes: Sequence[Outcome], variant: str) -> Runs:
    mine = [o for o in outcomes if o.cell.name.partition("-")[0] == variant]
    by_method = [[o.result["expected_reward"] for o in mine if o.cell.name == f"{variant}-{m}"] for m in METHODS]
    options = mine[0].cell.options
    return Runs(variant, np.array(by_method), options["records"], options["sources"], options)


def _section(runs: Runs) -> list[str]:
    options, seeds = runs.options, runs.figures.shape[1]
    size = options["group_size"]
    text = [
        f"\n## {runs.variant}\n",
        f"{runs.records[-1]} updates of Adam, batches of {options['groups']} x {size} samples, {seeds} seeds. "
        f"Differences are paired by seed.",
    ]
    for r, reward in enumerate(REWARDS):
        start, ceiling = float(runs.figures[:, :, 0, r].mean()), one_round(runs.variant, reward, size)
        rows = [
            [
                m,
                *(plus_minus(runs.at(m, reward, s)) for s in runs.sources),
                plus_minus(_minus(runs.at(m, reward, "T=1"), runs.at(m, reward, "offline"))),
            ]
            for m in METHODS
        ]
        text += [
            f"\n### {runs.variant}, {reward}\n",
            f"Before training {start:.3f}; the best of {size} samples of the data policy is worth {ceiling:.3f}, which "
            "is what offline BoN earns if it learns the law of the best and nothing else.\n",
            table([f"after {runs.records[-1]} updates", *runs.sources, "T=1 minus offline"], rows),
        ]
        for share in _shares(runs):
            batches = runs.records[-1] // share
            reuses = [t for t in runs.reuses if t <= share]
            rows = [
                [
                    m,
                    *(plus_minus(runs.at(m, reward, f"T={t}", batches * t)) for t in reuses),
                    plus_minus(
                        _minus(runs.at(m, reward, f"T={share}", batches * share), runs.at(m, reward, "T=1", batches))
                    ),
                ]
                for m in METHODS
            ]
            header = [f"after {batches} batches", *(f"T={t}" for t in reuses), f"T={share} minus T=1"]
            text += ["", table(header, rows)]
    text += [f"\n![{runs.variant}: reward over training](coverage_{runs.variant}.svg)\n", "What the figures say:\n"]
    for reward in REWARDS:
        for source, update in _moments(runs):
            a, b = (runs.mean(group, reward, source, update) for group in (CONTRASTIVE, LIKELIHOOD))
            sentence = compare("the mean of DPO and IPO", a, "the mean of BoN and RWR", b)
            text.append(f"- {reward}, {source}, after {update} updates: {sentence}")
        most = f"T={max(runs.reuses)}"
        lost = {m: _minus(runs.at(m, reward, "T=1"), runs.at(m, reward, most)) for m in ("BoN", "PPO")}
        text.append(
            f"- {reward}, at equal updates: "
            + compare(f"what {most} costs BoN", lost["BoN"], "what it costs PPO", lost["PPO"])
        )
    return text


def one_round(variant: str, reward: str, size: int) -> float:
    """What the best of `size` answers of the data policy is worth: exact for one token, else from 20,000 groups."""
    values = reward_table(reward, contexts=1, arms=VOCABULARY)[0]
    if variant != "GPT":
        return float(best_of_n(data_policy(), values, n=size) @ values)
    rng = np.random.default_rng(0)
    tokens = rng.choice(VOCABULARY, size=(20_000, size, LENGTH), p=data_policy() / data_policy().sum())
    return float(values[tokens].mean(-1).max(-1).mean())


def _moments(runs: Runs) -> list[tuple[str, int]]:
    """Where losses are compared: at the end, and on-policy also early, before all have arrived."""
    end = int(runs.records[-1])
    return [("offline", end), ("T=1", end // 8), ("T=1", end)]


def _shares(runs: Runs) -> list[int]:
    """Reuses at which equal numbers of batches are compared with T=1: 8, and the largest where that is more."""
    return sorted({8, max(runs.reuses)})


def _verdicts(found: Sequence[Runs]) -> list[list[str]]:
    rows: list[list[str]] = []

    def add(claim: str, cells: Sequence[Sequence[Sequence[float]]]) -> None:
        rows.append([claim, *(_count(differences) for differences in cells)])

    for reward in REWARDS:
        add(
            f"{reward}: on-policy (T=1) above offline, of {len(METHODS)} methods",
            [[_minus(v.at(m, reward, "T=1"), v.at(m, reward, "offline")) for m in METHODS] for v in found],
        )
    for reward in REWARDS:
        for place, when in enumerate(("offline, at the end", "T=1, after 1/8 of the updates", "T=1, at the end")):
            pairs = []
            for v in found:
                at = _moments(v)[place]
                pairs.append(
                    [_minus(v.at(c, reward, *at), v.at(m, reward, *at)) for c in CONTRASTIVE for m in LIKELIHOOD]
                )
            add(f"{reward}, {when}: DPO, IPO above BoN, RWR, of 4 pairs", pairs)
    for reward in REWARDS:
        add(
            f"{reward}: T=8 above T=1 after as many batches, of {len(METHODS)} methods",
            [
                [
                    _minus(v.at(m, reward, "T=8", v.records[-1]), v.at(m, reward, "T=1", v.records[-1] // 8))
                    for m in METHODS
                ]
                for v in found
            ],
        )
    for reward in REWARDS:
        add(
            f"{reward}: most reuse costs BoN more than PPO at equal updates",
            [
                [
                    _minus(
                        _minus(v.at("BoN", reward, "T=1"), v.at("BoN", reward, f"T={max(v.reuses)}")),
                        _minus(v.at("PPO", reward, "T=1"), v.at("PPO", reward, f"T={max(v.reuses)}")),
                    )
                ]
                for v in found
            ],
        )
    gaps = []
    for v in found:
        gap = {r: _minus(v.mean(METHODS, r, "T=1"), v.mean(METHODS, r, "offline")) for r in REWARDS}
        gaps.append(" and ".join(plus_minus(gap[r]) for r in REWARDS))
    rows.append(["T=1 minus offline, mean of all methods, on R1 and R2", *gaps])
    return rows


def _minus(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def _count(differences: Sequence[Sequence[float]]) -> str:
    bounds = [mean_interval(values)[1:] for values in differences]
    above, below = sum(low > 0 for low, _ in bounds), sum(high < 0 for _, high in bounds)
    return f"{above} above, {below} below, {len(bounds) - above - below} open"


def _learning(runs: Runs, out: Path) -> None:
    with panels(13.5, 3.8, 2) as (canvas, axes):
        for r, reward in enumerate(REWARDS):
            for k, m in enumerate(METHODS):
                for source, style in (("T=1", "-"), ("offline", "--")):
                    values = runs.figures[k, :, :, r, list(runs.sources).index(source)]
                    line(axes[r], runs.records, values, label=f"{m}, {source}", color=f"C{k}", linestyle=style)
            title = f"{runs.variant}, {reward}"
            axes[r].set(title=title, xlabel="update", ylabel="expected reward", ylim=(-0.02, 1.02))
        axes[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
        save(canvas, out / f"coverage_{runs.variant}")


def _reuse(found: Sequence[Runs], out: Path) -> None:
    """Reward on R1 after numbers of batches, for each T: what a sample is worth."""
    shown = [(runs, method) for runs in found if runs.variant != "table" for method in ("BoN", "PPO")]
    with panels(4 * len(shown), 3.6, len(shown)) as (canvas, axes):
        for place, (runs, method) in enumerate(shown):
            for color, t in enumerate(runs.reuses):
                values = runs.figures[METHODS.index(method), :, :, 0, list(runs.sources).index(f"T={t}")]
                line(axes[place], np.array(runs.records) / t, values, label=f"T={t}", color=f"C{color}")
            axes[place].set(
                title=f"{runs.variant}, {method}, R1", xlabel="batches drawn", xscale="symlog", ylim=(-0.02, 1.02)
            )
        axes[0].set_ylabel("expected reward")
        axes[0].legend(frameon=False, fontsize=8)
        save(canvas, out / "reuse")
