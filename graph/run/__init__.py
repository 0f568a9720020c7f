"""Runs: one execution of a graph, its events and its result.

agent_set        The agents of a graph, opened and closed together
batch            Many runs at once
create_agents    From a recipe's entries to agents, none of them open; a graph in an agent's place with all that i
edge_conditions  Where a reply goes
events           What happens during a run, as it happens
executor         Taking agents' turns for a run
fan_out          Several turns' replies as one
hooks            Looking into a run, and meddling with it
readiness        Who may start
result           What a run leaves behind
resume           Where a graph and the run store meet
run              One execution of a graph
run_warnings     What a run warns of once it has happened
stream           A run, or many, watched while they go on
subgraph         A recipe in an agent's place
sync             Async work for callers that are not async
turn_log         What of a run outlives the process that runs it
"""
