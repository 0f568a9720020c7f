"""What plays requests: a whole graph, in which the output agent's reply is scored or written."""

from collections.abc import Sequence
from typing import Any, Protocol

from cachegraph.agents.base import Scored, Turn
from cachegraph.engine.spec import GenerateSpec
from cachegraph.errors import RunError
from cachegraph.graph.graph import Graph
from cachegraph.graph.run.hooks import RunHooks
from cachegraph.graph.run.run import Run
from cachegraph.graph.run.subgraph import answering_node

from .tally import Tally

__all__ = ["GraphPlayer", "Likelihood", "Player"]

Likelihood = tuple[float, bool]  # the continuation's log-likelihood, and whether greedy decoding would write it


class Player(Protocol):
    """Plays requests one by one; many may be under way at once."""

    async def likelihoods(self, context: str, continuations: Sequence[str]) -> list[Likelihood]:
        """How likely each of these texts is behind the context."""

    async def write(self, context: str, spec: GenerateSpec) -> str:
        """What is written behind the context."""

    async def close(self) -> None:
        """Let go of models."""


class GraphPlayer:
    """The context is an input of the graph, and continuations are replies of its output agent."""

    def __init__(self, graph: Graph, name: str, tally: Tally):
        self._graph = graph
        self._input = name
        self._tally = tally
        self._written: dict[GenerateSpec, Graph] = {}  # by how the output agent decodes

    async def close(self) -> None:
        """Let go of the models that the graphs made here hold."""
        for graph in self._written.values():
            await graph.aclose()
        self._written.clear()

    async def likelihoods(self, context: str, continuations: Sequence[str]) -> list[Likelihood]:
        """All continuations behind one run of the agents upstream."""
        graph = self._graph
        name, node = answering_node(await graph.awire())
        hooks = RunHooks(skip=name)
        result = await self._run(graph, context, hooks).execute()
        agent = node.agent
        chat = _in_chat(graph, agent)
        # A harness's space in front of a continuation parts words; a chat's template has parted them already.
        texts = [text.lstrip() or text for text in continuations] if chat else continuations
        scored = await self._judge(agent, hooks.turns[name], texts)
        self._tally.add({**result.edges, **{(sender, name): each for sender, each in scored.edges.items()}})
        return [(each.logprob, each.greedy) for each in scored.scores]

    async def write(self, context: str, spec: GenerateSpec) -> str:
        """The graph's reply, where its output agent decodes as the request says. The rest decode as the recipe says."""
        result = await self._run(self._decoding(spec), context).execute()
        self._tally.add(result.edges)
        return result.text

    def _run(self, graph: Graph, context: str, hooks: RunHooks | None = None) -> Run:
        return Run(graph.spec, graph.check_inputs({self._input: context}), graph.awire, None, hooks)

    def _decoding(self, spec: GenerateSpec) -> Graph:
        if spec not in self._written:
            recipe = self._graph.spec
            output = recipe.speaker(recipe.output).model_copy(update={"generate": spec})
            agents = {**recipe.agents, recipe.output: output}
            self._written[spec] = self._graph.with_spec(recipe.model_copy(update={"agents": agents}))
        return self._written[spec]

    async def _judge(self, agent: Any, turn: Turn, texts: Sequence[str]) -> Scored:
        judge = getattr(agent, "judge", None)
        if judge is None:
            raise RunError(f"agent {agent.name!r} can't score continuations; run tasks in which it writes")
        scored: Scored = await judge(turn, texts, verbatim=True)
        return scored


def _in_chat(graph: Graph, agent: Any) -> bool:
    asked = graph.spec.speaker(graph.output).chat
    if asked != "auto":
        return asked
    model = getattr(agent.peer().engine, "model", None)
    return model is not None and model.tokenizer.has_chat
