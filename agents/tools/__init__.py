"""Tools of agents: servers that speak the Model Context Protocol, and the calls that a model makes.

agent_tools       The tools that one agent has, and one call of them
connection        One connection to a tool server
content           The contents of a tool's result as text
lenient_messages  Messages of tool servers that are not quite JSON
parse_calls       Parse the tool calls in a model's reply
server            One tool server, connected in a thread of its own
servers           The tool servers of one graph
spec              Tool servers and tool limits in a recipe
supervise         End a tool server's process with its parent
"""
