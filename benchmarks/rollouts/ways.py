"""Ways to sample conversations of several turns, timed on the same model and the same plan."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from polyturn.agents.transformer.engines.exact import ExactEngine
from polyturn.agents.transformer.generation import Sampling

VOCABULARY = 32_000


@dataclass(frozen=True)
class Turn:
    """One exchange of a plan.

    Attributes:
        context: `[C]` tokens that the agent is told.
        length: Tokens that it samples.
    """

    context: np.ndarray
    length: int


Plan = Sequence[Sequence[Turn]]
"""For every conversation its turns."""


def model(hidden: int, layers: int) -> PreTrainedModel:
    """A Llama-shaped model with random weights, which never ends a turn by itself."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: PreTrainedModel = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=11 * hidden // 4, num_hidden_layers=layers,
                num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=8192,
                bos_token_id=None, eos_token_id=None, pad_token_id=0,
            )
        )  # fmt: skip
    made.eval()
    return made


def plan(options: Mapping[str, Any], seed: int) -> Plan:
    """Conversations of uneven lengths; the members of a group share their prompt."""
    world = np.random.default_rng(seed)
    low, high = options["sampled"]

    def told(length: int) -> np.ndarray:
        return world.integers(1, VOCABULARY, size=length)

    conversations = []
    for number in range(options["conversations"]):
        if number % options["group_size"] == 0:
            prompt = told(options["prompt"])
        turns = [prompt, *(told(int(world.integers(10, 41))) for _ in range(options["turns"] - 1))]
        conversations.append([Turn(context, int(world.integers(low, high + 1))) for context in turns])
    return conversations


def exact(policy: PreTrainedModel, conversations: Plan) -> None:
    """The default engine, with its 64 slots."""
    most = max(turn.length for turns in conversations for turn in turns)
    capacity = max(sum(len(turn.context) + turn.length for turn in turns) for turns in conversations) + 2
    engine = ExactEngine(policy, frozenset(), Sampling(max_new_tokens=most), capacity=max(capacity, 2048))

    async def converse(number: int, turns: Sequence[Turn]) -> None:
        slot = await engine.acquire()
        rng = np.random.default_rng(number)
        last = np.zeros(0, np.int32)
        for turn in turns:
            ids, _ = await engine.generate(slot, np.concatenate([last, turn.context]), rng, limit=turn.length)
            if len(ids) != turn.length:
                raise RuntimeError(f"expected {turn.length} sampled tokens, got {len(ids)}")
            last = ids[-1:]
        engine.release(slot)

    async def converse_all() -> None:
        await asyncio.gather(*(converse(number, turns) for number, turns in enumerate(conversations)))

    asyncio.run(converse_all())


@torch.inference_mode()
def prefilling(policy: PreTrainedModel, conversations: Plan) -> None:
    """Batched `generate`, which reads every conversation from its start again at every turn."""
    rows: list[list[int]] = [[] for _ in conversations]
    for number in range(len(conversations[0])):
        turns = [turns[number] for turns in conversations]
        for row, turn in zip(rows, turns, strict=True):
            row.extend(turn.context.tolist())
        width = max(map(len, rows))
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, width - len(row) :] = torch.tensor(row)
            mask[place, width - len(row) :] = 1
        most = max(turn.length for turn in turns)
        said = policy.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=most, pad_token_id=0
        )
        for row, turn, answer in zip(rows, turns, said[:, width:].tolist(), strict=True):
            row.extend(answer[: turn.length])


def continuous(policy: PreTrainedModel, conversations: Plan) -> None:
    """transformers' continuous batching: every turn a request of its own, with its own length."""
    rows: list[list[int]] = [[] for _ in conversations]
    sizes = ContinuousBatchingConfig(num_blocks=256, max_batch_tokens=512)
    settings = GenerationConfig(do_sample=True, top_k=0, eos_token_id=-1, pad_token_id=0)
    with policy.continuous_batching_context_manager(  # type: ignore[operator]
        generation_config=settings, continuous_batching_config=sizes
    ) as manager:
        for number in range(len(conversations[0])):
            waiting = {}
            for place, turns in enumerate(conversations):
                rows[place].extend(turns[number].context.tolist())
                name = manager.add_request(rows[place], max_new_tokens=turns[number].length)
                waiting[name] = place
            while waiting:
                found = manager.get_result(timeout=60)
                if found is None:
                    raise RuntimeError("no result within 60 s")
                if found.error is not None:
                    raise RuntimeError(str(found.error))
                if found.is_finished():
                    rows[waiting.pop(found.request_id)].extend(found.generated_tokens)


WAYS: dict[str, Callable[[PreTrainedModel, Plan], None]] = {
    "exact engine": exact,
    "generate, read again": prefilling,
    "continuous batching": continuous,
}


def measured(way: str, policy: PreTrainedModel, conversations: Plan) -> dict[str, float | str]:
    """CPU-seconds and wall seconds for 1,000 sampled tokens; or why there are none."""
    tokens = sum(turn.length for turns in conversations for turn in turns)
    begun, wall = time.process_time(), time.perf_counter()
    try:
        WAYS[way](policy, conversations)
    except (RuntimeError, ValueError, TypeError, AttributeError, ImportError, OSError) as error:
        if way == "exact engine":
            raise
        return {"failed": f"not run: {type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"}
    used, taken = time.process_time() - begun, time.perf_counter() - wall
    return {"cpu_s": round(1e3 * used / tokens, 4), "wall_s": round(1e3 * taken / tokens, 4)}
