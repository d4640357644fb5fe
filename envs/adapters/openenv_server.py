"""One of our environments as an OpenEnv server: each WebSocket session plays an environment of its own."""

from __future__ import annotations

import asyncio
import inspect
import ipaddress
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from polyturn.envs.adapters.openenv import REMEDY
from polyturn.envs.adapters.quiet import logging_kept
from polyturn.envs.adapters.replayed import global_numbers_kept
from polyturn.envs.registration import check_options, make

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_START_S = 30.0


class EnvServer:
    """Serves an environment to OpenEnv's clients; a context manager.

    An action is `{"message": text}` and so is an observation; `metadata` of an observation holds our info and
    `truncated`. A seed given to `reset` means what it means here. Requests of web pages (with an `Origin`) are refused,
    as any page can reach a server on its own machine.

    Example:
        with EnvServer("polyturn/Guess-v0", high=10) as server:
            with GenericEnvClient(base_url=server.url).sync() as client:
                client.reset(seed=0)
                client.step({"message": "5"})

    Args:
        env_id: The id of an environment.
        host: Interface to listen on.
        port: Port to listen on; 0 for any free one.
        sessions: Sessions at once; more are refused.
        idle_s: Seconds after which a session without a call is ended.
        max_message: Bytes of a message; longer ones are refused.
        key: What clients must send as `Authorization: Bearer KEY`; needed for any interface but this machine's own.
        **options: Keyword arguments of the environment.

    Raises:
        ImportError: OpenEnv is not installed.
        UnknownEnv, EnvOptionError: As `make`.
        ValueError: An argument does not fit.
    """

    def __init__(
        self,
        env_id: str,
        /,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        sessions: int = 64,
        idle_s: float = 3600.0,
        max_message: int = 4 << 20,
        key: str | None = None,
        **options: Any,
    ) -> None:
        if sessions < 1 or not idle_s > 0 or max_message < 1024:
            raise ValueError(
                "EnvServer: expected sessions >= 1, idle_s > 0 and max_message >= 1024, got "
                f"{sessions}, {idle_s} and {max_message}"
            )
        if key is None and not _own(host):
            raise ValueError(f"EnvServer: expected a key for {host}, which other machines can reach, got none")
        check_options(env_id, options)
        self._host, self._port = host, port
        self._app = _Guard(_app(env_id, options, sessions, idle_s, max_message), max_message, key)
        self._max_message = max_message
        self._server: Any = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it listens: the `base_url` of OpenEnv's clients."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    def start(self) -> None:
        """Begins to listen, in another thread.

        Raises:
            OSError: The port cannot be had.
        """
        import uvicorn

        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listening = socket.create_server((self._host, self._port), family=family)
        self._port = listening.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            log_level="error",
            access_log=False,
            ws_max_size=self._max_message,
            timeout_graceful_shutdown=5,
            server_header=False,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([listening],), name="polyturn-serve-env", daemon=True
        )
        self._thread.start()
        # uvicorn says in an attribute alone that it has started.
        ticks = int(_START_S / 0.02)
        while not self._server.started and self._thread.is_alive() and ticks:
            self._thread.join(0.02)
            ticks -= 1
        if not self._server.started:
            self.stop()
            raise OSError(f"EnvServer: no server came up on {self._host}:{self._port}")

    def stop(self) -> None:
        """Ends every session."""
        if self._thread is not None:
            self._server.should_exit = True
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Waits until the server ends."""
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> EnvServer:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


class _Guard:
    """Lets through what has the key, no `Origin` and a body of a bounded size."""

    def __init__(self, app: Any, max_body: int, key: str | None) -> None:
        self._app, self._max_body, self._key = app, max_body, key

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        known = self._key is None or secrets.compare_digest(
            headers.get(b"authorization", b""), f"Bearer {self._key}".encode()
        )
        if not known or b"origin" in headers:
            await _refuse(scope, receive, send, 403 if known else 401)
            return
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message["type"] == "http.request" and message.get("more_body", False)
            if len(body) > self._max_body:
                await _refuse(scope, receive, send, 413)
                return
        given = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def whole() -> _Message:
            return next(given, None) or await receive()

        await self._app(scope, whole, send)


async def _refuse(scope: _Message, receive: _Receive, send: _Send, status: int) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": "refused"})
        return
    await send({"type": "http.response.start", "status": status, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": b""})


def _own(host: str) -> bool:
    """Whether only this machine reaches an interface."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _app(env_id: str, options: dict[str, Any], sessions: int, idle_s: float, longest: int) -> Any:
    """OpenEnv's application around the environment, without its web page."""
    try:
        with global_numbers_kept(), logging_kept():
            from openenv.core.env_server.http_server import create_fastapi_app
            from openenv.core.env_server.interfaces import Environment
            from openenv.core.env_server.types import Action, ConcurrencyConfig, Observation, State
            from pydantic import Field
    except ImportError as error:
        raise ImportError(REMEDY) from error

    class Say(Action):  # type: ignore[misc]
        """What the agent says."""

        message: str = Field(max_length=longest)

    class Seen(Observation):  # type: ignore[misc]
        """What the agent reads."""

        message: str = ""

    class Played(Environment):  # type: ignore[misc]
        """A session's environment; all of its calls come from one thread."""

        SUPPORTS_CONCURRENT_SESSIONS = True

        def __init__(self) -> None:
            super().__init__()
            self._env = make(env_id, **options)
            self._loop: asyncio.AbstractEventLoop | None = None
            self._state = State()

        def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Seen:
            observation, info = self._now(self._env.reset(seed=seed))
            self._state = State(episode_id=episode_id, step_count=0)
            return Seen(message=_encodable(observation), metadata=info)

        def step(self, action: Say, timeout_s: float | None = None, **_: Any) -> Seen:
            observation, reward, terminated, truncated, info = self._now(self._env.step(action.message))
            self._state.step_count += 1
            return Seen(
                message=_encodable(observation),
                reward=float(reward),
                done=terminated or truncated,
                metadata={**info, "truncated": truncated},
            )

        @property
        def state(self) -> State:
            return self._state

        def _now(self, result: Any) -> Any:
            if not inspect.isawaitable(result):
                return result
            self._loop = self._loop or asyncio.new_event_loop()
            return self._loop.run_until_complete(_awaited(result))

        def close(self) -> None:
            self._env.close()
            if self._loop is not None:
                self._loop.close()

    limits = ConcurrencyConfig(max_concurrent_envs=sessions, session_timeout=idle_s)
    return create_fastapi_app(Played, Say, Seen, concurrency_config=limits, env_name=env_id, mode="simulation")


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
