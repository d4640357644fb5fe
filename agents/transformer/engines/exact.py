"""The exact engine: a key-value cache that lives as long as an episode, and results that do not depend on concurrency.

A token's numbers depend on its own conversation only, to the last bit of its log-probability (shown by test on a CPU):
passes have sizes whose rows agree (`trial.py`), conversations attend to their own keys in tiles whose shape is fixed,
and a prompt is read in chunks that are counted from its own start. So only what is active is computed, what several
conversations share from their start is read once and copied, and no result changes.
"""

from __future__ import annotations

import asyncio
import bisect
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from polyturn.agents.transformer.adapters import weights_digest
from polyturn.agents.transformer.engines.interface import Capabilities
from polyturn.agents.transformer.engines.prompts import Prompts, digests
from polyturn.agents.transformer.engines.rows import FlatReader, LoneReader, Segment
from polyturn.agents.transformer.engines.slots import Slots
from polyturn.agents.transformer.engines.trial import NOT_FINITE, Way, check_layers, way_for
from polyturn.agents.transformer.generation import GenerationError, Sampling, draw
from polyturn.envs.trajectory import Logps, TokenIds

_CHUNK = 64

# How a model attends is a setting of the model: engines stepping in several threads (a model on each side of a
# conversation) would undo each other's.
_ONE_AT_A_TIME = threading.Lock()


@dataclass
class _Request:
    slot: int
    rng: np.random.Generator
    pending: np.ndarray
    future: asyncio.Future[tuple[TokenIds, Logps]]
    limit: int
    finished: Callable[[list[int]], bool] | None
    chunks: list[bytes] = field(default_factory=list)  # of a prompt that is read from its start
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)


class ExactEngine:
    """Generates for many episodes at once; one asyncio event loop at a time.

    Args:
        model: A causal language model with ordinary key-value attention.
        stop_ids: Tokens that end an action; kept as its last token.
        sampling: How tokens are drawn.
        slots: Episodes held at once; changes no result.
        capacity: Tokens an episode may have in all.
        beside: A second model over the same vocabulary, which reads what the first reads.
        mix: From the two models' logits `[S, V]` (soft-capped, float32) to those that are sampled from.

    Raises:
        GenerationError: The model's attention is not the ordinary kind.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stop_ids: frozenset[int],
        sampling: Sampling,
        *,
        slots: int = 64,
        capacity: int = 2048,
        beside: PreTrainedModel | None = None,
        mix: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        if (beside is None) != (mix is None):
            raise ValueError("ExactEngine: expected both a second model and how to mix it in, got one of them")
        self._models = [model] if beside is None else [model, beside]
        for each in self._models:
            check_layers(each)
        self._mix = mix
        self.name = "exact"
        self.sampling = sampling
        self.capacity = capacity
        self.slots = slots
        self._stop_ids = stop_ids
        self._lengths = np.zeros(slots, np.int64)
        self._places = Slots(slots)
        self._requests: dict[int, _Request] = {}
        self._ways: list[Way] = []
        self._readers: list[FlatReader | LoneReader] = []
        self._prompts = Prompts()
        self._task: asyncio.Task[None] | None = None

    @property
    def capabilities(self) -> Capabilities:
        """What this engine promises for its model on this machine."""
        return Capabilities(all(way.exact for way in self._found_ways()), own_generators=True, mixtures=True)

    def fingerprint(self) -> str:
        """A digest of the weights that it samples from."""
        return "+".join(weights_digest(dict(model.named_parameters())) for model in self._models)

    async def acquire(self) -> int:
        """Waits for a free slot and takes it; the caller must `release` it."""
        return await self._places.take()

    def release(self, conversation: int) -> None:
        """Gives a slot back; what it holds may be copied until it is written anew."""
        self._requests.pop(conversation, None)
        self._lengths[conversation] = 0
        self._places.give(conversation)
        if self._places.idle:
            self._prompts.clear()  # the weights may be others when it goes on

    def length(self, conversation: int) -> int:
        """Tokens of the slot's episode so far."""
        return int(self._lengths[conversation])

    def noted(self, conversation: int) -> Mapping[str, Any]:
        """Nothing: the seed says all."""
        return {}

    async def generate(
        self,
        conversation: int,
        context: TokenIds,
        rng: np.random.Generator,
        *,
        limit: int | None = None,
        finished: Callable[[list[int]], bool] | None = None,
    ) -> tuple[TokenIds, Logps]:
        """Appends `context` to the slot's episode and samples until a stop token or a limit.

        Args:
            conversation: Its slot.
            context: `[C]` tokens that the episode has grown by since its last sampled token but one.
            rng: The episode's generator, which gives one number a token.
            limit: Tokens to sample at most, where that is less than `sampling.max_new_tokens`.
            finished: From the tokens sampled so far to whether they are enough, such as at a stop text.

        Returns:
            Sampled ids `[A]` int32 and their log-probabilities `[A]` float32 in nats.

        Raises:
            GenerationError: The model's logits are not finite, or it does not sample as it scores.
            ValueError: No context, or more than fits; a limit below 1.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"ExactEngine.generate: expected a limit of 1 or more, got {limit}")
        if not 0 < len(context) < self.capacity - self._lengths[conversation]:
            raise ValueError(
                f"ExactEngine.generate: expected 1 to {self.capacity - self._lengths[conversation] - 1} context "
                f"tokens, got {len(context)}"
            )
        loop = asyncio.get_running_loop()
        if limit is not None and limit < 1:
            raise ValueError(f"ExactEngine.generate: expected a limit of 1 or more, got {limit}")
        most = self.sampling.max_new_tokens if limit is None else min(limit, self.sampling.max_new_tokens)
        unread = np.asarray(context, np.int64)
        request = _Request(conversation, rng, unread, loop.create_future(), most, finished)
        if self._lengths[conversation] == 0:
            self._prompts.forget(conversation)
            request.chunks = digests(request.pending[:-1], _CHUNK)
        self._requests[conversation] = request
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._task = loop.create_task(self._run())
        try:
            return await request.future
        finally:
            # There is no receiver any more if the caller was cancelled.
            if self._requests.get(conversation) is request:
                del self._requests[conversation]

    async def _run(self) -> None:
        try:
            while self._requests:
                self._advance()
                await asyncio.sleep(0)  # those with an answer go on and may come back with their next turn
        except BaseException as error:
            self._forget_all()
            for request in self._requests.values():
                if not request.future.done():
                    request.future.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
            self._requests.clear()
            if not isinstance(error, Exception):
                raise

    @torch.inference_mode()
    def _advance(self) -> None:
        """Reads all there is to read but each conversation's last token, then takes one step with all of them."""
        with _ONE_AT_A_TIME:
            if not self._readers:
                length = -(-(self.capacity + 1) // _CHUNK) * _CHUNK
                ways = self._found_ways()
                pairs = zip(self._models, ways, strict=True)
                self._readers = [way.reader(model, length) for model, way in pairs]
            with ExitStack() as modes:
                for reader in self._readers:
                    reader.modes(modes)
                while reading := [request for request in self._requests.values() if len(request.pending) > 1]:
                    self._read(reading)
                self._step()

    def _found_ways(self) -> list[Way]:
        if not self._ways:
            self._ways = [way_for(model, self.slots, self.capacity) for model in self._models]
        return self._ways

    def _forget_all(self) -> None:
        self._readers = []
        self._prompts.clear()

    def _read(self, requests: Sequence[_Request]) -> None:
        """One pass over all chunks that fit. A chunk that several wait for is read for one and then copied."""
        room = max(way.reads[-1] for way in self._ways)
        segments: list[Segment] = []
        names: list[tuple[int, bytes]] = []
        planned: set[bytes] = set()
        for request in requests:
            self._copy(request)
            while len(request.pending) > 1:
                piece = request.pending[: min(_CHUNK, len(request.pending) - 1)]
                name = request.chunks[0] if request.chunks else b""
                if len(piece) > room or name in planned:
                    break
                if request.chunks:
                    names.append((request.slot, request.chunks.pop(0)))
                    planned.add(name)
                segments.append(Segment(request.slot, int(self._lengths[request.slot]), piece))
                room -= len(piece)
                request.pending = request.pending[len(piece) :]
                self._lengths[request.slot] += len(piece)
        if not segments:
            return
        count = sum(len(segment.ids) for segment in segments)
        for way, reader in zip(self._ways, self._readers, strict=True):
            reader.read(segments, _size(way.reads, count))
        for slot, name in names:
            self._prompts.add(slot, name)

    def _copy(self, request: _Request) -> None:
        """Copies the chunks at the prompt's beginning that another slot holds."""
        while request.chunks and (holder := self._prompts.holder(request.chunks[0])) is not None:
            start = int(self._lengths[request.slot])
            stop = start
            while request.chunks and self._prompts.holds(holder, request.chunks[0]):
                self._prompts.add(request.slot, request.chunks.pop(0))
                stop += min(_CHUNK, len(request.pending) - 1 - (stop - start))
            for reader in self._readers:
                reader.cache.copy(holder, request.slot, start, stop)
            request.pending = request.pending[stop - start :]
            self._lengths[request.slot] = stop

    def _step(self) -> None:
        active = sorted(self._requests.values(), key=lambda request: request.slot)
        if not active:
            return
        slots = np.array([request.slot for request in active])
        ids = np.array([request.pending[0] for request in active])
        uniform = np.array([request.rng.random() for request in active])
        said = [
            reader.step(ids, slots, self._lengths[slots], _size(way.steps, len(active)))
            for way, reader in zip(self._ways, self._readers, strict=True)
        ]
        logits = said[0] if self._mix is None else self._mix(said[0].float(), said[1].to(said[0].device).float())
        if not bool(torch.isfinite(logits.amax(-1)).all()):
            raise GenerationError(NOT_FINITE)
        tokens, logps = draw(self.sampling.kept(logits), torch.from_numpy(uniform).to(logits.device))
        chosen = torch.stack([tokens.double(), logps]).tolist()
        self._lengths[slots] += 1
        for request, token, logp in zip(active, map(int, chosen[0]), chosen[1], strict=True):
            request.ids.append(token)
            request.logps.append(logp)
            request.pending = np.array([token])
            full = self._lengths[request.slot] + 1 >= self.capacity
            enough = request.finished is not None and request.finished(request.ids)
            if token in self._stop_ids or len(request.ids) >= request.limit or full or enough:
                self._finish(request)

    def _finish(self, request: _Request) -> None:
        # The last token is not in the cache yet: it is read with the next turn's context.
        del self._requests[request.slot]
        if not request.future.done():
            request.future.set_result((np.asarray(request.ids, np.int32), np.asarray(request.logps, np.float32)))


def _size(sizes: Sequence[int], count: int) -> int:
    """The smallest size that holds this many tokens."""
    return sizes[min(bisect.bisect_left(sizes, count), len(sizes) - 1)]
