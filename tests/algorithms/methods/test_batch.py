"""Examples become tensors: pairing, padding, mismatched rows, limits, and cutting by whole groups."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from polyturn.algorithms.batch import Batch, TooLongWarning, collate, drop_long
from polyturn.algorithms.pairing import Example, ExampleError, pairs_by_outcome, winners
from polyturn.algorithms.training.microbatch import shard, split
from polyturn.envs.preference import Preference, by_return, by_score
from polyturn.envs.trajectory import Group, Trajectory, Turn


def trajectory(seed: int, *actions: list[int], reward: float = 0.0, errors: tuple[bool, ...] = ()) -> Trajectory:
    """One turn an action; the context of turn h is (100 + seed, 50 + h)."""
    turns = tuple(
        Turn(
            observation="o",
            action="a",
            reward=reward if h == len(actions) - 1 else 0.0,
            context_ids=np.array([100 + seed, 50 + h], np.int32),
            action_ids=np.array(action, np.int32),
            logps=np.full(len(action), -0.5 - h, np.float32),
            info={"tool_error": errors[h]} if errors else {},
        )
        for h, action in enumerate(actions)
    )
    return Trajectory("Toy-v0", seed, turns, terminated=True)


def example(seed: int, *lengths: int) -> Example:
    return Example(tuple(trajectory(seed, list(range(1, n + 1))) for n in lengths))


def test_collate_lays_out_turns_padding_and_comparisons() -> None:
    """Row 0: context 2 + action 2 + context 2 + action 1 = 7 tokens; row 1: 2 + 1 = 3 tokens, padded by 4."""
    pair = Example((trajectory(0, [1, 2], [3]), trajectory(0, [4])), np.array([[0, 1]]), scores=np.array([1.0, 0.0]))
    batch = collate([pair, pair], pad_id=9)
    assert batch.ids[:2].tolist() == [[100, 50, 1, 2, 100, 51, 3], [100, 50, 4, 9, 9, 9, 9]]
    assert batch.turn_ids[:2].tolist() == [[-1, -1, 0, 0, -1, -1, 1], [-1, -1, 0, -1, -1, -1, -1]]
    assert batch.mask.sum(1).tolist() == [7, 3, 7, 3]
    assert batch.behaviour_logps[0].tolist() == [0, 0, -0.5, -0.5, 0, 0, -1.5]
    assert batch.pairs.tolist() == [[0, 1], [2, 3]]
    assert batch.probability.tolist() == [1, 1]
    assert batch.weight.tolist() == [1, 1]
    assert batch.scores.tolist() == [1, 0, 1, 0]
    assert batch.desirable.isnan().all()
    assert batch.group.tolist() == [0, 0, 1, 1]
    assert batch.tokens == 20
    assert (batch.ids.dtype, batch.turn_ids.dtype) == (torch.int64, torch.int16)


def test_mismatched_rows_join_a_prompt_with_anothers_continuation() -> None:
    """Seeds 0 and 1: each row gets its own first context and the other's action, turns kept."""
    batch = collate([example(0, 1), example(1, 2)], mismatched=True)
    assert batch.mismatched.tolist() == [False, False, True, True]
    assert batch.ids[2].tolist() == [100, 50, 1, 2]
    assert batch.turn_ids[2].tolist() == [-1, -1, 0, 0]
    assert batch.ids[3, :3].tolist() == [101, 50, 1]
    assert batch.group.tolist() == [0, 1, 0, 1]
    assert batch.desirable[2:].isnan().all()


def test_a_prompt_that_several_starts_share_is_not_mismatched_with_itself() -> None:
    """Starts 0 and 5 ask the same: both get the action of start 1, not each other's; it gets one of theirs."""
    again = replace(trajectory(0, [7]), seed=5)
    batch = collate([example(0, 1), Example((again,)), example(1, 2)], mismatched=True)
    first, second, third = batch.ids[3:].tolist()
    assert first[:4] == second[:4] == [100, 50, 1, 2]
    assert third[:2] == [101, 50]
    alike = collate([example(0, 1), Example((again,))], mismatched=True)  # one prompt in the whole step
    assert alike.ids[2, :3].tolist() == [100, 50, 7]


def test_mismatched_needs_two_starts() -> None:
    with pytest.raises(ValueError, match="at least two different prompts"):
        collate([example(0, 1, 2)], mismatched=True)


def test_invalid_trajectories_never_enter() -> None:
    broken = Trajectory("Toy-v0", 0, trajectory(0, [1]).turns, terminated=True, error="sandbox lost")
    with pytest.raises(ExampleError, match=r"trajectory 1 is invalid \(sandbox lost\)"):
        Example((trajectory(0, [1]), broken))
    unended = Trajectory("Toy-v0", 0, trajectory(0, [1]).turns)
    with pytest.raises(ExampleError, match="never ended"):
        Example((unended,))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"pairs": np.array([[0, 2]])}, "two different rows below 2"),
        ({"pairs": np.array([[1, 1]])}, "two different rows below 2"),
        ({"pairs": np.array([[0, 1]]), "probability": np.array([math.nan])}, r"numbers in \[0, 1\]"),
        ({"scores": np.array([1.0])}, r"expected \[2\]"),
    ],
)
def test_examples_refuse_what_does_not_fit(kwargs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ExampleError, match=message):
        Example((trajectory(0, [1]), trajectory(0, [2])), **kwargs)


def test_examples_refuse_different_starts_and_agents_without_tokens() -> None:
    with pytest.raises(ExampleError, match="identical starts"):
        Example((trajectory(0, [1]), trajectory(1, [2])))
    with pytest.raises(ExampleError, match="no action tokens in turn 0"):
        Example((Trajectory("Toy-v0", 0, (Turn("o", "a"),), terminated=True),))
    with pytest.raises(ExampleError, match="holds no turn"):
        Example((Trajectory("Toy-v0", 0, (), truncated=True),))


def test_examples_refuse_a_turn_without_tokens_among_others() -> None:
    """The model would read turn 2 as the answer to turn 0, and a method over turns would pay turn 2 for nothing."""
    whole = trajectory(0, [1], [2], [3])
    gap = Trajectory("Toy-v0", 0, (whole.turns[0], Turn("o", "a"), whole.turns[2]), terminated=True)
    with pytest.raises(ExampleError, match="trajectory 1 holds no action tokens in turn 1"):
        Example((whole, gap))


def test_long_trajectories_go_whole_with_their_comparisons_and_are_counted() -> None:
    """Lengths 3, 12, 4, 5 and limit 6: row 1 goes, and with it the pair (0, 1) and row 0; (2, 3) stays as (0, 1)."""
    rows = tuple(trajectory(0, list(range(n))) for n in (1, 10, 2, 3))
    whole = Example(rows, np.array([[0, 1], [2, 3]]), probability=np.array([0.9, 0.8]))
    lost = Example(rows[:2], np.array([[0, 1]]))
    with pytest.warns(TooLongWarning, match="left out 4 of 6 trajectories and 1 of 2 examples"):
        kept = drop_long([whole, lost], 6)
    assert len(kept) == 1
    assert [t.turns[0].action_ids.tolist() for t in kept[0].trajectories] == [[0, 1], [0, 1, 2]]
    assert kept[0].pairs.tolist() == [[0, 1]]
    assert kept[0].probability.tolist() == [np.float32(0.8)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(drop_long([whole, lost], 12)) == 2


def test_pairs_come_from_the_generator_and_leave_out_ties_errors_and_invalid_members() -> None:
    rng = np.random.default_rng(0)
    members = [
        trajectory(0, [1], reward=1.0),
        trajectory(0, [2], [3], reward=1.0, errors=(True, False)),  # the last thing it saw was an error
        trajectory(0, [2], [3], [4], reward=1.0, errors=(True, False, False)),  # an error, but put right
        trajectory(0, [4]),
        Trajectory("Toy-v0", 0, trajectory(0, [5]).turns, terminated=True, error="lost"),
    ]
    group = Group(tuple(members))
    preference = by_return(group)
    every = pairs_by_outcome(group, preference, rng, pairs_per_group=None)
    assert every.tolist() == [[0, 3], [2, 3]]
    with_errors = pairs_by_outcome(group, preference, rng, pairs_per_group=None, drop_error_winners=False)
    assert with_errors.tolist() == [[0, 3], [1, 3], [2, 3]]
    one = [pairs_by_outcome(group, preference, np.random.default_rng(s)).tolist() for s in range(20)]
    assert {len(p) for p in one} == {1}
    assert {p[0][0] for p in one} == {0, 2}
    assert one[3] == pairs_by_outcome(group, preference, np.random.default_rng(3)).tolist()
    with pytest.raises(ValueError, match="over 5 members, got one over 2"):
        pairs_by_outcome(group, by_score(np.zeros(2)), rng)


def test_a_preference_for_an_invalid_member_is_not_followed() -> None:
    lost = Trajectory("Toy-v0", 0, trajectory(0, [5]).turns, terminated=True, error="lost")
    group = Group((lost, trajectory(0, [1])))
    preference = Preference(np.array([[0.5, 1.0], [0.0, 0.5]]), "judge")
    rng = np.random.default_rng(0)
    assert len(pairs_by_outcome(group, preference, rng)) == 0
    assert winners(group, preference, rng, count=None, above=None).tolist() == []


def test_winners_by_win_rate_and_by_score() -> None:
    """Win rates of scores 2, 1, 2 are 3/4, 0, 3/4; with `above`, a group that is right throughout wins throughout."""
    rng = np.random.default_rng(0)
    group = Group(tuple(trajectory(0, [n], reward=r) for n, r in ((1, 2.0), (2, 1.0), (3, 2.0))))
    preference = by_return(group)
    assert winners(group, preference, rng, count=None, above=None).tolist() == [0, 2]
    assert winners(group, preference, rng, count=None, above=0.0).tolist() == [0, 1, 2]
    assert len(winners(group, preference, rng, count=1, above=0.0)) == 1
    tied = by_score(np.ones(3))
    assert winners(group, tied, rng, count=None, above=None).tolist() == []


def test_select_keeps_pairs_whose_rows_stay_and_drops_empty_columns() -> None:
    pair = Example((trajectory(0, [1, 2, 3, 4]), trajectory(0, [4])), np.array([[0, 1]]))
    batch = collate([pair, example(1, 2)])
    some = batch.select(torch.tensor([2, 1, 0]))
    assert some.pairs.tolist() == [[2, 1]]
    short = batch.select(torch.tensor([False, True, True]))
    assert short.pairs.tolist() == []
    assert short.ids.shape == (2, 4)
    assert batch.select(torch.tensor([0, 1])).pairs.tolist() == [[0, 1]]  # row 0 keeps its place


def test_select_takes_with_a_row_all_that_belongs_to_it() -> None:
    """Row 1 of the first example and the row of the second, in the other order."""
    two = Example((trajectory(0, [1, 2, 3]), trajectory(0, [4], [5])), scores=[0.0, 1.0], desirable=[0.0, 1.0])  # type: ignore[arg-type]
    batch = collate([two, replace(example(1, 2), scores=np.array([2.0], np.float32))])
    outputs = {"values": torch.arange(batch.ids.numel()).reshape(batch.ids.shape)}
    batch = replace(batch, outputs=outputs, statistics={"kl": torch.tensor(0.5)})
    some = batch.select(torch.tensor([2, 1]))
    assert some.scores.tolist() == [2.0, 1.0]
    assert some.desirable[1] == 1.0
    assert some.group.tolist() == [1, 0]
    assert some.mismatched.tolist() == [False, False]
    assert some.rewards.shape == (2, 2)
    assert some.turn_ids.tolist() == batch.turn_ids[[2, 1]].tolist()
    assert some.behaviour_logps.tolist() == batch.behaviour_logps[[2, 1]].tolist()
    assert some.outputs["values"].tolist() == outputs["values"][[2, 1]].tolist()
    assert some.statistics == {"kl": 0.5}
    nothing = batch.select(torch.zeros(3, dtype=torch.bool))
    assert (nothing.ids.shape, nothing.outputs["values"].shape, nothing.pairs.shape) == ((0, 0), (0, 0), (0, 2))


def test_every_tensor_of_a_batch_has_its_documented_type_and_moves_to_a_device() -> None:
    whole = {"ids": torch.int64, "turn_ids": torch.int16, "pairs": torch.int64, "group": torch.int64}
    real = dict.fromkeys(("behaviour_logps", "probability", "weight", "scores", "rewards", "desirable"), torch.float32)
    expected = {**whole, **real, "mask": torch.bool, "mismatched": torch.bool}
    for mismatched in (False, True):
        batch = collate([example(0, 1, 3), example(1, 2)], mismatched=mismatched)
        assert {name: getattr(batch, name).dtype for name in expected} == expected
    values = {"values": torch.zeros(batch.ids.shape)}
    moved = replace(batch, outputs=values, statistics={"kl": torch.tensor(0.5)}).to("meta")
    assert {getattr(moved, name).device.type for name in expected} == {"meta"}
    assert {name: getattr(moved, name).shape for name in expected} == {
        name: getattr(batch, name).shape for name in expected
    }
    assert [each["values" if "values" in each else "kl"].is_meta for each in (moved.outputs, moved.statistics)] == [
        True,
        True,
    ]


def test_what_is_unknown_in_a_batch_is_nan_and_padding_is_zero() -> None:
    """An action without recorded log-probabilities; scores and labels of mismatched rows, which have none."""
    silent = trajectory(0, [1, 2], [3], reward=5.0)
    silent = replace(silent, turns=(replace(silent.turns[0], logps=[]), silent.turns[1]))  # type: ignore[arg-type]
    scored = replace(example(1, 1), scores=np.array([7.0], np.float32), desirable=np.array([1.0], np.float32))
    batch = collate([Example((silent,)), scored], mismatched=True)
    logps = batch.behaviour_logps[0]
    assert logps[[0, 1, 4, 5]].tolist() == [0.0] * 4
    assert logps[[2, 3]].isnan().all()
    assert logps[6] == -1.5
    assert batch.scores.isnan().tolist() == batch.desirable.isnan().tolist() == [True, False, True, True]
    assert batch.rewards.tolist() == [[0.0, 5.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert batch.ids[1, 3:].tolist() == [0] * 4
    joined = batch.behaviour_logps[2]  # start 0's prompt with start 1's action: nothing sampled it
    assert joined[:2].tolist() == [0.0, 0.0]
    assert joined[2].isnan()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=9),
    st.integers(1, 5),
    st.one_of(st.none(), st.integers(1, 80)),
)
def test_cutting_keeps_every_row_once_groups_whole_and_the_budget(
    lengths: list[list[int]], pieces: int, tokens: int | None
) -> None:
    batch = collate([example(seed, *rows) for seed, rows in enumerate(lengths)])
    micros = split(batch, pieces=pieces, tokens=tokens)
    for parts in (shard(batch, pieces), [micro.batch for micro in micros]):
        owners = [set(part.group.tolist()) for part in parts]
        assert sum(len(part) for part in parts) == len(batch)
        assert sum(part.tokens for part in parts) == batch.tokens
        assert sum(len(owner) for owner in owners) == len(set().union(*owners)) == len(lengths)
    for micro in micros:
        rows = torch.cat(micro.pieces)
        assert sorted(rows.tolist()) == list(range(len(micro.batch)))
        for piece in micro.pieces:
            read = len(micro.batch.select(piece).rows().forest)
            assert tokens is None or read <= tokens or len({*map(tuple, micro.batch.ids[piece].tolist())}) == 1
        if len(micro.pieces) > 1:  # only a group that alone is too large is read in pieces
            assert len(set(micro.batch.group.tolist())) == 1


def test_split_makes_about_as_many_pieces_as_asked_of_about_the_same_cost() -> None:
    """What costs is distinct tokens; groups are not parted, so parts are only about equal."""
    batch = collate([example(seed, n, n) for seed, n in enumerate([2, 20, 3, 19, 2, 21, 3, 20])])
    parts = [micro.batch for micro in split(batch, pieces=4)]
    assert 3 <= len(parts) <= 4
    costs = [len(part.rows().forest) for part in parts]
    assert max(costs) <= 2 * sum(costs) / len(costs)
    assert split(batch.select(torch.zeros(len(batch), dtype=torch.bool))) == []


def test_a_batch_is_saved_and_read_back_without_loss(tmp_path: Path) -> None:
    batch = collate([example(0, 1, 3), example(1, 2)], mismatched=True).with_statistics({"kl": torch.tensor(0.25)})
    batch.save(tmp_path / "step")
    again = Batch.load(tmp_path / "step")
    assert again.statistics["kl"] == 0.25
    for name in ("ids", "mask", "turn_ids", "pairs", "group", "mismatched"):
        assert torch.equal(getattr(again, name), getattr(batch, name))
    torch.testing.assert_close(again.behaviour_logps, batch.behaviour_logps, equal_nan=True)
    text = json.loads((tmp_path / "step.json").read_text("utf-8"))
    assert text["lengths"] == [3, 5, 4, 4, 4, 3]
    assert text["group"] == [0, 0, 1, 0, 0, 1]
    assert text["pairs"] == []
    assert text["statistics.kl"] == 0.25
    assert "ids" not in text
    assert len((tmp_path / "step.json").read_text("utf-8").splitlines()) > len(text)  # to be read: a line a number
