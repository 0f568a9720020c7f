"""Plans: the order of agents, the route of each edge, and the dataflow. No torch.

agent_reads      Inputs and replies that an agent's templates, lists and conditions read
dataflow         Which inputs and replies reach which agent over the decided channels, and which get lost
expected_routes  Routes of a recipe's edges, predicted before models load
plan             The order in which agents run
recipe_warnings  Warnings of a recipe before it runs
wiring           Open agents and decided edges, ready for runs
"""
