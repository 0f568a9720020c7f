"""The server: recipes behind the protocols that clients know.

anthropic/     The Anthropic API
app            The server as an ASGI application
auth           Who asks: keys and tenants
config         What a server is told when it starts
connection     Work for a client that may go away
errors         What a client is told when something is wrong
event_stream   Server-sent events
generation     Runs for one request
graphs         /graphs
guard          What every request has to pass, and what every answer carries
health         /health and /ready
hide_paths     Error messages without the paths of the server's disk
http_body      Reading a request's body
inputs         From a conversation to a recipe's inputs
json_response  JSON as the server writes it
metrics        /metrics
openai/        The OpenAI API
process        The server as a process, and how it ends
openapi        /openapi.json
prepare        From what a client asks to runs of a recipe
run_queue      Which runs are at work and which wait
runs/          Runs that outlive their request
served_graphs  The recipes of a server
server_state   What all requests share
sessions       Names of sessions
text_content   The content of messages: text, whole or in parts
usage          What a run took, and what its edges did
"""
