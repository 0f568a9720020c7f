"""Whether spans or metrics of a run are wanted. If not, costs one dictionary lookup."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from ..recipe.spec import GraphSpec
from ..run.events import Event

__all__ = ["watched"]

Listener = Callable[[Event], None]


def watched(spec: GraphSpec, inputs: Mapping[str, Any], listener: Listener | None) -> Listener | None:
    """Combine the listener with OpenTelemetry's if this process has configured it; None without listeners."""
    if "opentelemetry" not in sys.modules:  # configuring a provider imports it
        return listener
    from .telemetry import telemetry

    exporter = telemetry(spec, inputs)
    if exporter is None or listener is None:
        return exporter or listener
    original = listener

    def both(event: Event) -> None:
        exporter(event)
        original(event)

    return both
