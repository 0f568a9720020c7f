"""cachegraph: graphs of LLM agents whose edges hand over words, or KV caches.

Every name here is imported when it is first used, so that `import cachegraph` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cachegraph.errors import (
        CachegraphError,
        ChannelError,
        ConfigError,
        FuserError,
        InputError,
        ModelError,
        Problem,
        RecipeError,
        RunError,
        ToolError,
    )
    from cachegraph.evaluation.compare import acompare, compare
    from cachegraph.evaluation.comparison import Comparison
    from cachegraph.graph.graph import Graph
    from cachegraph.graph.run.result import Interrupted, Result

__version__ = "0.1.0"

__all__ = [
    "CachegraphError",
    "ChannelError",
    "Comparison",
    "ConfigError",
    "FuserError",
    "Graph",
    "InputError",
    "Interrupted",
    "ModelError",
    "Problem",
    "RecipeError",
    "Result",
    "RunError",
    "ToolError",
    "__version__",
    "acompare",
    "compare",
]

_HOMES = {
    "Comparison": "cachegraph.evaluation.comparison",
    "Graph": "cachegraph.graph.graph",
    "Interrupted": "cachegraph.graph.run.result",
    "Result": "cachegraph.graph.run.result",
    "acompare": "cachegraph.evaluation.compare",
    "compare": "cachegraph.evaluation.compare",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'cachegraph' has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "cachegraph.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
