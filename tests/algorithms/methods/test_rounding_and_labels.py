"""Rounding is no advantage, labels mean one thing, no cut into micro-batches changes what is learned."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from polyturn.agents import Sampling, TransformerAgent, collect
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms import MKTO, PMPO, RAFT, SFT, Example, ExampleError, collate, minibatches, train
from polyturn.algorithms.estimators import group_normalised, leave_one_out, whiten
from polyturn.algorithms.methods import table
from polyturn.algorithms.methods.unpaired import standardised
from polyturn.algorithms.pairing import usable_members, winners
from polyturn.algorithms.training.options import TrainOptions
from polyturn.envs.preference import Preference, by_return
from polyturn.envs.trajectory import Group, Trajectory, Turn

torch.set_num_threads(1)


def played(seed: int, *rewards: float, member: int = 0, ids: tuple[int, ...] = (5, 6)) -> Trajectory:
    tokens, logps = np.array(ids, np.int32), np.zeros(len(ids), np.float32)
    turns = tuple(
        Turn("o", "a", reward, np.array([100 + seed, 50 + h], np.int32), tokens, logps)
        for h, reward in enumerate(rewards)
    )
    return Trajectory("Toy-v0", seed, turns, member=member, terminated=True)


def policy(seed: int = 0) -> Policy:
    return tiny_policy(["x"], seed=seed, hidden=32, layers=2, heads=2, context=64)


@pytest.mark.parametrize("name", [name for name in table.METHODS if name not in ("sft", "distillation")])
def test_no_method_learns_from_the_order_of_equal_rewards(name: str) -> None:
    """Every advantage, label and margin is what it is for identical rewards."""
    rng = np.random.default_rng(0)

    def taken(second: tuple[float, ...]) -> Example | None:
        members = Group((played(0, 0.1, 0.2, 0.3), played(0, *second, member=1, ids=(7, 8, 9))))
        example: Example | None = table.make(name).examples(members, by_return(members), rng)
        return example

    same, turned = taken((0.1, 0.2, 0.3)), taken((0.3, 0.2, 0.1))
    assert (same is None) == (turned is None)
    if same is not None and turned is not None:
        assert np.array_equal(same.pairs, turned.pairs)
        for part in ("probability", "scores", "desirable"):
            assert np.array_equal(getattr(same, part), getattr(turned, part), equal_nan=True)


@pytest.mark.parametrize("size", [1.0, 0.3, 1e-4, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalisation_does_not_blow_rounding_up(size: float, dtype: torch.dtype) -> None:
    base = torch.full((4,), size, dtype=dtype)
    noisy = base.clone()
    noisy[1] = torch.nextafter(noisy[1], torch.tensor(torch.inf, dtype=dtype))
    noisy[2] = torch.nextafter(noisy[2], torch.tensor(-torch.inf, dtype=dtype))
    group = torch.zeros(4, dtype=torch.int64)
    for made in (group_normalised(noisy, group), leave_one_out(noisy, group), whiten(noisy)):
        assert made.tolist() == [0.0] * 4
    real = base * torch.tensor([1.0, 1.001, 1.0, 1.0], dtype=dtype)
    assert float(group_normalised(real, group)[1]) > 1.0 or size < 1e-2
    assert float(whiten(real)[1]) > 1.0


def test_scores_that_differ_only_by_rounding_cannot_be_standardised() -> None:
    noisy = np.nextafter(np.float32(0.3), np.float32(1.0))
    with pytest.raises(ValueError, match="scores that differ"):
        standardised([Example((played(i, 0.0),), scores=np.array([s])) for i, s in enumerate((0.3, noisy))])


def test_winners_by_win_rate_do_not_depend_on_the_order_of_a_sum() -> None:
    """Both leaders beat three others with .7, .8 and .9: as sums in two orders these differ in the last bit."""
    matrix = np.full((5, 5), np.nan)
    matrix[0, 2:], matrix[1, 2:] = (0.9, 0.8, 0.7), (0.7, 0.8, 0.9)
    members = Group(tuple(played(0, 0.0, member=m) for m in range(5)))
    found = winners(members, Preference(matrix, "judge"), np.random.default_rng(0), count=None, above=None)
    assert found.tolist() == [0, 1]


def test_a_bound_on_scores_is_not_passed_by_rounding() -> None:
    members = Group((played(0, 0.1, 0.2, -0.3), played(0, 0.3 - 0.3, member=1), played(0, 0.5, member=2)))
    rng = np.random.default_rng(0)
    raft, pmpo = (
        RAFT().examples(members, by_return(members), rng),
        PMPO(above=0.0).examples(members, by_return(members), rng),
    )
    assert raft is not None
    assert [row.member for row in raft.trajectories] == [2]
    assert pmpo is not None
    assert pmpo.desirable.tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("label", [-1.0, 0.5, 2.0, 1e-3, np.inf])
def test_labels_are_desirable_undesirable_or_unknown(label: float) -> None:
    with pytest.raises(ExampleError, match=r"desirable: expected 1 .* 0 .* or nan"):
        Example((played(0, 1.0),), desirable=np.array([label], np.float32))
    batch = collate([Example((played(0, 1.0),), desirable=np.array([1.0]))])
    batch.desirable.fill_(label)
    own = policy()
    with pytest.raises(ValueError, match=r"desirable: expected 1"):
        train(SFT(), own, None, [batch], steps=1, options=TrainOptions(cpu=True), progress=False)
    assert Example(
        (played(0, 1.0), played(0, 0.0, member=1)), desirable=np.array([True, False])
    ).desirable.tolist() == [1, 0]


def mixed() -> list[Example]:
    """Pairs, demonstrations, labels and soft judgements in one step."""
    pair = [
        Example((played(i, 1.0, ids=(20, 21)), played(i, 0.0, member=1, ids=(30,) * (i + 1))), np.array([[0, 1]]))
        for i in range(3)
    ]
    demo = [Example((played(10 + i, 1.0, ids=(40 + i,) * (i + 2)),)) for i in range(3)]
    label = [Example((played(20 + i, 1.0, ids=(60, 61)),), desirable=np.array([i % 2])) for i in range(2)]
    soft = [
        Example(
            (played(30, 1.0, ids=(70,)), played(30, 0.0, member=1, ids=(71, 72))), np.array([[0, 1]]), np.array([0.2])
        )
    ]
    return [*pair, *demo, *label, *soft]


@pytest.mark.parametrize("cut", [{"accumulate": 3}, {"accumulate": 9}, {"tokens_per_micro_batch": 8}], ids=str)
def test_what_imitation_learns_from_mixed_examples_does_not_depend_on_micro_batches(cut: dict[str, Any]) -> None:
    def trained(**options: Any) -> tuple[float, torch.Tensor]:
        own = policy()
        made = TrainOptions(lr=1e-2, cpu=True, optimizer=_sgd, clip=None, **options)
        result = train(SFT(), own, None, [mixed()], steps=1, options=made, progress=False)
        return result.history[-1]["loss"], torch.cat([p.detach().flatten() for p in own.model.parameters()])

    whole, parts = trained(), trained(**cut)
    assert parts[0] == pytest.approx(whole[0], rel=1e-6)
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-5, atol=1e-7)


def _sgd(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups)


def test_imitation_takes_winners_and_demonstrations_of_one_step() -> None:
    """Of 11 rows: 3 winners, 3 demonstrations, 1 desirable, and of the soft pair the second, which is the likelier."""
    batch = collate(mixed())
    loss = SFT().loss(torch.full(batch.ids.shape, -1.0), None, batch)
    assert loss.count is not None
    assert loss.count.tolist() == [2, 2, 2, 2, 3, 4, 2, 2]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_kto_takes_steps_of_one_row_and_of_one_start(size: int) -> None:
    """Its reference point needs another prompt's continuation, which a later step has."""
    made = [Example((played(i, 1.0, ids=(20 + i,) * (1 + i % 3)),), desirable=np.array([i % 2])) for i in range(4)]
    own = policy()
    reference = policy(seed=3).copy()
    options = TrainOptions(lr=1e-3, cpu=True)
    result = train(MKTO(), own, reference, minibatches(made, size, seed=0), steps=6, options=options, progress=False)
    assert all(np.isfinite(record["loss"]) and "z0" in record for record in result.history[-6:])
    again = train(MKTO(), policy(), reference, [[one] for one in made], steps=4, options=options, progress=False)
    assert len([record for record in again.history if "loss" in record]) == 4


def test_mismatched_rows_come_only_from_the_partners_where_there_is_one_start() -> None:
    own, other = Example((played(0, 1.0, ids=(20, 21)),)), Example((played(1, 1.0, ids=(30, 31, 32)),))
    batch = collate([own], mismatched=True, partners=[other])
    assert batch.mismatched.tolist() == [False, True]
    assert batch.ids[1][batch.mask[1]].tolist() == [100, 50, 30, 31, 32]


def test_kto_says_what_is_missing_where_all_data_has_one_start() -> None:
    made = [Example((played(0, 1.0),), desirable=np.array([1.0]))]
    with pytest.raises(ValueError, match="at least two different prompts"):
        train(
            MKTO(),
            policy(),
            policy().copy(),
            minibatches(made, 1, seed=0),
            steps=1,
            options=TrainOptions(cpu=True),
            progress=False,
        )


@pytest.mark.parametrize("name", list(table.METHODS))
def test_a_first_prompt_that_leaves_no_room_teaches_nothing(name: str) -> None:
    """The loop of the README: all 16 methods leave such groups out, and members beside usable ones too."""
    agent = TransformerAgent(policy(), sampling=Sampling(max_new_tokens=4), slots=4, max_tokens=12)
    groups = collect(agent, "polyturn/Guess-v0", groups=2, group_size=3, seed=0, progress=False)
    assert all(member.valid and not member.turns for group in groups for member in group)
    method, rng = table.make(name), np.random.default_rng(0)
    assert [method.examples(group, by_return(group), rng) for group in groups] == [None, None]
    silent = Trajectory("Toy-v0", 0, (), member=2, truncated=True)
    members = Group((played(0, 1.0), played(0, 0.0, member=1, ids=(7, 8)), silent))
    example = method.examples(members, by_return(members), rng)
    without = method.examples(
        Group(members.trajectories[:2]), by_return(Group(members.trajectories[:2])), np.random.default_rng(0)
    )
    assert usable_members(members).tolist() == [True, True, False]
    assert example is not None
    assert without is not None
    assert all(row.turns for row in example.trajectories)
    assert np.array_equal(example.scores, without.scores, equal_nan=True)


def test_no_examples_at_all_are_refused_with_the_reasons() -> None:
    with pytest.raises(ValueError, match=r"minibatches: expected at least one example.*max_tokens"):
        minibatches([], 4, seed=0)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_scores_that_are_not_finite_do_not_become_ties(value: float) -> None:
    """They make advantages that are not finite, which training refuses, and not zeros, which it would pass over."""
    scores, group = torch.tensor([1.0, value, 2.0]), torch.zeros(3, dtype=torch.int64)
    for made in (group_normalised(scores, group), leave_one_out(scores, group), whiten(scores)):
        assert not torch.isfinite(made).all()
