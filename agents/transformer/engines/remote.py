"""One server that samples: what it serves, the weights that it is given, and what it answers.

What is asked is vLLM's `/v1/completions` with `return_token_ids`. Before a server is used, and whenever the wanted
weights are others, it is given them (`weights="handed"`), and a few tokens that it samples are scored by the policy
itself: other weights, and log-probabilities of another distribution than the one sampled from, are found there. A reply
of weights that are no longer right is thrown away and asked for again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyturn.agents.agent import ContextFull
from polyturn.agents.http_client import (
    TOO_LONG,
    Again,
    BadAnswer,
    HttpClient,
    ServerError,
    ServerRefused,
    ServerUnreachable,
    may_pass,
    retry_after,
    shown,
)
from polyturn.agents.transformer.engines.handing import disagreement, probe
from polyturn.agents.transformer.engines.own_server import OwnServer
from polyturn.agents.transformer.engines.replies import BadReply, NoTokens, Reply, read_json, read_reply
from polyturn.agents.transformer.engines.settings import TokenServers
from polyturn.agents.transformer.generation import Sampling
from polyturn.agents.transformer.policy import Policy

_ADAPTER = "polyturn-"


class _Stale(Exception):
    """A server does not have the weights that it was given: it was started again, or given others."""


@dataclass
class Wanted:
    """The weights to sample from.

    Attributes:
        fingerprint: A digest of them.
        folder: Where they are written, if servers are handed them.
        adapter: Whether that is an adapter.
    """

    fingerprint: str = ""
    folder: Path | None = None
    adapter: bool = False


class Remote:
    """One server, asked from within `HttpClient.patiently`.

    Args:
        base: Its address, up to and with "/v1".
        http: Connections.
        policy: Whose weights sample.
        sampling: How tokens are drawn.
        settings: Of all servers.
        capacity: Tokens that a conversation may have in all.
        weights: What is wanted of it.
        own: The process behind it, where it is this process' own.
    """

    def __init__(
        self,
        base: str,
        http: HttpClient,
        policy: Policy,
        sampling: Sampling,
        settings: TokenServers,
        *,
        capacity: int,
        weights: Wanted,
        own: OwnServer | None = None,
    ) -> None:
        self.base, self._own = base, own
        self._http, self._policy, self._sampling, self._settings = http, policy, sampling, settings
        self._capacity, self._weights = capacity, weights
        self._has: str | None = None  # the fingerprint of the weights that it is known to have
        self._model = self._sampler = ""  # its base model, and what requests name: that or an adapter
        self._versioned = False  # whether it names the version of its weights
        self._handovers = 0  # a reply that one of them overtook may be of other weights
        self._locks: dict[asyncio.AbstractEventLoop, asyncio.Lock] = {}

    @property
    def _root(self) -> str:
        return self.base.removesuffix("/v1")

    def _lock(self) -> asyncio.Lock:
        """Held while weights are handed over; of the running event loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._locks:
            self._locks = {loop: asyncio.Lock()}
        return self._locks[loop]

    async def sampled(self, content: dict[str, Any]) -> Reply:
        """Asks for a completion, from the right weights.

        Raises:
            Again: It does not answer, or with something else.
        """
        for _ in range(2):
            if self._own is not None and await self._own.revived(self._policy, self._http):
                self._has = None
            await self._ready()
            before = self._handovers
            try:
                reply = await self._complete(content)
                if self._versioned and await self._version() != self._weights.fingerprint:
                    raise _Stale
                if self._handovers == before:
                    return reply
            except _Stale:
                # It was started again since it was given the weights: it is given them once more.
                self._has = None
        what = "it does not keep the weights that it is given; does another run, or another policy, hand it others?"
        raise Again(self._error(ServerUnreachable, what))

    async def _complete(self, content: dict[str, Any]) -> Reply:
        status, headers, answer = await self._post(f"{self.base}/completions", content | {"model": self._sampler})
        if status == 404 and self._sampler != self._model:
            raise _Stale
        self._check(status, headers, answer)
        try:
            vocabulary = int(self._policy.model.config.get_text_config().vocab_size)
            reply = read_reply(answer, content["prompt"], content["max_tokens"], vocabulary)
        except NoTokens as error:
            raise self._error(
                ServerRefused,
                f"the answer holds {error}, and what is trained on must be the very tokens that were sampled: text "
                "that is tokenized again may be others. Use a server that returns them (vLLM's /v1/completions), or "
                "ServerAgent, which acts, judges and is a partner by text alone",
            ) from None
        except BadReply as error:
            seen = shown(self._http.clean(answer[:2000].decode("utf-8", "replace")))
            raise Again(self._error(BadAnswer, f"{error}; got {seen}")) from None
        if reply.model and reply.model != self._sampler:
            raise self._error(ServerRefused, f"expected an answer of {self._sampler}, got one of {reply.model}")
        if content["temperature"] == 0:
            return Reply(reply.ids, np.zeros(len(reply.ids), np.float32), reply.model)
        return reply

    async def _ready(self) -> None:
        """Sees to it that the server has the weights that are wanted."""
        async with self._lock():
            if self._has == self._weights.fingerprint:
                return
            await self._meet()
            if self._settings.weights == "handed":
                await (self._reload() if not self._weights.adapter else self._load_adapter())
            await self._compare()
            self._has = self._weights.fingerprint

    async def _meet(self) -> None:
        """Finds out what it serves, and whether conversations fit."""
        answer = await self._asked(f"{self.base}/models")
        listed = answer.get("data") if isinstance(answer, Mapping) else None
        cards = {str(each.get("id")): each for each in listed or () if isinstance(each, Mapping)}
        name = self._settings.model or next(iter(cards), "")
        if name not in cards:
            known = shown(", ".join(cards)) or "none"
            raise self._error(ServerRefused, f"expected a model {name!r} among those it serves, got {known}")
        longest = cards[name].get("max_model_len")
        if isinstance(longest, int) and longest < self._capacity:
            raise self._error(
                ServerRefused,
                f"expected room for conversations of {self._capacity} tokens, got {longest}; set max_tokens={longest}, "
                "or start it with a larger --max-model-len",
            )
        self._model = self._sampler = name
        if self._weights.adapter and f"{_ADAPTER}{self._weights.fingerprint}" in cards:
            self._sampler = f"{_ADAPTER}{self._weights.fingerprint}"

    async def _load_adapter(self) -> None:
        """Loads the adapter under a name that says which weights it has, so that no answer is of others."""
        name = f"{_ADAPTER}{self._weights.fingerprint}"
        if self._sampler == name:
            return
        status, _, answer = await self._post(
            f"{self.base}/load_lora_adapter", {"lora_name": name, "lora_path": str(self._weights.folder)}
        )
        said = self._http.clean(answer[:2000].decode("utf-8", "replace"))
        if status != 200 and "already been loaded" not in said:
            how = "--enable-lora --max-lora-rank R, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment"
            raise self._error(
                ServerRefused,
                f"it did not load the adapter {self._weights.folder}: status {status}: {shown(said)}; start it with "
                f"{how}, on a machine that sees this folder",
            )
        self._sampler = name

    async def _reload(self) -> None:
        """Replaces all weights, unless it has them; nothing is sampled meanwhile."""
        self._versioned, self._handovers = True, self._handovers + 1
        if await self._version() == self._weights.fingerprint:
            return
        await self._commanded("/pause?mode=wait")
        try:
            await self._commanded(
                "/collective_rpc",
                {"method": "reload_weights", "kwargs": {"weights_path": str(self._weights.folder)}},
            )
            await self._commanded("/reset_prefix_cache")
            await self._commanded("/update_weight_version", {"new_version": self._weights.fingerprint})
        finally:
            await self._commanded("/resume")

    async def _compare(self) -> None:
        """Compares what it samples with the policy's own numbers: as the model is, then with the options of sampling.

        Raises:
            ServerRefused: They differ.
        """
        own = await self._difference(Sampling())
        if own > self._settings.tolerance:
            raise self._error(
                ServerRefused,
                f"expected the policy's weights, got log-probabilities that differ by {own:.3g} nats from its own "
                f"(tolerance {self._settings.tolerance:g}); serve this policy in its precision, {self._remedy()}, or "
                "allow for rounding (tolerance=...)",
            )
        # The most likely token is the same with any options; its log-probability is recorded as 0.
        drawn = self._sampling
        if drawn.temperature == 0 or (drawn.temperature, drawn.top_p, drawn.top_k, drawn.min_p) == (1, 1, 0, 0):
            return
        own = await self._difference(drawn)
        if own > self._settings.tolerance:
            raise self._error(
                ServerRefused,
                f"it reports log-probabilities that differ by {own:.3g} nats from those of the distribution that is "
                "sampled from, which are what is trained on; start it with --logprobs-mode processed_logprobs, or "
                "sample with temperature=1, top_p=1, top_k=0, min_p=0",
            )

    async def _difference(self, sampling: Sampling) -> float:
        prompt, count = probe(self._policy, self._capacity)
        reply = await self._complete({**how(sampling), "prompt": prompt, "max_tokens": count, "seed": 0})
        return disagreement(self._policy, sampling, prompt, reply.ids, reply.logps)

    def _remedy(self) -> str:
        if self._settings.weights == "served":
            return "hand the weights over (TokenServers(weights='handed'))"
        return "start it with the policy's base" if self._weights.adapter else "start it again (it did not take them)"

    async def _version(self) -> str:
        answer = await self._asked(f"{self._root}/weight_info")
        return str(answer.get("weight_version", "")) if isinstance(answer, Mapping) else ""

    async def _asked(self, address: str) -> Any:
        status, headers, answer = await self._http.once(address, "", None)
        self._check(status, headers, answer)
        try:
            return read_json(answer)
        except BadReply as error:
            raise Again(self._error(BadAnswer, str(error))) from None

    async def _commanded(self, path: str, content: dict[str, Any] | None = None) -> None:
        status, headers, answer = await self._post(f"{self._root}{path}", content or {})
        self._check(status, headers, answer)

    async def _post(self, address: str, content: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        return await self._http.once(address, "", json.dumps(content).encode())

    def _check(self, status: int, headers: Mapping[str, str], answer: bytes) -> None:
        """Raises what a status other than 200 means."""
        if status == 200:
            return
        text = self._http.clean(answer[:10_000].decode("utf-8", "replace"))  # before it is cut again
        said = f"status {status}: {shown(text)}"
        if may_pass(status):
            raise Again(self._error(ServerUnreachable, said), retry_after(headers))
        if status in (400, 413, 422) and TOO_LONG.search(text):
            raise ContextFull(shown(text))
        if status in (401, 403):
            said += f"; set {self._settings.api_key_env} to a key that is valid there"
        elif status == 404:
            said += "; expected vLLM's API at .../v1" + (
                ", started with VLLM_SERVER_DEV_MODE=1, which lets weights be handed over"
                if self._settings.weights == "handed"
                else ""
            )
        raise self._error(ServerRefused, said)

    def _error(self, kind: type[ServerError], what: str) -> ServerError:
        return self._http.error(kind, self.base, what)


def how(sampling: Sampling) -> dict[str, Any]:
    """How to sample, in full: a server's own defaults come from the model's files."""
    greedy = sampling.temperature == 0
    return {
        "temperature": sampling.temperature,
        "top_p": 1.0 if greedy else sampling.top_p,
        "top_k": 0 if greedy else sampling.top_k,
        "min_p": 0.0 if greedy else sampling.min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "n": 1,
        "logprobs": 0,
        "return_token_ids": True,
        "skip_special_tokens": False,
        "ignore_eos": True,  # the policy's own stop tokens are named
    }
