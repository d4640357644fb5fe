"""A resumed run with another reference, other data or another policy; a store collected into again after training."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyturn.agents import CollectOptions, Sampling, TransformerAgent, collect
from polyturn.agents.collecting.resuming import SameNameWarning
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms import (
    GPO,
    MDPO,
    SFT,
    CheckpointError,
    Example,
    ResumeWarning,
    minibatches,
    online,
    train,
)
from polyturn.algorithms.training.options import TrainOptions
from polyturn.envs.store import Store, read
from polyturn.envs.trajectory import Trajectory, Turn

torch.set_num_threads(1)


def policy(seed: int = 0) -> Policy:
    return tiny_policy(["x"], seed=seed, hidden=32, layers=1, heads=2, context=256, init=0.2)


def pair(seed: int, said: int = 20) -> Example:
    def row(member: int, token: int) -> Trajectory:
        turn = Turn("o", "a", 1.0 - member, np.array([5 + seed], np.int32), np.array([token, token + 1], np.int32))
        return Trajectory("Toy-v0", seed, (turn,), member=member, terminated=True)

    return Example((row(0, said), row(1, said + 9)), np.array([[0, 1]]))


DATA = [pair(seed) for seed in range(6)]


def run(
    out: Path, *, steps: int, own: Policy | None = None, reference: Any = None, data: Any = None, **more: Any
) -> Any:
    own = policy() if own is None else own
    anchor = policy().copy() if reference is None else reference
    source = minibatches(DATA, 2, seed=0) if data is None else data
    options = TrainOptions(lr=1e-2, cpu=True)
    return train(MDPO(), own, anchor, source, steps=steps, options=options, out=out, progress=False, **more)


def told(out: Path, **changed: Any) -> list[str]:
    """What a run that is resumed says besides that it has more steps."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run(out, steps=3, resume=True, **changed)
    found = [str(each.message) for each in seen if issubclass(each.category, ResumeWarning)]
    return [part for text in found for part in text.split(": ", 1)[1].split("; ") if not part.startswith("steps was")]


def test_the_same_call_goes_on_without_a_word(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", steps=3).history
    run(tmp_path / "run", steps=2)
    assert told(tmp_path / "run") == []
    parts = run(tmp_path / "run", steps=3, resume=True).history
    assert [record["loss"] for record in parts] == [record["loss"] for record in whole]


@pytest.mark.parametrize("kind", ["other", "newest", "scaled"])
def test_another_reference_is_refused(kind: str, tmp_path: Path) -> None:
    """The newest checkpoint's copy is the usual mistake."""
    path = run(tmp_path / "run", steps=2).path
    reference = policy(seed=5).copy() if kind == "other" else Policy.from_pretrained(path).copy()
    if kind == "scaled":
        reference = policy().copy()
        with torch.no_grad():
            next(reference.model.parameters())[0, 0] += 1e-6
    with pytest.raises(CheckpointError, match=r"trained against another reference.*pass the reference that the run"):
        run(tmp_path / "run", steps=3, reference=reference, resume=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tokens", "data: examples was"),
        ("more", "data: examples was"),
        ("label", "data: examples was"),
        ("size", "data: batch_size was 2, is 3"),
        ("order", "data: order was 0, is 1"),
    ],
)
def test_other_data_is_named(name: str, expected: str, tmp_path: Path) -> None:
    turned = Example(DATA[5].trajectories, np.array([[1, 0]]))
    data = {
        "tokens": minibatches([*DATA[:5], pair(5, said=60)], 2, seed=0),
        "more": minibatches([*DATA, pair(6)], 2, seed=0),
        "label": minibatches([*DATA[:5], turned], 2, seed=0),
        "size": minibatches(DATA, 3, seed=0),
        "order": minibatches(DATA, 2, seed=1),
    }[name]
    run(tmp_path / "run", steps=2)
    found = told(tmp_path / "run", data=data)
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_other_lists_of_steps_are_named_too(tmp_path: Path) -> None:
    run(tmp_path / "run", steps=2, data=[DATA[:3], DATA[3:]])
    assert told(tmp_path / "run", data=[DATA[:3], DATA[3:]]) == []
    (found,) = told(tmp_path / "run", data=[DATA[:3], [*DATA[3:5], pair(5, said=70)]])
    assert found.startswith("data: examples was")


def test_another_policy_is_named_and_the_checkpoint_is_not(tmp_path: Path) -> None:
    path = run(tmp_path / "run", steps=2).path
    assert told(tmp_path / "run", own=Policy.from_pretrained(path, dtype="float32")) == []
    run(tmp_path / "other", steps=2)
    (found,) = told(tmp_path / "other", own=policy(seed=3))
    assert found.startswith("policy: the run was started from other weights")


def test_a_run_without_a_reference_says_so_of_its_policy_alone(tmp_path: Path) -> None:
    options = TrainOptions(lr=1e-2, cpu=True)

    def imitate(own: Policy, steps: int) -> None:
        source = minibatches(DATA, 2, seed=0)
        train(SFT(), own, None, source, steps=steps, options=options, out=tmp_path / "sft", resume=True, progress=False)

    imitate(policy(), 2)
    with pytest.warns(ResumeWarning, match="policy: the run was started from other weights"):
        imitate(policy(seed=1), 3)


def test_fresh_groups_of_another_kind_are_named(tmp_path: Path) -> None:
    def learn(steps: int, seed: int, env: str = "polyturn/Guess-v0", tokens: int = 4) -> None:
        own = policy()
        collecting = CollectOptions(groups=2, group_size=2, sampling=Sampling(max_new_tokens=tokens), slots=4)
        source = online(own, env, reward=lambda t: float(t.member), collect=collecting, seed=seed)
        options = TrainOptions(lr=1e-4, cpu=True)
        train(
            GPO(), own, policy().copy(), source, steps=steps, options=options, out=tmp_path, resume=True, progress=False
        )

    learn(1, 0)
    with pytest.warns(ResumeWarning, match=r"data: seed was 0, is 1"):
        learn(2, 1)
    with pytest.warns(ResumeWarning, match=r"data: collect.sampling.max_new_tokens was 4, is 5"):
        learn(3, 0, tokens=5)


def test_trained_weights_do_not_get_the_episodes_of_the_old_ones(tmp_path: Path) -> None:
    own = policy()
    agent = TransformerAgent(own, sampling=Sampling(max_new_tokens=6), slots=4)

    def play() -> list[Any]:
        with Store(tmp_path / "episodes.jsonl") as store:
            return collect(agent, "polyturn/Guess-v0", groups=2, group_size=2, seed=0, store=store, progress=False)

    def bare() -> list[Any]:
        return collect(agent, "polyturn/Guess-v0", groups=2, group_size=2, seed=0, progress=False)

    before = play()
    assert before == bare()
    with warnings.catch_warnings():
        warnings.simplefilter("error", SameNameWarning)
        assert play() == before
    assert len(list(read(tmp_path / "episodes.jsonl"))) == 4
    source = minibatches(DATA, 2, seed=0)
    train(SFT(), own, None, source, steps=2, options=TrainOptions(lr=1e-1, cpu=True), progress=False)
    with pytest.warns(SameNameWarning, match=r"holds 4 of these episodes.*other weights.*another policy.version"):
        after = play()
    assert after == bare()
    assert after != before
    # The newer ones are found again, and so are the older ones by the older weights.
    with pytest.warns(SameNameWarning):
        assert play() == after
    assert len(list(read(tmp_path / "episodes.jsonl"))) == 8
    own.model.load_state_dict(policy().model.state_dict())
    with pytest.warns(SameNameWarning):
        assert play() == before
