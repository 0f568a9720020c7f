"""Recipes that a recipe includes."""

from collections.abc import Callable, Iterator
from pathlib import Path

from cachegraph.agents.subgraph import SubgraphSpec
from cachegraph.common.did_you_mean import near_or_known
from cachegraph.errors import InputError, Problem, RecipeError

from .raw_spec import Finding
from .spec import GraphSpec
from .swap_channels import with_inner_channels

__all__ = ["Chain", "Load", "check_nested", "own_file"]

Chain = tuple[Path, ...]  # the including recipes, outermost first
Load = Callable[[Path, Chain], GraphSpec]


def own_file(entry: SubgraphSpec, folder: Path) -> Path:
    """Path of a sub-graph's recipe file."""
    return (folder / entry.graph).resolve()


def check_nested(spec: GraphSpec, folder: Path, chain: Chain, load: Load) -> Iterator[Finding | Problem]:
    """Find problems in the recipes that a checked recipe includes, and in the inputs it gives them."""
    for name, entry in spec.graphs.items():
        path = ("agents", name, "graph")
        file = own_file(entry, folder)
        if file in chain:
            shown = " -> ".join(repr(recipe.name) for recipe in [*chain[chain.index(file) :], file])
            yield Finding(f"the recipe of agent {name!r} includes itself: {shown}", path, "name another recipe")
            continue
        try:
            inner = load(file, (*chain, file))
        except RecipeError as error:
            for problem in error.problems:
                yield problem if problem.file else Finding(f"the recipe of agent {name!r}: {problem.message}", path)
            continue
        asking = next((inner_name for inner_name, agent in inner.agents.items() if agent.pauses), None)
        if asking is not None:
            message = f"agent {asking!r} of the recipe {entry.graph!r} asks a person, which only the outer recipe can"
            yield Finding(message, path, "ask before or after it")
        if entry.for_each is not None and (memory := _remembering(inner, (*chain, file), load)) is not None:
            message = (
                f"agent {memory!r} of the recipe {entry.graph!r} remembers, and agent {name!r} takes many turns at once"
            )
            yield Finding(
                message, ("agents", name, "for_each"), f"drop it, or 'memory' of agent {memory!r}", at_key=True
            )
        yield from _inputs(name, entry, inner)
        try:
            _check_channels(entry, inner, (*chain, file), load)
        except InputError as error:
            yield Finding(f"the channels of agent {name!r}: {error}", ("agents", name, "channels"))


def _remembering(spec: GraphSpec, chain: Chain, load: Load) -> str | None:
    """The name of an agent with a memory, in this recipe or in one that it includes."""
    own = next((name for name, agent in spec.speakers.items() if agent.memory), None)
    if own is not None:
        return own
    files = (own_file(entry, chain[-1].parent) for entry in spec.graphs.values())
    return next(
        (name for file in files if (name := _remembering(load(file, (*chain, file)), (*chain, file), load))), None
    )


def _check_channels(entry: SubgraphSpec, inner: GraphSpec, chain: Chain, load: Load) -> None:
    """Raises InputError for an edge that neither the recipe nor any recipe it includes has."""
    for name, deeper in with_inner_channels(inner, entry).graphs.items():
        if deeper != inner.agents[name]:
            file = own_file(deeper, chain[-1].parent)
            _check_channels(deeper, load(file, (*chain, file)), (*chain, file), load)


def _inputs(name: str, entry: SubgraphSpec, inner: GraphSpec) -> Iterator[Finding]:
    for given in entry.inputs:
        if given not in inner.inputs:
            message = f"the recipe {entry.graph!r} of agent {name!r} has no input {given!r}"
            hint = near_or_known(given, inner.inputs)
            yield Finding(message, ("agents", name, "inputs", given), hint, at_key=True)
    for wanted, declared in inner.inputs.items():
        if wanted not in entry.inputs and declared.is_required:
            message = f"agent {name!r} gives its recipe {entry.graph!r} no {wanted!r}, which it needs"
            yield Finding(message, ("agents", name, "graph"), f"add '{wanted}: ...' to its 'inputs'")
