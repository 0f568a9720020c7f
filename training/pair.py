"""The trained edge's two ends: their agents in the graph, and their frozen models."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cachegraph.agents.prompt.prompt import PromptTemplate
from cachegraph.agents.spec import AgentSpec, EndpointSpec
from cachegraph.engine.engine import Engine
from cachegraph.engine.pool import leased
from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import ConfigError, ModelError
from cachegraph.graph.recipe.spec import GraphSpec, ModelEntry

from .spec import TrainingControl

__all__ = ["End", "Pair", "choose_edge", "open_pair"]


@dataclass(frozen=True, eq=False)
class End:
    """One agent of the edge, with its model loaded."""

    agent: str
    spec: AgentSpec
    template: PromptTemplate
    engine: Engine
    chat: bool


@dataclass(frozen=True, eq=False)
class Pair:
    """Receiver and sharer. Under the control `identical` the sharer's agent runs the receiver's model."""

    receiver: End
    sharer: End


def choose_edge(graph: GraphSpec, wanted: str | None) -> tuple[str, str]:
    """(sender, receiver) of the wanted edge, or of the only one. Raises ConfigError if it is missing or ambiguous."""
    pairs = [(edge.sender, edge.receiver) for edge in graph.edges]
    shown = ", ".join(f"{a}:{b}" for a, b in pairs) or "none"
    if wanted is None:
        if len(pairs) != 1:
            raise ConfigError(f"the graph {graph.name!r} has {len(pairs)} edges ({shown}); name the one to train")
        return pairs[0]
    sender, _, receiver = wanted.partition(":")
    if (sender, receiver) not in pairs:
        raise ConfigError(f"the graph {graph.name!r} has no edge {wanted!r}; it has {shown}")
    return sender, receiver


@contextmanager
def open_pair(
    graph: GraphSpec,
    edge: tuple[str, str],
    models: dict[str, ModelEntry],
    control: TrainingControl,
    folder: Path,
    device: str | None = None,
) -> Iterator[Pair]:
    """Load both models, or one if they are equal, onto `device` if given. Raises ModelError or ConfigError."""
    known = {**graph.models, **models}
    sharer, receiver = (_model(graph.speaker(name), name, known) for name in edge)
    if device is not None:
        sharer, receiver = (spec.model_copy(update={"device": device}) for spec in (sharer, receiver))
    if control == "identical":
        sharer = receiver
    with leased(receiver, folder) as receiver_engine, leased(sharer, folder) as sharer_engine:
        yield Pair(_end(graph, edge[1], receiver_engine), _end(graph, edge[0], sharer_engine))


def _model(spec: AgentSpec, agent: str, known: dict[str, ModelEntry]) -> ModelSpec:
    entry = known.get(spec.model, spec.model)
    if isinstance(entry, EndpointSpec):
        raise ConfigError(f"agent {agent!r} is behind an endpoint, which has no cache; a fuser joins local models")
    if isinstance(entry, ModelSpec) and entry.device_map is not None:
        raise ConfigError(f"the model of agent {agent!r} has a device_map, but training needs it on one device")
    return ModelSpec(source=entry) if isinstance(entry, str) else entry


def _end(graph: GraphSpec, agent: str, engine: Engine) -> End:
    spec, model = graph.speaker(agent), engine.model
    if model.why_no_cache is not None:
        raise ModelError(f"{model.name!r} can't take part in a cache edge: {model.why_no_cache}")
    if model.tokenizer is None:
        raise ModelError(f"the model {model.name!r} of agent {agent!r} has no tokenizer")
    upstream = [edge.sender for edge in graph.edges if edge.receiver == agent]
    chat = model.tokenizer.has_chat if spec.chat == "auto" else spec.chat
    return End(agent, spec, PromptTemplate(agent, spec, upstream), engine, chat)
