"""Asking servers over HTTP: with patience where a failure may pass, with bounds on what they say, and without showing
a key.

    ServerError (AgentFailed)    the agent gave up: an episode is invalid, a pair unasked; never a zero reward, no guess
    |-- ServerUnreachable        no connection, too slow, overloaded, failing, and still so after all retries
    |-- ServerRefused            it will not answer this request, so it was not repeated: key, model, parameters
    `-- BadAnswer                it answers, and after all retries with what is not what was asked for
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from time import monotonic, time
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from polyturn.agents.agent import AgentFailed
from polyturn.agents.loop_thread import LoopThread
from polyturn.agents.secrets import masked
from polyturn.envs.extras import how_to_install
from polyturn.envs.settings import check_count, check_range
from polyturn.envs.viewing.text import printable

_T = TypeVar("_T")
# Seconds between two messages that a server is in trouble.
_SAY_EVERY_S = 10.0
_AGAIN = frozenset({408, 409, 425, 429})  # and 500 to 599
_LONGEST_ANSWER = 32 * 2**20
TOO_LONG = re.compile(
    r"context_length_exceeded|maximum context length|context (?:size|window|length)|prompt is too long|too many tokens",
    re.IGNORECASE,
)
"""What servers say of a conversation that is too long."""


class ServerError(AgentFailed):
    """A server did not do what was asked of it."""


class ServerUnreachable(ServerError):
    """No connection, a time-out, too many requests or a failure of the server, and still so after all retries."""


class ServerRefused(ServerError):
    """The server understood the request and will not answer it; asking again would not help."""


class BadAnswer(ServerError):
    """What came back is not what was asked for."""


class Again(Exception):
    """Something that may pass: `error` says what, `after` the seconds that the server asks to wait."""

    def __init__(self, error: ServerError, after: float = 0.0, *, unreachable: bool = False) -> None:
        super().__init__(str(error))
        self.error, self.after, self.unreachable = error, after, unreachable


def may_pass(status: int) -> bool:
    """Whether a failure with this HTTP status may be gone when asked again."""
    return status in _AGAIN or 500 <= status < 600


def checked_url(owner: str, where: str) -> str:
    """An address without its last slash.

    Raises:
        ValueError: It is none, or names a user.
    """
    if not re.match(r"https?://[^/@\s]+(/|\Z)", where):
        at = re.sub(r"//[^/]*@", "//***@", shown(where))
        raise ValueError(f"{owner}: expected http(s)://host[:port]/path, got {at!r}")
    return where.rstrip("/")


class HttpClient:
    """Connections to servers; usable from many threads and event loops at once.

    The key is read from the environment at every request. In a forked child a client opens connections of its own.

    Args:
        owner: What uses it, for messages.
        model: What messages call what is asked for.
        api_key_env: The environment variable that holds the key; without one in it no key is sent.
        concurrency: Requests under way at once.
        timeout: Seconds that one request may take in all.
        retries: How often a request is repeated.
        backoff: Seconds before the first repetition.
        longest_wait: Seconds; if a server asks to wait for longer, it counts as unreachable at once.
        log: Says what is waited for, at most every 10 seconds.
        jitter: Random numbers for the waits; default fresh ones. They influence nothing but waits.
        sleep: Waits; given for tests.
        socket: A Unix socket that all requests go to, whatever their address; None: the network.

    Raises:
        ImportError: The extra "api" is not installed.
        ValueError: Settings out of range.
    """

    def __init__(
        self,
        owner: str,
        model: str,
        *,
        api_key_env: str,
        concurrency: int,
        timeout: float,
        retries: int,
        backoff: float,
        longest_wait: float,
        log: logging.Logger,
        jitter: np.random.Generator | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        socket: str | None = None,
    ) -> None:
        check_count(f"{owner}(concurrency)", concurrency)
        check_count(f"{owner}(retries)", retries, 0)
        check_range(f"{owner}(timeout)", timeout, 0, above=True)
        check_range(f"{owner}(backoff)", backoff, 0)
        check_range(f"{owner}(longest_wait)", longest_wait, 0)
        self._http = _client_library(owner)
        self.model, self._api_key_env, self.concurrency = model, api_key_env, concurrency
        self._timeout, self._retries, self._backoff, self._longest_wait = timeout, retries, backoff, longest_wait
        self._jitter = np.random.default_rng() if jitter is None else jitter
        self._sleep, self._log, self._socket = sleep, log, socket
        self._lives: dict[str, Any] = {}  # what lives in the one event loop: that loop, a semaphore, a client
        self._loop = LoopThread(_closing(self._lives))
        self._answered = False  # whether a server has ever answered
        self._said = -math.inf  # when trouble was said last

    def close(self) -> None:
        """Closes the connections and ends their thread; the next request opens new ones."""
        self._loop.close()

    async def patiently(self, tries: Sequence[Callable[[], Awaitable[_T]]]) -> _T:
        """The first of some requests that is answered; after a round in which none was, all are tried again.

        A round follows the one before it after `backoff * 2^n` seconds, of which a random half is left off so that many
        clients do not come back at once, and not before a server's Retry-After. If no server has ever answered, refused
        connections are tried only once more.

        Args:
            tries: One for each server, each made of `once`; awaited in this client's own event loop. They raise `Again`
                for what may pass.

        Raises:
            ServerError: No server can or will answer.
        """

        async def with_patience() -> _T:
            for attempt in range(self._retries + 1):
                found: list[Again] = []
                for each in tries:
                    try:
                        return await each()
                    except Again as again:
                        found.append(again)
                last, after = found[-1], min(each.after for each in found)
                if after > self._longest_wait:
                    what = f"{last.error}; it asks to wait {after:g} s, longest_wait is {self._longest_wait:g}"
                    raise ServerUnreachable(what) from None
                # A mistyped address should not be found out after minutes.
                unreachable = all(each.unreachable for each in found) and not self._answered
                if attempt == (min(1, self._retries) if unreachable else self._retries):
                    raise type(last.error)(f"{last.error} ({attempt + 1} attempts)") from last.__cause__
                wait = self._backoff * 2.0**attempt * (0.5 + 0.5 * float(self._jitter.random()))
                wait = min(max(wait, after), self._longest_wait)
                self._say(f"{last.error}; attempt {attempt + 2} of {self._retries + 1} in {wait:.1f} s")
                await self._sleep(wait)
            raise AssertionError("unreachable: the last attempt returns or raises")

        return await self._loop.awaited(with_patience)

    async def once(
        self, base: str, path: str, body: bytes | None, *, timeout: float | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Asks once, from within `patiently`.

        Args:
            base: A server's address.
            path: What follows it.
            body: What is posted; None: nothing is, it is a GET.
            timeout: Seconds in all, where that is not this client's.

        Returns:
            The status, headers and content of the answer.

        Raises:
            Again: No answer, or one that broke off.
            ServerError: A key that cannot be sent, or an answer that is too long.
        """
        # Made here, in the one event loop that they live in; a forked child and a closed agent have a new one.
        lives = self._lives
        if lives.get("loop") is not asyncio.get_running_loop():
            lives["loop"], lives["places"] = asyncio.get_running_loop(), asyncio.Semaphore(self.concurrency)
            limits = self._http.Limits(max_connections=self.concurrency)
            lives["client"] = (
                self._http.AsyncClient(timeout=None, limits=limits)
                if self._socket is None
                else self._http.AsyncClient(
                    timeout=None, transport=self._http.AsyncHTTPTransport(uds=self._socket, limits=limits)
                )
            )
        headers = {"Content-Type": "application/json"}
        if key := self.key():
            if not re.fullmatch(r"[!-~]+", key):  # the library's own complaint would show it
                what = f"expected a key of plain characters in {self._api_key_env}"
                raise self.error(ServerRefused, base, what)
            headers["Authorization"] = f"Bearer {key}"
        limit = self._timeout if timeout is None else timeout
        method = "GET" if body is None else "POST"
        async with lives["places"]:
            try:
                async with (
                    asyncio.timeout(limit),
                    lives["client"].stream(method, f"{base}{path}", content=body, headers=headers) as response,
                ):
                    content = bytearray()
                    async for piece in response.aiter_bytes():
                        content += piece
                        if len(content) > _LONGEST_ANSWER:
                            raise self.error(BadAnswer, base, f"an answer of more than {_LONGEST_ANSWER} bytes")
            except TimeoutError as error:
                raise Again(self.error(ServerUnreachable, base, f"no answer within {limit:g} s")) from error
            except self._http.HTTPError as error:
                what = f"{type(error).__name__}: {error}".strip(": ")
                unreachable = isinstance(error, self._http.ConnectError)
                raise Again(self.error(ServerUnreachable, base, what), unreachable=unreachable) from error
        self._answered = True
        return response.status_code, response.headers, bytes(content)

    def key(self) -> str:
        """The key, or ""."""
        return os.environ.get(self._api_key_env, "").strip()

    def clean(self, text: str) -> str:
        """Text of a server without the key."""
        return masked(text, self.key())

    def error(self, kind: type[ServerError], base: str, what: str) -> ServerError:
        """An error of one server, fit to be shown."""
        where = base.partition("?")[0]  # what follows may hold a key
        return kind(printable(self.clean(f"{self.model} at {where}: {what}")))

    def _say(self, what: str) -> None:
        """Says that a server is in trouble, unless that was said just now."""
        now = monotonic()
        if now - self._said >= _SAY_EVERY_S:
            self._said = now
            self._log.warning("%s", what)


def retry_after(headers: Mapping[str, str]) -> float:
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


def shown(text: str) -> str:
    """Text of a server as messages show it: one line, not too long."""
    flat = printable(" ".join(text.split()))
    return flat if len(flat) <= 300 else f"{flat[:300]}..."


def _closing(lives: dict[str, Any]) -> Callable[[], Awaitable[None]]:
    """Closes the client among what lives in a loop; refers to no agent, which it would keep alive."""

    async def close() -> None:
        client = lives.pop("client", None)
        lives.clear()
        if client is not None:
            await client.aclose()

    return close


def _client_library(owner: str) -> ModuleType:
    try:
        import httpx2
    except ImportError as error:
        raise ImportError(f'{owner} needs the extra "api": {how_to_install("api")}') from error
    return httpx2
