"""A view into runs from outside: OpenTelemetry spans and metrics, and traces for Chrome and Perfetto.

Nothing here is imported by a run unless OpenTelemetry is configured in this process.
"""
