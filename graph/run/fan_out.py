"""Fan-out: the list whose items get a turn each, and the join of their replies."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from cachegraph.agents.base import FinishReason, Reply, Timing, Tokens, Traffic, Turn
from cachegraph.agents.prompt.filters import Value
from cachegraph.agents.prompt.render_threads import evaluate_in_thread
from cachegraph.agents.prompt.template import TemplateProblem
from cachegraph.channels.join_payloads import join_payloads
from cachegraph.channels.payload import EdgeReport
from cachegraph.errors import CachegraphError, RunError

from ..plan.wiring import ForEach, Node

__all__ = ["item_error", "join_replies", "list_items"]

Key = TypeVar("Key")
BY_URGENCY = ("error", "content_filter", "refusal", "length", "tool_calls", "stop", "eos")


async def list_items(node: Node, for_each: ForEach, turn: Turn) -> list[Any]:
    """Evaluate the list of a fan-out. Raises RunError if the value is not a list."""
    values = dict(turn.inputs)
    for route in node.entries:
        values[route.edge.sender] = Value("", route.edge.sender)  # default for a skipped sender
    for delivery in turn.deliveries:
        values[delivery.route.edge.sender] = Value(
            delivery.payload.text or "", delivery.payload.turn, delivery.payload.data
        )
    place = f"for_each of agent {node.name!r} ({for_each.items.source})"
    try:
        items = await evaluate_in_thread(for_each.items, values)
    except TemplateProblem as problem:
        raise RunError(f"{place} can't be evaluated: {problem.message}") from problem
    if isinstance(items, list | tuple | range):
        return list(items)
    kind = "a text" if isinstance(items, str) else "nothing" if items is None else "an object"
    remedy = "split it, for example with splitlines()" if isinstance(items, str) else "name a list in it"
    raise RunError(f"{place} gives {kind} where it wants a list; {remedy}")


def item_error(number: int, error: Exception) -> RunError:
    """The error of a turn with the number of its item."""
    what = str(error) if isinstance(error, CachegraphError) else f"{type(error).__name__}: {error}"
    return RunError(f"item {number}: {what}")


def join_replies(agent: str, turn_id: str, replies: Sequence[Reply]) -> Reply:
    """Join the replies in order. Seconds and positions are summed, although the turns may have overlapped."""
    payload = join_payloads(agent, turn_id, [reply.payload for reply in replies])
    parts = [part.payload for part in replies]
    payload.data = [part.text if part.data is None else part.data for part in parts]
    edges = _sums(reply.edges for reply in replies)
    inside = _sums(reply.inside_edges for reply in replies)
    traffic: dict[tuple[str, str], Traffic] = {}
    for reply in replies:
        for pair, part in reply.inside_traffic.items():
            traffic.setdefault(pair, Traffic()).add(part)
    timing = Timing(
        **{field.name: sum(getattr(reply.timing, field.name) or 0.0 for reply in replies) for field in fields(Timing)}
    )
    timing.first_token = next((reply.timing.first_token for reply in replies), None)
    timing.total = 0.0  # set from wall-clock time later
    tokens = Tokens(
        **{field.name: sum(getattr(reply.tokens, field.name) for reply in replies) for field in fields(Tokens)}
    )
    finish = _least_finished([reply.finish_reason for reply in replies])
    return Reply(
        payload,
        timing,
        tokens,
        edges,
        inside_edges=inside,
        inside_traffic=traffic,
        finish_reason=finish,
        turns=sum(reply.turns for reply in replies),
    )


def _least_finished(reasons: Sequence[FinishReason | None]) -> FinishReason | None:
    """Choose the joined reply's finish reason: one truncated reply makes the whole incomplete."""
    return min((reason for reason in reasons if reason), key=BY_URGENCY.index, default=None)


def _sums(replies: Iterable[Mapping[Key, EdgeReport]]) -> dict[Key, EdgeReport]:
    sums: dict[Key, EdgeReport] = {}
    for edges in replies:
        for key, report in edges.items():
            sums[key] = _sum_reports(sums[key], report) if key in sums else replace(report)
    return sums


def _sum_reports(total: EdgeReport, report: EdgeReport) -> EdgeReport:
    return replace(
        report,
        fallback_reason=total.fallback_reason or report.fallback_reason,
        bytes=total.bytes + report.bytes,
        positions_fused=total.positions_fused + report.positions_fused,
        positions_grafted=total.positions_grafted + report.positions_grafted,
        seconds={key: total.seconds.get(key, 0.0) + value for key, value in report.seconds.items()},
    )
