"""Which members of a group each method learns from, and what an example refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from polyturn.algorithms import (
    DROV,
    GRPO,
    MDPO,
    MKTO,
    MTPO,
    PMPO,
    PPO,
    REINFORCE,
    RLOO,
    RWR,
    SFT,
    BestOfN,
    Distillation,
    Example,
    ExampleError,
    NashPG,
    pairs_by_outcome,
    standardised,
)
from polyturn.algorithms.pairing import (
    against_opponents,
    compare,
    ends_in_error,
    judged_pairs,
    own_members,
    unary,
    winners,
)
from polyturn.envs import Group, Preference, Trajectory, Turn, by_return, by_score

NAN = math.nan


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def member(token: int, reward: float = 0.0, **fields: Any) -> Trajectory:
    """One turn with one action token."""
    turn = Turn("o", "a", reward, np.array([9], np.int32), np.array([token], np.int32), np.zeros(1, np.float32))
    return Trajectory(**{"env_id": "Toy-v0", "seed": 0, "turns": (turn,), "terminated": True} | fields)


def group(*rewards: float, **fields: Any) -> Group:
    """Members with these rewards; the first token of a member is its index."""
    return Group(tuple(member(index, reward, **fields) for index, reward in enumerate(rewards)))


def taken(example: Example | None) -> list[int]:
    """Indices, in their group, of the members that an example holds."""
    return [] if example is None else [int(row.turns[0].action_ids[0]) for row in example.trajectories]


def matrix(size: int, **known: float) -> Preference:
    """P(i beats j) by keys such as `p01`; all other pairs unasked."""
    values = np.full((size, size), NAN)
    for name, value in known.items():
        values[int(name[1]), int(name[2])] = value
    return Preference(values, "judge")


# ---- Example


@pytest.mark.parametrize("probability", [-0.01, 1.01, NAN, math.inf, -math.inf])
def test_an_example_refuses_a_probability_outside_zero_and_one(probability: float) -> None:
    rows = (member(0), member(1))
    for given in ([probability, 0.5], [0.5, probability]):
        with pytest.raises(ExampleError, match=r"probability: expected numbers in \[0, 1\]"):
            Example(rows, np.array([[0, 1], [1, 0]]), probability=np.array(given))
    for allowed in (0.0, 1.0):
        assert Example(rows, np.array([[0, 1]]), probability=np.array([allowed])).probability.tolist() == [allowed]


@pytest.mark.parametrize("pair", [[-1, 0], [0, -1], [0, 2], [2, 0], [1, 1]])
def test_an_example_refuses_pairs_of_rows_it_does_not_hold(pair: list[int]) -> None:
    with pytest.raises(ExampleError, match="two different rows below 2"):
        Example((member(0), member(1)), np.array([[0, 1], pair]))


def test_an_example_refuses_rows_that_cannot_be_learned_from() -> None:
    """The first row is good each time, so every row is looked at."""
    good = member(0)
    two = replace(good, turns=(*good.turns, Turn("o", "a")))
    for wrong, message in (
        (member(1, error="sandbox lost"), r"trajectory 1 is invalid \(sandbox lost\)"),
        (member(1, terminated=False), r"trajectory 1 is invalid \(it never ended\)"),
        (two, "trajectory 1 holds no action tokens in turn 1"),
        (member(1, turns=()), "trajectory 1 holds no turn"),
        (member(1, seed=5), "identical starts"),
    ):
        with pytest.raises(ExampleError, match=message):
            Example((good, wrong))
    with pytest.raises(ExampleError, match="at least one trajectory"):
        Example(())


def test_what_an_example_is_not_given_has_its_documented_default() -> None:
    made = Example((member(0), member(1)), np.array([[0, 1]]))
    assert (made.probability.tolist(), made.weight.tolist()) == ([1.0], [1.0])
    assert np.isnan(made.scores).tolist() == np.isnan(made.desirable).tolist() == [True, True]
    assert {array.dtype for array in (made.probability, made.weight, made.scores)} == {np.dtype(np.float32)}
    assert made.pairs.dtype == np.int64
    plain = Example((member(0),))
    assert (plain.pairs.shape, plain.probability.shape, plain.weight.shape) == ((0, 2), (0,), (0,))
    for name in ("probability", "weight"):
        with pytest.raises(ExampleError, match=rf"Example.{name}: expected \[1\], got shape \(2,\)"):
            Example((member(0), member(1)), np.array([[0, 1]]), **{name: np.ones(2)})
    for name in ("scores", "desirable"):
        with pytest.raises(ExampleError, match=rf"Example.{name}: expected \[2\], got shape \(1,\)"):
            Example((member(0), member(1)), **{name: np.ones(1)})


def test_an_example_holds_a_tuple_and_arrays_of_the_documented_types() -> None:
    given = {"probability": [1], "weight": np.ones(1), "scores": np.array([1, 2]), "desirable": [1, 0]}
    made = Example([member(0), member(1)], np.array([[0, 1]], np.int8), **given)  # type: ignore[arg-type]
    assert isinstance(made.trajectories, tuple)
    assert made.pairs.dtype == np.int64
    assert {getattr(made, name).dtype for name in given} == {np.dtype(np.float32)}
    with pytest.raises(ExampleError, match=r"got 0\.5; put"):
        Example((member(0), member(1)), desirable=np.array([1.0, 0.5], np.float32))
    with pytest.raises(ValueError, match=r"longer|shorter"):
        made.keep(np.array([True, True, True]))


def test_keeping_rows_of_an_example_keeps_what_belongs_to_them() -> None:
    """Rows 0, 2 and 3 of four; the pairs (3, 0) and (2, 3) stay, (1, 0) goes with row 1."""
    made = Example(
        tuple(member(index) for index in range(4)), np.array([[3, 0], [1, 0], [2, 3]]), probability=[0.9, 0.8, 0.7],
        weight=[1.0, 2.0, 3.0], scores=[0.0, 1.0, 2.0, 3.0], desirable=[1.0, 0.0, 1.0, 0.0],
    )  # type: ignore[arg-type]  # fmt: skip
    kept = made.keep(np.array([True, False, True, True]))
    assert kept is not None
    assert taken(kept) == [0, 2, 3]
    assert kept.pairs.tolist() == [[2, 0], [1, 2]]
    assert kept.probability.tolist() == pytest.approx([0.9, 0.7])
    assert kept.weight.tolist() == [1.0, 3.0]
    assert (kept.scores.tolist(), kept.desirable.tolist()) == ([0.0, 2.0, 3.0], [1.0, 1.0, 0.0])
    only = made.keep(np.array([True, False, False, True]))  # row 2 is allowed, but in no pair that is left
    assert taken(only) == [0, 3]
    assert made.keep(np.array([True, True, True, False])) is not None
    assert made.keep(np.array([True, False, True, False])) is None
    assert taken(Example(made.trajectories).keep(np.array([False, True, False, False]))) == [1]
    assert made.lengths.tolist() == [2, 2, 2, 2]


# ---- random pairs


def test_pairs_by_outcome_leaves_out_ties_invalid_members_and_winners_that_ended_in_an_error() -> None:
    """Rewards 1, 0, 1 (invalid), 1 (error at the end), 0: without an error only member 0 wins."""
    failed = replace(member(2, 1.0), error="lost")
    wrong = replace(member(3, 1.0), turns=(replace(member(3, 1.0).turns[0], info={"tool_error": True}),))
    many = Group((member(0, 1.0), member(1), failed, wrong, member(4)))
    every = pairs_by_outcome(many, by_return(many), rng(), pairs_per_group=None)
    assert every.tolist() == [[0, 1], [0, 4]]
    kept = pairs_by_outcome(many, by_return(many), rng(), pairs_per_group=None, drop_error_winners=False)
    assert kept.tolist() == [[0, 1], [0, 4], [3, 1], [3, 4]]
    seen = {tuple(pairs_by_outcome(many, by_return(many), rng(seed))[0].tolist()) for seed in range(40)}
    assert seen == {(0, 1), (0, 4)}
    two = pairs_by_outcome(many, by_return(many), rng(), pairs_per_group=2)
    assert two.tolist() == [[0, 1], [0, 4]]
    none = pairs_by_outcome(group(1.0, 1.0), by_return(group(1.0, 1.0)), rng())
    assert (none.shape, none.dtype) == ((0, 2), np.int64)


def test_pairs_are_drawn_without_repetition_and_in_order() -> None:
    many = group(0.0, 1.0, 2.0, 3.0)
    for draw in (
        lambda seed: pairs_by_outcome(many, by_return(many), rng(seed), pairs_per_group=3),
        lambda seed: judged_pairs(many, by_return(many), rng(seed), pairs_per_group=3),
    ):
        sets = set()
        for seed in range(60):
            drawn = [tuple(pair) for pair in draw(seed).tolist()]
            assert drawn == sorted(set(drawn))
            assert len(drawn) == 3
            sets.update(drawn)
        assert len(sets) == 6  # each of the six pairs turns up


def test_judged_pairs_take_ties_and_either_order_but_no_invalid_member() -> None:
    preference = matrix(4, p01=0.5, p20=0.9, p13=0.7)
    assert judged_pairs(group(0, 0, 0, 0), preference, rng()).tolist() == [[0, 1], [0, 2], [1, 3]]
    lost = Group((member(0, error="lost"), member(1), member(2), member(3)))
    assert judged_pairs(lost, preference, rng()).tolist() == [[1, 3]]
    lost = Group((member(0), member(1), member(2), member(3, error="lost")))
    assert judged_pairs(lost, preference, rng()).tolist() == [[0, 1], [0, 2]]


@pytest.mark.parametrize(
    "call",
    [
        lambda g, p: pairs_by_outcome(g, p, rng()),
        lambda g, p: judged_pairs(g, p, rng()),
        lambda g, p: unary(g, p, scores=False),
        lambda g, p: winners(g, p, rng(), count=None, above=None),
        against_opponents,
    ],
)
def test_a_preference_over_another_number_of_members_is_refused(call: Any) -> None:
    with pytest.raises(ValueError, match="expected a preference over 2 members, got one over 3"):
        call(group(0.0, 1.0), by_score(np.array([0.0, 1.0, 2.0])))


def test_compare_takes_the_named_members_and_their_probabilities() -> None:
    """The pair (2, 0) was asked as P(0 beats 2) = 0.3, so P(2 beats 0) = 0.7."""
    preference = replace(matrix(4, p02=0.3, p23=0.6), scores=np.array([1.0, 2.0, 3.0, 4.0]))
    pairs = np.array([[2, 0], [2, 3]])
    soft = compare(group(0, 0, 0, 0), preference, pairs, soft=True)
    assert soft is not None
    assert taken(soft) == [0, 2, 3]
    assert soft.pairs.tolist() == [[1, 0], [1, 2]]
    assert soft.probability.tolist() == pytest.approx([0.7, 0.6])
    assert soft.scores.tolist() == [1.0, 3.0, 4.0]
    hard = compare(group(0, 0, 0, 0), matrix(4, p02=0.3, p23=0.6), pairs)
    assert hard is not None
    assert hard.probability.tolist() == [1.0, 1.0]
    assert np.isnan(hard.scores).all()
    assert compare(group(0, 0), matrix(2), np.zeros((0, 2), np.int64)) is None


# ---- single rows


def test_a_valid_member_without_a_turn_is_not_used() -> None:
    """It was cut off before it could answer: nothing to learn from, and not an opponent either."""
    empty = Group((member(0, turns=(), terminated=False, truncated=True), member(1, 1.0), member(2, 0.0)))
    assert pairs_by_outcome(empty, by_score(np.array([5.0, 1.0, 0.0])), rng(), pairs_per_group=None).tolist() == [
        [1, 2]
    ]
    np.testing.assert_array_equal(unary(empty, by_score(np.array([5.0, 1.0, 0.0])), scores=False), [NAN, 1.0, 0.0])


def test_a_score_exceeds_a_bound_by_more_than_rounding() -> None:
    large = by_score(np.array([1e6 * (1 + 1e-13), 1e6 + 1.0]))
    assert winners(group(0.0, 0.0), large, rng(), count=None, above=1e6).tolist() == [1]


def test_unary_feedback_is_the_score_or_the_win_rate_of_valid_members() -> None:
    lost = Group((member(0, 3.0), member(1, 1.0, error="lost"), member(2, 2.0)))
    preference = by_score(np.array([3.0, 1.0, 2.0]))
    np.testing.assert_array_equal(unary(lost, preference, scores=True), [3.0, NAN, 2.0])
    np.testing.assert_array_equal(unary(lost, preference, scores=False), [1.0, NAN, 0.0])  # of each other


def test_winners_are_above_a_score_or_have_the_highest_win_rate() -> None:
    scores = np.array([0.0, 2.0, 1.0, 2.0])
    four, preference = group(*scores), by_score(scores)
    assert winners(four, preference, rng(), count=None, above=0.0).tolist() == [1, 2, 3]
    assert winners(four, preference, rng(), count=None, above=1.0).tolist() == [1, 3]
    assert winners(four, preference, rng(), count=None, above=None).tolist() == [1, 3]
    assert winners(four, preference, rng(), count=2, above=0.0).shape == (2,)
    assert {winners(four, preference, rng(s), count=1, above=None).item() for s in range(20)} == {1, 3}
    two = [winners(four, preference, rng(s), count=2, above=0.0).tolist() for s in range(30)]
    assert {tuple(drawn) for drawn in two} == {(1, 2), (1, 3), (2, 3)}
    even = by_score(np.zeros(4))
    assert winners(four, even, rng(), count=None, above=None).tolist() == []  # 1/2 each: not above 1/2
    nothing = winners(four, matrix(4), rng(), count=None, above=None)
    assert (nothing.tolist(), nothing.dtype) == ([], np.int64)
    rising = group(0.0, 1.0, 2.0, 3.0)  # win rates 0, 1/3, 2/3 and 1
    assert winners(rising, by_return(rising), rng(), count=None, above=None).tolist() == [3]
    best_lost = Group((four[0], replace(four[1], error="lost"), four[2], replace(four[3], error="lost")))
    assert winners(best_lost, preference, rng(), count=None, above=0.0).tolist() == [2]
    assert winners(best_lost, preference, rng(), count=None, above=None).tolist() == [2]
    with pytest.raises(ValueError, match="scores to compare with `above`"):
        winners(four, matrix(4, p01=1.0), rng(), count=None, above=0.0)


def test_against_opponents_scores_the_policy_by_the_opponents_it_met() -> None:
    """Members 0 and 1 are the policy's; 0 beat opponent 2 with 0.9 and lost to 3 (asked as P(3 beats 0) = 0.8)."""
    two = {"agent": "a", "policy_version": "v1"}
    many = Group((member(0, **two), member(1, **two), member(2, agent="b"), member(3, agent="a", policy_version="v0")))
    assert own_members(many).tolist() == [True, True, False, False]
    older = Group((many[0], many[3], many[1]))
    assert own_members(older).tolist() == [True, False, True]
    example = against_opponents(many, matrix(4, p02=0.9, p30=0.8, p01=1.0))
    assert example is not None
    assert taken(example) == [0]  # member 1 was compared with the policy only
    assert example.scores.tolist() == pytest.approx([(0.9 + 0.2) / 2])
    self_play = against_opponents(group(0, 0), matrix(2, p01=0.7))
    assert self_play is not None
    assert self_play.scores.tolist() == pytest.approx([0.7, 0.3])
    diagonal = Preference(np.array([[0.5, 0.7], [0.3, 0.5]]), "judge")  # a member does not meet itself
    again = against_opponents(group(0, 0), diagonal)
    assert again is not None
    assert again.scores.tolist() == pytest.approx([0.7, 0.3])
    assert against_opponents(group(0, 0), matrix(2)) is None
    lost = Group((member(0, error="lost"), member(1)))
    assert against_opponents(lost, matrix(2, p01=0.7)) is None


@pytest.mark.parametrize(
    ("errors", "ended"),
    [([True], True), ([False], False), ([True, False], True), ([True, False, False], False), ([False, True], True)],
)
def test_a_trajectory_ends_in_an_error_if_one_of_its_last_two_turns_caused_one(errors: list[bool], ended: bool) -> None:
    turns = tuple(replace(member(0).turns[0], info={"tool_error": error}) for error in errors)
    assert ends_in_error(member(0, turns=turns)) is ended
    assert not ends_in_error(member(0))


# ---- what each method takes


def test_mkto_labels_winners_and_losers_wherever_they_stand() -> None:
    """The loser at index 0 is undesirable, the winner at the last index desirable; both once."""
    for rewards, expected in (([0.0, 1.0], [0.0, 1.0]), ([1.0, 0.0], [1.0, 0.0])):
        example = MKTO().examples(group(*rewards), by_return(group(*rewards)), rng())
        assert example is not None
        found = dict(zip(taken(example), example.desirable.tolist(), strict=True))
        assert [found[index] for index in range(2)] == expected
    three = group(0.0, 1.0, 2.0)  # member 1 wins one pair and loses another
    example = MKTO(pairs_per_group=None).examples(three, by_return(three), rng())
    assert example is not None
    rows = sorted(zip(taken(example), example.desirable.tolist(), strict=True))
    assert rows == [(0, 0.0), (1, 0.0), (1, 1.0), (2, 1.0)]
    assert MKTO().examples(group(1.0, 1.0), by_return(group(1.0, 1.0)), rng()) is None


def test_pmpo_labels_by_win_rate_or_by_score() -> None:
    four = group(0.0, 1.0, 1.0, 2.0)
    by_rate = PMPO().examples(four, by_return(four), rng())
    assert by_rate is not None
    assert taken(by_rate) == [0, 1, 2, 3]
    np.testing.assert_array_equal(by_rate.desirable, [0.0, NAN, NAN, 1.0])
    scored = PMPO(above=1.0).examples(four, by_return(four), rng())
    assert scored is not None
    assert scored.desirable.tolist() == [0.0, 0.0, 0.0, 1.0]
    lost = Group((member(0, error="lost"), *four.trajectories[1:]))
    assert taken(PMPO().examples(lost, by_return(lost), rng())) == [1, 2, 3]
    assert PMPO().examples(group(1.0, 1.0), by_return(group(1.0, 1.0)), rng()) is None
    assert PMPO().examples(group(0, 0), matrix(2), rng()) is None
    with pytest.raises(ValueError, match="scores to compare with `above`"):
        PMPO(above=0.0).examples(group(0, 0), matrix(2, p01=1.0), rng())


@pytest.mark.parametrize("method", [REINFORCE(), RLOO(), GRPO(), PPO(), RWR(), DROV()], ids=lambda m: m.name)
def test_methods_on_scores_take_valid_members_with_their_scores(method: Any) -> None:
    """Without scores the win rate is the score; an opponent's member is learned from offline only."""
    lost = Group((member(0, 3.0), member(1, 1.0, error="lost"), member(2, 2.0)))
    example = method.examples(lost, by_return(lost), rng())
    assert taken(example) == [0, 2]
    assert example.scores.tolist() == [3.0, 2.0]
    rated = method.examples(group(0, 0), matrix(2, p01=0.7), rng())
    assert rated.scores.tolist() == pytest.approx([0.7, 0.3])
    mixed = Group((member(0, 1.0), member(1, 2.0), member(2, 3.0, agent="opponent")))
    online = not isinstance(method, RWR | DROV)
    assert taken(method.examples(mixed, by_return(mixed), rng())) == ([0, 1] if online else [0, 1, 2])
    nothing = Group((member(0, error="lost"), member(1, error="lost")))
    assert method.examples(nothing, by_return(nothing), rng()) is None


def test_a_baseline_over_the_group_needs_two_members_and_grpo_two_scores() -> None:
    one = Group((member(0, 1.0), member(1, 2.0, agent="opponent")))
    assert taken(REINFORCE().examples(one, by_return(one), rng())) == [0]
    for method in (RLOO(), REINFORCE(baseline="group"), GRPO()):
        assert method.examples(one, by_return(one), rng()) is None
    even = group(1.0, 1.0)
    assert GRPO().examples(even, by_return(even), rng()) is None
    assert taken(RLOO().examples(even, by_return(even), rng())) == [0, 1]


def test_ppo_on_turn_rewards_takes_the_policys_valid_members() -> None:
    many = Group((member(0, 1.5), member(1, 2.0, error="lost"), member(2, 3.0, agent="opponent"), member(3, 0.5)))
    example = PPO(reward="turns").examples(many, matrix(4), rng())
    assert example is not None
    assert taken(example) == [0, 3]
    assert example.scores.tolist() == [1.5, 0.5]
    nothing = Group((member(0, error="lost"), member(1, agent="opponent")))
    assert PPO(reward="turns").examples(nothing, matrix(2), rng()) is None


@pytest.mark.parametrize("method", [NashPG(), NashPG(tau=0.0), MTPO()], ids=["nash", "nash, tau 0", "mtpo"])
def test_methods_against_opponents_take_win_rates(method: Any) -> None:
    example = method.examples(group(0, 0), matrix(2, p01=0.7), rng())
    assert example.scores.tolist() == pytest.approx([0.7, 0.3])


def test_imitation_takes_winners_or_everything_valid() -> None:
    lost = Group((member(0, 0.0), member(1, 1.0), member(2, 2.0, error="lost"), member(3, 2.0)))
    assert taken(SFT().examples(lost, None, rng())) == [0, 1, 3]
    assert taken(SFT().examples(lost, by_return(lost), rng())) == [3]
    assert taken(SFT(best=None, above=0.0).examples(lost, by_return(lost), rng())) == [1, 3]
    assert taken(BestOfN().examples(lost, by_return(lost), rng())) == [3]
    assert taken(Distillation().examples(lost, None, rng())) == [0, 1, 3]
    nothing = Group((member(0, error="lost"),))
    assert SFT().examples(nothing, None, rng()) is None
    assert Distillation().examples(nothing, None, rng()) is None


def test_pairwise_methods_choose_between_outcomes_and_probabilities() -> None:
    """A tie is a pair for soft labels only."""
    preference = matrix(3, p01=0.5, p02=0.8)
    hard = MDPO(pairs_per_group=None).examples(group(0, 0, 0), preference, rng())
    soft = MDPO(pairs_per_group=None, soft_labels=True).examples(group(0, 0, 0), preference, rng())
    assert hard is not None
    assert soft is not None
    assert (taken(hard), hard.probability.tolist()) == ([0, 2], [1.0])
    assert (taken(soft), soft.probability.tolist()) == ([0, 1, 2], pytest.approx([0.5, 0.8]))


def test_standardised_scores_have_mean_0_and_deviation_1_over_all_examples() -> None:
    """Scores 0, 4 and 2, nan: mean 2, deviation sqrt(8 / 3)."""
    rows = (member(0), member(1))
    made = standardised([Example(rows, scores=np.array([0.0, 4.0])), Example(rows, scores=np.array([2.0, NAN]))])
    deviation = math.sqrt(8 / 3)
    assert made[0].scores.tolist() == pytest.approx([-2 / deviation, 2 / deviation])
    assert made[1].scores[0] == 0.0
    assert np.isnan(made[1].scores[1])
    for none in ([], [Example(rows, scores=np.array([1.0, 1.0]))], [Example(rows)]):
        with pytest.raises(ValueError, match="scores that differ"):
            standardised(none)
