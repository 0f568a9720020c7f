"""What OpenTelemetry's SDK has exported, by name."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, Status

__all__ = ["Finished", "Seen"]


class Finished(NamedTuple):
    """A span that has ended. Times are in nanoseconds."""

    name: str
    context: SpanContext
    parent_id: int | None
    attributes: Mapping[str, Any]
    start_time: int
    end_time: int
    status: Status
    links: Sequence[Link]
    events: Sequence[Event]

    @property
    def id(self) -> int:
        return self.context.span_id

    @property
    def trace_id(self) -> int:
        return self.context.trace_id


def finished(span: ReadableSpan) -> Finished:
    assert span.context is not None
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.attributes is not None
    parent = None if span.parent is None else span.parent.span_id
    return Finished(
        span.name,
        span.context,
        parent,
        span.attributes,
        span.start_time,
        span.end_time,
        span.status,
        span.links,
        span.events,
    )


class Seen(NamedTuple):
    """Traces and metrics of one test."""

    exporter: InMemorySpanExporter
    reader: InMemoryMetricReader

    @property
    def finished(self) -> list[Finished]:
        return [finished(span) for span in self.exporter.get_finished_spans()]

    @property
    def spans(self) -> dict[str, Finished]:
        return {span.name: span for span in self.finished}

    def parent(self, name: str) -> str | None:
        parent = self.spans[name].parent_id
        return None if parent is None else {each.id: each.name for each in self.spans.values()}.get(parent, "?")

    def points(self, metric: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics] if data else []
        return [p for scope in scopes for each in scope.metrics if each.name == metric for p in each.data.data_points]
