"""The engine as calls use it: an episode keeps the cache of its latest call, and the oldest makes room where it must.

What has been read stays in the cache, so a run that asks for one thing after another, as one of at most as many runs as
there are slots, has the same numbers to the last bit whatever runs beside it.
"""

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
        self._kept: OrderedDict[str, tuple[int, int]] = OrderedDict()  # by episode: number of the call, slot
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
        episode, number = place
        kept = self._kept.get(episode)
        if kept is not None and after == (episode, kept[0]):
            del self._kept[episode]
            slot = kept[1]
        else:
            slot = await self._free()
        self._running += 1
        try:
            unread = prompt[self.engine.length(slot) :]
            answer = await self.engine.generate(slot, unread, rng, limit=limit, finished=finished)
        except BaseException:
            self.engine.release(slot)
            raise
        finally:
            self._running -= 1
        self.forget(episode)
        if self._waiting:
            self.engine.release(slot)
        else:
            self._kept[episode] = (number, slot)
        return answer

    def forget(self, episode: str) -> None:
        """Gives back what is kept for an episode."""
        if (kept := self._kept.pop(episode, None)) is not None:
            self.engine.release(kept[1])

    async def _free(self) -> int:
        if self._kept and len(self._kept) + self._running + self._waiting >= self.engine.slots:
            self.engine.release(self._kept.popitem(last=False)[1][1])
        self._waiting += 1
        try:
            return await self.engine.acquire()
        finally:
            self._waiting -= 1
