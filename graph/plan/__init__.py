"""Plans: the order of agents, the route of each edge, and who hears what. No torch.

agent_reads      Inputs and replies that an agent's templates, lists and conditions read
dataflow         Which inputs and replies reach which agent over the decided channels, and which get lost
expected_routes  Routes of a recipe's edges, as far as they are known before models load
plan             The order in which agents run
recipe_warnings  Warnings of a recipe that does not run
wiring           Open agents and decided edges, as a run follows them
"""
