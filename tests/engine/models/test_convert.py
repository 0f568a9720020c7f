"""A GGUF file becomes a folder that transformers loads, with the same weights and the same tokens."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers

from cachegraph.engine.catalogue.convert_gguf import convert_gguf
from cachegraph.errors import ConfigError, ModelError


def room_for_all(size: int) -> None:
    pass


def test_the_converted_folder_has_the_weights_and_the_tokenizer_of_the_gguf_file(
    tiny_gguf: Path, tmp_path: Path
) -> None:
    stages = []
    convert_gguf(tiny_gguf, tmp_path / "out", room_for_all, lambda stage, done, total: stages.append(stage))

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tiny_gguf).tensors}
    expected = np.array(stored["token_embd.weight"].data)
    assert torch.equal(model.get_input_embeddings().weight, torch.from_numpy(expected))
    assert model.dtype == torch.float32  # the weights were not quantised, so they keep their type
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.tokenize("the the") == ["the", "Ġthe"]
    assert list(dict.fromkeys(stages)) == ["read", "convert", "save"]


def test_others_of_the_machine_can_read_a_converted_model(tiny_gguf: Path, tmp_path: Path) -> None:
    convert_gguf(tiny_gguf, tmp_path / "model", room_for_all, lambda *stage: None)
    assert all(each.stat().st_mode & 0o044 == 0o044 for each in (tmp_path / "model").iterdir())


def test_conversion_draws_no_bars_and_puts_transformers_back_as_it_was(
    tiny_gguf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import modeling_gguf_pytorch_utils as loader
    from transformers.utils import logging

    before = loader.tqdm, gguf.GGUFReader, logging.get_verbosity(), logging.is_progress_bar_enabled()
    convert_gguf(tiny_gguf, tmp_path / "out", room_for_all, lambda *_: None)
    assert (loader.tqdm, gguf.GGUFReader, logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_no_gguf_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"<html>not found</html>")
    with pytest.raises(ModelError, match=r"is not a GGUF file: it starts with b'<htm'"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "out", room_for_all, lambda *_: None)


def test_a_gguf_file_cut_short_is_refused_in_one_sentence(tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(tiny_gguf.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"can't be converted"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "out", room_for_all, lambda *_: None)


def test_a_gguf_file_of_an_unknown_architecture_is_refused_in_one_sentence(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "abacus")
    writer.add_tensor("t", np.zeros((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"can't be converted: .*abacus"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "out", room_for_all, lambda *_: None)


def test_room_is_asked_for_before_anything_is_written(tiny_gguf: Path, tmp_path: Path) -> None:
    def no_room(size: int) -> None:
        assert size > tiny_gguf.stat().st_size
        raise ConfigError("no room")

    with pytest.raises(ConfigError, match="no room"):
        convert_gguf(tiny_gguf, tmp_path / "out", no_room, lambda *_: None)
    assert not (tmp_path / "out").exists()
