"""A graph as a LangChain Runnable and as a LangGraph node, in chains of the libraries' own parts."""

import asyncio
import operator
import threading
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypedDict

import pytest
from server_graphs import Gate, gated, scripted_duo, tiny_solo

from cachegraph.agents.scripted import ScriptedAgent
from cachegraph.errors import InputError, RunError
from cachegraph.graph.graph import Graph
from cachegraph.graph.run.result import Result

pytest.importorskip("langchain_core", reason="LangChain is not installed")

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate

from cachegraph.integrations.langchain import GraphRunnable, graph_node

REPLY = "answerer(expert(why?))"


class Heard(BaseCallbackHandler):
    """Counts what a tracer hears."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_chain_start(self, *_: Any, **__: Any) -> None:
        self.events.append("start")

    def on_chain_end(self, *_: Any, **__: Any) -> None:
        self.events.append("end")

    def on_chain_error(self, *_: Any, **__: Any) -> None:
        self.events.append("error")


@pytest.mark.parametrize(
    "value",
    ["why?", {"question": "why?"}, HumanMessage("why?"), [HumanMessage("why?")], {"question": HumanMessage("why?")}],
)
def test_text_messages_and_mappings_run_the_graph(value: Any) -> None:
    assert GraphRunnable(scripted_duo()).invoke(value) == REPLY


def test_both_kinds_of_calls_give_one_reply_and_are_traced() -> None:
    runnable = GraphRunnable(scripted_duo())
    for call in (runnable.invoke, lambda *given: asyncio.run(runnable.ainvoke(*given))):
        heard = Heard()
        assert call("why?", {"callbacks": [heard]}) == REPLY
        assert heard.events == ["start", "end"]


def test_it_stands_in_a_chain() -> None:
    chain = PromptTemplate.from_template("{x}?") | GraphRunnable(scripted_duo()) | StrOutputParser()
    assert chain.invoke({"x": "why"}) == REPLY
    assert "".join(chain.stream({"x": "why"})) == REPLY


def test_whole_gives_the_result_with_its_edges() -> None:
    result = GraphRunnable(scripted_duo(), whole=True).invoke("why?")
    assert isinstance(result, Result)
    assert result.edges["expert", "answerer"].channel_used == "text"


def test_batches_keep_their_order_and_return_errors() -> None:
    runnable = GraphRunnable(scripted_duo())
    assert runnable.batch(["a", "b"], {"max_concurrency": 1}) == ["answerer(expert(a))", "answerer(expert(b))"]
    first, second = runnable.batch(["a", {"wrong": 1}], return_exceptions=True)
    assert first == "answerer(expert(a))"
    assert isinstance(second, InputError)
    assert asyncio.run(runnable.abatch(["a"])) == ["answerer(expert(a))"]


def test_streams_yield_the_reply_in_pieces_that_add_up() -> None:
    with tiny_solo() as graph:
        runnable = GraphRunnable(graph)
        whole = runnable.invoke("why?")

        async def listen() -> list[str]:
            return [piece async for piece in runnable.astream("why?")]

        for pieces in (list(runnable.stream("why?")), asyncio.run(listen())):
            assert len(pieces) > 1
            assert "".join(pieces) == whole


def test_keywords_are_settings_of_the_output() -> None:
    with tiny_solo() as graph:
        runnable = GraphRunnable(graph, whole=True)
        assert runnable.bind(max_new_tokens=2).invoke("x").totals.tokens.generated == 2
        assert len(list(GraphRunnable(graph).stream("x", max_new_tokens=2))) <= 2
        with pytest.raises(InputError, match="max_new_token"):
            runnable.invoke("x", max_new_token=2)


def test_errors_are_the_graphs_own() -> None:
    heard = Heard()
    runnable = GraphRunnable(scripted_duo(ScriptedAgent("expert", fail=ValueError("no idea"))))
    with pytest.raises(RunError, match="no idea"):
        runnable.invoke("why?", {"callbacks": [heard]})
    assert heard.events == ["start", "error"]
    with pytest.raises(RunError, match="no idea"):
        list(runnable.stream("why?"))
    with pytest.raises(InputError, match="takes one message, not 2"):
        runnable.invoke(ChatPromptTemplate([("system", "Be short."), ("user", "why?")]).invoke({}))
    two = scripted_duo().add_input("other")
    with pytest.raises(InputError, match="needs 'question', 'other'"):
        GraphRunnable(two).invoke("why?")


def test_a_graph_with_an_input_for_messages_gets_the_conversation() -> None:
    graph = Graph(name="talk")
    graph.add_input("messages", type="list")

    @graph.function
    def answer(messages: list[dict[str, str]]) -> str:
        return " ".join(f"{each['role']}:{each['content']}" for each in messages)

    graph.output = "answer"
    messages = [SystemMessage("s"), HumanMessage("h"), AIMessage("a")]
    assert GraphRunnable(graph).invoke(messages) == "system:s user:h assistant:a"


@pytest.mark.parametrize("use", ["stream", "astream"])
def test_leaving_a_stream_cancels_its_run(use: str) -> None:
    gate = Gate()
    runnable = GraphRunnable(gated(gate))

    async def listen(pieces: AsyncIterator[str]) -> None:
        task = asyncio.ensure_future(anext(pieces))
        await asyncio.to_thread(gate.entered.acquire)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    if use == "astream":
        asyncio.run(listen(runnable.astream("x")))
        assert gate.cancelled == 1
        return
    pieces = runnable.stream("x")
    done = threading.Thread(target=lambda: next(pieces, None))
    done.start()
    gate.entered.acquire()
    gate.open.set()  # a thread that waits for a piece can't be interrupted
    done.join(60)
    assert not done.is_alive()


def test_a_graph_is_a_node_of_langgraph() -> None:
    langgraph = pytest.importorskip("langgraph.graph", reason="LangGraph is not installed")

    class State(TypedDict, total=False):
        topic: str
        answer: str
        messages: Annotated[list[Any], operator.add]

    builder = langgraph.StateGraph(State)
    builder.add_node("team", graph_node(scripted_duo(), reads={"question": "topic"}))
    builder.add_node("again", graph_node(scripted_duo(), reads={"question": "messages"}, writes="messages"))
    builder.add_edge(langgraph.START, "team")
    builder.add_edge("team", "again")
    app = builder.compile()
    given = {"topic": "why?", "messages": [HumanMessage("no"), HumanMessage("why?")]}
    for state in (app.invoke(given), asyncio.run(app.ainvoke(given))):
        assert state["answer"] == REPLY
        assert [each.text for each in state["messages"]] == ["no", "why?", REPLY]


def test_a_node_reads_the_keys_of_its_inputs_names() -> None:
    assert graph_node(scripted_duo()).invoke({"question": "why?", "else": 1}) == {"answer": REPLY}
    with pytest.raises(InputError, match="has no input 'topic'"):
        graph_node(scripted_duo(), reads={"topic": "question"})
    with pytest.raises(InputError, match="the state has no key 'topic'"):
        graph_node(scripted_duo(), reads={"question": "topic"}).invoke({"question": "why?"})
