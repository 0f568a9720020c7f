"""Agents: who speaks. Specs, prompts, and an agent for each kind: local, endpoint, function, pause.

base               What the graph knows of an agent
create             From an agent's spec to an agent; what it is made of is imported only when the first one is
endpoint/          Agents whose model answers behind an OpenAI-compatible chat endpoint
functions/         Agents that are Python functions
http_client        HTTP clients for a recipe's endpoints and tool servers
local/             Agents whose model runs on this machine
model_peer         An agent with a model as the channels see it, before its model is loaded or after
pause              A question to a person in an agent's place
prompt/            Prompts
schema_threads     Checks of values by JSON Schemas, off the event loop where they take long
scripted           Agents that follow a script
sessions/          Sessions
spec               The agents' slice of a recipe
structured_output  Replies that are data
token_budget       What a run's budget of tokens leaves to one turn
tools/             Tools of agents
"""
