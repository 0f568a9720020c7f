"""Control flow over cache edges, with a small random model: what is grafted item by item and round after round."""

from pathlib import Path
from typing import Any

import pytest
from tiny import config_of, save_model, save_tokenizer

from cachegraph import Graph
from cachegraph.engine.spec import ModelSpec

SIX = {"max_new_tokens": 6, "min_new_tokens": 6, "ignore_eos": True}


def agent(prompt: str, **options: Any) -> dict[str, Any]:
    return {"model": "small", "prompt": prompt, "generate": SIX, "chat": False, **options}


def build(loaded: dict[str, ModelSpec], agents: dict[str, Any], edges: list[dict[str, Any]], output: str) -> Graph:
    drawn = [{"channel": "cache", "fallback": "error", **edge} for edge in edges]
    return Graph(models={"small": loaded["small"]}, inputs={"task": {}}, agents=agents, edges=drawn, output=output)


def test_the_caches_of_all_items_are_grafted_one_behind_the_other(loaded: dict[str, ModelSpec]) -> None:
    reader = agent("read {{ doc }} for {{ task }}", for_each="task.split('|')", **{"as": "doc"})
    agents = {"reader": reader, "writer": agent("{{ reader }} and now")}
    graph = build(loaded, agents, [{"from": "reader", "to": "writer", "carries": "prompt"}], "writer")
    one = graph.run(task="the sea is green")
    both = graph.run(task="the sea is green|the sea is green")
    graph.close()
    edge, single = both.edges["reader", "writer"], one.edges["reader", "writer"]
    assert (edge.channel_used, edge.fallback_reason) == ("cache", None)
    assert both.agents["reader"].text is None  # nobody reads their words, so none are written
    words = one.agents["reader"].tokens.prefilled
    # The same words as two items are two items; the task, which both have read, goes over once.
    assert single.positions_grafted < edge.positions_grafted
    assert edge.positions_grafted <= 2 * words
    assert both.agents["writer"].tokens.reused == edge.positions_grafted


@pytest.mark.parametrize(("rounds", "positions"), [("newest", 6), ("all", 18)])
def test_a_loop_hands_over_the_newest_rounds_cache_or_all_of_them(
    loaded: dict[str, ModelSpec], rounds: str, positions: int
) -> None:
    agents = {
        "writer": agent("{{ task }} {{ critic }} go"),
        "critic": agent("{{ writer }} why"),
        "judge": agent("{{ writer }} so"),
    }
    edges: list[dict[str, Any]] = [
        {"from": "writer", "to": "critic", "carries": "reply"},
        {"from": "critic", "to": "writer", "carries": "reply", "max_rounds": 3},
        {"from": "writer", "to": "judge", "carries": "reply", "rounds": rounds},
    ]
    graph = build(loaded, agents, edges, "judge")
    result = graph.run(task="the sea is green")
    graph.close()
    assert [result.agents[name].turns for name in agents] == [3, 3, 1]
    assert result.edges["writer", "critic"].positions_grafted == 6
    assert result.edges["critic", "writer"].positions_grafted == 6
    assert result.edges["writer", "judge"].positions_grafted == positions


def test_a_skipped_cache_edge_leaves_its_slot_empty(loaded: dict[str, ModelSpec]) -> None:
    agents = {"a": agent("{{ task }} a"), "b": agent("{{ task }} b"), "c": agent("{{ a }}{{ b }} c")}
    edges: list[dict[str, Any]] = [
        {"from": "a", "to": "c"},
        {"from": "b", "to": "c", "when": "'both' in task", "carries": "reply"},
    ]
    graph = build(loaded, agents, edges, "c")
    one, both = graph.run(task="only one"), graph.run(task="both of them")
    graph.close()
    assert set(one.edges) == {("a", "c")}
    assert both.edges["b", "c"].positions_grafted == 6
    assert one.agents["c"].text


@pytest.mark.parametrize(
    ("generate", "reason"),
    [
        ({"max_new_tokens": 3, "ignore_eos": True}, "length"),
        ({"max_new_tokens": 200, "stop": ["e", "t", "a", "o", " ", "s"], "ignore_eos": True}, "stop"),
        ({"max_new_tokens": 0}, None),
    ],
)
def test_a_reply_says_why_it_ended(loaded: dict[str, ModelSpec], generate: dict[str, Any], reason: str | None) -> None:
    graph = build(loaded, {"writer": agent("the sea is {{ task }}", generate=generate)}, [], "writer")
    result = graph.run(task="green")
    graph.close()
    assert result.agents["writer"].finish_reason == reason


def test_a_reply_that_the_model_ends_itself_ends_by_eos(tmp_path: Path) -> None:
    config = config_of("llama")
    config.eos_token_id = list(range(config.vocab_size))  # whatever it writes ends the reply
    save_tokenizer(save_model(config, tmp_path / "model"))
    model = ModelSpec(source=str(tmp_path / "model"), dtype="float32", device="cpu")
    generate = {"max_new_tokens": 20}
    with build({"small": model}, {"writer": agent("the sea", generate=generate)}, [], "writer") as graph:
        result = graph.run(task="")
    assert (result.text, result.agents["writer"].finish_reason) == ("", "eos")
