"""Output folder of a trained fuser: the one where the graph looks for it."""

import os
from pathlib import Path

from cachegraph.channels.fusers.files.atomic_folder import holds_only
from cachegraph.channels.fusers.files.joint_folder import PARTS
from cachegraph.channels.fusers.files.weights import CARD, WEIGHTS
from cachegraph.channels.fusers.fuser_folder import installed_fusers
from cachegraph.channels.fusers.hub.hub_name import is_hub_fuser
from cachegraph.channels.spec import FuserPair, TextEdge
from cachegraph.errors import ConfigError, FuserError
from cachegraph.graph.recipe.spec import GraphSpec

from .pair import Pair
from .spec import TrainSpec

__all__ = ["check_output_path", "fuser_output_path"]


def fuser_output_path(spec: TrainSpec, pair: Pair, base: Path, graph: GraphSpec, edge: tuple[str, str]) -> Path:
    """The recipe's `output`, relative to `base`; else the edge's `fuser`; else an installed fuser named after the pair.

    The name of a control's fuser ends with the control.
    """
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


def check_output_path(folder: Path, *, is_pair: bool) -> None:
    """Raise FuserError if the folder holds other files than a fuser's, ConfigError if it can't be written."""
    fuser_files = frozenset(PARTS if is_pair else (CARD, WEIGHTS))
    if folder.exists() and not holds_only(folder, fuser_files):
        raise FuserError(f"{str(folder)!r} holds files that are not such a fuser's; choose another output or empty it")
    existing = next(parent for parent in folder.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(
            f"the fuser can't be written to {str(folder)!r}: {str(existing)!r} takes no new files; "
            "choose another output, or check its permissions"
        )


def _named(spec: TrainSpec, graph: GraphSpec, edge: tuple[str, str]) -> str | None:
    edge_spec = next(candidate for candidate in graph.edges if (candidate.sender, candidate.receiver) == edge)
    fuser = None if isinstance(edge_spec, TextEdge) else edge_spec.fuser
    if not isinstance(fuser, FuserPair):
        return fuser
    return {"fuse": fuser.fuse, "graft": fuser.graft}.get(spec.fuser.kind)
