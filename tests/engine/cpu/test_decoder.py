"""What the kernels compute is what the model itself computes."""

import math
import os
import subprocess
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import tiny
import torch
from transformers import models as hf

from cachegraph.engine.cpu.build import Kernels
from cachegraph.engine.cpu.decoder import CPUDecoder
from cachegraph.engine.kernels import Unsupported
from cachegraph.engine.kv.cache import KV, RowCache
from cachegraph.engine.model.forward import Row, forward
from cachegraph.engine.model.load import LoadedModel, load_model

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "eos_token_id": None,
    "pad_token_id": None,
}
pytestmark = pytest.mark.usefixtures("panels")
FULL, SLIDING = {"rope_type": "default", "rope_theta": 1e6}, {"rope_type": "default", "rope_theta": 1e4}
MODELS = {
    "llama": lambda: hf.llama.LlamaConfig(**SIZES),
    "llama with three and one queries a head": lambda: hf.llama.LlamaConfig(**(SIZES | {"num_attention_heads": 8})),
    "qwen2 with biases": lambda: hf.qwen2.Qwen2Config(**(SIZES | {"hidden_size": 128})),
    "qwen3 with norms of heads": lambda: hf.qwen3.Qwen3Config(**SIZES),
    "mistral with a window": lambda: hf.mistral.MistralConfig(**SIZES, sliding_window=12),
    "gemma3 with two ropes": lambda: hf.gemma3.Gemma3TextConfig(
        **SIZES,
        sliding_window=12,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"full_attention": FULL, "sliding_attention": SLIDING},
        query_pre_attn_scalar=32,
    ),
}


ROUNDED = ["qwen2 with biases", "gemma3 with two ropes"]  # these in int8, too


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LoadedModel]:
    """A model in float32, loaded once with panels and once without; tests leave it as it is."""

    @cache
    def load(name: str, weights: Any, panels: bool) -> LoadedModel:
        folder = tiny.save_model(MODELS[name](), tmp_path_factory.mktemp("model"))
        return load_model(folder, dtype=torch.float32, weights=weights)

    return load


@pytest.fixture(params=[*((name, None) for name in MODELS), *((name, "int8") for name in ROUNDED)], ids=str)
def model(request: pytest.FixtureRequest, load: Callable[..., LoadedModel], panels: bool) -> LoadedModel:
    return load(*request.param, panels)


def read(model: LoadedModel, count: int, past: tuple[KV, ...] = ()) -> tuple[KV, ...]:
    cache = RowCache(past)
    with torch.inference_mode():
        forward(model.network, model.info, [Row([(7 + 3 * i) % 300 for i in range(count)], cache, "none")])
    return cache.freeze()


@torch.inference_mode()
def test_steps_behind_shared_segments_give_the_models_own_logits_and_caches(
    model: LoadedModel, compiled: Kernels
) -> None:
    decoder = CPUDecoder(model.network, model.info, compiled)
    past = read(model, 5, read(model, 20))
    ours, own = RowCache(past), RowCache(past)
    for token in range(1, 40):  # past a window of 12, and past the tail's first buffer
        (expected,) = forward(model.network, model.info, [Row([token], own)])
        assert expected is not None
        torch.testing.assert_close(decoder.step([token], [ours])[0], expected[0], rtol=1e-3, atol=1e-3)
    for got, wanted in zip(ours.tail().layers, own.tail().layers, strict=True):
        torch.testing.assert_close(got.keys, wanted.keys, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(got.values, wanted.values, rtol=1e-3, atol=1e-4)
    assert torch.equal(ours.positions, own.positions)


@pytest.mark.parametrize("group", range(1, 10))  # queries of one KV head, which are taken several at a time
@torch.inference_mode()
def test_any_number_of_queries_share_a_head(group: int, compiled: Kernels, tmp_path: Any) -> None:
    sizes = SIZES | {"num_attention_heads": group, "num_key_value_heads": 1, "num_hidden_layers": 2}
    model = load_model(tiny.save_model(hf.mistral.MistralConfig(**sizes, sliding_window=70), tmp_path))
    past = read(model, 45, read(model, 30))
    (expected,) = forward(model.network, model.info, [Row([5], RowCache(past))])
    got = CPUDecoder(model.network, model.info, compiled).step([5], [RowCache(past)])
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_a_window_looks_back_by_positions_wherever_an_entry_stands(compiled: Kernels, tmp_path: Any) -> None:
    """Of entries that were grafted out of order the near ones count, the first and the last."""
    model = load_model(tiny.save_model(MODELS["mistral with a window"](), tmp_path))
    kv = read(model, 60)[0]
    for order in ([3, 0, 1, 2], [0, 3, 2, 1], [2, 1, 0, 3]):
        past = [kv.select(slice(15 * part, 15 * part + 15)) for part in order]
        at = torch.tensor([60])
        (expected,) = forward(model.network, model.info, [Row([5], RowCache(past), positions=at)])
        decoder = CPUDecoder(model.network, model.info, compiled)
        for many in (False, True):
            got = decoder.read([[5]], [RowCache(past)], [[0]], [at], many=many)
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


KINDS = pytest.mark.parametrize(
    ("dtype", "weights"), [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, "int8")], ids=str
)


@KINDS
@torch.inference_mode()
def test_a_row_gets_the_same_bits_alone_and_in_any_batch(
    dtype: torch.dtype, weights: Any, compiled: Kernels, tmp_path: Any
) -> None:
    model = load_model(tiny.save_model(MODELS["gemma3 with two ropes"](), tmp_path), dtype=dtype, weights=weights)
    decoder = CPUDecoder(model.network, model.info, compiled)
    pasts = [read(model, count) for count in (3, 17, 40, 1, 8, 25, 33, 2, 4, 6, 9, 5, 7)] * 3
    alone = [decoder.step([5 + i], [RowCache(past)])[0] for i, past in enumerate(pasts)]
    for size in (1, 2, 3, 5, 7, 12, 13, 36, 39):  # the last by other code than the first
        together = decoder.step([5 + i for i in range(size)], [RowCache(past) for past in pasts[:size]])
        assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=False))


@KINDS
@pytest.mark.parametrize("many", [False, True], ids=["few", "many"])
@torch.inference_mode()
def test_one_nan_in_a_cache_is_not_lost(
    many: bool, dtype: torch.dtype, weights: Any, compiled: Kernels, tmp_path: Any
) -> None:
    model = load_model(tiny.save_model(MODELS["llama"](), tmp_path), dtype=dtype, weights=weights)
    decoder = CPUDecoder(model.network, model.info, compiled)
    (past,) = read(model, 9)
    past.layers[0].values[0, 0, 4, 5] = math.nan  # so one number in each query's result, among others that are none
    assert decoder.read([[1, 2]], [RowCache([past])], [[0, 1]], many=many).isnan().all()


def assert_same_cache(a: RowCache, b: RowCache, **tolerance: Any) -> None:
    for one, other in zip(a.tail().layers, b.tail().layers, strict=True):
        for x, y in zip(one, other, strict=True):
            assert torch.allclose(x, y, **tolerance) if tolerance else torch.equal(x, y)
    assert torch.equal(a.positions, b.positions)


@torch.inference_mode()
def test_tokens_get_the_same_bits_read_one_by_one_and_together(model: LoadedModel, compiled: Kernels) -> None:
    decoder = CPUDecoder(model.network, model.info, compiled)
    past, ids = read(model, 9), [3 + 5 * i for i in range(30)]  # past a window of 12
    singly = RowCache(past)
    last = [decoder.step([token], [singly])[0] for token in ids][-1]
    for cut in ([30], [1, 29], [17, 13], [10, 10, 10]):
        together, other, start = RowCache(past), RowCache(past), 0
        for count in cut:
            asked = [[], [count - 1] if start + count == 30 else []]
            logits = decoder.read([[9], ids[start : start + count]], [other, together], asked)
            start += count
        assert torch.equal(logits[0], last)
        assert_same_cache(singly, together)
    assert decoder.read([[4, 5]], [RowCache(past)], [[]]).shape[0] == 0


@torch.inference_mode()
@pytest.mark.parametrize("before", [0, 9, 600])  # the last more than is summed at a time
def test_a_prompt_that_is_read_at_once_gives_the_models_own_logits_and_caches(
    before: int, model: LoadedModel, compiled: Kernels
) -> None:
    decoder = CPUDecoder(model.network, model.info, compiled)
    past = read(model, before - before // 3, read(model, before // 3)) if before else ()
    ids = [[(7 * i + 3) % 300 for i in range(count)] for count in (150, 2, 61)]
    far = torch.arange(before + 5, before + 66)  # the last stands further on
    own, ours = ([RowCache(past) for _ in ids] for _ in range(2))
    rows = [
        Row(ids[0], own[0], "all"),
        Row(ids[1], own[1], "none"),
        Row(ids[2], own[2], [7, 60], positions=far),
    ]
    expected = [out for out in forward(model.network, model.info, rows) if out is not None]
    asked = [range(150), [], [7, 60]]
    got = decoder.read(ids, ours, asked, [None, None, far], many=True)
    torch.testing.assert_close(got, torch.cat(expected), rtol=2e-3, atol=2e-3)
    for one, other in zip(own, ours, strict=True):
        assert_same_cache(one, other, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("many", [True, False])
@torch.inference_mode()
def test_the_first_layers_alone_have_the_bits_that_they_have_of_all(
    many: bool, model: LoadedModel, compiled: Kernels
) -> None:
    decoder = CPUDecoder(model.network, model.info, compiled)
    past, ids = read(model, 20), [(7 * i + 3) % 300 for i in range(60)]
    whole = RowCache(past)
    decoder.read([ids], [whole], [[]], many=many)
    for layers in (1, 2):
        parts = RowCache([KV(segment.layers[:layers], segment.positions) for segment in past])
        for piece in (ids[:33], ids[33:]):
            assert decoder.read([piece], [parts], [[]], many=many, layers=layers).shape[0] == 0
        assert (len(parts.tail().layers), len(parts)) == (layers, 80)
        first = zip(parts.tail().layers, whole.tail().layers[:layers], strict=True)
        assert all(torch.equal(x, y) for both in first for x, y in zip(*both, strict=True))


@torch.inference_mode()
@KINDS
def test_a_prompt_gets_the_same_bits_however_it_is_cut_up_and_whoever_reads_beside_it(
    dtype: torch.dtype, weights: Any, compiled: Kernels, tmp_path: Any
) -> None:
    model = load_model(tiny.save_model(MODELS["gemma3 with two ropes"](), tmp_path), dtype=dtype, weights=weights)
    decoder = CPUDecoder(model.network, model.info, compiled)
    past, ids = read(model, 530), [(7 * i + 3) % 300 for i in range(140)]
    whole = RowCache(past)
    expected = decoder.read([ids], [whole], [range(140)], many=True)
    for cut in ([128, 12], [1, 100, 39], [50, 90]):
        parts, start, logits = RowCache(past), 0, []
        for count in cut:
            read_too = ids[: 5 + count // 3]
            both = [RowCache(), parts]
            asked = [[], range(count)]
            logits.append(decoder.read([read_too, ids[start : start + count]], both, asked, many=True))
            start += count
        assert torch.equal(torch.cat(logits), expected)
        assert_same_cache(whole, parts)


@torch.inference_mode()
def test_panels_are_made_when_they_pay_and_change_no_bit_of_a_prompt(
    model: LoadedModel, compiled: Kernels, panels: bool
) -> None:
    """Not for one prompt of which nobody asks for logits; then by a second prompt, or by the first step."""
    ids = [(7 + 3 * i) % 300 for i in range(50)]

    def prompt(decoder: CPUDecoder) -> KV:
        cache = RowCache()
        decoder.read([ids], [cache], [[]], many=True)
        return cache.tail()

    decoder, other = (CPUDecoder(model.network, model.info, compiled) for _ in range(2))
    waiting = panels and model.weights is None
    assert bool(decoder._described.weights.waits_for_packing) == waiting
    first = prompt(decoder)
    assert bool(decoder._described.weights.waits_for_packing) == waiting
    second = prompt(decoder)
    assert not decoder._described.weights.waits_for_packing
    for one, two in zip(first.layers, second.layers, strict=True):
        assert torch.equal(one.keys, two.keys)
        assert torch.equal(one.values, two.values)
    steps = [each.step([5], [RowCache([first])]) for each in (decoder, other)]
    assert not other._described.weights.waits_for_packing
    assert torch.equal(*steps)


@torch.inference_mode()
def test_results_stay_as_they_are_while_other_programs_want_the_cores(model: LoadedModel, compiled: Kernels) -> None:
    decoder = CPUDecoder(model.network, model.info, compiled)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        quiet = _reply(decoder, 40)
        busy = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(2 * (os.cpu_count() or 1))]
        try:
            crowded = _reply(decoder, 200)  # enough for one thread to take over and give back
        finally:
            for each in busy:
                each.kill()
                each.wait()
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(crowded[:40], quiet)


def _reply(decoder: CPUDecoder, steps: int) -> torch.Tensor:
    cache = RowCache()
    return torch.stack([decoder.step([(5 * i + 1) % 300], [cache])[0] for i in range(steps)])


@torch.inference_mode()
def test_a_prompt_gets_the_same_bits_on_any_number_of_threads(model: LoadedModel, compiled: Kernels) -> None:
    decoder, ids = CPUDecoder(model.network, model.info, compiled), [(7 * i + 3) % 300 for i in range(140)]
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            results.append(decoder.read([ids], [RowCache()], [range(140)], many=True))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], each) for each in results)


@pytest.mark.parametrize("name", ["llama", "gemma3 with two ropes"])
@torch.inference_mode()
def test_activations_in_eight_bits_stay_near_what_float32_gives(name: str, compiled: Kernels, tmp_path: Any) -> None:
    folder = tiny.save_model(MODELS[name](), tmp_path)
    exact, ours = (load_model(folder, dtype=dtype, weights="int8") for dtype in (torch.float32, torch.bfloat16))
    decoder = CPUDecoder(ours.network, ours.info, compiled)
    ids = [(7 * i + 3) % 300 for i in range(45)]
    (expected,) = forward(exact.network, exact.info, [Row(ids, RowCache(), "all")])
    assert expected is not None
    for many in (False, True):
        got = decoder.read([ids], [RowCache()], [range(45)], many=many)
        assert torch.nn.functional.cosine_similarity(got, expected, dim=1).mean() > 0.985


@torch.inference_mode()
def test_shared_segments_are_left_as_they_are(model: LoadedModel, compiled: Kernels) -> None:
    past = read(model, 9)
    before = [layer.keys.clone() for layer in past[0].layers]
    decoder = CPUDecoder(model.network, model.info, compiled)
    first, second = RowCache(past), RowCache(past)
    for token in range(3):
        decoder.step([token, token + 9], [first, second])
    assert all(torch.equal(old, layer.keys) for old, layer in zip(before, past[0].layers, strict=True))
    frozen = first.freeze()[-1]
    kept = frozen.layers[0].keys.clone()
    decoder.step([1], [first])
    assert torch.equal(frozen.layers[0].keys, kept)


@torch.inference_mode()
def test_a_segment_that_lies_in_another_order_is_read_right(model: LoadedModel, compiled: Kernels) -> None:
    (past,) = read(model, 9)
    shuffled = KV(
        tuple(
            type(layer)(*(x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3) for x in layer))
            for layer in past.layers
        ),
        past.positions,
    )
    decoder = CPUDecoder(model.network, model.info, compiled)
    assert torch.equal(decoder.step([3], [RowCache([past])]), decoder.step([3], [RowCache([shuffled])]))


@torch.inference_mode()
def test_rows_that_decode_and_rows_that_read_share_a_forward_pass(model: LoadedModel, compiled: Kernels) -> None:
    decoder = CPUDecoder(model.network, model.info, compiled)
    past = read(model, 6)

    def rows() -> list[Row]:
        return [
            Row([1, 2, 3], RowCache(past), "all"),
            Row([4], RowCache(past)),
            Row([5, 6], RowCache(), "none"),
            Row([7, 8], RowCache(past), short=True),
            Row([1, 2], RowCache(past), "all", sees=torch.eye(2, dtype=torch.bool)),  # by torch
        ]

    expected = forward(model.network, model.info, rows())
    got = forward(model.network, model.info, rows(), decoder)
    assert got[2] is None
    for index in (0, 1, 3, 4):
        torch.testing.assert_close(got[index], expected[index], rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_a_failed_pass_leaves_the_rows_of_other_kernels_as_they_were(model: LoadedModel, compiled: Kernels) -> None:
    """Rows that decode, that read a prompt and that stop early are computed one kind after the other."""
    decoder = CPUDecoder(model.network, model.info, compiled)
    (past,) = read(model, 20)
    good = [Row([5], RowCache([past])), Row([5, 6], RowCache([past]), short=True), Row([5] * 40, RowCache([past]))]
    early = Row([5] * 40, RowCache([past]), "none", layers=1)
    bad = Row([10**6] * 40, RowCache(), "none", layers=2)
    with pytest.raises(IndexError):
        forward(model.network, model.info, [*good, early, bad], decoder)
    assert [len(row.cache) for row in (*good, early, bad)] == [20, 20, 20, 20, 0]
    for row in good:
        (expected,) = forward(model.network, model.info, [Row(row.ids, RowCache([past]), short=row.short)], decoder)
        (got,) = forward(model.network, model.info, [row], decoder)
        assert expected is not None
        assert got is not None
        assert torch.equal(got, expected)


@pytest.mark.parametrize("kind", ["phi", "gpt_neox", "olmo2", "gpt_oss", "llama_dynamic"])
def test_models_of_other_parts_are_refused(kind: str, compiled: Kernels, tmp_path: Any) -> None:
    model = load_model(tiny.save_model(tiny.config_of(kind), tmp_path), dtype=torch.float32)
    with pytest.raises(Unsupported):
        CPUDecoder(model.network, model.info, compiled)


def test_embeddings_that_are_changed_in_a_way_of_their_own_are_refused(compiled: Kernels, tmp_path: Any) -> None:
    class Odd(torch.nn.Embedding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids) + 1

    model = load_model(tiny.save_model(MODELS["llama"](), tmp_path), dtype=torch.float32)
    model.network.get_input_embeddings().__class__ = Odd
    with pytest.raises(Unsupported, match="embeddings"):
        CPUDecoder(model.network, model.info, compiled)


@pytest.mark.parametrize("ids", [[-1], [300], [1, 2, 300, 3]])
def test_a_token_that_there_is_not_is_an_error_as_it_is_to_torch(
    ids: list[int], compiled: Kernels, tmp_path: Any
) -> None:
    model = load_model(tiny.save_model(MODELS["llama"](), tmp_path), dtype=torch.float32)
    cache = RowCache()
    with pytest.raises(IndexError, match="outside of the vocabulary of 300"):
        CPUDecoder(model.network, model.info, compiled).read([ids], [cache], [[]])
    assert len(cache) == 0


@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="there are no tiles to share")
@torch.inference_mode()
def test_torch_goes_on_with_its_tiles_after_the_kernels_have_used_theirs(compiled: Kernels, tmp_path: Any) -> None:
    """On the same thread, with a shape that torch has used before and takes to be still set."""
    model = load_model(tiny.save_model(MODELS["llama"](), tmp_path), dtype=torch.bfloat16)
    decoder = CPUDecoder(model.network, model.info, compiled)
    weight, x = torch.randn(48, 96).bfloat16(), torch.randn(40, 96).bfloat16()
    expected = torch.nn.functional.linear(x, weight)
    for _ in range(20):
        decoder.read([list(range(50))], [RowCache()], [[49]], many=True)
        assert torch.equal(torch.nn.functional.linear(x, weight), expected)
