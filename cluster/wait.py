"""Await Ray's references from asyncio and trio, and raise the errors behind them."""

from concurrent.futures import Future
from contextlib import nullcontext
from pickle import PicklingError
from typing import TYPE_CHECKING, Any

from ray.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    RayActorError,
    RayError,
    RaySystemError,
    RayTaskError,
)

from cachegraph import __version__
from cachegraph.engine.batching.loop_bridge import Mailbox
from cachegraph.errors import CachegraphError, ConfigError, RunError, reason_of

from .head import current_head

if TYPE_CHECKING:
    import ray

__all__ = ["FULL", "ReplicaGone", "call", "result_of"]

FULL = (
    "the object store of a node is full, and so is the disk that it spills to; free the disk, or give the store more "
    "memory (`ray start --object-store-memory BYTES`)"
)


class ReplicaGone(Exception):
    """A replica's process, or what it returned, is gone. Another replica can do the work."""


async def call(method: Any, *arguments: Any) -> Any:
    """Call an actor's method and wait. Raises what `result_of` raises, and RunError if the arguments can't be sent."""
    try:
        ref = method.remote(*arguments)
    except (TypeError, PicklingError) as error:
        raise RunError(f"what a turn is given can't be sent to the cluster: {reason_of(error)}") from error
    except Exception as error:  # a boundary, as in `result_of`
        raise await _meaning(error) from error
    return await result_of(ref)


async def result_of(ref: "ray.ObjectRef[Any]") -> Any:
    """Wait for a reference from any event loop. Raises ReplicaGone, ClusterLost, or the error that the replica raised.

    ReplicaGone means that another replica can be started, so the head answers. RunError: Ray itself failed.
    ConfigError: a node can't start replicas.
    """
    mailbox: Mailbox[Future[Any]] = Mailbox()
    head = current_head()
    try:
        with nullcontext() if head is None else head.telling(mailbox.post):
            ref.future().add_done_callback(mailbox.post)
            done = await anext(mailbox)
        return done.result()
    except Exception as error:  # a boundary: Ray's client raises errors of gRPC, whose stream is then broken
        if isinstance(error, CachegraphError) and not isinstance(error, RayError):  # Ray's are both
            raise
        raise await _meaning(error) from error


async def _meaning(error: Exception) -> Exception:
    """The error to raise for one of Ray's. Raises ClusterLost if that is what it means."""
    head = current_head()
    if isinstance(error, RayError):
        meaning = _meaning_of_rays(error)
        if head is not None and isinstance(meaning, ReplicaGone):
            await head.answered()
        return meaning
    if head is not None:
        head.break_off(error)
    return RunError(f"Ray failed: {reason_of(error)}")


def _meaning_of_rays(error: RayError) -> Exception:
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, CachegraphError):
            return cause
        if isinstance(cause, RayActorError | ObjectLostError):
            return ReplicaGone(reason_of(cause))
        return RunError(f"a replica failed: {reason_of(cause)}")
    if isinstance(error, RayActorError) and error.actor_init_failed:
        why = str(error).strip().splitlines()[-1].strip()[:300]
        return ConfigError(
            f"a node of the cluster can't start a replica: {why}; install cachegraph {__version__} with its extra "
            "`ray` on every node, and the versions of Python, Ray, torch and transformers that are here"
        )
    if isinstance(error, RayActorError | ObjectLostError | RaySystemError | GetTimeoutError):
        return ReplicaGone(reason_of(error))
    if isinstance(error, ObjectStoreFullError | OutOfDiskError):
        return RunError(FULL)
    return RunError(f"Ray failed: {reason_of(error)}")
