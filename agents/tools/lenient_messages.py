"""Messages of tool servers and their clients that are not quite JSON: half surrogates, control characters, a BOM.

The MCP client drops such a line, so the call that waits for it ends with the timeout. Here the line is repaired.
"""

import json
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from cachegraph.common.json_text import is_deep
from cachegraph.common.surrogates import mend_json

__all__ = ["LenientMessages", "mended"]


class LenientMessages:
    """The messages of an MCP transport, whose own stream has an exception for each line that it can't parse."""

    def __init__(self, stream: Any):
        self._stream = stream

    @property
    def last_context(self) -> Any:
        """The context of the last message's sender, which transports of several senders have."""
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> Any:
        return mended(await self._stream.receive())

    async def aclose(self) -> None:
        await self._stream.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        return mended(await self._stream.__anext__())

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        ended: bool | None = await self._stream.__aexit__(kind, error, trace)
        return ended


def mended(item: Any) -> Any:
    """Return the message of an unparsable line, if it is one but for its characters; any other item unchanged."""
    if not isinstance(item, ValidationError):
        return item
    from mcp.shared.message import SessionMessage
    from mcp.types import jsonrpc_message_adapter

    line = item.errors(include_url=False)[0]["input"]
    try:
        value = json.loads(str(line).removeprefix("\ufeff"), strict=False)
        if is_deep(value):
            return item
        return SessionMessage(jsonrpc_message_adapter.validate_json(json.dumps(mend_json(value)), by_name=False))
    except (ValueError, RecursionError):  # a line of a log
        return item
