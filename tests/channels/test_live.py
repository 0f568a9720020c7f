"""Sharers on devices of their own: layers are corrected as they come. CPUs stand in for the GPUs."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import anyio
import pytest
import torch
from golden_runner import fuser, model
from lean_fusers import lean

from cachegraph.channels.cache import apply_fuser, stream_layers
from cachegraph.channels.cache.apply_fuser import FusionMode
from cachegraph.channels.cache.fused_prefill import FusedPrefill, Sharer, fused_prefill
from cachegraph.channels.cache.shared_prompt import Pairs, SharedPrompt, SharerPrompt, Stretch, share_by_ids
from cachegraph.engine.engine import Engine
from cachegraph.engine.kv.cache import KV, LayerKV, concat
from cachegraph.errors import ModelError

Engines = dict[str, tuple[Engine, Engine]]
NAMES = ("receiver", "sharer_a", "sharer_b", "sharer_gemma3")


def tokens(count: int) -> list[int]:
    return torch.randint(0, 512, (count,), generator=torch.Generator().manual_seed(count)).tolist()


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    """By name, one on the device of all others, and one on a device of its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = {}
    for index, name in enumerate(NAMES):
        loaded = model(name, "float32")
        apart = replace(loaded, devices=(torch.device("cpu", index),) * loaded.info.layers)
        made[name] = (Engine(loaded), Engine(apart))
    yield made
    for pair in made.values():
        for engine in pair:
            engine.close()
    torch.set_num_threads(threads)


def sharers(engines: Engines, place: int) -> list[Sharer]:
    pairs = (("sharer_a", "a"), ("sharer_b", "b"), ("sharer_gemma3", "gemma3"))
    return [Sharer(engines[name][place], fuser(checkpoint, "float32")) for name, checkpoint in pairs]


def same_bits(a: FusedPrefill, b: FusedPrefill) -> bool:
    rows = ((a.segments, b.segments), (a.uncorrected, b.uncorrected), *zip(a.sharers, b.sharers, strict=True))
    return all(_same(concat(one), concat(other)) for one, other in rows) and a.nbytes == b.nbytes


def _same(a: KV, b: KV) -> bool:
    pairs = zip(a.layers, b.layers, strict=True)
    return all(torch.equal(x, y) for one, other in pairs for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
@pytest.mark.parametrize("count", [20, 150])  # 150: the prompt is read in two chunks
def test_it_comes_to_what_it_comes_to_on_one_device(engines: Engines, mode: FusionMode, count: int) -> None:
    async def run(place: int) -> FusedPrefill:
        return await fused_prefill(
            engines["receiver"][place], sharers(engines, place), share_by_ids(tokens(count), 3), mode
        )

    together, apart = anyio.run(run, 0), anyio.run(run, 1)
    assert same_bits(together, apart)
    assert [each.by_layer(of.fuser) for each, of in zip(apart.sizes, sharers(engines, 1), strict=True)] == [
        each.by_layer(of.fuser) for each, of in zip(together.sizes, sharers(engines, 0), strict=True)
    ]


def test_so_it_does_for_unrotated_keys_several_stretches_and_a_control(engines: Engines) -> None:
    ids = tokens(14)
    half = Pairs(torch.arange(4), torch.arange(4)), Pairs(torch.arange(3), torch.arange(6, 9))
    stretches = [Stretch(0, 2, {}), Stretch(2, 6, {0: half[0]}), Stretch(6, 10, {}), Stretch(10, 13, {0: half[1]})]
    reading = SharedPrompt(ids, None, [SharerPrompt(ids)], stretches)
    made = lean(engines["receiver"][0].model, engines["sharer_a"][0].model)

    def twice(kv: KV) -> KV:
        return KV(tuple(LayerKV(2 * k, 2 * v) for k, v in kv.layers), kv.positions)

    async def run(place: int) -> FusedPrefill:
        sharer = Sharer(engines["sharer_a"][place], made, alter=twice)
        return await fused_prefill(engines["receiver"][place], [sharer], reading)

    assert same_bits(anyio.run(run, 0), anyio.run(run, 1))


def test_so_it_does_where_a_fuser_reads_the_sharers_first_layers_alone(engines: Engines) -> None:
    mine, theirs = engines["receiver"][0].model, engines["sharer_a"][0].model
    made = lean(mine, theirs, layer_map=[(layer, layer // 2) for layer in range(4)])

    async def run(place: int) -> FusedPrefill:
        sharer = Sharer(engines["sharer_a"][place], made)
        return await fused_prefill(engines["receiver"][place], [sharer], share_by_ids(tokens(20), 1))

    together, apart = anyio.run(run, 0), anyio.run(run, 1)
    assert same_bits(together, apart)
    assert {len(segment.layers) for segment in apart.sharers[0]} == {2}


def test_a_layer_is_corrected_while_the_sharer_still_reads(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    corrected = threading.Event()
    waited: list[bool] = []

    def fuse_layers(*args: Any, **kwargs: Any) -> Any:
        corrected.set()
        return fuse(*args, **kwargs)

    fuse = apply_fuser.fuse_layers
    monkeypatch.setattr(stream_layers, "fuse_layers", fuse_layers)
    (sharer,) = sharers(engines, 1)[:1]
    last = sharer.engine.model.info.layers - 1

    def wait_in_the_last_layer(kv: KV) -> KV:
        waited.append(len(waited) < last or corrected.wait(60))
        return kv

    async def run() -> FusedPrefill:
        watched = replace(sharer, alter=wait_in_the_last_layer)
        return await fused_prefill(engines["receiver"][1], [watched], share_by_ids(tokens(20), 1))

    anyio.run(run)
    assert all(waited)
    assert len(waited) > last


@pytest.mark.parametrize("mode", ["parallel", "sequential"])
def test_a_sharer_that_has_sent_nothing_yet_holds_up_only_layers_that_it_corrects(
    engines: Engines, monkeypatch: pytest.MonkeyPatch, mode: FusionMode
) -> None:
    corrected = threading.Event()
    waited: list[bool] = []

    def fuse_layers(*args: Any, **kwargs: Any) -> Any:
        corrected.set()
        return fuse(*args, **kwargs)

    def wait_for_the_others(kv: KV) -> KV:
        if not waited:
            waited.append(corrected.wait(60))
        return kv

    async def run(place: int) -> FusedPrefill:
        late, *others = sharers(engines, place)  # `late` corrects all layers but one
        late = replace(late, alter=wait_for_the_others if place == 1 else None)
        return await fused_prefill(engines["receiver"][place], [late, *others], share_by_ids(tokens(20), 3), mode)

    together = anyio.run(run, 0)
    fuse = apply_fuser.fuse_layers
    monkeypatch.setattr(stream_layers, "fuse_layers", fuse_layers)
    apart = anyio.run(run, 1)
    assert waited == [True]
    assert same_bits(together, apart)


def test_an_error_of_a_sharer_ends_the_waiting(engines: Engines) -> None:
    def broken(kv: KV) -> KV:
        raise ModelError("out of order")

    async def run() -> None:
        others = [replace(each, alter=broken if index == 1 else None) for index, each in enumerate(sharers(engines, 1))]
        with anyio.fail_after(60), pytest.raises(ModelError, match="out of order"):
            await fused_prefill(engines["receiver"][1], others, share_by_ids(tokens(20), 3))

    anyio.run(run)
