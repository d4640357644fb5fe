"""The seam between agents and what samples their tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from polyturn.agents.transformer.generation import Sampling
from polyturn.envs.trajectory import Logps, TokenIds


@dataclass(frozen=True)
class Capabilities:
    """What an engine promises.

    Attributes:
        bit_identical: Tokens and log-probabilities are the same to the last bit at any concurrency.
        own_generators: Every conversation is sampled with its own random generator, or a seed from it.
        mixtures: Two models can be mixed token by token.
        sampled_logps: Log-probabilities are those of the distribution that is sampled from, whatever the options.
    """

    bit_identical: bool
    own_generators: bool
    mixtures: bool
    sampled_logps: bool = True


class Engine(Protocol):
    """Samples the turns of many conversations; from one asyncio event loop at a time.

    Attributes:
        name: What `engine=` calls it.
        sampling: How tokens are drawn.
        capacity: Tokens that a conversation may have in all.
        slots: Conversations held at once.
    """

    name: str
    sampling: Sampling
    capacity: int
    slots: int

    @property
    def capabilities(self) -> Capabilities:
        """What this engine promises for its model on this machine."""

    def fingerprint(self) -> str:
        """A digest of the weights that it samples from."""

    async def acquire(self) -> int:
        """Waits until another conversation can be held, and opens it: its number. The caller must `release` it."""

    def release(self, conversation: int) -> None:
        """Closes a conversation."""

    def length(self, conversation: int) -> int:
        """Tokens of the conversation that are known to the engine."""

    def noted(self, conversation: int) -> Mapping[str, Any]:
        """What is to be recorded of the conversation's last turn, as JSON values; nothing where the seed says all."""

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
            rng: The conversation's generator.
            limit: Tokens to sample at most, where that is less than `sampling.max_new_tokens`.
            finished: From the tokens sampled so far to whether they are enough, such as at a stop text; called after
                every token, once and in order.

        Returns:
            Sampled ids `[A]` int32, and `[A]` float32 log-probabilities in nats of the distribution they were drawn
            from.
        """
