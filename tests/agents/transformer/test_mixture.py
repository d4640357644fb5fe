"""Sampling from the geometric mixture: the right distribution, recorded as sampled, at any concurrency."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from polyturn.agents.collecting.collect import collect
from polyturn.agents.transformer.agent import TransformerAgent
from polyturn.agents.transformer.engines.exact import ExactEngine
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.mixture import MixtureAgent
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.tiny import tiny_policy
from polyturn.envs.trajectory import Group

torch.set_num_threads(1)


def policy(seed: int) -> Policy:
    """Random weights, sharper than at their usual start, so that two policies differ by nats."""
    made = tiny_policy(["one two three"], seed=seed, vocab_size=270, hidden=16, layers=1, heads=2, context=96)
    with torch.no_grad():
        for parameter in made.model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(8.0)
    return made


def episodes(agent: Any, *, concurrency: int = 8, groups: int = 3) -> list[Group]:
    return collect(agent, "polyturn/TokenLength-v0", groups=groups, group_size=2, seed=3, concurrency=concurrency,
                   progress=False)  # fmt: skip


def mixture_logps(one: Policy, other: Policy, beta: float, ids: torch.Tensor) -> torch.Tensor:
    """`[T, V]` of the token after each position, from the two models' own forward passes."""
    with torch.no_grad():
        logits = [p.model(input_ids=ids[None]).logits[0].float() for p in (one, other)]
    return torch.log_softmax((1 - beta) * logits[0] + beta * logits[1], -1)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_recorded_logps_are_those_of_the_mixture(beta: float) -> None:
    one, other = policy(0), policy(1)
    agent = MixtureAgent(one, other, beta=beta, sampling=Sampling(max_new_tokens=12), max_tokens=90, slots=4)
    for member in (m for group in episodes(agent, groups=2) for m in group):
        ids, turn = (torch.from_numpy(x.astype(np.int64)) for x in member.tokens)
        logps = mixture_logps(one, other, beta, ids)
        place = torch.nonzero(turn >= 0)[:, 0]
        expected = logps[place - 1, ids[place]]
        recorded = np.concatenate([t.logps for t in member.turns])
        np.testing.assert_allclose(recorded, expected.numpy(), atol=2e-4)


def test_samples_follow_the_mixture() -> None:
    """First tokens of 2000 answers against the exact mixture: chi-squared over the tokens with enough mass.

    The 1 - 1e-6 quantile of chi-squared with at most 30 degrees of freedom is below 82; each single policy is far off.
    """
    one, other, beta = policy(0), policy(1), 0.4
    engine = MixtureAgent(one, other, beta=beta, sampling=Sampling(max_new_tokens=1), max_tokens=40, slots=64)._engine
    context = np.array([40, 41, 42], np.int32)

    async def draw(index: int) -> int:
        slot = await engine.acquire()
        try:
            ids, _ = await engine.generate(slot, context, np.random.default_rng([7, index]))
        finally:
            engine.release(slot)
        return int(ids[0])

    async def everyone() -> list[int]:
        return await asyncio.gather(*(draw(index) for index in range(2000)))

    count = np.bincount(asyncio.run(everyone()), minlength=270)
    ids = torch.from_numpy(context.astype(np.int64))

    def distance(share: float) -> float:
        expected = 2000 * mixture_logps(one, other, share, ids)[-1].exp().double().numpy()
        keep = np.argsort(-expected)[:30]
        return float(((count[keep] - expected[keep]) ** 2 / expected[keep]).sum())

    assert distance(beta) < 82
    assert min(distance(0.0), distance(1.0)) > 300


def test_the_ends_are_the_two_policies() -> None:
    """Beta 0 says what the policy says, beta 1 what the reference says, with the same random numbers."""
    one, other = policy(0), policy(1)
    options: dict[str, Any] = {"sampling": Sampling(max_new_tokens=8), "max_tokens": 90, "slots": 4}
    for beta, alone in ((0.0, one), (1.0, other)):
        mixed = episodes(MixtureAgent(one, other, beta=beta, **options))
        plain = episodes(TransformerAgent(alone, **options))
        for a, b in zip(itertools.chain(*mixed), itertools.chain(*plain), strict=True):
            assert [t.action for t in a.turns] == [t.action for t in b.turns]


def test_the_same_bits_at_any_concurrency() -> None:
    one, other = policy(0), policy(1)
    agent = MixtureAgent(one, other, beta=0.25, sampling=Sampling(max_new_tokens=10), max_tokens=90, slots=6)
    assert episodes(agent, concurrency=1) == episodes(agent, concurrency=6)


def test_logits_are_mixed_after_the_soft_cap() -> None:
    """Two models with caps of 1 on logits that reach far beyond it: mixing before capping would be another thing."""

    def capped(seed: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Gemma2ForCausalLM(
                Gemma2Config(
                    vocab_size=31, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                    num_key_value_heads=1, head_dim=8, final_logit_softcapping=1.0, max_position_embeddings=64,
                    pad_token_id=0, bos_token_id=None, eos_token_id=5,
                )
            ).eval()  # fmt: skip
            model.model.embed_tokens.weight.data.mul_(40.0)
        return model

    one, other = capped(0), capped(1)
    engine = ExactEngine(one, frozenset([5]), Sampling(max_new_tokens=6), slots=2, capacity=40, beside=other,
                    mix=lambda a, b: 0.5 * a + 0.5 * b)  # fmt: skip

    async def speak() -> Any:
        slot = await engine.acquire()
        return await engine.generate(slot, np.array([1, 2, 3], np.int32), np.random.default_rng(0))

    ids, logps = asyncio.run(speak())
    whole = torch.tensor([[1, 2, 3, *ids.tolist()]])
    with torch.no_grad():
        mixed = (0.5 * one(whole).logits + 0.5 * other(whole).logits)[0].log_softmax(-1)
        heads = [m.lm_head(m.model(whole).last_hidden_state)[0] for m in (one, other)]
        before = torch.tanh(0.5 * heads[0] + 0.5 * heads[1]).log_softmax(-1)
    place = torch.arange(2, 2 + len(ids))
    right, wrong = (x[place, whole[0, 3:]].numpy() for x in (mixed, before))
    np.testing.assert_allclose(logps, right, atol=1e-4)
    assert np.abs(right - wrong).max() > 0.05


def test_what_cannot_be_mixed_is_refused() -> None:
    one = policy(0)
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 1.5"):
        MixtureAgent(one, policy(1), beta=1.5)
    stranger = tiny_policy(["quite other words"], seed=0, vocab_size=270, hidden=16, layers=1, heads=2)
    with pytest.raises(ValueError, match="one tokenizer"):
        MixtureAgent(one, stranger, beta=0.5)
