"""What OpenTelemetry's SDK has exported, by name."""

from typing import Any, NamedTuple

from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

__all__ = ["Seen"]


class Seen(NamedTuple):
    """Traces and metrics of one test."""

    exporter: InMemorySpanExporter
    reader: InMemoryMetricReader

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def parent(self, name: str) -> str | None:
        parent = self.spans[name].parent
        return (
            None
            if parent is None
            else {each.context.span_id: each.name for each in self.spans.values()}.get(parent.span_id, "?")
        )

    def points(self, metric: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics] if data else []
        return [p for scope in scopes for each in scope.metrics if each.name == metric for p in each.data.data_points]
