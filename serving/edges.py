"""Channels of single edges in a request."""

from collections.abc import Mapping

from cachegraph.channels.spec import Channel

from .errors import ApiError

__all__ = ["read_edges"]


def read_edges(channels: Mapping[str, Channel]) -> dict[tuple[str, str], Channel]:
    """Convert channels by `sender:receiver` to channels by pair. Raises ApiError."""
    found = {}
    for name, channel in channels.items():
        sender, colon, receiver = name.partition(":")
        if not colon:
            words = f"{name[:200]!r} is not an edge; write 'sender:receiver'"
            raise ApiError(400, words, "invalid_value", "channels")
        found[sender, receiver] = channel
    return found
