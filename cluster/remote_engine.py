"""A sharer's engine in another replica, as far as an edge asks for it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

import anyio.to_thread
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError
from torch import Tensor

from cachegraph.engine.engine import Engine
from cachegraph.engine.kv.cache import KV, concat
from cachegraph.engine.model.attention import OnLayer
from cachegraph.engine.model.load import LoadedModel
from cachegraph.engine.request import Prefilled
from cachegraph.errors import CachegraphError

from .messages import Asker, PrefillAnswer
from .stored_cache import CacheStore

if TYPE_CHECKING:
    from ray.actor import ActorHandle

__all__ = ["RemoteEngine", "SharerGone"]

T = TypeVar("T")


class SharerGone(Exception):
    """The replica of a sharer's model has died."""

    def __init__(self, model: str):
        self.model = model
        super().__init__(model)


class RemoteEngine:
    """A SharerEngine whose prefills another replica computes. `model` has no network.

    The driver has one for each model, to tell models apart; it never prefills. `local` is the receiver's engine, whose
    device takes the caches and whose thread does small work on them.
    """

    def __init__(
        self,
        key: str,
        model: LoadedModel,
        actor: "ActorHandle | None" = None,
        local: Engine | None = None,
        store: CacheStore | None = None,
        asker: Callable[[], Asker] | None = None,
    ):
        self.key = key
        self.model = model
        self.actor = actor
        self._local = local
        self._store = store
        self._asker = asker

    async def prefill(
        self,
        ids: Sequence[int],
        past: Sequence[KV] = (),
        *,
        positions: Tensor | None = None,
        logits: Literal["none", "last", "all"] = "none",
        on_layer: OnLayer | None = None,
        layers: int | None = None,
    ) -> Prefilled:
        """Read `ids` behind `past` in the other replica; `positions`: (ids,) int64. See `Engine.prefill`.

        Raises SharerGone.
        """
        assert self.actor is not None
        assert self._store is not None
        assert self._local is not None
        assert self._asker is not None
        before = tuple(kv for kv in past if len(kv))
        stored = await anyio.to_thread.run_sync(self._store.store, before)
        device = self._local.model.device
        try:
            done: PrefillAnswer = await self.actor.prefill.remote(
                list(ids), stored, positions, logits, layers, self._asker()
            )
            own = await self._store.fetch(done.own, device)
        except RayTaskError as error:
            if isinstance(error.cause, CachegraphError):
                raise error.cause from error
            raise SharerGone(self.key) from error
        except (RayActorError, ObjectLostError) as error:
            raise SharerGone(self.key) from error
        if on_layer is not None:
            for index, layer in enumerate(concat(own).layers if own else ()):
                on_layer(index, layer)
        return Prefilled((*before, *own), len(own), done.logits, done.cost)

    async def call(self, function: Callable[[], T]) -> T:
        """Run a function in the receiver's engine, since the tensors are here."""
        assert self._local is not None
        return await self._local.call(function)
