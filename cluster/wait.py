"""Await Ray's references from asyncio and trio, and raise the errors behind them."""

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError, RaySystemError, RayTaskError

from cachegraph.engine.batching.loop_bridge import Mailbox
from cachegraph.errors import CachegraphError, RunError, reason_of

if TYPE_CHECKING:
    import ray

__all__ = ["ReplicaGone", "result_of"]


class ReplicaGone(Exception):
    """A replica's process, or what it returned, is gone. Another replica can do the work."""


async def result_of(ref: "ray.ObjectRef[Any]") -> Any:
    """Wait for a reference from any event loop. Raises ReplicaGone, or the error that the replica raised."""
    mailbox: Mailbox[Future[Any]] = Mailbox()
    ref.future().add_done_callback(mailbox.post)
    async for done in mailbox:
        try:
            return done.result()
        except RayError as error:
            raise _meaning(error) from error
    raise AssertionError


def _meaning(error: RayError) -> Exception:
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, CachegraphError):
            return cause
        if isinstance(cause, RayActorError | ObjectLostError):
            return ReplicaGone(reason_of(cause))
        return RunError(f"a replica failed: {reason_of(cause)}")
    if isinstance(error, RayActorError | ObjectLostError | RaySystemError | GetTimeoutError):
        return ReplicaGone(reason_of(error))
    return RunError(f"Ray failed: {reason_of(error)}")
