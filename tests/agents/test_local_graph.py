"""Whole graphs of tiny models: what swapping a channel changes, and what running many rows at once does not."""

from pathlib import Path
from typing import Any

import anyio
import pytest

from cachegraph import Graph
from cachegraph.channels.fusers.files.card import Geometry
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.networks.create import new_fuser
from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import ChannelError

DOCUMENT = "the sea is green and the sky is blue, " * 6
SHORT = {"max_new_tokens": 6}


def relay(loaded: dict[str, ModelSpec], channel: str) -> Graph:
    """One reader, two answerers."""
    graph = Graph(models={"small": loaded["small"]}, output="both")
    graph.add_input("document").add_input("question", default="what is the sky?")
    graph.add_agent("reader", model="small", prompt="{{ document }}", generate={"max_new_tokens": 0})
    for name, words in (("one", "in short"), ("two", "at length")):
        graph.add_agent(name, model="small", prompt=f"{{{{ reader }}}}\n\n{{{{ question }}}} {words}", generate=SHORT)
        graph.add_edge("reader", name, channel)  # type: ignore[arg-type]
    graph.add_agent("both", model="small", prompt="{{ one }} / {{ two }}", generate={"max_new_tokens": 0})
    return graph.add_edge("one", "both").add_edge("two", "both")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_swap_of_channels_keeps_the_words_and_saves_the_reading(loaded: dict[str, ModelSpec], backend: str) -> None:
    graph = relay(loaded, "cache")

    async def run() -> None:
        cache = await graph.arun(document=DOCUMENT)
        text = await graph.with_channels("text").arun(document=DOCUMENT)
        assert cache.text == text.text != ""
        for name in ("one", "two"):
            assert cache.edges["reader", name].channel_used == "cache"
            assert cache.edges["reader", name].positions_grafted > 5
            spared = text.agents[name].tokens.prefilled - cache.agents[name].tokens.prefilled
            assert spared == cache.agents[name].tokens.reused == cache.edges["reader", name].positions_grafted
        read = sum(agent.tokens.prefilled for agent in cache.agents.values())
        assert read < sum(agent.tokens.prefilled for agent in text.agents.values())

    anyio.run(run, backend=backend)
    graph.close()


def test_many_rows_at_once_say_what_each_says_alone(loaded: dict[str, ModelSpec]) -> None:
    graph = relay(loaded, "cache")
    rows = [{"document": DOCUMENT[: 5 * n], "question": "what? " * n} for n in range(1, 6)]
    alone = [graph.run(row).text for row in rows]
    together = [result.text for result in graph.map(rows)]
    graph.close()
    assert together == alone
    assert len(set(alone)) > 1


def duo(loaded: dict[str, ModelSpec], folder: Path, **edge: Any) -> Graph:
    models = {"small": loaded["small"], "other": loaded["other"]}
    graph = Graph(models=models, folder=folder, output="answerer")
    graph.add_input("question", default="what is the sky?")
    graph.add_agent("expert", model="other", prompt="{{ question }}", generate=SHORT)
    graph.add_agent("answerer", model="small", prompt="{{ expert }}{{ question }}", generate=SHORT)
    return graph.add_edge("expert", "answerer", "cache", fuser="fuser", **edge)


def save(folder: Path, gate: float, **card: Any) -> None:
    made = new_fuser("c2c", Geometry(3, 2, 8), Geometry(3, 2, 16), gate_logit=gate, hidden_dim=16, intermediate_dim=16)
    object.__setattr__(made, "card", made.card.model_copy(update={"alignment": "offsets", **card}))
    save_fuser(made, folder / "fuser")


@pytest.mark.parametrize("reads", ["receiver-prompt", "own-prompt"])
def test_a_fused_edge_with_closed_gates_is_the_receiver_alone(
    loaded: dict[str, ModelSpec], tmp_path: Path, reads: str
) -> None:
    """Nobody asks the expert for words, so none are written."""
    alone = Graph(models={"small": loaded["small"]}, output="answerer").add_input(
        "question", default="what is the sky?"
    )
    alone.add_agent("answerer", model="small", prompt="{{ question }}", generate=SHORT)
    expected = alone.run().text
    texts = {}
    for gate in (-1.0, 3.0):
        folder = tmp_path / str(gate)
        folder.mkdir()
        save(folder, gate, reads=reads)
        graph = duo(loaded, folder, fallback="error")
        result = graph.run()
        graph.close()
        texts[gate] = result.text
        report = result.edges["expert", "answerer"]
        assert report.channel_used == "cache"
        assert (report.positions_fused > 0) == (gate > 0)
        assert any(key for key, _ in report.residuals.values()) == (gate > 0)
        assert result.agents["expert"].text is None
        assert result.agents["expert"].tokens.generated == 0
    alone.close()
    assert texts[-1.0] == expected


def test_a_missing_fuser_falls_back_or_fails_before_anybody_speaks(
    loaded: dict[str, ModelSpec], tmp_path: Path
) -> None:
    graph = duo(loaded, tmp_path)
    result = graph.run()
    report = result.edges["expert", "answerer"]
    assert (report.asked, report.channel_used) == ("cache", "text")
    assert "there is no fuser 'fuser'" in (report.fallback_reason or "")
    assert result.agents["expert"].text
    graph.close()
    strict = duo(loaded, tmp_path, fallback="error")
    with pytest.raises(
        ChannelError, match="the cache edge 'expert' -> 'answerer' can't work: there is no fuser 'fuser'"
    ):
        strict.run()
    strict.close()
