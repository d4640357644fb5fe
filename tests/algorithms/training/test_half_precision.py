"""Heads on policies in half precision, as published models are: they learn, come back as saved, and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyturn.agents import CollectOptions, Sampling
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms import (
    MTPO,
    PPO,
    SFT,
    ActorCritic,
    Example,
    PreferenceModel,
    RewardModel,
    fit,
    minibatches,
    online,
    train,
)
from polyturn.algorithms.training.options import TrainOptions
from polyturn.envs.preference import Preference, by_score
from polyturn.envs.trajectory import Group, Trajectory, Turn

torch.set_num_threads(1)
HALF = [torch.bfloat16, torch.float16]
pytestmark = pytest.mark.filterwarnings("ignore:the trained weights are:UserWarning")


def policy(dtype: torch.dtype) -> Policy:
    own = tiny_policy(["good bad"], seed=0, hidden=32, layers=2, heads=2, context=512, init=0.2)
    return Policy(own.model.to(dtype), own.tokenizer)


def options(**changed: Any) -> TrainOptions:
    return TrainOptions(**{"lr": 1e-2, "cpu": True, **changed})


def length(trajectory: Trajectory) -> float:
    return float(sum(len(turn.action_ids) for turn in trajectory.turns) % 3)


@pytest.mark.parametrize("precision", [None, "bf16"])
@pytest.mark.parametrize("shared", [False, True], ids=["own body", "shared"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_value_network_learns_and_comes_back(
    dtype: torch.dtype, shared: bool, precision: Any, tmp_path: Path
) -> None:
    both = ActorCritic(policy(dtype), shared=shared)
    assert {p.dtype for p in both.value.parameters()} == {torch.float32}
    if dtype == torch.float16:
        both.policy.model.float()  # it acts in float16 as well, but cannot be trained so
        both = ActorCritic(both.policy, shared=shared)
    dtype = both.policy.model.dtype
    method = MTPO(value_warmup=100) if precision else PPO(value_warmup=100)
    collect = CollectOptions(groups=2, group_size=2, sampling=Sampling(max_new_tokens=4), slots=4)
    source = online(both.policy, "polyturn/Guess-v0", reward=length, collect=collect, reuse=6, seed=0)
    made = options(mixed_precision=precision, gradient_checkpointing=shared)
    anchor = both.policy.copy()
    train(method, both, anchor, source, steps=3, options=made, out=tmp_path / "run", progress=False)
    result = train(
        method, both, anchor, source, steps=6, options=made, out=tmp_path / "run", resume=True, progress=False
    )
    errors = [record["value_error"] for record in result.history if "value_error" in record]
    assert len(errors) == 6
    assert errors[-1] < errors[0]
    both.save_pretrained(tmp_path / "saved")
    again = ActorCritic.from_pretrained(tmp_path / "saved")
    ids = torch.tensor([[3, 40, 50, 60]])
    assert again.policy.model.dtype == dtype
    assert torch.equal(again.values(ids, ids > 0), both.values(ids, ids > 0))


def conversations(count: int) -> list[tuple[Group, Preference]]:
    """Who says "good" is better than who says "bad"."""
    made = []
    for seed in range(count):
        said = [Trajectory("Toy-v0", seed, (Turn(f"q{seed}", text),), member=m, terminated=True)
                for m, text in enumerate(("good", "bad"))]  # fmt: skip
        made.append((Group(tuple(said)), by_score(np.array([1.0, 0.0]))))
    return made


@pytest.mark.parametrize("precision", [None, "bf16"])
@pytest.mark.parametrize("kind", [RewardModel, PreferenceModel])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_models_of_preferences_learn_and_come_back(
    dtype: torch.dtype, kind: Any, precision: Any, tmp_path: Path
) -> None:
    model, annotated = kind(policy(dtype)), conversations(10)
    made = options(mixed_precision=precision)
    found = fit(model, annotated[:6], annotated[6:], steps=12, batch_size=6, options=made, progress=False)
    assert found.after.accuracy == 1.0
    model.save_pretrained(tmp_path / "saved")
    again = kind.from_pretrained(tmp_path / "saved")
    group = annotated[-1][0]
    assert np.array_equal(again(group).matrix, model(group).matrix, equal_nan=True)
    assert model(group).matrix[0, 1] > 0.5


def test_the_precision_of_one_run_is_not_that_of_the_next() -> None:
    """Accelerate keeps the first precision of a process and gives it to all later runs that name none."""
    row = Trajectory(
        "Toy-v0",
        0,
        (Turn("o", "a", 1.0, np.array([5, 6], np.int32), np.arange(20, 40, dtype=np.int32)),),
        terminated=True,
    )

    def loss(precision: Any) -> float:
        own = tiny_policy(["x"], seed=0, hidden=32, layers=2, heads=2, context=64, init=0.3)
        steps = minibatches([Example((row,))], 1, seed=0)
        made = options(mixed_precision=precision)
        return float(train(SFT(), own, None, steps, steps=1, options=made, progress=False).history[-1]["loss"])

    plain = loss("no")
    assert loss("bf16") != plain
    assert loss(None) == plain


def test_float16_weights_are_not_trained() -> None:
    """Adam's epsilon of 1e-8 is 0 in float16: after one update the weights would be nan."""
    row = Trajectory(
        "Toy-v0", 0, (Turn("o", "a", 1.0, np.array([5], np.int32), np.array([7], np.int32)),), terminated=True
    )
    own = policy(torch.float16)
    with pytest.raises(ValueError, match=r"expected trained weights in float32.*got float16.*dtype=torch.float32"):
        train(SFT(), own, None, minibatches([Example((row,))], 1, seed=0), steps=1, options=options(), progress=False)
