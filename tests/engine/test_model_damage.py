"""A damaged or hostile model folder: a sentence that names it, never another library's error."""

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest
from damage import Tally, damage_file
from tiny import config_of, save_model, save_tokenizer

from cachegraph.engine.model.load import load_model
from cachegraph.engine.model.weight_files import check_folder, fingerprint
from cachegraph.engine.text.tokenizer import Tokenizer
from cachegraph.errors import ModelError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(config_of("llama"), folder)
    save_tokenizer(folder)
    return folder


def changed(whole: Path, target: Path, file: str, change: Any) -> Path:
    shutil.copytree(whole, target)
    plain = json.loads((target / file).read_text())
    change(plain)
    (target / file).write_text(json.dumps(plain))
    return target


@pytest.mark.parametrize(
    "odd",
    [
        {"hidden_size": "x"},
        {"auto_map": 5},
        {"use_cache": {}},
        {"quantization_config": 7},
        {"quantization_config": "x"},
        {"quantization_config": {"quant_method": "no_such"}},
        {"model_type": "no_such_model"},
        {"model_type": 5},
        {"model_type": None},
        {"architectures": "x"},
        {"num_hidden_layers": -1},
        {"num_attention_heads": 0},
        {"hidden_size": 1 << 70},
        {"vocab_size": [1]},
        {"rope_parameters": 3},
        {"rope_parameters": {"rope_type": "yarn", "factor": "x"}},
        {"dtype": "float999"},
        {"torch_dtype": [1]},
        {"attn_implementation": "no_such"},
        {"layer_types": [1, 2, 3]},
        {"eos_token_id": {"a": 1}},
    ],
    ids=str,
)
def test_a_config_that_no_model_has_is_refused_or_read(odd: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    folder = changed(whole, tmp_path / "m", "config.json", lambda plain: plain.update(odd))
    try:
        load_model(folder)
    except ModelError as error:
        assert str(folder) in str(error) or "'m'" in str(error)  # noqa: PT017


@pytest.mark.parametrize("text", ["[" * 100_000, "5", "", "9" * 5000, "[]", '{"a": NaN}'])
def test_a_config_that_is_no_object_is_refused(text: str, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(text)
    with pytest.raises(ModelError, match="the model in .* can't be read"):
        load_model(tmp_path / "m")


def test_a_tokenizer_that_makes_rust_panic_is_a_sentence(whole: Path, tmp_path: Path) -> None:
    empty = {"type": "Replace", "pattern": {"String": ""}, "content": "x"}
    folder = changed(whole, tmp_path / "m", "tokenizer.json", lambda plain: plain.update(normalizer=empty))
    try:
        model = load_model(folder)
        assert model.tokenizer is not None
        model.tokenizer.encode("text", special=False)
    except ModelError as error:
        assert "tokenizer" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    "normalizer", [5, {"type": "No"}, {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}]
)
def test_a_tokenizer_that_is_none_is_refused(normalizer: Any, whole: Path, tmp_path: Path) -> None:
    folder = changed(whole, tmp_path / "m", "tokenizer.json", lambda plain: plain.update(normalizer=normalizer))
    with pytest.raises(ModelError, match="the tokenizer in .* can't be read"):
        load_model(folder)


class PanicException(BaseException):
    """As pyo3's."""


def test_a_panic_while_a_text_is_read_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(*_: Any) -> Any:
        raise PanicException("called `Option::unwrap()` on a `None` value")

    monkeypatch.setattr(Tokenizer, "controls", property(panic))
    with pytest.raises(ModelError, match=r"tokenizer can't read this text: PanicException: called `Option::unwrap"):
        Tokenizer(None).encode("x", special=False)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": ["a", "b"]}},
        {"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 1 << 70]}},
        {"a": 5},
        [1],
        "x",
        {"a": {"dtype": "F32", "shape": [2]}},
    ],
    ids=str,
)
def test_a_header_that_lies_is_a_sentence(header: Any, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "m")
    text = json.dumps(header).encode()
    (tmp_path / "m" / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    for work in (check_folder, fingerprint, load_model):
        with pytest.raises(ModelError, match=r"model\.safetensors|can't be read"):
            work(tmp_path / "m")


@pytest.mark.parametrize(
    "index",
    ["[" * 100_000, '{"weight_map": 5}', '{"weight_map": {"a": []}}', '{"weight_map": {"a": 5, "b": "../x"}}', "x"],
)
def test_an_index_that_lies_is_a_sentence(index: str, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    (tmp_path / "m" / "model.safetensors.index.json").write_text(index)
    for work in (check_folder, load_model):
        with pytest.raises(ModelError):
            work(tmp_path / "m")


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 2**31},
        {"vocab_size": 10**12},
        {"hidden_size": 2**30},
        {"intermediate_size": 2**40},
        {"head_dim": 2**40},
        {"num_key_value_heads": 2**40},
        {"vocab_size": 2**30, "hidden_size": 2**20},
    ],
    ids=str,
)
def test_a_configuration_far_beyond_its_weights_is_refused_before_memory_is_taken(
    change: dict[str, int], whole: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match="asks for .* and its weights hold"):
        load_model(folder)


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_whatever_is_damaged_is_told_in_our_words(file: str, whole: Path, tmp_path: Path) -> None:
    if not (whole / file).exists():
        (whole / file).write_text('{"eos_token_id": 3}')

    def load(folder: Path) -> None:
        check_folder(folder)
        fingerprint(folder)
        model = load_model(folder)
        if model.tokenizer is not None:
            model.tokenizer.decode(model.tokenizer.encode("some text é", special=True).ids)

    tally, seed = Tally(f"model folders ({file})", 1.0), 0
    while tally.goes_on:
        seed += 1
        target = tmp_path / str(seed)
        shutil.copytree(whole, target)
        damage_file(Random(seed), target / file)
        tally.attempt(lambda: load(target))  # noqa: B023
        shutil.rmtree(target)
    tally.print()
