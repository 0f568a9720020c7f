"""The agents' slice of a recipe: who speaks, with which model, from which prompt."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from cachegraph.engine.spec import GenerateSpec, Strict

__all__ = ["AgentSpec", "EndpointSpec"]


class EndpointSpec(Strict):
    """A model behind an OpenAI-compatible chat endpoint. It has no cache to send, so it speaks over text edges."""

    base_url: Annotated[
        str,
        Field(
            pattern=r"^https?://[^\s/]+",
            description="Up to and with /v1.",
            json_schema_extra={"patternErrorMessage": "a web address such as 'https://host/v1'"},
        ),
    ]
    model: Annotated[str, Field(min_length=1, description="The model's name at that endpoint.")]
    api_key_env: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Z][A-Z0-9_]*$",
            description="The variable that holds the key: CACHEGRAPH_..., or OPENAI_API_KEY at api.openai.com.",
            json_schema_extra={"patternErrorMessage": "the name of an environment variable in capitals"},
        ),
    ] = None
    max_retries: Annotated[int, Field(ge=0, le=10)] = 2


class AgentSpec(Strict):
    """One agent: a model and the prompt it answers."""

    model: Annotated[str, Field(min_length=1, description="A key of `models`, or a model's name.")]
    prompt: Annotated[str, Field(description="A Jinja template; its names are the inputs and the agents upstream.")]
    system: Annotated[str | None, Field(description="The system message, a template too.")] = None
    generate: GenerateSpec = GenerateSpec()
    chat: Annotated[
        Literal["auto"] | bool, Field(description="Wrap the prompt in the model's chat template; auto: if it has one.")
    ] = "auto"
    fusion: Annotated[
        Literal["parallel", "sequential"],
        Field(description="Several sharers: sum of residuals from the clean cache, or one after the other."),
    ] = "parallel"
    timeout: Annotated[PositiveFloat | None, Field(description="Seconds.")] = None
