"""Drawing of `cachegraph show --run`: a stored run, or the run of a result file."""

from pathlib import Path

from cachegraph.errors import InputError
from cachegraph.graph.draw.render_run import run_to_mermaid, run_to_svg, run_to_text
from cachegraph.graph.draw.run_view import from_result, from_store
from cachegraph.graph.graph import Graph
from cachegraph.graph.recipe.spec import GraphSpec
from cachegraph.graph.run.result import Result

from .options import open_store

__all__ = ["draw_run"]

DRAW = {"text": run_to_text, "mermaid": run_to_mermaid, "svg": run_to_svg}


def draw_run(spec: GraphSpec | None, run: str, form: str) -> str:
    """Draw the run on its graph; without `spec`, on the stored recipe. Raises InputError."""
    if Path(run).is_file():
        view = from_result(_read(Path(run)))
        if spec is None:
            raise InputError(
                f"the result in {run!r} has no recipe with it; name the recipe too: show RECIPE --run {run}"
            )
    else:
        store = open_store()
        stored = store.get(run)
        view = from_store(stored)
        spec = spec or Graph.from_run(stored.id, store).spec
    view.check(spec)
    return DRAW[form](spec, view)


def _read(path: Path) -> Result:
    try:
        return Result.from_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"the result in {str(path)!r} can't be read: {error.strerror}") from error
    except InputError as error:
        raise InputError(f"{str(path)!r}: {error}; give what `cachegraph run --json` printed") from error
