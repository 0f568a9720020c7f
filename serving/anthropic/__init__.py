"""The Anthropic API: what its clients send and expect.

errors            Errors as Anthropic's clients read them
message_request   A request for a message, and how a recipe runs it
message_response  The answer, whole or in events
messages          /v1/messages and /v1/messages/count_tokens
"""
