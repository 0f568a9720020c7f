"""Where the trained fuser goes: to the place at which the graph will look for it."""

from pathlib import Path

from cachegraph.channels.fusers.find import installed_fusers
from cachegraph.channels.fusers.name import is_hub_fuser
from cachegraph.channels.spec import FuserPair, TextEdge
from cachegraph.graph.spec import GraphSpec

from .pair import Pair
from .spec import TrainSpec

__all__ = ["fuser_place"]


def fuser_place(spec: TrainSpec, pair: Pair, base: Path, graph: GraphSpec, edge: tuple[str, str]) -> Path:
    """The recipe's `output`, which starts at `base`; else what the edge names; else among all that this machine has,
    called after the pair. A control's name says what it is."""
    if spec.output is not None:
        return base / Path(spec.output).expanduser()
    folder = (base / Path(spec.graph).expanduser()).resolve().parent
    named = None if spec.models or spec.control == "identical" else _named(spec, graph, edge)
    if named is None or is_hub_fuser(named):
        named = f"{pair.receiver.engine.model.name}--{pair.sharer.engine.model.name}"
    place = folder / Path(named).expanduser()
    if "/" not in named and not place.is_dir():
        place = installed_fusers() / named
    return place if spec.control == "none" else place.with_name(f"{place.name}--{spec.control}")


def _named(spec: TrainSpec, graph: GraphSpec, edge: tuple[str, str]) -> str | None:
    found = next(each for each in graph.edges if (each.sender, each.receiver) == edge)
    fuser = None if isinstance(found, TextEdge) else found.fuser
    if not isinstance(fuser, FuserPair):
        return fuser
    return {"fuse": fuser.fuse, "graft": fuser.graft}.get(spec.fuser.kind)
