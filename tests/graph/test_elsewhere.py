"""The graph's interface to agents whose models are in other processes: they decide their edges and recover caches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio

from cachegraph.agents.scripted import ScriptedAgent
from cachegraph.channels.join_payloads import join_payloads
from cachegraph.channels.payload import Payload, Route
from cachegraph.channels.peer import Peer
from cachegraph.channels.spec import EdgeSpec
from cachegraph.graph.graph import Graph


class Elsewhere(ScriptedAgent):
    """Decides the edges into it, for which the graph would load networks otherwise."""

    asked: tuple[str, str, tuple[str, ...]] | None = None

    def route(self, edge: EdgeSpec, sender: Peer, folder: Path, fusers: Sequence[str]) -> Route:
        self.asked = (edge.sender, sender.agent, tuple(fusers))
        return Route(edge, "cache", needs_text=False, needs_cache=True, carries="reply")


def test_an_agent_in_another_process_decides_the_edges_into_it() -> None:
    receiver = Elsewhere("receiver")

    def create(name: str, *_: Any, **__: Any) -> ScriptedAgent:
        return receiver if name == "receiver" else ScriptedAgent(name)

    graph = Graph(output="receiver", create=create)
    graph.add_agent("sender", model="m", prompt="say")
    graph.add_agent("receiver", model="m", prompt="{{ sender }}").add_edge("sender", "receiver", "cache", fuser="f")
    assert graph.run().edges["sender", "receiver"].channel_used == "cache"
    assert receiver.asked == ("sender", "sender", ())


def test_joined_payloads_recover_the_caches_of_every_part_whose_holder_died() -> None:
    recovered: list[str] = []

    def part(name: str, holder_died: bool) -> Payload:
        async def recover() -> None:
            recovered.append(name)

        return Payload("agent", name, recover=recover if holder_died else None)

    joined = join_payloads("agent", "agent", [part("one", True), part("two", False), part("three", True)])
    assert joined.recover is not None
    anyio.run(joined.recover)
    assert recovered == ["one", "three"]
    assert join_payloads("agent", "agent", [part("alone", False)]).recover is None
