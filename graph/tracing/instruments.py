"""The metrics of runs, created once per provider."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from opentelemetry.metrics import Counter, Histogram, MeterProvider

from cachegraph import __version__
from cachegraph.channels.payload import EdgeReport

from ..run.result import AgentResult
from . import names
from .model_attributes import Model

__all__ = ["Instruments", "instruments"]

# Buckets that the conventions specify
TOKENS = tuple(4**power for power in range(14))
DURATION = tuple(0.01 * 2**power for power in range(14))
FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
EACH = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)

Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Instruments:
    """Counters and histograms of runs."""

    tokens: Histogram
    operation: Histogram
    first_chunk: Histogram
    first_token: Histogram
    each_token: Histogram
    turn: Histogram
    tool: Histogram
    bytes: Counter
    fallbacks: Counter

    def chat(self, model: Model, result: AgentResult, seconds: float) -> None:
        """Record a successful model call."""
        about = {names.OPERATION: names.CHAT, **model.attributes, names.RESPONSE_MODEL: result.model}
        timing, tokens = result.timing, result.tokens
        self.operation.record(seconds, about)
        for kind, count in (("input", tokens.prefilled + tokens.reused), ("output", tokens.generated)):
            if count:
                self.tokens.record(count, {**about, names.TOKEN_TYPE: kind})
        if timing.first_token is None:
            return
        self.first_chunk.record(timing.first_token, about)
        if model.is_local:  # this process is the model's server
            self.first_token.record(timing.first_token, about)
            if tokens.generated > 1:
                self.each_token.record((seconds - timing.first_token) / (tokens.generated - 1), about)

    def failed_chat(self, model: Model, kind: str, seconds: float) -> None:
        """Record a failed model call."""
        about = {names.OPERATION: names.CHAT, **model.attributes, names.ERROR_TYPE: kind}
        self.operation.record(seconds, about)

    def edge(self, report: EdgeReport) -> None:
        """Record a delivered payload."""
        about = {names.ASKED: report.asked, names.USED: report.channel_used}
        self.bytes.add(report.bytes, about)
        if report.fallback_reason:
            self.fallbacks.add(1, about)


@lru_cache(maxsize=1)
def instruments(provider: MeterProvider) -> Instruments:
    """Return a provider's instruments, cached because the SDK warns of duplicates."""
    meter = provider.get_meter("cachegraph", __version__)

    def histogram(name: str, unit: str, buckets: tuple[float, ...], about: str) -> Histogram:
        return meter.create_histogram(name, unit, about, explicit_bucket_boundaries_advisory=buckets)

    return Instruments(
        tokens=histogram(names.TOKEN_USAGE, "{token}", TOKENS, "Number of input and output tokens used."),
        operation=histogram(names.OPERATION_DURATION, "s", DURATION, "GenAI operation duration."),
        first_chunk=histogram(names.TIME_TO_FIRST_CHUNK, "s", FIRST, "Time to the first piece of a reply."),
        first_token=histogram(names.TIME_TO_FIRST_TOKEN, "s", FIRST, "Time to the first token, local models only."),
        each_token=histogram(names.TIME_PER_OUTPUT_TOKEN, "s", EACH, "Time of each token after the first."),
        turn=histogram(names.AGENT_DURATION, "s", DURATION, "Duration of an agent's turn, or of a whole run."),
        tool=histogram(names.TOOL_DURATION, "s", DURATION, "Duration of a tool's call."),
        bytes=meter.create_counter(names.CHANNEL_BYTES, "By", "Bytes handed over by edges."),
        fallbacks=meter.create_counter(names.CHANNEL_FALLBACKS, "{edge}", "Edges that went by text instead."),
    )
