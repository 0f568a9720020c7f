"""Files of a model's folder that are far larger than they can be are refused before anything reads them."""

from pathlib import Path

import pytest
from tiny import config_of, save_model, save_tokenizer

from cachegraph.engine.model.file_sizes import LARGEST
from cachegraph.engine.model.load import load_model
from cachegraph.engine.model.weight_files import INDEX, check_folder, fingerprint
from cachegraph.errors import ModelError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(config_of("llama"), tmp_path / "m")
    save_tokenizer(tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"),
        *("generation_config.json", "vocab.txt", "tokenizer.model", "additional_chat_templates/tools.jinja"),
    ],
)
def test_a_file_larger_than_any_of_its_kind_is_refused_unread(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    with open(folder / name, "ab") as file:
        file.truncate(LARGEST + 1)  # a hole: it takes no room on the disk
    with pytest.raises(ModelError, match=f"'{name}' in the model's folder .* more than any file of its kind"):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", INDEX])
def test_a_folder_is_refused_before_anything_of_it_is_hashed(folder: Path, name: str) -> None:
    if name == INDEX:
        (folder / "model.safetensors").unlink()
    with open(folder / name, "ab") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(ModelError, match="more than any file of its kind"):
        check_folder(folder)
    if name != "tokenizer.json":
        with pytest.raises(ModelError, match="more than any file of its kind"):
            fingerprint(folder)
