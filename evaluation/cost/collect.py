"""The constants that a recipe needs: those that are kept, and measuring those that are not."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cachegraph.agents.spec import EndpointSpec
from cachegraph.channels.payload import Route
from cachegraph.engine.engine import Engine
from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import CachegraphError
from cachegraph.graph.graph import Graph
from cachegraph.graph.plan.expected_routes import expected_routes, read_included

from ..comparison_parts import EdgeCurve
from .break_even import curve
from .constants import EdgeConstants, Form, ModelConstants
from .constants_cache import KeptEdge, KeptModel
from .measure import measure_edge, measure_model
from .predict import CostSetting
from .shape import Shape, model_key, recipe_shape

__all__ = ["EdgeKey", "Needs", "kept_constants", "kept_curves", "measure_missing", "needs_of"]

EdgeKey = tuple[str, str, str | None]  # the model keys of sharer and receiver, and the fuser


@dataclass
class Needs:
    """What a recipe's costs depend on, and the constants that are known. `notes` say what could not be measured."""

    models: dict[str, ModelSpec]
    edges: dict[EdgeKey, tuple[Form, Route]]
    known_models: dict[str, ModelConstants]
    known_edges: dict[EdgeKey, EdgeConstants]
    notes: list[str]

    @property
    def complete(self) -> bool:
        return self.models.keys() == self.known_models.keys() and self.edges.keys() == self.known_edges.keys()


def needs_of(graph: Graph, shape: Shape) -> Needs:
    """The models of a recipe, and its cache edges by models and fuser."""
    spec, folder = graph.spec, graph.folder
    models: dict[str, ModelSpec] = {}
    for agent in spec.speakers.values():
        entry, key = spec.models.get(agent.model, agent.model), model_key(spec, agent)
        if key is not None and not isinstance(entry, EndpointSpec):
            models[key] = ModelSpec(source=entry) if isinstance(entry, str) else entry
    routes = expected_routes(spec, folder, lambda entry: read_included(entry, folder))
    edges: dict[EdgeKey, tuple[Form, Route]] = {}
    for edge in shape.edges:
        sharer, receiver = shape.turn(edge.sender).model, shape.turn(edge.receiver).model
        if edge.form is not None and sharer is not None and receiver is not None:
            edges.setdefault((sharer, receiver, edge.fuser), (edge.form, routes[edge.sender, edge.receiver]))
    return Needs(models, edges, {}, {}, [])


def kept_constants(needs: Needs, folder: Path) -> None:
    """Fill in the constants that the cache folder holds for this machine. Loads no model."""
    for key, spec in needs.models.items():
        if (constants := KeptModel(spec, folder).read()) is not None:
            needs.known_models[key] = constants
    for edge, (form, _) in needs.edges.items():
        if (found := _kept_edge(needs, edge, form, folder).read()) is not None:
            needs.known_edges[edge] = found


def kept_curves(graph: Graph) -> list[EdgeCurve]:
    """Curves of a recipe's cache edges, one of each kind, by the constants that are kept; none without them."""
    try:
        shape = recipe_shape(graph.spec, graph.folder)
        needs = needs_of(graph, shape)
        kept_constants(needs, graph.folder)
    except CachegraphError:
        return []
    setting = CostSetting(needs.known_models, needs.known_edges)
    counts: Counter[tuple[str, str | None, str | None]] = Counter()
    for edge in shape.edges:
        counts[edge.sender, edge.fuser, edge.form] += 1
    firsts = {(edge.sender, edge.fuser, edge.form): edge for edge in reversed(shape.edges) if edge.form is not None}
    curves = [curve(shape, edge, setting, counts[kind]) for kind, edge in reversed(firsts.items())]
    return [edge_curve for edge_curve in curves if edge_curve is not None]


async def measure_missing(
    graph: Graph, needs: Needs, *, again: bool = False, on_stage: Callable[[str], None] = lambda _: None
) -> None:
    """Measure and keep the constants that are not known; `again`: all of them. An edge that can't be is a note."""
    if again:
        needs.known_models.clear()
        needs.known_edges.clear()
    engines: dict[str, Engine] = {}
    for node in (await graph.awire()).nodes:
        agent = graph.spec.speakers.get(node.name)
        engine = None if node.is_graph else node.agent.peer().engine
        if agent is not None and engine is not None and (key := model_key(graph.spec, agent)) is not None:
            engines[key] = engine
    for key in needs.models.keys() - needs.known_models.keys():
        if key in engines:
            on_stage(f"measuring {engines[key].model.name}")
            needs.known_models[key] = constants = await measure_model(engines[key])
            KeptModel(needs.models[key], graph.folder).write(constants)
    for edge in needs.edges.keys() - needs.known_edges.keys():
        form, route = needs.edges[edge]
        name = f"{route.edge.sender} → {route.edge.receiver}"
        on_stage(f"measuring the {form} of {name}")
        try:
            ends = engines[edge[0]], engines[edge[1]]
            found = await measure_edge(graph, route, form, edge[:2], ends)
        except CachegraphError as error:
            needs.notes.append(f"{name} can't be measured: {error}")
            continue
        if found is None:
            needs.notes.append(f"{name} can't be measured: between these models it falls back to text")
            continue
        needs.known_edges[edge] = found
        _kept_edge(needs, edge, form, graph.folder).write(found)


def _kept_edge(needs: Needs, edge: EdgeKey, form: Form, folder: Path) -> KeptEdge:
    sharer, receiver, fuser = edge
    return KeptEdge(needs.models[sharer], needs.models[receiver], fuser, form, folder)
