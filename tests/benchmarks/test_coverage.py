"""The bandit study: its stacked policies equal single networks, its steps equal those of the training loop."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from polyturn.agents.tabular import mlp_policy
from polyturn.agents.transformer.scoring import ModelScorer
from polyturn.algorithms import GPO, GRPO, IPO, REINFORCE, RWR, BestOfN, train
from polyturn.algorithms.training.options import TrainOptions
from polyturn.benchmarks.coverage import training
from polyturn.benchmarks.coverage.policies import GPT, OneToken, draw, gpt2, stacked
from polyturn.benchmarks.coverage.report import best_of_data
from polyturn.benchmarks.coverage.suite import SUITE
from polyturn.benchmarks.running.suite import run_suite
from polyturn.envs.games.bandits import context_features, data_policy, reward_table
from polyturn.envs.games.token_tasks import token_rewards
from polyturn.envs.preference import by_score
from polyturn.envs.trajectory import Group, Trajectory, Turn

torch.set_num_threads(1)
THRESHOLD = 0.02
OBJECTS: dict[str, Any] = {
    "BoN": BestOfN(),
    "RWR": RWR(beta=0.25, max_weight=np.inf),
    "REINFORCE": REINFORCE(baseline="group"),
    "PPO": GRPO(scale=False, clip=0.2),
    "DPO": GPO(beta=0.05, pairs_per_group=None),
    "IPO": IPO(tau=0.05, soft_labels=False),
}
"""The method objects that the suite's names stand for."""


class Mutable(SimpleNamespace):
    """What `train` asks of a policy that is never saved: a model and a scorer."""


def groups_of(context: Any, tokens: Any, behaviour: Any, reward: Any, state: Any) -> list[Group]:
    """The arrays `[G]`, `[G, K, L]`, `[G, K, L]`, `[G, K]` of one run as groups of one-turn episodes."""
    result = []
    for g, prompt in enumerate(context):
        members = [
            Trajectory(
                "toy", g, (Turn("", "", float(r), np.array([state(prompt)]), ids, logps),), terminated=True, member=k
            )
            for k, (ids, logps, r) in enumerate(zip(tokens[g], behaviour[g], reward[g], strict=True))
        ]
        result.append(Group(tuple(members)))
    return result


def loop_step(method: str, policy: Any, reference: Any, groups: list[Group]) -> None:
    """One step of plain descent of the one training loop on all groups."""
    taken = OBJECTS[method]
    margin = THRESHOLD if method in ("DPO", "IPO") else 0.0
    annotated = [by_score(np.array([m.total_reward for m in group]), margin=margin) for group in groups]
    rng = np.random.default_rng(0)
    found = [taken.examples(group, preference, rng) for group, preference in zip(groups, annotated, strict=True)]
    options = TrainOptions(lr=0.1, clip=None, optimizer=torch.optim.SGD, cpu=True)
    batch = [example for example in found if example is not None]
    train(taken, policy, reference, [batch], steps=1, options=options, progress=False)


def stack_step(method: str, stack: Any, frozen: Any, context: Any, tokens: Any, behaviour: Any, reward: Any) -> None:
    optimizer = torch.optim.SGD(stack.parameters.values(), lr=0.1)
    with torch.no_grad():
        reference = frozen.logps(context, tokens)
    loss = training.objective(
        method, stack.logps(context, tokens), torch.tensor(behaviour), reference, torch.tensor(reward),
        threshold=THRESHOLD, temperature=0.25,
    )  # fmt: skip
    torch.autograd.backward([loss.sum()])
    optimizer.step()


def data(runs: int, groups: int, size: int, length: int, contexts: int) -> tuple[Any, ...]:
    """Random plays: contexts, tokens, log-probs that are a bit off (so that PPO clips some), rewards."""
    rng = np.random.default_rng(0)
    context = rng.integers(contexts, size=(runs, groups))
    tokens = rng.integers(10, size=(runs, groups, size, length))
    behaviour = (np.log(0.1) + 0.3 * rng.standard_normal(tokens.shape)).astype(np.float32)
    reward = np.exp(-(((tokens - 7.3) / 3.0) ** 2)).mean(-1).astype(np.float32)
    reward[:, 0] = 0.5  # a group with equal rewards, which has no best answer
    return context, tokens, behaviour, reward


def check(mine: torch.Tensor, theirs: torch.Tensor, before: torch.Tensor, name: str) -> None:
    """Two steps from the same weights are the same, up to rounding of the largest change."""
    steps = [(after.detach() - before).numpy() for after in (mine, theirs)]
    size = float(np.abs(steps[1]).max())
    assert size > 0, name
    np.testing.assert_allclose(steps[0], steps[1], atol=1e-3 * size + 1e-7, err_msg=name)


@pytest.mark.parametrize("method", training.METHODS)
def test_a_step_of_the_mlp_is_that_of_the_loop(method: str) -> None:
    """Two runs with different weights in one pass, against `train` on each run: the same weights after the step."""
    states = [str(number) for number in range(6)]
    alone = [mlp_policy(10, states, context_features(6, dimension=5), seed=s, hidden=(4, 7, 6)) for s in (1, 2)]
    features: Any = alone[0].model.policy
    both = {
        name: torch.stack([dict(p.model.policy.named_parameters())[name].detach() for p in alone])
        for name, _ in features.named_parameters()
    }
    moved = [dict(p.copy().model.policy.named_parameters()) for p in alone]
    for values in moved:  # the reference is not the policy, or log-ratios would all be 0
        for value in values.values():
            value.add_(0.05)
    frozen = OneToken({n: torch.stack([v[n] for v in moved]) for n in both}, features.features, train=4)
    stack = OneToken(both, features.features, train=4)
    context, tokens, behaviour, reward = data(2, 5, 4, 1, 4)
    stack_step(method, stack, frozen, context, tokens, behaviour, reward)
    for run, policy in enumerate(alone):
        reference = policy.copy()
        for name, value in reference.model.policy.named_parameters():
            value.copy_(moved[run][name])
        parts = (context[run], tokens[run], behaviour[run], reward[run])
        loop_step(method, policy, reference, groups_of(*parts, lambda prompt: 10 + prompt))
        for name, value in policy.model.policy.named_parameters():
            check(stack.parameters[name][run], value, both[name][run], name)


@pytest.mark.parametrize("method", training.METHODS)
def test_a_step_of_the_gpt_is_that_of_the_loop(method: str) -> None:
    """Against `train` on a GPT-2 of `transformers`, scored like every transformer policy, without the prompt."""
    models = [gpt2(10, length=4, seed=s) for s in (1, 2)]
    references = [gpt2(10, length=4, seed=s) for s in (3, 4)]

    def stack_of(pair: list[nn.Module]) -> GPT:
        names = [name for name, _ in pair[0].named_parameters()]
        found = [dict(model.named_parameters()) for model in pair]
        return GPT({n: torch.stack([f[n].detach() for f in found]) for n in names}, heads=3, length=4)

    stack, frozen = stack_of(models), stack_of(references)
    before = {name: value.detach().clone() for name, value in stack.parameters.items()}
    context, tokens, behaviour, reward = data(2, 5, 4, 4, 10)
    stack_step(method, stack, frozen, context, tokens, behaviour, reward)
    for run in range(2):
        policy, reference = (Mutable(model=pair[run], scorer=ModelScorer(pair[run])) for pair in (models, references))
        parts = (context[run], tokens[run], behaviour[run], reward[run])
        loop_step(method, policy, reference, groups_of(*parts, int))
        for name, value in models[run].named_parameters():
            check(stack.parameters[name][run], value, before[name][run], name)


@pytest.mark.parametrize("kind", ["MLP", "GPT"])
def test_samples_are_scored_as_they_were_drawn(kind: str) -> None:
    """Token by token with a cache, for one of two runs, gives the log-probabilities of the whole answer in one pass."""
    if kind == "GPT":
        stack: Any = GPT(stacked(gpt2(10, length=5, seed=0), 2), heads=3, length=5)
    else:
        policy = mlp_policy(10, ["0", "1", "2"], context_features(3, dimension=5), seed=0, hidden=(4, 7, 6))
        stack = OneToken(stacked(policy.model.policy, 2), context_features_tensor(), train=2)
    context = np.array([[0, 1, 1]])
    tokens, logps = stack.sample(np.array([1]), context, 6, np.random.default_rng(0))
    again = stack.logps(np.repeat(context, 2, 0), np.repeat(tokens, 2, 0)).detach()
    np.testing.assert_allclose(again[1], logps[0], atol=1e-5)
    assert tokens.shape == (1, 3, 6, 5 if kind == "GPT" else 1)


def context_features_tensor() -> torch.Tensor:
    return torch.as_tensor(context_features(3, dimension=5), dtype=torch.float32)


def test_draws_follow_the_mass() -> None:
    """Probabilities (.25, 0, .75): numbers below .25 give 0, larger ones 2; token 1 never comes."""
    draws = np.array([[0.0, 0.1, 0.249, 0.251, 0.999999]])
    assert draw(torch.tensor([[[0.25, 0.0, 0.75]]]), draws[None]).tolist() == [[[0, 0, 0, 2, 2]]]


def test_the_start_is_the_data_policy_and_rewards_are_those_of_the_environment() -> None:
    """Expected rewards .039 (R1) and .377 (R2), exact for table and MLP; of the GPT 128 answers of nine tokens."""
    values = [reward_table(name, contexts=1, arms=100)[0] for name in training.REWARDS]
    exact = [float(data_policy() @ v) for v in values]
    assert exact == pytest.approx([0.039, 0.377], abs=5e-4)
    for variant, tolerance, fit in (("table", 1e-9, 0), ("MLP", 2e-3, 100), ("GPT", 0.04, 80)):
        stack, _ = training.policies(variant, 2, 0, fit)
        found = stack.expected_reward(torch.tensor(np.array(values), dtype=torch.float32), np.random.default_rng(0))
        np.testing.assert_allclose(found, exact, atol=tolerance, err_msg=variant)
    tokens = np.random.default_rng(1).integers(100, size=(3, 9))
    np.testing.assert_allclose(token_rewards(tokens, values[0]), values[0][tokens].mean(1))


def test_one_round_of_best_of_ten_has_its_known_ceiling() -> None:
    """Offline, likelihood of the best of 10 tends to the distribution of the best of 10: .31 on R1 and .94 on R2."""
    found = training.train(
        "table", "BoN", groups=50, group_size=10, lr=0.1, records=[400], seed=0, sources=("offline",)
    )
    for name, earned in zip(training.REWARDS, found[0, :, 0], strict=True):
        ceiling = best_of_data("table", name, 10)
        assert ceiling == pytest.approx({"R1": 0.31, "R2": 0.94}[name], abs=0.01)
        assert earned == pytest.approx(ceiling, abs=0.08)


def test_the_quick_suite_writes_a_page_that_agrees_with_its_figures(tmp_path: Path) -> None:
    """Every variant, method, reward and source has a figure; the report names its pictures and claims no ordering."""
    record = run_suite(SUITE, tmp_path, quick=True, progress=False)
    assert json.loads((tmp_path / "results.json").read_text()) == record
    names = {cell["name"] for cell in record["cells"]}
    every = {f"{v}-{m}" for v in ("table", "MLP", "GPT", "rates") for m in training.METHODS}
    assert names == {*every, "tau_ninth-IPO"}
    for cell in record["cells"]:
        if cell["name"].startswith("rates"):
            thresholds = ["0.2", "0.0"] if cell["name"] in ("rates-DPO", "rates-IPO") else ["0.2"]
            assert {key: np.array(value).shape for key, value in cell["result"].items()} == dict.fromkeys(
                thresholds, (1, 4, 2)
            )
            continue
        shape = np.array(cell["result"]["expected_reward"]).shape
        assert shape == (len(cell["options"]["records"]), 2, len(cell["options"]["sources"]))
    page = (tmp_path / "report.md").read_text()
    for plot in ("coverage_table", "coverage_MLP", "coverage_GPT", "reuse"):
        assert f"]({plot}.svg)" in page
        assert (tmp_path / f"{plot}.png").stat().st_size > 1000
    assert "is above" not in page
    figure = next(c for c in record["cells"] if c["name"] == "MLP-IPO")["result"]["expected_reward"][-1][0][0]
    assert f"| {figure:.3f} " in page
