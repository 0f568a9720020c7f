"""From an agent's spec to an agent; what it is made of is imported only when the first one is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from cachegraph.engine.spec import ModelSpec

from .base import Agent
from .spec import AgentSpec, EndpointSpec
from .tools.servers import Toolbox

__all__ = ["Create", "create_agent"]


class Create(Protocol):
    """What makes the agents of a graph. `create_agent` is the usual one."""

    def __call__(
        self,
        name: str,
        spec: AgentSpec,
        model: str | ModelSpec | EndpointSpec,
        folder: Path,
        *,
        inputs: Sequence[str],
        upstream: Sequence[str],
        toolbox: Toolbox | None = None,
    ) -> Agent: ...


def create_agent(
    name: str,
    spec: AgentSpec,
    model: str | ModelSpec | EndpointSpec,
    folder: Path,
    *,
    inputs: Sequence[str],
    upstream: Sequence[str],
    toolbox: Toolbox | None = None,
    allow_local: bool = True,
    allow_paths: bool = True,
) -> Agent:
    """An agent that is not open yet. `folder` is the recipe's; `inputs` and `upstream` name what its prompt may use.

    `toolbox` holds the recipe's tool servers; `allow_local` lets an endpoint be in this machine's networks,
    `allow_paths` a model outside the recipe's folder.
    """
    if isinstance(model, EndpointSpec):
        from .endpoint.agent import EndpointAgent

        return EndpointAgent(name, spec, model, upstream=upstream, toolbox=toolbox, allow_local=allow_local)
    from .local.agent import LocalAgent

    return LocalAgent(
        name, spec, model, folder, inputs=inputs, upstream=upstream, toolbox=toolbox, allow_paths=allow_paths
    )
