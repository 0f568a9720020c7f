"""A training recipe for an edge of a graph, where nobody has written one."""

from collections.abc import Sequence
from pathlib import Path

from cachegraph.agents.prompt import PromptTemplate
from cachegraph.errors import ConfigError
from cachegraph.graph.load import load_recipe
from cachegraph.graph.spec import GraphSpec

from .data_spec import DataSpec
from .pair import choose_edge
from .spec import FuserSpec, FuseSpec, GraftSpec, LossSpec, OptimSpec, TrainSpec

__all__ = ["default_spec"]


def default_spec(graph_file: Path, edge: str | None, kind: str | None, data: Sequence[str]) -> TrainSpec:
    """A translator where the sender reads what the receiver does not, else a fuser. Raises RecipeError, ConfigError."""
    graph = load_recipe(graph_file, allow_paths=True)
    sender, receiver = choose_edge(graph, edge)
    kind = kind or ("graft" if private_names(graph, sender, receiver) else "fuse")
    if kind not in ("graft", "fuse"):
        raise ConfigError(f"a fuser is of kind 'fuse' or 'graft', not {kind!r}")
    fuser: FuserSpec = GraftSpec(kind="graft") if kind == "graft" else FuseSpec(kind="fuse")
    choices = graph.evaluate is not None and graph.evaluate.choices is not None
    return TrainSpec(
        version=1,
        name=graph.name,
        graph=str(graph_file),
        edge=f"{sender}:{receiver}",
        data=DataSpec(source=tuple(data)),
        fuser=fuser,
        loss=LossSpec(choices=1.0 if choices else 0.0),
        optim=OptimSpec() if kind == "graft" else OptimSpec(texts=16, rows=1),
    )


def private_names(graph: GraphSpec, sender: str, receiver: str) -> frozenset[str]:
    """What the sender's prompt holds and the receiver's does not."""
    mine, theirs = (
        PromptTemplate(name, graph.speaker(name), [edge.sender for edge in graph.edges if edge.receiver == name]).names
        for name in (receiver, sender)
    )
    return theirs - (mine - {sender})
