"""The Anthropic API: requests, responses, errors.

errors            Errors in Anthropic's format
message_request   A message request, and its form for a recipe
message_response  The response message, whole or as events
messages          /v1/messages and /v1/messages/count_tokens
"""
