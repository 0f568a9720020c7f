"""The server: recipes behind the OpenAI and Anthropic APIs.

anthropic/     The Anthropic API
announced_recipe  The files of a recipe, and what a client needs to run it
app            The server as an ASGI application
auth           Keys and tenants
changed_recipe A recipe as a client changed it
config         Configuration of a server
connection     Cancel work when the client disconnects
describe       A recipe as JSON, for drawings
edges          Channels of single edges in a request
edit           /graphs/NAME/recipe and /graphs/NAME/check
errors         Errors as API responses
event_stream   Server-sent events
fair_limiter   A limit of running work that tenants share fairly
generation     Execute the runs of one request
graphs         /graphs
guard          Middleware: hosts, origins, keys, response headers
health         /health and /ready
hide_paths     Remove local paths from error messages
http_body      Read and validate a request's body
http_protocol  Bounds on connections
inputs         Map a conversation to a recipe's inputs
json_response  JSON encoding of responses
local_servers  Servers of this user on this machine, for `cachegraph run`
mcp_tools      Recipes as tools of the Model Context Protocol
metrics        /metrics
openai/        The OpenAI API
process        The server process: socket, event loop, shutdown
openapi        /openapi.json
openapi_responses  Responses in that document
prepare        Turn a request into checked runs of a recipe
recipe_source  The text of a recipe for clients
reports/       Comparison reports of a folder
run_log        The log of runs as JSON lines
run_queue      A bounded queue of runs
runs/          Stored runs that outlive their request
served_graphs  The recipes of a server
server_state   State that all requests share
sessions       Session names per tenant
stream_answer  Stream one reply as events: head, text, end
studio/        The studio, a page at /
text_content   Text content of messages
usage          Token usage and edge details of a run
whole_number   Whole numbers in a request
"""
