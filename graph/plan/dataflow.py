"""Which inputs and replies reach which agent over the decided channels, and which get lost. No torch.

A *source* is an input or an agent's reply. An agent hears a source if its context holds the source, as text or as
cache positions, or a reply made from it. A source is lost if an output would hear it when every edge delivered all
that its author intended, but does not hear it over these channels. Lost sources are reported before the run.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from cachegraph.agents.entry import Reads
from cachegraph.channels.payload import Route

from ..recipe.spec import GraphSpec
from ..run_warning import RunWarning
from ..topology.order import senders_first
from .agent_reads import agents_read, steering_names, whose_fields_are_read

__all__ = ["Dataflow", "Source"]

Pair = tuple[str, str]


class Source(NamedTuple):
    """An input, or the reply of an agent."""

    name: str
    is_reply: bool = False


class Cut(NamedTuple):
    """Why a source does not reach an output: its path in words, and the edge that stops it."""

    why: str
    edge: Pair | None


@dataclass(frozen=True)
class Dataflow:
    """Which sources reach which agents in one recipe. `routes` are the decided edges by (sender, receiver)."""

    spec: GraphSpec
    routes: Mapping[Pair, Route]

    @cached_property
    def heard(self) -> dict[str, frozenset[Source]]:
        """Sources that each agent's context holds."""
        carrying = [pair for pair, route in self.routes.items() if self._carries(route)]
        return self._spread(carrying, self.reading)

    @cached_property
    def heard_over_text(self) -> dict[str, frozenset[Source]]:
        """The same, if every edge were a text edge."""
        return self._spread([pair for pair in self.routes if self._is_read(pair)], frozenset(self.spec.agents))

    @cached_property
    def meant(self) -> dict[str, frozenset[Source]]:
        """The same, if every receiver also read all that its edges deliver."""
        return self._spread(list(self.routes), frozenset(self.spec.agents), withheld=True)

    @cached_property
    def writing(self) -> frozenset[str]:
        """Agents that produce a reply in a run."""
        wanted = {*self.spec.outputs.values(), *self._steering, *(sender for sender, _ in self._by_field)}
        wanted |= {sender for (sender, _), route in self.routes.items() if route.needs_text}
        return frozenset(name for name in wanted if not self._reads_only(name)) | self._acting

    @cached_property
    def reading(self) -> frozenset[str]:
        """Agents that prefill in a run: those that write, and those that send their cache or prompt."""
        sending = {pair[0] for pair, route in self.routes.items() if route.needs_text or route.needs_cache}
        return self.writing | frozenset(sending) | frozenset(self.spec.outputs.values())

    def warnings(self) -> list[RunWarning]:
        """Return a warning for each lost source."""
        return [*self._unnamed_inputs(), *self._untaken_turns(), *self._lost()]

    def cut_output(self) -> str | None:
        """Explain why no output hears any input, although one would over text; None if one does."""
        outputs = list(dict.fromkeys(self.spec.outputs.values()))
        over_text = {(s, name) for name in outputs for s in self.heard_over_text[name] if not s.is_reply}
        heard = {s for name in outputs for s in self.heard[name] if not s.is_reply}
        if heard or not over_text:
            return None
        pairs = ((source, name) for source in map(Source, self.spec.inputs) for name in outputs)
        cut = self._cut(*next(pair for pair in pairs if pair in over_text))
        remedy = f"; give the edge {cut.edge[0]!r} -> {cut.edge[1]!r} another channel" if cut.edge else ""
        return f"the output gets none of the inputs: {cut.why}{remedy}"

    # propagation

    def _spread(
        self, carrying: list[Pair], reading: frozenset[str], *, withheld: bool = False
    ) -> dict[str, frozenset[Source]]:
        """Compute what agents hear if these edges deliver payloads and these agents prefill.

        `withheld`: as if agents that only prefill also passed on their system messages.
        """
        heard: dict[str, frozenset[Source]] = dict.fromkeys(self.spec.agents, frozenset())
        for name, reads in self._reads.items():
            if name in reading:
                names = reads.heard | reads.withheld if withheld else reads.heard
                heard[name] = frozenset(Source(input_name) for input_name in names if input_name in self.spec.inputs)
        receivers: dict[str, list[str]] = {}
        for sender, receiver in carrying:
            receivers.setdefault(sender, []).append(receiver)
        order = senders_first(self.spec.agents, receivers)  # so that one pass suffices without cycles
        changed = set(order)
        while changed:
            for sender in order:
                if sender not in changed:
                    continue
                changed.discard(sender)
                for name in receivers.get(sender, ()):
                    handed_over = self._handed_over((sender, name), heard[sender])
                    if name in reading and not handed_over <= heard[name]:
                        heard[name] |= handed_over
                        changed.add(name)
        return heard

    def _handed_over(self, pair: Pair, heard: frozenset[Source]) -> frozenset[Source]:
        """What the sender heard, and its reply, unless the author chose that it writes none for this edge."""
        without_reply = self._reads_only(pair[0]) or (self._chose_the_prompt(pair) and pair not in self._by_field)
        return heard if without_reply else heard | {Source(pair[0], is_reply=True)}

    def _carries(self, route: Route) -> bool:
        pair = route.edge.sender, route.edge.receiver
        if not self._is_read(pair):
            return False
        return pair in self._by_field or (not _fuses(route) and pair[0] in self.reading)

    def _is_read(self, pair: Pair) -> bool:
        """Whether the receiver reads this edge's payload as text."""
        return pair[0] in self._reads[pair[1]].heard

    def _chose_the_prompt(self, pair: Pair) -> bool:
        route = self.routes[pair]
        return route.used == "cache" and "prompt" in (route.carries, getattr(route.edge, "carries", None))

    @cached_property
    def _reads(self) -> dict[str, Reads]:
        return agents_read(self.spec)

    @cached_property
    def _by_field(self) -> frozenset[Pair]:
        """Edges whose receiver reads fields of the reply."""
        return frozenset(whose_fields_are_read(self.spec))

    @cached_property
    def _steering(self) -> frozenset[str]:
        """Agents whose replies a condition, a route or a list reads."""
        return steering_names(self.spec) & self.spec.agents.keys()

    @cached_property
    def _acting(self) -> frozenset[str]:
        """Agents that may have side effects: functions, people, graphs."""
        return frozenset(name for name, entry in self.spec.agents.items() if entry.acts)

    @property
    def _ends(self) -> list[str]:
        """The outputs, then other agents whose turns may have side effects."""
        using = (name for name, entry in self.spec.agents.items() if name in self.writing and entry.uses_tools)
        others = (name for name in self.spec.agents if name in self._acting | self._steering)
        return list(dict.fromkeys([*self.spec.outputs.values(), *others, *using]))

    def _reads_only(self, name: str) -> bool:
        return self.spec.agents[name].reads_only

    # losses

    def _unnamed_inputs(self) -> Iterator[RunWarning]:
        named = frozenset[str]().union(steering_names(self.spec), *(reads.named for reads in self._reads.values()))
        for name in self.spec.inputs:
            if name not in named:
                yield RunWarning("unused_input", f"no prompt names the input {name!r}, so nobody reads it", (name,))

    def _untaken_turns(self) -> Iterator[RunWarning]:
        """Warn of senders that would write over text but take no turn over their fuser, unless the author chose so."""
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
        """Warn of sources that an output, or an agent with side effects, should hear but does not."""
        order = [*map(Source, self.spec.inputs), *(Source(name, True) for name in self.spec.agents)]
        reported: set[Source] = set()
        for end in self._ends:
            if end not in self.reading:
                continue
            missing = self.meant[end] - self.heard[end] - reported
            for source in order if missing else ():
                if source not in missing or (source.is_reply and source.name not in self.writing):
                    continue  # the author's choice, or already reported for the untaken turn
                reported.add(source)
                cut = self._cut(source, end)
                what = f"what {source.name!r} wrote" if source.is_reply else f"the input {source.name!r}"
                if source == (end, True):
                    what = "its own reply of the round before"
                who = "the output" if [end] == [*self.spec.outputs.values()] else repr(end)
                over = "over this channel " if source in self.heard_over_text[end] else ""
                message = f"{over}{who} never gets {what}: {cut.why}"
                yield RunWarning("dropped", message, (source.name,), cut.edge)

    def _cut(self, source: Source, end: str) -> Cut:
        """Find the edge that stops a source on its path to an agent."""
        came: dict[str, str | None] = {}
        if source.is_reply:
            todo, came[source.name] = [source.name], None
        else:
            todo = [name for name, reads in self._reads.items() if source.name in reads.heard]
            came = dict.fromkeys(todo)
            if not todo:
                reader = next(name for name, reads in self._reads.items() if source.name in reads.withheld)
                return Cut(f"{source.name!r} -x {reader!r}, since {self._why_withheld(reader)}", None)
        towards = self._upstream_of(end)
        stop: Route | None = None
        while todo:
            sender = todo.pop(0)
            for (start, receiver), route in self.routes.items():
                if start != sender or receiver in came or receiver not in towards:
                    continue
                if not self._carries(route) or receiver not in self.reading:
                    stop = stop or route
                elif source != (sender, True) or not self._chose_the_prompt((sender, receiver)):
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
        why, edge = self._why_stopped(stop)
        return Cut(f"{shown} -x {stop.edge.receiver!r}, since {why}", edge)

    def _upstream_of(self, end: str) -> set[str]:
        """This agent and all agents from which a path leads to it."""
        found, todo = {end}, [end]
        senders: dict[str, list[str]] = {}
        for sender, receiver in self.routes:
            senders.setdefault(receiver, []).append(sender)
        while todo:
            new = set(senders.get(todo.pop(), ())) - found
            found |= new
            todo += new
        return found

    def _why_stopped(self, stop: Route) -> tuple[str, Pair]:
        """Explain why an edge passes nothing on, and name the edge responsible."""
        sender, receiver = pair = (stop.edge.sender, stop.edge.receiver)
        if not self._is_read(pair):
            if sender in self._reads[receiver].withheld:
                return self._why_withheld(receiver), pair
            return self.spec.agents[receiver].why_unread(receiver, sender), pair
        if _fuses(stop):
            fuser = f"the fuser {stop.fuser!r}" if stop.fuser else "its fuser"
            return f"{fuser} only corrects what {receiver!r} reads itself", pair
        fusing = self._fusing(receiver)
        to_blame = pair if fusing is None else (fusing.edge.sender, fusing.edge.receiver)
        return self._why_no_turn(receiver), to_blame

    def _why_withheld(self, reader: str) -> str:
        return f"{reader!r} only reads, and hands over its prompt without its system message"

    def _why_no_turn(self, name: str) -> str:
        """Explain why an upstream agent does not even prefill its prompt."""
        fusing = self._fusing(name)
        because = f", because its fuser reads the prompt of {fusing.edge.receiver!r}" if fusing is not None else ""
        return f"{name!r} takes no turn{because}"

    def _fusing(self, sender: str) -> Route | None:
        return next((route for pair, route in self.routes.items() if pair[0] == sender and _fuses(route)), None)


def _fuses(route: Route) -> bool:
    """Whether the edge fuses into the receiver's own prompt."""
    return route.used == "cache" and route.carries is None
