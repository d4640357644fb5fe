"""transformers' continuous batching as an engine: paged attention, and CUDA graphs where there is a GPU.

Built on its public interface (`init_continuous_batching`, `add_request`, `register_result_handler`). It draws all
tokens from one generator, the process' own, so a conversation has no seed of its own: results follow from the seed only
where one conversation runs at a time. That generator is put back when the last conversation closes, and with it go the
caches, so that weights may change between collections.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from polyturn.agents.transformer.engines.handing import disagreement, probe
from polyturn.agents.transformer.engines.interface import Capabilities
from polyturn.agents.transformer.engines.slots import Slots
from polyturn.agents.transformer.engines.trial import check_layers
from polyturn.agents.transformer.generation import GenerationError, Sampling
from polyturn.agents.transformer.policy import Policy
from polyturn.agents.transformer.scoring import base_model
from polyturn.envs.trajectory import Logps, TokenIds

_PAGE = 64
# Tokens of a pass: prompts are read in pieces of this many, beside all that are answering.
_BATCH = 1024
# Nats by which log-probabilities may differ from the policy's own; half precision rounds other sums.
_TOLERANCE, _HALF_TOLERANCE = 0.01, 0.3


class ContinuousEngine:
    """Samples with transformers' continuous batching; one asyncio event loop at a time.

    Args:
        policy: Whose weights sample.
        sampling: How tokens are drawn.
        slots: Conversations at once.
        capacity: Tokens that a conversation may have in all.

    Raises:
        GenerationError: The model's attention is not the ordinary kind.
    """

    def __init__(self, policy: Policy, sampling: Sampling, *, slots: int, capacity: int) -> None:
        check_layers(policy.model)
        self.name = "transformers"
        self.sampling, self.slots, self.capacity = sampling, slots, capacity
        self._policy = policy
        self._places = Slots(slots)
        self._known: dict[int, list[int]] = {}
        self._manager: Any = None
        self._random: tuple[torch.Tensor, list[torch.Tensor]] | None = None
        self._requests = 0
        self._compared = False
        self._comparing = asyncio.Lock()

    @property
    def capabilities(self) -> Capabilities:
        """One generator for all, so no conversation is reproducible by itself."""
        return Capabilities(bit_identical=False, own_generators=False, mixtures=False)

    def fingerprint(self) -> str:
        """A digest of the weights that it samples from."""
        return self._policy.fingerprint()

    async def acquire(self) -> int:
        """Waits until another conversation can be held, and opens it."""
        number = await self._places.take()
        self._known[number] = []
        return number

    def release(self, conversation: int) -> None:
        """Closes a conversation."""
        del self._known[conversation]
        self._places.give(conversation)
        if self._places.idle:
            self._stop()

    def length(self, conversation: int) -> int:
        """Tokens of the conversation but the last sampled one."""
        return len(self._known[conversation])

    def noted(self, conversation: int) -> Mapping[str, Any]:
        """That the seed does not say all."""
        return {"engine": self.name, "bit_identical": False, "own_generators": False}

    async def generate(
        self,
        conversation: int,
        context: TokenIds,
        rng: np.random.Generator,
        *,
        limit: int | None = None,
        finished: Callable[[list[int]], bool] | None = None,
    ) -> tuple[TokenIds, Logps]:
        """Appends tokens to a conversation and samples until a stop token or a limit.

        Args:
            conversation: Its number.
            context: `[C]` tokens that it has grown by since its last sampled token but one.
            rng: The conversation's generator; the first after all were closed seeds the one that all share.
            limit: Tokens to sample at most, where that is less than `sampling.max_new_tokens`.
            finished: From the tokens sampled so far to whether they are enough, such as at a stop text.

        Returns:
            Sampled ids `[A]` int32 and their log-probabilities `[A]` float32 in nats.

        Raises:
            GenerationError: transformers cannot sample from the model, or not as it scores.
            ValueError: No context, or more than fits; a limit below 1.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"ContinuousEngine.generate: expected a limit of 1 or more, got {limit}")
        known = self._known[conversation]
        room = self.capacity - len(known) - len(context)
        if len(context) < 1 or room < 1:
            raise ValueError(
                f"ContinuousEngine.generate: expected 1 to {self.capacity - len(known) - 1} context tokens, got "
                f"{len(context)}"
            )
        prompt = [*known, *context.tolist()]
        most = (
            min(self.sampling.max_new_tokens, room) if limit is None else min(self.sampling.max_new_tokens, room, limit)
        )
        if self._manager is None:
            self._start(int(rng.integers(2**31)))
        async with self._comparing:
            if not self._compared:
                await self._compare()
                self._compared = True
        ids, logps = await self._asked(prompt, most, sorted(self._policy.chat.stop_ids), finished)
        self._known[conversation] = prompt + ids[:-1]
        return np.asarray(ids, np.int32), np.asarray(logps, np.float32)

    async def _asked(
        self, prompt: list[int], most: int, stops: list[int], finished: Callable[[list[int]], bool] | None
    ) -> tuple[list[int], list[float]]:
        """One request, cancelled when it is enough or its caller is."""
        manager = self._manager
        name, self._requests = f"polyturn-{self._requests}", self._requests + 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        cut = 0  # tokens looked at, each once and in order; the last of them is the action's last if it is enough
        enough = False

        def told(output: Any) -> None:
            nonlocal cut, enough
            tokens = output.generated_tokens
            while finished is not None and not enough and cut < len(tokens):
                cut += 1
                enough = finished(tokens[:cut])
            if not future.done() and (enough or output.is_finished()):
                future.set_result(output)

        manager.register_result_handler(name, told)
        asked = manager.add_request(
            prompt, request_id=name, max_new_tokens=most, eos_token_id=stops or -1, streaming=finished is not None
        )
        if asked is None:
            raise GenerationError(
                "expected transformers' continuous batching to take a request, got a refusal: it ended"
            )
        done = False
        try:
            output = await future
            done = output.is_finished()
        finally:
            if not done:
                manager.cancel_request(name)
        if output.error is not None:
            raise GenerationError(f"transformers' continuous batching failed: {output.error}")
        ids, logps = list(output.generated_tokens), list(output.logprobs)
        if enough:
            ids, logps = ids[:cut], logps[:cut]
        if not ids or len(logps) != len(ids) or not all(map(math.isfinite, logps)):
            raise GenerationError(
                f"expected tokens with finite log-probabilities, got {len(ids)} with {[round(x, 3) for x in logps[:4]]}"
            )
        return ids, [0.0] * len(ids) if self.sampling.temperature == 0 else logps

    async def _compare(self) -> None:
        """Compares a few tokens with the policy's own numbers.

        Raises:
            GenerationError: They differ.
        """
        prompt, count = probe(self._policy, self.capacity)
        ids, logps = await self._asked(prompt, count, [], None)
        said = np.asarray(logps, np.float32)
        own = disagreement(self._policy, self.sampling, prompt, np.asarray(ids, np.int32), said)
        whole = next(self._policy.model.parameters()).dtype in (torch.float32, torch.float64)
        if own > (_TOLERANCE if whole else _HALF_TOLERANCE):
            raise GenerationError(
                f"expected tokens sampled as the policy scores them, got log-probabilities that differ by {own:.3g} "
                f"nats from transformers' continuous batching of {type(self._policy.model).__name__}; use "
                "engine='exact'"
            )

    def _start(self, seed: int) -> None:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        how = self.sampling
        model: Any = base_model(self._policy.model)
        cuda = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
        self._random = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in cuda]
        greedy = how.temperature == 0
        cuts: dict[str, Any] = {"top_k": how.top_k, "top_p": how.top_p, "min_p": how.min_p or None}
        generation = GenerationConfig(
            do_sample=not greedy,
            max_new_tokens=how.max_new_tokens,
            eos_token_id=-1,
            **({} if greedy else {"temperature": how.temperature, **cuts}),
        )
        blocks = self.slots * -(-(self.capacity + 1) // _PAGE) + 1
        batching = ContinuousBatchingConfig(
            page_size=_PAGE,
            num_blocks=blocks,
            max_batch_tokens=max(_BATCH, self.slots),
            max_requests_per_batch=self.slots,
            return_logprobs=True,
            seed=seed,
            drop_unsupported_processors=False,
        )
        self._manager = model.init_continuous_batching(
            generation_config=generation, continuous_batching_config=batching
        )
        self._comparing = asyncio.Lock()  # of this event loop
        self._manager.start()

    def _stop(self) -> None:
        """Ends the thread and its caches, and puts the process' generators back."""
        if self._manager is None:
            return
        manager, self._manager = self._manager, None
        manager.stop(hard_stop=True)
        manager.destroy()
        assert self._random is not None
        torch.set_rng_state(self._random[0])
        for device, state in enumerate(self._random[1]):
            torch.cuda.set_rng_state(state, device)
