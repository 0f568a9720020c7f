"""Models of pictures and sound load as the text model in them, and write what transformers' own class writes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import config_of, save_model
from transformers import AutoModelForMultimodalLM, AutoModelForSeq2SeqLM
from transformers import models as hf

from cachegraph.engine.kv.cache import RowCache
from cachegraph.engine.model.forward import Row, forward
from cachegraph.engine.model.load import LoadedModel, load_model
from cachegraph.engine.model.quiet_transformers import quiet_transformers
from cachegraph.engine.model.text_model import count_text_parameters
from cachegraph.engine.model.weight_files import count_parameters
from cachegraph.errors import ModelError

IDS = list(range(5, 25))
TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
TEXT = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    **TOKENS,
}
EYE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
SQUARE = {"image_size": 28, "patch_size": 14}
SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
EAR = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "d_model": 16}

WRAPPERS = {
    "llava": lambda: hf.llava.LlavaConfig(
        text_config={"model_type": "llama", **TEXT},
        vision_config={"model_type": "clip_vision_model", **EYE, **SQUARE},
        image_token_index=290,
    ),
    "mistral3": lambda: hf.mistral3.Mistral3Config(
        text_config={"model_type": "mistral", **TEXT, "head_dim": 8},
        vision_config={"model_type": "pixtral", **EYE, **SQUARE, "head_dim": 8},
        image_token_index=290,
    ),
    "qwen2_5_vl": lambda: hf.qwen2_5_vl.Qwen2_5_VLConfig(
        text_config={"model_type": "qwen2_5_vl_text", **TEXT, **SECTIONS},
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32},
    ),
    "gemma3": lambda: hf.gemma3.Gemma3Config(
        text_config={**config_of("gemma3_short_window").to_dict(), **TOKENS},
        vision_config={"model_type": "siglip_vision_model", **EYE, **SQUARE},
        mm_tokens_per_image=4,
    ),
    "qwen2_audio": lambda: hf.qwen2_audio.Qwen2AudioConfig(
        text_config={"model_type": "qwen2", **TEXT}, audio_config={"model_type": "qwen2_audio_encoder", **EAR}
    ),
    "audioflamingo3": lambda: hf.audioflamingo3.AudioFlamingo3Config(
        text_config={"model_type": "qwen2", **TEXT}, audio_config={"model_type": "audioflamingo3_encoder", **EAR}
    ),
}


def save(config: Any, folder: Path) -> Any:
    """The wrapper as transformers makes it, also saved to the folder."""
    by = AutoModelForSeq2SeqLM if config.model_type == "audioflamingo3" else AutoModelForMultimodalLM
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(0)
        network = by.from_config(config).eval()
        network.save_pretrained(folder)
    return network


def logits(model: LoadedModel) -> torch.Tensor:
    with torch.inference_mode():
        (found,) = forward(model.network, model.info, [Row(IDS, RowCache(), "all")])
    assert found is not None
    return found


@pytest.mark.parametrize("kind", WRAPPERS)
def test_the_text_part_writes_what_the_whole_writes(kind: str, tmp_path: Path) -> None:
    network = save(WRAPPERS[kind](), tmp_path)
    with torch.inference_mode():
        expected = network(input_ids=torch.tensor([IDS])).logits[0]
    model = load_model(tmp_path)
    assert (model.why_no_cache, model.rotation.why_not) == (None, None)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert model.info.layers == 3


@pytest.mark.parametrize("kind", ["llava", "gemma3", "audioflamingo3"])
def test_parts_that_read_no_text_are_let_go_of(kind: str, tmp_path: Path) -> None:
    save(WRAPPERS[kind](), tmp_path)
    parameters = dict(load_model(tmp_path).network.named_parameters())
    assert parameters
    assert not [name for name in parameters if "vision" in name or "audio" in name or "projector" in name]
    left = sum(weight.numel() for weight in parameters.values())
    assert count_text_parameters(tmp_path) == left < count_parameters(tmp_path)


def test_the_text_part_of_a_plain_model_or_of_none_is_not_counted(tmp_path: Path) -> None:
    save_model(config_of("llama"), tmp_path / "plain")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "no_such"}')
    assert [count_text_parameters(tmp_path / name) for name in ("plain", "odd", "none")] == [None, None, None]


@pytest.mark.parametrize("kind", ["llava", "mistral3"])
def test_names_of_weights_of_older_and_newer_checkpoints_are_understood(kind: str, tmp_path: Path) -> None:
    save(WRAPPERS[kind](), tmp_path)
    expected, file = logits(load_model(tmp_path)), tmp_path / "model.safetensors"
    old = load_file(file)
    assert "language_model.model.layers.0.mlp.up_proj.weight" in old
    new = {name.removeprefix("language_model.") if "lm_head" in name else _newer(name): old[name] for name in old}
    save_file(new, file, metadata={"format": "pt"})
    assert torch.equal(logits(load_model(tmp_path)), expected)


def _newer(name: str) -> str:
    return "model." + name.replace("language_model.model.", "language_model.")


def test_models_that_write_no_text_are_refused_by_name(tmp_path: Path) -> None:
    for config, reason in (
        (hf.clip.CLIPConfig(), "transformers knows no 'clip' model that writes text"),
        (hf.t5.T5Config(), "'t5' models have an encoder before the decoder"),
    ):
        config.save_pretrained(tmp_path)
        with pytest.raises(ModelError, match=reason):
            load_model(tmp_path)


def test_code_that_a_model_brings_is_neither_run_nor_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked the terminal"))
    folder = save_model(config_of("llama"), tmp_path)
    described = json.loads((folder / "config.json").read_text())
    described |= {"model_type": "of_its_own", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "code.py").write_text("raise SystemExit\n")
    with pytest.raises(ModelError, match="needs code of its own, and code of models is never run"):
        load_model(folder)
