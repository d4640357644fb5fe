"""Tables and small networks are policies like any other: they act, and the one loop trains them with every method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from polyturn.agents import CollectError, MixtureAgent, TabularPolicy, collect, mlp_policy, table_policy
from polyturn.agents.collecting.options import CollectOptions
from polyturn.agents.transformer.policy import PolicyLoadError
from polyturn.algorithms import (
    DROV,
    GPO,
    GRPO,
    IPO,
    MKTO,
    PMPO,
    PPO,
    REINFORCE,
    RLOO,
    RWR,
    BestOfN,
    Example,
    MovingAverage,
    NashPG,
    online,
    train,
)
from polyturn.algorithms.exact.closed_forms import rlhf_optimum
from polyturn.algorithms.exact.nash import regularised_nash
from polyturn.algorithms.training.options import TrainOptions
from polyturn.envs.games.bandits import Bandit, context_features, data_policy, play, reward_table
from polyturn.envs.games.matrix_games import by_payoff, payoff_matrix
from polyturn.envs.preference import by_return
from polyturn.envs.trajectory import Trajectory, Turn

torch.set_num_threads(1)
BANDIT = "polyturn/Bandit-v0"
BEST = ((0.0, 0.2, 1.0), (1.0, 0.2, 0.0))
"""Rewards of three arms in two contexts, whose best arms differ."""
OPTIONS: dict[str, Any] = {"reward": BEST, "arms": 3, "contexts": 2}


def learning(**options: Any) -> dict[str, Any]:
    """How all runs here are trained: on the CPU, silently."""
    return {"progress": False, "options": TrainOptions(cpu=True, **options)}


def questions(first: int = 0, count: int = 2, arms: int = 3) -> list[str]:
    return [Bandit(arms=arms).question(context) for context in range(first, first + count)]


def table(**options: Any) -> TabularPolicy:
    return table_policy(3, questions(), **options)


def value_of(policy: TabularPolicy) -> float:
    """Expected reward of the two-context bandit, the contexts equally likely."""
    return float((policy.probabilities() * np.array(BEST)).sum(1).mean())


def row(arm: int, logp: float = -1.0) -> Trajectory:
    turn = Turn(questions()[0], str(arm), 0.0, np.array([3], np.int32), np.array([arm], np.int32), np.array([logp]))
    return Trajectory(BANDIT, 0, (turn,), terminated=True)


def one_step(method: Any, example: Example, start: NDArray[np.float64], ref: NDArray[np.float64]) -> Any:
    """Minus the gradient in the logits of the first context, and the loss: one step of plain descent at rate 1."""
    policy = table(probabilities=np.tile(start, (2, 1)))
    reference = table(probabilities=np.tile(ref, (2, 1))).copy()
    before = policy.model.policy.rows.detach().clone()
    result = train(
        method,
        policy,
        reference,
        [[example]],
        steps=1,
        **learning(lr=1.0, clip=None, optimizer=torch.optim.SGD),
    )
    change = policy.model.policy.rows.detach() - before
    assert torch.equal(change[1], torch.zeros(3))
    return change[0].numpy(), result.history[0]["loss"]


START, REF = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
ONE_HOT = np.eye(3)


@pytest.mark.parametrize(
    ("method", "slope", "loss"),
    [
        # h = log(.5/.2) - log(.3/.2) = log(5/3). DPO: log(1 + e^{-beta h}); slope -beta sigmoid(-beta h).
        (GPO(beta=2.0), -2.0 / (1.0 + (5 / 3) ** 2), np.log1p((3 / 5) ** 2)),
        # IPO: (h - 1/(2 tau))^2 with 1/(2 tau) = 1; slope 2 (h - 1).
        (IPO(tau=0.5), 2.0 * (np.log(5 / 3) - 1.0), (np.log(5 / 3) - 1.0) ** 2),
    ],
)
def test_pairs_have_the_gradient_of_the_formula(method: Any, slope: float, loss: float) -> None:
    """Arm 0 beats arm 1; dh/dlogits = onehot(0) - onehot(1), since the two softmax terms cancel."""
    example = Example((row(0), row(1)), np.array([[0, 1]]))
    change, found = one_step(method, example, START, REF)
    np.testing.assert_allclose(change, -slope * (ONE_HOT[0] - ONE_HOT[1]), atol=1e-6)
    assert found == pytest.approx(loss, abs=1e-6)


def test_policy_gradient_and_regression_have_the_gradient_of_the_formula() -> None:
    """Scores 1 of arm 0 and 0 of arm 2: d log pi(a) = onehot(a) - pi, averaged over the two rows.

    RWR with beta 1 weighs them e and 1; GRPO without scale has advantages +-1/2 and a ratio of pi / behaviour. The log
    of behaviour is recorded as log .5 and log .25: ratios 1 and .8, inside the clip of .2 but for the upper bound.
    """
    rows = (row(0, np.log(0.5)), row(2, np.log(0.25)))
    example = Example(rows, scores=np.array([1.0, 0.0], np.float32))
    score = ONE_HOT - START
    change, _ = one_step(REINFORCE(), example, START, REF)
    np.testing.assert_allclose(change, score[0] / 2, atol=1e-6)
    change, _ = one_step(RWR(), example, START, REF)
    np.testing.assert_allclose(change, (np.e * score[0] + score[2]) / 2, atol=1e-6)
    change, loss = one_step(GRPO(scale=False, clip=0.3), example, START, REF)
    np.testing.assert_allclose(change, (0.5 * score[0] - 0.5 * 0.8 * score[2]) / 2, atol=1e-6)
    assert loss == pytest.approx(-(0.5 * 1.0 - 0.5 * 0.8) / 2, abs=1e-6)


def test_the_kl_over_all_actions_has_the_gradient_of_the_formula() -> None:
    """PMPO, alpha 1, beta 2: -log pi of the accepted arm, its row's and the rejected row's KL(ref || pi), whose
    gradient is pi - ref."""
    example = Example((row(0), row(1)), desirable=np.array([1.0, 0.0], np.float32))
    change, loss = one_step(PMPO(alpha=1.0, beta=2.0), example, START, REF)
    np.testing.assert_allclose(change, (ONE_HOT[0] - START) - 2.0 * (START - REF), atol=1e-6)
    assert loss == pytest.approx(-np.log(0.5) + 2.0 * (REF * np.log(REF / START)).sum(), abs=1e-6)


def test_what_is_recorded_is_what_is_scored_at_any_concurrency() -> None:
    """Tokens are the arm's number and 3 + the context's; they are the same at any concurrency."""
    policy = table(probabilities=[[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]], version="v1")
    groups = [
        collect(policy, BANDIT, groups=20, group_size=5, env_options=OPTIONS, concurrency=width, progress=False)
        for width in (1, 64)
    ]
    assert groups[0] == groups[1]
    members = [member for group in groups[0] for member in group]
    for member in members:
        (turn,) = member.turns
        context = questions().index(turn.observation)
        assert turn.context_ids.tolist() == [3 + context]
        assert turn.action_ids.tolist() == [int(turn.action)] == [member.info["arm"]]
        assert turn.reward == BEST[context][int(turn.action)]
        ids, _ = member.tokens
        scored = policy.copy().logps(torch.tensor(ids[None], dtype=torch.int64), torch.ones(1, 2, dtype=torch.bool))
        assert turn.logps[0] == pytest.approx(float(scored[0, 1]), abs=1e-6)
        assert (member.agent, member.policy_version) == ("Table(states=2, actions=3)", "v1")
    assert len({member.turns[0].observation for member in members}) == 2


def test_arms_are_drawn_with_their_probabilities() -> None:
    """4000 draws of (.6, .4, 0): the share of arm 0 has deviation .0077; arm 2 has no mass and never comes."""
    policy = table_policy(3, probabilities=[0.6, 0.4, 1e-30])
    group = collect(policy, BANDIT, group_size=4000, env_options={"arms": 3}, progress=False, seed=1)[0]
    arms = np.array([member.info["arm"] for member in group])
    assert np.mean(arms == 0) == pytest.approx(0.6, abs=0.03)
    assert arms.max() == 1


@pytest.mark.parametrize(
    "method",
    [
        REINFORCE(baseline="group"),
        RLOO(),
        GRPO(),
        PPO(),
        GPO(pairs_per_group=None),
        IPO(tau=0.1),
        MKTO(beta=0.5, pairs_per_group=None),
        PMPO(),
        RWR(beta=0.3),
        BestOfN(),
        NashPG(),
        DROV(tau=0.1),
    ],
    ids=lambda method: str(method.name),
)
def test_every_method_learns_both_contexts(method: Any) -> None:
    """From .4, what a uniform choice earns; each context has another best arm."""
    policy = table(critic=isinstance(method, (PPO, DROV)))
    stream = online(
        policy, BANDIT, collect=CollectOptions(env_options=OPTIONS, groups=8, group_size=6), reuse=2, seed=3
    )
    train(method, policy, policy.copy(), stream, steps=24, **learning(lr=0.1))
    assert value_of(policy) > 0.85


def test_reinforce_with_a_kl_finds_the_closed_form() -> None:
    """pi proportional to pi_ref exp(r / kl), the optimum of E[r] - kl KL(pi || pi_ref), in each context."""
    start = [[0.2, 0.2, 0.6], [0.3, 0.4, 0.3]]
    policy = table(probabilities=start)
    stream = online(policy, BANDIT, collect=CollectOptions(env_options=OPTIONS, groups=8, group_size=8), seed=2)
    descent = learning(lr=0.15, schedule="linear", clip=None)
    train(RLOO(kl=0.5), policy, policy.copy(), stream, steps=80, **descent)
    for found, anchor, reward in zip(policy.probabilities(), start, BEST, strict=True):
        np.testing.assert_allclose(found, rlhf_optimum(anchor, reward, tau=0.5), atol=0.04)


@pytest.mark.parametrize(("method", "lr"), [(NashPG(tau=0.3), 2.0), (IPO(tau=0.3), 0.3)], ids=["nash_pg", "ipo"])
@pytest.mark.parametrize(("game", "noise"), [("rock-paper-scissors", 0.019), ("near-cycle", 0.004)])
def test_self_play_finds_the_regularised_equilibrium(method: Any, lr: float, game: str, noise: float) -> None:
    """pi* proportional to pi_ref exp(P(y beats pi*) / tau) with an uneven reference, within the noise of sampling.

    IPO's gradient is 2 / tau times that of NashPG in expectation, so its rate is tau / 2 times as large. `noise` is the
    largest standard deviation of a probability over twelve seeds of the stream, the same for both methods; the mean
    over those seeds is within .0063 of the equilibrium. The bound is three and a half deviations beyond that. It is the
    noise of large steps: with a quarter of the rate and four times the steps (12 s) the deviation on rock, paper,
    scissors was .004 and .006, and the worst of ten seeds .007 and .011 away (NashPG and IPO).
    """
    payoff, names = payoff_matrix(game)
    reference = np.array([0.6, 0.3, 0.1])
    policy = table_policy(names, probabilities=reference)
    stream = online(
        policy, "polyturn/MatrixGame-v0", preference=by_payoff(game), seed=5,
        collect=CollectOptions(env_options={"payoff": game}, groups=2, group_size=24),
    )  # fmt: skip
    descent: dict[str, Any] = {"optimizer": torch.optim.SGD, "schedule": "linear", "clip": None}
    train(method, policy, policy.copy(), stream, steps=60, **learning(lr=lr, **descent))
    exact = regularised_nash(payoff, reference, tau=0.3)
    bound = 0.0063 + 3.5 * noise
    assert np.abs(exact - reference).max() > 2 * bound
    np.testing.assert_allclose(policy.probabilities()[0], exact, atol=bound)


def test_a_moving_average_is_an_opponent() -> None:
    """Nash-EMA-PG: the average, a copy of the table that lags behind, draws the opponents."""
    policy = table_policy(("rock", "paper", "scissors"), probabilities=[0.8, 0.1, 0.1], version="v")
    tracked = MovingAverage(policy, decay=0.5)
    stream = online(
        policy, "polyturn/MatrixGame-v0", preference=by_payoff("rock-paper-scissors"), opponent=tracked,
        collect=CollectOptions(groups=8, group_size=4),
    )  # fmt: skip
    train(NashPG(), tracked, policy.copy(), stream, steps=5, **learning(lr=0.1))
    average = tracked.average.model.policy.rows.detach()
    assert policy.probabilities()[0, 1] > 0.12
    assert float((average - policy.model.policy.rows.detach()).abs().max()) > 0.01


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Ten steps at once, and five, then five more from the checkpoint, each draw used twice."""

    def run(out: Path, steps: int, *, resume: bool = False) -> TabularPolicy:
        policy = mlp_policy(3, questions(), context_features(2), seed=1, hidden=(8, 8), critic=True)
        stream = online(policy, BANDIT, collect=CollectOptions(env_options=OPTIONS, groups=4, group_size=4), reuse=2)
        train(PPO(), policy, None, stream, steps=steps, out=out, resume=resume, **learning(lr=0.01))
        return policy

    whole = run(tmp_path / "whole", 10)
    run(tmp_path / "parts", 5)
    with pytest.warns(UserWarning, match="resuming with other settings: steps was 5, is 10"):
        parts = run(tmp_path / "parts", 10, resume=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, parts.model.state_dict()[name])
    loaded = TabularPolicy.from_pretrained(tmp_path / "whole" / "checkpoints" / "step-00000010" / "model")
    np.testing.assert_array_equal(loaded.probabilities(), whole.probabilities())


def test_given_plays_are_learned_from(tmp_path: Path) -> None:
    """Arrays of plays get the policy's tokens; IPO on all pairs of them finds both best arms, offline."""
    values = reward_table(BEST, contexts=2, arms=3)
    plays = play(np.full(3, 1 / 3), values, [0, 1] * 20, group_size=6, rng=np.random.default_rng(0))
    policy = table()
    method, rng = IPO(tau=0.1), np.random.default_rng(1)
    examples = []
    for group in plays.groups(**OPTIONS):
        written = type(group)(tuple(policy.written(member) for member in group))
        assert [member.turns[0].logps[0] for member in written] == [member.turns[0].logps[0] for member in group]
        if (example := method.examples(written, by_return(written), rng)) is not None:
            examples.append(example)
    train(method, policy, policy.copy(), [examples], steps=60, **learning(lr=0.1))
    assert value_of(policy) > 0.9


def test_mlp_is_fitted_and_reaches_contexts_it_was_not_trained_on() -> None:
    """KL(data || policy) below .01 nats on the 100 contexts of the fit, and almost that on 20 others; REINFORCE on the
    former then moves the latter too."""
    states = [*questions(0, 100, 100), *questions(100, 20, 100)]
    policy = mlp_policy(100, states, context_features(120), seed=0)
    assert [tuple(weight.shape) for name, weight in policy.model.named_parameters() if weight.ndim == 2] == [
        (50, 100), (256, 50), (256, 256), (100, 256),
    ]  # fmt: skip
    target = data_policy()
    assert policy.fit(target, states=range(100), steps=150) < 0.01
    kl = (target * np.log(target / policy.probabilities())).sum(1)
    assert kl[100:].mean() < 0.02
    values = reward_table("R2", contexts=1, arms=100)[0]
    before = policy.probabilities()[100:] @ values
    stream = online(policy, BANDIT, collect=CollectOptions(env_options={"reward": "R2"}, groups=10, group_size=10))
    train(REINFORCE(baseline="group"), policy, None, stream, steps=15, **learning(lr=3e-3))
    assert (policy.probabilities()[100:] @ values).mean() > before.mean() + 0.1


@pytest.mark.parametrize("kind", ["table", "mlp"])
def test_copies_and_files(kind: str, tmp_path: Path) -> None:
    """A copy is frozen and stays as it was; a file gives back weights, actions, states, version and critic."""
    made = (
        table_policy(("left", "right"), ("here", "there"), probabilities=[0.25, 0.75], critic=True, version="a")
        if kind == "table"
        else mlp_policy(("left", "right"), ("here", "there"), np.eye(2), seed=3, hidden=(4, 5, 6, 7, 8), critic=True)
    )
    twin = made.copy(version="b")
    before = twin.probabilities()
    made.fit([0.5, 0.5], steps=1, lr=0.5)
    np.testing.assert_array_equal(twin.probabilities(), before)
    assert twin.version == "b"
    assert not any(p.requires_grad for p in twin.model.parameters())
    with pytest.raises(ValueError, match="parameters are all frozen"):
        train(RWR(), twin, None, [], steps=1, **learning())
    made.save_pretrained(tmp_path)
    loaded = TabularPolicy.from_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded.probabilities(), made.probabilities())
    assert (loaded.actions, loaded.states, loaded.version) == (made.actions, made.states, made.version)
    assert loaded.model.state_dict().keys() == made.model.state_dict().keys()


def test_mistakes_are_named(tmp_path: Path) -> None:
    """Unknown states and actions, shapes that do not fit, tokens of others, folders without a policy."""
    policy = table()
    with pytest.raises(CollectError, match=r"expected one of its 2 observations, got 'Context 7.*Did you mean"):
        collect(policy, BANDIT, env_options={"arms": 3, "contexts": 1, "first_context": 7}, progress=False)
    with pytest.raises(ValueError, match="expected one of its 3 actions, got 'four'"):
        policy.written(Trajectory(BANDIT, 0, (Turn(questions()[0], "four"),)))
    with pytest.raises(ValueError, match=r"without tokens or with context \[3\], got \[9, 9\]"):
        policy.written(Trajectory(BANDIT, 0, (Turn(questions()[0], "1", context_ids=np.array([9, 9])),)))
    with pytest.raises(ValueError, match="expected different texts"):
        table_policy(("a", "a"))
    with pytest.raises(ValueError, match=r"expected positive probabilities \[2\] or \[1, 2\], got shape \(2,\)"):
        table_policy(("a", "b"), probabilities=[1.0, 0.0])
    with pytest.raises(ValueError, match=r"expected features \[2, D\], got shape \(3, 2\)"):
        mlp_policy(2, ("s", "t"), np.zeros((3, 2)), seed=0)
    with pytest.raises(ValueError, match="add to 1"):
        policy.fit([0.5, 0.5, 0.5])
    with pytest.raises(PolicyLoadError, match=r"tabular\.json"):
        TabularPolicy.from_pretrained(tmp_path)


def test_the_mixture_agent_is_exported() -> None:
    """Beside the other agents, without importing its module by name."""
    assert MixtureAgent.__module__ == "polyturn.agents.transformer.mixture"
