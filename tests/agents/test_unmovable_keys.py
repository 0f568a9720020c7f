"""Models whose keys can't be moved: their rows are continued where they stand, or the edge falls back by name."""

from pathlib import Path

import pytest
from tiny import save_model, save_tokenizer
from transformers import models as hf

from cachegraph import Graph

KINDS = {
    "gpt2": lambda: hf.gpt2.GPT2Config(
        vocab_size=300, n_embd=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None
    ),
    "opt": lambda: hf.opt.OPTConfig(
        vocab_size=300, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("front", "used"), [("", "cache"), ("Now: ", "text")])
def test_a_row_whose_keys_can_not_be_moved_is_continued_where_it_stands(
    kind: str, front: str, used: str, tmp_path: Path
) -> None:
    folder = save_model(KINDS[kind](), tmp_path)
    save_tokenizer(folder)
    graph = Graph(models={"m": {"source": str(folder), "dtype": "float32", "device": "cpu"}}, output="w")
    graph.add_input("d").add_agent("r", model="m", prompt="{{ d }}", chat=False, generate={"max_new_tokens": 0})
    generate = {"max_new_tokens": 8, "ignore_eos": True}
    graph.add_agent("w", model="m", prompt=front + "{{ r }} why?", chat=False, generate=generate)
    graph.add_edge("r", "w", "cache")
    with graph, graph.with_channels("text") as plain:
        got, expected = (each.run(d="the sky is blue and the sea is green") for each in (graph, plain))
    edge = got.edges["r", "w"]
    assert edge.channel_used == used
    assert (edge.fallback_reason is None) == (used == "cache")
    assert "can be grafted only at their positions" in (
        edge.fallback_reason or "can be grafted only at their positions"
    )
    assert got.text == expected.text
