"""Requests to models whose RoPE depends on the length of the row: a row that grows beyond the border is read again.

All of a prompt has the frequencies of the whole row's length, so a cache that was read with others can't be continued.
transformers' `generate` may drop its cache when a reply grows beyond the border; so does the engine, for equal replies.
"""

from cachegraph.errors import ModelError

from ..kv.rope_by_length import ByLength
from .request_state import RequestState

__all__ = ["check_growth", "start_request"]


def start_request(request: RequestState, by_length: ByLength, name: str) -> None:
    """Note a new row's length, and read its past again if that has other frequencies.

    Raises ModelError if the tokens of the past are not known.
    """
    end = request.cache.next_position + len(request.pending)
    request.length = end if request.positions is None else int(request.positions[-1]) + 1
    known = len(request.before) == len(request.cache)
    if any(segment.factors != by_length.factors(request.length) for segment in request.cache.segments):
        if not known or request.positions is not None or request.override is not None:
            raise ModelError(
                f"{name!r} can't continue this cache: it was read with RoPE frequencies for rows up to another length"
            )
        request.pending = [*request.before, *request.pending]
        request.cache = type(request.cache)()
    request.ids = [*request.before, *request.pending[-request.asked :]] if known and request.positions is None else None


def check_growth(request: RequestState, by_length: ByLength, name: str) -> None:
    """Before a token of the reply is read: read the whole row again if `generate` would.

    Raises ModelError if its tokens are not known.
    """
    length = request.cache.next_position + len(request.pending)
    if not by_length.rereads or by_length.factors(request.length) == by_length.factors(length):
        return
    if request.ids is None:
        raise ModelError(
            f"the reply of {name!r} grows beyond {by_length.border} positions, from where on it rotates all keys by "
            "other frequencies; generate fewer tokens, or shorten what it reads"
        )
    request.pending = [*request.ids, *(request.reply.ids if request.reply is not None else ())]
    request.cache, request.block_digests, request.positions = type(request.cache)(), [], None
    request.length = len(request.pending)
