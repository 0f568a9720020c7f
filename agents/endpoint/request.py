"""Build the request to an endpoint: address, headers with secrets, body."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from cachegraph.engine.spec import GenerateSpec
from cachegraph.errors import ConfigError

from ..endpoint_presets import preset_of
from ..spec import EndpointSpec

__all__ = ["RECIPE_FIELDS", "Secrets", "body_of", "chat_address", "secrets_of"]

# Parameters outside the original API that most servers of open models support, and their names there.
OPTIONAL = {
    "top_p": "top_p",
    "stop": "stop",
    "seed": "seed",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "min_new_tokens": "min_tokens",
    "ignore_eos": "ignore_eos",
}
# Keys of a body that a recipe sets elsewhere, and where; `None`: cachegraph sets it.
RECIPE_FIELDS: dict[str, str | None] = {
    "model": "model",
    "messages": "prompt",
    "tools": "tools",
    "functions": "tools",
    "response_format": "generate.json_schema",
    "max_tokens": "generate.max_new_tokens",
    "max_completion_tokens": "generate.max_new_tokens",
    **{name: f"generate.{name}" for name in GenerateSpec.model_fields},
    **{parameter: f"generate.{setting}" for setting, parameter in OPTIONAL.items()},
    **dict.fromkeys(("stream", "stream_options", "n", "logprobs", "top_logprobs")),
}
USUAL = GenerateSpec()


@dataclass(frozen=True)
class Secrets:
    """The headers of a request, and the parts of them that must not be shown."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    values: tuple[str, ...] = field(default=(), repr=False)

    def hidden(self, text: str) -> str:
        """The text with every secret replaced, including one that is truncated at the end."""
        for value in self.values:
            text = text.replace(value, "***")
        for value in self.values:
            cut = next((size for size in range(len(value) - 1, 3, -1) if text.endswith(value[:size])), 0)
            text = f"{text[:-cut]}***" if cut else text
        return text


def secrets_of(agent: str, endpoint: EndpointSpec) -> Secrets:
    """Read the headers that the recipe asks for. Raises ConfigError if a variable is missing."""
    headers: dict[str, str] = {}
    secret: list[str] = []
    host = urlsplit(endpoint.base_url).hostname
    for name, value in endpoint.headers.items():
        if isinstance(value, str):
            headers[name] = value
        else:
            headers[name] = _variable(agent, host, value.env)
            secret.append(headers[name])
    if endpoint.api_key_env is not None:
        key = _variable(agent, host, endpoint.api_key_env)
        headers["Authorization"] = f"Bearer {key}"
        secret.append(key)
    return Secrets(headers, tuple(sorted(secret, key=len, reverse=True)))


def _variable(agent: str, host: str | None, variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"agent {agent!r} needs a key for {host!r}, and the environment variable {variable!r} is not set"
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"the environment variable {variable!r} holds no key: it has characters that no key has")
    return key


def chat_address(base_url: str) -> str:
    """The address of chat completions: the path below base_url, before its query (Azure's `?api-version=`)."""
    url = urlsplit(base_url)
    return urlunsplit(url._replace(path=f"{url.path.rstrip('/')}/chat/completions", fragment=""))


def body_of(
    agent: str,
    endpoint: EndpointSpec,
    messages: list[dict[str, Any]],
    spec: GenerateSpec,
    tools: list[dict[str, Any]] | None,
) -> dict[str, Any]:
    """Build the body of one request. A recipe's `extra_body` adds keys; `RECIPE_FIELDS` are refused when the recipe
    loads.
    """
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": spec.temperature,
        # OpenAI has renamed this parameter; compatible servers know the old name.
        "max_completion_tokens"
        if urlsplit(endpoint.base_url).hostname == "api.openai.com"
        else "max_tokens": spec.max_new_tokens,
    }
    if tools is not None:
        body["tools"] = tools
    preset = preset_of(endpoint.source)
    renamed = preset[0].renamed if preset is not None else {}
    for setting, parameter in OPTIONAL.items():
        if getattr(spec, setting) != getattr(USUAL, setting):
            body[renamed.get(setting, parameter)] = getattr(spec, setting)
    if spec.json_schema is not None:
        named = {"name": agent[:64], "schema": spec.json_schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    return {**body, **endpoint.extra_body}
