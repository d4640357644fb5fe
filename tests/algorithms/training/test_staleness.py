"""Draws that are collected while training goes on: by exactly the weights that are said, whatever overlaps."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyturn.agents import CollectError, CollectOptions, RayCluster, Sampling, tiny_policy
from polyturn.agents.collecting.collect import _here
from polyturn.agents.collecting.work import Parcel, Work
from polyturn.agents.transformer.policy import Policy
from polyturn.algorithms import GRPO, RLOO, TrainOptions, online, train
from polyturn.envs.trajectory import Trajectory


class Beside(RayCluster):
    """A cluster's part played in this process: what a worker would unpack is unpacked and played here, one at a time.

    Args:
        root: Weights travel through it.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.closed = root, False
        self.gate: Callable[[], object] = lambda: None  # waited for before every collection
        self.fingerprints: list[str] = []
        self.lock = threading.Lock()
        self._one_at_a_time = threading.Lock()

    def _connected(self) -> Any:
        return None

    def _root_folder(self) -> Path:
        return self.root

    @property
    def _folders(self) -> list[Any]:
        return []

    def _play(self, work: Work, left: Sequence[Any], done: Mapping[Any, Any], ended: Any, stored: bool) -> Any:
        self.gate()
        with self.lock:
            if self.closed:
                raise CollectError("closed")
            opened = Parcel.of(work, self.root).open({})
            self.fingerprints.append(opened.members[0].fingerprint())  # type: ignore[attr-defined]
            return _here(opened, left, done, ended, stored)

    def close(self) -> None:
        """Nothing plays after this."""
        with self.lock:
            self.closed = True


@pytest.fixture
def on(tmp_path: Path) -> Iterator[Beside]:
    with Beside(tmp_path) as made:
        yield made


def tiny() -> Policy:
    return tiny_policy(["Prompt 1."], seed=0, vocab_size=262, hidden=16, layers=1, heads=2, context=64)


def even(trajectory: Trajectory) -> float:
    """Share of even token ids."""
    return float(np.mean(np.concatenate([turn.action_ids for turn in trajectory.turns]) % 2 == 0))


def source(policy: Policy, on: RayCluster | None, **options: Any) -> Any:
    collect = CollectOptions(
        groups=4, group_size=4, sampling=Sampling(max_new_tokens=2), max_tokens=60, env_options={"prompts": 4}
    )
    return online(policy, "polyturn/TokenLength-v0", collect=collect, reward=even, on=on, **options)


def scaled(policy: Policy, factor: float) -> None:
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(factor)


def drawn(step: Any) -> list[dict[str, Any]]:
    return [member.to_json() for item in step for member in item.group]


def test_the_next_draw_has_the_weights_of_the_moment_it_was_begun_whatever_training_does_meanwhile(on: Beside) -> None:
    """Every draw but the first is held up until the weights have changed, and is still that of the weights before."""
    expected = []
    for number, factor in enumerate((1.0, 1.0, -2.0)):
        policy = tiny()
        scaled(policy, factor)
        stream = source(policy, None, seed=3)
        for _ in range(number):
            next(stream)
        expected.append(drawn(next(stream)))
    allowed = threading.Semaphore(1)
    on.gate = allowed.acquire
    policy, found, weights = tiny(), [], []
    stream = source(policy, on, staleness=1, seed=3)
    for _ in range(3):
        weights.append(policy.fingerprint())
        found.append(drawn(next(stream)))
        scaled(policy, -2.0)
        allowed.release()
    assert on.fingerprints[:3] == [weights[0], weights[0], weights[1]]
    assert found == expected


def test_lag_counts_steps(on: Beside) -> None:
    stream = source(tiny(), on, staleness=1, reuse=2)
    lags = []
    for _ in range(6):
        next(stream)
        lags.append(stream.metrics["sample/lag"])
    assert lags == [0, 1, 2, 3, 2, 3]


def test_a_resumed_source_has_the_draw_that_was_under_way(on: Beside) -> None:
    """Its weights are gone by then, so it is kept."""
    policy = tiny()
    stream = source(policy, on, staleness=1)
    next(stream)
    state = json.loads(json.dumps(stream.state_dict()))
    scaled(policy, -2.0)
    again = source(policy, on, staleness=1)
    again.load_state_dict(state)
    assert drawn(next(again)) == drawn(next(stream))
    assert drawn(next(again)) == drawn(next(stream))
    assert again.metrics == stream.metrics


def test_what_sampled_wrongly_beside_training_is_raised_where_it_is_needed(on: Beside) -> None:
    calls = iter(range(9))

    def fails_at_the_second() -> None:
        if next(calls) == 1:
            raise CollectError("the cluster is down")

    on.gate = fails_at_the_second
    stream = source(tiny(), on, staleness=1)
    next(stream)
    with pytest.raises(CollectError, match="the cluster is down"):
        next(stream)


def test_methods_that_cannot_correct_for_it_refuse_it(on: Beside) -> None:
    policy = tiny()
    with pytest.raises(ValueError, match=r"rloo: expected staleness=0, got 1.*no importance ratios"):
        train(RLOO(), policy, policy.copy(), source(policy, on, staleness=1), steps=1)
    assert on.fingerprints == []
    with pytest.raises(ValueError, match=r"expected on=RayCluster"):
        source(policy, None, staleness=1)
    with pytest.raises(ValueError, match="expected a staleness of 0 or 1, got 2"):
        source(policy, on, staleness=2)
    options = TrainOptions(lr=1e-2, cpu=True)
    result = train(GRPO(kl=0.0), policy, None, source(policy, on, staleness=1), steps=2, options=options)
    assert [record["sample/lag"] for record in result.history] == [0, 1]
