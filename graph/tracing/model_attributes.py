"""Attributes of each agent's model by the GenAI conventions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from cachegraph.agents.spec import EndpointSpec
from cachegraph.engine.spec import GenerateSpec, ModelSpec

from ..recipe.spec import GraphSpec
from . import names

__all__ = ["Model", "models"]

USUAL = GenerateSpec()


@dataclass(frozen=True)
class Model:
    """An agent's model: attributes of spans and metrics, and further request attributes of chat spans."""

    name: str
    is_local: bool
    attributes: Mapping[str, Any]
    request: Mapping[str, Any]
    max_new_tokens: int


def models(spec: GraphSpec) -> dict[str, Model]:
    """Map agents to their models; omits agents without one."""
    return {
        name: _model(spec.models.get(agent.model, agent.model), agent.generate) for name, agent in spec.speakers.items()
    }


def _model(entry: str | ModelSpec | EndpointSpec, generate: GenerateSpec) -> Model:
    request = {
        names.MAX_TOKENS: generate.max_new_tokens,
        names.TEMPERATURE: generate.temperature,
        **({names.TOP_P: generate.top_p} if generate.top_p != USUAL.top_p else {}),
        **({names.TOP_K: generate.top_k} if generate.top_k != USUAL.top_k else {}),
        **({names.SEED: generate.seed} if generate.seed is not None else {}),
        **({names.STOP_SEQUENCES: generate.stop} if generate.stop else {}),
    }
    if isinstance(entry, EndpointSpec):
        url = urlsplit(entry.base_url)
        port = url.port or (443 if url.scheme == "https" else 80)
        place = {names.SERVER_ADDRESS: url.hostname or "", names.SERVER_PORT: port}
        attributes = {names.PROVIDER: names.ENDPOINT, names.REQUEST_MODEL: entry.model, **place}
        return Model(entry.model, False, attributes, request, generate.max_new_tokens)
    source = entry if isinstance(entry, str) else entry.source
    attributes = {names.PROVIDER: names.LOCAL, names.REQUEST_MODEL: source}
    return Model(source, True, attributes, request, generate.max_new_tokens)
