"""Models for tests of cache edges: random weights from a seed, bytes as tokens. Nothing is downloaded.

Their replies are meaningless and deterministic. A recipe handles their caches (grafts, fuses, falls back) as it handles
those of real models.
"""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from cachegraph.agents.spec import EndpointSpec
from cachegraph.channels.spec import TextEdge
from cachegraph.engine.spec import ModelSpec
from cachegraph.graph.graph import Graph
from cachegraph.graph.recipe.spec import GraphSpec

__all__ = ["tiny_model", "with_tiny_models"]


def tiny_model(seed: int = 0) -> str:
    """Return the folder of a model, created on the first call with this seed: a `source` for a recipe's `models`."""
    return str(_model(seed))


def with_tiny_models(graph: Graph) -> Graph:
    """Return a graph of the same recipe with a tiny model in place of each local model.

    Endpoints stay unchanged. A cache edge between two models gets a fuser with random weights in place of its own.
    """
    spec = graph.validate().spec
    locals_ = dict.fromkeys(
        agent.model for agent in spec.speakers.values() if not isinstance(spec.models.get(agent.model), EndpointSpec)
    )
    seeds = {source: seed for seed, source in enumerate(dict.fromkeys(_source(spec, label) for label in locals_))}
    keys = {label: f"tiny_{seeds[_source(spec, label)]}" for label in locals_}
    models = {
        **{name: entry for name, entry in spec.models.items() if isinstance(entry, EndpointSpec)},
        **{f"tiny_{seed}": _entry(seed) for seed in seeds.values()},
    }
    agents = spec.agents | {
        name: agent.model_copy(update={"model": keys[agent.model]})
        for name, agent in spec.speakers.items()
        if agent.model in keys
    }
    changed = spec.model_copy(update={"models": models, "agents": agents})
    made = graph.with_spec(_with_fusers(changed))
    made._permissions = None  # the recipe's folders are now ours, not its author's
    return made


def _source(spec: GraphSpec, label: str) -> str:
    entry = spec.models.get(label, label)
    return entry.source if isinstance(entry, ModelSpec) else str(entry)


def _entry(seed: int) -> ModelSpec:
    return ModelSpec(source=tiny_model(seed), dtype="float32", device="cpu")


def _with_fusers(spec: GraphSpec) -> GraphSpec:
    edges = []
    for edge in spec.edges:
        ends = [getattr(spec.agents[name], "model", "") for name in (edge.receiver, edge.sender)]
        fuser = None
        if not isinstance(edge, TextEdge) and ends[0] != ends[1] and all(end.startswith("tiny_") for end in ends):
            fuser = str(_fuser(*(int(end.removeprefix("tiny_")) for end in ends)))
        edges.append(edge if isinstance(edge, TextEdge) else edge.model_copy(update={"fuser": fuser, "align": "auto"}))
    return spec.model_copy(update={"edges": tuple(edges)})


@cache
def _room() -> Path:
    """Return the folder of all tiny models; it is deleted when this process ends."""
    room = Path(tempfile.mkdtemp(prefix="cachegraph-tiny-"))
    atexit.register(shutil.rmtree, room, ignore_errors=True)
    return room


@cache
def _model(seed: int) -> Path:
    from .weights import save_tiny_model

    folder = _room() / f"tiny-{seed}"
    save_tiny_model(folder, seed)
    return folder


@cache
def _fuser(receiver: int, sharer: int) -> Path:
    from .weights import save_tiny_fuser

    folder = _room() / f"tiny-{receiver}--tiny-{sharer}"
    save_tiny_fuser(folder, _model(receiver), _model(sharer))
    return folder
