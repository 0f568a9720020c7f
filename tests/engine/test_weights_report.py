"""A checkpoint that lacks weights is refused with their names; weights that nothing reads are said."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import config_of, save_model
from transformers import GPT2Config

from cachegraph.engine.model.load import load_model
from cachegraph.errors import ModelError


def change_weights(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    folder = save_model(config_of("llama"), tmp_path)
    change_weights(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"lacks 1 weight .*model\.layers\.1\.mlp\.up_proj\.weight; fetch it again"):
        load_model(folder)


def test_a_weight_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    folder = save_model(config_of("llama"), tmp_path)
    change_config(folder, intermediate_size=64)
    expected = (
        r"of other shapes .*: model\.layers\.0\.mlp\.down_proj\.weight is 32 x 48 and should be 32 x 64, and 8 more;"
    )
    with pytest.raises(ModelError, match=expected):
        load_model(folder)


def test_weights_that_make_nan_are_told_as_such(tmp_path: Path) -> None:
    folder = save_model(config_of("llama"), tmp_path)
    change_weights(folder, lambda weights: weights["model.layers.1.mlp.up_proj.weight"].fill_(float("nan")))
    with pytest.raises(ModelError, match=r"this 'llama' model computes NaN: its weights are damaged or too large"):
        load_model(folder)


def test_a_type_that_transformers_does_not_have_is_named(tmp_path: Path) -> None:
    folder = save_model(config_of("llama"), tmp_path)
    change_config(folder, model_type="llamax")
    with pytest.raises(ModelError, match=r"transformers [\d.]+ has no 'llamax' models; upgrade it, or take another"):
        load_model(folder)


def test_more_layers_than_weights_are_refused(tmp_path: Path) -> None:
    folder = save_model(config_of("llama"), tmp_path)
    change_config(folder, num_hidden_layers=4)
    with pytest.raises(ModelError, match=r"lacks 9 weights .*model\.layers\.3\.input_layernorm\.weight.* and 5 more"):
        load_model(folder)


def test_an_index_that_names_what_its_shard_lacks_is_refused(tmp_path: Path) -> None:
    folder = save_model(config_of("llama"), tmp_path)
    names = list(load_file(folder / "model.safetensors"))
    change_weights(folder, lambda weights: weights.pop("model.layers.2.mlp.down_proj.weight"))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model\.layers\.2\.mlp\.down_proj\.weight"):
        load_model(folder)


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    config = config_of("llama")
    config.tie_word_embeddings = True
    folder = save_model(config, tmp_path)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert load_model(folder).why_no_cache is None


def test_fewer_layers_than_weights_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_model(config_of("llama"), tmp_path)
    change_config(folder, num_hidden_layers=2)
    with caplog.at_level(logging.WARNING, logger="cachegraph"):
        load_model(folder)
    assert "has 9 weights that its config.json has no place for: model.layers.2." in caplog.text


def test_code_of_a_model_is_never_run(tmp_path: Path) -> None:
    """Without a question on the terminal, too."""
    folder = save_model(config_of("llama"), tmp_path)
    auto = {"AutoConfig": "modeling.C", "AutoModelForCausalLM": "modeling.M"}
    change_config(folder, model_type="my_llama", auto_map=auto)
    (folder / "modeling.py").write_text("raise SystemExit('remote code ran')\n")
    with pytest.raises(ModelError, match="code of models is never run here"):
        load_model(folder)


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.int8, "I8"),
        (torch.uint8, "U8"),
        (torch.int16, "I16"),
        (torch.int32, "I32"),
        (torch.int64, "I64"),
        (torch.bool, "BOOL"),
    ],
)
def test_whole_numbers_as_weights_are_refused_where_nothing_says_what_they_stand_for(
    dtype: torch.dtype, name: str, tmp_path: Path
) -> None:
    folder = save_model(config_of("llama"), tmp_path)
    change_weights(folder, lambda weights: weights.update({UP: (weights[UP] * 10).to(dtype)}))
    with pytest.raises(
        ModelError, match=rf"stores model\.layers\.1\.mlp\.up_proj\.weight as {name}, numbers that need"
    ):
        load_model(folder)


def test_weights_of_eight_bits_are_refused_where_their_scales_lie_beside_them(tmp_path: Path) -> None:
    folder = save_model(config_of("llama"), tmp_path)
    change_weights(folder, lambda weights: weights.update({UP: weights[UP].to(torch.float8_e4m3fn)}))
    assert load_model(folder).network.model.layers[1].mlp.up_proj.weight.dtype == torch.float32  # rounded, no more
    change_weights(folder, lambda weights: weights.update({UP + "_scale_inv": torch.ones(1, 1)}))
    with pytest.raises(ModelError, match=r"up_proj\.weight as F8_E4M3, numbers that need a scale"):
        load_model(folder)


def test_masks_and_counters_of_old_checkpoints_are_no_weights(tmp_path: Path) -> None:
    folder = save_model(config_of("llama"), tmp_path)
    change_weights(folder, lambda weights: weights.update({"model.position_ids": torch.arange(9)}))
    assert load_model(folder).network
    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    gpt2 = save_model(config, tmp_path / "gpt2")
    change_weights(gpt2, lambda weights: weights.update({"transformer.h.0.attn.bias": torch.ones(1, 1, 9, 9).bool()}))
    assert load_model(gpt2).network
