"""Place boxes and lines.

Layered drawing (Sugiyama): long edges get a dummy node in every layer they cross, layers are sorted by their
neighbours' average position, and overlaps are moved apart. Takes only sizes and pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

__all__ = ["LayeredLayout", "Size", "arrange"]

Pair = tuple[str, str]
Cell = str | tuple[str, str, int]  # an agent, or an edge's dummy node in one layer

GAP = 26  # between neighbours in a layer
SWEEPS = 8


@dataclass(frozen=True)
class Size:
    """Extent along the direction of the layers, and across it."""

    along: float
    across: float


@dataclass
class LayeredLayout:
    """Centres of boxes, and the inner points of every edge: (along, across)."""

    boxes: dict[str, tuple[float, float]]
    routes: dict[Pair, list[tuple[float, float]]]
    along: float = 0.0
    across: float = 0.0
    edges: list[Pair] = field(default_factory=list)


def arrange(
    generations: Sequence[Sequence[str]], edges: Sequence[Pair], sizes: Mapping[str, Size], gaps: Sequence[float]
) -> LayeredLayout:
    """Place every agent. `gaps` are the distances after each layer, with room for labels."""
    layer = {name: number for number, names in enumerate(generations) for name in names}
    layers: list[list[Cell]] = [list(names) for names in generations]
    chains: dict[Pair, list[Cell]] = {}
    for sender, receiver in edges:
        between: list[Cell] = [(sender, receiver, number) for number in range(layer[sender] + 1, layer[receiver])]
        for number, cell in enumerate(between, layer[sender] + 1):
            layers[number].append(cell)
        chains[sender, receiver] = [sender, *between, receiver]
    neighbours = _neighbours(chains)
    extent = {cell: sizes[cell].across if isinstance(cell, str) else 14.0 for cells in layers for cell in cells}
    place = _settle(layers, neighbours, extent)
    depths = [max(sizes[cell].along for cell in cells if isinstance(cell, str)) for cells in layers]
    starts = [sum(depths[:number]) + sum(gaps[:number]) for number in range(len(layers))]
    middles = [start + depth / 2 for start, depth in zip(starts, depths, strict=True)]
    top = min(place[cell] - extent[cell] / 2 for cell in place)
    boxes = {name: (middles[layer[name]], place[name] - top) for name in layer}
    routes: dict[Pair, list[tuple[float, float]]] = {}
    for pair, chain in chains.items():
        points: list[tuple[float, float]] = []
        for number, cell in enumerate(chain[1:-1], layer[pair[0]] + 1):
            # Straight across the whole layer, so that the adjacent curves can't touch its boxes.
            points += [(starts[number], place[cell] - top), (starts[number] + depths[number], place[cell] - top)]
        routes[pair] = points
    bottom = max(place[cell] + extent[cell] / 2 for cell in place)
    return LayeredLayout(boxes, routes, starts[-1] + depths[-1], bottom - top, list(edges))


def _neighbours(chains: Mapping[Pair, list[Cell]]) -> tuple[dict[Cell, list[Cell]], dict[Cell, list[Cell]]]:
    before: dict[Cell, list[Cell]] = {}
    after: dict[Cell, list[Cell]] = {}
    for chain in chains.values():
        for left, right in pairwise(chain):
            before.setdefault(right, []).append(left)
            after.setdefault(left, []).append(right)
    return before, after


def _settle(
    layers: list[list[Cell]],
    neighbours: tuple[dict[Cell, list[Cell]], dict[Cell, list[Cell]]],
    extent: Mapping[Cell, float],
) -> dict[Cell, float]:
    """Compute the centres across: each cell as near to its neighbours' average as order and gaps allow."""
    place: dict[Cell, float] = {}
    for cells in layers:
        _pack(cells, dict.fromkeys(cells, 0.0), extent, place)
    for sweep in range(SWEEPS):
        beside = neighbours[sweep % 2]
        for cells in layers if sweep % 2 == 0 else reversed(layers):
            wish = {cell: _mean([place[other] for other in beside.get(cell, [cell])]) for cell in cells}
            cells.sort(key=wish.__getitem__)
            _pack(cells, wish, extent, place)
    both = {cell: [*neighbours[0].get(cell, []), *neighbours[1].get(cell, [])] or [cell] for cell in place}
    for _ in range(2):  # orders are fixed; now align with both sides
        for cells in layers:
            _pack(cells, {cell: _mean([place[other] for other in both[cell]]) for cell in cells}, extent, place)
    return place


def _pack(
    cells: list[Cell], wish: Mapping[Cell, float], extent: Mapping[Cell, float], place: dict[Cell, float]
) -> None:
    """Place every cell at its wish; centre colliding cells around their average wish."""
    blocks: list[tuple[list[Cell], float]] = []  # touching cells, and the centre of the first
    for cell in cells:
        blocks.append(([cell], wish[cell]))
        while len(blocks) > 1 and _overlap(blocks[-2], blocks[-1], extent):
            later, earlier = blocks.pop(), blocks.pop()
            members = earlier[0] + later[0]
            offsets = _offsets(members, extent)
            start = _mean([wish[member] - offset for member, offset in zip(members, offsets, strict=True)])
            blocks.append((members, start))
    for members, start in blocks:
        for member, offset in zip(members, _offsets(members, extent), strict=True):
            place[member] = start + offset


def _offsets(members: list[Cell], extent: Mapping[Cell, float]) -> list[float]:
    offsets = [0.0]
    for left, right in pairwise(members):
        offsets.append(offsets[-1] + (extent[left] + extent[right]) / 2 + GAP)
    return offsets


def _overlap(left: tuple[list[Cell], float], right: tuple[list[Cell], float], extent: Mapping[Cell, float]) -> bool:
    end = left[1] + _offsets(left[0], extent)[-1] + extent[left[0][-1]] / 2
    return end + GAP > right[1] - extent[right[0][0]] / 2 + 1e-9


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
