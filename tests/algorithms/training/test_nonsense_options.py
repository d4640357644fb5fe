"""Settings that mean nothing are refused by name before any work, whatever kind of nonsense they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from polyturn.agents import Policy, RandomAgent, Sampling, TransformerAgent, collect, tiny_policy
from polyturn.agents.collecting.options import CollectOptions
from polyturn.algorithms import evaluate
from polyturn.algorithms.training.data_source import steps_of
from polyturn.algorithms.training.options import TrainOptions

NO_COUNT = (-1, 1.5, True, float("nan"), float("inf"), "8")
NO_NUMBER = (-1, float("nan"), float("inf"), "8", None)
COUNTS: dict[str, list[str]] = {
    "collect": ["groups", "group_size", "concurrency", "seed"],
    "sampling": ["max_new_tokens", "top_k", "max_episode_tokens"],
    "agent": ["slots", "max_tokens"],
    "collecting": ["groups", "group_size", "max_tokens", "slots"],
    "steps": ["count", "size"],
    "training": ["warmup", "accumulate", "tokens_per_micro_batch", "max_length", "save_every", "keep", "seed"],
    "evaluate": ["problems", "samples"],
}


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy(["a b"], seed=0, hidden=16, layers=1, heads=1, context=64)


@pytest.fixture
def made(policy: Policy) -> dict[str, Callable[..., Any]]:
    """By short name what takes settings; nothing here should come to run an episode."""
    env = "polyturn/Guess-v0"
    return {
        "collect": lambda **o: collect(RandomAgent(), env, progress=False, **o),
        "sampling": Sampling,
        "agent": lambda **o: TransformerAgent(policy, **o),
        "collecting": CollectOptions,
        "steps": lambda count=8, size=4, **o: steps_of(count, size, **o),
        "training": TrainOptions,
        "evaluate": lambda **o: evaluate(RandomAgent(), env, progress=False, **o),
    }


@pytest.mark.parametrize(("what", "name"), [(what, name) for what, names in COUNTS.items() for name in names])
def test_what_is_no_count_is_refused_by_name(what: str, name: str, made: dict[str, Callable[..., Any]]) -> None:
    for value in NO_COUNT:
        with pytest.raises(ValueError, match=name if what != "evaluate" else "group"):
            made[what](**{name: value})


@pytest.mark.parametrize(
    ("what", "name"),
    [("sampling", "temperature"), ("sampling", "top_p"), ("sampling", "min_p"), ("steps", "epochs"),
     ("training", "lr"), ("training", "weight_decay")],
)  # fmt: skip
def test_what_is_no_number_of_a_kind_that_helps_is_refused_by_name(
    what: str, name: str, made: dict[str, Callable[..., Any]]
) -> None:
    for value in NO_NUMBER:
        with pytest.raises(ValueError, match=name):
            made[what](**{name: value})


@pytest.mark.parametrize(
    ("what", "name", "values"),
    [
        ("collect", "timeout", [0, -1, float("nan"), float("inf"), "8", True]),
        ("collect", "tasks", [3, 1.5, "3", True, [1.5], [-1]]),
        ("collect", "branch_at", [-1, 1.5, "8", True]),
        ("collecting", "branch_at", [-1, 1.5, "8", True, float("nan")]),
        ("collecting", "tasks", [[]]),
        ("steps", "count", [0]),
        ("training", "clip", [0, -1, float("nan"), "8"]),
        ("training", "dropout", ["no", 1, None, 0.1]),
        ("training", "cpu", ["no", 0, None]),
        ("training", "fully_sharded", ["no", 1]),
        ("sampling", "stop", ["x", ("",), (1,), ["x"]]),
    ],
)
def test_what_has_no_meaning_there_is_refused_by_name(
    what: str, name: str, values: list[Any], made: dict[str, Callable[..., Any]]
) -> None:
    for value in values:
        with pytest.raises(ValueError, match=name):
            made[what](**{name: value})
