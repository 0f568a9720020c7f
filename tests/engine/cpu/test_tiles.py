"""The code for AMX, with its instructions emulated: what it computes is what the model itself computes, on any CPU that
has the other instructions that it needs."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import models as hf

from cachegraph.engine.cpu import build
from cachegraph.engine.cpu.build import Kernels, kernels
from cachegraph.engine.cpu.decoder import CPUDecoder
from cachegraph.engine.kv.cache import RowCache
from cachegraph.engine.model.forward import Row, forward
from cachegraph.engine.model.load import LoadedModel, load_model

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
    "eos_token_id": None,
    "pad_token_id": None,
}
MODELS = {
    "llama": lambda: hf.llama.LlamaConfig(**SIZES),
    "mistral with a window": lambda: hf.mistral.MistralConfig(**SIZES, sliding_window=300),
}
IDS = [(7 + 3 * i) % 300 for i in range(1300)]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    information = Path("/proc/cpuinfo")
    if not information.exists() or "avx512_bf16" not in information.read_text():
        pytest.skip("this CPU has no instructions for bfloat16")
    with pytest.MonkeyPatch.context() as patch:
        header = Path(__file__).with_name("emulated_tiles.h")
        patch.setenv("CACHEGRAPH_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(build, "_FLAGS", ("-O1", *build._FLAGS[1:], "-include", str(header)))  # compiles in half the time
        build._kernels.cache_clear()
        found = kernels()
    build._kernels.cache_clear()
    if isinstance(found, str):
        pytest.skip(found)
    assert found.in_tiles
    return found


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> LoadedModel:
    return load_model(tiny.save_model(MODELS[request.param](), tmp_path), dtype=torch.bfloat16)


def read(decoder: CPUDecoder, *cuts: int, beside: int = 0) -> tuple[RowCache, torch.Tensor]:
    """The prompt read in pieces, of `cuts` tokens and the rest, maybe beside another row; the last one's logits."""
    cache, other, at = RowCache(), RowCache(), 0
    for count in (*cuts, len(IDS) - sum(cuts)):
        ids, caches, asked = [IDS[at : at + count]], [cache], [[count - 1]]
        if beside:
            ids, caches, asked = [*ids, IDS[:beside]], [*caches, other], [*asked, []]
        logits = decoder.read(ids, caches, asked, many=True)
        at += count
    return cache, logits[0]


@torch.inference_mode()
def test_a_long_prompt_gives_the_models_own_logits(emulated: Kernels, model: LoadedModel) -> None:
    own = RowCache()
    (expected,) = forward(model.network, model.info, [Row(IDS, own)])
    assert expected is not None
    cache, got = read(CPUDecoder(model.network, model.info, emulated), 128, 512)
    assert torch.nn.functional.cosine_similarity(got, expected[0].float(), dim=0) > 0.999
    for mine, theirs in zip(cache.tail().layers, own.tail().layers, strict=True):
        for x, y in zip(mine, theirs, strict=True):
            assert torch.nn.functional.cosine_similarity(x.float().flatten(), y.float().flatten(), dim=0) > 0.999


@torch.inference_mode()
def test_a_long_prompt_gets_the_same_bits_however_it_is_cut_up_and_beside_others(
    emulated: Kernels, model: LoadedModel
) -> None:
    decoder = CPUDecoder(model.network, model.info, emulated)
    cache, expected = read(decoder, 512, 512)
    for cuts, beside in (((128, 300, 777), 0), ((1000,), 40), ((16, 512), 3)):
        other, got = read(decoder, *cuts, beside=beside)
        assert torch.equal(got, expected)
        for mine, theirs in zip(cache.tail().layers, other.tail().layers, strict=True):
            assert torch.equal(mine.keys, theirs.keys)
            assert torch.equal(mine.values, theirs.values)


@torch.inference_mode()
def test_rows_decode_with_the_same_bits_alone_and_together(emulated: Kernels, model: LoadedModel) -> None:
    decoder = CPUDecoder(model.network, model.info, emulated)
    pasts = []
    for count in (3, 40, 130, 400):
        cache = RowCache()
        decoder.read([IDS[:count]], [cache], [[]], many=True)
        pasts.append(cache.freeze())
    alone = [decoder.step([5 + i], [RowCache(past)])[0] for i, past in enumerate(pasts)]
    together = decoder.step([5, 6, 7, 8], [RowCache(past) for past in pasts])
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    for index, past in enumerate(pasts):
        (expected,) = forward(model.network, model.info, [Row([5 + index], RowCache(past))])
        assert expected is not None
        assert torch.nn.functional.cosine_similarity(alone[index], expected[0].float(), dim=0) > 0.999
