"""Keys moved to other positions are the keys that the model makes there, or the model is refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import KINDS, Tiny, config_of, load_tiny
from transformers import models as hf

from cachegraph.engine.kernels import KeyRotator, backend
from cachegraph.engine.kv.cache import KV, LayerKV, RowCache
from cachegraph.engine.kv.rope import OutOfReach
from cachegraph.engine.model.forward import Row, forward
from cachegraph.engine.model.load import LoadedModel

IDS = torch.randint(0, 300, (30,), generator=torch.Generator().manual_seed(1)).tolist()


def read_at(model: LoadedModel, start: int) -> KV:
    cache = RowCache()
    with torch.inference_mode():
        positions = torch.arange(start, start + len(IDS))
        forward(model.network, model.info, [Row(IDS, cache, "none", positions)])
    return cache.tail()


@pytest.mark.parametrize("kind", KINDS)
def test_moved_keys_are_the_keys_of_that_place(kind: str, tiny: Tiny) -> None:
    model = tiny(kind)
    assert model.rotation.why_not is None
    here, there = read_at(model, 3), read_at(model, 90)
    for moved, expected in (
        (model.rotation.move(here, there.positions), there),
        (model.rotation.move(there, here.positions), here),
    ):
        assert torch.equal(moved.positions, expected.positions)
        for ours, theirs in zip(moved.layers, expected.layers, strict=True):
            torch.testing.assert_close(ours.keys, theirs.keys, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(ours.values, theirs.values, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def some_kv(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, KV]:
    model = load_tiny(config_of("llama"), tmp_path_factory.mktemp("llama"))
    return model, read_at(model, 100)


@settings(max_examples=30, deadline=None)
@given(shifts=st.lists(st.integers(-100, 400), min_size=30, max_size=30))
def test_a_key_moved_there_and_back_is_itself(some_kv: tuple[LoadedModel, KV], shifts: list[int]) -> None:
    """Every key by a distance of its own."""
    model, kv = some_kv
    moved = model.rotation.move(kv, kv.positions + torch.tensor(shifts))
    back = model.rotation.move(moved, kv.positions)
    for ours, theirs in zip(back.layers, kv.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, rtol=1e-4, atol=1e-4)


def test_keys_that_stay_are_shared_and_values_always_are(some_kv: tuple[LoadedModel, KV]) -> None:
    model, kv = some_kv
    assert model.rotation.move(kv, kv.positions) is kv
    moved = model.rotation.move(kv, kv.positions + 1)
    assert all(a.values is b.values for a, b in zip(moved.layers, kv.layers, strict=True))


def test_layers_without_rope_keep_their_keys(tiny: Tiny) -> None:
    model = tiny("smollm3")
    kv = read_at(model, 0)
    moved = model.rotation.move(kv, kv.positions + 50)
    assert [a is b for a, b in zip(moved.layers, kv.layers, strict=True)] == [False, False, True]


def test_longrope_is_moved_below_its_border_alone(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    config = hf.phi3.Phi3Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        original_max_position_embeddings=128,
        rope_parameters={**rope, "original_max_position_embeddings": 128},
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    model = load_tiny(config, tmp_path)
    assert (model.why_no_cache, model.rotation.why_not, model.rotation.reach) == (None, None, 128)
    kv = KV((LayerKV(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8)),) * 2, torch.arange(3))
    assert model.rotation.move(kv, torch.arange(125, 128)).positions.tolist() == [125, 126, 127]
    with pytest.raises(OutOfReach, match="moved below position 128 alone, and 128 is needed"):
        model.rotation.move(kv, torch.arange(126, 129))


def test_learned_positions_are_refused_by_name(tmp_path: Path) -> None:
    config = hf.gpt2.GPT2Config(
        vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=0
    )
    model = load_tiny(config, tmp_path)
    assert model.rotation.why_not == "'gpt2' models have no RoPE, so their keys are bound to their positions"
    kv = KV((LayerKV(torch.zeros(1, 4, 3, 8), torch.zeros(1, 4, 3, 8)),) * 2, torch.arange(3))
    assert model.rotation.move(kv, torch.arange(3)) is kv
    with pytest.raises(OutOfReach, match="can be grafted only at their positions"):
        model.rotation.move(kv, torch.arange(1, 4))


@pytest.mark.models
@pytest.mark.parametrize(
    "spread",
    [
        lambda count: torch.arange(count) * 7 % 400,
        lambda count: torch.zeros(count, dtype=torch.int64),  # back to the origin
        lambda count: torch.arange(count) * 300,  # further than tables are kept
    ],
    ids=["back and forth", "back", "far"],
)
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma-3-270m"])
def test_kernels_move_keys_to_the_bit_as_torch_does(
    name: str, spread: Callable[[int], torch.Tensor], demo_bfloat16: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 on a CPU; two kinds of RoPE in Gemma."""
    rotator = rotator_here()
    model = demo_bfloat16(name)
    here = read_at(model, 3)
    there = spread(30)
    rotated: list[Any] = []
    rotate: Callable[..., Any] = type(rotator).rotate

    def noted(*given: Any) -> Any:
        rotated.append(rotate(*given))
        return rotated[-1]

    monkeypatch.setattr(type(rotator), "rotate", noted)
    moved = model.rotation.move(here, there)
    assert rotated
    monkeypatch.setattr(type(rotator), "takes", lambda *_: False)
    expected = model.rotation.move(here, there)
    for ours, theirs in zip(moved.layers, expected.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert ours.values is theirs.values


def rotator_here() -> KeyRotator:
    rotator = backend("cpu").key_rotator()
    if rotator is None:
        pytest.skip(backend("cpu").status())
    return rotator


def test_keys_that_kernels_can_not_rotate_are_left_to_torch() -> None:
    """In float32, in heads whose halves are no whole blocks, of several rows."""
    for shape, dtype in (
        ((1, 2, 5, 64), torch.float32),
        ((1, 2, 5, 48), torch.bfloat16),
        ((2, 2, 5, 64), torch.bfloat16),
    ):
        assert not rotator_here().takes([torch.randn(shape).to(dtype)])
