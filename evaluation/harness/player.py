"""Run requests on a graph: score or generate the reply of its output agent."""

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

Likelihood = tuple[float, bool]  # the continuation's log-likelihood; whether greedy decoding generates it


class Player(Protocol):
    """Runs requests; several may run concurrently."""

    async def likelihoods(self, context: str, continuations: Sequence[str]) -> list[Likelihood]:
        """Return the log-likelihood of each continuation of the context."""

    async def write(self, context: str, spec: GenerateSpec) -> str:
        """Generate a continuation of the context."""

    async def close(self) -> None:
        """Release the models."""


class GraphPlayer:
    """Runs a graph: the context is one of its inputs, continuations are replies of its output agent."""

    def __init__(self, graph: Graph, name: str, tally: Tally):
        self._graph = graph
        self._input = name
        self._tally = tally
        self._written: dict[GenerateSpec, Graph] = {}  # by the output agent's settings

    async def close(self) -> None:
        """Release the models of the graphs that this player created."""
        for graph in self._written.values():
            await graph.aclose()
        self._written.clear()

    async def likelihoods(self, context: str, continuations: Sequence[str]) -> list[Likelihood]:
        """Score all continuations after one run of the upstream agents."""
        graph = self._graph
        name, node = answering_node(await graph.awire())
        hooks = RunHooks(skip=name)
        result = await self._run(graph, context, hooks).execute()
        agent = node.agent
        chat = _in_chat(graph, agent)
        # The harness puts a space in front of a continuation to separate words; a chat template separates them already.
        texts = [text.lstrip() or text for text in continuations] if chat else continuations
        scored = await self._judge(agent, hooks.turns[name], texts)
        self._tally.add({**result.edges, **{(sender, name): report for sender, report in scored.edges.items()}})
        return [(score.logprob, score.greedy) for score in scored.scores]

    async def write(self, context: str, spec: GenerateSpec) -> str:
        """Return the graph's reply. The output agent decodes with `spec`, all others with the recipe's settings."""
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
