"""Evaluate conditions and routes: which edges deliver a reply."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from cachegraph.agents.base import Delivery
from cachegraph.agents.prompt.expression import Expression
from cachegraph.agents.prompt.render_threads import evaluate_in_thread
from cachegraph.agents.prompt.template import TemplateProblem
from cachegraph.channels.join_payloads import join_payloads
from cachegraph.channels.payload import Payload, Route
from cachegraph.errors import RunError

from ..plan.wiring import Exit, Node

__all__ = ["EdgeConditions"]

Values = Callable[[Collection[str]], Mapping[str, Any]]


class EdgeConditions:
    """Decides for each edge out of an agent whether it delivers the payload; stores payloads of earlier rounds."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], Payload] = {}  # rounds so far, by receiver and inbox slot

    async def out_of(
        self, node: Node, payload: Payload, values: Values, goes_round: Callable[[Exit], bool]
    ) -> list[tuple[Exit, Delivery | None]]:
        """Return each edge's delivery, or None if it is skipped. Raises RunError if a condition can't be evaluated."""
        chosen = await self._chosen(node, values)
        outgoing: list[tuple[Exit, Delivery | None]] = []
        for exit in node.exits:
            if exit.plain:
                outgoing.append((exit, Delivery(exit.route, _as_needed(payload, exit.route))))
            elif await self._goes(exit, chosen, values) and (exit.leads_back is None or goes_round(exit)):
                outgoing.append((exit, Delivery(exit.route, self._to_hand_over(exit, payload))))
            else:
                outgoing.append((exit, None))
        return outgoing

    async def _chosen(self, node: Node, values: Values) -> int | None:
        for case in node.cases:
            place = f"a condition of the route of agent {node.name!r}"
            if case.when is None or await _holds(case.when, values, place):
                return case.receiver
        return None

    async def _goes(self, exit: Exit, chosen: int | None, values: Values) -> bool:
        edge = exit.route.edge
        place = f"the edge {edge.sender!r} -> {edge.receiver!r}"
        if exit.chosen and exit.receiver != chosen:
            return False
        if exit.when is not None and not await _holds(exit.when, values, f"the condition of {place}"):
            return False
        return exit.until is None or not await _holds(exit.until, values, f"'until' of {place}")

    def _to_hand_over(self, exit: Exit, payload: Payload) -> Payload:
        payload = _as_needed(payload, exit.route)
        if not exit.keeps_all:
            return payload
        place = (exit.receiver, exit.place)
        if (before := self._kept.get(place)) is not None:
            payload = join_payloads(payload.sender, payload.turn, [before, payload])
        self._kept[place] = payload
        return payload


async def _holds(condition: Expression, values: Values, place: str) -> bool:
    try:
        return bool(await evaluate_in_thread(condition, values(condition.names)))
    except TemplateProblem as problem:
        raise RunError(f"{place} ({condition.source}) can't be evaluated: {problem.message}") from problem


def _as_needed(payload: Payload, route: Route) -> Payload:
    """Drop the payload's cache if the route only uses its text, so that text readers keep no cache alive."""
    if (payload.cache is None and payload.rebuild is None) or route.needs_cache or payload.text is None:
        return payload
    return Payload(payload.sender, payload.text, data=payload.data, turn=payload.turn)
