"""A real MCP server for tests: over stdio, or over HTTP on the port that is given."""

from __future__ import annotations

import os
import sys
import time

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("shop", log_level="CRITICAL")
stock = {"pen": 3}


@server.tool()
def buy(item: str, count: int) -> str:
    """Buys things of the shop."""
    if stock.get(item, 0) < count:
        raise ToolError(f"only {stock.get(item, 0)} left")
    stock[item] -= count
    return f"{stock[item]} left"


@server.tool()
def wait(seconds: float) -> str:
    """Waits."""
    time.sleep(seconds)
    return "done"


@server.tool()
def leave() -> str:
    """Ends the server."""
    os._exit(1)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
