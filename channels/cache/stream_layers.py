"""Correct a receiver's cache layer by layer, while its sharers on other devices compute the next layers.

A sharer sends each layer as soon as it is computed; meanwhile the receiver's engine corrects the layers that depend on
it. Between GPUs, the copy waits for that layer alone, on its own stream.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from cachegraph.engine.batching.loop_bridge import Mailbox
from cachegraph.engine.engine import Engine
from cachegraph.engine.kv.cache import KV, LayerKV

from ..fusers.networks.base import Fuser
from ..peer import SharerEngine
from .apply_fuser import FuserInput, FusionMode, fuse_layers

__all__ = ["LayerStream", "correct_as_they_come", "on_other_devices"]


def on_other_devices(sharer: SharerEngine, receiver: Engine) -> bool:
    """Whether the two engines share no device, so that they can compute concurrently."""
    return not set(sharer.model.devices) & set(receiver.model.devices)


class _Sent(NamedTuple):
    sharer: int
    layer: int
    kv: LayerKV
    computed: "torch.cuda.Event | None"  # on the sharer's stream; None: already complete


class LayerStream:
    """Keys and values that have reached the receiver, by sharer and layer. Create it in the task that awaits it.

    Keys and values are (1, kv_heads, positions, head_dim). If `streamed`, layers arrive one by one from `sender`.
    Otherwise `fill` stores all layers of a sharer at once.
    """

    def __init__(self, device: torch.device, *, streamed: bool) -> None:
        self.streamed = streamed
        self.layers: dict[int, dict[int, LayerKV]] = {}
        self._device = device
        self._mailbox: Mailbox[_Sent] = Mailbox()

    def sender(self, sharer: int, change: Callable[[int, LayerKV], LayerKV]) -> Callable[[int, LayerKV], None]:
        """Create a callback for a sharer's engine, which calls it with each layer in its own thread.

        `change` converts the layer to what the fuser reads.
        """

        def send(layer: int, kv: LayerKV) -> None:
            kv = change(layer, kv)
            computed = torch.cuda.current_stream(kv.keys.device).record_event() if kv.keys.is_cuda else None
            self._mailbox.post(_Sent(sharer, layer, kv, computed))

        return send

    def fill(self, sharer: int, layers: Sequence[LayerKV]) -> None:
        """Store all layers of one sharer at once."""
        self.layers[sharer] = dict(enumerate(layers))

    async def wait(self) -> list[_Sent]:
        """Wait for at least one new layer."""
        return await self._mailbox.take_all()

    def take(self, sent: Sequence[_Sent]) -> None:
        """Copy layers to the receiver's device. Call it in the thread of the receiver's engine."""
        for sharer, layer, kv, computed in sent:
            received = kv if computed is None else _copied(kv, computed, self._device)
            self.layers.setdefault(sharer, {})[layer] = received

    def whole(self, sharer: int) -> tuple[LayerKV, ...] | None:
        """All layers of one sharer, in order; None for a sharer that sends none."""
        layers = self.layers.get(sharer)
        return None if layers is None else tuple(layers[index] for index in range(len(layers)))


async def correct_as_they_come(
    receiver: Engine,
    kv: KV,
    stream: LayerStream,
    fusers: Mapping[int, Fuser],
    sources: Mapping[int, Callable[[Sequence[LayerKV]], FuserInput]],
    mode: FusionMode,
) -> KV:
    """Correct a stretch of the receiver as layers arrive. `sources` maps a sharer to a function from its layers to its
    input.

    Each KV layer is (1, kv_heads, positions, head_dim).
    """
    needed = _needed(fusers)
    layers, all_layers = list(kv.layers), sum(fuser.sharer_depth for fuser in fusers.values())

    def correct(sent: list[_Sent]) -> None:
        stream.take(sent)
        ready = [index for index, of in needed.items() if all(at in stream.layers.get(j, ()) for j, at in of)]
        if ready:
            # These layers need nothing from a sharer that has sent no layer yet.
            come = {j: source for j, source in sources.items() if j in stream.layers}
            given = [source(_filled(stream.layers[j], fusers[j])) for j, source in come.items()]
            fused = fuse_layers(kv.layers, given, mode, only=ready)
            for index in ready:
                layers[index] = LayerKV(*fused.layers[index])
                del needed[index]

    while needed or sum(map(len, stream.layers.values())) < all_layers:
        sent = await stream.wait()
        await receiver.call(lambda sent=sent: correct(sent))  # type: ignore[misc]
    return replace(kv, layers=tuple(layers))


def _needed(fusers: Mapping[int, Fuser]) -> dict[int, list[tuple[int, int]]]:
    """By receiver layer, the (sharer, layer) pairs that its correction reads."""
    needed: dict[int, list[tuple[int, int]]] = {}
    for sharer, fuser in fusers.items():
        for layer in fuser.open_layers:
            needed.setdefault(layer, []).extend((sharer, other) for other in fuser.reads(layer))
    return needed


def _filled(layers: dict[int, LayerKV], fuser: Fuser) -> list[LayerKV]:
    """List layers by index; missing ones, which the correction does not read, are filled with another layer."""
    any_layer = next(iter(layers.values()))
    return [layers.get(index, any_layer) for index in range(fuser.sharer_depth)]


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _copied(kv: LayerKV, computed: torch.cuda.Event, device: torch.device) -> LayerKV:
    """Copy from a GPU to the receiver's device as soon as this layer is computed, without waiting for later ones."""
    source = kv.keys.device
    if source not in _streams:
        _streams[source] = torch.cuda.Stream(source)  # type: ignore[no-untyped-call]
    stream = _streams[source]
    with torch.cuda.stream(stream):
        stream.wait_event(computed)
        copied = LayerKV(*(tensor.to(device, non_blocking=True) for tensor in kv))
    for tensor in kv:
        tensor.record_stream(stream)  # keeps its memory from being reused before the copy is done
    if device.type == "cuda":
        torch.cuda.current_stream(device).wait_stream(stream)
    else:
        stream.synchronize()
    return copied
