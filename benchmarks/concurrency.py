"""Decoding by several agents of one model at the same time, against one agent.

A graph of that many agents that know nothing of each other; all their prompts fit in one step, so they decode from then
on together. The throughput is all their tokens over the time from the first agent's first token to the last one's last.

    python benchmarks/concurrency.py [--model smollm2-135m-instruct] [--agents 1 2 4 8 16] [--quick] [--profile]
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from measuring import Range, alternate, options, parsed, profiled, ratios, show

from cachegraph import Graph

TOPICS = ("the sea", "a key", "two cats", "the sky", "some tea", "a map", "an old hat", "the moon")


def build(model: dict[str, Any], agents: int, tokens: int) -> Graph:
    graph = Graph(name="side-by-side", models={"one": model})
    names = [f"agent_{number}" for number in range(agents)]
    for number, name in enumerate(names):
        prompt = f"{number}. About {TOPICS[number % len(TOPICS)]}:"
        generate = {"max_new_tokens": tokens, "ignore_eos": True}
        # Plain text: a chat's template would be 30 tokens more.
        graph.add_agent(name, model="one", prompt=prompt, chat=False, generate=generate)
    everything = "".join("{{ " + name + " }}" for name in names)
    graph.add_agent("all", model="one", prompt=everything, generate={"max_new_tokens": 0})
    for name in names:
        graph.add_edge(name, "all")
    graph.output = "all"
    return graph


def throughput(graph: Graph) -> float:
    """Tokens a second of all agents together, behind their first."""
    agents = [agent for name, agent in graph.run().agents.items() if name != "all"]
    began = min((agent.started or 0.0) + (agent.timing.first_token or 0.0) for agent in agents)
    ended = max((agent.started or 0.0) + agent.timing.total for agent in agents)
    return sum(agent.tokens.generated - 1 for agent in agents) / (ended - began)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__ or "", tokens=(64, 4))
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a catalogue name or a folder")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--agents", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    chosen = parsed(parser, arguments)
    counts = [1, 2] if chosen.quick else sorted({1, *chosen.agents})
    model = {"source": chosen.model, "dtype": chosen.dtype}
    graphs = {count: build(model, count, chosen.tokens).open() for count in counts}
    try:
        if chosen.profile:
            graphs[counts[-1]].run()
            with profiled():
                graphs[counts[-1]].run()
            return
        given = alternate({str(count): partial(throughput, graph) for count, graph in graphs.items()}, chosen.repeats)
    finally:
        for graph in graphs.values():
            graph.close()
    found = {
        "title": f"{chosen.model}, {chosen.dtype}: {chosen.tokens} tokens an agent",
        "n": chosen.repeats,
        "tokens_s": {name: Range(values) for name, values in given.items()},
        "over_one": {name: ratios(values, given["1"]) for name, values in given.items()},
    }
    rows = [
        [
            name,
            f"{found['tokens_s'][name]:.1f}",
            f"{Range([v / int(name) for v in values]):.1f}",
            f"{found['over_one'][name]:.2f}",
        ]
        for name, values in given.items()
    ]
    show(found, ["agents", "tokens/s of all", "of each", "over one agent"], rows, json=chosen.json)


if __name__ == "__main__":
    main()
