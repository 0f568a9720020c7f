"""A configuration that no model can be built of is refused by the value that is wrong, in words instead of code."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import config_of, save_model, save_tokenizer

from cachegraph.engine.model.load import load_model
from cachegraph.errors import ModelError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {kind: save_model(config_of(kind), place / kind) for kind in ("llama", "deepseek_v3", "llama_yarn")}


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("rope_parameters.rope_type", "linea", "transformers [0-9.]+ knows default, .*yarn; did you mean 'linear'"),
        ("rope_parameters.rope_type", None, "transformers [0-9.]+ knows default"),
        ("rope_parameters.rope_type", 7, "transformers [0-9.]+ knows default"),
        ("rope_parameters.rope_theta", "big", "where a positive number belongs"),
        ("hidden_act", "swoosh", "transformers [0-9.]+ knows .*silu"),
        ("hidden_act", 3, "where a value of type str belongs"),
        ("dtype", "float99", "knows float32, float16, bfloat16"),
        ("dtype", [], "knows float32, float16, bfloat16"),
        ("model_type", [], "where the name of a type of model belongs"),
        ("num_attention_heads", 0, "where a positive number belongs"),
        ("head_dim", -1, "where a positive number belongs"),
        ("hidden_size", None, "where a value of type int belongs"),
        ("rms_norm_eps", "tiny", "where a value of type float belongs"),
        ("rope_parameters", 5, "where no such value belongs"),
        ("pad_token_id", 10**6, "and its `vocab_size` is 300"),
    ],
)
def test_the_key_its_value_and_what_belongs_there_are_said(
    path: str, value: Any, said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    check(folders["llama"], path, value, said, tmp_path)


@pytest.mark.parametrize(
    ("kind", "path", "value", "said"),
    [
        ("deepseek_v3", "v_head_dim", None, "where models of type 'deepseek_v3' have a value like 128"),
        ("deepseek_v3", "first_k_dense_replace", None, "where models of type 'deepseek_v3' have a value like 3"),
        ("llama_yarn", "rope_parameters.original_max_position_embeddings", 0, None),
    ],
)
def test_values_that_only_the_model_itself_uses_are_named_too(
    kind: str, path: str, value: Any, said: str | None, folders: dict[str, Path], tmp_path: Path
) -> None:
    check(folders[kind], path, value, said, tmp_path)


def check(model: Path, path: str, value: Any, said: str | None, folder: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    *above, key = path.split(".")
    place = config
    for name in above:
        place = place[name]
    place[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").symlink_to(model / "model.safetensors")
    with pytest.raises(ModelError) as refused:
        load_model(folder)
    if said is None:
        assert "unsupported operand" not in str(refused.value)
        return
    assert f"its config.json says `{path}: {json.dumps(value)}`" in str(refused.value)
    refused.match(said)


def test_a_contradiction_is_told_in_the_words_of_transformers(folders: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads((folders["llama"] / "config.json").read_text()) | {"hidden_size": 33}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folders["llama"] / "model.safetensors")
    with pytest.raises(ModelError, match="its config.json contradicts itself: The hidden size"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [("tokenizer_class", 5, "str"), ("model_max_length", "long", "int"), ("auto_map", 1, "dict")],
)
def test_a_value_of_the_wrong_type_in_a_tokenizers_configuration_is_named(
    key: str, value: Any, kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(folders["llama"] / name)
    save_tokenizer(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(ModelError, match=f"tokenizer_config.json says `{key}: .*where a value of type {kind} belongs"):
        load_model(tmp_path)
