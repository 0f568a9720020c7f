"""Comparisons of recipes that include others: their edges are swapped and controlled like one's own."""

from pathlib import Path

import pytest
import yaml

from cachegraph import Graph, compare
from cachegraph.agents.scripted import scripted

from .conftest import STORY, Answerer, Reader, rows

pytestmark = pytest.mark.usefixtures("caches_travel")
WITHIN = {
    "version": 1,
    "name": "within",
    "inputs": {"context": {}, "question": {}},
    "agents": {"team": {"graph": "story.yaml", "inputs": {"context": "{{ context }}", "question": "{{ question }}"}}},
    "output": "team",
}


def nested(folder: Path) -> Graph:
    (folder / "story.yaml").write_text(yaml.safe_dump({"version": 1, **STORY}, sort_keys=False))
    (folder / "within.yaml").write_text(yaml.safe_dump(WITHIN))
    return Graph.from_yaml(folder / "within.yaml", create=scripted(Reader("reader"), Answerer("answerer")))


def test_controls_take_the_caches_inside_an_included_recipe(tmp_path: Path) -> None:
    found = compare(nested(tmp_path), rows(12), variants=["text", "cache", "mismatched", "zero", "alone", "ceiling"])
    quality = {row.name: row.quality["accuracy"].value for row in found.rows if row.why_not is None}
    assert quality == {"text": 1.0, "cache": 1.0, "mismatched": 0.0, "zero": 0.0}
    refused = {row.name: row.why_not for row in found.rows if row.why_not is not None}
    assert refused == {
        "alone": "the output 'team' is an included recipe, not an agent",
        "ceiling": "agents of included recipes can't be made to read only",
    }
    over_cache, over_text = found.row("cache"), found.row("text")
    assert over_cache is not None
    assert over_text is not None
    (edge,) = over_cache.edges
    assert (edge.sender, edge.receiver, edge.used) == ("team/reader", "team/answerer", {"cache": 12})
    assert over_text.cache_share is None
    assert [model.agent for model in found.environment.models] == ["team/reader", "team/answerer"]


def test_a_changed_included_recipe_runs_again(tmp_path: Path) -> None:
    def asked() -> str:
        return compare(nested(tmp_path), rows(2), variants=["text"]).environment.recipe_hash

    before = asked()
    assert asked() == before
    agents = {**STORY["agents"], "answerer": {"model": "small", "prompt": "{{ reader }}"}}
    (tmp_path / "story.yaml").write_text(yaml.safe_dump({"version": 1, **STORY, "agents": agents}, sort_keys=False))
    graph = Graph.from_yaml(tmp_path / "within.yaml", create=scripted(Reader("reader"), Answerer("answerer")))
    assert compare(graph, rows(2), variants=["text"]).environment.recipe_hash != before
