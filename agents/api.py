"""A model served through an OpenAI-compatible chat API: as agent, as partner, as judge.

    ServerError (AgentFailed)    the agent gave up: an episode is invalid, a pair unasked; never a zero reward, no guess
    |-- ServerUnreachable        no connection, too slow, overloaded, failing, and still so after all retries
    |-- ServerRefused            it will not answer this request, so it was not repeated: key, model, parameters
    `-- BadAnswer                it answers, and after all retries with what is no chat completion

A conversation that the server calls too long raises `ContextFull`: the episode is truncated, as for any other agent.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from time import monotonic, time
from types import ModuleType
from typing import Any
from zlib import crc32

import numpy as np

from polyturn.agents.agent import Action, AgentFailed, ContextFull, Episode
from polyturn.agents.collecting.blocking import LoopThread
from polyturn.agents.secrets import masked, masked_pieces, masked_value
from polyturn.envs.extras import how_to_install
from polyturn.envs.plain import plain
from polyturn.envs.settings import check_count, check_range
from polyturn.envs.viewing.text import printable

_log = logging.getLogger(__name__)
# Seconds between two messages that a server is in trouble.
_SAY_EVERY_S = 10.0
_AGAIN = frozenset({408, 409, 425, 429})  # and 500 to 599
_LONGEST_ANSWER = 32 * 2**20
_TOO_LONG = re.compile(
    r"context_length_exceeded|maximum context length|context (?:size|window|length)|prompt is too long|too many tokens",
    re.IGNORECASE,
)


class ServerError(AgentFailed):
    """A server did not do what was asked of it."""


class ServerUnreachable(ServerError):
    """No connection, a time-out, too many requests or a failure of the server, and still so after all retries."""


class ServerRefused(ServerError):
    """The server understood the request and will not answer it; asking again would not help."""


class BadAnswer(ServerError):
    """What came back is no chat completion."""


class _Again(Exception):
    """Something that may pass: `error` says what, `after` the seconds that the server asks to wait."""

    def __init__(self, error: ServerError, after: float = 0.0, *, unreachable: bool = False) -> None:
        super().__init__(str(error))
        self.error, self.after, self.unreachable = error, after, unreachable


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
        check_count("ServerAgent(concurrency)", concurrency)
        check_count("ServerAgent(retries)", retries, 0)
        check_range("ServerAgent(timeout)", timeout, 0, above=True)
        check_range("ServerAgent(backoff)", backoff, 0)
        check_range("ServerAgent(longest_wait)", longest_wait, 0)
        if temperature is not None:
            check_range("ServerAgent(temperature)", temperature, 0)
        if top_p is not None:
            check_range("ServerAgent(top_p)", top_p, 0, 1, above=True)
        check_count("ServerAgent(max_tokens)", max_tokens, optional=True)
        if isinstance(stop, str) or not all(isinstance(each, str) for each in stop):
            raise ValueError(f"ServerAgent(stop): expected a sequence of texts, got {stop!r:.80}")
        where = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        if not re.match(r"https?://[^/@\s]+(/|\Z)", where):
            shown = re.sub(r"//[^/]*@", "//***@", _shown(where))
            raise ValueError(f"ServerAgent(base_url): expected http(s)://host[:port]/path, got {shown!r}")
        self._http = _client_library()
        self.model, self.base_url, self.version = model, where.rstrip("/"), version
        self.max_concurrency = concurrency
        self._api_key_env, self._system, self._seeded = api_key_env, system, seeded
        sampling = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "stop": list(stop) or None}
        self._body: dict[str, Any] = {name: value for name, value in sampling.items() if value is not None}
        self._body |= {"logprobs": True} if logprobs else {}
        self._body |= dict(body or {})
        self._timeout, self._retries, self._backoff, self._longest_wait = timeout, retries, backoff, longest_wait
        self._jitter = np.random.default_rng() if jitter is None else jitter
        self._sleep = sleep
        self._lives: dict[str, Any] = {}  # what lives in the one event loop: that loop, a semaphore, a client
        self._loop = LoopThread(_closing(self._lives))
        self._answered = False  # whether the server has ever answered
        self._said = -math.inf  # when trouble was said last

    @property
    def name(self) -> str:
        """Recorded in trajectories: the model, how it samples, and which system message it is given."""
        settings = {key: value for key, value in self._body.items() if key != "logprobs"}
        if self._system is not None:
            settings["system"] = f"{crc32(_sendable(self._system).encode()):08x}"
        return self._clean(f"{self.model}({', '.join(f'{key}={value}' for key, value in sorted(settings.items()))})")

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
            info["tokens"] = masked_pieces([str(entry.get("token", "")) for entry in found], self._key())
            info["logprobs"] = [_logprob(entry) for entry in found]
        tokens = info.pop("tokens", None)
        info = plain(masked_value(info, self._key()), "the server's answer")
        return Action(self._clean(answer["text"]), info=info if tokens is None else info | {"tokens": tokens})

    def close(self) -> None:
        """Closes the connections and ends their thread; the next request opens new ones."""
        self._loop.close()

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

        async def with_patience() -> dict[str, Any]:
            for attempt in range(self._retries + 1):
                try:
                    return await self._once(body)
                except _Again as again:
                    if again.after > self._longest_wait:
                        raise self._error(
                            ServerUnreachable,
                            f"{again.error}; it asks to wait {again.after:g} s, longest_wait is {self._longest_wait:g}",
                        ) from None
                    # A mistyped address should not be found out after minutes.
                    if attempt == (
                        min(1, self._retries) if again.unreachable and not self._answered else self._retries
                    ):
                        raise type(again.error)(f"{again.error} ({attempt + 1} attempts)") from again.__cause__
                    wait = self._backoff * 2.0**attempt * (0.5 + 0.5 * float(self._jitter.random()))
                    wait = min(max(wait, again.after), self._longest_wait)
                    self._say(f"{again.error}; attempt {attempt + 2} of {self._retries + 1} in {wait:.1f} s")
                    await self._sleep(wait)
            raise AssertionError("unreachable: the last attempt returns or raises")

        return await self._loop.awaited(with_patience)

    async def _once(self, body: bytes) -> dict[str, Any]:
        # Made here, in the one event loop that they live in; a forked child and a closed agent have a new one.
        lives = self._lives
        if lives.get("loop") is not asyncio.get_running_loop():
            lives["loop"], lives["places"] = asyncio.get_running_loop(), asyncio.Semaphore(self.max_concurrency)
            lives["client"] = self._http.AsyncClient(
                timeout=self._timeout, limits=self._http.Limits(max_connections=self.max_concurrency)
            )
        headers = {"Content-Type": "application/json"}
        if key := self._key():
            if not re.fullmatch(r"[!-~]+", key):  # the library's own complaint would show it
                raise self._error(ServerRefused, f"expected a key of plain characters in {self._api_key_env}")
            headers["Authorization"] = f"Bearer {key}"
        async with lives["places"]:
            try:
                async with (
                    asyncio.timeout(self._timeout),
                    lives["client"].stream(
                        "POST", f"{self.base_url}/chat/completions", content=body, headers=headers
                    ) as response,
                ):
                    content = bytearray()
                    async for piece in response.aiter_bytes():
                        content += piece
                        if len(content) > _LONGEST_ANSWER:
                            raise self._error(BadAnswer, f"an answer of more than {_LONGEST_ANSWER} bytes")
            except TimeoutError as error:
                raise _Again(self._error(ServerUnreachable, f"no answer within {self._timeout:g} s")) from error
            except self._http.HTTPError as error:
                what = f"{type(error).__name__}: {error}".strip(": ")
                unreachable = isinstance(error, self._http.ConnectError)
                raise _Again(self._error(ServerUnreachable, what), unreachable=unreachable) from error
        self._answered = True
        return self._read(response.status_code, response.headers, bytes(content))

    def _read(self, status: int, headers: Mapping[str, str], content: bytes) -> dict[str, Any]:
        text = content.decode("utf-8", "replace")
        if status != 200:
            text = self._clean(text)  # before it is cut, or a piece of the key would be left at the cut
            said = f"status {status}: {_shown(text)}"
            if status in _AGAIN or 500 <= status < 600:
                raise _Again(self._error(ServerUnreachable, said), _retry_after(headers))
            if status in (400, 413, 422) and _TOO_LONG.search(text):
                raise ContextFull(_shown(text))
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
            what = f"expected a chat completion, got {_shown(self._clean(text))} ({type(error).__name__}: {error})"
            raise _Again(self._error(BadAnswer, what)) from None
        return choice | {"text": words, "usage": answer.get("usage")}

    def _key(self) -> str:
        return os.environ.get(self._api_key_env, "").strip()

    def _clean(self, text: str) -> str:
        return masked(text, self._key())

    def _error(self, kind: type[ServerError], what: str) -> ServerError:
        where = self.base_url.partition("?")[0]  # what follows may hold a key
        return kind(printable(self._clean(f"{self.model} at {where}: {what}")))

    def _say(self, what: str) -> None:
        """Says that a server is in trouble, unless that was said just now."""
        now = monotonic()
        if now - self._said >= _SAY_EVERY_S:
            self._said = now
            _log.warning("%s", what)

    def _remedy(self, status: int) -> str:
        if status in (401, 403):
            return f"; set {self._api_key_env} to a key that is valid there" + (
                "" if self._key() else " (it is not set, so none was sent)"
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


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait: a number of milliseconds or seconds, or a date; 0 if it does not say."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000.0)
        value = headers.get("retry-after", "0")
        if re.fullmatch(r"\s*\d+(\.\d+)?\s*", value):
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _sendable(text: str) -> str:
    """Text as UTF-8 can carry it: half characters (lone surrogates) become the replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _closing(lives: dict[str, Any]) -> Callable[[], Awaitable[None]]:
    """Closes the client among what lives in a loop; refers to no agent, which it would keep alive."""

    async def close() -> None:
        client = lives.pop("client", None)
        lives.clear()
        if client is not None:
            await client.aclose()

    return close


def _shown(text: str) -> str:
    flat = printable(" ".join(text.split()))
    return flat if len(flat) <= 300 else f"{flat[:300]}..."


def _client_library() -> ModuleType:
    try:
        import httpx2
    except ImportError as error:
        raise ImportError(f'ServerAgent needs the extra "api": {how_to_install("api")}') from error
    return httpx2
