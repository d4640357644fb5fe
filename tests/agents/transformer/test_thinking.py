"""A budget for thinking: the closing mark is put there, and no loss looks at it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyturn.agents.agent import ContextFull, Episode, ScriptedAgent
from polyturn.agents.collecting.collect import collect
from polyturn.agents.collecting.roles import AgentPartner, other_side
from polyturn.agents.transformer.agent import TransformerAgent
from polyturn.agents.transformer.engines.settings import TokenServers
from polyturn.agents.transformer.engines.thinking import Thinking
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.algorithms.batch import collate
from polyturn.algorithms.estimators import policy_mask
from polyturn.algorithms.methods.actor_critic import PPO
from polyturn.algorithms.networks.value import turn_slots
from polyturn.algorithms.pairing import Example
from polyturn.envs.store import Store, read
from polyturn.envs.trajectory import Trajectory, Turn

WORDS = ["the cat <think> sat on the mat </think> and counted 1 2 3 times\n"] * 20
OPEN, CLOSE = "<think>", "</think>"


@pytest.fixture(scope="module", params=["one token", "letters"])
def policy(request: pytest.FixtureRequest) -> Policy:
    """One whose marks are tokens of their own, and one that spells them."""
    words = WORDS if request.param == "letters" else ["the cat sat\n"] * 9
    made = tiny_policy(words, seed=0, vocab_size=262, hidden=32, layers=2, heads=2, init=0.3)
    if request.param == "letters":
        return made
    made.tokenizer.add_tokens([OPEN, CLOSE])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made.model.resize_token_embeddings(len(made.tokenizer))
    return Policy(made.model, made.tokenizer, version="marks")


def act(
    policy: Policy, opening: str, *, most: int, limit: int = 30, max_tokens: int = 300, engine: str = "exact"
) -> Any:
    """One action of an agent whose chat template has opened the answer with a text."""
    agent = TransformerAgent(
        policy, sampling=Sampling(max_new_tokens=limit, max_thinking_tokens=most), max_tokens=max_tokens, engine=engine
    )
    context = policy.chat.context

    def opened(observation: str, previous: Any) -> Any:
        mark = policy.tokenizer.encode(opening, add_special_tokens=False) if opening else []
        return np.concatenate([context(observation, previous), np.asarray(mark, np.int32)])

    async def once() -> Any:
        episode = Episode("e", 0, "", 0, np.random.default_rng(1), "the cat")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(policy.chat, "context", opened)
            try:
                return await agent.act(episode)
            finally:
                agent.release(episode)

    return asyncio.run(once())


def check(policy: Policy, action: Any, most: int) -> None:
    """What is forced is the mark, and all else has the log-probability that the policy gives it."""
    mark = policy.tokenizer.encode(CLOSE, add_special_tokens=False)
    assert [int(action.action_ids[place]) for place in action.forced] == mark
    assert action.forced == tuple(range(most, most + len(mark)))
    row = torch.from_numpy(np.concatenate([action.context_ids, action.action_ids])[None].astype(np.int64))
    with torch.no_grad():
        logps = policy.model(input_ids=row).logits[0, :-1].log_softmax(-1)
    own = logps.gather(1, row[0, 1:, None])[:, 0].numpy()[len(action.context_ids) - 1 :]
    sampled = np.array([place not in action.forced for place in range(len(action.action_ids))])
    np.testing.assert_allclose(action.logps[sampled], own[sampled], atol=1e-4)
    assert (action.logps[~sampled] == 0).all()


@pytest.mark.parametrize("engine", ["exact", "transformers"])
@pytest.mark.parametrize("most", [0, 5])
def test_the_mark_is_put_where_the_budget_ends(policy: Policy, engine: str, most: int) -> None:
    action = act(policy, OPEN, most=most, engine=engine)
    check(policy, action, most)
    assert len(action.action_ids) <= 30
    assert len(action.action_ids) == 30 or int(action.action_ids[-1]) in policy.chat.stop_ids


def test_without_a_thought_nothing_is_put_there(policy: Policy) -> None:
    """Also where the environment's own words hold the mark."""
    plain = act(policy, "", most=0)
    assert plain.forced == ()
    assert len(plain.action_ids) > 0
    assert act(policy, f"{OPEN} mat {CLOSE}", most=0).forced == ()
    assert act(policy, f"{OPEN} mat", most=0).forced == ()


def test_a_thought_that_is_cut_off_by_another_limit_stays_open(policy: Policy) -> None:
    mark = len(policy.tokenizer.encode(CLOSE, add_special_tokens=False))
    action = act(policy, OPEN, most=4, limit=4 + mark)
    assert (len(action.action_ids), action.forced) == (4, ())
    with pytest.raises(ContextFull, match="closing mark"):
        act(policy, OPEN, most=0, limit=mark)


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("the cat <think> sat", 2, True),
        ("the cat <think> sat on the mat</think> and the cat sat on the mat", 99, False),
        ("<think>a</think><think>b", 1, True),
        ("<think>a</think><think>b</think>", 1, False),
        ("the cat sat on the mat", 0, False),
        ("<think>", 0, True),
        ("</think> the cat", 0, False),
    ],
)
def test_thoughts_are_followed_token_by_token(policy: Policy, text: str, most: int, expected: bool) -> None:
    ids = policy.tokenizer.encode(text, add_special_tokens=False)
    thinking = Thinking(policy.tokenizer, most, [])
    for count in range(1, len(ids) + 1):
        thinking.heard(ids[:count])
    assert thinking.exhausted is expected


def _trajectory() -> Trajectory:
    """Two turns; in the first, tokens 1 and 2 of four were put there."""

    def turn(*forced: int) -> Turn:
        ids = np.arange(10, 14, dtype=np.int32)
        logps = np.where(np.isin(range(4), forced), 0.0, -1.0).astype(np.float32)
        return Turn("o", "a", 1.0 + len(forced), np.array([5], np.int32), ids, logps, forced=forced)

    return Trajectory("e", 0, (turn(1, 2), turn()), terminated=True)


def test_what_was_put_there_is_nobodys(tmp_path: Path) -> None:
    made = _trajectory()
    assert made.tokens[1].tolist() == [-1, 0, -1, -1, 0, -1, 1, 1, 1, 1]
    with Store(tmp_path / "s.jsonl") as store:
        store.append(made)
    assert next(read(tmp_path / "s.jsonl")) == made == Trajectory.from_json(made.to_json())
    assert "forced" not in made.turns[1].to_json()
    for wrong in ((4,), (-1,), (1, 1), (2, 1)):
        with pytest.raises(ValueError, match="rising places"):
            Turn("o", "a", action_ids=np.arange(4, dtype=np.int32), forced=wrong)


def test_a_turn_with_a_gap_is_one_turn_to_values_and_rewards() -> None:
    """It opens once, and is paid once, at its last token."""
    batch = collate([Example((_trajectory(),))])
    column, steps = turn_slots(batch.turn_ids)
    assert (column.tolist(), steps.tolist()) == ([[1, 6]], [[True, True]])
    paid = PPO(reward="turns")._paid(batch, policy_mask(batch.turn_ids))
    assert paid.tolist() == [[0, 0, 0, 0, 3, 0, 0, 0, 0, 1]]


def test_a_partner_that_thinks_says_so_in_its_own_trajectory(policy: Policy) -> None:
    """Its side of the conversation is trained on too."""
    how = Sampling(max_new_tokens=24, max_thinking_tokens=0)
    partner = TransformerAgent(policy, sampling=how, max_tokens=900)
    with pytest.MonkeyPatch.context() as patch:
        context, mark = policy.chat.context, policy.tokenizer.encode(OPEN, add_special_tokens=False)
        patch.setattr(policy.chat, "context", lambda o, p: np.concatenate([context(o, p), np.asarray(mark, np.int32)]))
        groups = collect(
            ScriptedAgent(["Well?"]), "polyturn/EducationDialogue-v0", env_options={"student": AgentPartner(partner)},
            progress=False,
        )  # fmt: skip
    theirs = other_side(groups[0][0])
    assert theirs is not None
    assert all(turn.forced == tuple(range(len(turn.forced))) != () for turn in theirs.turns)


def test_servers_refuse_it_by_name(policy: Policy) -> None:
    with pytest.raises(ValueError, match="max_thinking_tokens"):
        TransformerAgent(
            policy, sampling=Sampling(max_thinking_tokens=5), engine=TokenServers(urls=("http://127.0.0.1:9/v1",))
        )
    with pytest.raises(ValueError, match=r"Sampling\.max_thinking_tokens"):
        Sampling(max_thinking_tokens=-1)
    assert "max_thinking_tokens=5" in TransformerAgent(policy, sampling=Sampling(max_thinking_tokens=5)).name
