"""A model served through an OpenAI-compatible chat API: as agent, as partner, as judge.

What its failures mean stands in `http_client.py`. A conversation that the server calls too long raises `ContextFull`:
the episode is truncated, as for any other agent.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np

from polyturn.agents.agent import Action, ContextFull, Episode
from polyturn.agents.http_client import (
    TOO_LONG,
    Again,
    BadAnswer,
    HttpClient,
    ServerError,
    ServerRefused,
    ServerUnreachable,
    checked_url,
    may_pass,
    retry_after,
    shown,
)
from polyturn.agents.secrets import masked_pieces, masked_value
from polyturn.envs.plain import plain
from polyturn.envs.settings import check_count, check_range

_log = logging.getLogger(__name__)


class ServerAgent:
    """Acts by asking a server for the next assistant message (`POST {base_url}/chat/completions`).

    Observations are sent as "user" messages, the agent's own turns as "assistant" ones.

    Failures that may pass (status 408, 409, 425, 429, 5xx, no connection, a time-out, an answer that is no completion)
    are tried again after `backoff * 2^n` seconds, of which a random half is left off so that many clients do not come
    back at once, and not before the server's Retry-After. If the server has never answered, a refused connection is
    tried only once more. The logger "polyturn.agents.api" says what is waited for, at most every 10 seconds.

    The key is read from the environment at every request; it is in no message, name, record or log of this project, and
    masked in all that servers say, pieces of it of 8 or more characters included.

    In a forked child an agent opens connections of its own.

    A turn's info holds under "agent": `finish_reason`, `usage` where the server reports it, and with `logprobs=True`
    `tokens` and `logprobs` of the answer. These are the server's tokens: they are read, not trained on.

    Usable from many threads and event loops at once; `concurrency` bounds all of them together.

    Args:
        model: What the server calls the model.
        base_url: Up to and without "/chat/completions"; default the environment's OPENAI_BASE_URL, or OpenAI's own.
        api_key_env: The environment variable that holds the key; without one in it no key is sent.
        system: A system message before the conversation.
        temperature: How the server samples; None, here and in the next three, leaves it to the server.
        top_p: Nucleus sampling.
        max_tokens: Tokens of an answer.
        stop: Texts at which an answer ends.
        seeded: Send a `seed` from the episode's own generator; servers may heed it. False for those that refuse it.
        logprobs: Ask for log-probabilities and record them.
        body: Further fields of the request, such as {"max_completion_tokens": 512}.
        version: Recorded as the version of the weights.
        concurrency: Requests under way at once.
        timeout: Seconds that one request may take in all.
        retries: How often a request is repeated.
        backoff: Seconds before the first repetition.
        longest_wait: Seconds; if a server asks to wait for longer, it counts as unreachable at once.
        jitter: Random numbers for the waits; default fresh ones. They influence nothing but waits.
        sleep: Waits; given for tests.

    Raises:
        ImportError: The extra "api" is not installed.
        ValueError: Settings out of range.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        system: str | None = None,
        temperature: float | None = 1.0,
        top_p: float | None = None,
        max_tokens: int | None = 512,
        stop: Sequence[str] = (),
        seeded: bool = True,
        logprobs: bool = False,
        body: Mapping[str, Any] | None = None,
        version: str = "",
        concurrency: int = 16,
        timeout: float = 120.0,
        retries: int = 6,
        backoff: float = 1.0,
        longest_wait: float = 300.0,
        jitter: np.random.Generator | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._http = HttpClient(
            "ServerAgent",
            model,
            api_key_env=api_key_env,
            concurrency=concurrency,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            longest_wait=longest_wait,
            log=_log,
            jitter=jitter,
            sleep=sleep,
        )
        if temperature is not None:
            check_range("ServerAgent(temperature)", temperature, 0)
        if top_p is not None:
            check_range("ServerAgent(top_p)", top_p, 0, 1, above=True)
        check_count("ServerAgent(max_tokens)", max_tokens, optional=True)
        if isinstance(stop, str) or not all(isinstance(each, str) for each in stop):
            raise ValueError(f"ServerAgent(stop): expected a sequence of texts, got {stop!r:.80}")
        where = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        self.model, self.base_url, self.version = model, checked_url("ServerAgent(base_url)", where), version
        self.max_concurrency = concurrency
        self._api_key_env, self._system, self._seeded = api_key_env, system, seeded
        sampling = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "stop": list(stop) or None}
        self._body: dict[str, Any] = {name: value for name, value in sampling.items() if value is not None}
        self._body |= {"logprobs": True} if logprobs else {}
        self._body |= dict(body or {})

    @property
    def name(self) -> str:
        """Recorded in trajectories: the model, how it samples, and which system message it is given."""
        settings = {key: value for key, value in self._body.items() if key != "logprobs"}
        if self._system is not None:
            settings["system"] = f"{crc32(_sendable(self._system).encode()):08x}"
        return self._http.clean(
            f"{self.model}({', '.join(f'{key}={value}' for key, value in sorted(settings.items()))})"
        )

    async def act(self, episode: Episode) -> Action:
        """Asks for the next message.

        Raises:
            ContextFull: The server says that the conversation is too long.
            ServerError: It cannot or will not answer.
        """
        answer = await self._complete(self._messages(episode), self._seed(episode))
        info: dict[str, Any] = {"finish_reason": str(answer.get("finish_reason", ""))}
        if isinstance(usage := answer.get("usage"), Mapping):
            info["usage"] = {
                name: value for name, value in usage.items() if isinstance(value, int) and value.bit_length() < 64
            }
        if found := _listed(answer):
            info["tokens"] = masked_pieces([str(entry.get("token", "")) for entry in found], self._http.key())
            info["logprobs"] = [_logprob(entry) for entry in found]
        tokens = info.pop("tokens", None)
        info = plain(masked_value(info, self._http.key()), "the server's answer")
        return Action(self._http.clean(answer["text"]), info=info if tokens is None else info | {"tokens": tokens})

    def close(self) -> None:
        """Closes the connections and ends their thread; the next request opens new ones."""
        self._http.close()

    def _seed(self, episode: Episode) -> dict[str, Any]:
        return {"seed": int(episode.rng.integers(2**31))} if self._seeded else {}

    def _messages(self, episode: Episode) -> list[dict[str, str]]:
        said = [] if self._system is None else [("system", self._system)]
        for turn in episode.turns:
            said += [("user", turn.observation), ("assistant", turn.action)]
        return [{"role": role, "content": _sendable(text)} for role, text in [*said, ("user", episode.observation)]]

    async def _complete(self, messages: list[dict[str, str]], more: Mapping[str, Any]) -> dict[str, Any]:
        """One choice, with its text and the answer's usage."""
        body = json.dumps({"model": self.model, "messages": messages, **self._body, **more}).encode()

        async def asked() -> dict[str, Any]:
            return self._read(*await self._http.once(self.base_url, "/chat/completions", body))

        return await self._http.patiently([asked])

    def _read(self, status: int, headers: Mapping[str, str], content: bytes) -> dict[str, Any]:
        text = content.decode("utf-8", "replace")
        if status != 200:
            text = self._http.clean(text)  # before it is cut, or a piece of the key would be left at the cut
            said = f"status {status}: {shown(text)}"
            if may_pass(status):
                raise Again(self._error(ServerUnreachable, said), retry_after(headers))
            if status in (400, 413, 422) and TOO_LONG.search(text):
                raise ContextFull(shown(text))
            raise self._error(ServerRefused, f"{said}{self._remedy(status)}")
        try:
            answer = json.loads(text)
            choice = dict(answer["choices"][0])
            message = choice["message"]
            words = message.get("content")
            if isinstance(words, list):
                words = "".join(part.get("text", "") for part in words)
            if words is None:  # a refusal, or all tokens went into hidden reasoning: it said that, or nothing
                words = message.get("refusal") or ""
            if not isinstance(words, str):
                raise TypeError(f"content is {type(words).__name__}")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            what = f"expected a chat completion, got {shown(self._http.clean(text))} ({type(error).__name__}: {error})"
            raise Again(self._error(BadAnswer, what)) from None
        return choice | {"text": words, "usage": answer.get("usage")}

    def _error(self, kind: type[ServerError], what: str) -> ServerError:
        return self._http.error(kind, self.base_url, what)

    def _remedy(self, status: int) -> str:
        if status in (401, 403):
            return f"; set {self._api_key_env} to a key that is valid there" + (
                "" if self._http.key() else " (it is not set, so none was sent)"
            )
        if 300 <= status < 400 or status == 404:
            return "; check base_url (it ends before /chat/completions) and model"
        return "; check model and settings (body={...} adds fields, None leaves one out)"


class ServerChooser(ServerAgent):
    """A server as judge that says how likely each answer is; arguments as in `ServerAgent`.

    The log-probabilities of the answer's first token are used in place of its words. An answer that is not among the
    likeliest tokens the server lists is taken to be as likely as the least of them; if none of the choices is among
    them, nothing is known and the pair stays unasked.
    """

    async def choice_logps(self, episode: Episode, choices: Sequence[str]) -> list[float]:
        """Log-probability in nats of each choice as the first word of the answer; nan where nothing is known.

        Raises:
            ServerError: The server cannot or will not answer, or lists no log-probabilities.
        """
        more = {"logprobs": True, "top_logprobs": 20, "max_tokens": 1, **self._seed(episode)}
        listed = _listed(await self._complete(self._messages(episode), more))
        likeliest = listed[0].get("top_logprobs") if listed else None
        if not isinstance(likeliest, list) or not likeliest:
            raise self._error(
                BadAnswer,
                "expected log-probabilities, got an answer without any; use ServerAgent, whose text is read",
            )
        # "1" and " 1" are two tokens and one answer.
        known = {
            choice: [_logprob(entry) for entry in likeliest if str(entry.get("token", "")).strip() == choice]
            for choice in choices
        }
        if not any(known.values()):
            return [math.nan] * len(choices)
        least = min(_logprob(entry) for entry in likeliest)
        return [float(np.logaddexp.reduce(known[choice])) if known[choice] else least for choice in choices]


def _listed(choice: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    return [entry for entry in content if isinstance(entry, Mapping)] if isinstance(content, list) else []


def _logprob(entry: Mapping[str, Any]) -> float:
    """Servers write -9999 for what is as good as impossible; JSON knows no infinity."""
    value = entry.get("logprob")
    return max(-9999.0, min(0.0, float(value))) if isinstance(value, (int, float)) else -9999.0


def _sendable(text: str) -> str:
    """Text as UTF-8 can carry it: half characters (lone surrogates) become the replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
