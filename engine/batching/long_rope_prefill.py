"""Rows of models whose RoPE depends on their length: read once more where they are longer than what they go on from.

All of a prompt has the frequencies of the whole row's length. A cache that was read with others can't be gone on from,
and a reply that grows beyond the border is where `generate` may throw its cache away.
"""

from cachegraph.errors import ModelError

from ..kv.rope_by_length import ByLength
from .request_state import Job

__all__ = ["begin", "grown"]


def begin(job: Job, by_length: ByLength, name: str) -> None:
    """Note a new row's length. Raises ModelError where its past has other frequencies and its tokens are not known."""
    end = job.cache.next_position + len(job.pending)
    job.length = end if job.positions is None else int(job.positions[-1]) + 1
    known = len(job.before) == len(job.cache)
    if any(segment.factors != by_length.factors(job.length) for segment in job.cache.segments):
        if not known or job.positions is not None or job.override is not None:
            raise ModelError(
                f"{name!r} can't go on from this cache: it was read with RoPE frequencies for rows up to another length"
            )
        job.pending = [*job.before, *job.pending]
        job.cache = type(job.cache)()
    job.ids = [*job.before, *job.pending[-job.asked :]] if known and job.positions is None else None


def grown(job: Job, by_length: ByLength, name: str) -> None:
    """A token of the reply is about to be read: begin with the row once more if `generate` would."""
    length = job.cache.next_position + len(job.pending)
    if not by_length.rereads or by_length.factors(job.length) == by_length.factors(length):
        return
    if job.ids is None:
        raise ModelError(
            f"the reply of {name!r} grows beyond {by_length.border} positions, from where on it rotates all keys by "
            "other frequencies; generate fewer tokens, or shorten what it reads"
        )
    job.pending = [*job.ids, *job.reply]
    job.cache, job.chain, job.positions = type(job.cache)(), [], None
    job.length = len(job.pending)
