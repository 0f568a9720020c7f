"""Which fusers of the hub `cachegraph run` fetches before anything runs."""

from pathlib import Path

import pytest

from cachegraph.cli import fetch
from cachegraph.graph.recipe.load import parse_recipe

RECIPE = """version: 1
name: fetched
fusers: ["hub:org/defaults/one", shipped--name]
agents:
  a: {model: m, prompt: a}
  b: {model: m, prompt: "{{ a }}"}
  c: {model: m, prompt: "{{ b }}"}
edges:
  - {from: a, to: b, channel: cache%s}
  - {from: b, to: c}
output: c
"""


@pytest.mark.parametrize(
    ("named", "fetched"),
    [("", ["hub:org/defaults/one"]), (', fuser: "hub:org/own/two"', ["hub:org/own/two"]), (", fuser: a--b", [])],
)
def test_a_recipes_default_fusers_are_fetched_where_an_edge_names_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, named: str, fetched: list[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(fetch, "find_fuser", lambda name, place, progress: asked.append(name))
    fetch.fetch_fusers(parse_recipe(RECIPE % named, folder=tmp_path), tmp_path)
    assert asked == fetched
