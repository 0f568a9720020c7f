"""Settings of a run's outputs that differ from the recipe's."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cachegraph.agents.spec import AgentSpec
from cachegraph.agents.subgraph import SubgraphSpec
from cachegraph.common.did_you_mean import suggest
from cachegraph.engine.spec import GenerateSpec
from cachegraph.errors import InputError, RecipeError

from ..recipe.check import check_spec
from ..recipe.includes import own_file
from ..recipe.load import read_spec
from ..recipe.raw_spec import Permissions
from ..recipe.spec import GraphSpec
from ..recipe.validation_messages import value_message

__all__ = ["check_settings"]

GENERATE = ("agents", "", "model", "generate")  # the path of settings in a recipe, with the kind of agent
SCHEMAS = {"json_schema", "ignore_eos", "min_new_tokens"}  # settings that may conflict


def check_settings(
    spec: GraphSpec, folder: Path, permissions: Permissions, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings as GenerateSpec fields. Raises InputError for one that an output can't apply.

    Checks a json_schema like one in a recipe, which may take long.
    """
    for name in settings:
        if name not in GenerateSpec.model_fields:
            raise InputError(f"there is no setting {name!r}{suggest(name, GenerateSpec.model_fields)}")
    if not settings:
        return {}
    changed: dict[str, Any] = {}
    for recipe, output, entry in _answering(spec, folder):
        changed = _changed(output, entry, settings)
        if SCHEMAS & settings.keys():
            update = entry.generate.model_copy(update=changed)
            agents = {**recipe.agents, output: entry.model_copy(update={"generate": update})}
            _check(recipe.model_copy(update={"agents": agents}), permissions)
    return changed


def _answering(spec: GraphSpec, folder: Path) -> Iterator[tuple[GraphSpec, str, AgentSpec]]:
    """Yield the agents that write the outputs, each with its recipe. Raises InputError for one without a model."""
    for output in dict.fromkeys(spec.outputs.values()):
        entry = spec.agents[output]
        if isinstance(entry, SubgraphSpec):
            file = own_file(entry, folder)
            yield from _answering(read_spec(file), file.parent)
        elif isinstance(entry, AgentSpec):
            yield spec, output, entry
        else:
            raise InputError(f"the output {output!r} is not written by a model, so it takes no settings")


def _changed(output: str, entry: AgentSpec, settings: Mapping[str, Any]) -> dict[str, Any]:
    if entry.generate.max_new_tokens == 0:
        raise InputError(f"the output {output!r} only reads and writes nothing, so it takes no settings")
    try:
        spec = GenerateSpec.model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"the setting {place!r} is wrong: {value_message(first, GENERATE)}") from error
    if spec.max_new_tokens == 0:
        raise InputError("the setting 'max_new_tokens' must be 1 or more, since the output is to write")
    return {name: getattr(spec, name) for name in settings}


def _check(spec: GraphSpec, permissions: Permissions) -> None:
    try:
        check_spec(spec, permissions)
    except RecipeError as error:
        raise InputError(str(error)) from error
