"""What a recipe says of a model means one source, or an error that helps."""

from pathlib import Path

import pytest

from cachegraph.engine.catalogue import find, load_catalogue
from cachegraph.engine.catalogue.catalogue import FolderSource, GgufSource, HubSource, Source, WheelSource
from cachegraph.engine.catalogue.resolve import resolve
from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import InputError, ModelError

from .conftest import Catalogue


def source_of(name: str, base: Path = Path(), **more: str) -> Source:
    return resolve(ModelSpec(source=name, **more), base, load_catalogue()).source


def test_each_kind_of_source_is_told_by_its_form(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert isinstance(source_of("smollm2-135m-instruct"), WheelSource)
    assert source_of("qwen3-0.6b") == HubSource(kind="hub", repo="Qwen/Qwen3-0.6B")
    assert source_of("org/name", revision="v1") == HubSource(kind="hub", repo="org/name", revision="v1")
    assert source_of("here", tmp_path) == FolderSource(kind="folder", path=str(tmp_path / "here"))
    assert source_of("a/b.gguf", tmp_path) == GgufSource(kind="gguf", path=str(tmp_path / "a" / "b.gguf"))


def test_an_unknown_name_is_told_with_the_nearest_ones_and_how_to_see_all() -> None:
    with pytest.raises(ModelError, match=r"no model 'smolm2'.*did you mean 'smollm2-135m-instruct'.*models list"):
        source_of("smolm2")


def test_a_revision_is_for_hub_models_and_gives_them_a_place_of_their_own() -> None:
    assert resolve(ModelSpec(source="qwen3-0.6b"), Path(), load_catalogue()).slug == "qwen3-0.6b"
    other = resolve(ModelSpec(source="qwen3-0.6b", revision="refs/pr/1"), Path(), load_catalogue())
    assert other.slug == "qwen3-0.6b@refs%2Fpr%2F1"
    with pytest.raises(ModelError, match="is not a hub model, so it has no revision 'x'"):
        source_of("gemma-3-270m", revision="x")


def test_a_recipe_s_chat_template_wins_and_stays_in_the_recipe_s_folder(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "chat.jinja").write_text("{{ messages }}")
    (tmp_path / "secret").write_text("key")
    spec = ModelSpec(source="gemma-3-270m", chat_template="chat.jinja")
    assert resolve(spec, tmp_path / "recipe", load_catalogue()).chat_template == "{{ messages }}"
    for name in ("../secret", str(tmp_path / "secret")):
        with pytest.raises(ModelError, match="leaves the recipe's folder"):
            resolve(spec.model_copy(update={"chat_template": name}), tmp_path / "recipe", load_catalogue())
    with pytest.raises(ModelError, match=r"chat template 'none.jinja' can't be read"):
        resolve(spec.model_copy(update={"chat_template": "none.jinja"}), tmp_path / "recipe", load_catalogue())


def test_a_user_s_catalogue_is_laid_over_the_shipped_one(catalogue_file: Catalogue, tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("from the file")
    licence = {"name": "MIT"}
    path = catalogue_file(
        {
            "mine": {"source": {"kind": "folder", "path": "m"}, "licence": licence, "chat_template": "chat.jinja"},
            "qwen3-0.6b": {"source": {"kind": "gguf", "path": "q.gguf"}, "licence": licence},
        }
    )
    wanted = resolve(ModelSpec(source="mine"), Path("/elsewhere"), load_catalogue())
    assert wanted.path == path.parent / "m"  # relative to the catalogue, not to the recipe
    assert wanted.chat_template == "from the file"
    assert isinstance(source_of("qwen3-0.6b"), GgufSource)
    assert isinstance(source_of("gemma-3-270m"), WheelSource)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 1\nmodels: {a: {sorce: 1}}", r"models.a.source: Field required; models.a.licence"),
        ("version: 1\nmodels: {a: *x}", "aliases are not allowed|undefined alias"),
        ("version: 1\nmodels: {}\nmodels: {}", "'models' is given twice"),
        ("version: 1\nmodels: {a/b: {}}", "models.a/b"),
        ("a: [", "is not valid YAML"),
        ("[" * 5000, "is not valid YAML"),
        ("{version: 1, models: {a: {licence: {name: x}, source: {kind: wheel, package: p, version: '1', file: ../x}}}}",
         "leaves the wheel"),
        ("{version: 1, models: {a: {licence: {name: x}, source: {kind: wheel, package: -r, version: '1', file: x}}}}",
         "String should match pattern"),
        ("{version: 1, models: {a: {licence: {name: x}, source: {kind: wheel, package: p, version: '1', file: x}}}}",
         "needs the sha256"),
    ],
)  # fmt: skip
def test_a_wrong_catalogue_is_told_with_file_and_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_catalogue(path)
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_catalogue_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEGRAPH_CATALOGUE", "/nowhere/models.yaml")
    with pytest.raises(InputError, match=r"'/nowhere/models.yaml' can't be read: No such file"):
        load_catalogue()


def test_importing_the_package_and_finding_a_model_imports_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from cachegraph.engine.catalogue import find; from cachegraph.engine.spec import ModelSpec;"
        "find(ModelSpec(source='gemma-3-270m')); print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_folder_is_used_where_it_lies_and_its_identity_follows_its_content(tiny_folder: Path, tmp_path: Path) -> None:
    import json
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder, copy)
    model = find(ModelSpec(source="./copy"), tmp_path)
    assert model is not None
    assert model.folder == copy
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    changed = find(ModelSpec(source="./copy"), tmp_path)
    assert changed is not None
    assert changed.identity != model.identity


def test_the_catalogue_in_the_documentation_is_right(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "models.md").read_text()
    path = tmp_path / "documented.yaml"
    path.write_text(page.split("```yaml\n")[1].split("```")[0])
    assert {"my-tuned", "small-gguf", "from-the-hub", "from-a-wheel"} <= load_catalogue(path).models.keys()
