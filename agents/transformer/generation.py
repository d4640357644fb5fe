"""The rollout engine: one model, a fixed number of slots, a key-value cache that lives as long as an episode.

Every forward pass has the same shape whoever is in it: a decode step always runs all slots for one token, a prefill
step always runs `prefill_rows` rows of `prefill_chunk` tokens against all keys, a decode step's keys are padded at
the right to whole blocks, and attention uses the kernel whose rows do not depend on their neighbours. A row's numbers
therefore do not depend on how many episodes run beside it, which is what makes trajectories identical at any
concurrency, to the last bit of their log-probabilities (shown by test on a CPU; the price is that an almost empty
engine works as hard as a full one).

Sampling draws one uniform number a token from the episode's own generator and inverts the distribution function.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache

from polyturn.agents.transformer.policy import explicit_attention
from polyturn.agents.transformer.scoring import acting
from polyturn.envs.trajectory import Logps, TokenIds

_KEY_BLOCK = 64

# The choice of attention kernel belongs to the process: engines stepping in several threads (a model on each side of a
# conversation) would undo each other's, and the last bits of log-probabilities with it.
_ONE_AT_A_TIME = threading.Lock()


_EXPECTED = "expected a causal language model with ordinary (full or sliding) key-value attention"
_NOT_FINITE = (
    "expected finite logits, got nan or infinity: the weights are broken (a training run that diverged, a damaged "
    "file) or half precision overflows; try dtype=torch.float32"
)


class GenerationError(RuntimeError):
    """The model cannot be sampled from: an architecture the engine does not know, or logits that are no numbers."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: Divides the logits; 0 takes the most likely token (its log-probability is then 0).
        top_p: Keeps the smallest set of tokens with this much probability.
        max_new_tokens: Tokens per action.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"Sampling.temperature: expected 0 or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"Sampling.top_p: expected a number in (0, 1], got {self.top_p}")
        if self.max_new_tokens < 1:
            raise ValueError(f"Sampling.max_new_tokens: expected 1 or more, got {self.max_new_tokens}")

    def log_probs(self, logits: Tensor) -> Tensor:
        """`[S, V]` logits to the log-probabilities that are sampled from, in nats, float32."""
        logits = logits.float()
        if self.temperature == 0:
            best = torch.full_like(logits, -torch.inf)
            return best.scatter_(1, logits.argmax(-1, keepdim=True), 0.0)
        logps = torch.log_softmax(logits / self.temperature, -1)
        if self.top_p < 1:
            ordered, order = logps.sort(descending=True, stable=True)
            mass = ordered.exp().cumsum(-1)
            dropped = (mass - ordered.exp()) >= self.top_p
            ordered = ordered.masked_fill(dropped, -torch.inf)
            logps = torch.full_like(logps, -torch.inf).scatter_(1, order, ordered)
            logps = logps - logps.logsumexp(-1, keepdim=True)
        return logps


@dataclass
class _Request:
    slot: int
    rng: np.random.Generator
    pending: list[int]
    future: asyncio.Future[tuple[TokenIds, Logps]]
    limit: int
    finished: Callable[[list[int]], bool] | None
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)


class Engine:
    """Generates for many episodes at once; one asyncio event loop at a time.

    Args:
        model: A causal language model with ordinary key-value attention.
        stop_ids: Tokens that end an action; kept as its last token.
        sampling: How tokens are drawn.
        slots: Episodes held at once; part of the numbers, unlike the concurrency of the caller.
        capacity: Tokens an episode may have in all.
        prefill_rows: Rows of one prefill step.
        prefill_chunk: Tokens of one prefill step.
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
        prefill_rows: int = 8,
        prefill_chunk: int = 64,
        beside: PreTrainedModel | None = None,
        mix: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        if (beside is None) != (mix is None):
            raise ValueError("Engine: expected both a second model and how to mix it in, got one of them")
        self._models = [model] if beside is None else [model, beside]
        for each in self._models:
            _check_layers(each)
        self._mix = mix
        self.sampling = sampling
        self.capacity = capacity
        self.slots = slots
        self._stop_ids = stop_ids
        self._rows, self._chunk = prefill_rows, prefill_chunk
        self._lengths = np.zeros(slots + 1, np.int64)  # the last row is scratch: padding rows of a prefill write there
        self._free = deque(range(slots))
        self._waiting: deque[asyncio.Future[int]] = deque()
        self._requests: dict[int, _Request] = {}
        self._caches: list[_SlotCache] = []
        self._task: asyncio.Task[None] | None = None

    async def acquire(self) -> int:
        """Waits for a free slot and takes it; the caller must `release` it."""
        if self._free:
            return self._free.popleft()
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            return int(await future)
        except asyncio.CancelledError:
            # The slot may have been handed over in the very moment in which its taker was cancelled.
            if future.done() and not future.cancelled():
                self.release(future.result())
            raise

    def release(self, slot: int) -> None:
        """Gives a slot back and forgets its cache."""
        self._requests.pop(slot, None)
        self._lengths[slot] = 0
        while self._waiting:
            future = self._waiting.popleft()
            # Whoever waited in an event loop that has ended will not come.
            if not future.done() and not future.get_loop().is_closed():
                future.set_result(slot)
                return
        self._free.append(slot)

    def length(self, slot: int) -> int:
        """Tokens of the slot's episode so far."""
        return int(self._lengths[slot])

    async def generate(
        self,
        slot: int,
        context: TokenIds,
        rng: np.random.Generator,
        *,
        limit: int | None = None,
        finished: Callable[[list[int]], bool] | None = None,
    ) -> tuple[TokenIds, Logps]:
        """Appends `context` to the slot's episode and samples until a stop token or a limit.

        Args:
            slot: Whose episode.
            context: `[C]` tokens that the episode has grown by since its last sampled token but one.
            rng: The episode's generator.
            limit: Tokens to sample at most, where that is less than `sampling.max_new_tokens`.
            finished: From the tokens sampled so far to whether they are enough, such as at a stop text.

        Returns:
            Sampled ids `[A]` int32 and their log-probabilities `[A]` float32 in nats.

        Raises:
            GenerationError: The model's logits are not finite, or it does not sample as it scores.
            ValueError: No context, or more than fits.
        """
        if not 0 < len(context) < self.capacity - self._lengths[slot]:
            raise ValueError(
                f"Engine.generate: expected 1 to {self.capacity - self._lengths[slot] - 1} context tokens, "
                f"got {len(context)}"
            )
        loop = asyncio.get_running_loop()
        most = self.sampling.max_new_tokens if limit is None else min(limit, self.sampling.max_new_tokens)
        request = _Request(slot, rng, context.tolist(), loop.create_future(), most, finished)
        self._requests[slot] = request
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._task = loop.create_task(self._run())
        try:
            return await request.future
        finally:
            # Nobody waits for it any more if the caller was cancelled.
            if self._requests.get(slot) is request:
                del self._requests[slot]

    async def _run(self) -> None:
        try:
            while self._requests:
                self._step()
                await asyncio.sleep(0)  # whoever got an answer goes on and may come back with its next turn
        except BaseException as error:
            for request in self._requests.values():
                if not request.future.done():
                    request.future.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
            self._requests.clear()
            if not isinstance(error, Exception):
                raise

    @torch.inference_mode()
    def _step(self) -> None:
        """Prefills every row that has more than one token to read, then decodes one token for all that can."""
        with _ONE_AT_A_TIME, ExitStack() as modes:
            for model in self._models:
                modes.enter_context(acting(model))
                modes.enter_context(explicit_attention(model))
            modes.enter_context(sdpa_kernel(SDPBackend.MATH))
            if not self._caches:
                self._caches = [self._checked_cache(model) for model in self._models]
            while reading := [r for r in self._requests.values() if len(r.pending) > 1]:
                self._prefill(reading[: self._rows])
            self._decode()

    def _checked_cache(self, model: PreTrainedModel) -> _SlotCache:
        """A cache with which the model is known to work.

        Compares a few tokens, read in two pieces, with the model's own forward pass over all of them.

        Architectures that place tokens or mask keys in ways of their own would otherwise be sampled from wrongly, and
        nothing would say so.
        """
        cache = _SlotCache(self.slots + 1, -(-(self.capacity + self._chunk) // _KEY_BLOCK) * _KEY_BLOCK)
        tokens = np.arange(1, 7) % model.config.get_text_config().vocab_size
        device = next(model.parameters()).device
        ids = np.zeros((self._rows, self._chunk), np.int64)
        read = min(5, self._chunk)
        ids[0, :read] = tokens[:read]
        rows = np.full(self._rows, self.slots)
        rows[0] = 0
        last = np.zeros((self.slots, 1), np.int64)
        try:
            whole = model(input_ids=torch.from_numpy(tokens[None]).to(device), use_cache=False).logits[0, -1]
            self._forward(model, cache, ids, rows, np.zeros(self._rows, np.int64))
            for position in range(read, 6):
                last[0] = tokens[position]
                starts = np.zeros(self.slots, np.int64)
                starts[0] = position
                pieces = self._forward(model, cache, last, None, starts)[0]
            if not bool(torch.isfinite(whole.amax())):
                raise GenerationError(_NOT_FINITE)
            difference = float((pieces - whole).float().abs().max())
            spread = float(whole.float().abs().max())
        except (GenerationError, torch.OutOfMemoryError):
            raise
        except (TypeError, ValueError, AttributeError, RuntimeError, IndexError, KeyError) as error:
            raise GenerationError(
                f"{_EXPECTED}, got {type(model).__name__}, which does not run on the engine's cache: {error}"
            ) from error
        if not difference <= spread * (1e-3 if whole.dtype in (torch.float32, torch.float64) else 0.1):
            raise GenerationError(
                f"{_EXPECTED}, got {type(model).__name__}, whose logits with the engine's cache differ by "
                f"{difference:.3g} from those without (they reach {spread:.3g})"
            )
        return cache

    def _prefill(self, requests: list[_Request]) -> None:
        rows = np.full(self._rows, self.slots)
        ids = np.zeros((self._rows, self._chunk), np.int64)
        for row, request in enumerate(requests):
            piece = request.pending[:-1][: self._chunk]
            rows[row] = request.slot
            ids[row, : len(piece)] = piece
        starts = self._lengths[rows]
        for model, cache in zip(self._models, self._caches, strict=True):
            self._forward(model, cache, ids, rows, starts)
        for request in requests:
            taken = min(len(request.pending) - 1, self._chunk)
            del request.pending[:taken]
            self._lengths[request.slot] += taken

    def _decode(self) -> None:
        ids = np.zeros((self.slots, 1), np.int64)
        uniform = np.zeros(self.slots, np.float64)
        active = list(self._requests.values())
        for request in active:
            ids[request.slot, 0] = request.pending[0]
            uniform[request.slot] = request.rng.random()
        said = [
            self._forward(model, cache, ids, None, self._lengths[: self.slots])
            for model, cache in zip(self._models, self._caches, strict=True)
        ]
        logits = said[0] if self._mix is None else self._mix(said[0].float(), said[1].to(said[0].device).float())
        if not bool(torch.isfinite(logits[[request.slot for request in active]].amax(-1)).all()):
            self._caches = []  # what was read into it may not be finite either
            raise GenerationError(_NOT_FINITE)
        tokens, logps = _draw(self.sampling.log_probs(logits), torch.from_numpy(uniform).to(logits.device))
        chosen = torch.stack([tokens.double(), logps.double()]).cpu().numpy()
        for request in active:
            token, logp = int(chosen[0, request.slot]), float(chosen[1, request.slot])
            self._lengths[request.slot] += 1
            request.ids.append(token)
            request.logps.append(logp)
            request.pending = [token]
            full = self._lengths[request.slot] + 1 >= self.capacity
            enough = request.finished is not None and request.finished(request.ids)
            if token in self._stop_ids or len(request.ids) >= request.limit or full or enough:
                self._finish(request)

    def _finish(self, request: _Request) -> None:
        # The last token is not in the cache yet: it is read with the next turn's context.
        del self._requests[request.slot]
        if not request.future.done():
            request.future.set_result((np.asarray(request.ids, np.int32), np.asarray(request.logps, np.float32)))

    def _forward(
        self,
        model: PreTrainedModel,
        cache: _SlotCache,
        ids: np.ndarray,
        rows: np.ndarray | None,
        starts: np.ndarray,
    ) -> Tensor:
        """Runs a model on `ids [R, C]` standing at `starts [R]` of the given cache rows; `[R, V]` last logits."""
        device = next(model.parameters()).device
        # A product over keys may be summed in another order when their number changes. For one query a row it is not,
        # as long as keys come in whole blocks; for a chunk of queries it is, so a prefill always reads all keys.
        longest = cache.length if rows is not None else int(max(self._lengths.max(), starts.max())) + 1
        keys = min(-(-longest // _KEY_BLOCK) * _KEY_BLOCK, cache.length)
        position = torch.from_numpy(starts[:, None] + np.arange(ids.shape[1])).to(device)
        cache.place(
            rows=torch.arange(self.slots, device=device) if rows is None else torch.from_numpy(rows).to(device),
            whole=rows is None,
            position=position,
            keys=keys,
        )
        # The padding behind a row's last piece may stand past the end of a learned position table.
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or self.capacity
        output = model(
            input_ids=torch.from_numpy(ids).to(device),
            attention_mask=_masks(model, position, keys),
            position_ids=position.clamp(max=limit - 1),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits


class _SlotCache(Cache):
    """Keys and values of every slot, written at each row's own position; always padded at the right."""

    def __init__(self, slots: int, length: int) -> None:
        super().__init__(layers=[])
        self.slots, self.length = slots, length
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def place(self, *, rows: Tensor, whole: bool, position: Tensor, keys: int) -> None:
        """Says where the next forward pass writes and how many keys it reads."""
        self._where, self._whole, self._position, self._read = rows, whole, position, keys

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Stores new keys and values and returns all that the rows of this pass may attend to."""
        while len(self._keys) <= layer_idx:
            heads, width, value_width = key_states.shape[1], key_states.shape[3], value_states.shape[3]
            self._keys.append(key_states.new_zeros(self.slots, heads, self.length, width))
            self._values.append(value_states.new_zeros(self.slots, heads, self.length, value_width))
        result = []
        for store, new in ((self._keys[layer_idx], key_states), (self._values[layer_idx], value_states)):
            store[self._where[:, None], :, self._position] = new.transpose(1, 2)
            view = store[: len(self._where)] if self._whole else store[self._where]
            result.append(view[:, :, : self._read])
        return result[0], result[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Zero: positions and masks are always given explicitly."""
        return 0


def _check_layers(model: PreTrainedModel) -> None:
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or [])
    if other := sorted(kinds - {"full_attention", "sliding_attention"}):
        raise GenerationError(f"{_EXPECTED}, got {type(model).__name__} with layers of {', '.join(other)}")


def _masks(model: PreTrainedModel, position: Tensor, keys: int) -> Tensor | dict[str, Tensor]:
    """Additive masks `[R, 1, C, keys]`: causal by absolute position, sliding where the architecture slides."""
    config: PretrainedConfig = model.config.get_text_config()
    dtype = next(model.parameters()).dtype
    distance = position[:, None, :, None] - torch.arange(keys, device=position.device)

    def additive(allowed: Tensor) -> Tensor:
        zeros = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return zeros.masked_fill(~allowed, torch.finfo(dtype).min)

    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [])
    full = distance >= 0
    if "sliding_attention" in kinds and window:
        makers: dict[str, Callable[[], Tensor]] = {
            "full_attention": lambda: additive(full),
            "sliding_attention": lambda: additive(full & (distance < window)),
        }
        return {kind: makers[kind]() for kind in kinds}
    if window and not kinds and getattr(config, "use_sliding_window", True):
        return additive(full & (distance < window))
    return additive(full)


def _draw(logps: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Inverts each row's distribution function at `uniform [S]`; returns tokens `[S]` and their log-probs `[S]`."""
    mass = logps.double().exp().cumsum(-1)
    tokens = torch.searchsorted(mass, (uniform * mass[:, -1])[:, None], right=True)[:, 0]
    # Rounding may point past the last token with mass; step back to it.
    last = (logps > -torch.inf).double().cumsum(-1).argmax(-1)
    tokens = torch.minimum(tokens, last)
    return tokens, logps.gather(1, tokens[:, None])[:, 0]
