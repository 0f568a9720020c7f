"""/graphs/NAME/recipe and /graphs/NAME/check: the text of a recipe, and what is wrong in a changed one."""

from functools import partial
from typing import Any

from anyio.to_thread import run_sync
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cachegraph.agents.schema_threads import run_checks
from cachegraph.channels.spec import Channel
from cachegraph.errors import CachegraphError, Problem, RecipeError
from cachegraph.graph.graph import Graph
from cachegraph.graph.recipe.json_schema import recipe_schema

from .changed_recipe import changed_graph
from .describe import describe
from .edges import read_edges
from .errors import ApiError
from .hide_paths import hide_paths
from .http_body import read_body
from .runs.prompts import require_prompts
from .served_graphs import ServedGraph
from .server_state import ServerState, state_of

LONG = 1_000_000  # characters; always in a thread, since reading a recipe takes longer than checking a value

__all__ = ["check_recipe", "show_recipe", "show_schema"]


class CheckRequest(BaseModel):
    """A recipe as a client changed it, or other channels of the served one."""

    model_config = ConfigDict(extra="forbid")

    recipe: str | None = None  # None: the served one
    channels: dict[str, Channel] = {}  # of single edges, by `sender:receiver`


async def show_schema(request: Request) -> Response:
    """Show the JSON Schema of recipes."""
    return JSONResponse(recipe_schema())


async def show_recipe(request: Request) -> Response:
    """Show the text of a recipe."""
    require_prompts(request)
    served = state_of(request).graphs.named(request.path_params["graph"])
    return JSONResponse({"recipe": await run_sync(lambda: served.source.text)})


async def check_recipe(request: Request) -> Response:
    """Show what is wrong in a changed recipe, by line, and what it drops; runs and loads nothing.

    Raises ApiError (400) if it is too large.
    """
    state = state_of(request)
    served = state.graphs.named(request.path_params["graph"])
    body = await read_body(request, CheckRequest, state.limits.body_bytes)
    if body.recipe is not None:
        require_prompts(request)
        if len(body.recipe) > state.limits.prompt_characters:
            words = (
                f"the recipe has {len(body.recipe)} characters, and this server takes {state.limits.prompt_characters}"
            )
            raise ApiError(400, words, "too_large", "recipe")
    edges = read_edges(body.channels)
    check = partial(_check, served, state, body.recipe, edges)
    return JSONResponse(await run_checks(check, LONG))


def _check(served: ServedGraph, state: ServerState, recipe: str | None, edges: Any) -> dict[str, Any]:
    try:
        graph: Graph = served.graph if recipe is None else changed_graph(recipe, served.source, state.limits)
        graph = graph.with_channels(edges) if edges else graph
        return {"problems": [], "graph": describe(graph.spec, graph.folder, graph.warnings())}
    except RecipeError as error:
        return {"problems": [_problem(problem) for problem in error.problems], "graph": None}
    except CachegraphError as error:
        return {"problems": [_problem(Problem(str(error)))], "graph": None}


def _problem(problem: Problem) -> dict[str, Any]:
    message, hint = hide_paths(problem.message), hide_paths(problem.hint)
    return {"message": message, "hint": hint, "line": problem.line, "column": problem.column}
