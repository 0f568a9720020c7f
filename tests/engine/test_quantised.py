"""Models with quantised weights: their KV stays in the dtype that they compute in, so it travels like any other."""

from pathlib import Path

import pytest
import tiny
import torch
import transformers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from cachegraph.engine.kv.cache import RowCache
from cachegraph.engine.model.forward import Row, forward
from cachegraph.engine.model.load import LoadedModel, load_model
from cachegraph.engine.model.quiet_transformers import quiet_transformers
from cachegraph.errors import ModelError

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "initializer_range": 0.3,
    "eos_token_id": None,
    "pad_token_id": None,
}


def four_bits() -> object:
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def eight_bits() -> object:
    # Not installed for other tests: transformers imports it wherever it is, which takes seconds and prints warnings.
    quantization = pytest.importorskip("torchao.quantization", reason="pip install torchao")
    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


@pytest.fixture(scope="module", params=[four_bits, eight_bits])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    plain = tiny.save_model(transformers.models.llama.LlamaConfig(**SIZES), tmp_path_factory.mktemp("plain"))
    with quiet_transformers():
        network = AutoModelForCausalLM.from_pretrained(
            plain, dtype=torch.float32, quantization_config=request.param(), local_files_only=True
        )
        to = tmp_path_factory.mktemp("quantised")
        network.save_pretrained(to)
    return to


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load_model(folder, dtype=torch.float32)


def test_quantised_weights_are_loaded_as_they_are_and_trusted_with_caches(model: LoadedModel) -> None:
    assert type(model.network.get_decoder().layers[0].mlp.up_proj.weight) is not torch.nn.Parameter
    assert (model.why_no_cache, model.rotation.why_not) == (None, None)


def test_the_kernels_for_plain_weights_leave_them_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachegraph.engine.cpu.backend._LARGE_ENOUGH", 0)
    assert load_model(folder, dtype=torch.float32).decoder is None


def test_they_are_not_rounded_once_more(folder: Path) -> None:
    with pytest.raises(ModelError, match="quantised weights already"):
        load_model(folder, weights="int8")


@torch.inference_mode()
def test_a_moved_cache_of_theirs_gives_what_reading_it_there_gives(model: LoadedModel) -> None:
    ids, question = list(range(5, 25)), [7, 8, 9]

    def read(start: int) -> RowCache:
        cache = RowCache()
        forward(model.network, model.info, [Row(ids, cache, "none", torch.arange(start, start + len(ids)))])
        return cache

    def answer(cache: RowCache) -> torch.Tensor:
        (logits,) = forward(model.network, model.info, [Row(question, cache, positions=torch.arange(31, 34))])
        assert logits is not None
        return logits

    here = read(0).tail()
    moved = model.rotation.move(here, torch.arange(11, 31))
    assert {layer.keys.dtype for layer in moved.layers} == {torch.float32}
    expected = answer(read(11))
    left, turned = ((answer(RowCache([each])) - expected).norm() for each in (here, moved))
    assert turned < 0.1 * left  # some kernels for four bits round activations to bfloat16
