"""Whether the cluster's head still answers. Ray itself waits for a minute, and then ends the driver's process."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any, NoReturn

import anyio
import anyio.to_thread
import ray

from cachegraph.errors import ConfigError, reason_of

from .address import silence_of

__all__ = ["ClusterLost", "Head", "HeadSilent", "current_head", "watch_head"]

POLL_SECONDS = 1.0
ANSWER_SECONDS = 5.0
RAYS_SETTING = "RAY_gcs_rpc_server_reconnect_timeout_s"  # after which, without a head, Ray ends a driver's process
RAYS_SECONDS = 60.0  # by default
LEAVE_SECONDS = 5.0  # from the loss until this process leaves the cluster, unless the connection is closed before

Post = Callable[[Future[Any]], None]


class ClusterLost(ConfigError):
    """The connection to the cluster is lost for good: nothing can be started there any more."""


class HeadSilent(ConfigError):
    """The head does not answer now. It may answer soon, or be lost."""


class Head:
    """The head of the cluster that this process has joined, watched from a thread.

    It is lost if it has been silent for half as long as Ray waits, which `RAYS_SETTING` sets, or if another one has
    taken its place, which Ray answers by ending the process that asks.
    `own`: whether this package made the connection, and so ends it when it is lost.
    """

    def __init__(self, node: str, own: bool = True, patience: float | None = None):
        self.node = node
        self._own = own
        self._patience = _patience() if patience is None else patience
        self._why: str | None = None  # it is lost
        self._answered = monotonic()
        self._posts: set[Post] = set()
        self._lock = threading.Lock()
        self._leaving = threading.Lock()
        self._closed = threading.Event()

    def start(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._watch, name="cachegraph-head", daemon=True).start()

    def close(self) -> None:
        """Stop watching, and end Ray's connection. Idempotent."""
        self._closed.set()
        self._leave()

    @property
    def is_closed(self) -> bool:
        """Whether nothing watches it any more."""
        return self._closed.is_set()

    @property
    def why_lost(self) -> str | None:
        """Why the connection is lost for good; None while it is not."""
        return None if self._why is None else f"the connection to the cluster is lost: {self._why}"

    def check(self) -> None:
        """Raises ClusterLost if it is."""
        if self.why_lost is not None:
            raise ClusterLost(
                f"{self.why_lost}; when the cluster is back, connect again, and continue a stored run with "
                "`cachegraph runs resume ID --cluster ADDRESS`"
            )

    async def answered(self) -> None:
        """Wait until the head answers. Raises ClusterLost if it does not for too long."""
        while not await anyio.to_thread.run_sync(self._ask, abandon_on_cancel=True):
            self.check()
            await anyio.sleep(POLL_SECONDS)
        self.check()

    def require(self) -> None:
        """Raises HeadSilent or ClusterLost unless the head answers now; else Ray would block this thread, or end it."""
        is_there = self._ask()
        self.check()
        if not is_there:
            raise HeadSilent(f"the head of the cluster at {self.node} does not answer; run again when it does")

    @contextmanager
    def telling(self, post: Post) -> Iterator[None]:
        """Within the block, a loss is posted as a failed future. Raises ClusterLost if it has happened."""
        with self._lock:
            self.check()
            self._posts.add(post)
        try:
            yield
        finally:
            with self._lock:
                self._posts.discard(post)

    def break_off(self, error: Exception) -> NoReturn:
        """Raises ClusterLost, because Ray's client has raised an error that is not one of Ray's."""
        is_broken = isinstance(error, ConnectionError) or type(error).__module__.startswith("grpc")
        self.lose(f"Ray's client was disconnected from {self.node}" if is_broken else reason_of(error))
        self.check()
        raise error

    def lose(self, why: str) -> None:
        """The connection is lost for this reason."""
        with self._lock:
            self._why = self._why or why
            posts, self._posts = self._posts, set()
        for post in posts:
            lost: Future[Any] = Future()
            try:
                self.check()
            except ClusterLost as error:
                lost.set_exception(error)
            post(lost)

    def _ask(self) -> bool:
        """Whether the head answers now."""
        silence = silence_of(self.node, ANSWER_SECONDS, ANSWER_SECONDS)
        if silence is None and _is_replaced():
            self.lose(f"another head has started at {self.node}")
        if silence is None:
            self._answered = monotonic()
        elif monotonic() - self._answered > self._patience:
            self.lose(f"{silence.replace('answers', 'has answered')} for {self._patience:g} s")
        return silence is None

    def _watch(self) -> None:
        while not self._closed.wait(POLL_SECONDS) and ray.is_initialized() and self._why is None:
            self._ask()
        if self._why is not None and not self._closed.wait(min(LEAVE_SECONDS, self._patience / 2)) and self._own:
            self._leave()

    def _leave(self) -> None:
        with self._leaving, suppress(Exception):  # the cluster may be gone
            ray.shutdown()


_current: Head | None = None


def current_head() -> Head | None:
    """The head of this process's connection; None in replicas, and where nobody connected through `connect`."""
    return _current


def watch_head(node: str, own: bool) -> Head:
    """Watch the head of the connection that this process has now."""
    global _current
    if _current is None or _current.node != node or _current.is_closed or own:
        _current = Head(node, own)
        _current.start()
    return _current


def _is_replaced() -> bool:
    """Whether what answers at the head's address is the head of another cluster."""
    client = getattr(ray._private.worker.global_worker, "gcs_client", None)
    if client is None:  # of a connection as Ray's client, which ends with its head
        return False
    try:
        client.internal_kv_exists(b"cachegraph", None, timeout=ANSWER_SECONDS)
    except Exception as error:  # a boundary: of a head that ends meanwhile, and of another version of Ray, too
        return "WrongClusterID" in str(error)
    return False


def _patience() -> float:
    given = os.environ.get(RAYS_SETTING, "")
    return (float(given) if given.isdecimal() and int(given) else RAYS_SECONDS) / 2
