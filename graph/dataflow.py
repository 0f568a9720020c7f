"""Which inputs and replies reach whom over the decided channels, and what reaches nobody. No torch.

A *source* is an input or an agent's reply. An agent hears a source if its context holds it, as words or as positions,
or holds a reply that was made from it. What the output can't hear over these channels, though it would over text, is
lost, and is said before the run.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from cachegraph.agents.expression import compile_expression
from cachegraph.agents.prompt_reads import prompt_reads
from cachegraph.agents.spec import AgentSpec, FunctionSpec, PauseSpec, SubgraphSpec
from cachegraph.agents.template import TemplateProblem, compile_template
from cachegraph.channels.message import Route

from .spec import GraphSpec
from .warnings import RunWarning

__all__ = ["Dataflow", "Source"]

Pair = tuple[str, str]


class Source(NamedTuple):
    """An input, or the reply of an agent."""

    name: str
    is_reply: bool = False


class Cut(NamedTuple):
    """Why a source does not reach an output: its way in words, and the edge over which it does not go."""

    why: str
    edge: Pair | None


@dataclass(frozen=True)
class Dataflow:
    """What reaches whom in one recipe. `routes` are the decided edges by (sender, receiver)."""

    spec: GraphSpec
    routes: Mapping[Pair, Route]

    @cached_property
    def heard(self) -> dict[str, frozenset[Source]]:
        """By agent, the sources that its context holds."""
        return self._spread(self._carried, self.reading)

    @cached_property
    def heard_over_text(self) -> dict[str, frozenset[Source]]:
        """The same, were every edge a text edge."""
        return self._spread(self._words, frozenset(self.spec.agents))

    @cached_property
    def writing(self) -> frozenset[str]:
        """Agents that produce a reply in a run."""
        wanted = {*self.spec.outputs.values(), *self._words_wanted}
        wanted |= {sender for (sender, _), route in self.routes.items() if route.needs_text}
        return frozenset(name for name in wanted if not self._reads_only(name)) | self._acting

    @cached_property
    def reading(self) -> frozenset[str]:
        """Agents whose prompt is read in a run: those that write, and those whose cache or prompt is handed over."""
        sending = {pair[0] for pair, route in self.routes.items() if route.needs_text or route.needs_cache}
        return self.writing | frozenset(sending) | frozenset(self.spec.outputs.values())

    @cached_property
    def reached(self) -> frozenset[Source]:
        """Sources that an output hears, or that decide where the run goes, or that an agent acts upon."""
        return self._reached(self.heard)

    def warnings(self) -> list[RunWarning]:
        """What reaches nobody."""
        return [*self._unnamed_inputs(), *self._untaken_turns(), *self._lost()]

    def cut_output(self) -> str | None:
        """Why no output hears any input, though over text one would; None where one does."""
        outputs = set(self.spec.outputs.values())
        over_text = {s for name in outputs for s in self.heard_over_text[name] if not s.is_reply}
        heard = {s for name in outputs for s in self.heard[name] if not s.is_reply}
        if heard or not over_text:
            return None
        source = next(each for each in map(Source, self.spec.inputs) if each in over_text)
        cut = self._cut(source)
        remedy = f"; give the edge {cut.edge[0]!r} -> {cut.edge[1]!r} another channel" if cut.edge else ""
        return f"the output hears none of the inputs: {cut.why}{remedy}"

    # spreading

    def _spread(
        self, carried: "Callable[[Route, frozenset[Source]], frozenset[Source]]", reading: frozenset[str]
    ) -> dict[str, frozenset[Source]]:
        heard = {
            name: self._named.get(name, frozenset()) if name in reading else frozenset() for name in self.spec.agents
        }
        receivers: dict[str, list[Route]] = {}
        for (sender, _), route in self.routes.items():
            receivers.setdefault(sender, []).append(route)
        todo = list(self.spec.agents)
        while todo:
            sender = todo.pop()
            for route in receivers.get(sender, ()):
                name = route.edge.receiver
                gained = carried(route, heard[sender]) - heard[name] if name in reading else frozenset()
                if gained:
                    heard[name] |= gained
                    todo.append(name)
        return heard

    def _words(self, route: Route, heard: frozenset[Source]) -> frozenset[Source]:
        sender = route.edge.sender
        return heard if self._reads_only(sender) else heard | {Source(sender, is_reply=True)}

    def _carried(self, route: Route, heard: frozenset[Source]) -> frozenset[Source]:
        if _fuses(route):
            return frozenset()
        if route.used == "cache" and route.carries == "prompt":
            return heard
        return self._words(route, heard) if route.edge.sender in self.reading else frozenset()

    @cached_property
    def _named(self) -> dict[str, frozenset[Source]]:
        """By agent, the inputs that its templates name."""
        inputs, found = self.spec.inputs.keys(), {}
        for name, entry in self.spec.agents.items():
            names = set(inputs) if isinstance(entry, FunctionSpec) else {*_template_names(self.spec, name)}
            if entry.for_each is not None:
                names |= _expression_names(entry.for_each)
            found[name] = frozenset(Source(each) for each in names if each in inputs)
        return found

    @cached_property
    def _words_wanted(self) -> frozenset[str]:
        """Agents whose words a condition, a route or a list reads."""
        return frozenset(name for name in self._control_names if name in self.spec.agents)

    @cached_property
    def _control_names(self) -> frozenset[str]:
        sources = [each for edge in self.spec.edges for each in (edge.when, edge.until)]
        for entry in self.spec.agents.values():
            sources += [entry.for_each, *(case.when for case in entry.route)]
        return frozenset(name for source in sources if source is not None for name in _expression_names(source))

    @cached_property
    def _acting(self) -> frozenset[str]:
        """Agents that do something beside replying: functions, people, graphs."""
        return frozenset(
            name
            for name, entry in self.spec.agents.items()
            if isinstance(entry, FunctionSpec | PauseSpec | SubgraphSpec)
        )

    def _reached(self, heard: Mapping[str, frozenset[Source]]) -> frozenset[Source]:
        ends = {*self.spec.outputs.values(), *self._acting, *self._words_wanted}
        ends |= {name for name in self.writing if getattr(self.spec.agents[name], "tools", ())}
        control = {Source(name) for name in self._control_names if name in self.spec.inputs}
        control |= {Source(name, is_reply=True) for name in (*self._words_wanted, *self.spec.outputs.values())}
        return frozenset().union(control, *(heard[name] for name in ends))

    def _reads_only(self, name: str) -> bool:
        entry = self.spec.agents[name]
        return isinstance(entry, AgentSpec) and entry.generate.max_new_tokens == 0

    # what is lost

    def _unnamed_inputs(self) -> Iterator[RunWarning]:
        named = {source.name for sources in self._named.values() for source in sources} | self._control_names
        for name in self.spec.inputs:
            if name not in named:
                yield RunWarning("unused_input", f"no prompt names the input {name!r}, so nobody reads it", (name,))

    def _untaken_turns(self) -> Iterator[RunWarning]:
        """Senders that would write over text, take no turn over their fuser, and whose author has not said so."""
        for (sender, receiver), route in self.routes.items():
            edge = route.edge
            if not _fuses(route) or edge.channel != "cache" or edge.carries is not None:
                continue
            if sender not in self.writing and not self._reads_only(sender):
                yield RunWarning(
                    "dropped",
                    f"over this channel nobody reads what {sender!r} would write: {self._why_no_turn(sender)}; write "
                    "`carries: prompt` on the edge if its reading is enough",
                    (sender,),
                    (sender, receiver),
                )

    def _lost(self) -> Iterator[RunWarning]:
        """Sources that an output would hear over text and does not hear over these channels."""
        over_text = self._reached(self.heard_over_text)
        order = [*map(Source, self.spec.inputs), *(Source(name, True) for name in self.spec.agents)]
        for source in order:
            if source not in over_text or source in self.reached:
                continue
            if source.is_reply and source.name not in self.writing:
                continue  # nobody waits for it: the author's own choice, or said of the turn that isn't taken
            cut = self._cut(source)
            what = f"what {source.name!r} wrote" if source.is_reply else f"the input {source.name!r}"
            message = f"over this channel the output never hears {what}: {cut.why}"
            yield RunWarning("dropped", message, (source.name,), cut.edge)

    def _cut(self, source: Source) -> Cut:
        """Where a source stops on its way to the outputs."""
        came: dict[str, str | None] = {}
        if source.is_reply:
            todo, came[source.name] = [source.name], None
        else:
            todo = [name for name, named in self._named.items() if source in named]
            came = dict.fromkeys(todo)
        stop: Route | None = None
        while todo:
            sender = todo.pop(0)
            for (start, receiver), route in self.routes.items():
                if start != sender or receiver in came:
                    continue
                if _fuses(route) or receiver not in self.reading:
                    stop = stop or route
                    continue
                came[receiver] = sender
                todo.append(receiver)
        way: list[str] = []
        name: str | None = stop.edge.sender if stop else source.name
        while name is not None:
            way.append(repr(name))
            name = came.get(name)
        shown = " -> ".join([*([] if source.is_reply else [repr(source.name)]), *reversed(way)])
        if stop is None:
            return Cut(f"{shown} goes no further", None)
        receiver = stop.edge.receiver
        if _fuses(stop):
            fuser = f"the fuser {stop.fuser!r}" if stop.fuser else "its fuser"
            why, to_blame = f"{fuser} only corrects what {receiver!r} reads itself", stop
        else:
            why, to_blame = self._why_no_turn(receiver), self._fusing(receiver) or stop
        return Cut(f"{shown} -x {receiver!r}, since {why}", (to_blame.edge.sender, to_blame.edge.receiver))

    def _why_no_turn(self, name: str) -> str:
        """Why an agent that is upstream of somebody does not even read its prompt."""
        fusing = self._fusing(name)
        because = f", because its fuser reads the prompt of {fusing.edge.receiver!r}" if fusing is not None else ""
        return f"{name!r} takes no turn{because}"

    def _fusing(self, sender: str) -> Route | None:
        return next((each for pair, each in self.routes.items() if pair[0] == sender and _fuses(each)), None)


def _fuses(route: Route) -> bool:
    """Whether the edge only corrects what the receiver has read itself."""
    return route.used == "cache" and route.carries is None


def _template_names(spec: GraphSpec, name: str) -> Iterable[str]:
    match spec.agents[name]:
        case AgentSpec() as entry:
            return prompt_reads(name, entry, ()).names
        case PauseSpec(pause=source):
            return compile_template(source, None).names
        case SubgraphSpec(inputs=inputs):
            return [each for source in inputs.values() for each in _value_names(source)]
        case _:
            return ()


def _value_names(source: str) -> frozenset[str]:
    """A sub-graph's input is one expression in braces, or a template."""
    try:
        return compile_expression(source, None).names if source.strip().startswith("{{") else _names(source)
    except TemplateProblem:
        return _names(source)


def _names(source: str) -> frozenset[str]:
    return compile_template(source, None).names


def _expression_names(source: str) -> frozenset[str]:
    return compile_expression(source, None).names
