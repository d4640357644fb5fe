"""Weights of tokens in a loss: by hand, against what a step of training does, in stores, and as they are shown."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms import METHODS, Example, ExampleError, TrainOptions, token_weights, train, weigh
from polyturn.algorithms.methods.base import hooks_of
from polyturn.algorithms.protocols.offline import examples_of
from polyturn.cli import main
from polyturn.envs import Group, Store, Trajectory, Turn, by_return, read
from polyturn.envs.viewing.trained_on import KEY, TrainedOn

torch.set_num_threads(1)
HOSTILE = "</script><b>\u202e\x1b[31m"


def policy(seed: int) -> Policy:
    return tiny_policy(["a b c"], seed=seed, vocab_size=300, hidden=16, layers=1, heads=2, init=0.5)


POLICY, REFERENCE = policy(0), policy(1)


def turn(context: list[int], action: list[int], reward: float = 0.0, **more: Any) -> Turn:
    return Turn(HOSTILE, "a", reward, np.array(context), np.array(action), np.full(len(action), -1.0), **more)


def member(number: int, reward: float, seed: int = 1, **more: Any) -> Trajectory:
    turns = (turn([1, 2, 3 + seed], [4, 5 + number], forced=(1,)), turn([7, 8], [9, 10, 11 + number], reward))
    return Trajectory("toy", seed, turns, member=number, terminated=True, **more)


def groups() -> list[Group]:
    """Two groups with a winner and a loser, one of ties, one with an invalid member."""
    return [
        Group((member(0, 1.0), member(1, 0.0))),
        Group((member(0, 0.0, 2), member(1, 0.0, 2))),
        Group((member(0, 0.0, 3), member(1, 1.0, 3))),
        Group((member(0, 0.0, 4, error="lost"), member(1, 1.0, 4))),
    ]


def log_ratio(row: Trajectory) -> np.ndarray[Any, Any]:
    """`[T]` at every token, policy to reference."""
    ids = torch.from_numpy(row.tokens[0].astype(np.int64))[None]
    with torch.no_grad():
        found = POLICY.logps(ids, ids >= 0) - REFERENCE.logps(ids, ids >= 0)
    return found[0].numpy()


def test_the_weights_of_mdpo_by_hand() -> None:
    """-log sigmoid(beta h): beta sigmoid(-beta h) on each token, half of it with two pairs, the winner's pushed up."""
    found = list(weigh(METHODS["mdpo"](beta=0.5), POLICY, REFERENCE, groups(), by_return))
    assert [(row.start, row.member) for row in found] == [(row.start, row.member) for one in groups() for row in one]
    for winner, loser in ((found[0], found[1]), (found[5], found[4])):
        own = winner.tokens[1] >= 0
        ratios = log_ratio(winner), log_ratio(loser)
        margin = float(ratios[0][own].sum() - ratios[1][own].sum())
        push = 0.5 / (1.0 + math.exp(0.5 * margin)) / 2
        for row, ratio, sign in ((winner, ratios[0], -1), (loser, ratios[1], 1)):
            numbers = [TrainedOn.of(each) for each in row.turns]
            assert all(each is not None for each in numbers)
            weights = np.concatenate([part for each in numbers if each for part in (each.outside, each.weight)])
            np.testing.assert_allclose(weights, np.where(own, sign * push, 0.0), rtol=1e-5)
            shown = np.concatenate([each.log_ratio for each in numbers if each])
            expected = np.where(own, ratio, np.nan)[[3, 4, 7, 8, 9]]
            np.testing.assert_allclose(shown, expected, atol=1e-5)
            assert np.isnan(shown[1])  # a token that was put there
    for row in (*found[2:4], *found[6:]):
        assert row.info[KEY] == {"taken": False}
        assert not any(each.weight.any() for each in map(TrainedOn.of, row.turns) if each)
    plain = [replace(row, turns=tuple(replace(t, info={}) for t in row.turns), info={}) for row in found]
    assert plain == [row for one in groups() for row in one]


@pytest.mark.parametrize("name", ["sft", "raft", "rwr", "mdpo", "gpo", "ipo", "mkto", "reinforce", "rloo", "grpo"])
def test_the_weights_are_the_gradient_of_training(name: str) -> None:
    """Through the weights the parameters get what one SGD step of `train` moves them by."""
    method = METHODS[name]()
    rng = np.random.default_rng(0)
    examples = [
        one for group in (groups()[0], groups()[2]) for one in examples_of(method, group, by_return(group), False, rng)
    ]
    taken = [one for one in examples if one is not None]
    found = token_weights(method, POLICY, REFERENCE, taken)
    assert bool((found.weight != 0).any())
    trained = policy(0)
    batch = found.batch
    scores = trained.scorer(batch.rows(), batch.mask)["logps"]
    expected = torch.autograd.grad((scores * found.weight).sum(), list(trained.model.parameters()))
    before = [each.detach().clone() for each in trained.model.parameters()]
    options = TrainOptions(lr=1.0, clip=None, optimizer=torch.optim.SGD)
    reference = REFERENCE if hooks_of(method).needs.reference else None
    train(method, trained, reference, [taken], steps=1, options=options, progress=False)
    for slope, start, end in zip(expected, before, trained.model.parameters(), strict=True):
        torch.testing.assert_close(start - end.detach(), slope, rtol=1e-3, atol=2e-6)


def test_an_ablation_that_trains_on_observations_shows_it() -> None:
    found = next(weigh(METHODS["mdpo"](mask="all"), POLICY, REFERENCE, groups(), by_return))
    first, second = (TrainedOn.of(each) for each in found.turns)
    assert first is not None
    assert second is not None
    assert not first.outside.any()
    assert (second.outside < 0).all()


def test_steps_are_means_over_their_groups() -> None:
    """One pair a step weighs twice what it does among two; a step in which nothing is taken changes nothing."""
    method = METHODS["mdpo"]()
    two, one = (list(weigh(method, POLICY, REFERENCE, groups(), by_return, batch_size=size)) for size in (2, 1))
    for row in (0, 4):
        a, b = TrainedOn.of(two[row].turns[0]), TrainedOn.of(one[row].turns[0])
        assert a is not None
        assert b is not None
        np.testing.assert_allclose(2 * a.weight, b.weight, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "reference", "said"),
    [
        ("mdpo", None, "expected a reference"),
        ("dro_v", REFERENCE, "also reads a value network"),
        ("pmpo", REFERENCE, "KL over the whole vocabulary"),
    ],
)
def test_what_cannot_be_weighed_is_refused(name: str, reference: Policy | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        list(weigh(METHODS[name](), POLICY, reference, groups(), by_return))
    with pytest.raises(ValueError, match="got none"):
        list(weigh(METHODS["mdpo"](), POLICY, REFERENCE, groups()[1:2], by_return))
    with pytest.raises(ExampleError):
        token_weights(METHODS["sft"](), POLICY, None, [Example((groups()[3][0],))])


@pytest.mark.parametrize(
    "forged",
    [
        "text", {"weight": [0.0, 0.0]}, {"log_ratio": [0.0], "weight": [0.0]},
        {"log_ratio": ["<b>", 0.0], "weight": [0.0, 0.0]}, {"log_ratio": [0.0, 0.0], "weight": [None, 0.0]},
        {"log_ratio": [float("inf"), 0.0], "weight": [0.0, 0.0]}, {"log_ratio": [0.0, 10**400], "weight": [0.0, 0.0]},
        {"log_ratio": [True, 0.0], "weight": [0.0, 0.0]},
    ],
)  # fmt: skip
def test_what_an_environment_puts_there_is_not_taken_for_numbers(forged: Any) -> None:
    assert TrainedOn.of(turn([1], [2, 3], info={KEY: forged})) is None


def test_a_store_is_weighed_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, out = tmp_path / "s.jsonl", tmp_path / "o.jsonl"
    with Store(store) as file:
        for group in groups():
            for row in group:
                file.append(row)
    for which, name in ((POLICY, "p"), (REFERENCE, "r")):
        which.save_pretrained(tmp_path / name)
    command = ["weigh", str(store), "--policy", str(tmp_path / "p"), "--method", "mdpo", "--out", str(out)]
    assert main(command) == 2
    assert "expected a reference" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "r", "s.jsonl"]
    assert main([*command, "--reference", str(tmp_path / "r"), "-m", "beta=0.5"]) == 0
    assert f"wrote {out}: 8 trajectories, of which mdpo takes 4" in capsys.readouterr().out
    note = next(iter(read(out))).info[KEY]
    assert (note["method"]["beta"], note["policy"], note["taken"]) == (0.5, POLICY.fingerprint(), True)
    assert main([*command, "--reference", str(tmp_path / "r")]) == 2
    assert "which exists" in capsys.readouterr().err
    assert main(["show", str(out), "--tokens", "--limit", "3"]) == 0
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines() if line.startswith(" tokens |")]
    assert re.fullmatch(r"4\(-1\.00 r[+-]\d\.\d\d w-0\.\d+\)", " ".join(lines[0][5:8]))
    assert "w+0." in " ".join(lines[2])
    assert "4(-1.00 r? w+0)" in " ".join(lines[4])
    assert "\u202e" not in text
    assert "\x1b" not in text
