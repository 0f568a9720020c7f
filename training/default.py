"""Default training recipe for an edge of a graph."""

from collections.abc import Sequence
from pathlib import Path

from cachegraph.agents.prompt.prompt import PromptTemplate
from cachegraph.errors import ConfigError
from cachegraph.graph.recipe.load import load_recipe
from cachegraph.graph.recipe.spec import GraphSpec

from .data.data_spec import DataSpec
from .pair import choose_edge
from .spec import FuserSpec, FuseSpec, GraftSpec, JointSpec, LossSpec, OptimSpec, TrainSpec

__all__ = ["default_spec"]


def default_spec(graph_file: Path, edge: str | None, kind: str | None, data: Sequence[str]) -> TrainSpec:
    """A fuser for text that both agents read, a translator for text that only the sender reads, or both.

    Raises RecipeError or ConfigError.
    """
    graph = load_recipe(graph_file, allow_paths=True)
    sender, receiver = choose_edge(graph, edge)
    fuser = _fuser(kind or _needed(graph, sender, receiver))
    choices = graph.evaluate is not None and graph.evaluate.choices is not None
    return TrainSpec(
        version=1,
        name=graph.name,
        graph=str(graph_file),
        edge=f"{sender}:{receiver}",
        data=DataSpec(source=tuple(data)),
        fuser=fuser,
        loss=LossSpec(choices=1.0 if choices else 0.0),
        optim=OptimSpec(texts=16, rows=1) if fuser.kind == "fuse" else OptimSpec(),
    )


def _fuser(kind: str) -> FuserSpec:
    match kind:
        case "graft":
            return GraftSpec()
        case "fuse":
            return FuseSpec()
        case "joint":
            return JointSpec(kind="joint")
    raise ConfigError(f"a fuser's kind is 'fuse', 'graft' or 'joint', not {kind!r}")


def _needed(graph: GraphSpec, sender: str, receiver: str) -> str:
    """The kind of fuser, by which inputs the prompts of the two agents share."""
    receiver_reads, sender_reads = (
        PromptTemplate(
            name, graph.speaker(name), [edge.sender for edge in graph.edges if edge.receiver == name]
        ).reads.names
        for name in (receiver, sender)
    )
    own = receiver_reads - {sender}
    if not sender_reads - own:
        return "fuse"
    return "joint" if sender_reads & own else "graft"
