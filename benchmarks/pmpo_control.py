"""Suite `pmpo_control`: accepted actions, rejected actions, or both, on a small control task.

The control experiment of arXiv 2410.04166 in the small: PMPO on Gymnasium's FrozenLake, whose steps slip at random,
with a table of logits. Actions are accepted or rejected by the sign of an estimated advantage; what is learned from is
one set of episodes of an unskilled policy (offline), or fresh episodes in rounds. Every policy's success is computed
exactly from the task's transition probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from polyturn.algorithms import losses
from polyturn.benchmarks.running.plots import COLOURS, DOTS, SHARE, Dot, picture
from polyturn.benchmarks.running.reporting import Comparison, by_name, compare_all, plus_minus
from polyturn.benchmarks.running.suite import Cell, Outcome, Suite, table

Array = NDArray[np.float64]

GAMMA, HORIZON = 0.97, 60
"""Discount of the returns, and steps of an episode."""
SKILL = 0.5
"""Share of the best policy in the one whose episodes are stored; the rest is uniform."""
WAYS: Mapping[str, tuple[float, float]] = {
    "imitation": (0.5, 0.0),
    "accepted": (1.0, 0.0),
    "accepted, KL": (1.0, 1.0),
    "rejected": (0.0, 0.0),
    "rejected, KL 1/2": (0.0, 0.5),
    "rejected, KL 5/4": (0.0, 1.25),
    "rejected, KL": (0.0, 2.0),
    "both": (0.5, 0.0),
    "both, KL 1/2": (0.5, 0.5),
    "both, KL": (0.5, 1.0),
}
"""alpha and beta of PMPO; imitation of all actions is what PMPO is compared with, and has none."""


@cache
def lake() -> tuple[Array, Array]:
    """Transitions `[S + 1, A, S + 1]`, the last state being the end, and `[S + 1, A]` the chance that a step wins."""
    env: Any = gymnasium.make("FrozenLake-v1", map_name="4x4", is_slippery=True).unwrapped
    states, actions = env.observation_space.n, env.action_space.n
    move, goal = np.zeros((states + 1, actions, states + 1)), np.zeros((states + 1, actions))
    move[states, :, states] = 1.0
    for state, by_action in env.P.items():
        for action, outcomes in by_action.items():
            for chance, following, reward, over in outcomes:
                move[state, action, states if over else following] += chance
                goal[state, action] += chance * reward
    return move, goal


def success(policy: Array) -> float:
    """Chance to reach the goal from state 0 within `HORIZON` steps, exactly.

    Args:
        policy: `[S + 1, A]`.
    """
    move, goal = lake()
    step, pays = np.einsum("sa,sat->st", policy, move), (policy * goal).sum(1)
    value = np.zeros(len(step))
    for _ in range(HORIZON):
        value = pays + step @ value
    return float(value[0])


def stored_policy() -> Array:
    """`[S + 1, A]` half the best policy (of the discounted task), half uniform."""
    move, goal = lake()
    value = np.zeros(len(move))
    for _ in range(1000):
        value = (goal + GAMMA * move @ value).max(1)
    best = np.eye(move.shape[1])[(goal + GAMMA * move @ value).argmax(1)]
    return np.asarray(SKILL * best + (1.0 - SKILL) / move.shape[1], np.float64)


def labelled(policy: Array, *, episodes: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Counts `[S + 1, A]` of accepted and of rejected actions in episodes of a policy.

    The advantage of an action is its return to go minus the mean return to go of its state in these episodes, so it is
    as noisy as one episode is; actions with an advantage of 0 have no label.
    """
    move, goal = lake()
    state = np.zeros(episodes, np.int64)
    visits, paid = [], []
    for _ in range(HORIZON):
        action = (rng.random((episodes, 1)) > policy[state].cumsum(1)[:, :-1]).sum(1)
        following = (rng.random((episodes, 1)) > move[state, action].cumsum(1)[:, :-1]).sum(1)
        ends = following == len(move) - 1
        # An end is the goal with its share of the chance to end.
        chance = goal[state, action] / np.maximum(move[state, action, -1], 1e-12)
        paid.append(np.where(ends & (state < len(move) - 1), rng.random(episodes) < chance, 0.0))
        visits.append((state, action))
        state = following
    to_go, returns = np.zeros(episodes), []
    for reward in reversed(paid):
        to_go = reward + GAMMA * to_go
        returns.append(to_go)
    s, a = (np.concatenate([visit[side] for visit in visits]) for side in (0, 1))
    g = np.concatenate(returns[::-1])
    living = s < len(move) - 1
    s, a, g = s[living], a[living], g[living]
    mean = np.bincount(s, g, len(move)) / np.maximum(np.bincount(s, minlength=len(move)), 1)
    advantage = g - mean[s]
    counts = [np.zeros(goal.shape) for _ in range(2)]
    for count, side in zip(counts, (advantage > 1e-12, advantage < -1e-12), strict=True):
        np.add.at(count, (s[side], a[side]), 1.0)
    return counts[0], counts[1]


def fit(accepted: Array, rejected: Array, reference: Array, way: str, *, steps: int, lr: float) -> Array:
    """The policy that minimises PMPO's loss on counts, by full-batch Adam from the reference, the rate falling to 0.

    Each side has its own mean, as in the paper; the KL is that of the states in the data. Imitation learns from both
    sides alike.
    """
    alpha, beta = WAYS[way]
    prior = torch.tensor(reference)
    logits = prior.log().clone().requires_grad_()
    sides = [torch.tensor(side / max(side.sum(), 1.0)) for side in (accepted, rejected)]
    every = torch.tensor((accepted + rejected) / max(float((accepted + rejected).sum()), 1.0))
    optimizer = torch.optim.Adam([logits], lr=lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1.0 - step / steps)
        logps = torch.log_softmax(logits, 1)
        if way == "imitation":
            loss = (every * losses.nll(logps)).sum()
        else:
            divergence = (every.sum(1) * (prior * (prior.log() - logps)).sum(1)).sum()
            none, yes = torch.zeros(()), torch.ones((), dtype=torch.bool)
            # The two sums of the loss, each weighted by its own frequencies; the KL is added once.
            loss = (sides[0] * losses.pmpo(logps, yes, none, alpha=alpha, beta=beta)).sum()
            loss = loss + (sides[1] * losses.pmpo(logps, ~yes, none, alpha=alpha, beta=beta)).sum() + beta * divergence
        optimizer.zero_grad()
        torch.autograd.backward([loss])
        optimizer.step()
    found = np.maximum(torch.softmax(logits.detach(), 1).numpy(), 1e-9)
    return np.asarray(found / found.sum(1, keepdims=True), np.float64)


def _cells(quick: bool, seeds: int) -> list[Cell]:
    options = {
        "episodes": 100 if quick else 400,
        "steps": 30 if quick else 150,
        "lr": 0.1,
        "rounds": 2 if quick else 6,
    }
    return [Cell("lake", seed, options) for seed in range(seeds)]


def _run(cell: Cell, work: Path) -> dict[str, Any]:
    options, start = cell.options, stored_policy()
    how = {"steps": options["steps"], "lr": options["lr"]}
    stored = labelled(start, episodes=options["episodes"], rng=np.random.default_rng([cell.seed, 1]))
    curves = {}
    for way in WAYS:
        rng = np.random.default_rng([cell.seed, 2])  # the same for all ways
        policy = fit(*stored, start, way, **how)
        curve = [success(start), success(policy)]
        for _ in range(options["rounds"] - 1):
            fresh = labelled(policy, episodes=options["episodes"], rng=rng)
            policy = fit(*fresh, policy, way, **how)
            curve.append(success(policy))
        curves[way] = np.round(curve, 5).tolist()
    return curves


PAIRS = (
    ("both, KL 1/2", "accepted"),
    ("both, KL 1/2", "rejected, KL"),
    ("rejected, KL", "accepted"),
    ("rejected, KL 5/4", "rejected, KL"),
    ("rejected, KL", "imitation"),
    ("accepted", "imitation"),
    ("rejected, KL", "rejected"),
    ("both, KL 1/2", "both"),
    ("accepted, KL", "accepted"),
)


def _report(outcomes: Sequence[Outcome], out: Path) -> str:
    runs = by_name(outcomes)["lake"]
    options = outcomes[0].cell.options
    curves = {way: np.array([run[way] for run in runs]) for way in WAYS}
    moments = {"offline": 1, f"after {options['rounds']} rounds": -1}
    rows = []
    for way, (alpha, beta) in WAYS.items():
        figures = [plus_minus(curves[way][:, at].tolist()) for at in moments.values()]
        rows.append([way, *(["", ""] if way == "imitation" else [f"{alpha:g}", f"{beta:g}"]), *figures])
    text = [
        "# pmpo_control: accepted, rejected, or both, on FrozenLake\n",
        f"{len(runs)} seeds (other episodes), mean with the 95% Student interval; success within {HORIZON} steps, "
        f"exact. Offline: {options['episodes']} episodes of a policy that takes the best action in {SKILL:g} of its "
        f"steps and any otherwise, which succeeds in {curves['imitation'][0, 0]:.3f}. Rounds: then as many fresh "
        "episodes of the policy itself, which is then the reference. The label of an action is the sign of its return "
        "to go minus the mean of its state.\n",
        "Claims (arXiv 2410.04166, control): both sides are ahead of either; rejected actions with a KL are ahead of "
        "accepted ones; rejected ones alone collapse.\n",
        table(["way", "alpha", "beta", *moments], rows),
        "\n## Findings\n",
        "An ordering is claimed where Holm's rule allows it at 5% for all of these comparisons.\n",
    ]
    comparisons = [
        Comparison(f"{when}: {a}", curves[a][:, at].tolist(), b, curves[b][:, at].tolist())
        for when, at in moments.items()
        for a, b in PAIRS
    ]
    text += [f"- {sentence}" for sentence in compare_all(comparisons)]
    text.append("\n![success of every way](pmpo_control.svg)\n")
    with picture(out / "pmpo_control", 1, 2, width=4.0, height=2.9, note=DOTS) as (row,):
        for panel, (when, at), colour in zip(row, moments.items(), COLOURS, strict=False):
            panel.dots([Dot(way, curves[way][:, at].tolist(), colour) for way in WAYS], bounds=SHARE)
            panel.words(title=when, x="success")
    return "\n".join(text)


SUITE = Suite(
    name="pmpo_control",
    summary="PMPO on FrozenLake: accepted actions, rejected actions, or both, offline and in rounds",
    cells=_cells,
    run=_run,
    report=_report,
    seeds=10,
)
