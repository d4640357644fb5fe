"""The rollout engine: the same numbers at any concurrency, and the numbers that scoring gives."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from polyturn.agents.transformer.engines.exact import ExactEngine
from polyturn.agents.transformer.engines.trial import ConcurrencyWarning
from polyturn.agents.transformer.generation import GenerationError, Sampling, draw
from polyturn.agents.transformer.rows import Rows
from polyturn.agents.transformer.scoring import ModelScorer

STOP = frozenset([5])
Spoken = list[tuple[list[int], bytes]]


def seeded(make: Callable[[Any], PreTrainedModel], config: Any, seed: int = 0) -> PreTrainedModel:
    """A model with random weights, sharper than at its usual start so that scoring has something to say."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make(config).eval()
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.data.mul_(4.0)
    return model


def llama(hidden: int = 128, layers: int = 4, heads: int = 4, kv: int = 4, context: int = 512) -> PreTrainedModel:
    return seeded(
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=97, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=kv, max_position_embeddings=context,
            pad_token_id=0, bos_token_id=None, eos_token_id=5,
        ),
    )  # fmt: skip


def gemma2() -> PreTrainedModel:
    """Two sliding and two full layers, soft caps low enough to bite, a window shorter than an episode."""
    return seeded(
        Gemma2ForCausalLM,
        Gemma2Config(
            vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, sliding_window=24, attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0, query_pre_attn_scalar=16, max_position_embeddings=512,
            pad_token_id=0, bos_token_id=None, eos_token_id=5,
        ),
    )  # fmt: skip


def mistral() -> PreTrainedModel:
    return seeded(
        MistralForCausalLM,
        MistralConfig(
            vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, sliding_window=24, max_position_embeddings=512,
            pad_token_id=0, bos_token_id=None, eos_token_id=5,
        ),
    )  # fmt: skip


def qwen3() -> PreTrainedModel:
    return seeded(
        Qwen3ForCausalLM,
        Qwen3Config(
            vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=32, max_position_embeddings=512, pad_token_id=0, eos_token_id=5,
        ),
    )  # fmt: skip


def gpt2() -> PreTrainedModel:
    """Learned positions: the table ends where the context does."""
    return seeded(
        GPT2LMHeadModel, GPT2Config(vocab_size=97, n_embd=64, n_layer=2, n_head=4, n_positions=200, eos_token_id=5)
    )


def talk(engine: ExactEngine, episodes: int, *, concurrency: int, turns: int = 3, seed: int = 0) -> Spoken:
    """Episodes of a few turns with contexts of uneven length; returns every episode's tokens and log-prob bytes."""

    async def episode(index: int, gate: asyncio.Semaphore) -> tuple[list[int], list[int], bytes]:
        rng = np.random.default_rng([seed, index])
        world = np.random.default_rng([seed, index, 1])
        ids: list[int] = []
        sampled: list[int] = []
        logps = b""
        async with gate:
            slot = await engine.acquire()
            try:
                for _ in range(turns):
                    context = world.integers(6, 97, size=int(world.integers(3, 40)))
                    unread = np.concatenate([ids[-1:], context]).astype(np.int32)
                    if engine.length(slot) + len(unread) + 1 > engine.capacity:
                        break
                    new, values = await engine.generate(slot, unread, rng)
                    ids += [*context.tolist(), *new.tolist()]
                    sampled += [0] * len(context) + [1] * len(new)
                    logps += values.tobytes()
            finally:
                engine.release(slot)
        return ids, sampled, logps

    async def everyone() -> Any:
        gate = asyncio.Semaphore(concurrency)
        return await asyncio.gather(*(episode(index, gate) for index in range(episodes)))

    result = asyncio.run(everyone())
    engine.marks = [marks for _, marks, _ in result]  # type: ignore[attr-defined]
    return [(ids, logps) for ids, _, logps in result]


def check_scored(model: PreTrainedModel, spoken: Spoken, marks: Any) -> None:
    """Log-probabilities are those that scoring gives."""
    scorer = ModelScorer(model)
    for (ids, logps), sampled in zip(spoken, marks, strict=True):
        tokens = torch.tensor([ids])
        with torch.no_grad():
            scored = scorer(Rows.of(tokens, torch.ones_like(tokens, dtype=torch.bool)))["logps"][0].numpy()
        assert np.abs(scored[np.array(sampled) == 1] - np.frombuffer(logps, np.float32)).max() < 1e-4


def make(model: PreTrainedModel, **options: Any) -> ExactEngine:
    sampling = Sampling(max_new_tokens=options.pop("max_new_tokens", 20), **options.pop("sampling", {}))
    return ExactEngine(model, STOP, sampling, **{"slots": 8, "capacity": 200, **options})


CASES: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, Any]]] = {
    "llama": (lambda: llama(layers=2), {"slots": 64, "capacity": 400}),
    "wide": (lambda: llama(hidden=192, layers=2, heads=3, kv=3), {"slots": 8, "capacity": 130}),
    "grouped queries": (lambda: llama(hidden=64, layers=2, heads=8, kv=2), {"capacity": 190}),
    "gemma2": (gemma2, {}),
    "mistral": (mistral, {"slots": 8}),
    "qwen3": (qwen3, {}),
    "gpt2": (gpt2, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_concurrency_changes_no_bit_and_sampling_agrees_with_scoring(name: str) -> None:
    """The same tokens and bits of their log-probs at concurrency 1, 7 and all; and those that scoring gives."""
    build, options = CASES[name]
    model = build()
    together = make(model, max_new_tokens=8, **options)
    expected = talk(together, 9, concurrency=64, turns=2)
    assert talk(make(model, max_new_tokens=8, **options), 9, concurrency=7, turns=2) == expected
    assert talk(make(model, max_new_tokens=8, **options), 3, concurrency=1, turns=2) == expected[:3]
    check_scored(model, expected, together.marks)  # type: ignore[attr-defined]
    assert len({tuple(ids) for ids, _ in expected}) == 9


def test_concurrency_changes_no_bit_on_two_threads_either() -> None:
    model = llama(hidden=64, layers=2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = talk(make(model, max_new_tokens=4, slots=4), 4, concurrency=4, turns=2)
        assert talk(make(model, max_new_tokens=4, slots=4), 1, concurrency=1, turns=2) == expected[:1]
    finally:
        torch.set_num_threads(before)


class Counted:
    """Counts the tokens that pass through a model's first linear layer."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.tokens = 0
        layer = next(module for module in model.modules() if isinstance(module, torch.nn.Linear))
        self._handle = layer.register_forward_pre_hook(self._count)

    def _count(self, module: torch.nn.Module, inputs: Any) -> None:
        self.tokens += inputs[0].shape[:-1].numel()

    def stop(self) -> int:
        self._handle.remove()
        return self.tokens


@pytest.mark.parametrize("length", [70, 128, 129, 170])
def test_a_prompt_that_conversations_share_is_read_once_and_changes_no_bit(length: int) -> None:
    """Six members of one prompt, and one whose prompt parts from it: the bits of each by itself, with less work.

    A member that comes while the others hold the prompt, one that comes when its holder's slot is being used anew, and
    members that are read at once are all served.
    """
    model = llama(layers=2, hidden=64)
    world = np.random.default_rng(length)
    prompt = world.integers(6, 97, size=length).astype(np.int32)
    other = np.concatenate([prompt[:100], world.integers(6, 97, size=40)]).astype(np.int32)

    def spoken(engine: ExactEngine, members: list[int], gate_size: int) -> Any:
        async def member(index: int, gate: asyncio.Semaphore) -> Any:
            async with gate:
                slot = await engine.acquire()
                try:
                    rng = np.random.default_rng(index)
                    first = await engine.generate(slot, other if index == 5 else prompt, rng, limit=index + 1)
                    last = np.array([first[0][-1], 7, 8], np.int32)
                    second = await engine.generate(slot, last, rng, limit=2)
                finally:
                    engine.release(slot)
                return [(ids.tolist(), logps.tobytes()) for ids, logps in (first, second)]

        async def everyone() -> Any:
            gate = asyncio.Semaphore(gate_size)
            return await asyncio.gather(*(member(index, gate) for index in members))

        return asyncio.run(everyone())

    expected = []
    counted = Counted(model)
    for index in range(7):
        expected += spoken(make(model, max_new_tokens=8), [index], 1)
    apart = counted.stop()
    engine = make(model, max_new_tokens=8)
    counted = Counted(model)
    assert spoken(engine, list(range(7)), 7) == expected
    assert counted.stop() < 0.6 * apart
    assert spoken(make(model, max_new_tokens=8, slots=3), list(range(7)), 3) == expected
    # The same engine, later, with other weights: nothing of the earlier prompts is left.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    fresh = spoken(make(model, max_new_tokens=8), [0], 1)
    assert spoken(engine, [0], 1) == fresh != expected[:1]


def test_gemma_attends_through_its_soft_cap_and_window() -> None:
    """Without the cap, or with a wider window, the same tokens have other log-probs: both are really applied."""
    model = gemma2()
    ids = torch.from_numpy(np.random.default_rng(0).integers(6, 97, size=(1, 60)))
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        capped = ModelScorer(model)(Rows.of(ids, mask))["logps"]
        for layer in model.model.layers:
            layer.self_attn.attn_logit_softcapping = None
        assert float((ModelScorer(model)(Rows.of(ids, mask))["logps"] - capped).abs().max()) > 1e-2


def test_attention_kernels_with_masks_of_their_own_are_exchanged_while_sampling() -> None:
    model = qwen3()
    expected = talk(make(model), 3, concurrency=3)
    model.config._attn_implementation = "flex_attention"
    assert talk(make(model), 3, concurrency=3) == expected
    assert model.config._attn_implementation == "flex_attention"


def test_greedy_takes_the_best_token_with_certainty() -> None:
    model = llama(layers=2)
    engine = make(model, sampling={"temperature": 0.0}, max_new_tokens=8)
    (ids, logps), *_ = talk(engine, 1, concurrency=1, turns=1)
    count = len(logps) // 4
    context = len(ids) - count
    for end in range(context, len(ids)):
        with torch.no_grad():
            best = int(model(input_ids=torch.tensor([ids[:end]])).logits[0, -1].argmax())
        assert ids[end] == best
    assert not np.frombuffer(logps, np.float32).any()


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    """Probabilities .5, .3, .15, .05: top_p=.6 keeps the first two, as 5/8 and 3/8; top_p=.45 only the first."""
    logits = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).log()
    kept = Sampling(top_p=0.6).log_probs(logits).exp()
    assert kept.tolist()[0] == pytest.approx([0.0, 0.625, 0.0, 0.375])
    assert Sampling(top_p=0.45).log_probs(logits).exp().tolist()[0] == pytest.approx([0.0, 1.0, 0.0, 0.0])
    hot = Sampling(temperature=2.0).log_probs(logits).exp()[0]
    roots = np.sqrt([0.05, 0.5, 0.15, 0.3])
    assert hot.tolist() == pytest.approx((roots / roots.sum()).tolist(), rel=1e-5)


def test_top_k_and_min_p_keep_what_they_say() -> None:
    """Probabilities .5, .3, .15, .05: top_k=2 as 5/8 and 3/8; min_p=.25 keeps those above .125; both after heat."""
    logits = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).log() + 3.0
    assert Sampling(top_k=2).log_probs(logits).exp().tolist()[0] == pytest.approx([0.0, 0.625, 0.0, 0.375])
    assert Sampling(top_k=9).log_probs(logits).exp().tolist()[0] == pytest.approx([0.05, 0.5, 0.15, 0.3])
    kept = Sampling(min_p=0.25).log_probs(logits).exp().tolist()[0]
    assert kept == pytest.approx([0.0, 0.5 / 0.95, 0.15 / 0.95, 0.3 / 0.95])
    # At temperature 2 the ratios are roots: sqrt(.05 / .5) = .316 is above .25 too.
    assert bool((Sampling(min_p=0.25, temperature=2.0).log_probs(logits) > -torch.inf).all())
    assert Sampling(min_p=1.0).log_probs(logits).exp().tolist()[0] == pytest.approx([0.0, 1.0, 0.0, 0.0])


@pytest.mark.parametrize("size", [97, 128, 300, 1000])
def test_draws_invert_the_distribution_function(size: int) -> None:
    """Against a sum in token order in float64; a uniform number within 1e-6 of a bound may fall on either side."""
    generator = np.random.default_rng(size)
    logits = torch.from_numpy(generator.normal(scale=4.0, size=(200, size)).astype(np.float32))
    logits[:, generator.integers(0, size, size // 3)] = -torch.inf
    uniform = generator.random(200)
    tokens, logps = draw(logits, torch.from_numpy(uniform))
    exact = torch.log_softmax(logits.double(), -1)
    bounds = exact.exp().cumsum(-1).numpy()
    for row, token in enumerate(tokens.tolist()):
        low = bounds[row, token - 1] if token else 0.0
        assert low - 1e-6 <= uniform[row] <= bounds[row, token] + 1e-6
    np.testing.assert_allclose(logps.numpy(), exact.gather(1, tokens[:, None])[:, 0].numpy(), atol=2e-6)


def test_draws_follow_the_distribution_and_never_take_an_excluded_token() -> None:
    """u in [0, .25) is token 1, [.25, 1) token 2; the largest u below 1 does not step past the last possible token."""
    logps = torch.tensor([[0.0, 0.25, 0.75, 0.0]]).log().repeat(5, 1)
    tokens, found = draw(
        logps, torch.tensor([0.0, 0.2499, 0.2501, 0.999, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    )
    assert tokens.tolist() == [1, 1, 2, 2, 2]
    assert found.exp().tolist() == pytest.approx([0.25, 0.25, 0.75, 0.75, 0.75])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"temperature": -1.0}, "0 or more"), ({"top_p": 0.0}, r"\(0, 1\]"), ({"top_p": 1.5}, r"\(0, 1\]"),
     ({"max_new_tokens": 0}, "at least 1"), ({"top_k": -1}, "at least 0"), ({"min_p": 1.5}, r"\[0, 1\]"),
     ({"temperature": math.inf}, "0 or more"), ({"stop": "end"}, "a tuple of texts"), ({"stop": ("",)}, "not empty"),
     ({"max_episode_tokens": 0}, "at least 1, or None"), ({"temperature": math.nan}, "0 or more")],
)  # fmt: skip
def test_impossible_sampling_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


def test_actions_end_at_a_stop_token_at_their_limit_and_at_the_end_of_the_context() -> None:
    model = llama(layers=1, hidden=32)

    async def one(engine: ExactEngine, context: int) -> list[int]:
        slot = await engine.acquire()
        ids, _ = await engine.generate(slot, np.full(context, 7, np.int32), np.random.default_rng(0))
        assert engine.length(slot) == context + len(ids) - 1  # the last token is read with the next turn
        return ids.tolist()

    free = ExactEngine(model, frozenset(), Sampling(max_new_tokens=30), slots=2, capacity=100)
    said = asyncio.run(one(free, 10))
    assert len(said) == 30
    stopping = ExactEngine(model, frozenset(said[4:5]), Sampling(max_new_tokens=30), slots=2, capacity=100)
    assert asyncio.run(one(stopping, 10)) == said[: said.index(said[4]) + 1]
    short = ExactEngine(model, frozenset(), Sampling(max_new_tokens=30), slots=2, capacity=25)
    assert asyncio.run(one(short, 10)) == said[:15]
    for context in (25, 0):
        with pytest.raises(ValueError, match="context tokens"):
            asyncio.run(one(ExactEngine(model, STOP, Sampling(), slots=2, capacity=25), context))


def test_a_failing_model_reaches_every_waiting_episode_and_leaves_the_engine_usable() -> None:
    model = llama(layers=1, hidden=32)
    engine = make(model, slots=4)
    expected = talk(engine, 6, concurrency=6)
    broken = True

    def fail(*_: Any) -> None:
        if broken:
            raise RuntimeError("out of memory")

    handle = model.register_forward_pre_hook(fail)

    async def act() -> str:
        slot = await engine.acquire()
        try:
            await engine.generate(slot, np.array([7, 8], np.int32), np.random.default_rng(0))
        except RuntimeError as error:
            return str(error)
        finally:
            engine.release(slot)
        return ""

    async def everyone() -> list[str]:
        return await asyncio.wait_for(asyncio.gather(*(act() for _ in range(6))), 60)

    assert asyncio.run(everyone()) == ["out of memory"] * 6
    broken = False
    assert talk(engine, 6, concurrency=6) == expected
    handle.remove()


def test_broken_weights_are_an_error_not_a_sample() -> None:
    model = llama(layers=1, hidden=32)
    fresh, used = make(model), make(model)
    expected = talk(used, 2, concurrency=2)
    weight = model.lm_head.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(math.nan)
    for engine in (fresh, used):
        with pytest.raises(GenerationError, match="expected finite logits, got nan"):
            talk(engine, 1, concurrency=1)
    with torch.no_grad():
        weight.copy_(kept)
    assert talk(used, 2, concurrency=2) == expected


def test_cancelled_episodes_give_their_slots_back() -> None:
    """Cancelled while waiting, in the moment of being served, and while generating: all slots are free again."""
    engine = make(llama(layers=1, hidden=32), slots=2)

    async def act() -> None:
        slot = await engine.acquire()
        try:
            await engine.generate(slot, np.array([7, 8], np.int32), np.random.default_rng(0))
        finally:
            engine.release(slot)

    async def scene() -> None:
        first, second = await engine.acquire(), await engine.acquire()
        waiting = [asyncio.ensure_future(engine.acquire()) for _ in range(2)]
        await asyncio.sleep(0)
        engine.release(first)  # handed to the first of them, who is cancelled before it can run
        waiting[0].cancel()
        waiting[1].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        engine.release(second)
        generating = [asyncio.ensure_future(act()) for _ in range(2)]
        for _ in range(3):
            await asyncio.sleep(0)
        for task in generating:
            task.cancel()
        await asyncio.gather(*generating, return_exceptions=True)
        slots = [await asyncio.wait_for(engine.acquire(), 5) for _ in range(2)]
        assert sorted(slots) == [0, 1]
        for slot in slots:
            engine.release(slot)

    asyncio.run(scene())
    assert len(talk(engine, 3, concurrency=3)) == 3  # in another event loop


def test_sampling_follows_training_and_changes_no_modes_or_gradients() -> None:
    model = llama(layers=2, hidden=32)
    engine = make(model)
    before = talk(engine, 2, concurrency=2)
    model.train()
    model.model.layers[0].eval()
    assert talk(engine, 2, concurrency=2) == before
    assert model.training
    assert not model.model.layers[0].training
    assert all(parameter.grad is None for parameter in model.parameters())
    loss = model(input_ids=torch.tensor([[7, 8, 9]]), labels=torch.tensor([[7, 8, 9]])).loss
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 0.5 * parameter.grad
    after = talk(engine, 2, concurrency=2)
    assert after != before
    assert after == talk(make(model), 2, concurrency=2)


def test_what_flat_passes_do_not_serve_is_sampled_one_by_one_with_the_same_promise() -> None:
    """GPT-Neo keeps a table of which token sees which, of its context's size; it does not use the attention seam.

    Its local layers see 16 tokens: log-probabilities agree with scoring beyond that.
    """
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 256, "window_size": 16}
    config = GPTNeoConfig(vocab_size=97, attention_types=[[["global", "local"], 1]], bos_token_id=1, eos_token_id=5,
                          **sizes)  # fmt: skip
    model = seeded(GPTNeoForCausalLM, config)
    engine = make(model, max_new_tokens=8)
    with pytest.warns(ConcurrencyWarning, match="GPTNeoForCausalLM is sampled from one conversation at a time"):
        expected = talk(engine, 4, concurrency=4)
    assert engine.capabilities.bit_identical
    assert talk(make(model, max_new_tokens=8), 2, concurrency=1) == expected[:2]
    check_scored(model, expected, engine.marks)  # type: ignore[attr-defined]


def test_conversations_beyond_the_length_from_which_positions_depend_on_the_pass_are_refused() -> None:
    """Dynamic rotary embeddings: beside a long conversation a short one would get other numbers."""
    rope = {"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 8.0}
    config = LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=1, eos_token_id=5,
                         num_attention_heads=2, max_position_embeddings=48, rope_parameters=rope,
                         bos_token_id=None)  # fmt: skip
    model = seeded(LlamaForCausalLM, config)
    with pytest.raises(GenerationError, match="at most 48 tokens, beyond which the positions of LlamaForCausalLM"):
        talk(make(model, capacity=49), 1, concurrency=1)
    assert len(talk(make(model, capacity=48), 1, concurrency=1)) == 1


def test_architectures_that_place_tokens_in_their_own_way_are_refused() -> None:
    """Bloom counts positions in its mask: sampled from naively it would be silently wrong."""
    bloom = seeded(BloomForCausalLM, BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4))
    with pytest.raises(GenerationError, match=r"ordinary .* attention, got BloomForCausalLM"):
        talk(make(bloom), 1, concurrency=1)
    model = llama(layers=1, hidden=32)
    model.config.layer_types = ["linear_attention"]
    with pytest.raises(GenerationError, match="layers of linear_attention"):
        make(model)
