"""From a folder to a model that may be trusted with caches, or a sentence that says why not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import KINDS, Tiny, config_of, load_tiny, save_model, save_tokenizer
from transformers.models.llama.modeling_llama import LlamaMLP

from cachegraph.engine.batching.kv_budget import position_bytes
from cachegraph.engine.model import attention
from cachegraph.engine.model.attention import NAME
from cachegraph.engine.model.load import load_model
from cachegraph.engine.model.model_config import ModelInfo
from cachegraph.errors import ModelError


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_models_may_take_part_in_cache_edges(kind: str, tiny: Tiny) -> None:
    model = tiny(kind)
    assert model.why_no_cache is None
    assert model.rotation.why_not is None
    assert not any(parameter.requires_grad for parameter in model.network.parameters())


def test_geometry_is_read_from_the_configuration(tiny: Tiny) -> None:
    info = tiny("gemma3_short_window").info
    assert (info.layers, info.kv_heads, info.head_dim, info.vocab_size) == (3, 2, 16, 300)
    assert info.windows == (12, None, 12)
    assert tiny("mistral").info.windows == (12, 12, 12)
    assert tiny("phi").info.head_dim == 8


@pytest.mark.parametrize(
    ("kind", "layers", "kv_heads", "head_dim", "numbers"),
    [
        ("gemma4", 2, (2, 1), (8, 16), 2 * 8 * 2 + 16 * 2),
        ("deepseek_v3", 3, 1, ((8, 16),) * 3, 3 * (8 + 16)),
        ("mimo_v2_flash", 3, (4, 2, 4), ((16, 8),) * 3, (4 + 2 + 4) * (16 + 8)),
    ],
)
def test_geometry_is_that_of_the_keys_and_values(
    kind: str, layers: int, kv_heads: object, head_dim: object, numbers: int, tiny: Tiny
) -> None:
    """Of layers that keep some; a latent's part with RoPE is its keys, the rest its values."""
    model = tiny(kind)
    assert (model.info.layers, model.info.kv_heads, model.info.head_dim) == (layers, kv_heads, head_dim)
    assert position_bytes(model) == 4 * numbers


def test_ends_of_sequence_come_from_configuration_and_generation() -> None:
    config = config_of("llama")
    config.eos_token_id = 4

    class Generation:
        eos_token_id = [5, 6]

    assert ModelInfo.from_hf(config, Generation()).eos_ids == {4, 5, 6}


def test_a_model_whose_attention_is_bypassed_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were our attention to compute anything else than the model's, it would show, and the model attend by itself."""
    right = attention._attend_row

    def forgets_the_order(query: Any, past: Any, mask: Any, *rest: Any) -> Any:
        return right(query, past, torch.ones(query.shape[2], past.keys.shape[2], dtype=torch.bool), *rest)

    monkeypatch.setattr(attention, "_attend_row", forgets_the_order)
    model = load_tiny(config_of("llama"), tmp_path)
    assert model.info.alone  # its own attention computes its caches, a row a pass
    assert model.network.config._attn_implementation == "sdpa"


def test_a_model_whose_keys_do_not_move_as_thought_is_not_grafted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cachegraph.engine.kv.rotary_scheme import RotaryScheme

    monkeypatch.setattr(RotaryScheme, "rotate", lambda self, keys, cos, sin: keys.flip(-1))
    model = load_tiny(config_of("llama"), tmp_path)
    assert model.why_no_cache is None
    assert model.rotation.why_not is not None


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a model: it has no config.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("attention", ["sdpa", NAME])
def test_a_model_that_leaves_no_memory_to_compute_with_is_named(
    attention: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = LlamaMLP.forward

    def forward(self: Any, x: Any) -> Any:
        if self.config._attn_implementation == attention:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(self, x)

    monkeypatch.setattr(LlamaMLP, "forward", forward)
    with pytest.raises(ModelError, match="'small' leaves cpu no memory to compute with; free some"):
        load_model(save_model(config_of("llama"), tmp_path), name="small")


def test_damaged_and_missing_weights_are_named(tmp_path: Path) -> None:
    folder = save_model(config_of("llama"), tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="can't be read"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(ModelError, match="can't be read"):
        load_model(folder)


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    folder = save_model(config_of("llama"), tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": torch.zeros(32)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="can't be read"):
        load_model(folder)


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "perceptron", "architectures": ["Perceptron"]}')
    with pytest.raises(ModelError, match="perceptron"):
        load_model(tmp_path)


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    folder = save_model(config_of("llama"), tmp_path)
    save_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="the tokenizer in .* can't be read"):
        load_model(folder)


def test_loading_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = save_model(config_of("llama"), tmp_path)
    capfd.readouterr()
    load_model(folder)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("chunked_attention", "its 'chunked_attention' layers attend to a part of their KV cache, chosen by rules"),
        ("indexed_attention", "its 'indexed_attention' layers attend to a part of their KV cache, chosen by rules"),
    ],
)
def test_what_keeps_layers_from_cache_edges_is_said_as_it_is(kind: str, reason: str) -> None:
    """Sparse and chunked layers do keep keys and values."""
    config = config_of("gemma3_short_window")
    config.layer_types = ["full_attention", kind, "full_attention"]
    why = ModelInfo.from_hf(config, None).why_no_cache
    assert why is not None
    assert why.startswith(reason)
