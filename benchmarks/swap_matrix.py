"""Does a word that only the first agent reads reach the output's context, whatever the channels?

    python benchmarks/swap_matrix.py            # ten shapes of graphs, one model and two, over every channel
    python benchmarks/swap_matrix.py chain loop

Each graph runs twice, with one of two words as its input. What the output agent then thinks of both words is compared
behind the two contexts: how many nats more it prefers the word that was given, summed over both runs. Zero to the bit
means that the word is not in its context; a warning must say so then.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import anyio
import yaml

from cachegraph import Graph
from cachegraph.agents.base import Scorer
from cachegraph.channels.spec import Channel
from cachegraph.graph.run.hooks import RunHooks
from cachegraph.graph.run.run import Run
from cachegraph.graph.run.subgraph import answering_node

__all__ = ["CHANNELS", "SHAPES", "Cell", "build", "cells", "measure"]

WORDS = ("osprey", "walnut")
CHANNELS: tuple[Channel, ...] = ("text", "cache", "auto", "both")
MODELS = {"small": "smollm2-135m-instruct", "other": "gemma-3-270m"}
TOOLS = '''"""A tool server with one tool, as a program."""

from mcp.server import MCPServer

server = MCPServer("calc")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


server.run("stdio")
'''


@dataclass(frozen=True)
class Cell:
    """One graph over one channel. `shift`: nats by which the output prefers the word that it was given."""

    shape: str
    models: str
    channel: str
    shift: float
    used: tuple[str, ...]
    warnings: tuple[str, ...]


def agent(prompt: str, **more: Any) -> dict[str, Any]:
    """An agent that writes a few tokens; its model is set when the shape is built."""
    return {"prompt": prompt, "chat": False, "generate": {"max_new_tokens": 8}, **more}


def edges(*pairs: str, **last: Any) -> list[dict[str, Any]]:
    """Edges from `a>b`; the options belong to the last one."""
    found: list[dict[str, Any]] = [dict(zip(("from", "to"), pair.split(">"), strict=True)) for pair in pairs]
    found[-1] |= last
    return found


FIRST = "The word {{ word }}. Again, the word"
NEXT = "The word {{ %s }}. Again, the word"
LAST = "The word {{ %s }}. Which word? The word"

SHAPES: dict[str, dict[str, Any]] = {
    "chain": {
        "agents": {"a": agent(FIRST), "b": agent(NEXT % "a"), "c": agent(LAST % "b")},
        "edges": edges("a>b", "b>c"),
        "output": "c",
    },
    "fan-in": {
        "agents": {"a": agent(FIRST), "b": agent("A colour:"), "c": agent("{{ b }} " + LAST % "a")},
        "edges": edges("a>c", "b>c"),
        "output": "c",
    },
    "fan-out": {
        "agents": {
            "a": agent(FIRST),
            "b": agent(NEXT % "a"),
            "c": agent("And {{ a }}"),
            "d": agent("{{ c }} " + LAST % "b"),
        },
        "edges": edges("a>b", "a>c", "b>d", "c>d"),
        "output": "d",
    },
    "debate": {
        "agents": {
            "pro": agent("For the word {{ word }}: {{ con }}. Again, the word"),
            "con": agent(NEXT % "pro"),
            "judge": agent("{{ con }} " + LAST % "pro"),
        },
        "edges": [
            *edges("pro>con", "con>pro", max_rounds=2),
            *edges("pro>judge", rounds="all"),
            *edges("con>judge", rounds="all"),
        ],
        "output": "judge",
    },
    "loop": {
        "agents": {
            "writer": agent("{% if critic %}Better: {{ critic }}. {% endif %}The word {{ word }}. Again, the word"),
            "critic": agent(NEXT % "writer"),
            "reader": agent(LAST % "writer"),
        },
        "edges": [*edges("writer>critic", "critic>writer", max_rounds=2), *edges("writer>reader")],
        "output": "reader",
    },
    "sub-graph": {
        "agents": {
            "a": agent(FIRST),
            "team": {"graph": "inner.yaml", "inputs": {"word": "{{ a }}"}},
            "c": agent(LAST % "team"),
        },
        "edges": edges("a>team", "team>c"),
        "output": "c",
    },
    "for_each": {
        "agents": {
            "a": agent("The word {{ item }}. Again, the word", for_each="(word ~ '|pear').split('|')"),
            "c": agent(LAST % "a"),
        },
        "edges": edges("a>c"),
        "output": "c",
    },
    "tools": {
        "agents": {"a": agent(FIRST, tools=["calc"]), "c": agent(LAST % "a")},
        "edges": edges("a>c"),
        "tools": {"calc": {"command": [sys.executable, "tools.py"]}},
        "output": "c",
    },
    "panel": {
        "agents": {
            "x": agent(FIRST),
            "y": agent("Of {{ word }}:"),
            "z": agent("A colour:"),
            "judge": agent("{{ y }} {{ z }} " + LAST % "x"),
        },
        "edges": edges("x>judge", "y>judge", "z>judge"),
        "output": "judge",
    },
    "router": {
        "agents": {
            "a": agent(FIRST, route=[{"when": "a | length > 100000", "to": "b"}, {"to": "c"}]),
            "b": agent(NEXT % "a"),
            "c": agent(NEXT % "a"),
            "last": agent("{{ b }} " + LAST % "c", join="any"),
        },
        "edges": edges("a>b", "a>c", "b>last", "c>last"),
        "output": "last",
    },
}
INNER = {"agents": {"p": agent(FIRST), "q": agent(NEXT % "p")}, "edges": edges("p>q"), "output": "q"}


def build(shape: str, models: str, folder: Path, sources: Mapping[str, Any] = MODELS) -> Graph:
    """The graph of a shape. `models`: all agents on one, `same`; or by turns on two, `mixed`."""
    (folder / "tools.py").write_text(TOOLS)
    (folder / "inner.yaml").write_text(yaml.safe_dump(_recipe("inner", INNER, models, sources)))
    return Graph.from_dict(_recipe(shape, SHAPES[shape], models, sources), folder, allow_code=True, allow_paths=True)


def _recipe(name: str, shape: Mapping[str, Any], models: str, sources: Mapping[str, Any]) -> dict[str, Any]:
    order = ("other", "small") if models == "mixed" else ("small",)
    agents = {
        key: body if "graph" in body else {**body, "model": order[number % len(order)]}
        for number, (key, body) in enumerate(shape["agents"].items())
    }
    return {"version": 1, "name": name, "models": dict(sources), "inputs": {"word": {}}, **shape, "agents": agents}


async def measure(graph: Graph) -> tuple[float, tuple[str, ...], tuple[str, ...]]:
    """The shift, the channels that edges used, and what the run warns of."""
    shift = 0.0
    used: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    for given, other in (WORDS, WORDS[::-1]):
        wiring, hooks = await graph.awire(), RunHooks()
        name, node = answering_node(wiring)
        result = await Run(graph.spec, {"word": given}, graph.awire, None, hooks).execute()
        scorer = cast("Scorer", node.agent)
        mine, theirs = await scorer.score(hooks.turns[name], [given, other])
        shift += mine.logprob - theirs.logprob
        used = tuple(edge.channel_used for edge in result.edges.values())
        warnings = tuple(str(each) for each in result.warnings if each.kind in ("dropped", "empty_edge"))
    return shift, used, warnings


async def cells(shapes: Sequence[str], folder: Path, sources: Mapping[str, Any] = MODELS) -> list[Cell]:
    """Every shape on one model and on two, over every channel."""
    found = []
    for shape in shapes:
        for models in ("same", "mixed"):
            async with build(shape, models, folder, sources) as graph:
                for channel in CHANNELS:
                    cell = Cell(shape, models, channel, *await measure(graph.with_channels(channel)))
                    found.append(cell)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=list(SHAPES), help=", ".join(SHAPES))
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = anyio.run(cells, told.shapes, Path(folder))
    if told.json:
        print(json.dumps([vars(cell) for cell in found]))
        return
    print(f"{'shape':10} {'models':7}" + "".join(f"{channel:>10}" for channel in CHANNELS))
    for shape in told.shapes:
        for models in ("same", "mixed"):
            row = [cell for cell in found if (cell.shape, cell.models) == (shape, models)]
            print(f"{shape:10} {models:7}" + "".join(f"{cell.shift:>+10.2f}" for cell in row))
            for cell in row:
                for warning in cell.warnings:
                    print(f"    {cell.channel}: {warning}")


if __name__ == "__main__":
    main()
