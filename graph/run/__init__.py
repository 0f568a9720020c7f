"""Runs: one execution of a graph, its events and its result.

agent_set        The agents of a graph, opened and closed together
batch            Many runs at once
create_agents    Create the agents of a recipe, also inside the recipes that it includes
edge_conditions  Evaluate conditions and routes: which edges deliver a reply
events           Events of a run, for listeners
executor         Take an agent's turn, or one for each item of a list
fan_out          Fan-out: the list of items, and the join of the replies
hooks            Inspect and change a run, for comparisons
readiness        Which agents may start, round by round
result           The result of a run: reply, agents, edges, totals
run              One execution of a graph
run_warnings     Warnings of a finished run
settings         Settings of a run's outputs that differ from the recipe's
shared_wiring    The wiring of a graph, decided once for all its runs
stream           Stream one run, or many, as an async iterator
subgraph         The agent that runs an included recipe
sync             Run async work from synchronous code
turn_log         The protocol that makes finished turns durable
"""
