"""Claims of the papers on preferences themselves: online and offline, Nash equilibria, and the family of losses."""

from __future__ import annotations

import numpy as np

from polyturn.algorithms.exact.closed_forms import ipo_on_pairs
from polyturn.benchmarks.gpo_frontier import FAMILY, LEVELS
from polyturn.benchmarks.ipo_vs_dpo import DATA
from polyturn.benchmarks.nash import BETAS, MEASURES
from polyturn.benchmarks.papers.cells import Cells, minus
from polyturn.benchmarks.papers.claims import Claim, Paper
from polyturn.benchmarks.running.reporting import paired_difference


def online_ipo(cells: Cells) -> Paper:
    """arXiv 2403.08635."""
    study, suite = cells.language(), "nash_language"
    reason = "See the suite's page."
    claims = [
        Claim(f"{first} beats {rival}", suite, minus(study.duel(first, rival)), "win rate - 1/2", reason=reason)
        for first in ("online IPO", "IPO-MD")
        for rival in ("online DPO", "SLiC", "Nash-MD-PG", "RLHF")
    ]
    claims.append(
        Claim(
            "online IPO and IPO-MD alike",
            suite,
            minus(study.duel("online IPO", "IPO-MD")),
            "win rate - 1/2",
            same=0.03,
            reason=reason,
        )
    )
    return Paper(
        "online_ipo",
        "Online IPO and IPO-MD",
        "2403.08635",
        claims,
        "The paper: language models on TL;DR with a preference model. Here: a small GPT-2 on a task whose "
        "preferences form cycles, a fitted preference model, each method at its best rate and pull.",
        "Gemma 2 2B on TL;DR: `polyturn train ipo -m tau=1 --model SFT --online 2000 --preference "
        "preference_model:PM`, 6 methods x 3 rates, about 5 H100-hours each.",
    )


def gpo(cells: Cells) -> Paper:
    """arXiv 2402.05749."""
    sweeps = cells.frontier()
    reached = dict(sweeps.compared())
    claims = [
        Claim(
            f"KL {level:g}: {name.replace('_', ' ')} and logistic alike",
            "gpo_frontier",
            paired_difference(sweeps.wins(name, level), sweeps.wins("logistic", level)),
            "points of win rate",
            scale=100.0,
            same=0.005,
            reason="Hinge has no curvature: soft labels do not set how far a pair moves. Not tested.",
        )
        for level in LEVELS
        for name in FAMILY[1:]
        if name in reached.get(level, ())
    ]
    return Paper(
        "gpo",
        "GPO",
        "2402.05749",
        claims,
        "The paper: a language model on summaries, frontiers by eye. Here: tables over 8 prompts, soft labels, 33 "
        "betas, win rates at equal KL.",
        "Six losses x nine betas on one set of 50,000 pairs, a model of 1 billion parameters: `polyturn train gpo -m "
        "f=hinge -m beta=B`; 54 runs of about one H100-hour.",
    )


def oaif(cells: Cells) -> Paper:
    """arXiv 2402.04792."""
    suite = "online_vs_offline"
    few = "Four seeds, of which two hardly fall."
    claims = [
        Claim(
            f"{task}: offline DPO peaks, then falls",
            suite,
            cells.fall(suite, f"{task}: offline DPO"),
            "of win rate",
            reason=few,
        )
        for task in ("minimum", "mode", "skew")
    ]
    claims += [
        Claim(
            f"{task}: online DPO does not fall",
            suite,
            cells.fall(suite, f"{task}: online DPO"),
            "of win rate",
            same=0.05,
        )
        for task in ("minimum", "mode")
    ]
    claims += [
        Claim(
            f"{task}: online above offline DPO at the end",
            suite,
            cells.ends(suite, f"{task}: online DPO", f"{task}: offline DPO", "win_rate"),
            "of win rate",
            reason=few,
        )
        for task in ("minimum", "mode")
    ]
    claims += [
        Claim(
            f"asked for {asked}: fewer words than asked for nothing",
            suite,
            cells.ends(suite, "judge: nothing", f"judge: {asked}", "words"),
            "words",
        )
        for asked in ("short", "very short")
    ]
    return Paper(
        "oaif",
        "Online AI feedback",
        "2402.04792",
        claims,
        "The paper: PaLM 2 on TL;DR and helpfulness, an LLM annotator, human judgements. Here: a transformer of "
        "width 32 on length tasks with a true reward, and an annotator made of rules that reads its instruction.",
        "Gemma 2 2B on TL;DR, annotator Gemma 2 9B: `polyturn train gpo --online 2000 --preference "
        "judge:gemma-2-9b-it`; 2.6e5 judgements in both orders are about 8 H100-hours with vLLM.",
    )


def nash(cells: Cells) -> Paper:
    """arXiv 2312.00886."""
    study, suite, reason = cells.language(), "nash_language", "See the suite's page."
    unused = [
        1.0 - max(run["Nash-MD"]["of_bound"] for run in seed.values()) for seed in cells.results("nash", "matrix")
    ]
    sweep = {m: np.array([seed[m] for seed in cells.results("nash", "mixture")]) for m in MEASURES}
    one, inner = BETAS.index(1.0), BETAS.index(0.125)
    claims = [
        Claim("tabular Nash-MD stays within its bound (share of it unused)", "nash", unused, "of 1"),
        *(
            Claim(f"{name} beats RLHF", suite, minus(study.duel(name, "RLHF")), "win rate - 1/2", reason=reason)
            for name in ("Nash-MD-PG", "Nash-EMA-PG")
        ),
        Claim(
            "mixture .125 above mixture 1, over RLHF",
            suite,
            paired_difference(study.duel("Nash-MD-PG", "RLHF"), study.duel("Nash-MD-PG 1", "RLHF")),
            "of win rate",
            reason=reason,
        ),
        Claim(
            "mixture .125 above mixture 0, over RLHF",
            suite,
            paired_difference(study.duel("Nash-MD-PG", "RLHF"), study.duel("Nash-MD-PG 0", "RLHF")),
            "of win rate",
            reason=reason,
        ),
        Claim(
            "tables: mixture .125 less exploitable than 1",
            "nash",
            (sweep[MEASURES[0]][:, one] - sweep[MEASURES[0]][:, inner]).tolist(),
            "of win rate",
        ),
        Claim(
            "tables: mixture .125 less exploitable than 0",
            "nash",
            (sweep[MEASURES[0]][:, 0] - sweep[MEASURES[0]][:, inner]).tolist(),
            "of win rate",
            reason="Without noise mixture 0 reaches the regularised equilibrium (1e-16) and mixture 1 does not (.124): "
            "by the distance to the equilibrium an interior mixture cannot be best. By the win rate over one fixed "
            "opponent .75 is best.",
        ),
    ]
    return Paper(
        "nash",
        "Nash learning",
        "2312.00886",
        claims,
        "The paper: language models on TL;DR, win rates by a preference model. Here: random games, tables of 8 "
        "answers, and a small GPT-2 with a fitted preference model.",
        "Gemma 2 2B on TL;DR: `polyturn train nash_pg -m tau=.008 --model SFT --online 2000 --preference "
        "preference_model:PM --opponent mixture:.125`, 9 mixtures, about 5 H100-hours each.",
    )


def ipo(cells: Cells) -> Paper:
    """arXiv 2310.12036."""
    runs = cells.results("ipo_vs_dpo", "three answers")
    taus = cells.of("ipo_vs_dpo")[0].cell.options["taus"]
    # [seeds, data sets, methods, taus, answers] at the end
    last = np.array([run["policies"][-1] for run in runs])
    claims = []
    for place, tau in enumerate(taus):
        claims.append(
            Claim(
                f"order, tau {tau:g}: IPO's pi(a) below DPO's, which is 1",
                "ipo_vs_dpo",
                (last[:, 0, 1, place, 0] - last[:, 0, 0, place, 0]).tolist(),
                "of probability",
            )
        )
    for place, tau in enumerate(taus):
        exact = ipo_on_pairs(np.full(3, 1 / 3), DATA["order"], tau=tau)[0]
        claims.append(
            Claim(
                f"order, tau {tau:g}: IPO's pi(a) as in closed form",
                "ipo_vs_dpo",
                (last[:, 0, 0, place, 0] - exact).tolist(),
                "of probability",
                same=0.01,
            )
        )
    claims.append(
        Claim(
            "an answer never preferred: IPO (tau 1) keeps it, DPO does not",
            "ipo_vs_dpo",
            (last[:, 2, 0, taus.index(1.0), 2] - last[:, 2, 1, taus.index(1.0), 2]).tolist(),
            "of probability",
        )
    )
    return Paper(
        "ipo",
        "PsiPO and IPO",
        "2310.12036",
        claims,
        "The paper and here: three answers, a uniform reference, Adam .01, 18,000 steps, 10 seeds.",
        "None needed.",
    )


__all__ = ["gpo", "ipo", "nash", "oaif", "online_ipo"]
