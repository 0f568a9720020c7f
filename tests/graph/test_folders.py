"""What a library opens by itself in a stranger's folder lies in the recipe's folder, or the recipe is refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import config_of, save_model, save_tokenizer

from cachegraph.errors import ModelError, RecipeError
from cachegraph.graph.graph import Graph
from cachegraph.graph.recipe.load import load_recipe

RECIPE = """version: 1
name: leak
models: {m: {source: ./m}}
agents:
  a: {model: m, prompt: hi}
  b: {model: m, prompt: "{{ a }}"}
edges: [{from: a, to: b, channel: cache, fuser: ./f}]
output: b
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe with the folders of a model and a fuser beside it, and a secret next door."""
    folder = tmp_path / "recipe"
    for name in ("m", "m/original", "f"):
        (folder / name).mkdir(parents=True)
    for name in ("m/config.json", "m/tokenizer.json", "m/model.safetensors.index.json", "f/card.json"):
        (folder / name).write_text("{}")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "elsewhere").mkdir()
    (folder / "r.yaml").write_text(RECIPE)
    load_recipe(folder / "r.yaml")
    return folder / "r.yaml"


def _link(name: str, target: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).symlink_to(target)


def _index(name: str) -> Callable[[Path], None]:
    text = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": name}})
    return lambda folder: _write(folder / "m" / "model.safetensors.index.json", text)


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _replace(folder: Path, old: str, new: str) -> None:
    _write(folder / "r.yaml", RECIPE.replace(old, new))


def _default_fuser(folder: Path, name: str) -> None:
    _replace(folder, "agents:", f"fusers: [ok--name, {name}]\nagents:")


def _linked_default_fuser(folder: Path) -> None:
    (folder / "g").symlink_to("../elsewhere")
    _default_fuser(folder, "g")


def _pipe(name: str, model: str) -> Callable[[Path], None]:
    """A pipe in the folder, that the recipe's model names."""

    def make(folder: Path) -> None:
        os.mkfifo(folder / name)
        _replace(folder, "./m}", model)

    return make


ESCAPES: dict[str, Callable[[Path], None]] = {
    **{
        f"link {name}": _link(name, "../../secret")
        for name in (
            *("m/chat_template.jinja", "m/model.safetensors", "m/tokenizer.model", "m/generation_config.json"),
            *("f/fuser.safetensors", "f/projector_0.pt", "m/model-00001-of-00002.safetensors"),
        )
    },
    "absolute link": _link("m/vocab.json", "/etc/hostname"),
    "dangling link": _link("m/added_tokens.json", "../../nothing"),
    "linked folder": _link("m/additional_chat_templates", "../../elsewhere"),
    "deep link": _link("m/original/params.json", "../../../secret"),
    "loop of links": _link("m/merges.txt", "merges.txt"),
    "link over a link": lambda folder: (_link("m/x", "y")(folder), _link("m/y", "../../secret")(folder), None)[2],
    "shard by dots": _index("../../secret"),
    "shard by an absolute path": _index("/etc/hostname"),
    "adapter": lambda folder: _write(folder / "m/adapter_config.json", '{"base_model_name_or_path": "/etc"}'),
    "pipe": lambda folder: os.mkfifo(folder / "m" / "special_tokens_map.json"),
    "default fuser": lambda folder: _default_fuser(folder, "../elsewhere"),
    "absolute default fuser": lambda folder: _default_fuser(folder, str(folder.parent / "elsewhere")),
    "default fuser of the home": lambda folder: _default_fuser(folder, "~/fuser"),
    "default fuser over a link": _linked_default_fuser,
    "chat template that is a pipe": _pipe("c.jinja", "./m, chat_template: c.jinja}"),
    "model that is a pipe": _pipe("m.gguf", "m.gguf}"),
}


@pytest.mark.parametrize("escape", ESCAPES.values(), ids=ESCAPES)
def test_a_file_that_leads_out_of_the_recipes_folder_is_refused_at_its_line(
    recipe: Path, escape: Callable[[Path], None]
) -> None:
    escape(recipe.parent)
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe)
    (problem,) = caught.value.problems
    assert problem.line in (3, 4, 7)
    assert (
        "outside the recipe's folder" in problem.message
        or "out of the recipe's folder" in problem.message
        or ("not a regular file" in problem.message)
    )
    assert "--allow-paths" in problem.hint


def test_a_model_folder_that_is_a_link_is_refused(recipe: Path, tmp_path: Path) -> None:
    (recipe.parent / "m2").symlink_to(tmp_path / "elsewhere")
    recipe.write_text(RECIPE.replace("./m}", "./m2}"))
    with pytest.raises(RecipeError, match="leads out of the recipe's folder"):
        load_recipe(recipe)


def test_links_and_shards_within_the_recipes_folder_are_fine(recipe: Path) -> None:
    folder = recipe.parent
    (folder / "blobs").mkdir()
    (folder / "blobs" / "abc").write_text("x")
    (folder / "m" / "model.safetensors").symlink_to("../blobs/abc")
    _index("model-2.safetensors")(folder)
    load_recipe(recipe)


def test_default_fusers_within_the_folder_and_of_the_shelf_and_the_hub_are_fine(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("agents:", "fusers: [./f, a--b, 'hub:org/name/folder']\nagents:"))
    load_recipe(recipe)
    recipe.write_text(RECIPE.replace("agents:", "fusers: ['hub:a b']\nagents:"))
    with pytest.raises(RecipeError, match="is not a fuser of the hub"):
        load_recipe(recipe)


def test_who_allows_paths_allows_links(recipe: Path) -> None:
    _link("m/chat_template.jinja", "../../secret")(recipe.parent)
    load_recipe(recipe, allow_paths=True)


MODEL = """version: 1
name: leak
agents:
  a: {model: ./m, prompt: hi}
output: a
"""


@pytest.mark.parametrize("nested", [False, True], ids=["own", "included"])
@pytest.mark.parametrize("escape", ["tokenizer", "shard", "folder"])
def test_a_link_that_comes_after_the_recipe_was_checked_is_refused_when_the_model_is_opened(
    tmp_path: Path, escape: str, nested: bool
) -> None:
    folder, outside = tmp_path / "recipe", tmp_path / "elsewhere"
    (folder / "m").mkdir(parents=True)
    outside.mkdir()
    save_model(config_of("llama"), folder / "m")
    save_tokenizer(folder / "m")
    (folder / "r.yaml").write_text(MODEL)
    if nested:
        (folder / "outer.yaml").write_text(
            "version: 1\nname: outer\nagents:\n  inner: {graph: ./r.yaml}\noutput: inner\n"
        )
    graph = Graph.from_yaml(folder / ("outer.yaml" if nested else "r.yaml"))
    allowed = Graph.from_yaml(folder / "r.yaml", allow_paths=True)
    name = {"tokenizer": "m/tokenizer.json", "shard": "m/model.safetensors", "folder": "m"}[escape]
    (folder / name).rename(outside / "moved")
    (folder / name).symlink_to(outside / "moved")
    with pytest.raises(ModelError, match=r"^the model './m' .*leads out of the recipe's folder; .*--allow-paths"):
        graph.open()
    allowed.open().close()
