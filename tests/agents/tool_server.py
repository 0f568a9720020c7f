"""A real tool server of the MCP SDK, run as a program by the tests: `python tool_server.py [PORT]`."""

import os
import sys
import time

from mcp.server import MCPServer

server = MCPServer("calc")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def who() -> dict[str, str | int]:
    """This process, and what it was told."""
    return {"pid": os.getpid(), "mode": os.environ.get("MODE", ""), "secret": os.environ.get("SECRET", "")}


@server.tool()
def wait(seconds: float) -> str:
    """Take a while."""
    time.sleep(seconds)
    return "done"


@server.tool()
def die() -> str:
    """End at once."""
    os._exit(3)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run("stdio")
