"""Decoding in steps that never change, against the forward pass by torch that every device has."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import anyio
import pytest
import torch
from tiny import KINDS
from together import in_one_batch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cachegraph.engine.batching.kv_offload import SwappedTail
from cachegraph.engine.engine import Engine
from cachegraph.engine.gpu import decoder, kernels, tables
from cachegraph.engine.gpu.decoder import GPUDecoder
from cachegraph.engine.kv.cache import KV, RowCache
from cachegraph.engine.model.forward import Row, forward
from cachegraph.engine.model.load import LoadedModel
from cachegraph.engine.spec import GenerateSpec

Stepped = Callable[..., LoadedModel]


def tokens(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 300, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def read(model: LoadedModel, count: int, past: Sequence[KV] = ()) -> RowCache:
    cache = RowCache(past)
    if count:
        forward(model.network, model.info, [Row(tokens(count), cache, "none")])
    return cache


def some_rows(model: LoadedModel) -> list[RowCache]:
    """One behind nothing, one behind what that has read, one that has read nothing itself."""
    first = read(model, 40)
    second = read(model, 13, first.freeze())
    return [first, second, read(model, 0, second.freeze())]


def by_torch(model: LoadedModel, ids: Sequence[int], rows: Sequence[RowCache]) -> Tensor:
    found = forward(model.network, model.info, [Row([id_], row) for id_, row in zip(ids, rows, strict=True)])
    return torch.cat([each for each in found if each is not None])


def step(model: LoadedModel, ids: Sequence[int], rows: Sequence[RowCache]) -> Tensor:
    assert model.decoder is not None
    return model.decoder.read([[id_] for id_ in ids], rows, [[0]] * len(ids))


def begin(model: LoadedModel, ids: Sequence[int], rows: Sequence[RowCache]) -> None:
    assert isinstance(model.decoder, GPUDecoder)
    model.decoder.begin_next(rows, torch.tensor(ids, device=model.device), lambda: list(ids))


def near(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """By step that was computed, how many rows it had room for."""
    sizes: list[int] = []
    compute = GPUDecoder._compute

    def spy(self: GPUDecoder, size: int) -> Tensor:
        sizes.append(size)
        return compute(self, size)

    monkeypatch.setattr(GPUDecoder, "_compute", spy)
    return sizes


# Windows, norms of heads, capped scores, sinks, RoPE of a part: all that attention is told of.
@torch.inference_mode()
@pytest.mark.parametrize("kind", ["llama", "gemma3_short_window", "gemma2", "gpt_oss", "phi", "gpt_neox"])
def test_rows_behind_their_own_and_shared_caches_get_what_torch_computes(kind: str, stepped: Stepped) -> None:
    """Longer than the sliding windows. The entries that are written are compared too."""
    model = stepped(kind)
    ours, theirs = some_rows(model), some_rows(model)
    near(step(model, [7, 9, 11], ours), by_torch(model, [7, 9, 11], theirs))
    for one, other in zip(ours, theirs, strict=True):
        assert one.positions.tolist() == other.positions.tolist()
        for ours_, theirs_ in zip(one.tail().layers, other.tail().layers, strict=True):
            near(ours_.keys[:, :, -1:], theirs_.keys[:, :, -1:])
            near(ours_.values[:, :, -1:], theirs_.values[:, :, -1:])


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_as_rounding_lets_it_be(dtype: torch.dtype, stepped: Stepped) -> None:
    model = stepped("qwen3", dtype)
    got, expected = (run(model, [7, 9, 11], some_rows(model)).float() for run in (step, by_torch))
    assert torch.nn.functional.cosine_similarity(got, expected).min() > 0.999


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of no more than four rows."""
    for module in (decoder, tables):
        monkeypatch.setattr(module, "MOST_ROWS", 4)


@torch.inference_mode()
@pytest.mark.usefixtures("narrow")
def test_tails_grow_and_tables_do(stepped: Stepped, computed: list[int]) -> None:
    """Past the room of a tail, and behind more segments than the tables had room for."""
    model = stepped("gemma3_short_window")
    parts = [read(model, 2).freeze()[0]] * 10
    ours, theirs = [read(model, 31), read(model, 3, parts)], [read(model, 31), read(model, 3, parts)]
    for id_ in range(3):
        near(step(model, [id_, 5], ours), by_torch(model, [id_, 5], theirs))
    assert computed == [2, 2, 2]


@torch.inference_mode()
@pytest.mark.usefixtures("narrow")
def test_more_rows_than_a_step_has_take_two(stepped: Stepped, computed: list[int]) -> None:
    model = stepped()
    past, ids = read(model, 5).freeze(), tokens(5)
    got = step(model, ids, [read(model, 0, past) for _ in ids])
    near(got, by_torch(model, ids, [read(model, 0, past) for _ in ids]))
    assert computed == [4, 1]


@torch.inference_mode()
def test_a_token_may_stand_anywhere_and_nobody_may_ask_for_its_logits(stepped: Stepped) -> None:
    model = stepped()
    ours, theirs = some_rows(model), some_rows(model)
    at = [torch.tensor([100]), None, torch.tensor([60])]
    assert model.decoder is not None
    got = model.decoder.read([[1], [2], [3]], ours, [[0], [], [0]], at)
    rows = [Row([id_], row, positions=where) for id_, row, where in zip([1, 2, 3], theirs, at, strict=True)]
    expected = forward(model.network, model.info, rows)
    assert expected[0] is not None and expected[2] is not None  # noqa: PT018
    near(got, torch.cat([expected[0], expected[2]]))
    assert ours[0].positions[-1] == 100


@torch.inference_mode()
def test_a_step_begun_ahead_is_taken_by_those_it_was_begun_for(stepped: Stepped, computed: list[int]) -> None:
    """By some of them, too, in any order."""
    model = stepped("gemma3_short_window")
    ours, theirs = some_rows(model), some_rows(model)
    near(step(model, [7, 9, 11], ours), by_torch(model, [7, 9, 11], theirs))
    begin(model, [1, 2, 3], ours)
    assert [len(row) for row in ours] == [len(row) for row in theirs]  # nobody has read anything yet
    near(step(model, [3, 1], [ours[2], ours[0]]), by_torch(model, [3, 1], [theirs[2], theirs[0]]))
    assert len(computed) == 2
    near(step(model, [4, 5, 6], ours), by_torch(model, [4, 5, 6], theirs))
    assert len(computed) == 3


def another_token(model: LoadedModel, rows: list[RowCache]) -> list[int]:
    return [1, 2, 4]


def another_row(model: LoadedModel, rows: list[RowCache]) -> list[int]:
    rows[1] = read(model, 13, rows[1].segments)
    return [1, 2, 3]


def a_row_that_went_on(model: LoadedModel, rows: list[RowCache]) -> list[int]:
    forward(model.network, model.info, [Row([8], rows[1])])
    return [1, 2, 3]


def a_tail_that_moved(model: LoadedModel, rows: list[RowCache]) -> list[int]:
    """What was written ahead is not in it any more."""
    swapped = SwappedTail(rows[1].take_tail(), rows[1].used)
    rows[1].put_tail(swapped.restore(rows[1].capacity))
    return [1, 2, 3]


CHANGES = [another_token, another_row, a_row_that_went_on, a_tail_that_moved]


@torch.inference_mode()
@pytest.mark.parametrize("change", CHANGES)
def test_a_step_begun_ahead_is_dropped_where_the_host_wants_another(
    change: Callable[..., list[int]], stepped: Stepped, computed: list[int]
) -> None:
    model = stepped("gemma3_short_window")
    ours, theirs = some_rows(model), some_rows(model)
    near(step(model, [7, 9, 11], ours), by_torch(model, [7, 9, 11], theirs))
    begin(model, [1, 2, 3], ours)
    ids = change(model, ours)
    assert change(model, theirs) == ids
    near(step(model, ids, ours), by_torch(model, ids, theirs))
    near(step(model, [5, 5, 5], ours), by_torch(model, [5, 5, 5], theirs))
    assert len(computed) == 4


@torch.inference_mode()
def test_no_step_is_begun_where_a_tail_has_no_room(stepped: Stepped, computed: list[int]) -> None:
    model = stepped()
    full = read(model, 32)
    begin(model, [1], [full])
    assert not computed
    near(step(model, [1], [full]), by_torch(model, [1], [read(model, 32)]))


@torch.inference_mode()
def test_a_step_begun_with_no_token_harms_nobody(stepped: Stepped) -> None:
    """Where logits are no numbers, none is chosen: the row fails, the others go on."""
    model = stepped()
    ours, theirs = some_rows(model)[:2], some_rows(model)[:2]
    begin(model, [-1, 5], ours)
    near(step(model, [5], ours[1:]), by_torch(model, [5], theirs[1:]))


@torch.inference_mode()
def test_caches_are_freed_as_soon_as_nobody_else_has_them(stepped: Stepped) -> None:
    model = stepped()
    rows = some_rows(model)
    step(model, [1, 2, 3], rows)
    begin(model, [1, 2, 3], rows)
    kept = [weakref.ref(segment.layers[0].keys.untyped_storage()) for row in rows for segment in row.freeze()]
    del rows
    assert [each() for each in kept] == [None] * len(kept)


class _Asks(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects what would make a GPU wait for the host: numbers read back or sent, shapes that depend on them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.asked: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in ("_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "_unique2", "is_nonzero"):
            self.asked.append(name)
        return function(*args, **(kwargs or {}))


_UNLIKE = {"gemma4", "deepseek_v3", "mimo_v2_flash"}  # layers differ in shape, share entries or expand them


@torch.inference_mode()
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in _UNLIKE])
def test_nothing_between_two_steps_asks_the_host(kind: str, stepped: Stepped, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does can't be recorded as a CUDA graph."""
    model = stepped(kind)
    monkeypatch.setattr(kernels, "append", lambda *_: None)
    monkeypatch.setattr(kernels, "attend", lambda segments, rows, query, *_: query.transpose(1, 2))
    step(model, [1, 2, 3], some_rows(model))
    assert isinstance(model.decoder, GPUDecoder)
    with _Asks() as seen:
        model.decoder._compute(4)
    asks = kind == "llama_dynamic"  # its RoPE depends on the highest position
    assert bool(seen.asked) == asks


def replies(
    model: LoadedModel, specs: Sequence[GenerateSpec], cancel: int | None = None, *, at_once: bool = False
) -> list[Sequence[int]]:
    """What rows of different lengths reply that arrive one after another, or `at_once`; one may be cancelled."""
    engine = Engine(model)
    found: list[Sequence[int]] = [[] for _ in specs]

    async def prefill(index: int) -> Sequence[KV]:
        return (await engine.prefill(tokens(10, seed=index % 2))).segments

    async def generate(index: int, past: Sequence[KV]) -> None:
        done = await engine.generate(tokens(3 + index, seed=index), past, specs[index])
        found[index] = done.ids

    async def reply(index: int) -> None:
        await generate(index, await prefill(index))

    async def run() -> None:
        if at_once:
            pasts = [await prefill(index) for index in range(len(specs))]
            await in_one_batch(engine, *(partial(generate, index, past) for index, past in enumerate(pasts)))
            return
        async with anyio.create_task_group() as group:
            for index in range(len(specs)):
                if index == cancel:
                    with anyio.move_on_after(0.5):
                        await reply(index)
                else:
                    group.start_soon(reply, index)

    try:
        anyio.run(run)
    finally:
        engine.close()
    return found


def drawn(count: int, **how: Any) -> GenerateSpec:
    return GenerateSpec(max_new_tokens=count, ignore_eos=True, **how)


SPECS = [
    drawn(9),
    drawn(14, temperature=0.8, top_p=0.9, seed=1),
    drawn(5, repetition_penalty=1.3),
    drawn(11, temperature=1.0, top_k=20, min_p=0.01, seed=2),
]


def test_an_engine_replies_as_with_torch_alone(stepped: Stepped, computed: list[int]) -> None:
    model = stepped("gemma3_short_window")
    got = replies(model, SPECS, at_once=True)
    steps = len(computed)
    model.decoder = None
    assert got == replies(model, SPECS)
    assert [len(ids) for ids in got] == [9, 14, 5, 11]
    assert steps <= 14 + 2 * len(SPECS)  # as many as the longest reply has, and some begun for rows that had ended


def test_an_engine_goes_on_when_a_row_is_cancelled(stepped: Stepped) -> None:
    model = stepped()
    got = replies(model, [*SPECS, drawn(10**6)], cancel=4)
    model.decoder = None
    assert got[:4] == replies(model, SPECS)


def test_steps_are_begun_before_the_host_asks(
    stepped: Stepped, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the first, and none behind the last token."""
    model, asked = stepped(), 0
    read_ = GPUDecoder._read

    def spy(self: GPUDecoder, *arguments: Any) -> Tensor:
        nonlocal asked
        asked += 1
        before = len(computed)
        found = read_(self, *arguments)
        assert len(computed) == before
        return found

    monkeypatch.setattr(GPUDecoder, "_read", spy)
    assert len(replies(model, [drawn(20)])[0]) == 20
    assert asked == len(computed) == 19


@torch.inference_mode()
@pytest.mark.models
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma-3-270m"])
def test_demo_models_decode_as_with_torch(name: str, demo_engines: dict[str, Engine]) -> None:
    """In bfloat16, behind a shared text and behind one of their own."""
    model = demo_engines[name].model
    assert model.tokenizer is not None
    said = "A cache that one agent has computed is read by another, which saves the words."
    text = list(model.tokenizer.encode(said, special=True).ids)
    stepped = replace(model, decoder=GPUDecoder(model.network, model.info))

    def rows() -> list[RowCache]:
        first = RowCache()
        forward(model.network, model.info, [Row(text, first, "none")])
        return [first, RowCache(first.freeze())]

    got, expected = step(stepped, text[:2], rows()), by_torch(model, text[:2], rows())
    assert torch.nn.functional.cosine_similarity(got.float(), expected.float()).min() > 0.999
