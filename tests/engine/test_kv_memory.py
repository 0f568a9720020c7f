"""An engine whose KV memory is small: it waits, swaps and refuses, and its replies stay what they are."""

import gc
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest
import torch
from tiny import Tiny
from together import in_one_batch

from cachegraph.engine.batching.kv_budget import position_bytes
from cachegraph.engine.batching.kv_offload import SwappedTail
from cachegraph.engine.batching.request_context import RequestContext, request_context
from cachegraph.engine.batching.request_state import RequestState
from cachegraph.engine.engine import Engine
from cachegraph.engine.kv.cache import BLOCK, RowCache
from cachegraph.engine.request import Generated
from cachegraph.engine.spec import GenerateSpec, ModelSpec
from cachegraph.errors import ModelError

Small = Callable[[int], Engine]


def tokens(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 300, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture
def small(tiny: Tiny) -> Iterator[Small]:
    """`small(positions)` is an engine whose KV memory holds so many."""
    made: list[Engine] = []

    def make(positions: int) -> Engine:
        model = tiny("llama")
        made.append(Engine(model, positions * position_bytes(model)))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


async def used(engine: Engine) -> int:
    """What is in use when all that was asked before has been done, and all that nobody holds is freed."""
    await engine.call(int)
    loop = engine._loop
    while loop is not None and any(request.cancelled for request in loop._admission.requests):
        await engine.call(int)  # cancelled requests are dropped between two steps
    await engine.call(int)
    gc.collect()
    return engine.kv_use().used


@asynccontextmanager
async def swaps(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[int]]:
    out: list[int] = []
    swap_out = RequestState.swap_out

    def counted(request: RequestState) -> None:
        out.append(len(request.cache))
        swap_out(request)

    with monkeypatch.context() as patch:
        patch.setattr(RequestState, "swap_out", counted)
        yield out


@pytest.mark.anyio
async def test_rows_that_outgrow_the_budget_are_swapped_and_reply_as_they_would_with_room(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [tokens(5 + 9 * n, seed=n) for n in range(4)]
    spec = GenerateSpec(max_new_tokens=60)
    roomy, tight = small(10_000), small(160)
    expected = [list((await roomy.generate(ids, spec=spec)).ids) for ids in prompts]

    async def reply(ids: list[int]) -> list[int]:
        return list((await tight.generate(ids, spec=spec)).ids)

    async with swaps(monkeypatch) as out:
        assert await in_one_batch(tight, *(partial(reply, ids) for ids in prompts)) == expected
    assert out
    assert tight.kv_use().peak <= tight.kv_memory
    assert await used(tight) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.anyio
async def test_a_tail_comes_back_bit_by_bit(dtype: torch.dtype) -> None:
    cache = RowCache()
    cache.reserve(torch.arange(5))
    for layer in range(2):
        cache.append(layer, torch.randn(1, 2, 5, 4).to(dtype), torch.randn(1, 2, 5, 6).to(dtype))
    cache.commit()
    before = [each.clone() for layer in cache.tail().layers for each in layer]
    away = SwappedTail(cache.take_tail(), cache.used)
    cache.make_room(100)
    cache.put_tail(away.restore(cache.capacity))
    after = [each for layer in cache.tail().layers for each in layer]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert cache.room_for(1, 2, 2, 4, dtype)[0][0].keys.shape == (1, 2, 128, 4)


@pytest.mark.anyio
async def test_a_request_that_could_never_fit_fails_at_once_and_says_what_to_set(small: Small) -> None:
    engine = small(64)
    with pytest.raises(ModelError, match=r"100 tokens need .* its budget is .*; give the model more kv_memory, or set"):
        await engine.prefill(tokens(100))
    document = await engine.prefill(tokens(40))
    with pytest.raises(ModelError, match=r"30 tokens need .* behind .* that are there"):
        await engine.prefill(tokens(30), document.segments)
    del document
    with pytest.raises(ModelError, match=r"1 tokens need"):
        await engine.generate(tokens(20), spec=GenerateSpec(max_new_tokens=100))
    assert await used(engine) == 0


@pytest.mark.anyio
async def test_a_row_of_some_first_layers_takes_the_memory_of_those(small: Small) -> None:
    engine = small(96)
    layers = engine.model.info.layers
    done = await engine.prefill(tokens(90), layers=1)
    assert await used(engine) == engine.kv_use().peak == 96 * position_bytes(engine.model) // layers
    with pytest.raises(ModelError, match="tokens need"):
        await engine.prefill(tokens(100))
    more = await engine.prefill(tokens(100, seed=1), layers=1)
    assert engine.kv_use().peak <= engine.kv_memory
    assert [len(segment.layers) for segment in (*done.segments, *more.segments)] == [1, 1]


@pytest.mark.anyio
async def test_a_document_counts_once_however_many_read_it(small: Small) -> None:
    engine = small(1000)
    held = [await engine.prefill(tokens(300))]
    whole = await used(engine)
    replies: list[Generated] = []

    async def read(number: int) -> None:
        replies.append(await engine.generate([number], held[0].segments, GenerateSpec(max_new_tokens=5)))

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(read, number)
    model = engine.model
    assert await used(engine) == whole + 8 * BLOCK * position_bytes(model)
    assert replies[0].cost.kv_bytes == (300 + 1 + 4) * position_bytes(model)
    held.clear()
    assert await used(engine) == whole + 8 * BLOCK * position_bytes(model)
    replies.clear()
    assert await used(engine) == engine.kv_use().prefixes
    await engine.forget()
    assert await used(engine) == 0


@pytest.mark.anyio
async def test_requests_wait_for_what_others_hold_and_go_on_when_it_is_given_back(small: Small) -> None:
    engine = small(96)
    held = await engine.prefill(tokens(60))
    arrived: list[int] = []

    async def read() -> None:
        await engine.prefill(tokens(60, seed=1))
        arrived.append(1)

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        await anyio.sleep(0.3)
        assert not arrived
        del held
    assert arrived


@pytest.mark.anyio
async def test_a_run_that_holds_caches_can_always_finish(small: Small) -> None:
    """Two runs hold the whole budget between them, and both must read on before they can give any of it back."""
    engine = small(128)
    both = anyio.Event()
    holding: list[str] = []

    async def run(name: str) -> None:
        with request_context(RequestContext(name)):
            first = await engine.prefill(tokens(60))
            holding.append(name)
            if len(holding) == 2:
                both.set()
            await both.wait()
            await engine.prefill(tokens(40), first.segments)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(run, "one")
            group.start_soon(run, "two")
    assert await used(engine) == 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.anyio
async def test_whoever_is_cancelled_when_all_memory_comes_back(small: Small, seed: int) -> None:
    """Requests of all kinds, cancelled while they wait, read, decode or are swapped out."""
    engine = small(300)
    dice = random.Random(seed)
    held = [await engine.prefill(tokens(50))]
    before = await used(engine)

    async def ask(number: int) -> None:
        past = held[0].segments if number % 3 else ()
        with anyio.move_on_after(dice.random() * 0.3), request_context(RequestContext(f"run {number % 5}", number % 4)):
            if number % 4 == 0:
                await engine.prefill_many([tokens(dice.randint(1, 30)) for _ in range(3)], past)
            else:
                await engine.generate(
                    tokens(dice.randint(1, 90)), past, GenerateSpec(max_new_tokens=dice.randint(1, 80))
                )

    async with anyio.create_task_group() as group:
        for number in range(24):
            group.start_soon(ask, number)
            await anyio.sleep(dice.random() * 0.02)
    await engine.forget()
    assert await used(engine) == before
    loop = engine._loop
    assert loop is not None
    assert (loop._admission.requests, loop.budget.reserved) == ([], 0)
    held.clear()
    assert await used(engine) == 0


@pytest.mark.anyio
async def test_no_room_to_swap_to_fails_the_row_in_our_words(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cachegraph.engine.batching.kv_offload.tempfile.TemporaryFile", full)
    engine = small(128)

    async def reply(number: int) -> Generated | ModelError:
        try:
            return await engine.generate(tokens(20, seed=number), spec=GenerateSpec(max_new_tokens=60))
        except ModelError as error:
            return error

    outcomes = await in_one_batch(engine, *(partial(reply, number) for number in range(3)))
    errors = [str(each) for each in outcomes if isinstance(each, ModelError)]
    assert errors
    assert all("KV memory is full" in each and "No space left on device; free room there" in each for each in errors)
    assert any(isinstance(each, Generated) for each in outcomes)


def test_a_recipe_names_a_size_as_people_do() -> None:
    assert ModelSpec(source="m", kv_memory="2GB").kv_memory == 2_000_000_000
    assert ModelSpec(source="m", kv_memory=4096).kv_memory == 4096
    for wrong in ("lots", 0, "-1GB"):
        with pytest.raises(ValueError, match="kv_memory"):
            ModelSpec(source="m", kv_memory=wrong)
