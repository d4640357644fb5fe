"""Tools of a server that speaks the Model Context Protocol, through the official SDK; needs the extra "mcp"."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from polyturn.envs.extras import how_to_install
from polyturn.envs.tools.kits import Opened, Replay
from polyturn.envs.tools.limited import Caller, CallTimeout
from polyturn.envs.tools.tool import Tool, ToolError, ToolUnavailable

_MOST_PAGES = 100
_CLOSE_S = 10.0


@dataclass(frozen=True)
class McpServer:
    """The tools of an MCP server; each episode has a connection of its own, and a process of its own over stdio.

    What the server says is text for the agent, errors of its tools included. A server that cannot be reached, or that
    ends, makes the episode invalid.

    Attributes:
        server: A URL (streamable HTTP), or a command and its arguments (stdio).
        env: Environment variables for the command, beyond the few that the SDK passes on.
        only: Names of the tools to offer; None for all.
        limit_s: Seconds one call may take.
        replay: "checked" where the same calls in a new connection give the same results, so that episodes can branch;
            servers promise no such thing, so the default is "refused".

    Raises:
        ImportError: The SDK is not installed (raised when an episode starts).
    """

    server: str | Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    only: tuple[str, ...] | None = None
    limit_s: float = 30.0
    replay: Replay = "refused"

    def open(self, task: Mapping[str, Any], seed: int, caller: Caller, limit_s: float) -> Opened:
        """Connects and asks for the tools."""
        connection = _Connection(self, limit_s)
        tools = [
            Tool(
                each.name,
                each.description or "",
                each.input_schema,
                partial(connection.call, each.name),
                _only_text(each.input_schema),
                bounded=True,
            )
            for each in connection.tools
            if self.only is None or each.name in self.only
        ]
        if missing := set(self.only or ()) - {tool.name for tool in tools}:
            connection.close()
            known = ", ".join(each.name for each in connection.tools)
            raise ValueError(f"McpServer(only): the server has no tool {', '.join(sorted(missing))}; it has: {known}")
        return Opened(tools, close=connection.close)


def _only_text(schema: Mapping[str, Any]) -> str:
    properties: Mapping[str, Any] = schema.get("properties", {})
    names = list(properties)
    return names[0] if len(names) == 1 and properties[names[0]].get("type") == "string" else ""


class _Connection:
    """A client in an event loop of its own thread; entered and left by one task, as the SDK demands."""

    def __init__(self, settings: McpServer, limit_s: float) -> None:
        try:
            import mcp
        except ImportError as error:
            raise ImportError(f"McpServer needs the MCP SDK: {how_to_install('mcp')}") from error
        self._mcp = mcp
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._leave: asyncio.Event | None = None
        self._client: Any = None
        self.tools: list[Any] = []
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True, name="polyturn-mcp")
        self._thread.start()
        try:
            started.result(limit_s)
        except (Exception, ExceptionGroup) as error:
            self.close()
            reason = "no answer" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
            raise ToolUnavailable(f"the MCP server {settings.server!r} cannot be reached: {reason}") from error

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """A tool's text.

        Raises:
            ToolError: The tool says that it failed, or refuses the arguments.
            CallTimeout: No answer in time.
            ToolUnavailable: The connection is gone.
        """
        if not self._thread.is_alive():
            raise ToolUnavailable(f"the MCP server {self._settings.server!r} has ended")
        pending = asyncio.run_coroutine_threadsafe(self._client.call_tool(name, dict(arguments)), self._loop)
        try:
            result = pending.result(self._settings.limit_s)
        except TimeoutError:
            pending.cancel()
            raise CallTimeout(f"stopped after {self._settings.limit_s:g} s") from None
        except self._mcp.MCPError as error:
            from mcp_types import CONNECTION_CLOSED

            if error.code == CONNECTION_CLOSED:
                raise ToolUnavailable(f"the MCP server {self._settings.server!r} has ended") from error
            raise ToolError(f"{name}: {error.message}") from None
        except Exception as error:
            raise ToolUnavailable(
                f"the MCP server {self._settings.server!r}: {type(error).__name__}: {error}"
            ) from error
        text = "\n".join(part.text if part.type == "text" else f"({part.type})" for part in result.content)
        if result.is_error:
            raise ToolError(f"{name}: {text}")
        return text

    def close(self) -> None:
        """Leaves the connection, which ends a server that was started for it; safe to call twice."""
        leave = self._leave
        if leave is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(leave.set)
        self._thread.join(_CLOSE_S)

    def _run(self, started: concurrent.futures.Future[None]) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve(started))
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _serve(self, started: concurrent.futures.Future[None]) -> None:
        self._leave = asyncio.Event()
        async with self._mcp.Client(self._target()) as client:
            self._client = client
            cursor = None
            for _ in range(_MOST_PAGES):
                page = await client.list_tools(cursor=cursor)
                self.tools += page.tools
                cursor = page.next_cursor
                if not cursor:
                    break
            started.set_result(None)
            await self._leave.wait()

    def _target(self) -> Any:
        server = self._settings.server
        if isinstance(server, str):
            return server
        from mcp.client.stdio import StdioServerParameters, stdio_client

        command, *arguments = server
        parameters = StdioServerParameters(command=command, args=arguments, env=dict(self._settings.env))
        return stdio_client(parameters, errlog=sys.__stderr__ or sys.stderr)
