"""Plans: the order of agents, loops, wiring, and who hears what. No torch.

agent_reads      Which inputs and replies an agent's templates, lists and arguments name, and of which of them it
dataflow         Which inputs and replies reach whom over the decided channels, and what reaches nobody
expected_routes  The routes that a recipe's edges will take, as far as that is known before any model is loaded
loops            Loops
plan             What runs after what
reachability     What surely happens in a graph with conditions
recipe_warnings  The warnings of a recipe that is not run
wiring           From a recipe's names to what a run follows
"""
