"""The channels that an edge can use, by name. Apart from the edges' schema, so that results load without it."""

from typing import Literal

__all__ = ["CHANNELS", "Channel"]

Channel = Literal["text", "cache", "both", "auto"]
CHANNELS: tuple[Channel, ...] = ("text", "cache", "both", "auto")
