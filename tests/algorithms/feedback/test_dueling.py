"""Win rates between agents, feedback on single turns, and rewards that are paid turn by turn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyturn.agents import ScriptedAgent
from polyturn.agents.collecting.options import CollectOptions
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms import PPO, ActorCritic, RewardModel, Rivals, duel, online, train, turn_feedback, upto
from polyturn.algorithms.feedback.dueling import duels_of
from polyturn.algorithms.training.options import TrainOptions
from polyturn.envs.preference import Preference, by_return
from polyturn.envs.trajectory import Group, Trajectory, Turn

GUESS = "polyturn/Guess-v0"


def played(agent: str, reward: float, *, error: str | None = None, turns: int = 1) -> Trajectory:
    said = tuple(Turn("o", f"{agent}{h}", reward if h == turns - 1 else 0.0, info={"seen": h}) for h in range(turns))
    return Trajectory(
        "Toy-v0", 0, said, agent=agent, terminated=True, error=error, final_observation="bye", info={"seen": "end"}
    )


def test_rates_and_intervals_by_hand() -> None:
    """Over three starts "a" wins, ties and wins: rate 5/6, variance of (1, .5, 1) is 1/12, half 1.96 sqrt(1/36)."""
    groups = [Group((played("a", x), played("b", y))) for x, y in ((1.0, 0.0), (0.5, 0.5), (1.0, 0.5))]
    found = duels_of(("a", "b"), groups, by_return)
    assert found["a", "b"] == pytest.approx(5 / 6)
    assert found["b", "a"] == pytest.approx(1 / 6)
    assert found.half[0, 1] == pytest.approx(1.96 / 6)
    assert found.rate[0, 0] == 0.5
    assert found.starts == 3


def test_all_pairs_of_two_agents_count_and_none_within_one() -> None:
    """Two of each: a has 3 and 0, b has 1 and 2; a beats b in 2 of 4 pairs."""
    group = Group((played("a", 3.0), played("a", 0.0), played("b", 1.0), played("b", 2.0)))
    assert duels_of(("a", "b"), [group], by_return)["a", "b"] == pytest.approx(0.5)


def test_failed_conversations_are_not_lost_ones() -> None:
    groups = [Group((played("a", 0.0, error="down"), played("b", 1.0))), Group((played("a", 1.0), played("b", 0.0)))]
    found = duels_of(("a", "b"), groups, by_return)
    assert found["a", "b"] == 1.0
    assert found.starts == 1
    assert np.isnan(found.half[0, 1])


def test_agents_meet_at_the_same_starts() -> None:
    """The one that halves the interval finds the number sooner than the one that counts up."""
    agents: dict[str, Any] = {"fives": ScriptedAgent(["5"] * 9), "ones": ScriptedAgent(["1"] * 9)}
    found = duel(agents, GUESS, by_return, starts=4, each=2, progress=False)
    assert len(found.groups) == 4
    assert all(len(group) == 4 for group in found.groups)
    with pytest.raises(KeyError, match="fives, ones, got 'twos'"):
        found["twos", "ones"]
    with pytest.raises(ValueError, match="at least two agents"):
        duel({"one": agents["ones"]}, GUESS, by_return, starts=1)


def test_a_conversation_up_to_a_turn() -> None:
    """What the environment noted of the last turn that is left stands for the whole; its answer is gone."""
    cut = upto(played("a", 1.0, turns=3), 2)
    assert [turn.action for turn in cut.turns] == ["a0", "a1"]
    assert cut.info["seen"] == 1
    assert cut.final_observation == ""
    assert cut.valid
    with pytest.raises(ValueError, match="1 to 3 turns, got 4"):
        upto(played("a", 1.0, turns=3), 4)


def by_last_action(group: Group) -> Preference:
    """Prefers the longer conversation, and says so of what it was shown."""
    scores = np.array([len(member.turns) for member in group], np.float64)
    return Preference(0.5 + 0.5 * np.sign(scores[:, None] - scores[None]), "oracle")


def branches() -> Group:
    start = Turn("o", "same", 0.0)
    rest = [(Turn("p", "left"),), (Turn("p", "right"), Turn("q", "more"))]
    return Group(tuple(Trajectory("T-v0", 0, (start, *each), terminated=True) for each in rest), branched_at=1)


def test_feedback_on_single_turns_now_or_at_the_end() -> None:
    """Cut after the second turn both are equally long; at the end the second is longer."""
    for look, wanted in (("now", 0.5), ("end", 1.0)):
        ((group, preference),) = turn_feedback([branches()], by_last_action, look=look)  # type: ignore[arg-type]
        assert [member.turns[-1].action for member in group] == ["left", "right"]
        assert group.branched_at == 1
        assert preference.matrix[1, 0] == wanted
    with pytest.raises(ValueError, match="expected branched groups"):
        turn_feedback([Group((played("a", 1.0),))], by_return, look="now")


@pytest.fixture(scope="module")
def policy() -> Any:
    return tiny_policy(["guess a number 1 2 3 4 5 6 7 8 9"], seed=0, vocab_size=300, hidden=16, layers=1, heads=2)


def test_scores_of_turns_are_those_of_the_conversation_so_far(policy: Any) -> None:
    """Read at once or cut turn by turn: the same number, of conversations of different lengths together."""
    model = RewardModel(policy)
    model.scorer.head.weight.data.fill_(0.3)
    rows = [played("a", 0.0, turns=3), played("bb", 1.0, turns=1)]
    together = model.turn_scores(rows)
    for row, scores in zip(rows, together, strict=True):
        each = model.scores([upto(row, h + 1) for h in range(len(row.turns))])
        assert scores == pytest.approx(each, abs=1e-5)
    assert len(np.unique(np.round(together[0], 6))) == 3


def test_turn_rewards_replace_what_was_paid_and_are_learned_from(policy: Any) -> None:
    mine = policy.copy(trainable=True)
    source = online(
        mine,
        GUESS,
        turn_reward=lambda group: [np.arange(len(member.turns), dtype=np.float64) for member in group],
        collect=CollectOptions(groups=2, max_tokens=700, slots=4),
    )
    step = next(source)
    assert step
    for item in step:
        assert [t.reward for t in item.group[0].turns] == list(range(len(item.group[0].turns)))
    method = PPO(over="turn", reward="turns", discount=0.0)
    result = train(
        method, ActorCritic(mine), None, source, steps=1, options=TrainOptions(lr=1e-3, cpu=True), progress=False
    )
    assert result.history[0]["explained_variance"] <= 1.0
    wrong = online(
        mine,
        GUESS,
        turn_reward=lambda group: [np.zeros(99)] * len(group),
        collect=CollectOptions(groups=1, max_tokens=700),
    )
    with pytest.raises(ValueError, match="expected finite turn_rewards for"):
        next(wrong)


def test_pairs_of_an_online_run_may_part_at_a_later_turn(policy: Any) -> None:
    """Both members share their first turn to the last token; state and resumption keep where they parted."""
    source = online(policy, GUESS, collect=CollectOptions(branch_at=1, groups=2, max_tokens=700, slots=4), reuse=2)
    items = next(source)
    assert [item.group.branched_at for item in items] == [1, 1]
    for item in items:
        assert item.group[0].turns[0] == item.group[1].turns[0]
    again = online(policy, GUESS, collect=CollectOptions(branch_at=1, groups=2, max_tokens=700, slots=4), reuse=2)
    again.load_state_dict(source.state_dict())
    assert [item.group.branched_at for item in next(again)] == [1, 1]


def test_win_rates_are_reported_while_training(policy: Any) -> None:
    """At the start the policy is the reference; from the second evaluation on it meets the one before."""
    rivals = Rivals(policy.copy(), GUESS, by_return, starts=2, max_tokens=700, slots=4)
    mine = policy.copy(trainable=True)
    first = rivals(mine, 0)
    assert set(first) == {"win_reference"}
    second = rivals(ActorCritic(mine), 10)
    assert set(second) == {"win_reference", "win_previous"}
    assert all(0 <= rate <= 1 for rate in second.values())
