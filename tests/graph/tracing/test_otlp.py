"""A run on a tiny model, as a collector behind OTLP over HTTP receives it."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import _internal as metrics
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from cachegraph import Graph


class Collector(ThreadingHTTPServer):
    """Decodes what is posted to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.spans: list[Any] = []
        self.metrics: dict[str, Any] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def take(self, path: str, body: bytes) -> None:
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        else:
            for each in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                self.metrics |= {metric.name: metric for scope in each.scope_metrics for metric in scope.metrics}


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.take(self.path, self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that this process sends everything to; what was held back is sent when the providers shut down."""
    server = Collector()
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    tracers = TracerProvider()
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{server.address}/v1/traces")))
    meters = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter(f"{server.address}/v1/metrics"))])
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", tracers)
    monkeypatch.setattr(metrics, "_METER_PROVIDER", meters)
    yield server
    tracers.shutdown()
    meters.shutdown()
    server.shutdown()
    server.server_close()


def values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


def test_a_collector_receives_tokens_times_and_channels_of_a_real_run(collector: Collector, tmp_path: Path) -> None:
    from tiny import KINDS, save_model, save_tokenizer

    save_tokenizer(save_model(KINDS["llama"](), tmp_path / "llama"))
    graph = Graph(name="duo", folder=tmp_path, models={"small": "./llama"}).add_input("text").add_input("question")
    graph.add_agent("reader", model="small", prompt="{{ text }}", generate={"max_new_tokens": 0})
    options = {"max_new_tokens": 6, "ignore_eos": True}
    graph.add_agent("writer", model="small", prompt="{{ reader }} {{ question }}", generate=options)
    graph.add_edge("reader", "writer", channel="cache").output = "writer"
    with graph:
        result = graph.run(text="the sky is blue", question="why")
    trace.get_tracer_provider().force_flush()  # type: ignore[attr-defined]
    metrics.get_meter_provider().force_flush()  # type: ignore[attr-defined]

    spans = {span.name: span for span in collector.spans}
    run, writer, edge = (
        spans[name] for name in ("invoke_workflow duo", "invoke_agent writer", "cachegraph.channel reader")
    )
    chat = next(s for s in collector.spans if s.name == "chat ./llama" and s.parent_span_id == writer.span_id)
    assert (writer.parent_span_id, edge.parent_span_id) == (run.span_id, writer.span_id)
    said, tokens = values(chat.attributes), result.agents["writer"].tokens
    assert said["gen_ai.usage.output_tokens"] == tokens.generated == 6
    assert said["gen_ai.usage.input_tokens"] == tokens.prefilled + tokens.reused
    assert said["gen_ai.usage.cache_read.input_tokens"] == tokens.reused > 0
    assert said["gen_ai.response.time_to_first_chunk"] == result.agents["writer"].timing.first_token
    report = result.edges["reader", "writer"]
    crossed = values(edge.attributes)
    assert crossed["cachegraph.channel.used"] == "cache"
    assert crossed["cachegraph.channel.bytes"] == report.bytes > 0
    assert crossed["cachegraph.channel.positions_grafted"] == report.positions_grafted > 0
    assert [link.span_id for link in edge.links] == [spans["invoke_agent reader"].span_id]

    usage = {
        values(p.attributes)["gen_ai.token.type"]: p
        for p in collector.metrics["gen_ai.client.token.usage"].histogram.data_points
    }
    assert usage["output"].sum == 6
    (first,) = collector.metrics["gen_ai.server.time_to_first_token"].histogram.data_points
    assert (first.count, first.explicit_bounds[0]) == (1, 0.001)
    assert collector.metrics["cachegraph.channel.bytes"].sum.data_points[0].as_int == report.bytes
