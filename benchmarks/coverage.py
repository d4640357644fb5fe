"""Suite `coverage`: when does it matter to learn from one's own samples, and from what is bad as well as what is good?

The bandit study of arXiv 2404.14367: on-policy samples and contrastive losses help where the reward's peak lies where
the data policy rarely goes (R1), and matter little where it often goes (R2). Here the policy is one table of 100 logits
for all contexts, a proxy for the paper's network over contexts that the rewards ignore.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turnwise.benchmarks.plots import save
from turnwise.benchmarks.reporting import compare, line, panels, plus_minus
from turnwise.benchmarks.suite import Cell, Outcome, Suite, table
from turnwise.envs.bandits import data_policy, reward_table

Array = NDArray[np.float64]

METHODS = ("BoN", "RWR", "REINFORCE", "PPO", "DPO", "IPO")
REWARDS = ("R1", "R2")
DATA: Mapping[str, int] = {"T=1": 1, "T=2": 2, "T=4": 4, "T=8": 8, "T=32": 32, "offline": 0}
"""Updates on each fresh batch of the policy's own samples; 0 for a fixed set that the data policy wrote."""
STORED = 100
"""Groups of the offline set."""


def train(
    method: str, *, updates: int, groups: int, group_size: int, lr: float, every: int, seed: int, threshold: float = 0.2
) -> Array:
    """Trains one method on both rewards with every source of data, side by side.

    Args:
        method: One of `METHODS`.
        updates: Adam steps; the same number for every source of data.
        groups: Contexts a batch.
        group_size: Samples a context: best-of-N's N; all their pairs are compared.
        lr: Adam's learning rate.
        every: Updates between two records.
        seed: Of all sampling.
        threshold: Pairs whose rewards differ by less are dropped as ties.

    Returns:
        Expected reward `[records, rewards, sources]`, the first before training.
    """
    import torch

    from turnwise.algorithms import losses

    rng = np.random.default_rng([seed, METHODS.index(method)])
    reuse = np.tile(list(DATA.values()), len(REWARDS))
    values = np.repeat([reward_table(name, contexts=1, arms=100)[0] for name in REWARDS], len(DATA), axis=0)
    start = data_policy()
    rows = np.arange(len(reuse))[:, None, None]
    stored = rng.choice(100, size=(len(reuse), STORED, group_size), p=start / start.sum())
    reference = torch.tensor(np.log(start))
    logits = reference.repeat(len(reuse), 1).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=lr)
    arms = np.zeros((len(reuse), groups, group_size), np.int64)
    behaviour = torch.zeros(arms.shape, dtype=torch.float64)
    i, j = np.triu_indices(group_size, 1)

    def loss(logps: Any, index: Any, reward: Any) -> Any:
        advantage = reward - reward.mean(dim=-1, keepdim=True)
        if method == "BoN":
            return losses.nll(logps.gather(-1, reward.argmax(dim=-1, keepdim=True))).mean(dim=(1, 2))
        if method == "RWR":
            return losses.rwr(logps, reward, beta=0.25).mean(dim=(1, 2))
        if method == "REINFORCE":
            return losses.policy_gradient(logps, advantage).mean(dim=(1, 2))
        if method == "PPO":
            return losses.ppo_clip(logps, behaviour, advantage, clip=0.2).mean(dim=(1, 2))
        logratio = logps - reference[index]
        gap = reward[..., i] - reward[..., j]
        margin = (logratio[..., i] - logratio[..., j]) * gap.sign()
        pair = losses.gpo(margin, beta=0.05) if method == "DPO" else losses.ipo(margin, tau=0.05)
        kept = (gap.abs() >= threshold).double()
        return (pair * kept).sum(dim=(1, 2)) / kept.sum(dim=(1, 2)).clamp(min=1.0)

    records = []
    for update in range(updates + 1):
        policy = torch.softmax(logits.detach(), dim=-1).numpy()
        if update % every == 0:
            records.append((policy * values).sum(axis=1).reshape(len(REWARDS), len(DATA)))
        fresh = np.array([update % t == 0 if t else True for t in reuse])
        own = np.cumsum(policy, axis=1)[:, None, None, :-1]
        drawn = (rng.random((*arms.shape, 1)) > own).sum(axis=-1)
        offline = stored[rows, rng.integers(STORED, size=(len(reuse), groups))[..., None], np.arange(group_size)]
        arms = np.where(fresh[:, None, None], np.where(reuse[:, None, None] > 0, drawn, offline), arms)
        acting = np.where(reuse[:, None] > 0, np.log(np.maximum(policy, 1e-300)), np.log(start))
        sampled_as = torch.tensor(acting[rows, arms])
        behaviour = torch.where(torch.tensor(fresh)[:, None, None], sampled_as, behaviour)
        logps = torch.log_softmax(logits, dim=-1)[torch.tensor(rows), torch.tensor(arms)]
        optimizer.zero_grad()
        torch.autograd.backward([loss(logps, torch.tensor(arms), torch.tensor(values[rows, arms])).sum()])
        optimizer.step()
    return np.array(records)


def _cells(quick: bool, seeds: int) -> list[Cell]:
    updates = 36 if quick else 360
    options = {"updates": updates, "groups": 10, "group_size": 10, "lr": 0.03, "every": updates // 12}
    return [Cell(method, seed, options) for seed in range(seeds) for method in METHODS]


def _run(cell: Cell, work: Path) -> dict[str, Any]:
    return {"expected_reward": np.round(train(cell.name, **cell.options, seed=cell.seed), 5).tolist()}


def _report(outcomes: Sequence[Outcome], out: Path) -> str:
    options = outcomes[0].cell.options
    # [methods, seeds, records, rewards, sources]
    runs = np.array([[o.result["expected_reward"] for o in outcomes if o.cell.name == m] for m in METHODS])
    last = runs[:, :, -1]
    text = [
        "# coverage: on-policy samples, negative gradients, sample reuse\n",
        f"Expected reward (best arm: 1) after {options['updates']} updates of Adam {options['lr']}, batches of "
        f"{options['groups']} x {options['group_size']} samples; {runs.shape[1]} seeds, mean with the 95% Student "
        f"interval. T: updates on each fresh batch, so a larger T sees fewer samples. Offline: {STORED} x "
        f"{options['group_size']} samples of the data policy. One table of logits stands for the paper's network; the "
        "sequence (GPT) variant is not part of this suite.\n",
        "Claims (arXiv 2404.14367): where the peak is rarely sampled (R1) on-policy is far above offline, contrastive "
        "losses above likelihood; where it is often sampled (R2) little differs; much reuse hurts likelihood more.\n",
    ]
    for r, name in enumerate(REWARDS):
        text += [
            f"\n## {name}; the data policy itself earns {runs[0, 0, 0, r, 0]:.3f}\n",
            table(
                ["", *DATA],
                [
                    [m, *(plus_minus(last[k, :, r, d].tolist()) for d in range(len(DATA)))]
                    for k, m in enumerate(METHODS)
                ],
            ),
        ]
    offline, most = len(DATA) - 1, len(DATA) - 2
    text.append("\n## What the figures say\n")
    for r, name in enumerate(REWARDS):
        for k, m in enumerate(METHODS):
            sentence = compare("on-policy (T=1)", last[k, :, r, 0].tolist(), "offline", last[k, :, r, offline].tolist())
            text.append(f"- {name}, {m}: {sentence}")
        for a, b in (("IPO", "BoN"), ("DPO", "BoN")):
            x, y = (last[METHODS.index(m), :, r, offline].tolist() for m in (a, b))
            text.append(f"- {name}, offline: {compare(a, x, b, y)}")
        for m in ("BoN", "PPO"):
            runs_of = last[METHODS.index(m), :, r]
            sentence = compare("32 updates a batch", runs_of[:, most].tolist(), "one", runs_of[:, 0].tolist())
            text.append(f"- {name}, {m}, reuse: {sentence}")
    text.append("\n![expected reward over training](coverage.svg)\n")
    with panels(12, 3.8, 2) as (canvas, axes):
        x = np.arange(runs.shape[2]) * options["every"]
        for r, name in enumerate(REWARDS):
            for k, m in enumerate(METHODS):
                line(axes[r], x, runs[k, :, :, r, 0], label=f"{m}, T=1", color=f"C{k}")
                line(axes[r], x, runs[k, :, :, r, offline], label=f"{m}, offline", color=f"C{k}", linestyle="--")
            axes[r].set(title=name, xlabel="update", ylabel="expected reward", ylim=(-0.02, 1.02))
        axes[0].legend(frameon=False, fontsize=7, ncols=2)
        save(canvas, out / "coverage")
    return "\n".join(text)


SUITE = Suite(
    name="coverage",
    summary="the bandit study: on-policy or offline, six methods, two rewards, sample reuse",
    cells=_cells,
    run=_run,
    report=_report,
    seeds=3,
)
