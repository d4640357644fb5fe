"""The engine as calls use it: caches of conversations that may go on are kept, the oldest one makes room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from polyturn.agents.transformer.engines.interface import Engine
from polyturn.envs.trajectory import Logps, TokenIds

Place = tuple[str, int]
"""An episode and the number of a call in it: where a cache ends."""


class Sampler:
    """Samples answers to prompts; one event loop.

    Args:
        engine: What samples.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._kept: OrderedDict[Place, int] = OrderedDict()
        self._running = self._waiting = 0

    async def sample(
        self,
        prompt: TokenIds,
        rng: np.random.Generator,
        *,
        after: Place | None,
        place: Place,
        limit: int | None,
        finished: Callable[[list[int]], bool] | None,
    ) -> tuple[TokenIds, Logps]:
        """Samples an answer.

        Args:
            prompt: `[C]` everything that the model is to read.
            rng: The call's own generator.
            after: The call that the prompt continues, token by token; None for one that begins anew.
            place: What the cache is to be kept under.
            limit: Tokens at most, or None.
            finished: As in `Engine.generate`.

        Returns:
            Sampled ids `[A]` and their log-probabilities `[A]` in nats.
        """
        kept = self._kept.pop(after, None) if after is not None else None
        slot = await self._free() if kept is None else kept
        self._running += 1
        try:
            unread = prompt[self.engine.length(slot) :]
            answer = await self.engine.generate(slot, unread, rng, limit=limit, finished=finished)
        except BaseException:
            self.engine.release(slot)
            raise
        finally:
            self._running -= 1
        if self._waiting:
            self.engine.release(slot)
        else:
            self._kept[place] = slot
        return answer

    def forget(self, episode: str) -> None:
        """Gives back what is kept for an episode."""
        for place in [place for place in self._kept if place[0] == episode]:
            self.engine.release(self._kept.pop(place))

    async def _free(self) -> int:
        if self._kept and len(self._kept) + self._running + self._waiting >= self.engine.slots:
            self.engine.release(self._kept.popitem(last=False)[1])
        self._waiting += 1
        try:
            return await self.engine.acquire()
        finally:
            self._waiting -= 1
