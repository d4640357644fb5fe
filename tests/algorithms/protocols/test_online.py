"""Fresh groups for every step: their agents, that resuming changes nothing, and that every online method learns."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flat_settings import flat

from polyturn.agents.tabular import table_policy
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.mixture import MixtureAgent
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms import (
    GPO,
    GRPO,
    IPO,
    MKTO,
    PPO,
    REINFORCE,
    RLOO,
    ActorCritic,
    AnnotatedGroup,
    Example,
    MovingAverage,
    NashPG,
    Needs,
    Online,
    online,
    train,
)
from polyturn.algorithms.training.options import TrainOptions
from polyturn.envs.preference import Preference, by_score
from polyturn.envs.trajectory import Group, Trajectory, Turn

torch.set_num_threads(1)
ENV: dict[str, Any] = {
    "env": "polyturn/TokenLength-v0",
    "env_options": {"prompts": 4},
    "sampling": Sampling(max_new_tokens=2),
    "max_tokens": 60,
    "slots": 32,
}


def tiny(seed: int = 0) -> Policy:
    """A policy that ends an answer rarely and has no favourite among its 260-odd tokens."""
    return tiny_policy(["Prompt 1."], seed=seed, vocab_size=262, hidden=16, layers=1, heads=2, context=64)


def even(trajectory: Trajectory) -> float:
    """Share of even token ids: a half by chance, for any text."""
    ids = np.concatenate([turn.action_ids for turn in trajectory.turns])
    return float((ids % 2 == 0).mean())


def more_even(group: Group) -> Preference:
    return Preference(by_score(np.array([even(m) if m.valid else np.nan for m in group])).matrix, "oracle")


def fresh(policy: Any, **given: Any) -> Online:
    """`online`, with those arguments that are fields of `CollectOptions` as one."""
    return online(policy, **flat(given, collect=True))


def source(policy: Policy, **options: Any) -> Online:
    return fresh(policy, **{**ENV, "groups": 4, "group_size": 2, "reward": even, **options})


def test_groups_are_fresh_and_follow_the_weights() -> None:
    """Another draw has other starts; after the weights moved the same draw says other things, after none the same."""
    policy = tiny()
    first, second = (next(source(policy)) for _ in range(2))
    assert [a.group for a in first] == [b.group for b in second]
    stream = source(policy)
    draws = [next(stream) for _ in range(2)]
    assert draws[0][0].group == first[0].group
    assert draws[1][0].group[0].seed != first[0].group[0].seed
    assert stream.metrics["sample/draw"] == 1
    assert stream.metrics["sample/score"] == pytest.approx(
        np.mean([even(member) for item in draws[1] for member in item.group])
    )
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(-2.0)
    assert next(source(policy))[0].group != first[0].group


def test_who_draws_what() -> None:
    """Two of the policy and three of an opponent; in the policy's place the mixture for IPO-MD."""
    policy, reference = tiny(), tiny(1)
    mixture = MixtureAgent(policy, reference, beta=0.5, sampling=ENV["sampling"], max_tokens=60, slots=32)
    (item, *_) = next(source(policy, opponent=mixture, opponents=3))
    assert [member.agent == mixture.name for member in item.group] == [False, False, True, True, True]
    both = next(source(policy, actor=mixture))
    assert {member.agent for one in both for member in one.group} == {mixture.name}
    (plain, *_) = next(source(policy, opponent=policy.copy(version="then"), group_size=1))
    assert [(member.valid, member.policy_version) for member in plain.group] == [(True, "random"), (True, "then")]


def test_an_opponent_with_the_policys_name_and_version_is_refused() -> None:
    """A copy has the policy's name and version: its answers would be learned from as if the policy had said them."""
    policy = table_policy(["rock", "paper", "scissors"], version="now")
    how: dict[str, Any] = {"env": "polyturn/MatrixGame-v0", "groups": 1, "group_size": 1}
    with pytest.raises(ValueError, match=r"another name or version than the policy.*policy\.copy\(version="):
        fresh(policy, opponent=policy.copy(), **how)
    (item,) = next(fresh(policy, opponent=policy.copy(version="then"), **how))
    assert [member.policy_version for member in item.group] == ["now", "then"]


@pytest.mark.parametrize(("failed", "learned"), [((0,), [1]), ((0, 1), []), ((2, 3), []), ((1, 2), [0])])
def test_a_group_without_one_side_is_left_out(failed: tuple[int, ...], learned: list[int]) -> None:
    """Members 0 and 1 are the policy's, 2 and 3 the opponent's.

    If both of the policy's failed, the opponents must not be learned from in its place; if both opponents failed, the
    policy must not be compared with itself.
    """
    good = toy()[0]
    members = tuple(
        replace(good, agent="policy" if n < 2 else "opponent", member=n, error="server down" if n in failed else None)
        for n in range(4)
    )
    stream = Online(lambda number: [Group(members)], lambda group: by_score(np.arange(float(len(group)))))
    found = [NashPG().examples(a.group, a.preference, np.random.default_rng(0)) for a in next(stream)]
    assert [row.member for example in found if example is not None for row in example.trajectories] == learned
    assert stream.metrics["sample/invalid"] == len(failed)


def test_a_moving_baseline_is_that_of_earlier_draws() -> None:
    """Scores 1, 3 then 5, 7 with decay .75: the first draw loses its own mean 2, the second the average 2.

    After it the average is .75 * 2 + .25 * 6 = 3, which a third draw of 0, 0 loses.
    """
    scores = iter([[1.0, 3.0], [5.0, 7.0], [0.0, 0.0]])
    stream = Online(lambda number: [toy()], lambda group: by_score(np.array(next(scores))), moving_baseline=0.75)
    found = [next(stream)[0].preference.scores for _ in range(3)]
    np.testing.assert_allclose(found, [[-1, 1], [3, 5], [-3, -3]])
    assert stream.metrics["sample/score"] == 0.0  # as annotated, before the baseline


def test_a_moving_baseline_needs_scores() -> None:
    """A judge's preferences have none: the baseline was silently taken off nothing."""
    matrix = np.array([[0.5, 0.8], [0.2, 0.5]])
    stream = Online(lambda number: [toy()], lambda group: Preference(matrix, "judge"), moving_baseline=0.9)
    with pytest.raises(ValueError, match="with scores, to take a moving_baseline off, got only preferences"):
        next(stream)


def toy() -> Group:
    def row(token: int) -> Trajectory:
        turn = Turn("o", "a", 0.0, np.array([1], np.int32), np.array([token], np.int32), np.array([-1.5], np.float32))
        return Trajectory("Toy-v0", 0, (turn,), terminated=True)

    return Group((row(3), row(4)))


def test_reuse_survives_a_checkpoint() -> None:
    """Three steps a draw: stopped after the first, the same groups come back from JSON, two more times."""
    drawn: list[int] = []

    def draw(number: int) -> list[Group]:
        drawn.append(number)
        return [toy()]

    def annotate(group: Group) -> Preference:
        return by_score(np.array([1.0, math.nan]))

    stream = Online(draw, annotate, reuse=3, seed=5)
    first = next(stream)[0]
    state = json.loads(json.dumps(stream.state_dict()))
    again = Online(draw, annotate, reuse=3, seed=5)
    again.load_state_dict(state)
    for _ in range(2):
        (expected,), (found,) = next(stream), next(again)
        assert found.group == expected.group == first.group
        assert found.seed == expected.seed != first.seed
        np.testing.assert_array_equal(found.preference.matrix, first.preference.matrix)
        np.testing.assert_array_equal(found.preference.scores, first.preference.scores)
    assert drawn == [0]
    assert stream.state_dict()["held"] == []
    next(again)
    assert drawn == [0, 1]


def weights(trained: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trained.model.state_dict().items()}


@pytest.mark.parametrize("kind", ["moving average", "actor critic"])
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(kind: str, tmp_path: Path) -> None:
    """Stopped in the middle of a reused draw, with all that goes with the policy: its average, or its value network."""

    def go(out: str | None, steps: int, resume: bool = False) -> Any:
        policy = tiny()
        trained: Any = MovingAverage(policy, decay=0.5) if kind == "moving average" else ActorCritic(policy)
        method: Any = NashPG(tau=0.01) if kind == "moving average" else PPO()
        extra = {"opponent": trained, "preference": more_even, "reward": None} if kind == "moving average" else {}
        stream = source(policy, reuse=2, **extra)
        result = train(
            method, trained, policy.copy(), stream, steps=steps, progress=False, resume=resume,
            options=TrainOptions(lr=1e-2, cpu=True, save_every=3), out=None if out is None else tmp_path / out,
        )  # fmt: skip
        return trained, result

    whole, history = go("whole", 5)
    go("cut", 3)
    with pytest.warns(UserWarning, match="steps was 3, is 5"):
        cut, resumed = go("cut", 5, resume=True)
    assert weights(whole).keys() == weights(cut).keys()
    for name, value in weights(whole).items():
        assert torch.equal(weights(cut)[name], value), name
    assert [r["loss"] for r in history.history] == [r["loss"] for r in resumed.history]
    if kind == "moving average":
        own, average = (dict(p.model.named_parameters()) for p in (whole.policy, whole.average))
        start = dict(tiny().model.named_parameters())
        name = next(iter(own))
        assert not torch.equal(average[name], start[name])
        assert not torch.equal(average[name], own[name])


def test_a_moving_average_moves_in_half_precision_too() -> None:
    """1 - .999^1000 = .632 of the way to the new weights after 1,000 draws."""
    policy = tiny()
    policy.model.to(torch.bfloat16)
    tracked = MovingAverage(policy, decay=0.999)
    name, parameter = next(iter(policy.model.named_parameters()))
    before = parameter.detach().float().clone()
    with torch.no_grad():
        parameter.add_(0.25)
    for draw in range(1, 1001):
        tracked.update(draw)
    way = dict(tracked.average.model.named_parameters())[name].detach().float() - before
    assert float((way / (parameter.detach().float() - before)).mean()) == pytest.approx(1 - 0.999**1000, abs=1e-3)


def test_a_moving_average_moves_once_a_draw() -> None:
    """Decay .75, weights 0 then 4: 0 -> 1 -> 1.75; the draw before any step, and a repeated one, change nothing."""
    policy = tiny()
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.zero_()
        tracked = MovingAverage(policy, decay=0.75)
        for parameter in policy.model.parameters():
            parameter.fill_(4.0)
    found = []
    for draw in (0, 1, 1, 2):
        tracked.update(draw)
        found.append(next(tracked.average.model.parameters()).flatten()[0].item())
    assert found == pytest.approx([0.0, 1.0, 1.0, 1.75])
    with pytest.raises(ValueError, match=r"decay: expected a number in \[0, 1\]"):
        MovingAverage(policy, decay=2.0)


LEARNERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "reinforce": (REINFORCE(), {"moving_baseline": 0.8}),
    "rloo with kl": (RLOO(kl=0.01), {}),
    "grpo, reused": (GRPO(), {"reuse": 2}),
    "ppo": (PPO(), {"reuse": 2}),
    "online dpo": (GPO(beta=0.1, pairs_per_group=None), {}),
    "online slic": (GPO(f="hinge", beta=0.1), {}),
    "online ipo": (IPO(tau=0.1), {}),
    "online kto": (MKTO(), {}),
    "ipo-md": (IPO(tau=0.1), {"actor": 0.125}),
    "nash-md-pg": (NashPG(tau=0.01), {"opponent": 0.125}),
    "nash-ema-pg": (NashPG(tau=0.01), {"opponent": "average"}),
    "self-play": (NashPG(tau=0.01), {}),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_every_online_method_learns(name: str) -> None:
    """From a half to well above in 25 steps of 32 episodes; on only preferences where the method is about them."""
    method, options = LEARNERS[name]
    options = dict(options)
    policy = tiny()
    reference = policy.copy()
    trained: Any = policy
    if isinstance(method, PPO):
        trained = ActorCritic(policy)
    for key, value in options.items():
        if isinstance(value, float) and key in ("actor", "opponent"):
            how = {k: ENV[k] for k in ("sampling", "max_tokens", "slots")}
            options[key] = MixtureAgent(policy, reference, beta=value, **how)
    if options.get("opponent") == "average":
        trained = options["opponent"] = MovingAverage(policy, decay=0.8)
    if isinstance(method, (GPO, IPO, NashPG)):
        options |= {"preference": more_even, "reward": None}
    stream = source(policy, groups=8, group_size=2 if "opponent" in options else 4, **options)
    result = train(
        method, trained, reference, stream, steps=25, options=TrainOptions(lr=2e-2, cpu=True), progress=False
    )
    last = next(source(policy, groups=32, seed=99))
    share = float(np.mean([even(member) for item in last for member in item.group]))
    assert share > 0.7, (share, result.history[-1])
    assert "sample/return" in result.history[-1]


def test_groups_without_a_difference_are_drawn_again_and_not_for_ever() -> None:
    """Draws 0, 1 and 2 are ties; the first step learns from draw 3. With only ties it gives up and says why."""
    scores = {3: [1.0, 0.0], 4: [0.0, 1.0]}
    asked: list[int] = []

    def stream(table: dict[int, list[float]]) -> Online:
        asked.clear()

        def draw(number: int) -> list[Group]:
            asked.append(number)
            return [toy()]

        return Online(draw, lambda group: by_score(np.array(table.get(asked[-1], [0.0, 0.0]))))

    policy = tiny()
    result = train(
        GPO(), policy, policy.copy(), stream(scores), steps=2, options=TrainOptions(lr=1e-3, cpu=True), progress=False
    )
    assert asked == [0, 1, 2, 3, 4]
    assert [record["sample/draw"] for record in result.history] == [3, 4]
    with pytest.raises(ValueError, match="got none in 16 draws"):
        train(GPO(), policy, policy.copy(), stream({}), steps=1, progress=False, options=TrainOptions(cpu=True))


@pytest.mark.parametrize("kind", ["function", "sequence", "iterable"])
def test_a_resumed_run_passes_over_the_groups_that_taught_nothing_too(kind: str, tmp_path: Path) -> None:
    """Items 1 and 2 of 5 are ties, so two steps learn from items 0 and 3; the third is item 4, not item 2 or 3."""
    seen: list[float] = []

    class Noted(GPO):
        def examples(self, group: Group, preference: Preference, rng: np.random.Generator) -> Example | None:
            found = super().examples(group, preference, rng)
            if found is not None:
                assert preference.scores is not None
                seen.append(float(preference.scores[0]))
            return found

    items = [
        [AnnotatedGroup(toy(), by_score(np.array([float(n), float(n) if n in (1, 2) else -1.0])), (n,))]
        for n in range(5)
    ]

    class Again:
        def __iter__(self) -> Any:
            return iter(items)

    sources: dict[str, Any] = {"function": lambda number: items[number % 5], "sequence": items, "iterable": Again()}

    def go(out: str, steps: int, **options: Any) -> dict[str, torch.Tensor]:
        policy = tiny()
        how: dict[str, Any] = {"lr": 1e-2, "progress": False, "cpu": True, "out": tmp_path / out, **options}
        train(Noted(), policy, policy.copy(), sources[kind], steps=steps, **flat(how, train=True))
        return weights(policy)

    whole = go("whole", 4)
    assert seen == [0.0, 3.0, 4.0, 0.0]
    seen.clear()
    go("cut", 2)
    with pytest.warns(UserWarning, match="steps was 2, is 4"):
        resumed = go("cut", 4, resume=True)
    assert seen == [0.0, 3.0, 4.0, 0.0]
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_annotated_groups_need_a_method_that_knows_what_to_take() -> None:
    class Mine:
        name, needs = "mine", Needs()

        def loss(self, logps: Any, reference: Any, batch: Any) -> Any:
            raise AssertionError

    policy = tiny()
    item = AnnotatedGroup(toy(), by_score(np.array([1.0, 0.0])), (0,))
    with pytest.raises(ValueError, match=r"mine: expected a method with examples"):
        train(Mine(), policy, policy.copy(), [[item]], steps=1, progress=False, options=TrainOptions(cpu=True))
    mixed: Any = [[item, Example(tuple(toy()), np.array([[0, 1]]))]]
    assert (
        train(GPO(), policy, policy.copy(), mixed, steps=1, progress=False, options=TrainOptions(cpu=True)).steps == 1
    )


def test_mistakes_are_named() -> None:
    policy = tiny()
    with pytest.raises(ValueError, match="got both"):
        source(policy, preference=more_even)
    with pytest.raises(ValueError, match=r"expected a policy, or an agent with act\(episode\), got 'reference'"):
        source(policy, opponent="reference")
    with pytest.raises(ValueError, match="an opponent to go with"):
        source(policy, opponents=2)
    with pytest.raises(ValueError, match="reuse: expected a whole number of at least 1"):
        source(policy, reuse=0)
    with pytest.raises(ValueError, match="moving_baseline"):
        source(policy, moving_baseline=1.0)
    both = ActorCritic(policy)
    with pytest.raises(ValueError, match="the policy itself"):
        train(PPO(kl=0.1), both, policy, source(policy), steps=1, progress=False, options=TrainOptions(cpu=True))


@pytest.mark.parametrize(
    "arguments", [["rloo"], ["ppo"], ["nash_pg", "--opponent", "mixture:0.5"], ["nash_pg", "--opponent", "average:0.5"]]
)
def test_the_command_line_trains_online(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from polyturn import cli

    tiny().save_pretrained(tmp_path / "base")
    command = [
        "train", *arguments, "--model", str(tmp_path / "base"), "--env", "polyturn/TokenLength-v0", "--online", "2",
        "--groups", "4", "--group-size", "4", "--max-new-tokens", "1", "--max-tokens", "60", "--slots", "16", "--lr",
        "1e-3", "--out", str(tmp_path / "run"), "--quiet",
    ]  # fmt: skip
    assert cli.main(command) == 0
    assert "2 steps, mean return" in capsys.readouterr().out
    trained = Policy.from_pretrained(tmp_path / "run" / "policy", device="cpu")
    start = tiny().model.state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in trained.model.state_dict().items())
