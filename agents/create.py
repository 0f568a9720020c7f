"""Create agents that have a model. Their modules are imported when the first one is created."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cachegraph.engine.spec import ModelSpec

from .base import Agent
from .entry import AgentContext
from .spec import AgentSpec, EndpointSpec
from .tools.servers import Toolbox

__all__ = ["Create", "ModelHost", "ModelLink", "create_agent", "create_in_context"]


class Create(Protocol):
    """A factory of agents that have a model. The default is `create_agent`."""

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


class ModelLink(NamedTuple):
    """Two models of a recipe in `folder`: the first one's cache travels to the second."""

    sender: str | ModelSpec
    receiver: str | ModelSpec
    folder: Path


class ModelHost(Protocol):
    """Where agents that have a model run, if not in this process."""

    def creator(
        self, *, allow_local: bool = True, allow_paths: bool = True, links: Collection[ModelLink] = ()
    ) -> Create:
        """A factory of agents that run there; the permissions are as for `create_agent`.

        `links` are the models between which caches travel.
        """

    @property
    def why_lost(self) -> str | None:
        """Why nothing can run there any more; None while it can."""


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
    """Create an unopened agent. `folder` is the recipe's; `inputs` and `upstream` name what its prompt may use.

    `toolbox` holds the recipe's tool servers. `allow_local` permits endpoints in this machine's networks, `allow_paths`
    a model outside the recipe's folder.
    """
    if isinstance(model, EndpointSpec):
        from .endpoint.agent import EndpointAgent

        return EndpointAgent(name, spec, model, upstream=upstream, toolbox=toolbox, allow_local=allow_local)
    from .local.agent import LocalAgent

    return LocalAgent(
        name, spec, model, folder, inputs=inputs, upstream=upstream, toolbox=toolbox, allow_paths=allow_paths
    )


def create_in_context(
    create: Create, spec: AgentSpec, context: AgentContext, *, allow_local: bool, allow_paths: bool
) -> Agent:
    """Call a factory for one agent of a recipe. Only `create_agent` receives permissions and tools."""
    options: dict[str, Any] = {"toolbox": context.toolbox} if spec.tools else {}
    if create is create_agent:
        options |= {"allow_local": allow_local, "allow_paths": allow_paths}
    model = context.models.get(spec.model, spec.model)
    return create(
        context.name, spec, model, context.folder, inputs=context.inputs, upstream=context.upstream, **options
    )
