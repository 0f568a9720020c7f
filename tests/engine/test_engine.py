"""One engine for many: rows that join and leave, shared segments, cancellation, failures, any event loop."""

import gc
import hashlib
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import anyio
import pytest
import torch
from tiny import Tiny
from together import gather, in_one_batch

from cachegraph.engine.catalogue import ensure
from cachegraph.engine.cpu.build import Kernels, kernels
from cachegraph.engine.cpu_capabilities import has_tiles
from cachegraph.engine.engine import Engine
from cachegraph.engine.kv.cache import KV
from cachegraph.engine.pool import lease
from cachegraph.engine.request import Generated, Prefilled
from cachegraph.engine.spec import GenerateSpec, ModelSpec
from cachegraph.engine.torch_threads import on_one_thread
from cachegraph.errors import ModelError

ENDLESS = GenerateSpec(max_new_tokens=10**6, ignore_eos=True)


def tokens(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 300, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture
def engine(tiny: Tiny) -> Iterator[Engine]:
    engine = Engine(tiny("llama"))
    yield engine
    engine.close()


def generate(
    engine: Engine, ids: Sequence[int], past: Sequence[KV] = (), count: int = 12
) -> Callable[[], Awaitable[Generated]]:
    return lambda: engine.generate(ids, past, GenerateSpec(max_new_tokens=count))


@pytest.mark.anyio
async def test_rows_of_very_different_lengths_reply_as_each_would_alone(engine: Engine) -> None:
    """Some behind a shared past, one longer than a step's share of prompt tokens, some of one token."""
    past = (await engine.prefill(tokens(40, seed=7))).segments
    calls = [generate(engine, tokens(count, seed=count), past if count % 2 else ()) for count in (1, 2, 3, 30, 700, 1)]
    alone = [await call() for call in calls]
    together = await in_one_batch(engine, *calls)
    assert [reply.ids for reply in together] == [reply.ids for reply in alone]
    assert [reply.finish for reply in together] == ["length"] * 6


@pytest.mark.anyio
async def test_rows_read_together_are_read_as_alone(engine: Engine) -> None:
    prompts = [tokens(count, seed=count) for count in (1, 5, 64, 2)]
    calls = [partial(engine.prefill, ids, logits="all") for ids in prompts]
    alone = [await call() for call in calls]
    together = await in_one_batch(engine, *calls)
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a.logits, b.logits, rtol=1e-5, atol=1e-5)
        assert a.kv is not None
        assert b.kv is not None
        for x, y in zip(a.kv.layers, b.kv.layers, strict=True):
            torch.testing.assert_close(x.keys, y.keys, rtol=1e-5, atol=1e-5)


@pytest.mark.models
@pytest.mark.skipif(
    has_tiles(torch) and not (isinstance(compiled := kernels(), Kernels) and compiled.in_tiles),
    reason="torch's products by tiles round by the number of rows",
)
def test_in_bfloat16_a_real_model_gives_the_same_bits_alone_and_in_any_batch() -> None:
    async def run() -> None:
        taken = await lease(ModelSpec(source="smollm2-135m-instruct", dtype="bfloat16", device="cpu"), ensure_folder())
        engine = taken.engine
        past = (await engine.prefill(tokens(20, seed=1))).segments
        calls: list[Callable[[], Awaitable[Generated | Prefilled]]] = [
            generate(engine, tokens(1, seed=2), past, 6),
            generate(engine, tokens(33, seed=3), (), 6),
            generate(engine, tokens(7, seed=4), past, 6),
            lambda: engine.prefill(tokens(5, seed=5), past, logits="all"),
            lambda: engine.prefill(tokens(18, seed=6), logits="all"),
        ]
        alone = [await call() for call in calls]
        together = await in_one_batch(engine, *calls)
        kinds = []
        for a, b in zip(together, alone, strict=True):
            kinds.append(type(a))
            if isinstance(a, Generated):
                assert isinstance(b, Generated)
                assert a.ids == b.ids
                assert same_bits(a.segments[-1], b.segments[-1])
            else:
                assert isinstance(b, Prefilled)
                assert a.logits is not None
                assert b.logits is not None
                assert torch.equal(a.logits, b.logits)
                assert a.kv is not None
                assert b.kv is not None
                assert same_bits(a.kv, b.kv)
        assert kinds == [Generated] * 3 + [Prefilled] * 2
        taken.release()

    anyio.run(run)


def ensure_folder() -> Any:
    return ensure(ModelSpec(source="smollm2-135m-instruct")).folder


def same_bits(a: KV, b: KV) -> bool:
    return all(
        torch.equal(x, y)
        for one, other in zip(a.layers, b.layers, strict=True)
        for x, y in zip(one, other, strict=True)
    )


def digest(segments: Sequence[KV]) -> str:
    hashed = hashlib.sha256()
    for segment in segments:
        for layer in segment.layers:
            for tensor in layer:
                hashed.update(tensor.contiguous().numpy().tobytes())
    return hashed.hexdigest()


def memory(segments: Sequence[KV]) -> dict[int, int]:
    """Bytes by storage."""
    tensors = [tensor for segment in segments for layer in segment.layers for tensor in layer]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


@pytest.mark.anyio
async def test_a_shared_segment_is_held_once_and_never_changed(engine: Engine) -> None:
    """Four rows continue from one document, at once."""
    document = (await engine.prefill(tokens(200))).segments
    before = digest(document)
    rows = await in_one_batch(engine, *(generate(engine, tokens(3, seed=n), document) for n in range(4)))
    assert digest(document) == before
    shared = memory(document)
    all_rows = memory([segment for row in rows for segment in row.segments])
    assert all(memory(row.segments[:1]) == shared for row in rows)
    assert len(all_rows) == 5 * len(shared)
    assert sum(all_rows.values()) < 2 * sum(shared.values())


@pytest.mark.anyio
async def test_rows_that_continue_from_the_same_reply_do_not_meet(engine: Engine) -> None:
    """A frozen tail has room behind it; whoever continues writes elsewhere."""
    reply = await engine.generate(tokens(5), spec=GenerateSpec(max_new_tokens=4))
    before = digest(reply.segments)
    first = await engine.generate([1], reply.segments, GenerateSpec(max_new_tokens=6))
    second = await engine.generate([2], reply.segments, GenerateSpec(max_new_tokens=6))
    again = await engine.generate([1], reply.segments, GenerateSpec(max_new_tokens=6))
    assert first.ids == again.ids
    assert first.ids != second.ids
    assert digest(reply.segments) == before


@pytest.mark.anyio
async def test_nothing_is_read_twice(engine: Engine) -> None:
    document = await engine.prefill(tokens(50))
    assert document.cost.prefilled == 50
    reply = await engine.generate(tokens(3), document.segments, GenerateSpec(max_new_tokens=5))
    assert (reply.cost.prefilled, reply.cost.generated) == (3, 5)
    assert [len(segment) for segment in reply.segments] == [50, 3 + 4]


@pytest.mark.anyio
async def test_a_reply_that_ends_by_itself_has_been_read_whole(engine: Engine, tiny: Tiny) -> None:
    free = await engine.generate(tokens(5), spec=GenerateSpec(max_new_tokens=8))
    end = next(index for index in range(1, 8) if free.ids[index] not in free.ids[:index])
    model = tiny("llama")
    ending = Engine(replace(model, info=replace(model.info, eos_ids=frozenset([free.ids[end]]))))
    reply = await ending.generate(tokens(5), spec=GenerateSpec(max_new_tokens=8))
    ending.close()
    assert (reply.ids, reply.finish) == (free.ids[:end], "eos")
    assert sum(map(len, reply.segments)) == 5 + end


@pytest.mark.anyio
async def test_cancellation_frees_the_row_before_the_next_step(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    await engine.call(int)
    loop = engine._loop
    steps: list[int] = []
    assert loop is not None
    step = loop._step

    def counted(shares: Any) -> None:
        steps.append(len(shares))
        step(shares)

    monkeypatch.setattr(loop, "_step", counted)
    caches: list[Any] = []
    async with anyio.create_task_group() as group:
        group.start_soon(engine.generate, tokens(5), (), ENDLESS)
        while not caches:
            await engine.call(lambda: caches.extend(weakref.ref(each.cache) for each in loop._admission.requests))
        group.cancel_scope.cancel()
    so_far = len(steps)
    while await engine.call(lambda: len(loop._admission.requests)):
        pass
    assert len(steps) - so_far <= 1  # the one that was about to begin
    gc.collect()
    assert caches[0]() is None


@pytest.mark.anyio
async def test_a_row_that_is_over_is_not_kept_by_a_waiting_engine(engine: Engine) -> None:
    reply = await engine.generate(tokens(5), spec=GenerateSpec(max_new_tokens=3))
    kept = weakref.ref(reply.segments[-1].layers[0].keys)
    called = await engine.call(partial(len, reply.segments))
    assert called == 1
    del reply
    await engine.call(int)
    gc.collect()
    assert kept() is None


@pytest.mark.anyio
async def test_closing_fails_what_is_under_way_in_our_words_and_later_requests_start_again(engine: Engine) -> None:
    errors: list[Exception] = []

    async def endless() -> None:
        try:
            await engine.generate(tokens(5), spec=ENDLESS)
        except ModelError as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(endless)
        await anyio.wait_all_tasks_blocked()
        await anyio.to_thread.run_sync(engine.close)
    assert [str(error) for error in errors] == [f"the engine of {engine.model.name!r} was closed"] * 3
    reply = await engine.generate(tokens(5), spec=GenerateSpec(max_new_tokens=2))
    assert len(reply.ids) == 2


@pytest.mark.anyio
async def test_a_failing_request_fails_alone_and_the_engine_goes_on(engine: Engine) -> None:
    """Its neighbours in the very step are not touched."""
    expected = (await generate(engine, tokens(6))()).ids

    async def wrong() -> Exception | None:
        try:
            await engine.generate([5, 10**6])
        except ModelError as error:
            return error
        return None

    before, error, after = await in_one_batch(engine, generate(engine, tokens(6)), wrong, generate(engine, tokens(6)))
    assert before.ids == after.ids == expected
    assert str(error).startswith(f"{engine.model.name!r} failed in a forward pass: IndexError: ")
    assert (await generate(engine, tokens(6))()).ids == expected


@pytest.mark.anyio
async def test_a_function_that_fails_raises_its_own_error_and_the_engine_goes_on(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError):
        await engine.call(lambda: 1 / 0)
    assert await engine.call(lambda: 5) == 5


def test_event_loops_of_both_kinds_in_several_threads_share_an_engine(engine: Engine) -> None:
    prompts = [tokens(3 + n, seed=n) for n in range(4)]
    expected = [anyio.run(generate(engine, ids)).ids for ids in prompts]
    found: dict[int, list[Any]] = {}

    def loop(number: int) -> None:
        async def run() -> list[Any]:
            return [reply.ids for reply in await gather(*(generate(engine, ids) for ids in prompts))]

        found[number] = anyio.run(run, backend=("asyncio", "trio")[number % 2])

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {number: [list(ids) for ids in expected] for number in range(4)}


@pytest.mark.anyio
async def test_long_prompts_keep_replies_waiting_for_one_share_only(engine: Engine) -> None:
    """While a prompt of many shares is read, a reply that began before goes on with every step."""
    order: list[str] = []

    async def reply() -> None:
        await engine.generate([7], spec=GenerateSpec(max_new_tokens=4))
        order.append("reply")

    async def prompt() -> None:
        await engine.prefill(tokens(512 * 8))
        order.append("prompt")

    await in_one_batch(engine, reply, prompt)
    assert order == ["reply", "prompt"]


@pytest.mark.anyio
async def test_prompts_longer_than_a_share_are_read_whole(engine: Engine) -> None:
    """Logits, explicit positions and overrides are cut along with the tokens."""
    ids = tokens(600)
    whole = await engine.prefill(ids, logits="all")
    assert whole.logits is not None
    assert whole.kv is not None
    shifted = await engine.prefill(ids, positions=torch.arange(9, 609), logits="all")
    assert shifted.kv is not None
    assert shifted.kv.positions.tolist() == list(range(9, 609))
    torch.testing.assert_close(shifted.logits, whole.logits, rtol=1e-4, atol=1e-4)
    own = await engine.prefill(ids, override=whole.kv.layers, logits="all")
    torch.testing.assert_close(own.logits, whole.logits, rtol=1e-4, atol=1e-4)
    past = await engine.prefill(ids[:100])
    rest = await engine.prefill(ids[100:], past.segments, logits="last")
    torch.testing.assert_close(rest.logits, whole.logits[-1:], rtol=1e-4, atol=1e-4)


@pytest.mark.anyio
async def test_several_rows_behind_one_past_arrive_together(engine: Engine) -> None:
    past = await engine.prefill(tokens(10))
    rows = [tokens(count, seed=count) for count in (1, 4, 2)]
    alone = [await engine.prefill(ids, past.segments, logits="all") for ids in rows]
    together = await engine.prefill_many(rows, past.segments, logits="all")
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a.logits, b.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.anyio
async def test_an_engine_that_starts_while_another_thread_is_on_one_takes_all_threads(tiny: Tiny) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    inside, done = threading.Event(), threading.Event()

    def small() -> None:
        with on_one_thread():
            inside.set()
            done.wait(60)

    other = threading.Thread(target=small)
    other.start()
    started = Engine(tiny("llama"))
    try:
        assert inside.wait(60)
        assert await started.call(torch.get_num_threads) == 2
    finally:
        done.set()
        other.join()
        started.close()
        torch.set_num_threads(before)
