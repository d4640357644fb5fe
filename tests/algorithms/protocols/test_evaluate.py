"""Evaluation: intervals by hand and by coverage, pass@k by enumeration, and what is left out of an average."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from polyturn.agents.agent import Episode, ScriptedAgent
from polyturn.agents.collecting.collect import CollectError, collect
from polyturn.agents.transformer.agent import TransformerAgent
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms.protocols.evaluate import Proportion, clustered, evaluate, pass_at, report, wilson
from polyturn.cli import main
from polyturn.envs.outcomes import mean_of_problems, success_of
from polyturn.envs.trajectory import Group, Trajectory, Turn


def trajectory(reward: float, *, seed: int = 0, tool_error: bool = False, error: str | None = None) -> Trajectory:
    first = Turn("q", "code", info={"tool_error": tool_error}, action_ids=np.array([1, 2], np.int32))
    return Trajectory("E", seed, (first, Turn("o", "a", reward)), terminated=True, error=error)


def test_wilson_by_hand() -> None:
    """8 of 10 with z = 2: middle (0.8 + 4/20) / (1 + 4/10) = 1/1.4; half 2/1.4 sqrt(.16/10 + 4/400) = .230350."""
    interval = wilson(8, 10, z=2.0)
    assert interval.value == 0.8
    assert (interval.low, interval.high) == pytest.approx((1 / 1.4 - 0.2303502, 1 / 1.4 + 0.2303502), abs=1e-6)
    # Published values for 95%: 0 of 10 gives [0, .2775], 10 of 10 [.7225, 1].
    assert (wilson(0, 10).low, wilson(0, 10).high) == pytest.approx((0.0, 0.2775328), abs=1e-6)
    assert (wilson(10, 10).low, wilson(10, 10).high) == pytest.approx((0.7224672, 1.0), abs=1e-6)
    assert str(wilson(1, 2)) == "50.0% [9.5, 90.5]"
    nothing = wilson(0, 0)
    assert math.isnan(nothing.value)
    assert (nothing.low, nothing.high, nothing.trials) == (0.0, 1.0, 0)
    with pytest.raises(ValueError, match="got 3 of 2"):
        wilson(3, 2)


def test_pass_at_is_the_share_of_subsets_with_a_success() -> None:
    for samples in range(1, 7):
        for correct, k in itertools.product(range(samples + 1), range(1, samples + 1)):
            subsets = list(itertools.combinations([True] * correct + [False] * (samples - correct), k))
            assert pass_at(correct, samples, k) == pytest.approx(np.mean([any(s) for s in subsets]), abs=1e-12)
    for wrong in ((1, 3, 0), (1, 3, 4), (4, 3, 1), (-1, 3, 1)):
        with pytest.raises(ValueError, match="pass_at: expected"):
            pass_at(*wrong)


def test_the_clustered_interval_by_hand() -> None:
    """Means 1, .5, 0, .5: p = .5, variance of means 1/6, of their mean 1/24: effective .25 * 24 = 6 trials."""
    marks = [[True, True], [True, False], [False, False], [False, True]]
    expected = wilson(3, 6)
    found = clustered(marks)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, expected.low, expected.high), abs=1e-12)
    assert found.trials == 4
    # Samples that always agree are worth one each; a problem set that is always right is worth its problems.
    assert clustered([[True] * 8, [False] * 8] * 10) == wilson(10, 20)
    assert clustered([[True] * 8] * 10) == wilson(10, 10)
    # Every problem exactly half right: nothing lies between problems, so every episode counts.
    assert clustered([[True, False]] * 10).low == pytest.approx(wilson(10, 20).low)
    assert clustered([[True]] * 7 + [[False]] * 3) == wilson(7, 10)
    assert clustered([[True, False]]).low == pytest.approx(wilson(0.5, 1).low)
    for bad in ([], [[True], []]):
        with pytest.raises(ValueError, match="at least one sample each"):
            clustered(bad)


@pytest.mark.parametrize(("a", "b"), [(0.3, 0.3), (2.0, 2.0), (4.0, 1.0), (30.0, 30.0)])
def test_the_clustered_interval_covers_the_truth(a: float, b: float) -> None:
    """Problem difficulties from Beta(a, b), 40 problems x 8: at least 92.5% of 2,000 intervals hold a / (a + b).

    The binomial interval over episodes, which takes samples for independent, falls far short where problems differ.
    """
    rng = np.random.default_rng(0)
    truth, hits, naive, runs = a / (a + b), 0, 0, 2000
    for _ in range(runs):
        right = rng.random((40, 8)) < rng.beta(a, b, size=40)[:, None]
        found, binomial = clustered(right.tolist()), wilson(float(right.sum()), right.size)
        hits += found.low <= truth <= found.high
        naive += binomial.low <= truth <= binomial.high
    assert hits / runs > 0.925
    if a < 1:
        assert naive / runs < 0.7


def test_a_report_leaves_invalid_episodes_out_and_counts_them() -> None:
    lost = trajectory(0.0, error="SandboxLost: gone")
    groups = [
        Group((trajectory(1.0), trajectory(0.0, tool_error=True))),
        Group((trajectory(0.0, seed=1), trajectory(0.0, seed=1))),
        Group((trajectory(1.0, seed=2), Trajectory("E", 2, (), error="x"))),
        Group((Trajectory("E", 0, (), error="x"), lost)),
    ]
    result = report(groups, success_return=1.0)
    assert result.success is not None
    assert result.success.value == pytest.approx((0.5 + 0 + 1) / 3)
    assert result.success.trials == 3
    assert result.pass_at_n == wilson(1, 2)  # of the two problems with both samples
    assert (result.samples, result.invalid) == (2, 3)
    assert result.mean_return.value == pytest.approx((0.5 + 0 + 1) / 3)
    assert (result.turns, result.tokens) == (2.0, 2.0)
    assert result.tool_errors == pytest.approx(1 / 5)
    assert result.truncated == 0.0
    assert "invalid      3 episodes left out" in str(result)
    assert "pass@2" in str(result)
    assert result.to_json()["success"]["value"] == result.success.value
    with pytest.raises(ValueError, match=r"got none; errors were \['SandboxLost: gone', 'x'\]"):
        report(groups[3:])


def test_episodes_without_a_turn_are_no_evaluation() -> None:
    """Prompts that fill the context: nothing was seen of the agent, in any of them; in some, it is said in how many."""
    silent = Trajectory("E", 1, (), truncated=True, info={"context": "the prompt has 900 tokens, 512 fit"})
    with pytest.raises(ValueError, match="no episode had a turn: the prompt has 900 tokens, 512 fit"):
        report([Group((silent,)), Group((replace(silent, seed=2),))])
    some = report([Group((trajectory(1.0),)), Group((silent,))])
    assert (some.empty, some.mean_return.value) == (1, 0.5)
    assert "empty        1 episodes had no turn" in str(some)
    assert "empty" not in str(report([Group((trajectory(1.0),))]))


def test_evaluating_a_policy_whose_prompts_do_not_fit_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In Python, by `polyturn eval` and by `polyturn rollout`, which must not end with code 0."""
    tiny_policy(["a word"], seed=0, hidden=32, layers=1, heads=2, context=64).save_pretrained(tmp_path / "m")
    agent = TransformerAgent.from_pretrained(str(tmp_path / "m"), max_tokens=16)
    with pytest.raises(CollectError, match=r"no episode had a turn: .*tokens"):
        evaluate(agent, "polyturn/EducationDialogue-v0", problems=2, progress=False)
    common = ["--max-tokens", "16", "--quiet"]
    assert (
        main(
            ["eval", "--model", str(tmp_path / "m"), "--env", "polyturn/EducationDialogue-v0", "--limit", "2", *common]
        )
        == 1
    )
    assert "no episode had a turn" in capsys.readouterr().err
    rollout = ["rollout", "polyturn/EducationDialogue-v0", "--agent", str(tmp_path / "m"), "--groups", "2", *common]
    assert main(rollout) == 1
    assert "turns        none in any episode" in capsys.readouterr().out


def test_success_may_be_more_than_one_point() -> None:
    groups = [Group((trajectory(3.0),)), Group((trajectory(1.0, seed=1),))]
    assert report(groups, success_return=2.0).success == wilson(1, 2)
    assert report(groups, success_return=1.0).success == wilson(2, 2)


def test_a_success_that_no_environment_declares_is_not_reported() -> None:
    """An agent that always earns .9 of .9 has not failed: its mean return says how good it was."""
    found = report([Group((trajectory(0.9, seed=n),)) for n in range(50)])
    assert (found.success, found.pass_at_n) == (None, None)
    first, second, *_ = str(found).splitlines()
    assert first == "mean return  0.9000 [0.9000, 0.9000]  (50 problems x 1)"
    assert second.startswith("success      not declared by the environment")
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["success"] is None


def test_the_interval_of_the_mean_return_by_hand() -> None:
    """Problem means 1, 2, 3, 4: mean 2.5, deviation sqrt(5/3), Student's t with 3 degrees of freedom 3.1824."""
    found = mean_of_problems([[0.5, 1.5], [2.0], [3.0, 3.0, 3.0], [4.0]])
    half = 3.182446 * math.sqrt(5 / 3) / 2
    assert (found.value, found.low, found.high) == pytest.approx((2.5, 2.5 - half, 2.5 + half), rel=1e-6)
    single = report([Group((trajectory(0.25), trajectory(0.75)))])
    assert (single.mean_return.value, single.mean_return.trials) == (0.5, 1)
    assert math.isnan(single.mean_return.low)
    assert "no interval from one problem" in str(single)
    assert single.to_json()["mean_return"] == {"value": 0.5, "low": None, "high": None, "trials": 1}
    json.dumps(single.to_json(), allow_nan=False)


class Haggle(gymnasium.Env[str, str]):
    """One turn; pays what is written. Says what success is in a way that the options choose."""

    def __init__(self, rule: str = "none") -> None:
        self.rule = rule
        if rule == "return":
            self.success_return = 0.3

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        return "Your price?", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        key = {"info": "success", "robotics": "is_success"}.get(self.rule)
        return "", float(action), True, False, {} if key is None else {key: action.startswith("0.1")}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("none", None), ("return", [True, False]), ("info", [False, True]), ("robotics", [False, True])],
)
def test_environments_declare_success_by_a_total_or_in_their_info(rule: str, expected: list[bool] | None) -> None:
    agents = [ScriptedAgent(["0.30000000000000004"]), ScriptedAgent(["0.1"])]
    groups = collect(agents, lambda: Haggle(rule), groups=2, group_size=2, progress=False)
    assert [success_of(member) for member in groups[0]] == (expected or [None, None])
    found = report(groups)
    assert (found.success is None) == (expected is None)
    stored = [Trajectory.from_json(json.loads(json.dumps(member.to_json()))) for member in groups[0]]
    assert [success_of(member) for member in stored] == (expected or [None, None])


def test_stored_episodes_without_an_outcome_are_judged_by_their_registered_environment() -> None:
    right = Trajectory("polyturn/ToolMath-v0", 0, (Turn("q", "a", 1.0),), terminated=True)
    assert success_of(right) is True
    assert success_of(replace(right, turns=(Turn("q", "a", 0.0),))) is False
    assert success_of(replace(right, env_id="polyturn/CarDealer-v0")) is None
    assert success_of(replace(right, env_id="nowhere/Unknown-v0")) is None
    assert success_of(replace(right, info={"success": False})) is False
    assert success_of(replace(right, info={"success": "yes"})) is True  # no truth value, so the class is asked


def test_evaluate_runs_samples_on_every_task() -> None:
    def act(episode: Episode) -> str:
        return "\\boxed{0}" if episode.member else "no answer"

    result = evaluate(
        ScriptedAgent(act),
        "polyturn/ToolMath-v0",
        tasks=range(5),
        samples=2,
        env_options={"problems": "generated:1:5", "sandbox": "local"},
        progress=False,
    )
    assert result.success is not None
    assert result.success.trials == 5
    assert result.samples == 2
    assert result.turns == 1.0
    assert isinstance(result.success, Proportion)
