"""Places for conversations: so many at once, the rest wait."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque


class Slots:
    """Numbers from 0 on, each lent to one taker at a time; one asyncio event loop at a time.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._free = list(range(count))
        self._waiting: deque[asyncio.Future[int]] = deque()

    @property
    def idle(self) -> bool:
        """Whether none is taken."""
        return len(self._free) == self._count

    async def take(self) -> int:
        """Waits for a free one; the taker must `give` it back."""
        if self._free:
            return heapq.heappop(self._free)  # the lowest, so that those in use are neighbours
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            return int(await future)
        except asyncio.CancelledError:
            # The slot may have been handed over in the very moment in which its taker was cancelled.
            if future.done() and not future.cancelled():
                self.give(future.result())
            raise

    def give(self, slot: int) -> None:
        """Gives one back, to the first that waits."""
        while self._waiting:
            future = self._waiting.popleft()
            # A caller that waited in an event loop that has ended will not come.
            if not future.done() and not future.get_loop().is_closed():
                future.set_result(slot)
                return
        heapq.heappush(self._free, slot)
