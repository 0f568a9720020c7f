"""A folder's headers tell what it holds, and that it is whole."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from cachegraph.engine.model.weight_files import check_folder, count_parameters, weight_files
from cachegraph.errors import ModelError


def test_parameters_are_counted_as_torch_counts_them_also_over_shards(tiny_folder: Path, tmp_path: Path) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(tiny_folder)
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(tiny_folder) == expected
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "consolidated.safetensors").write_bytes((tiny_folder / "model.safetensors").read_bytes())
    assert len(weight_files(tmp_path)) > 1
    assert count_parameters(tmp_path) == expected


def test_weights_cut_short_are_told(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    whole = (tiny_folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ModelError, match=r"are cut short: [\d,]+ bytes of [\d,]+; fetch the model again"):
        check_folder(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0{}"[:9], b"\x04\0\0\0\0\0\0\0null"])
def test_weights_that_are_none_are_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="can't be read"):
        check_folder(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only pickled weights, which can run code"):
        check_folder(tmp_path)


def test_a_folder_that_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model folder"):
        check_folder(tmp_path / "none")
    with pytest.raises(ModelError, match=r"has no config.json"):
        check_folder(tmp_path)


def test_an_index_may_not_name_files_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a": "../../etc/passwd"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="names files outside its folder"):
        check_folder(tmp_path)
