"""Agents whose model answers behind an OpenAI-compatible chat endpoint.

    agent          one agent: its turn, from prompt to reply
    request        the body that is sent, the headers, the secrets among them
    openai_client  one completion over HTTP: retries, errors in our words
    refused        parameters that a model refuses, and what is sent instead
    http           TLS, compression, Retry-After
    body           bytes to events: compression, SSE, JSON or neither
    sse            server-sent events from chunks of bytes
    answer         events to a completion: text, reasoning, usage, errors
    tool_calls     pieces of tool calls to whole ones
    finish         why a reply ended, and why it is empty
    wording        the sentence in a server's error
    tool_loop      ask, call tools, ask again

docs/guides/endpoints.md lists what servers send and which test holds it.
"""
