"""A cache edge out of a recipe within a recipe, with a real model: as if its output agent stood in the graph itself."""

from pathlib import Path

import pytest

from cachegraph import Graph

pytestmark = [pytest.mark.models, pytest.mark.usefixtures("demo_models")]

MODELS = "models: {small: {source: smollm2-135m-instruct, dtype: float32}}"
READER = 'reader: {model: small, prompt: "{{ document }}", generate: {max_new_tokens: 0}}'
ANSWERER = 'answerer: {model: small, prompt: "{{ %s }}\\n\\n{{ question }}", generate: {max_new_tokens: 8}}'
HEAD = "version: 1\nname: %s\n"
DOCUMENT = "Anna keeps bees on the roof of the old library in Lisbon. Every morning she carries a blue bucket up there."


def read(folder: Path, agents: str, sender: str) -> Graph:
    text = (
        f"{HEAD % 'outer'}{MODELS}\ninputs: {{document: {{}}, question: {{}}}}\n"
        f"agents:\n  {agents}\n  {ANSWERER % sender}\n"
        f"edges: [{{from: {sender}, to: answerer, channel: cache, fallback: error}}]\noutput: answerer\n"
    )
    (folder / f"{sender}.yaml").write_text(text)
    return Graph.from_yaml(folder / f"{sender}.yaml")


def test_a_recipe_within_a_recipe_hands_over_its_output_agents_cache(tmp_path: Path) -> None:
    inner = f"{HEAD % 'inner'}{MODELS}\ninputs: {{document: {{}}}}\nagents:\n  {READER}\noutput: reader\n"
    (tmp_path / "inner.yaml").write_text(inner)
    nested = 'library: {graph: inner.yaml, inputs: {document: "{{ document }}"}}'
    given = {"document": DOCUMENT, "question": "Where does Anna keep bees?"}
    with read(tmp_path, READER, "reader") as flat, read(tmp_path, nested, "library") as outer:
        expected, got = flat.run(given), outer.run(given)
    assert got.text == expected.text
    assert got.text
    mine, own = got.edges["library", "answerer"], expected.edges["reader", "answerer"]
    assert mine.channel_used == "cache"
    assert mine.positions_grafted == own.positions_grafted > 0
    assert got.agents["answerer"].tokens.prefilled == expected.agents["answerer"].tokens.prefilled
