"""OpenTelemetry spans and metrics of runs, and traces for Chrome and Perfetto.

chrome            Runs as a trace that chrome://tracing and ui.perfetto.dev open
enabled           Whether anybody wants spans or metrics of a run
instruments       The metrics of runs, made once for each provider
model_attributes  What the recipe says of each agent's model, in the words of the GenAI conventions
names             Every name that leaves this process
spans             A run's events as spans
telemetry         A run's listener for OpenTelemetry, where the process has configured a provider of traces or of
"""
