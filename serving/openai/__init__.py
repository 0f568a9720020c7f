"""The OpenAI API: what its clients send and expect.

chat_completions  /v1/chat/completions
chat_request      A chat request as the client sends it, and as a recipe runs it
chat_response     The answer to a chat request, whole or in pieces
errors            Errors as OpenAI's clients read them
models            /v1/models
"""
