"""Join the payloads of several turns of one agent into one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .payload import JOINT, Payload

if TYPE_CHECKING:
    from .cache.sent_cache import SentCache

__all__ = ["join_payloads"]


def join_payloads(sender: str, turn: str, payloads: Sequence[Payload]) -> Payload:
    """Join texts with blank lines, concatenate caches, and keep the newest data."""

    def join(caches: "Sequence[SentCache | None]") -> "SentCache | None":
        from .cache.sent_cache import join_caches  # needs torch, which runs without caches never import

        found = [cache for cache in caches if cache is not None]
        return join_caches(turn, found) if found else None

    async def write() -> str:
        return JOINT.join([await payload.read() for payload in payloads])

    async def rebuild() -> "SentCache | None":
        for payload in payloads:
            await payload.restore()
        return join([payload.cache for payload in payloads])

    async def recover() -> "SentCache | None":
        caches = [payload.cache if payload.recover is None else await payload.recover() for payload in payloads]
        return join(caches)

    joined = Payload(sender, turn=turn, data=payloads[-1].data if payloads else None)
    if any(payload.text is None for payload in payloads):
        joined.write = write
    else:
        joined.text = JOINT.join(payload.text or "" for payload in payloads)
    if any(payload.rebuild is not None for payload in payloads):
        joined.rebuild = rebuild
    elif any(payload.cache is not None for payload in payloads):
        joined.cache = join([payload.cache for payload in payloads])
    if any(payload.recover is not None for payload in payloads):
        joined.recover = recover
    return joined
