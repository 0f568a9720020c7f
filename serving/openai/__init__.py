"""The OpenAI API: what its clients send and expect.

chat_completions  /v1/chat/completions
chat_request      A chat request as the client sends it, and as a recipe runs it
chat_response     The answer to a chat request, whole or in pieces
errors            Errors as OpenAI's clients read them
models            /v1/models
response_object   A response, whole or in events
response_request  A request for a response, and how a recipe runs it
response_sessions Responses that go on from earlier ones
responses         /v1/responses
"""
