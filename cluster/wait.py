"""Await Ray's references from asyncio and trio, and raise the errors behind them."""

from concurrent.futures import Future
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError, RaySystemError, RayTaskError

from cachegraph.engine.batching.loop_bridge import Mailbox
from cachegraph.errors import CachegraphError, RunError, reason_of

from .head import current_head

if TYPE_CHECKING:
    import ray

__all__ = ["ReplicaGone", "result_of"]


class ReplicaGone(Exception):
    """A replica's process, or what it returned, is gone. Another replica can do the work."""


async def result_of(ref: "ray.ObjectRef[Any]") -> Any:
    """Wait for a reference from any event loop. Raises ReplicaGone, ClusterLost, or the error that the replica raised.

    ReplicaGone means that another replica can be started, so the head answers. RunError: Ray itself failed.
    """
    mailbox: Mailbox[Future[Any]] = Mailbox()
    head = current_head()
    with nullcontext() if head is None else head.telling(mailbox.post):
        ref.future().add_done_callback(mailbox.post)
        done = await anext(mailbox)
    try:
        return done.result()
    except RayError as error:
        meaning = _meaning(error)
        if head is not None and isinstance(meaning, ReplicaGone):
            await head.answered()
        raise meaning from error
    except CachegraphError:
        raise
    except Exception as error:  # a boundary: Ray's client raises errors of gRPC, whose stream is then broken
        if head is None:
            raise RunError(f"Ray failed: {reason_of(error)}") from error
        head.lose(reason_of(error))
        head.check()
        raise


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
