"""Chat templates that change the text they are given: an edge whose place is lost hands over words, and says so."""

from pathlib import Path

import pytest
from tiny import config_of, save_model, save_tokenizer

from cachegraph import Graph

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | FILTER }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


@pytest.mark.parametrize("how", ["upper", "replace('e', 'E')"])
def test_a_graft_whose_place_is_lost_falls_back_by_name(how: str, tmp_path: Path) -> None:
    folder = save_model(config_of("llama"), tmp_path / "tiny")
    save_tokenizer(folder, template=TEMPLATE.replace("FILTER", how))
    graph = Graph(models={"m": {"source": str(folder), "dtype": "float32", "device": "cpu"}}, output="w")
    graph.add_input("d", default="the sea is green").add_input("q", default="what is the sea?")
    graph.add_agent("r", model="m", prompt="{{ d }}", chat=False, generate={"max_new_tokens": 0})
    generate = {"max_new_tokens": 6, "ignore_eos": True}
    graph.add_agent("w", model="m", prompt="{{ r }}\n{{ q }}", generate=generate).add_edge("r", "w", "cache")
    with graph, graph.with_channels("text") as plain:
        result = graph.run()
        edge = result.edges["r", "w"]
        assert (edge.channel_used, edge.positions_grafted) == ("text", 0)
        assert edge.fallback_reason == (
            "the chat template of 'tiny' changes the text that it is given, so there is no place in it for what 'r' "
            "hands over"
        )
        assert result.text == plain.run().text
