"""verifiers v1, the real package: its rollouts against our endpoint are groups that methods train on."""

from __future__ import annotations

import os

import numpy as np
import pytest

from polyturn.agents import CollectOptions, Sampling, TransformerAgent, tiny_policy, verifiers_program

pytestmark = pytest.mark.peer(name="verifiers")


@pytest.fixture(scope="module")
def agent() -> TransformerAgent:
    policy = tiny_policy(["Say first. And again?"], seed=0, hidden=32, layers=2, heads=2)
    return TransformerAgent(policy, sampling=Sampling(max_new_tokens=6), max_tokens=400, slots=4)


def test_its_rollouts_are_groups_with_tokens_as_sampled(agent: TransformerAgent) -> None:
    program = verifiers_program("vf-echo", tasks=2)
    groups = program.collect([agent] * 2, progress=False)
    assert [group[0].task_id for group in groups] == ["first", "second"]
    for group in groups:
        for run in group:
            assert run.valid, run.error
            assert len(run.turns) == 2
            assert len(run.segments) == 1  # the second call continues the first, in its own tokens
            assert run.total_reward == sum(len(turn.action) for turn in run.turns)
            assert all(turn.action_ids is not None and turn.logps is not None for turn in run.turns)
    again = program.collect([agent] * 2, progress=False)
    for group, other in zip(groups, again, strict=True):
        for run, same in zip(group, other, strict=True):
            for turn, twin in zip(run.turns, same.turns, strict=True):
                np.testing.assert_array_equal(turn.action_ids, twin.action_ids)
    assert not [name for name in os.environ if name.startswith("POLYTURN_VERIFIERS")]


def test_an_episode_that_is_not_ok_is_invalid(agent: TransformerAgent) -> None:
    program = verifiers_program("vf-echo")
    ((good,), (bad,)) = program.collect([agent], tasks=[0, 2], progress=False)
    assert good.valid
    assert not bad.valid
    assert bad.error is not None
    assert "the harness fell over" in bad.error


def test_a_method_trains_on_it(agent: TransformerAgent) -> None:
    from polyturn.algorithms import MDPO, TrainOptions, online, train

    policy = tiny_policy(["Say first. And again?"], seed=0, hidden=32, layers=2, heads=2)
    source = online(
        policy,
        verifiers_program("vf-echo", tasks=1),
        collect=CollectOptions(groups=1, group_size=4, sampling=agent.sampling, max_tokens=400, slots=4),
    )
    before = [weights.detach().clone() for weights in policy.model.parameters()]
    train(MDPO(), policy, policy.copy(), source, steps=1, options=TrainOptions(lr=1e-3), progress=False)
    assert any(not old.equal(new.detach()) for old, new in zip(before, policy.model.parameters(), strict=True))


def test_names_and_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"verifiers_program\('vf-ecco'\): taskset 'vf-ecco' not found"):
        verifiers_program("vf-ecco")
    with pytest.raises(ValueError, match="colour"):
        verifiers_program("vf-echo", env={"colour": "red"})
