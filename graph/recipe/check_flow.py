"""Checks of conditions, routes, joins, loops and lists."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

from cachegraph.agents.kinds import KINDS
from cachegraph.agents.prompt.expression import Expression, compile_expression
from cachegraph.agents.prompt.template import TemplateProblem
from cachegraph.common.did_you_mean import near_or_known

from ..topology.cycles import find_cycles, unread
from ..topology.loops import find_loops
from ..topology.reachability import PossibleEdge, reach_surely, surely_run
from .raw_spec import Finding, RawEdge, RawSpec
from .yaml_positions import Path

__all__ = ["check_flow", "check_shape", "item_of", "structured"]


def structured(draft: RawSpec) -> frozenset[str]:
    """Inputs of a type other than text; templates read their keys as attributes."""
    return frozenset(name for name, entry in draft.inputs.items() if isinstance(entry, dict) and _is_structured(entry))


def _is_structured(entry: dict[str, Any]) -> bool:
    return entry.get("type", "any" if "schema" in entry else "string") in ("list", "object", "any")


def item_of(body: dict[str, Any]) -> str:
    """The variable name of an agent's list items."""
    return str(body.get("as", "item"))


def check_flow(draft: RawSpec) -> Iterator[Finding]:
    """Find conditions and lists that can't be evaluated, and invalid routes and joins."""
    yield from _Flow(draft).findings()


def check_shape(draft: RawSpec) -> Iterator[Finding]:
    """Find unbounded cycles, agents that nobody reads, and outputs that may never run."""
    index = {(edge.sender, edge.receiver): edge.index for edge in reversed(draft.edges)}
    forward = [(edge.sender, edge.receiver) for edge in draft.edges if not edge.leads_back]
    for cycle in find_cycles(draft.agents, [pair for pair in forward if pair[0] != pair[1]]):
        shown = " -> ".join(map(repr, cycle if len(cycle) <= 12 else [*cycle[:10], "...", cycle[-1]]))
        message = f"agents wait for each other in a cycle without a bound: {shown}"
        hint = "remove one of its edges, or give the one that leads back 'max_rounds'"
        yield Finding(message, ("edges", index[cycle[-2], cycle[-1]]), hint)
    outputs = [name for name, _ in draft.outputs if name in draft.agents]
    if not outputs:
        return
    known = ", ".join(map(repr, outputs))
    for name in unread(draft.agents, [pair for pair in index if pair[0] != pair[1]], outputs):
        message = f"agent {name!r} is never read: no way leads from it to the output {known}"
        yield Finding(message, ("agents", name), "add an edge, or remove the agent", at_key=True)


class _Flow:
    def __init__(self, draft: RawSpec):
        self.draft = draft
        self.objects = structured(draft)
        self.routes = {name: [to for to, _ in _targets(body)] for name, body in draft.agents.items()}
        self.ways = [
            PossibleEdge(edge.sender, edge.receiver, edge.when is not None or edge.receiver in self.routes[edge.sender])
            for edge in draft.edges
            if not edge.leads_back
        ]
        self.senders: dict[str, list[RawEdge]] = {}
        for edge in draft.edges:
            self.senders.setdefault(edge.receiver, []).append(edge)

    @cached_property
    def certain(self) -> dict[str, frozenset[str]]:
        early = [name for name, body in self.draft.agents.items() if body.get("join", "all") != "all"]
        return surely_run(self.draft.agents, self.ways, early)

    def findings(self) -> Iterator[Finding]:
        for edge in self.draft.edges:
            yield from self._edge(edge)
        for name, body in self.draft.agents.items():
            yield from self._route(name, body)
            yield from self._join(name, body)
            yield from self._for_each(name, body)
        yield from self._loops()
        outputs = [name for name, _ in self.draft.outputs if name in self.draft.agents]
        conditional = any(way.conditional for way in self.ways)
        if outputs and conditional and not reach_surely(self.draft.agents, self.ways, self.routes, outputs):
            what = f"the output {outputs[0]!r}" if len(outputs) == 1 else "every output"
            message = f"{what} may be skipped: there is no way to it that is always taken"
            hint = "add an edge without a condition, or name an output for each way it may go"
            yield Finding(message, ("output",), hint)

    # edges

    def _edge(self, edge: RawEdge) -> Iterator[Finding]:
        path: Path = ("edges", edge.index)
        name = f"edge {edge.sender!r} -> {edge.receiver!r}"
        for key, source in (("when", edge.when), ("until", edge.until)):
            if source is not None:
                yield from self._condition(source, (*path, key), f"'{key}' of {name}", edge.sender)
        if edge.until is not None and not edge.leads_back:
            yield Finding(f"'until' of {name} has no 'max_rounds' beside it", (*path, "until"), "say how often at most")
        if edge.when is not None and edge.receiver in self.routes[edge.sender]:
            message = f"{name} has a condition, and agent {edge.sender!r} also routes to {edge.receiver!r}"
            yield Finding(message, (*path, "when"), "write the condition into the route")

    def _loops(self) -> Iterator[Finding]:
        back = [edge for edge in self.draft.edges if edge.leads_back]
        loops, closing_none = find_loops([way[:2] for way in self.ways], [(e.sender, e.receiver) for e in back])
        for edge in back:
            if (edge.sender, edge.receiver) in closing_none:
                message = f"edge {edge.sender!r} -> {edge.receiver!r} has 'max_rounds' and closes no cycle"
                hint = "leave it out; in each cycle one edge leads back, and the others have none"
                yield Finding(message, ("edges", edge.index, "max_rounds"), hint)
        looping = frozenset().union(*(loop.body for loop in loops)) if loops else frozenset()
        for edge in self.draft.edges:
            if edge.rounds == "all" and edge.sender not in looping:
                message = f"agent {edge.sender!r} is in no loop, so it has one round only"
                yield Finding(message, ("edges", edge.index, "rounds"), "leave it out")

    # agents

    def _route(self, name: str, body: dict[str, Any]) -> Iterator[Finding]:
        targets = _targets(body)
        receivers = [edge.receiver for edge in self.draft.edges if edge.sender == name] if targets else []
        for number, (to, when) in enumerate(targets):
            path: Path = ("agents", name, "route", number)
            if to not in receivers and self.draft.whole:
                message = f"agent {name!r} routes to {to!r}, but no edge leads there"
                hint = f"add '- {{from: {name}, to: {to}}}' to 'edges'"
                yield Finding(message, (*path, "to"), hint if to in self.draft.agents else near_or_known(to, receivers))
            if when is None and number < len(targets) - 1:
                message = f"a case of the route of agent {name!r} without 'when' is its default, and comes last"
                yield Finding(message, path, "move it to the end")
            if when is not None and number == len(targets) - 1:
                message = f"the route of agent {name!r} has no default, so it may be that nobody receives"
                yield Finding(message, path, "end it with '- {to: ...}', without 'when'")
            if when is not None:
                yield from self._condition(when, (*path, "when"), f"the route of agent {name!r}", name)

    def _join(self, name: str, body: dict[str, Any]) -> Iterator[Finding]:
        join, edges = body.get("join"), len(self.senders.get(name, ()))
        if isinstance(join, int) and join > edges and self.draft.whole:
            message = f"agent {name!r} wants to join {join} messages, and {edges} edges lead to it"
            yield Finding(message, ("agents", name, "join"), f"write {edges} or less" if edges else "leave it out")

    def _for_each(self, name: str, body: dict[str, Any]) -> Iterator[Finding]:
        source = body.get("for_each")
        if source is None:
            for key in ("as", "max_concurrent"):
                if key in body:
                    message = f"{key!r} of agent {name!r} means nothing without 'for_each'"
                    yield Finding(message, ("agents", name, key), "leave it out", at_key=True)
            return
        path: Path = ("agents", name, "for_each")
        if any(kind.pauses and key in body for key, kind in KINDS.items()):
            yield Finding(f"agent {name!r} asks a person, and asks once", path, "leave 'for_each' out", at_key=True)
        item = item_of(body)
        if item in self.draft.inputs or item in self.draft.agents:
            message = f"the items of agent {name!r} are called {item!r}, as is an {self._what(item)}"
            yield Finding(message, ("agents", name, "as" if "as" in body else "for_each"), "choose another with 'as'")
        if not isinstance(source, str):
            return
        senders = [edge.sender for edge in self.senders.get(name, ())]
        expression = _compiled(source, self.objects)
        if isinstance(expression, TemplateProblem):
            yield _finding(f"for_each of agent {name!r}", expression, path)
            return
        yield from self._names(expression, path, f"for_each of agent {name!r}", {*self.draft.inputs, *senders}, name)
        yield from self._over_text(expression, path, name)

    def _over_text(self, expression: Expression, path: Path, name: str) -> Iterator[Finding]:
        bare = expression.source.strip().removeprefix("{{").removesuffix("}}").strip()
        if bare in self.draft.agents:
            hint = f"'{bare}.data' is a list where that agent gives one; or split it: '{bare}.splitlines()'"
        elif bare in self.draft.inputs and bare not in self.objects:
            hint = f"give the input 'type: list', or split it: '{bare}.splitlines()'"
        else:
            return
        message = f"for_each of agent {name!r} goes over {bare!r}, which is not a list"
        yield Finding(message, path, hint, spot=expression.place(bare))

    # expressions

    def _condition(self, source: str, path: Path, what: str, sender: str) -> Iterator[Finding]:
        expression = _compiled(source, self.objects)
        if isinstance(expression, TemplateProblem):
            yield _finding(what, expression, path)
            return
        agents = self.certain.get(sender, frozenset()) if self.draft.whole else frozenset(self.draft.agents)
        yield from self._names(expression, path, what, {*self.draft.inputs, *agents}, sender)

    def _names(
        self, expression: Expression, path: Path, what: str, known: Iterable[str], agent: str
    ) -> Iterator[Finding]:
        known = set(known)
        for name in sorted(expression.names - known):
            if name in self.draft.agents:
                message = f"{what} names agent {name!r}, which may not have run by then"
                near = ", ".join(repr(other) for other in [*self.draft.agents] if other in known)
                hint = f"there for sure are {near}" if near else "only inputs are there"
            else:
                message = f"{what} names {name!r}, which is neither an input nor an agent"
                hint = near_or_known(name, sorted(known))
            yield Finding(message, path, hint, spot=expression.place(name))

    def _what(self, name: str) -> str:
        return "input" if name in self.draft.inputs else "agent"


def _targets(body: dict[str, Any]) -> list[tuple[str, str | None]]:
    """The well-formed cases of a route: receiver and condition."""
    cases = body.get("route", ())
    found = []
    for case in cases if isinstance(cases, tuple | list) else ():
        if isinstance(case, dict) and isinstance(case.get("to"), str):
            when = case.get("when")
            found.append((case["to"], when if isinstance(when, str) else None))
    return found


def _compiled(source: str, objects: frozenset[str]) -> Expression | TemplateProblem:
    try:
        return compile_expression(source, objects)
    except TemplateProblem as problem:
        return problem


def _finding(what: str, problem: TemplateProblem, path: Path) -> Finding:
    return Finding(f"{what}: {problem.message}", path, problem.hint, spot=(problem.line, problem.column))
