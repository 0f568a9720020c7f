"""Map receiver layers to the sharer layers that correct them."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from cachegraph.errors import FuserError

__all__ = ["LAYER_MAPS", "LayerPair", "check_layers", "k_nearest", "last_aligned"]


class LayerPair(NamedTuple):
    """A receiver layer and the sharer layer that corrects it."""

    receiver: int
    sharer: int


def last_aligned(receiver_layers: int, sharer_layers: int) -> tuple[LayerPair, ...]:
    """Pair layers from the last to the first; if the sharer has fewer, its first layer serves the remaining ones."""
    offset = sharer_layers - receiver_layers
    return tuple(LayerPair(layer, max(layer + offset, 0)) for layer in range(receiver_layers))


def k_nearest(receiver_layers: int, sharer_layers: int, k: int = 1) -> tuple[LayerPair, ...]:
    """The `k` sharer layers nearest to each receiver layer in relative depth, nearest first.

    With `k` above 1 this is a ranking to choose from: a fuser uses one sharer layer per receiver layer.
    """

    def distance(layer: int, other: int) -> float:
        return abs(other / max(sharer_layers - 1, 1) - layer / max(receiver_layers - 1, 1))

    return tuple(
        LayerPair(layer, other)
        for layer in range(receiver_layers)
        for other in sorted(range(sharer_layers), key=lambda other: distance(layer, other))[:k]
    )


# By name, functions of the numbers of receiver and sharer layers.
LAYER_MAPS: dict[str, Callable[[int, int], tuple[LayerPair, ...]]] = {
    "last_aligned": last_aligned,
    "k_nearest": k_nearest,
}


def check_layers(pairs: Iterable[LayerPair], receiver_layers: int, sharer_layers: int) -> tuple[LayerPair, ...]:
    """Sort the pairs by receiver layer. Raises FuserError if a layer does not exist or is corrected twice."""
    ordered = tuple(sorted(LayerPair(*pair) for pair in pairs))
    taken: dict[int, int] = {}
    for receiver, sharer in ordered:
        if not (0 <= receiver < receiver_layers and 0 <= sharer < sharer_layers):
            raise FuserError(
                f"the layer map sends sharer layer {sharer} to receiver layer {receiver}, but the models have "
                f"{sharer_layers} and {receiver_layers} layers; give a map within them"
            )
        if receiver in taken:
            raise FuserError(
                f"receiver layer {receiver} is corrected by the sharer layers {taken[receiver]} and {sharer}; "
                "keep one, the published code reads only the first"
            )
        taken[receiver] = sharer
    return ordered
