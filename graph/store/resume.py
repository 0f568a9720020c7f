"""Start and resume persisted runs.

Imports SQLAlchemy only when a store is used.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from cachegraph.agents.create import Create
from cachegraph.common.surrogates import mend
from cachegraph.errors import InputError

from ..recipe.load import dump_recipe, included, parse_recipe
from ..recipe.spec import GraphSpec
from ..run.run import Listener, Run
from ..tracing.enabled import watched

if TYPE_CHECKING:
    from ..graph import Graph
    from .records import Setting, StoredRun
    from .store import Store

__all__ = ["digest", "load_graph", "resume_run", "start_run"]

GraphT = TypeVar("GraphT", bound="Graph")

_recipes: "WeakKeyDictionary[Graph, tuple[GraphSpec, str]]" = WeakKeyDictionary()


def start_run(
    graph: "Graph", inputs: Mapping[str, Any], store: "Store", listener: Listener | None, session: str | None = None
) -> Run:
    """Create a run that enters the store when it begins."""
    from .execution import StoredExecution

    spec, recipe, setting = graph.spec, _recipe(graph), _setting(graph, inputs, session)
    run = StoredExecution(
        spec,
        inputs,
        partial(graph.wire_for, spec),
        listener,
        open_session=lambda: store.begin(spec.name, recipe, setting),
    )
    run.take_loading = graph.take_loading
    run.conversation = graph.conversation(session)
    run.generate = graph.settings or None
    return run


def _recipe(graph: "Graph") -> str:
    """Return the graph as YAML, cached because a graph may run often."""
    spec = graph.spec
    known = _recipes.get(graph)
    if known is None or known[0] is not spec:
        known = _recipes[graph] = (spec, dump_recipe(spec))
    return known[1]


def resume_run(
    graph: "Graph",
    run: str,
    store: "Store | None",
    answer: str | None = None,
    turn: str | None = None,
    listener: Listener | None = None,
) -> Run:
    """Resume a run of this graph. Raises InputError if it has another recipe."""
    from .execution import StoredExecution
    from .store import Store

    store = store or Store()
    stored = store.get(run)
    spec = graph.validate().spec
    if _recipe_of(stored) != spec:
        raise InputError(
            f"run {stored.id!r} was begun with another recipe than this graph's; "
            f"Graph.from_run({stored.id!r}) has the one it needs"
        )
    said, inputs = _answered(stored, answer, turn), stored.setting.inputs
    listener = watched(spec, inputs, listener)
    execution = StoredExecution(
        spec,
        inputs,
        partial(graph.wire_for, spec),
        listener,
        open_session=lambda: store.resume(stored.id, said),
    )
    execution.take_loading = graph.take_loading
    execution.conversation = graph.conversation(stored.setting.session)
    execution.generate = stored.setting.generate
    return execution


def _answered(stored: "StoredRun", answer: str | None, turn: str | None) -> dict[str, str]:
    """Map the answer to its turn. Raises InputError for an open question without an answer, or vice versa."""
    questions = {
        name: unfinished.prompt or ""
        for name, unfinished in stored.outcome.unfinished.items()
        if unfinished.status == "paused"
    }
    who = f"run {stored.id!r}"
    if answer is None:
        if questions and stored.status == "paused":
            name, question = next(iter(questions.items()))
            raise InputError(f"{who} waits for an answer to {name!r}: {question!r}; give it with answer= or --answer")
        return {}
    if not questions:
        raise InputError(f"{who} has no open question (its status is {stored.status!r}); resume it without an answer")
    if turn is None and len(questions) > 1:
        raise InputError(f"{who} asks several things; say whose question this answers: {', '.join(questions)}")
    turn = turn or next(iter(questions))
    if turn not in questions:
        raise InputError(f"{who} has no open question {turn!r}; there is {', '.join(questions)}")
    return {turn: mend(answer)}


def load_graph(kind: type[GraphT], run: str, store: "Store | None", create: Create) -> GraphT:
    """Load the graph of a stored run, as it was when the run began."""
    from .store import Store

    stored = (store or Store()).get(run)
    setting = stored.setting
    return kind.from_yaml_text(
        stored.recipe,
        setting.folder,
        allow_env=setting.allow_env,
        allow_paths=setting.allow_paths,
        allow_code=setting.allow_code,
        allow_local=setting.allow_local,
        create=create,
    )


def digest(file: Path | None) -> str | None:
    """Hash a recipe file, to detect later changes; None if it is unreadable."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest() if file is not None else None
    except OSError:
        return None


def _setting(graph: "Graph", inputs: Mapping[str, Any], session: str | None) -> "Setting":
    from .records import Setting, installed

    try:
        json.dumps(inputs)
    except (TypeError, ValueError) as error:
        raise InputError(f"a run with these inputs can't be kept in a store: {error}") from error
    file, may = graph.file, graph.permissions
    return Setting(
        inputs=inputs,
        folder=str(graph.folder.absolute()),
        file=str(file.absolute()) if file is not None else None,
        digest=digest(file),
        included={str(file): digest(file) for _, file in included(graph.spec, graph.folder)},
        allow_env=sorted(may.allow_env),
        allow_paths=may.allow_paths,
        allow_code=may.allow_code or bool(may.registered),
        allow_local=may.allow_local or may.allow_code,
        session=session,
        generate=dict(graph.settings) or None,
        versions=installed(),
    )


def _recipe_of(stored: "StoredRun") -> Any:
    setting = stored.setting
    return parse_recipe(
        stored.recipe,
        f"the recipe of run {stored.id}",
        Path(setting.folder),
        allow_env=setting.allow_env,
        allow_paths=setting.allow_paths,
        allow_code=setting.allow_code,
        allow_local=setting.allow_local,
    )
