"""The OpenAI API: requests, responses, errors.

chat_completions  /v1/chat/completions
chat_request      A chat request, and its form for a recipe
chat_response     The chat completion, whole or in chunks
errors            Errors in OpenAI's format
models            /v1/models
response_object   A response, whole or as events
response_request  A response request, and its form for a recipe
response_retention  Delete responses that are old, or too many
response_sessions Sessions of responses that continue earlier ones
responses         /v1/responses
"""
