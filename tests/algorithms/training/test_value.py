"""Values of prefixes: where they stand, what they may see, and that they are trained and saved with the policy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.rows import Rows
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms import PPO, ActorCritic, Example, collate, train
from polyturn.algorithms.networks.value import token_slots, turn_slots
from polyturn.algorithms.training.options import TrainOptions
from polyturn.envs.trajectory import Trajectory, Turn

torch.set_num_threads(1)


def tiny() -> Policy:
    return tiny_policy(["x"], seed=0, hidden=16, layers=1, heads=2, context=32)


def moved(both: ActorCritic) -> ActorCritic:
    """A head that says something: it starts at zero."""
    with torch.no_grad():
        both.value.head.weight.copy_(torch.linspace(-1, 1, 16)[None])
    return both


@pytest.mark.parametrize("shared", [False, True])
def test_a_value_sees_what_is_before_its_token_and_no_padding(shared: bool) -> None:
    """Token 3 changed: values up to that of token 3 stay, that of token 4 does not."""
    both = moved(ActorCritic(tiny(), shared=shared))
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    other = ids.clone()
    other[0, 3] = 20
    with torch.no_grad():
        first, second = both.values(ids, mask)[0], both.values(other, mask)[0]
        wide = torch.cat([ids, torch.tensor([[30, 31]])], 1)
        padded = both.values(wide, torch.tensor([[True] * 5 + [False] * 2]))[0]
    assert first[0] == 0
    torch.testing.assert_close(first[:4], second[:4])
    assert (first[4] - second[4]).abs() > 1e-4
    torch.testing.assert_close(padded[:5], first, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_the_scorer_says_both_and_the_policy_as_without_it(shared: bool) -> None:
    policy = tiny()
    both = moved(ActorCritic(policy, shared=shared))
    ids = torch.tensor([[5, 6, 7, 8]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        said = both.scorer(Rows.of(ids, mask), mask)
    torch.testing.assert_close(said["logps"], policy.logps(ids, mask).detach())
    torch.testing.assert_close(said["values"], both.values(ids, mask).detach())


def test_only_a_shared_value_moves_the_policys_body() -> None:
    for shared in (False, True):
        both = moved(ActorCritic(tiny(), shared=shared))
        ids = torch.tensor([[5, 6, 7, 8]])
        both.values(ids, ids > 0).sum().backward()
        reached = any(p.grad is not None and bool(p.grad.abs().max() > 0) for p in both.policy.model.parameters())
        assert reached == shared


@pytest.mark.parametrize("shared", [False, True])
def test_saved_and_read_back(shared: bool, tmp_path: Path) -> None:
    both = moved(ActorCritic(tiny(), shared=shared, lr_scale=3.0))
    both.save_pretrained(tmp_path)
    again = ActorCritic.from_pretrained(tmp_path, device="cpu")
    mine, theirs = both.model.state_dict(), again.model.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert (again.shared, again.lr_scales) == (shared, {"value.": 3.0})
    assert Policy.from_pretrained(tmp_path, device="cpu").version == "random"


def trajectory(reward: float, *actions: list[int]) -> Trajectory:
    turns = tuple(
        Turn("o", "a", reward, np.array([9], np.int32), np.array(ids, np.int32), np.full(len(ids), -5.0, np.float32))
        for ids in actions
    )
    return Trajectory("Toy-v0", 0, turns, terminated=True)


def test_the_value_learns_the_score_before_the_policy_moves() -> None:
    """Policy weight 0: the policy's weights stay, the value of every token of a row goes to the row's score."""
    both = ActorCritic(tiny(), lr_scale=10.0)
    before = {name: value.clone() for name, value in both.policy.model.state_dict().items()}
    rows = (trajectory(0.0, [20, 21], [22]), trajectory(0.0, [30, 31], [32]))
    example = Example(rows, scores=np.array([1.0, -1.0], np.float32))
    method = PPO(policy_weight=0.0, value_weight=1.0, lam=1.0)
    result = train(method, both, None, [[example]], steps=60, options=TrainOptions(lr=1e-3, cpu=True), progress=False)
    # Of three tokens one cannot be told apart between the rows: half of 1 squared stays on a third of them.
    assert result.history[0]["value_error"] == pytest.approx(0.5)
    assert result.history[-1]["value_error"] == pytest.approx(0.5 / 3, abs=0.01)
    assert result.history[0]["lr"] == 1e-3
    assert all(torch.equal(value, before[name]) for name, value in both.policy.model.state_dict().items())
    batch = collate([example])
    with torch.no_grad():
        values = both.values(batch.ids, batch.mask)
    # The first token of a row comes after the same context in both: its value is the mean, 0.
    assert values[0, 1].item() == pytest.approx(values[1, 1].item(), abs=1e-5)
    later = (batch.turn_ids[0] >= 0).nonzero()[1:, 0]
    assert values[0, later].min() > 0.6
    assert values[1, later].max() < -0.6


def test_activation_checkpointing_reaches_both_networks_and_changes_nothing() -> None:
    rows = (trajectory(0.0, [20, 21], [22]), trajectory(0.0, [30], [32]))
    example = Example(rows, scores=np.array([1.0, -1.0], np.float32))
    results = []
    for checkpointing in (False, True):
        both = ActorCritic(tiny())
        options = TrainOptions(lr=1e-2, cpu=True, gradient_checkpointing=checkpointing)
        train(PPO(), both, None, [[example]], steps=2, options=options, progress=False)
        results.append(both.model.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, atol=1e-6, rtol=1e-4)


def test_slots() -> None:
    """Agent tokens at 1, 2 (turn 0) and 4 (turn 1); in the other row one at 3."""
    turn = torch.tensor([[-1, 0, 0, -1, 1], [-1, -1, -1, 0, -1]], dtype=torch.int16)
    column, mask = token_slots(turn)
    assert mask.tolist() == [[True, True, True], [True, False, False]]
    assert column[0].tolist() == [1, 2, 4]
    assert column[1, 0] == 3
    column, mask = turn_slots(turn)
    assert mask.tolist() == [[True, True], [True, False]]
    assert column[0].tolist() == [1, 4]
    assert column[1, 0] == 3


def test_a_frozen_copy_is_no_actor() -> None:
    """Its value would learn and its policy stand still, and nothing would say so."""
    with pytest.raises(ValueError, match=r"all frozen; a copy to be trained is policy\.copy\(trainable=True\)"):
        ActorCritic(tiny().copy())
    assert ActorCritic(tiny().copy(trainable=True)).policy is not None
