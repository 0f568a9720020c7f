"""OpenTelemetry spans and metrics of runs, and traces for Chrome and Perfetto.

chrome            Write runs as a trace that chrome://tracing and ui.perfetto.dev open
enabled           Whether spans or metrics of a run are wanted
instruments       The metrics of runs, made once for each provider
model_attributes  What the recipe says of each agent's model, in the terms of the GenAI conventions
names             Every span, attribute and metric name
spans             Turn a run's events into spans
telemetry         The run listener for OpenTelemetry
"""
