"""The tools' part of a recipe: MCP servers, and limits on an agent's calls."""

from typing import Annotated, Any

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag

from cachegraph.engine.spec import Strict

__all__ = ["CommandTools", "ToolLimits", "ToolName", "ToolServerSpec", "UrlTools"]

Text = Annotated[str, Field(min_length=1)]
Variable = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        json_schema_extra={"patternErrorMessage": "the name of an environment variable"},
    ),
]
ToolName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\..+)?$",
        json_schema_extra={"patternErrorMessage": "a key of `tools`, or one of its tools as `server.tool`"},
    ),
]


class _Server(Strict):
    timeout: Annotated[PositiveFloat, Field(description="Maximum seconds of one call.")] = 60.0


class CommandTools(_Server):
    """A tool server that is a program on this machine. It runs while the graph is open; needs --allow-code."""

    command: Annotated[
        tuple[Text, ...],
        Field(min_length=1, description="The program and its arguments; it runs in the recipe's folder."),
    ]
    env: Annotated[
        dict[Variable, str],
        Field(description="Environment variables that it gets in addition to PATH, HOME and similar ones."),
    ] = {}  # noqa: RUF012 (pydantic copies it)
    inherit_env: Annotated[
        tuple[Variable, ...], Field(description="Environment variables that it inherits unchanged.")
    ] = ()


class UrlTools(_Server):
    """A tool server behind a web address (streamable HTTP)."""

    url: Annotated[
        str,
        Field(
            pattern=r"^https?://[^\s/]+",
            description="The server's full URL; most end with /mcp.",
            json_schema_extra={"patternErrorMessage": "a web address such as 'https://host/mcp'"},
        ),
    ]
    api_key_env: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Z][A-Z0-9_]*$",
            description="The environment variable that holds the key, sent as a bearer token: CACHEGRAPH_...",
            json_schema_extra={"patternErrorMessage": "the name of an environment variable in capitals"},
        ),
    ] = None


def _kind(value: Any) -> str:
    has_url = "url" in value if isinstance(value, dict) else hasattr(value, "url")
    return "url" if has_url else "command"


ToolServerSpec = Annotated[
    Annotated[CommandTools, Tag("command")] | Annotated[UrlTools, Tag("url")], Discriminator(_kind)
]


class ToolLimits(Strict):
    """Limits on an agent's tool calls in one turn."""

    rounds: Annotated[PositiveInt, Field(description="Maximum number of replies that call tools.")] = 8
    calls: Annotated[PositiveInt, Field(description="Maximum number of calls over all rounds.")] = 32
    result_bytes: Annotated[PositiveInt, Field(description="Maximum bytes of one result; the rest is cut.")] = 16_000
