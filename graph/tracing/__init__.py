"""OpenTelemetry spans and metrics of runs, and traces for Chrome and Perfetto.

chrome            Write runs as a trace that chrome://tracing and ui.perfetto.dev open
enabled           Whether spans or metrics of a run are wanted
instruments       The metrics of runs, created once per provider
model_attributes  Attributes of each agent's model by the GenAI conventions
names             Every span, attribute and metric name
spans             Turn a run's events into spans
telemetry         The run listener for OpenTelemetry
"""
