"""A graph as a LangChain `Runnable`, and as a node of a LangGraph graph (extra `langchain`).

The caller opens and closes the graph; without that, its models load with the first call and stay loaded.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from queue import SimpleQueue
from typing import Any

import anyio
from anyio.from_thread import start_blocking_portal
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from cachegraph.errors import InputError
from cachegraph.graph.graph import Graph
from cachegraph.graph.run.events import TextDelta
from cachegraph.graph.run.result import Result

__all__ = ["GraphRunnable", "graph_node"]

CONVERSATION = "messages"  # an input, or a key of a state, that holds messages
ROLES = {"human": "user", "ai": "assistant"}


class GraphRunnable(Runnable[Any, Any]):
    """Runs a graph: `invoke`, `stream`, `batch` and their async twins.

    The input is a mapping from the graph's inputs to values; or text, a message or a prompt value for the input that is
    required, else the first one. The output is the reply as text, or with `whole` the `Result`; streams yield the reply
    in pieces. Keywords, also those of `bind`, are settings such as `temperature`. Errors are those of `Graph.run`.
    """

    def __init__(self, graph: Graph, *, whole: bool = False):
        self.graph, self.whole = graph, whole
        self.name = graph.spec.name

    def invoke(self, input: Any, config: RunnableConfig | None = None, **settings: Any) -> Any:
        """Run once and wait. Inside an event loop use `ainvoke`."""

        def run(value: Any) -> Any:
            return self._output(self._graph(settings).run(inputs_of(self.graph, value)))

        return self._call_with_config(run, input, config)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **settings: Any) -> Any:
        """Run once."""

        async def run(value: Any) -> Any:
            return self._output(await self._graph(settings).arun(inputs_of(self.graph, value)))

        return await self._acall_with_config(run, input, config)

    def batch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **settings: Any,
    ) -> list[Any]:
        """Run once for each input, at the same time on the same models; the config's `max_concurrency` limits them."""
        return anyio.run(partial(self.abatch, inputs, config, return_exceptions=return_exceptions, **settings))

    def stream(self, input: Any, config: RunnableConfig | None = None, **settings: Any) -> Iterator[str]:
        """Yield the reply in pieces. The run takes place in a thread; leaving the loop cancels it."""
        yield from self._transform_stream_with_config(
            iter([input]), partial(_from_thread, partial(self._reply, settings)), config
        )

    async def astream(self, input: Any, config: RunnableConfig | None = None, **settings: Any) -> AsyncIterator[str]:
        """Yield the reply in pieces. Leaving the loop cancels the run."""

        async def inputs() -> AsyncIterator[Any]:
            yield input

        async def pieces(values: AsyncIterator[Any]) -> AsyncIterator[str]:
            async for value in values:
                async for piece in self._reply(settings, value):
                    yield piece

        async for piece in self._atransform_stream_with_config(inputs(), pieces, config):
            yield piece

    async def _reply(self, settings: Mapping[str, Any], value: Any) -> AsyncIterator[str]:
        """Yield what the output agent writes while it writes it; a reply that may be replaced, at the end."""
        said, streams = "", _streams(self.graph)
        async with self._graph(settings).stream(inputs_of(self.graph, value)) as stream:
            async for event in stream:
                if streams and isinstance(event, TextDelta) and event.agent == self.graph.output:
                    said += event.text
                    yield event.text
            text = stream.result.text
        if rest := text.removeprefix(said):
            yield rest

    def _graph(self, settings: Mapping[str, Any]) -> Graph:
        return self.graph.with_settings(**settings) if settings else self.graph

    def _output(self, result: Result) -> Any:
        return result if self.whole else result.text


def graph_node(graph: Graph, *, reads: Mapping[str, str] | None = None, writes: str = "answer") -> Runnable[Any, Any]:
    """Return a node for `StateGraph.add_node`.

    `reads` maps the graph's inputs to keys of the state; by default every input takes the key of its name, if the state
    has one. Of a list of messages a text input takes the last. The reply is written to the key `writes`; to `messages`
    as an `AIMessage`. Raises InputError for an input that the graph doesn't have, and in the node for a key that the
    state lacks.
    """
    declared = graph.spec.inputs
    for name in reads or {}:
        if name not in declared:
            raise InputError(f"{graph.spec.name!r} has no input {name!r}; it has {', '.join(declared) or 'none'}")

    def read(state: Any) -> dict[str, Any]:
        values = state if isinstance(state, Mapping) else vars(state)
        keys = reads if reads is not None else {name: name for name in declared if name in values}
        if missing := next((key for key in keys.values() if key not in values), None):
            raise InputError(f"the state has no key {missing!r}, which {graph.spec.name!r} reads")
        return {name: _plain(graph, name, values[key], last=True) for name, key in keys.items()}

    def write(text: str) -> dict[str, Any]:
        return {writes: [AIMessage(text)] if writes == CONVERSATION else text}

    return RunnableLambda(read) | GraphRunnable(graph) | RunnableLambda(write)


def inputs_of(graph: Graph, value: Any) -> dict[str, Any]:
    """Return a run's inputs. Raises InputError if a value without a name could be for several of them."""
    if isinstance(value, Mapping):
        return {name: _plain(graph, name, item) if name in graph.spec.inputs else item for name, item in value.items()}
    declared = graph.spec.inputs
    required = [name for name, entry in declared.items() if entry.is_required]
    if len(required) > 1 or not declared:
        names = ", ".join(map(repr, required)) or "no inputs"
        raise InputError(f"{graph.spec.name!r} needs {names}; give a mapping from names to values")
    is_list = CONVERSATION in declared and not isinstance(value, str)
    name = CONVERSATION if is_list else (required or list(declared))[0]
    return {name: _plain(graph, name, value)}


def _plain(graph: Graph, name: str, value: Any, *, last: bool = False) -> Any:
    """Turn messages into what an input takes: all of them for a list, else the text of the only one, or of the last."""
    messages = value.to_messages() if isinstance(value, PromptValue) else value
    messages = [messages] if isinstance(messages, BaseMessage) else messages
    if not (isinstance(messages, list) and messages and all(isinstance(message, BaseMessage) for message in messages)):
        return value
    if graph.spec.inputs[name].kind == "list":
        return [{"role": ROLES.get(message.type, message.type), "content": str(message.text)} for message in messages]
    if len(messages) > 1 and not last:
        raise InputError(
            f"the input {name!r} of {graph.spec.name!r} takes one message, not {len(messages)}; give the text of one, "
            "or declare an input 'messages' of type 'list'"
        )
    return str(messages[-1].text)


def _streams(graph: Graph) -> bool:
    """Whether the output agent writes one reply, so that its pieces are the graph's."""
    spec = graph.spec
    loops = any(edge.max_rounds is not None for edge in spec.edges)
    return len(spec.outputs) == 1 and not loops and spec.agents[spec.output].for_each is None


def _from_thread(reply: Callable[[Any], AsyncIterator[str]], inputs: Iterator[Any]) -> Iterator[str]:
    """Iterate over async replies whose event loop runs in a thread."""
    pieces = SimpleQueue[str | None]()

    async def write(value: Any) -> None:
        try:
            async for piece in reply(value):
                pieces.put(piece)
        finally:
            pieces.put(None)

    with start_blocking_portal() as portal:
        for value in inputs:
            task = portal.start_task_soon(write, value)
            try:
                while (piece := pieces.get()) is not None:
                    yield piece
                task.result()
            finally:
                task.cancel()
