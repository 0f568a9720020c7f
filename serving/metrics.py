"""/metrics: counters, histograms and gauges in Prometheus format."""

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from cachegraph.graph.run.result import Result

from .usage import answer_of

__all__ = ["Metrics", "Sample", "exposition", "show_metrics"]

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

HELP = {
    "cachegraph_requests_total": ("counter", "Requests by path and status."),
    "cachegraph_refused_total": ("counter", "Requests that found the queue full."),
    "cachegraph_runs": ("gauge", "Runs at work, and in the queue."),
    "cachegraph_runs_total": ("counter", "Runs that have ended, by status."),
    "cachegraph_run_seconds": ("histogram", "How long runs took."),
    "cachegraph_first_token_seconds": ("histogram", "From the start of a run to the first token of its reply."),
    "cachegraph_tokens_total": ("counter", "Positions by kind: prefilled, cached (found or grafted), generated."),
    "cachegraph_edge_bytes_total": ("counter", "Bytes that edges handed over."),
    "cachegraph_edge_positions_total": ("counter", "Positions that cache edges handed over: grafted, fused."),
    "cachegraph_edge_fallbacks_total": ("counter", "Messages that went another way than the recipe asks."),
    "cachegraph_kv_bytes": ("gauge", "KV memory of a model: budget, used, prefixes (of what is used), peak."),
    "cachegraph_rows": ("gauge", "Requests of a model: running, waiting, swapped."),
    "cachegraph_swaps_total": ("counter", "Requests of a model that were swapped out."),
}

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Sample:
    """One value. `suffix` is set for histograms."""

    name: str
    value: float
    labels: Labels = ()
    suffix: str = ""


@dataclass(eq=False)
class Metrics:
    """Counters and histograms. Safe to use from several threads."""

    _counts: dict[tuple[str, Labels], float] = field(default_factory=lambda: defaultdict(float))
    _times: dict[tuple[str, Labels], list[float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)  # protects both

    def count(self, name: str, value: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        with self._lock:
            self._counts[name, tuple(labels.items())] += value

    def time(self, name: str, seconds: float, **labels: str) -> None:
        """Add to a histogram: its buckets, then sum, then count."""
        key = name, tuple(labels.items())
        with self._lock:
            known = self._times.setdefault(key, [0.0] * (len(SECONDS) + 2))
            for index, bound in enumerate(SECONDS):
                known[index] += seconds <= bound
            known[-2] += seconds
            known[-1] += 1

    def run(self, result: Result, *, edges: bool = True) -> None:
        """Count an ended run, with its edges unless a client named them, which could add labels without end."""
        graph = result.graph
        self.count("cachegraph_runs_total", graph=graph, status=result.status)
        self.time("cachegraph_run_seconds", result.seconds, graph=graph)
        answer = answer_of(result)
        if answer is not None and answer.timing.first_token is not None:
            self.time(
                "cachegraph_first_token_seconds", (answer.started or 0.0) + answer.timing.first_token, graph=graph
            )
        tokens = result.totals.tokens
        for kind, value in (
            ("prefilled", tokens.prefilled),
            ("cached", tokens.reused),
            ("generated", tokens.generated),
        ):
            self.count("cachegraph_tokens_total", value, graph=graph, kind=kind)
        for (sender, receiver), traffic in result.traffic.items() if edges else ():
            edge = {"graph": graph, "from": sender, "to": receiver}
            self.count("cachegraph_edge_bytes_total", traffic.bytes, **edge)
            self.count("cachegraph_edge_fallbacks_total", traffic.fallbacks, **edge)
            for kind, value in (("grafted", traffic.positions_grafted), ("fused", traffic.positions_fused)):
                self.count("cachegraph_edge_positions_total", value, kind=kind, **edge)

    def samples(self) -> Iterator[Sample]:
        """Yield all values."""
        with self._lock:
            counts, times = dict(self._counts), {key: list(value) for key, value in self._times.items()}
        for (name, labels), value in counts.items():
            yield Sample(name, value, labels)
        for (name, labels), known in times.items():
            for bound, value in zip((*map(str, SECONDS), "+Inf"), (*known[:-2], known[-1]), strict=True):
                yield Sample(name, value, (*labels, ("le", bound)), "_bucket")
            yield Sample(name, known[-2], labels, "_sum")
            yield Sample(name, known[-1], labels, "_count")


def exposition(samples: Iterable[Sample]) -> str:
    """Format samples as Prometheus text, version 0.0.4."""
    by_name: dict[str, list[Sample]] = {}
    for sample in samples:
        by_name.setdefault(sample.name, []).append(sample)
    lines = []
    for name, found in by_name.items():
        kind, words = HELP[name]
        lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{sample.suffix}{_labels(sample.labels)} {sample.value:.10g}" for sample in found]
    return "\n".join(lines) + "\n"


def gauges(values: Mapping[str, float], name: str, label: str, **labels: str) -> Iterator[Sample]:
    """Yield the values of one gauge, distinguished by a label."""
    for kind, value in values.items():
        yield Sample(name, value, (*labels.items(), (label, kind)))


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


async def show_metrics(request: Request) -> Response:
    """Show all metrics as text."""
    from .server_state import state_of

    state = state_of(request)
    queue = state.queue
    found = [*state.metrics.samples(), Sample("cachegraph_refused_total", queue.refused)]
    found += gauges({"running": queue.running, "waiting": queue.waiting}, "cachegraph_runs", "state")
    for model, engine in state.graphs.engines().items():
        use, load = engine.kv_use(), engine.load()
        found += gauges(use._asdict(), "cachegraph_kv_bytes", "kind", model=model)
        rows = {"running": load.running, "waiting": load.waiting, "swapped": load.swapped}
        found += gauges(rows, "cachegraph_rows", "state", model=model)
        found.append(Sample("cachegraph_swaps_total", load.swaps, (("model", model),)))
    return Response(exposition(found), media_type="text/plain; version=0.0.4; charset=utf-8")
