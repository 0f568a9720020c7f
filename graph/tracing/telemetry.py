"""The run listener for OpenTelemetry."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry import metrics, trace

from cachegraph import __version__

from ..recipe.spec import GraphSpec
from ..run.events import Event
from . import names
from .instruments import Instruments, instruments
from .model_attributes import models
from .spans import Spans

__all__ = ["telemetry"]


def telemetry(spec: GraphSpec, inputs: Mapping[str, Any]) -> Callable[[Event], None] | None:
    """Return a listener that turns events into spans and metrics; None if neither is exported."""
    tracer, meters = _tracer(), _instruments()
    if tracer is None and meters is None:
        return None
    known = models(spec)
    # Without a tracer provider, spans still measure time for the metrics and are then dropped.
    return Spans(spec, known, tracer or trace.NoOpTracer(), meters, inputs if _captures() else None)


def _tracer() -> trace.Tracer | None:
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    return provider.get_tracer("cachegraph", __version__)


def _instruments() -> Instruments | None:
    provider = metrics.get_meter_provider()
    # The placeholder before a provider is set has a private class.
    if isinstance(provider, metrics.NoOpMeterProvider) or type(provider).__name__ == "_ProxyMeterProvider":
        return None
    return instruments(provider)


def _captures() -> bool:
    return os.environ.get(names.CAPTURE, "").strip().lower() in names.CAPTURED
