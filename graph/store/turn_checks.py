"""Which values the recorded turns of a store may have. Its readers rely on them, whichever program wrote the file."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

from cachegraph.agents.base import FinishReason, Timing, Tokens
from cachegraph.channels.payload import Used
from cachegraph.channels.spec import CHANNELS

from .damage import Check, all_of, by_name, either, is_count, is_number, is_text, one_of, shaped

__all__ = ["RECORDED"]


def _optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _is_pair(value: Any) -> bool:
    return all_of(_optional(is_number))(value) and len(value) == 2


def _is_message(value: Any) -> bool:
    return all_of(is_text)(value) and len(value) == 2


def _are_residuals(value: Any) -> bool:
    return by_name(_is_pair)(value) and all(name.isdecimal() and len(name) < 6 for name in value)


_TIMING = shaped({field.name: is_number for field in fields(Timing)} | {"first_token": _optional(is_number)})
_TOKENS = shaped({field.name: is_count for field in fields(Tokens)})
_CALL = shaped(
    {
        "tool": is_text,
        "arguments": either(dict),
        "result": is_text,
        "error": either(bool),
        "seconds": is_number,
        "round": is_count,
    }
)
_MEMORY = shaped({"turns": is_count, "reused": is_count, "refused": either(str, None)})
_AGENT = shaped(
    {
        "status": is_text,
        "model": is_text,
        "started": _optional(is_number),
        "turn": is_text,
        "timing": _optional(_TIMING),
        "tokens": _optional(_TOKENS),
        "finish_reason": one_of(*get_args(FinishReason), None),
        "tool_calls": _optional(all_of(_CALL)),
        "memory": _optional(_MEMORY),
    },
    others=True,
)
_EDGE = shaped(
    {
        "asked": one_of(*CHANNELS),
        "channel_used": one_of(*get_args(Used)),
        "fallback_reason": either(str, None),
        "bytes": is_count,
        "positions_fused": is_count,
        "positions_grafted": is_count,
        "seconds": by_name(is_number),
        "residuals": _are_residuals,
        "fuser": either(str, None),
        "fuser_reason": either(str, None),
    }
)
RECORDED: Mapping[str, Check] = {
    "text": either(str, None),
    "data": lambda value: True,
    "ids": all_of(is_count),
    "agent": _AGENT,
    "edges": by_name(_EDGE),
    "remembered": _optional(all_of(_is_message)),
}
