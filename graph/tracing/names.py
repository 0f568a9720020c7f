"""Every span, attribute and metric name.

The GenAI names are those of the GenAI semantic conventions 0.1 (github.com/open-telemetry/semantic-conventions-genai),
which are still in development: update this file when they change. Names outside them start with `cachegraph.`.
"""

# Operations, the first word of a span's name
WORKFLOW = "invoke_workflow"
AGENT = "invoke_agent"
CHAT = "chat"
TOOL = "execute_tool"

# Attributes of the conventions
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
AGENT_NAME = "gen_ai.agent.name"
WORKFLOW_NAME = "gen_ai.workflow.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
MAX_TOKENS = "gen_ai.request.max_tokens"
TEMPERATURE = "gen_ai.request.temperature"
TOP_P = "gen_ai.request.top_p"
TOP_K = "gen_ai.request.top_k"
SEED = "gen_ai.request.seed"
STOP_SEQUENCES = "gen_ai.request.stop_sequences"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"  # included in the input tokens
FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"
TOOL_NAME = "gen_ai.tool.name"
TOOL_TYPE = "gen_ai.tool.type"
TOOL_ARGUMENTS = "gen_ai.tool.call.arguments"
TOOL_RESULT = "gen_ai.tool.call.result"
TOKEN_TYPE = "gen_ai.token.type"  # noqa: S105 (no secret)
ERROR_TYPE = "error.type"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"

# Providers: who runs the model
LOCAL = "cachegraph"
ENDPOINT = "openai"  # the conventions' name for any server with this API

# cachegraph's attributes
TURN = "cachegraph.turn"
RECALLED = "cachegraph.recalled"
STATUS = "cachegraph.status"
CHANNEL = "cachegraph.channel"  # span name of an edge, and prefix of its attributes
SENDER = "cachegraph.channel.sender"
RECEIVER = "cachegraph.channel.receiver"
ASKED = "cachegraph.channel.asked"
USED = "cachegraph.channel.used"
BYTES = "cachegraph.channel.bytes"
FUSED = "cachegraph.channel.positions_fused"
GRAFTED = "cachegraph.channel.positions_grafted"
FALLBACK_REASON = "cachegraph.channel.fallback_reason"
SKIPPED = "cachegraph.agent_skipped"  # events of a run's span
CANCELLED = "cachegraph.agent_cancelled"
SECONDS = "cachegraph.seconds"  # of a chat, per phase: .queued, .prefill, .transfer, .fuse, .decode

# Metrics of the conventions
TOKEN_USAGE = "gen_ai.client.token.usage"  # noqa: S105 (no secret)
OPERATION_DURATION = "gen_ai.client.operation.duration"
TIME_TO_FIRST_CHUNK = "gen_ai.client.operation.time_to_first_chunk"
TIME_TO_FIRST_TOKEN = "gen_ai.server.time_to_first_token"  # noqa: S105 (no secret)
TIME_PER_OUTPUT_TOKEN = "gen_ai.server.time_per_output_token"  # noqa: S105 (no secret)
AGENT_DURATION = "gen_ai.invoke_agent.duration"
TOOL_DURATION = "gen_ai.execute_tool.duration"

# cachegraph's metrics
CHANNEL_BYTES = "cachegraph.channel.bytes"
CHANNEL_FALLBACKS = "cachegraph.channel.fallbacks"

# Values of the environment variable that enable capture of replies and inputs
CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
CAPTURED = ("true", "span_only", "span_and_event")
