"""Agents whose model answers behind an OpenAI-compatible chat endpoint.

    agent                   EndpointAgent: one turn, from prompt to reply
    completion              Events to a completion: text, reasoning, usage, errors
    empty_reply             Why a reply is empty
    error_text              The message in a server's error
    http                    TLS, compression, Retry-After
    retrying_client         One streamed completion with retries
    request                 Address, headers with secrets, body
    response_decoder        Bytes to events: compression, SSE, JSON
    sse_decoder             Server-sent events from chunks of bytes
    tool_calls              Assemble streamed pieces of tool calls
    tool_loop               Complete, call tools, complete again
    unsupported_parameters  Replace parameters that a model refuses

docs/guides/endpoints.md lists what servers send and the test that covers each case.
"""
