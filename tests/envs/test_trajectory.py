"""Turns, trajectories and groups: nothing changes silently, and only comparable trajectories form a group."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from polyturn.envs.trajectory import Group, GroupError, Trajectory, Turn, group_by_start


def turn(name: str = "a", **fields: Any) -> Turn:
    return Turn(f"observe {name}", f"act {name}", **fields)


def trajectory(seed: int = 0, turns: tuple[Turn, ...] = (), **fields: Any) -> Trajectory:
    return Trajectory(**{"env_id": "polyturn/Guess-v0", "seed": seed, "turns": turns, "terminated": True} | fields)


# Turn


def test_arrays_take_their_documented_types() -> None:
    made = turn(context_ids=[1, 2], action_ids=np.array([3], np.int64), logps=np.array([-0.5], np.float64))
    assert (made.context_ids.dtype, made.action_ids.dtype, made.logps.dtype) == (np.int32, np.int32, np.float32)
    assert turn().logps.shape == (0,)


def test_a_turn_keeps_no_memory_that_its_maker_can_write_to() -> None:
    ids = np.array([1, 2], np.int32)
    made = turn(action_ids=ids)
    ids[0] = 99  # the caller's array stays the caller's, still writeable
    assert made.action_ids.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        made.action_ids[0] = 5


def test_every_int32_is_a_token_in_any_integer_type() -> None:
    edges = [-(2**31), -1, 0, 2**31 - 1]
    for kind in (np.int32, np.int64, object):
        ids = np.array(edges, kind) if kind is not object else edges
        made = turn(context_ids=ids, action_ids=ids)
        assert made.context_ids.tolist() == made.action_ids.tolist() == edges
        assert made.context_ids.dtype == np.int32
    assert turn(action_ids=np.array([7, 2**31 - 1], np.uint32)).action_ids.tolist() == [7, 2**31 - 1]
    with pytest.raises(ValueError, match="fit int32, got 0 to 4294967295"):
        turn(action_ids=np.array([0, 2**32 - 1], np.uint32))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"action_ids": [[1]]}, r"action_ids: expected one dimension, got shape \(1, 1\)"),
        ({"action_ids": np.array([2**31])}, "fit int32"),
        ({"context_ids": np.array([-(2**31) - 1])}, "fit int32"),
        ({"action_ids": [1.0]}, "whole numbers, got float64"),
        ({"action_ids": [True]}, "whole numbers, got bool"),
        ({"action_ids": ["7"]}, "action_ids: expected whole numbers"),
        ({"action_ids": [1], "logps": ["x"]}, "Turn.logps: expected real numbers"),
        ({"action_ids": [1], "logps": [[0.5]]}, "Turn.logps: expected one dimension"),
        ({"action_ids": [1, 2], "logps": [-0.1]}, r"one per action token \(2\) or none, got 1"),
        ({"logps": [-0.1]}, r"one per action token \(0\) or none, got 1"),
    ],
)
def test_arrays_that_would_change_silently_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        turn(**fields)


@pytest.mark.parametrize("name", ["observation", "action"])
def test_text_must_be_text(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected text"):
        Turn(**{"observation": "o", "action": "a"} | {name: b"bytes"})


def test_a_numpy_reward_becomes_a_plain_float() -> None:
    made = turn(reward=np.float32(0.5))
    assert type(made.reward) is float
    json.dumps(made.to_json())


@pytest.mark.parametrize(
    "change",
    [
        {"observation": "x"},
        {"action": "x"},
        {"reward": 1.0},
        {"reward": -0.0},
        {"context_ids": [9]},
        {"action_ids": [3, 5]},
        {"logps": [-0.1, -0.3]},
        {"info": {"k": 2}},
    ],
)
def test_turns_are_equal_only_if_every_field_is(change: dict[str, Any]) -> None:
    base = turn(reward=0.0, context_ids=[1], action_ids=[3, 4], logps=[-0.1, -0.2], info={"k": 1})
    assert base == dataclasses.replace(base)
    assert base != dataclasses.replace(base, **change)
    assert base != "something else"


def test_nan_equals_nan_so_that_a_copy_equals_its_original() -> None:
    base = turn(reward=float("nan"), action_ids=[1], logps=[float("nan")], info={"x": float("nan")})
    assert base == Turn.from_json(base.to_json())


@given(
    st.text(st.characters()),
    st.floats(),
    st.lists(st.tuples(st.integers(-(2**31), 2**31 - 1), st.floats(width=32))),
    st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.lists(st.text())),
)
def test_turn_json_is_lossless(text: str, reward: float, tokens: list[tuple[int, float]], info: dict[str, Any]) -> None:
    made = Turn(text, text, reward, [i for i, _ in tokens], [i for i, _ in tokens], [p for _, p in tokens], info)
    assert Turn.from_json(made.to_json()) == made


def test_a_broken_turn_is_named() -> None:
    with pytest.raises(ValueError, match=r"Turn: unknown fields \['rewards'\]"):
        Turn.from_json({"observation": "o", "action": "a", "rewards": 1.0})
    with pytest.raises(ValueError, match=r"Turn: missing fields \['action'\]"):
        Turn.from_json({"observation": "o"})


# Trajectory


def test_validity() -> None:
    """Ended and no error; an episode still running, or one that failed after its end, may not be learned from."""
    assert trajectory().valid
    assert trajectory(terminated=False, truncated=True).valid
    assert not trajectory(terminated=False).valid
    assert not trajectory(error="SandboxLost").valid
    assert not trajectory(error="").valid


def test_total_reward_is_the_undiscounted_sum() -> None:
    assert trajectory(turns=(turn(reward=1.0), turn(reward=-0.25))).total_reward == 0.75
    assert trajectory().total_reward == 0.0


def test_tokens_have_the_turn_that_wrote_them() -> None:
    """Turn 0: context 1 2, action 3; turn 1: context 4, action 5 6. Owners: -1 -1 0 -1 1 1."""
    ids, owner = trajectory(
        turns=(turn(context_ids=[1, 2], action_ids=[3]), turn(context_ids=[4], action_ids=[5, 6]))
    ).tokens
    assert ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert owner.tolist() == [-1, -1, 0, -1, 1, 1]
    assert (ids.dtype, owner.dtype) == (np.int32, np.int16)


def test_tokens_of_nothing_are_empty() -> None:
    for made in (trajectory(), trajectory(turns=(turn(),))):
        ids, owner = made.tokens
        assert (ids.shape, owner.shape, ids.dtype, owner.dtype) == ((0,), (0,), np.int32, np.int16)


def test_messages_alternate() -> None:
    assert trajectory(turns=(turn("a"), turn("b"))).messages() == [
        {"role": "user", "content": "observe a"},
        {"role": "assistant", "content": "act a"},
        {"role": "user", "content": "observe b"},
        {"role": "assistant", "content": "act b"},
    ]


def test_trajectory_json_is_lossless() -> None:
    made = trajectory(
        7, (turn(action_ids=[1], logps=[-0.1]),), task_id="t", agent="x", policy_version="v", member=2, truncated=True,
        final_observation="end", error="e", env_options={"o": [1]}, info={"i": None},
    )  # fmt: skip
    assert Trajectory.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_broken_trajectories_are_named() -> None:
    data = trajectory().to_json()
    with pytest.raises(ValueError, match=r"Trajectory: unknown fields \['sead'\]"):
        Trajectory.from_json(data | {"sead": 1})
    del data["seed"]
    with pytest.raises(ValueError, match=r"Trajectory: missing fields \['seed'\]"):
        Trajectory.from_json(data)


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"turns": (turn("z"),)}, {"member": 1}, {"info": {"x": 1}}, {"error": ""}]
)
def test_trajectories_are_equal_only_if_every_field_is(change: dict[str, Any]) -> None:
    base = trajectory(turns=(turn(),), info={})
    assert base == dataclasses.replace(base)
    assert base != dataclasses.replace(base, **change)
    assert base != 1


def test_sequences_become_tuples_and_nan_in_info_equals_nan() -> None:
    base = trajectory(turns=[turn()], info={"x": float("nan")})  # type: ignore[arg-type]
    assert isinstance(base.turns, tuple)
    assert isinstance(Group([base]).trajectories, tuple)  # type: ignore[arg-type]
    assert base == trajectory(turns=(turn(),), info={"x": float("nan")})


def test_options_that_are_no_json_value_are_compared_by_their_text() -> None:
    first, same, other = (trajectory(env_options={"range": value}) for value in (range(3), range(3), range(4)))
    assert first.start == same.start != other.start


def test_numpy_scalars_become_plain() -> None:
    made = trajectory(np.int64(5), terminated=np.bool_(True), member=np.int32(1))
    assert json.loads(json.dumps(made.to_json()))["seed"] == 5
    assert made.terminated is True
    with pytest.raises(TypeError):
        trajectory(1.5)


def test_start_does_not_depend_on_the_order_of_options() -> None:
    assert trajectory(env_options={"a": 1, "b": 2}).start == trajectory(env_options={"b": 2, "a": 1}).start
    assert trajectory(env_options={"a": 1}).start != trajectory(env_options={"a": "1"}).start


# Group


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"env_id": "other"}, "environment 'polyturn/Guess-v0' and 'other'"),
        ({"seed": 1}, "seed 0 and 1"),
        ({"task_id": "t"}, "task '' and 't'"),
        ({"env_options": {"turns": 3}}, "got environment options"),
    ],
)
def test_a_group_refuses_other_starts(change: dict[str, Any], named: str) -> None:
    base = trajectory()
    with pytest.raises(GroupError, match=named):
        Group((base, dataclasses.replace(base, **change)))


def test_a_group_allows_fields_that_do_not_change_the_start() -> None:
    group = Group((trajectory(member=0, agent="a"), trajectory(member=1, policy_version="v", turns=(turn(),))))
    assert len(group) == 2
    assert [member.member for member in group] == [0, 1]
    assert group[1].policy_version == "v"


def test_an_empty_group_is_refused() -> None:
    with pytest.raises(GroupError, match="at least one"):
        Group(())


def test_a_branch_shares_its_first_turns() -> None:
    a, b, c = turn("a"), turn("b"), turn("c")
    assert len(Group((trajectory(turns=(a, b)), trajectory(turns=(a, c))), branched_at=1)) == 2
    assert Group((trajectory(turns=(a,)), trajectory(turns=(b,))), branched_at=0).branched_at == 0
    for turns, at in [((a, c), 2), ((a,), 2), ((b, b), 1)]:
        with pytest.raises(GroupError, match=f"share their first {at} turns"):
            Group((trajectory(turns=(a, b)), trajectory(turns=turns)), branched_at=at)
    with pytest.raises(GroupError, match="branched_at >= 0"):
        Group((trajectory(turns=(a, b)), trajectory(turns=(a, c))), branched_at=-1)


def test_valid_members() -> None:
    good, bad = trajectory(turns=(turn(),)), trajectory(turns=(turn(),), error="x")
    kept = Group((bad, good), branched_at=1).valid
    assert kept is not None
    assert list(kept) == [good]
    assert kept.branched_at == 1
    assert Group((bad,)).valid is None


def test_group_by_start_keeps_the_order_of_appearance() -> None:
    stream = iter([trajectory(2), trajectory(1), trajectory(2, member=1)])
    assert [[(m.seed, m.member) for m in group] for group in group_by_start(stream)] == [[(2, 0), (2, 1)], [(1, 0)]]


def test_group_by_start_puts_trajectories_with_a_shared_prefix_into_groups_of_their_own() -> None:
    """Same start: two played from it, two that share turn a, two that share turn b; one more shares two turns."""
    a, b, c = turn("a"), turn("b"), turn("c")

    def branch(member: int, turns: tuple[Turn, ...], shared: int) -> Trajectory:
        return trajectory(0, turns, member=member, info={"shared_prefix": {"turns": shared}})

    stream = [
        trajectory(0, (a, c), member=0),
        branch(1, (a, b), 1),
        branch(2, (b, b), 1),
        branch(3, (a, c), 1),
        trajectory(0, (b, c), member=4),
        branch(5, (b, c), 1),
        branch(6, (a, b, c), 2),
        trajectory(0, (c,), member=7, info={"shared_prefix": None}),
    ]
    found = [([m.member for m in group], group.branched_at) for group in group_by_start(stream)]
    assert found == [([0, 4, 7], None), ([1, 3], 1), ([2, 5], 1), ([6], 2)]


@pytest.mark.parametrize("starts", [[1], [2], [1, 2], [np.int64(1), 2]])
def test_segments_start_at_rising_turns(starts: list[int]) -> None:
    made = trajectory(turns=(turn("a"), turn("b"), turn("c")), segment_starts=starts)
    assert made.segment_starts == tuple(starts)
    assert {type(start) for start in made.segment_starts} == {int}


@pytest.mark.parametrize("starts", [[0], [3], [-1], [1, 1], [2, 1]])
def test_segments_that_are_empty_or_out_of_order_are_refused(starts: list[int]) -> None:
    with pytest.raises(ValueError, match="rising indices of turns from 1 to 2"):
        trajectory(turns=(turn("a"), turn("b"), turn("c")), segment_starts=starts)
    with pytest.raises(ValueError, match="rising indices"):
        trajectory(turns=(turn("a"),), segment_starts=[1])
