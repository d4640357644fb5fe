"""The study of Nash methods on small transformers: its oracle, its losses and its sampling are what they are called."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyturn.algorithms import GPO, IPO, RLOO, NashPG
from polyturn.algorithms.batch import collate
from polyturn.benchmarks.coverage.policies import GPT, gpt2, stacked
from polyturn.benchmarks.nash_language.report import METHODS, SETTINGS, Found, best_settings, seeds_needed
from polyturn.benchmarks.nash_language.task import LENGTH, TOKENS, Learned, Oracle, fitted
from polyturn.benchmarks.nash_language.training import (
    HEADS,
    SIZE,
    Feedback,
    Run,
    mixed_sample,
    objective,
    trained,
)
from polyturn.benchmarks.running.suite import load, run_suite
from polyturn.envs.preference import Preference
from polyturn.envs.trajectory import Group, Trajectory, Turn

torch.set_num_threads(1)


def all_of(digit: int) -> np.ndarray[Any, Any]:
    """One answer that repeats a digit, `[1, L]`."""
    return np.full((1, LENGTH), digit)


def test_kinds_beat_each_other_in_a_circle_and_worth_counts() -> None:
    """Digits of equal worth: log-odds 3 around the circle. 0 and 6 are of one kind and 2 apart in worth: log-odds 2."""
    oracle = Oracle(cycle=3.0)
    for winner, loser in ((7, 6), (8, 7), (6, 8)):
        assert oracle(all_of(winner), all_of(loser)) == pytest.approx(1 / (1 + np.exp(-3.0)))
    assert oracle(all_of(6), all_of(0)) == pytest.approx(1 / (1 + np.exp(-2.0)))


def test_the_oracle_and_the_preference_model_are_antisymmetric() -> None:
    rng = np.random.default_rng(0)
    x, a, b = rng.integers(TOKENS, size=20), *rng.integers(TOKENS, size=(2, 20, LENGTH))
    oracle = Oracle()
    assert oracle(a, b) + oracle(b, a) == pytest.approx(1.0)
    assert oracle.every(a[:4], b)[2, 5] == pytest.approx(oracle(a[2:3], b[5:6])[0])
    model = small_model(pairwise=True)
    ids = [torch.from_numpy(each) for each in (x, a, b)]
    assert torch.allclose(model.odds(*ids), -model.odds(ids[0], ids[2], ids[1]), atol=1e-6)


def test_exploitability_is_that_of_the_best_answer() -> None:
    """Without cycles nothing beats the best digits: 0; the worst ones are 2 below: sigmoid(2) - 1/2. With cycles one
    kind is beaten with log-odds 3 by the next, and one of each kind, at the same worth, by nothing."""
    best = np.tile(all_of(6), (TOKENS, 2, 1))
    plain, circular = Oracle(cycle=0.0), Oracle(cycle=3.0)
    assert plain.exploitability(best) == pytest.approx(0.0)
    assert plain.exploitability(best - 6) == pytest.approx(1 / (1 + np.exp(-2.0)) - 0.5)
    assert circular.exploitability(best) == pytest.approx(1 / (1 + np.exp(-3.0)) - 0.5)
    both = plain.duels(np.stack([best, best - 6]))
    assert both == pytest.approx(np.array([[0.5, 1 / (1 + np.exp(-2.0))], [1 / (1 + np.exp(2.0)), 0.5]]))


def small_model(*, pairwise: bool) -> Learned:
    rng = np.random.default_rng(1)
    x, both = rng.integers(TOKENS, size=64), rng.integers(TOKENS, size=(64, 2, LENGTH))
    label = Oracle()(both[:, 0], both[:, 1])
    return fitted(x, both, label, pairwise=pairwise, width=8, steps=20, lr=1e-2, decay=0.0, seed=0)


OBJECTS: dict[str, Any] = {
    "online DPO": GPO(f="logistic", beta=2.0 / 5.0, soft_labels=True, pairs_per_group=None),
    "online IPO": IPO(tau=0.1),
    "SLiC": GPO(f="hinge", beta=1.0 / 5.0, soft_labels=True, pairs_per_group=None),
    "RLHF": RLOO(kl=2.0 / 5.0),
    "IPO-MD": IPO(tau=0.1),
    "Nash-MD-PG": NashPG(tau=0.1),
    "Nash-EMA-PG": NashPG(tau=0.1),
}
"""The method objects that the suite's names stand for, with a reach of 5 nats."""


@pytest.mark.parametrize("method", METHODS)
def test_losses_are_those_of_the_method_objects(method: str) -> None:
    """On three groups of four random answers with random log-probabilities: the same value and the same gradient."""
    rng = np.random.default_rng(2)
    groups, size = 3, 4
    prompt, tokens = rng.integers(TOKENS, size=groups), rng.integers(TOKENS, size=(groups, size, LENGTH))
    logps = torch.tensor(rng.normal(-2, 1, tokens.shape), dtype=torch.float32, requires_grad=True)
    reference = torch.tensor(rng.normal(-2, 1, tokens.shape), dtype=torch.float32)
    feedback = Feedback({}, small_model(pairwise=True), small_model(pairwise=False), {})
    x, ids = torch.from_numpy(prompt), torch.from_numpy(tokens)
    mine = objective(Run(method, 1e-3, 5.0), *(each[None] for each in (logps, reference, x, ids)), feedback)[0]

    examples, nash = [], method.startswith("Nash")
    for g in range(groups):
        members = tuple(
            Trajectory(
                "toy", g, (Turn("", "", 0.0, np.array([int(prompt[g])]), tokens[g, k], np.zeros(LENGTH)),),
                terminated=True, member=k, agent="rival" if nash and k >= size // 2 else "own",
            )
            for k in range(size)
        )  # fmt: skip
        scores = feedback.reward.scores(x[g].expand(size), ids[g]).numpy()
        matrix = np.full((size, size), np.nan)
        for i, j in itertools.permutations(range(size), 2):
            matrix[i, j] = torch.sigmoid(feedback.preference.odds(x[g], ids[g, i], ids[g, j]))
        matrix = (matrix + 1 - matrix.T) / 2  # rounding
        preference = Preference(matrix, "model", scores if method == "RLHF" else None)
        examples.append(OBJECTS[method].examples(Group(members), preference, rng))
    batch = collate(examples)
    own = slice(None, size // 2) if nash else slice(None)
    full = [torch.zeros(batch.turn_ids.shape) for _ in range(2)]
    full = [
        each.masked_scatter(batch.turn_ids >= 0, part[:, own].flatten())
        for each, part in zip(full, (logps, reference), strict=True)
    ]
    loss = OBJECTS[method].loss(*full, batch)
    theirs = loss.values.sum() / (len(loss.values) if loss.count is None else loss.count.sum())
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-4)
    gradients = [torch.autograd.grad(each, logps, retain_graph=True)[0] for each in (mine, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def small_stacks() -> tuple[GPT, GPT]:
    made = [stacked(gpt2(TOKENS, length=LENGTH, seed=seed, **SIZE), 1) for seed in (1, 2)]
    for parameters in made:  # away from the uniform distribution of untrained weights
        parameters["lm_head.weight"] = parameters["lm_head.weight"] * 40.0
    first, second = (GPT(parameters, heads=HEADS, length=LENGTH) for parameters in made)
    return first, second


def test_a_mixture_is_either_policy_at_its_ends_and_geometric_between() -> None:
    """With the same random numbers: share 0 draws as the policy does, share 1 as the other. At 1/2, the shares of the
    first digit are those of the square root of the product of both distributions."""
    policy, other = small_stacks()
    prompt = np.zeros((1, 4000), np.int64)

    def draws(first: GPT, second: GPT, share: float) -> np.ndarray[Any, Any]:
        return mixed_sample(first, second, torch.tensor([[share]]), prompt, np.random.default_rng(0))

    assert (draws(policy, other, 0.0) == draws(policy, policy, 0.0)).all()
    assert (draws(policy, other, 1.0) == draws(other, other, 0.0)).all()
    ids = torch.zeros((1, 1, 1), dtype=torch.int64)
    both = [torch.softmax(each.logits(each.parameters, ids)[0, 0, 0], -1) for each in (policy, other)]
    product = (both[0] * both[1]).sqrt().detach().numpy()
    shares = np.bincount(draws(policy, other, 0.5)[0, :, 0, 0], minlength=TOKENS) / prompt.shape[1]
    assert shares == pytest.approx(product / product.sum(), abs=0.03)
    assert np.abs(shares - both[0].detach().numpy()).max() > 0.05


def test_runs_of_a_pass_do_not_touch_each_other() -> None:
    """A run alone and the same run beside two others, of which one has a moving average: the same weights."""
    start = stacked(gpt2(TOKENS, length=LENGTH, seed=3, **SIZE), 1)
    feedback = Feedback(start, small_model(pairwise=True), small_model(pairwise=False), {})
    settings = {"steps": 4, "groups": 4, "group_size": 4, "seed": 0}
    run = Run("Nash-MD-PG", 1e-2, 8.0, mixture=0.5)
    alone = trained([run], feedback, **settings).parameters
    others = [Run("Nash-EMA-PG", 1e-2, 8.0), run, Run("RLHF", 3e-3, 3.0)]
    beside = trained(others, feedback, **settings).parameters
    for name, value in alone.items():
        assert (value[0] - start[name][0]).abs().max() > 0, name
        torch.testing.assert_close(beside[name][1], value[0], atol=2e-4, rtol=0)
    head = beside["lm_head.weight"]
    assert (head[0] - head[1]).abs().max() > 1e-3


def found(wins: Any, names: list[str]) -> Found:
    return Found(names, np.array(wins), {}, {})


def test_settings_are_the_best_of_the_grid_and_seeds_follow_from_its_spread() -> None:
    """Two settings a method, the second better by .2 everywhere. Duels of two methods are .5 and .6 in two seeds: the
    standard deviation is .0707, and (2.8016 * .0707 / .05)^2 = 15.7, so 16 seeds."""
    names = [f"{method} {rate} 3" for method in METHODS for rate in ("0.001", "0.003")] + ["start"]
    wins = np.full((2, len(names), len(names)), 0.4)
    wins[:, 1::2] = 0.6
    for first, second in itertools.combinations(range(1, len(names), 2), 2):
        wins[:, first, second] = (0.5, 0.6)
    chosen = best_settings(found(wins, names))
    assert chosen == {method: f"{method} 0.003 3" for method in METHODS}
    spread, needed = seeds_needed(found(wins, names), chosen)
    assert spread == pytest.approx(0.0707, abs=1e-4)
    assert needed == 16


def test_the_quick_form_runs_and_reports(tmp_path: Path) -> None:
    record = run_suite(load("nash_language"), tmp_path, quick=True, progress=False)
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "## The mixture" in text
    assert set(SETTINGS) == set(METHODS)
    study = next(cell["result"] for cell in record["cells"] if cell["name"] == "study")
    wins = np.array(study["wins"])
    assert wins + wins.T == pytest.approx(1.0, abs=2e-4)
    assert (tmp_path / "nash_language.png").stat().st_size > 1000
