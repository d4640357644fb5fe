"""Servers as an engine: token ids out, token ids and log-probabilities back, from weights that are known to be right.

A conversation stays with one server, which then has most of it in its cache. What is asked of a server, and how it gets
the weights, stands in `remote.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any

import numpy as np

from polyturn.agents.http_client import Again, HttpClient, ServerRefused, ServerUnreachable
from polyturn.agents.transformer.engines.handing import adapter_of, written
from polyturn.agents.transformer.engines.interface import Capabilities
from polyturn.agents.transformer.engines.own_server import OwnServer
from polyturn.agents.transformer.engines.remote import Remote, Wanted, how
from polyturn.agents.transformer.engines.replies import Reply
from polyturn.agents.transformer.engines.settings import TokenServers, check_common_sampling
from polyturn.agents.transformer.engines.slots import Slots
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.policy import Policy
from polyturn.envs.trajectory import Logps, TokenIds

_log = logging.getLogger(__name__)
# Seconds for which a server that did not answer is asked only where the others do not answer either.
_REST_S = 10.0


@dataclass
class _Server:
    """One server; `rests_until` is when it may be asked first again, by this process' clock."""

    remote: Remote
    conversations: int = 0
    rests_until: float = 0.0


@dataclass
class _Conversation:
    known: list[int] = field(default_factory=list)  # all tokens but the last sampled one
    server: _Server | None = None
    noted: dict[str, Any] = field(default_factory=dict)


class ServedEngine:
    """Samples from servers; one asyncio event loop at a time.

    A request that is lost with its server is sent to another one, with the same seed; only if none answers, round after
    round, is the episode invalid.

    Args:
        policy: Whose weights sample.
        sampling: How tokens are drawn.
        servers: Where, and how weights get there.
        slots: Conversations at once.
        capacity: Tokens that a conversation may have in all.
        own: The process behind the one server, where it is this process' own.

    Raises:
        ImportError: The extra "api" is not installed.
        ValueError: Options that servers do not have, or several adapters that act together.
    """

    def __init__(
        self,
        policy: Policy,
        sampling: Sampling,
        servers: TokenServers,
        *,
        slots: int,
        capacity: int,
        own: OwnServer | None = None,
    ) -> None:
        check_common_sampling("of servers", sampling)
        if sampling.max_thinking_tokens is not None:
            raise ValueError(
                "engine of servers: expected no max_thinking_tokens, which needs a stop after a number of tokens in a "
                f"thought, got {sampling.max_thinking_tokens}; leave it out, or use engine='exact' or 'transformers'"
            )
        adapter = servers.weights == "handed" and adapter_of(policy) is not None
        self._wanted = Wanted(adapter=adapter)
        self.name = "servers" if own is None else "vllm"
        self._own = own
        self.sampling, self.slots, self.capacity = sampling, slots, capacity
        self._policy, self._settings = policy, servers
        self._places = Slots(slots)
        self._open: dict[int, _Conversation] = {}
        self._first: str | None = None
        self._http = HttpClient(
            "engine",
            "policy",
            api_key_env=servers.api_key_env,
            concurrency=slots + len(servers.urls),  # weights are handed over beside what is being sampled
            timeout=servers.timeout,
            retries=servers.retries,
            backoff=servers.backoff,
            longest_wait=300.0,
            log=_log,
            socket=None if own is None else own.socket,
        )
        remotes = [
            Remote(url, self._http, policy, sampling, servers, capacity=capacity, weights=self._wanted, own=own)
            for url in servers.urls
        ]
        self._servers = [_Server(remote) for remote in remotes]

    @property
    def capabilities(self) -> Capabilities:
        """Servers batch as they like, which changes the last bits; seeds are heeded."""
        return Capabilities(bit_identical=False, own_generators=True, mixtures=False, sampled_logps=True)

    def fingerprint(self) -> str:
        """A digest of the weights that it samples from."""
        return self._policy.fingerprint()

    def close(self) -> None:
        """Closes the connections, and ends a server of its own; the next request opens new ones."""
        self._http.close()
        if self._own is not None:
            self._own.close()

    async def acquire(self) -> int:
        """Waits until another conversation can be held, and opens it.

        The first after all were closed takes the policy's weights as they then are.

        Raises:
            ServerRefused: They have changed, and servers keep those that they have.
        """
        if self._places.idle:
            self._take_weights()
        number = await self._places.take()
        self._open[number] = _Conversation()
        return number

    def _take_weights(self) -> None:
        found = self._wanted.fingerprint = self._policy.fingerprint()
        if self._settings.weights == "handed":
            self._wanted.folder = written(self._policy, found, self._settings.folder)
            return
        self._first = found if self._first is None else self._first
        if found != self._first:
            raise ServerRefused(
                "engine: expected the weights that the servers were asked to sample from first, got others (the policy "
                "was trained); pass TokenServers(weights='handed'), which hands them over"
            )

    def release(self, conversation: int) -> None:
        """Closes a conversation."""
        left = self._open.pop(conversation)
        if left.server is not None:
            left.server.conversations -= 1
        self._places.give(conversation)

    def length(self, conversation: int) -> int:
        """Tokens of the conversation but the last sampled one."""
        return len(self._open[conversation].known)

    def noted(self, conversation: int) -> Mapping[str, Any]:
        """The server, and the weights that it had."""
        return self._open[conversation].noted

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
            rng: The conversation's generator, which gives one seed a request.
            limit: Tokens to sample at most, where that is less than `sampling.max_new_tokens`.
            finished: From the tokens sampled so far to whether they are enough, such as at a stop text.

        Returns:
            Sampled ids `[A]` int32 and their log-probabilities `[A]` float32 in nats.

        Raises:
            ServerError: No server samples as asked.
            ContextFull: The servers' limit is lower than `capacity`.
            ValueError: No context, or more than fits; a limit below 1.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"ServedEngine.generate: expected a limit of 1 or more, got {limit}")
        state = self._open[conversation]
        prompt = [*state.known, *context.tolist()]
        if not len(state.known) < len(prompt) < self.capacity:
            raise ValueError(
                f"ServedEngine.generate: expected 1 to {self.capacity - len(state.known) - 1} context tokens, got "
                f"{len(context)}"
            )
        most = min(self.sampling.max_new_tokens, self.capacity - len(prompt))
        most = most if limit is None else min(limit, most)
        ids: list[int] = []
        logps: list[float] = []
        stops = self._policy.chat.stop_ids
        # A server may end elsewhere too, at a stop text as it reads it; then it is asked to go on.
        while True:
            seed = int(rng.integers(2**62))
            reply = await self._sampled(state, prompt + ids, most - len(ids), seed)
            for number, logp in zip(reply.ids.tolist(), reply.logps.tolist(), strict=True):
                ids.append(number)
                logps.append(logp)
                if number in stops or (finished is not None and finished(ids)) or len(ids) == most:
                    state.known = prompt + ids[:-1]
                    return np.asarray(ids, np.int32), np.asarray(logps, np.float32)

    async def _sampled(self, state: _Conversation, prompt: list[int], most: int, seed: int) -> Reply:
        """From the conversation's server, or from the next that answers, which it then stays with."""
        now = monotonic()
        order = sorted(
            self._servers, key=lambda each: (each.rests_until > now, each is not state.server, each.conversations)
        )
        _move(state, order[0])  # before it answers, so that those who come next see it
        stops = sorted(self._policy.chat.stop_ids)
        content = {**how(self.sampling), "prompt": prompt, "max_tokens": most, "seed": seed}
        # Servers take four texts; what a reply has after any other is cut off here.
        texts = list(self.sampling.stop[:4])
        content |= {"stop_token_ids": stops, "stop": texts, "include_stop_str_in_output": True}
        tries: list[Callable[[], Awaitable[Reply]]] = [partial(self._of, server, state, content) for server in order]
        return await self._http.patiently(tries)

    async def _of(self, server: _Server, state: _Conversation, content: dict[str, Any]) -> Reply:
        """One server's answer; the conversation is then with it."""
        try:
            reply = await server.remote.sampled(content)
        except Again as again:
            if isinstance(again.error, ServerUnreachable):
                server.rests_until = monotonic() + _REST_S
            raise
        _move(state, server)
        server.rests_until = 0.0
        state.noted = {
            "engine": self.name,
            "bit_identical": False,
            "server": server.remote.base,
            "weights": self._wanted.fingerprint,
        }
        return reply


def _move(state: _Conversation, server: _Server) -> None:
    """The conversation is with this server from now on."""
    if state.server is not None:
        state.server.conversations -= 1
    server.conversations += 1
    state.server = server
