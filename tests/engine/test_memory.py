"""What is counted as KV memory, until when, and how much there may be."""

import gc
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from cachegraph.engine.batching.kv_budget import KVBudget, choose_budget, position_bytes
from cachegraph.engine.kv.cache import KV, LayerKV
from cachegraph.errors import ConfigError

BYTES = 2 * 3 * 8 * 4  # of one position of `made`: two layers' keys and values


def made(positions: int) -> KV:
    layers = tuple(LayerKV(torch.zeros(1, 3, positions, 4), torch.zeros(1, 3, positions, 4)) for _ in range(2))
    return KV(layers, torch.arange(positions))


def test_a_segment_is_counted_once_however_many_hold_it_and_until_the_last_one_lets_go() -> None:
    memory = KVBudget(10**9)
    document = made(10)
    memory.hold([document])
    memory.hold([document, document.select(slice(2, 5))])
    assert memory.used == 10 * BYTES
    part = document.select(slice(0, 1))
    del document
    gc.collect()
    assert memory.used == 10 * BYTES
    memory.hold([part])
    del part
    assert memory.used == 0
    assert memory.peak == 10 * BYTES


def test_memory_at_an_address_that_is_used_again_is_counted_again() -> None:
    memory = KVBudget(10**9)
    for _ in range(20):
        kv = made(64)
        memory.hold([kv])
        assert memory.used == 64 * BYTES
        del kv
    assert memory.used == 0


def test_runs_are_told_apart() -> None:
    memory = KVBudget(10**9)
    first, second = made(4), made(6)
    memory.hold([first], "one")
    memory.hold([first, second], "two")
    assert (memory.held_by("one"), memory.held_by("two"), memory.held_by("three")) == (4 * BYTES, 6 * BYTES, 0)
    del first
    assert (memory.held_by("one"), memory.held) == (0, 6 * BYTES)
    del second
    assert memory.held == 0


def test_reservations_count_until_they_are_released() -> None:
    memory = KVBudget(1000)
    memory.reserve(1, 600)
    memory.reserve(1, 700)
    memory.reserve(2, 100)
    assert (memory.used, memory.room) == (800, 200)
    memory.release(1)
    memory.release(1)
    assert (memory.used, memory.room, memory.peak) == (100, 900, 800)


def test_the_budget_is_what_the_recipe_says_then_the_environment_then_a_part_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.delenv("CACHEGRAPH_KV_MEMORY", raising=False)
    assert choose_budget(None, ["cpu"]) == 250
    monkeypatch.setenv("CACHEGRAPH_KV_MEMORY", "1.5GB")
    assert choose_budget(None, ["cpu"]) == 1_500_000_000
    assert choose_budget(7, ["cpu"]) == 7
    for wrong in ("much", "-2GB"):
        monkeypatch.setenv("CACHEGRAPH_KV_MEMORY", wrong)
        with pytest.raises(ConfigError, match=f"CACHEGRAPH_KV_MEMORY is '{wrong}', which is not a size"):
            choose_budget(None, ["cpu"])


def test_a_position_takes_keys_and_values_of_every_layer(tiny: Any) -> None:
    assert position_bytes(tiny("llama")) == 2 * 3 * 2 * 8 * 4
    assert position_bytes(tiny("llama", torch.bfloat16)) == 2 * 3 * 2 * 8 * 2
