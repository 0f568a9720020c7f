"""Small graphs of scripted agents, drawn as text, for the tests of control flow."""

from collections.abc import Callable, Iterable
from typing import Any

from cachegraph import Graph
from cachegraph.agents.base import Turn
from cachegraph.agents.scripted import ScriptedAgent, scripted

__all__ = ["Edges", "build", "heard", "says"]

Edges = Iterable[str | dict[str, Any]]


def build(edges: Edges, *agents: ScriptedAgent, output: Any, checked: bool = True, **parts: Any) -> Graph:
    """A graph of edges such as 'a>b', or mappings whose key `edge` is one; agents' options go by name."""
    drawn = [{"edge": edge} if isinstance(edge, str) else dict(edge) for edge in edges]
    pairs = [edge.pop("edge").split(">") for edge in drawn]
    outputs = [output] if isinstance(output, str) else list(output.values() if isinstance(output, dict) else output)
    names = dict.fromkeys([*(name for pair in pairs for name in pair), *outputs])
    specs = {name: {"model": "m", "prompt": name, **parts.pop(name, {})} for name in names}
    inputs: dict[str, dict[str, Any]] = {name: {} for name in parts.pop("inputs", ())}
    return Graph(
        name="test",
        agents=specs,
        inputs=inputs,
        edges=[{"from": pair[0], "to": pair[1], **edge} for pair, edge in zip(pairs, drawn, strict=True)],
        output=output,
        create=scripted(*agents),
        **parts,
    )


def says(name: str, *replies: str, data: Any = None) -> ScriptedAgent:
    """An agent that says these one after the other, the last for ever."""
    left = list(replies)
    return ScriptedAgent(name, lambda turn: left.pop(0) if len(left) > 1 else left[0], data=data)


def heard(name: str) -> tuple[ScriptedAgent, Callable[[], list[dict[str, str]]]]:
    """An agent that tells what it hears, and the list of what it heard in each turn."""
    agent = ScriptedAgent(name, lambda turn: f"{name}({_told(turn)})")
    return agent, lambda: agent.turns


def _told(turn: Turn) -> str:
    return ", ".join(delivery.payload.text or "" for delivery in turn.deliveries)
