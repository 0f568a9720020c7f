"""Agents: one turn of a model, an endpoint, a function or a person. Specs, prompts, tools, sessions.

base               The Agent protocol, and what a turn takes and gives
create             Create agents that have a model
endpoint/          Agents whose model answers behind an OpenAI-compatible chat endpoint
endpoint_presets   Addresses, key variables and differences of known servers
entry              The base of all agent kinds: common keys, and what the graph asks of a kind
functions/         Agents that are Python functions
http_client        HTTP clients for a recipe's endpoints and tool servers
kinds              The registry of agent kinds
local/             Agents whose model runs on this machine
model_peer         The channel's view of an agent with a model, before or after the model is loaded
pause/             Questions to a person
prompt/            Prompts: templates, expressions, chat messages
run_settings       Settings of a run that differ from the recipe's
scripted           Agents that follow a script, for tests and examples
sessions/          Conversations that agents remember
spec               The agent kind `model`
structured_output  Replies that are JSON
subgraph           The agent kind `graph`: an included recipe
token_budget       What a run's token budget leaves to one turn
tools/             Tools of agents, over the Model Context Protocol
"""
