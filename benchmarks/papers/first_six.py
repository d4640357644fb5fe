"""Claims of the papers on data, unpaired feedback, agents, distillation, scalar rewards and conversations."""

from __future__ import annotations

import numpy as np

from polyturn.benchmarks.coverage.training import METHODS
from polyturn.benchmarks.papers.cells import Cells, contrastive, minus, on_policy, reused
from polyturn.benchmarks.papers.claims import Claim, Paper
from polyturn.benchmarks.pmpo_control import WAYS
from polyturn.benchmarks.running.reporting import paired_difference


def coverage(cells: Cells) -> Paper:
    """arXiv 2404.14367."""
    suite, claims = "coverage", []
    for variant in ("table", "MLP", "GPT"):
        runs = cells.coverage(variant)
        text = f"R1, {variant}: on-policy above offline, mean of {len(METHODS)} methods"
        claims.append(Claim(text, suite, on_policy(runs, "R1"), "of reward"))
    for variant in ("table", "MLP", "GPT"):
        runs = cells.coverage(variant)
        gap = paired_difference(on_policy(runs, "R1"), on_policy(runs, "R2"))
        claims.append(Claim(f"{variant}: that gap is larger on R1 than on R2", suite, gap, "of reward"))
    for variant in ("table", "MLP", "GPT"):
        runs = cells.coverage(variant)
        text = f"R1, {variant}, offline: DPO and IPO above best-of-N and RWR"
        claims.append(Claim(text, suite, contrastive(runs, "offline"), "of reward"))
    for variant in ("table", "MLP", "GPT"):
        runs = cells.coverage(variant)
        claims.append(
            Claim(f"R1, {variant}: T=8 above T=1 after equally many samples", suite, reused(runs), "of reward")
        )
    for variant in ("table", "MLP", "GPT"):
        runs = cells.coverage(variant)
        claims.append(
            Claim(
                f"R1, {variant}, on-policy, at the end: DPO and IPO above best-of-N and RWR",
                suite,
                contrastive(runs, "T=1"),
                "of reward",
                reason="All methods are near the maximum at the end: with every rate of a grid and without the tie "
                "threshold DPO and IPO reach 1.000 too (MLP cells). With the GPT, IPO's margin of 10 nats is shared "
                "by nine tokens; with a ninth of tau it reaches .995 (cells `tau_ninth`).",
            )
        )
    return Paper(
        "coverage",
        "Suboptimal, on-policy data",
        "2404.14367",
        claims,
        "The paper: bandits with an MLP of 100 contexts and a GPT over 10 prompts, up to 1,500 updates. Here: the same "
        "rewards and data policy, table and MLP with 320 updates, GPT with 96 updates of 4 prompts.",
        "Pythia 1.4B on AlpacaFarm pairs: `polyturn train gpo --model pythia-sft --data pairs.jsonl` (offline) and "
        "`--online 1000` with a fitted reward model; 6 methods x 3 seeds, about 4 H100-hours each by 6 x parameters x "
        "tokens at 40% of the peak.",
    )


def pmpo(cells: Cells) -> Paper:
    """arXiv 2410.04166."""
    suite = "unpaired"

    def over(alpha: str, beta: str) -> list[float]:
        return minus(cells.end(suite, f"PMPO {alpha} {beta}", "win_rate"))

    def valid(alpha: str, high: str, low: str) -> list[float]:
        return cells.ends(suite, f"PMPO {alpha} {high}", f"PMPO {alpha} {low}", "proper")

    few = "Three seeds of 128 answers, most with a reward near 0."
    claims = [
        *(
            Claim(f"{text}: above the start", suite, over(alpha, beta), "win rate - 1/2", reason=few)
            for text, alpha, beta in (
                ("accepted only (alpha 1), beta 0", "1.0", "0.0"),
                ("both (alpha 1/2), beta 1/2", "0.5", "0.5"),
                ("rejected only (alpha 0), beta 2", "0.0", "2.0"),
            )
        ),
        *(
            Claim(f"{text}, valid answers", suite, valid(alpha, high, low), "of answers")
            for text, alpha, high, low in (
                ("alpha 1/2 needs a beta: 1/2 above 0", "0.5", "0.5", "0.0"),
                ("alpha 0 needs beta above 1: 2 above 1/2", "0.0", "2.0", "0.5"),
            )
        ),
        Claim(
            "alpha 1 does not need one: valid answers with 0 and with 2 alike",
            suite,
            valid("1.0", "2.0", "0.0"),
            "of answers",
            same=0.1,
        ),
        Claim(
            "beta 1/2: both above accepted only",
            suite,
            cells.ends(suite, "PMPO 0.5 0.5", "PMPO 1.0 0.5", "win_rate"),
            "of win rate",
            reason=few,
        ),
    ]
    lake = {way: np.array([run[way] for run in cells.results("pmpo_control", "lake")]) for way in WAYS}
    claims += [
        Claim(
            f"FrozenLake, {when}: {first} above {second}",
            "pmpo_control",
            (lake[first][:, at] - lake[second][:, at]).tolist(),
            "of success",
            reason="The KL's weight sets how far a round moves: with 5/4 instead of 2 rejected actions reach .307 "
            "instead of .123 in rounds, and accepted ones .364.",
        )
        for when, at in (("offline", 1), ("in rounds", -1))
        for first, second in (
            ("both, KL 1/2", "accepted"),
            ("both, KL 1/2", "rejected, KL"),
            ("rejected, KL", "imitation"),
            ("rejected, KL", "accepted"),
        )
    ]
    return Paper(
        "pmpo",
        "PMPO",
        "2410.04166",
        claims,
        "The paper: control tasks and Gemma on preference data, best two of four samples accepted. Here: a bandit over "
        "five tokens on a small transformer, the same acceptance, 90 updates; FrozenLake with a table. The closed "
        "form is met to 2e-8 where there is one.",
        "Gemma 2 2B: `polyturn train pmpo -m alpha=.5 -m beta=.5 --model SFT --online 2000 --group-size 4 --preference "
        "reward_model:RM`, 3 alphas x 5 betas, about 6 H100-hours each.",
    )


def agents(cells: Cells) -> Paper:
    """arXiv 2409.02392."""
    suite, claims = "tool_math", []
    wide = (
        "Three seeds; greedy success starts at 59 +- 39%, and every method is above 88% after one iteration: no room."
    )
    rows = [
        ("M-DPO after 3 iterations above the SFT policy", ("M-DPO", 3), ("M-DPO", 0)),
        ("M-KTO after 2 iterations above the SFT policy", ("M-KTO", 2), ("M-KTO", 0)),
        ("M-DPO after 3 iterations above after 1", ("M-DPO", 3), ("M-DPO", 1)),
        ("the tool's output masked above counted", ("M-DPO", 1), ("unmasked M-DPO", 1)),
        ("all turns above the last turn", ("M-DPO", 1), ("last-turn DPO", 1)),
        ("an updated reference above a fixed one", ("M-DPO", 2), ("fixed reference M-DPO", 2)),
        ("M-DPO above RAFT", ("M-DPO", 1), ("RAFT", 1)),
    ]
    for text, first, second in rows:
        for decoding, name in (("greedy", "greedy, as the paper measures"), ("sampled", "T=1")):
            reason = wide
            if second[0] == "RAFT":
                reason = (
                    "RAFT ran at three times M-DPO's rate and on every right member. At equal rates and one iteration, "
                    "a probe of one seed has RAFT 64.0 / 93.3% (T=1 / greedy) and M-DPO 60.3 / 92.3%."
                )
            gap = cells.gain(first, second, decoding)
            claims.append(Claim(f"{text} ({name})", suite, gap, "points", reason=reason))
    return Paper(
        "agents",
        "M-DPO and M-KTO",
        "2409.02392",
        claims,
        "The paper: Gemma 1.1 7B and others on GSM8K and MATH, H=6, 30 samples a prompt, three iterations, greedy. "
        "Here: a two-layer transformer from random weights, generated word problems, H=4, 8 samples.",
        "`polyturn train mdpo --model gemma-1.1-7b-sft --problems gsm8k_train.jsonl --group-size 30 "
        "--from-previous 10 --iterations 3`; sampling 7,500 x 30 x about 500 tokens is 1.1e8 tokens "
        "an iteration, about 20 H100-hours with vLLM, training about 6.",
    )


def distillation(cells: Cells) -> Paper:
    """arXiv 2408.00118."""
    suite, runs = "distillation", cells.results("distillation", "students")
    claims = [
        Claim(
            f"width {width}: distilled below tokens on held-out conversations",
            suite,
            [float(run[f"tokens {width}"]["nll"] - run[f"distilled {width}"]["nll"]) for run in runs],
            "nats a token",
            reason="Data are plenty here (800 conversations) and the language is nearly determined by what stands "
            "before; a pilot with 48 conversations gained .74 nats on one seed.",
        )
        for width in (16, 32, 64)
    ]
    claims.append(
        Claim(
            "on the student's own conversations: training on them below training on stored ones, KL(student, teacher)",
            suite,
            [
                float(
                    run["later: stored, teacher first"]["own"]["student_first"]
                    - run["later: own, student first"]["own"]["student_first"]
                )
                for run in runs
            ],
            "nats a token",
            reason="30 updates, three seeds.",
        )
    )
    return Paper(
        "distillation",
        "Gemma 2",
        "2408.00118",
        claims,
        "The paper: students of 2B and 9B parameters from a larger teacher on trillions of tokens. Here: the "
        "architecture at widths 16 to 96 on conversations of scripted speakers.",
        "Gemma 2 9B to 2B on 100,000 conversations: `polyturn train distillation --teacher gemma-2-9b-it --model "
        "gemma-2-2b --data conversations.jsonl`; 5e7 tokens, about 3 H100-hours.",
    )


def dro(cells: Cells) -> Paper:
    """arXiv 2405.19107."""
    suite = "unpaired"

    def gap(first: str, second: str) -> list[float]:
        return cells.ends(suite, first, second, "reward")

    raw = (
        "Measured by the raw reward, no judge punishes what leaves the language: at tau .1 the policy is 7.5 nats "
        "away and a third of its answers are no longer valid."
    )
    claims = [
        Claim("DRO-V (tau 1) above the start", suite, minus(cells.end(suite, "DRO-V 1", "win_rate")), "win rate - 1/2"),
        Claim(
            "DRO-V (tau 1) above KTO (beta .1)",
            suite,
            gap("DRO-V 1", "KTO"),
            "of reward",
            reason="KTO at beta .1 loses most valid answers after 45 of 90 steps; with .3, in a probe, few.",
        ),
        Claim("tau 1 above tau .1", suite, gap("DRO-V 1", "DRO-V .1"), "of reward", reason=raw),
        Claim("tau 1 above tau 5", suite, gap("DRO-V 1", "DRO-V 5"), "of reward"),
        Claim(
            "separate networks above shared ones",
            suite,
            gap("DRO-V 1", "DRO-V 1, shared"),
            "of reward",
            reason="The paper's 76.6 against 57.6% changes two things at once (separate networks, a value a token).",
        ),
    ]
    return Paper(
        "dro",
        "DRO-V",
        "2405.19107",
        claims,
        "The paper: T5 on UltraFeedback, win rates by a judge. Here: a bandit over five tokens, the raw reward; on "
        "tables policy and value meet their closed form to 5e-15.",
        "Gemma 2 2B on UltraFeedback's scores: `polyturn train dro_v -m tau=1 --model SFT --data scores.jsonl`, 3 taus "
        "and KTO, about 5 H100-hours each with a judge's 2,000 duels.",
    )


def conversations(cells: Cells) -> Paper:
    """arXiv 2405.14655."""
    few = (
        "Three seeds of 45 updates. The single-turn baseline was given the simulator's exact effect of each turn, "
        "which is more than a rater gives; episodes of 5 turns, in which asking first pays little (.611 at 5 turns, "
        ".709 at 10, scripted speakers)."
    )
    order = [
        ("RLHF-multi", "SFT"),
        ("MTPO", "SFT"),
        ("MTPO-tau", "SFT"),
        ("RLHF-multi", "RLHF-reward"),
        ("RLHF-multi", "RLHF-value"),
        ("MTPO", "RLHF-multi"),
        ("MTPO-tau", "MTPO"),
        ("MTPO-tau", "RLHF-multi"),
    ]
    claims = [Claim(f"{a} beats {b}", "education", cells.taught(a, b), "win rate - 1/2", reason=few) for a, b in order]
    claims.append(Claim("Car Dealer: MTPO above SFT", "car_dealer", cells.sold("MTPO", "SFT"), "points", scale=100.0))
    claims += [
        Claim(
            f"Car Dealer: {name} and RL alike",
            "car_dealer",
            cells.sold(name, "RL"),
            "points",
            scale=100.0,
            same=0.02,
            reason="Three seeds: the interval is wider than the distance that counts as alike.",
        )
        for name in ("MTPO", "MTPO-model")
    ]
    games = cells.results("nash", "multi-turn")
    worst = [1.0 - max(run["of_bound"] for methods in seed.values() for run in methods.values()) for seed in games]
    claims.append(Claim("tabular: the last iterate stays within its bound (share of it unused)", "nash", worst, "of 1"))
    return Paper(
        "conversations",
        "MTPO",
        "2405.14655",
        claims,
        "The paper: language models, a prompted student, 10 turns, a prompted judge. Here: a two-layer transformer, "
        "scripted student and buyer, an exact oracle, 5 turns, 45 and 40 updates; tabular games as in the paper's "
        "theory.",
        "`polyturn bench education --model google/gemma-2-2b-it`: 10 turns x 64 tokens x 48 conversations x 300 "
        "updates x 6 methods is 5.5e7 tokens, about 15 H100-hours with vLLM sampling.",
    )


__all__ = ["agents", "conversations", "coverage", "distillation", "dro", "pmpo"]
