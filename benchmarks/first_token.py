"""How soon an answer about a document begins: the document grafted, found again as a prefix, or prefilled.

An agent's time to its first token, from the start of its turn. Where the document is grafted, somebody has read it
before; where it is found again, the same agent has. No other document is used twice.

    python benchmarks/first_token.py [--tokens 1000] [--quick] [--profile] [--json]
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from measuring import Range, alternate, options, parsed, profiled, ratios, show
from texts import document, fresh_text

from cachegraph import Graph
from cachegraph.engine.pool import leased
from cachegraph.engine.spec import ModelSpec
from cachegraph.graph.run.result import AgentResult

SYSTEM = "Answer with a few words from the text."
OTHER_SYSTEM = "You are a lawyer. Answer with a few words from the text, and only from it."
TITLES = {
    "prefilled": "prefilled",
    "grafted": "grafted where it stood",
    "moved": "grafted elsewhere (keys rotated)",
    "found": "found again as a prefix",
}


def build(model: str, dtype: str, system: str) -> Graph:
    """A reader with a system message of its own kind, and an answerer that goes on from what it has read."""
    graph = Graph(name="first-token", models={"small": {"source": model, "dtype": dtype}})
    graph.add_input("document").add_input("question")
    graph.add_agent("reader", model="small", system=SYSTEM, prompt="{{ document }}", generate={"max_new_tokens": 0})
    graph.add_agent(
        "answerer",
        model="small",
        system=system,
        prompt="{{ reader }}\n\n{{ question }}",
        generate={"max_new_tokens": 2, "ignore_eos": True},
    )
    graph.add_edge("reader", "answerer", "cache", fallback="error")
    graph.output = "answerer"
    return graph


class Asking:
    """The same document again and again, each time behind another number."""

    def __init__(self, text: str):
        self._text = text

    def new(self, graph: Graph) -> float:
        return _first(_ask(graph, fresh_text(self._text), "Who may use this?"))

    def again(self, graph: Graph) -> float | None:
        """None where the second question has the document read again."""
        text = fresh_text(self._text)
        _ask(graph, text, "Who may use this?")
        answerer = _ask(graph, text, "What must be kept?")
        return _first(answerer) if answerer.tokens.reused > answerer.tokens.prefilled else None


def _ask(graph: Graph, text: str, question: str) -> AgentResult:
    return graph.run(document=text, question=question).agents["answerer"]


def _first(answerer: AgentResult) -> float:
    assert answerer.timing.first_token is not None
    return answerer.timing.first_token


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__ or "", tokens=(1000, 40))
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a catalogue name or a folder")
    parser.add_argument("--dtype", default="bfloat16")
    chosen = parsed(parser, arguments)
    with ExitStack() as stack:
        same, other = (
            stack.enter_context(build(chosen.model, chosen.dtype, system)) for system in (SYSTEM, OTHER_SYSTEM)
        )
        engine = stack.enter_context(leased(ModelSpec(source=chosen.model, dtype=chosen.dtype), Path()))
        assert engine.model.tokenizer is not None
        asking, text = Asking(document(engine.model.tokenizer, chosen.tokens)), same.with_channels("text")
        contenders: dict[str, Callable[[], Any]] = {
            "prefilled": lambda: asking.new(text),
            "grafted": lambda: asking.new(same),
            "moved": lambda: asking.new(other),
            "found": lambda: asking.again(text),
        }
        if chosen.profile:
            asking.new(same)
            with profiled():
                asking.new(same)
            return
        given = alternate(contenders, chosen.repeats)
    if None in given["found"]:
        del given["found"]
    found = {
        "title": f"first token behind a document of {chosen.tokens} tokens, {chosen.model}, {chosen.dtype}",
        "n": chosen.repeats,
        "seconds": {name: Range(values) for name, values in given.items()},
        "sooner": {name: ratios(given["prefilled"], values) for name, values in given.items()},
    }
    rows = [
        [title, f"{found['seconds'][name]:.3f}", f"{found['sooner'][name]:.2f}"]
        if name in given
        else [title, "no hit", ""]
        for name, title in TITLES.items()
    ]
    show(found, ["the document", "first token, s", "sooner than prefilled"], rows, json=chosen.json)


if __name__ == "__main__":
    main()
