"""transformers' continuous batching as an engine: what it samples is what the policy scores."""

from __future__ import annotations

import asyncio
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from polyturn.agents.collecting.collect import CollectError, collect
from polyturn.agents.transformer.agent import TransformerAgent
from polyturn.agents.transformer.engines import continuous
from polyturn.agents.transformer.generation import GenerationError, Sampling
from polyturn.agents.transformer.mixture import MixtureAgent
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.envs.spaces import UnicodeText
from polyturn.envs.trajectory import Trajectory

WORDS = ["the cat sat on the mat and counted 1 2 3 4 5 6 7 8 9 0 times\n"] * 20


class Chat(gymnasium.Env[str, str]):
    """Two turns, whose words come from the seed."""

    def __init__(self) -> None:
        self.observation_space = self.action_space = UnicodeText()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = 2
        return f"the cat counted {self.np_random.integers(1000)}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return f"and {self.left} times", 0.0, self.left == 0, False, {}


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy(WORDS, seed=0, vocab_size=280, hidden=32, layers=2, heads=2, init=0.3, version="w")


def agent(policy: Policy, engine: str = "transformers", **how: Any) -> TransformerAgent:
    sampling = Sampling(**{"max_new_tokens": 6, **how})
    return TransformerAgent(policy, sampling=sampling, max_tokens=200, slots=3, engine=engine)


def played(by: TransformerAgent, **options: Any) -> list[Trajectory]:
    groups = collect(by, Chat, **{"groups": 2, "group_size": 2, "seed": 5, "progress": False, **options})
    return [member for group in groups for member in group]


def said(members: list[Trajectory]) -> list[list[int]]:
    return [turn.action_ids.tolist() for member in members for turn in member.turns]


def check_scores(policy: Policy, sampling: Sampling, members: list[Trajectory]) -> None:
    for member in members:
        ids, turn = member.tokens
        row = torch.from_numpy(ids[None].astype(np.int64))
        with torch.no_grad():
            logps = sampling.log_probs(policy.model(input_ids=row).logits[0, :-1])
        own = logps.gather(1, row[0, 1:, None])[:, 0].numpy()[turn[1:] >= 0]
        np.testing.assert_allclose(np.concatenate([each.logps for each in member.turns]), own, atol=1e-4)


def test_greedy_tokens_are_those_of_the_exact_engine(policy: Policy) -> None:
    found = played(agent(policy, temperature=0.0))
    assert said(found) == said(played(agent(policy, "exact", temperature=0.0)))
    assert all((turn.logps == 0).all() for member in found for turn in member.turns)
    assert found[0].turns[0].info["agent"] == {"engine": "transformers", "bit_identical": False,
                                               "own_generators": False}  # fmt: skip
    assert "engine=transformers" in found[0].agent


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"temperature": 0.7, "top_k": 9, "top_p": 0.9},
        {"min_p": 0.05, "max_new_tokens": 40, "stop": tuple("aeiounst")},
    ],
)
def test_log_probabilities_are_of_the_distribution_sampled_from(policy: Policy, how: dict[str, Any]) -> None:
    acting = agent(policy, **how)
    found = played(acting)
    assert all(member.valid and len(member.turns) == 2 for member in found)
    check_scores(policy, acting.sampling, found)
    for ids in said(found):
        whole = len(ids) == acting.sampling.max_new_tokens or ids[-1] in policy.chat.stop_ids
        assert whole or any(text in policy.tokenizer.decode(ids) for text in acting.sampling.stop)
        assert not any(text in policy.tokenizer.decode(ids[:-1]) for text in acting.sampling.stop)


def test_weights_may_change_between_collections_and_nothing_global_does(policy: Policy) -> None:
    """Its caches go with the last conversation, and the generators of the process are put back."""
    mine = policy.copy()
    acting = agent(mine, temperature=0.0)
    exact = agent(mine, "exact", temperature=0.0)
    before = torch.get_rng_state()
    for _ in range(2):
        assert said(played(acting, groups=1)) == said(played(exact, groups=1))
        with torch.no_grad():
            for parameter in mine.model.parameters():
                parameter.mul_(1.2)
    assert torch.equal(torch.get_rng_state(), before)
    assert mine.model.config._attn_implementation == policy.model.config._attn_implementation
    # One at a time, the seed says all.
    alone = [said(played(agent(mine), groups=1, group_size=1, concurrency=1, seed=seed)) for seed in (5, 5, 6)]
    assert alone[0] == alone[1] != alone[2]


def test_what_it_cannot_do_is_refused_by_name(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="mixing token by token"):
        MixtureAgent(policy, policy, beta=0.5, engine="transformers")
    capabilities = agent(policy).engine.capabilities
    assert not capabilities.own_generators
    assert not capabilities.mixtures
    # A model that it reads in another way than the policy scores it.
    monkeypatch.setattr(continuous, "disagreement", lambda *_: 1.5)
    with pytest.raises(CollectError, match=r"differ by 1\.5 nats") as caught:
        played(agent(policy))
    assert isinstance(caught.value.__cause__, GenerationError)


def test_a_cancelled_request_leaves_the_others_alone(policy: Policy) -> None:
    engine = agent(policy, max_new_tokens=40).engine
    prompt = np.arange(5, 25, dtype=np.int32)

    async def both() -> int:
        slots = [await engine.acquire() for _ in range(2)]
        tasks = [asyncio.ensure_future(engine.generate(s, prompt, np.random.default_rng(s))) for s in slots]
        await asyncio.sleep(0)
        tasks[0].cancel()
        ids, _ = await tasks[1]
        engine.release(slots[0])
        engine.release(slots[1])
        return len(ids)

    assert asyncio.run(both()) > 0
