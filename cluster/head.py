"""Whether the cluster's head still answers. Ray itself waits for a minute, and then ends the driver's process."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

import anyio
import anyio.to_thread
import ray

from cachegraph.errors import ConfigError

from .address import silence_of

__all__ = ["ClusterLost", "Head", "current_head", "watch_head"]

POLL_SECONDS = 1.0
ANSWER_SECONDS = 5.0
RAYS_SETTING = "RAY_gcs_rpc_server_reconnect_timeout_s"  # after which, without a head, Ray ends a driver's process
RAYS_SECONDS = 60.0  # by default
LEAVE_SECONDS = 5.0  # from the loss until this process leaves the cluster, unless the connection is closed before

Post = Callable[[Future[Any]], None]


class ClusterLost(ConfigError):
    """The connection to the cluster is lost for good: nothing can be started there any more."""


class Head:
    """The head of the cluster that this process has joined, watched from a thread.

    It is lost if it has been silent for half as long as Ray waits, which `RAYS_SETTING` sets.
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
    def is_lost(self) -> bool:
        """Whether the connection is lost for good."""
        return self._why is not None

    def check(self) -> None:
        """Raises ClusterLost if it is."""
        if self._why is not None:
            raise ClusterLost(
                f"the connection to the cluster is lost: {self._why}; when the cluster is back, connect again, and "
                "continue a stored run with `cachegraph runs resume ID --cluster ADDRESS`"
            )

    async def answered(self) -> None:
        """Wait until the head answers. Raises ClusterLost if it does not for too long."""
        while not await anyio.to_thread.run_sync(self._ask, abandon_on_cancel=True):
            self.check()
            await anyio.sleep(POLL_SECONDS)
        self.check()

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
        if silence is None:
            self._answered = monotonic()
        elif monotonic() - self._answered > self._patience:
            self.lose(f"{silence.replace('answers', 'has answered')} for {self._patience:g} s")
        return silence is None

    def _watch(self) -> None:
        while not self._closed.wait(POLL_SECONDS) and ray.is_initialized() and not self.is_lost:
            self._ask()
        if self.is_lost and not self._closed.wait(LEAVE_SECONDS) and self._own:
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


def _patience() -> float:
    given = os.environ.get(RAYS_SETTING, "")
    return (float(given) if given.isdecimal() and int(given) else RAYS_SECONDS) / 2
