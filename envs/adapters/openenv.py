"""OpenEnv: `polyturn/OpenEnv-v0` plays an environment behind its server.

A server's answers are text from outside: sizes and waits are bounded, values are read as JSON, and what does not fit
the protocol makes the episode invalid.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from polyturn.envs.adapters.quiet import logging_kept
from polyturn.envs.adapters.replayed import Replayed, global_numbers_kept
from polyturn.envs.plugins import attribute
from polyturn.sandbox.server import safe_text

REMEDY = "OpenEnv needs the package openenv: pip install openenv==0.10.0"


class OpenEnv(Replayed):
    """An environment behind an OpenEnv server, one WebSocket session an instance.

    The agent's turn is sent as `{field: turn}`, or as what `action` makes of it; what it reads is the observation's
    only text, or its fields as lines. Control characters of the server's are made visible. The server decides whether
    a seed means anything: one that ignores it breaks the rules "reproducible" and "restore" of `check_text_env`.

    Args:
        url: Where the server is, such as "http://127.0.0.1:8000".
        field: The field of its action that holds the agent's text.
        action: From the agent's text to the server's action, a function or "module:attribute"; where it
            gives None, the turn is lost and the agent reads that its action was not understood.
        describe: From the server's observation to text, a function or "module:attribute".
        reset_options: What is sent with each reset besides the seed.
        reward_bounds: Smallest and largest return of an episode; servers do not declare them.
        max_turns: Turns after which an episode is truncated.
        timeout: Seconds that an answer may take.
        output_limit: Characters of an observation that are kept; the middle is cut out.
        key: Name of the variable of the environment that holds what is sent as `Authorization: Bearer ...`, so that no
            record holds it.

    Raises:
        ImportError: OpenEnv is not installed.
        ValueError: An option does not fit.
    """

    other_side = "the OpenEnv server"
    draws_global_numbers = False

    def __init__(
        self,
        url: str,
        *,
        field: str = "message",
        action: str | Callable[[str], Mapping[str, Any] | None] | None = None,
        describe: str | Callable[[Mapping[str, Any]], str] | None = None,
        reset_options: Mapping[str, Any] | None = None,
        reward_bounds: tuple[float, float] = (0.0, 1.0),
        max_turns: int = 100,
        timeout: float = 60.0,
        output_limit: int = 20_000,
        key: str | None = None,
    ) -> None:
        super().__init__(max_turns, reward_bounds)
        if urlsplit(url).scheme not in ("http", "https", "ws", "wss"):
            raise ValueError(f"OpenEnv: expected the URL of a server, got {url!r:.80}")
        if not timeout > 0 or output_limit < 64:
            raise ValueError(f"OpenEnv: expected timeout > 0 and output_limit >= 64, got {timeout} and {output_limit}")
        _package()
        self.url, self._timeout, self._limit = url, timeout, output_limit
        self._action = attribute(action, "an action of OpenEnv") if isinstance(action, str) else action
        self._describe = attribute(describe, "a description") if isinstance(describe, str) else describe
        self._field, self._reset_options = field, dict(reset_options or {})
        if key is not None and not os.environ.get(key):
            raise ValueError(f"OpenEnv(key): expected the name of a variable that holds the key, got {key!r:.20}")
        self._key = None if key is None else os.environ[key]
        self._client: Any = None

    def _begin(self, seed: int) -> tuple[str, dict[str, Any]]:
        if self._client is None:
            self._client = self._connected()
        result = self._asked(lambda: self._client.reset(seed=seed, **self._reset_options))
        if result.done:
            raise RuntimeError("the episode was over when it began")
        return self._shown(result.observation), {}

    def _turn(self, action: str) -> tuple[str, float, bool, dict[str, Any]]:
        sent = {self._field: action} if self._action is None else self._action(action)
        if sent is None:
            return "That is no action here.", 0.0, False, {"valid": False}
        result = self._asked(lambda: self._client.step(_encodable(sent)))
        reward = 0.0 if result.reward is None else float(result.reward)
        if not math.isfinite(reward):
            raise RuntimeError(f"expected a finite reward from the server, got {reward}")
        return self._shown(result.observation), reward, bool(result.done), {"valid": True}

    def _connected(self) -> Any:
        from openenv.core.generic_client import GenericEnvClient

        # A message is bounded before it is read as JSON: text, escaped, of the observation and as much again.
        megabytes = max(1.0, 12 * self._limit / 2**20)
        client = GenericEnvClient(
            base_url=self.url,
            connect_timeout_s=self._timeout,
            message_timeout_s=self._timeout,
            max_message_size_mb=megabytes,
            mode="simulation",
            headers=None if self._key is None else {"Authorization": f"Bearer {self._key}"},
        ).sync()
        client.connect()
        return client

    def _asked(self, call: Callable[[], Any]) -> Any:
        """A call of the server; after a failure the next episode has a session of its own."""
        try:
            return call()
        except BaseException:
            self._disconnect()
            raise

    def _shown(self, observation: Any) -> str:
        if not isinstance(observation, Mapping):
            raise RuntimeError(f"expected an observation of named fields, got {type(observation).__name__}")
        fields = {key: value for key, value in observation.items() if key != "metadata"}
        text = self._describe(fields) if self._describe else _as_text(fields)
        text = safe_text(text)
        if len(text) <= self._limit:
            return text
        half = (self._limit - 32) // 2
        return f"{text[:half]}\n... {len(text) - 2 * half} characters cut ...\n{text[-half:]}"

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):  # the server may have gone first
                client.close()

    def close(self) -> None:
        """Ends the session."""
        super().close()
        self._disconnect()


def _package() -> None:
    try:
        with global_numbers_kept(), logging_kept():
            import openenv.core.generic_client  # noqa: F401
    except ImportError as error:
        raise ImportError(REMEDY) from error


def _as_text(fields: Mapping[str, Any]) -> str:
    """The only text of an observation, or its fields as lines of JSON."""
    filled = {key: value for key, value in fields.items() if value not in (None, "", [], {})}
    if len(filled) == 1 and isinstance(text := next(iter(filled.values())), str):
        return text
    return "\n".join(
        f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in filled.items()
    )


def _encodable(value: Any) -> Any:
    """The same with lone surrogates replaced, which no server can decode."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {key: _encodable(part) for key, part in value.items()}
    return [_encodable(part) for part in value] if isinstance(value, list) else value
