"""Grafts between agents whose model keeps a recurrent state beside KV: exact where rows begin alike, else text."""

from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml
from hybrids import HYBRIDS
from tiny import load_tiny, save_model, save_tokenizer

from cachegraph import Graph
from cachegraph.channels.cache.graft import graft
from cachegraph.channels.cache.sent_cache import SentCache
from cachegraph.channels.payload import Origin
from cachegraph.engine.engine import Engine

DOCUMENT = "The sky is blue and the sea is green, what is the question of the answer? " * 3
QUESTION = "What is the question of the sea?"
REASON = (
    "'{}' keeps a recurrent state beside its KV cache, and it can be handed over only where the receiver's row begins "
    "with exactly the tokens of the sender's row, up to the end of what 'reader' hands over"
)
WRITE = {"max_new_tokens": 8, "ignore_eos": True}


def play(kind: str, folder: Path, answer: str, reader: str = "{{ document }}", **more: Any) -> tuple[Any, Any]:
    """The run with a cache edge, and the same over text."""
    model = folder / kind
    if not model.exists():
        save_tokenizer(save_model(HYBRIDS[kind](), model))
    recipe: dict[str, Any] = {
        "version": 1,
        "name": "hybrid",
        "models": {"m": {"source": f"./{kind}", "dtype": "float32", "device": "cpu"}},
        "inputs": {"document": {}, "question": {}},
        "agents": {
            "reader": {"model": "m", "prompt": reader, "generate": {"max_new_tokens": 0}, **more},
            "answer": {"model": "m", "prompt": answer, "generate": WRITE, **more},
        },
        "edges": [{"from": "reader", "to": "answer", "channel": "cache"}],
        "output": "answer",
    }
    for agent in recipe["agents"].values():
        agent.setdefault("chat", False)
    with Graph.from_yaml_text(yaml.safe_dump(recipe, sort_keys=False), folder) as graph:
        inputs: dict[str, Any] = {"document": DOCUMENT, "question": QUESTION}
        return graph.run(**inputs), graph.with_channels("text").run(**inputs)


@pytest.mark.parametrize("kind", HYBRIDS)
def test_a_graft_that_opens_the_row_hands_over_kv_and_state_exactly(kind: str, tmp_path: Path) -> None:
    cache, text = play(kind, tmp_path, "{{ reader }}\n{{ question }}")
    edge = cache.edges["reader", "answer"]
    assert (edge.channel_used, edge.fallback_reason) == ("cache", None)
    assert edge.positions_grafted > 50
    assert cache.text == text.text


def test_a_state_goes_over_behind_the_same_tokens_as_the_senders_alone(tmp_path: Path) -> None:
    model = load_tiny(HYBRIDS["lfm2"](), tmp_path)
    engine = Engine(model)
    ids = list(range(10, 35))
    try:
        segments = anyio.run(engine.prefill, ids).segments
        plane = SentCache(segments, ids, [None] * 5 + [Origin("document", 0, 1)] * 20, model.identity, "reader")
        for front, state in ((ids[:5], segments[-1].state), ([1, *ids[1:5]], None), (None, None)):
            brought = graft(plane, model, 5, (), "prompt", front=front)
            assert brought is not None
            assert brought.segments[0].state is state
        elsewhere = graft(plane, model, 0, (), "prompt", front=[])
        assert elsewhere is not None
        assert elsewhere.segments[0].state is None
    finally:
        engine.close()


@pytest.mark.parametrize("answer", ["Read: {{ reader }}\n{{ question }}", "{{ question }}\n{{ reader }}\nAnswer:"])
def test_elsewhere_the_words_go_over_and_the_reason_is_told(answer: str, tmp_path: Path) -> None:
    cache, text = play("lfm2", tmp_path, answer)
    edge = cache.edges["reader", "answer"]
    assert (edge.channel_used, edge.fallback_reason) == ("text", REASON.format("lfm2"))
    assert (edge.positions_grafted, cache.text) == (0, text.text)


def test_a_graft_that_closes_the_prompt_goes_over_as_text(tmp_path: Path) -> None:
    cache, text = play("lfm2", tmp_path, "{{ reader }}")
    edge = cache.edges["reader", "answer"]
    assert edge.channel_used == "text"
    assert "in front of which no state was kept; write something behind the slot" in edge.fallback_reason
    assert cache.text == text.text
