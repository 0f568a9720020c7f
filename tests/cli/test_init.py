"""`cachegraph init`: recipes to start from."""

from pathlib import Path

import pytest

from cachegraph.graph.graph import Graph
from cachegraph.graph.recipe.load import load_recipe

from .conftest import Call

TEMPLATES = ["relay", "panel", "review", "endpoint"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_becomes_a_recipe_that_validates(
    template: str, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = call("init", "--template", template)
    assert (ended.code, ended.err) == (0, "")
    assert f"wrote {template}.yaml" in ended.out
    assert call("validate", "--strict", f"{template}.yaml").code == 0
    spec = load_recipe(tmp_path / f"{template}.yaml")
    assert spec.name == template
    assert all(not each.is_required for each in spec.inputs.values())


@pytest.mark.parametrize(
    ("file", "written", "name"),
    [
        ("my team", "my team.yaml", "my-team"),
        ("deep/down.yml", "deep/down.yml", "down"),
        ("2024.yaml", "2024.yaml", "2024"),
        ("1.5", "1.5.yaml", "1.5"),
        ("null.yaml", "null.yaml", "null"),
        ("é.yaml", "é.yaml", "relay"),
        (".", "relay.yaml", "relay"),
    ],
)
def test_the_recipe_is_named_after_its_file(
    file: str, written: str, name: str, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("init", file).code == 0
    assert load_recipe(tmp_path / written).name == name


def test_nothing_is_overwritten(tmp_path: Path, call: Call) -> None:
    file = tmp_path / "relay.yaml"
    file.write_text("mine")
    ended = call("init", file)
    assert (ended.code, file.read_text()) == (2, "mine")
    assert "exists already" in ended.err
    assert call("init", tmp_path).code == 2
    assert call("init", file / "below.yaml").code == 3
    assert call("init", "nul\0").code == 2


@pytest.mark.models
@pytest.mark.usefixtures("demo_engines")
@pytest.mark.parametrize("template", ["relay", "panel", "review"])
def test_a_template_runs_with_the_demo_models_as_it_is(
    template: str, tmp_path: Path, call: Call, home_of_the_tests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(home_of_the_tests))  # where the models are that are loaded already
    call("init", tmp_path, "-t", template)
    with Graph.from_yaml(tmp_path / f"{template}.yaml") as graph:
        result = graph.with_settings(max_new_tokens=4).run()
    assert result.status == "finished"
    assert not [edge for edge in result.edges.values() if edge.fallback_reason]
