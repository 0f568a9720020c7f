"""Rows with a recurrent state beside KV: what transformers' own `generate` gives for each row alone."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from hybrids import HYBRIDS
from tiny import load_tiny
from transformers import AutoModelForCausalLM

from cachegraph.engine.batching.kv_budget import position_bytes
from cachegraph.engine.batching.loop_bridge import Mailbox
from cachegraph.engine.batching.request_state import RequestState
from cachegraph.engine.engine import Engine
from cachegraph.engine.kv.cache import RowCache
from cachegraph.engine.kv.recurrent_state import RecurrentState
from cachegraph.engine.model.load import LoadedModel
from cachegraph.engine.model.model_config import ModelInfo
from cachegraph.engine.model.quiet_transformers import quiet_transformers
from cachegraph.engine.model.verify.verdict import Verdict
from cachegraph.engine.model.verify.verify_model import restore_verified
from cachegraph.engine.request import Generated
from cachegraph.engine.spec import GenerateSpec
from cachegraph.errors import ModelError

STEPS = 8
SPEC = GenerateSpec(max_new_tokens=STEPS, ignore_eos=True)
PROMPTS = (300, 41, 1, 130)  # tokens: more than two steps of a prompt, and neighbours that end where no other does


def tokens(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 300, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(params=HYBRIDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def engine(kind: str, tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(load_tiny(HYBRIDS[kind](), tmp_path))
    yield engine
    engine.close()


@pytest.fixture
def lfm2(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(load_tiny(HYBRIDS["lfm2"](), tmp_path))
    yield engine
    engine.close()


def own(folder: Path) -> Any:
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(folder).eval()


def generated(network: Any, ids: list[int]) -> list[int]:
    """What transformers writes behind a prompt."""
    prompt = torch.tensor([ids])
    with torch.inference_mode():
        out = network.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=STEPS, do_sample=False, pad_token_id=0
        )
    written: list[int] = out[0, len(ids) :].tolist()
    return written


async def together(engine: Engine, rows: list[list[int]]) -> list[list[int]]:
    done: list[list[int]] = [[] for _ in rows]

    async def one(index: int) -> None:
        done[index] = list((await engine.generate(rows[index], spec=SPEC)).ids)

    async with anyio.create_task_group() as group:
        for index in range(len(rows)):
            group.start_soon(one, index)
    return done


def test_rows_of_unequal_length_write_what_each_writes_alone_in_transformers(engine: Engine, tmp_path: Path) -> None:
    assert engine.model.why_no_cache is None
    rows = [tokens(count, seed) for seed, count in enumerate(PROMPTS)]
    network = own(tmp_path)
    assert anyio.run(together, engine, rows) == [generated(network, ids) for ids in rows]


def test_a_prompt_in_pieces_and_one_behind_a_shared_beginning_read_as_a_whole_one(
    engine: Engine, tmp_path: Path
) -> None:
    ids = tokens(300)
    with torch.inference_mode():
        expected = own(tmp_path)(torch.tensor([ids])).logits[0]

    async def run() -> None:
        front = await engine.prefill(ids[:150])
        for _ in range(2):  # the state in front is the same for both
            behind = await engine.prefill(ids[150:], front.segments, logits="all")
            torch.testing.assert_close(behind.logits, expected[150:], rtol=1e-3, atol=1e-3)
        whole = await engine.prefill(ids, logits="all")
        torch.testing.assert_close(whole.logits, expected, rtol=1e-3, atol=1e-3)

    anyio.run(run)


def test_sixteen_bits_give_the_same_bits_alone_and_beside_others(kind: str, tmp_path: Path) -> None:
    engine = Engine(load_tiny(HYBRIDS[kind](), tmp_path, dtype=torch.bfloat16))
    rows = [tokens(count, seed) for seed, count in enumerate((40, 150, 21))]

    async def run() -> None:
        alone = [(await engine.generate(ids, spec=SPEC)).ids for ids in rows]
        assert await together(engine, rows) == alone

    try:
        anyio.run(run)
    finally:
        engine.close()


def test_a_prompt_that_begins_as_an_earlier_one_takes_its_blocks_and_their_state(engine: Engine) -> None:
    beginning = tokens(256)
    first, second = beginning + tokens(20, 1), beginning + tokens(30, 2)

    async def run() -> None:
        await engine.generate(first, spec=SPEC)
        taken = await engine.generate(second, spec=SPEC)
        assert taken.cost.reused == 256
        await engine.forget()
        assert (await engine.generate(second, spec=SPEC)).ids == taken.ids

    anyio.run(run)


def test_a_row_goes_on_only_where_its_state_was_kept(lfm2: Engine) -> None:
    async def run() -> None:
        done = await lfm2.prefill(tokens(40))
        (kv,) = done.segments
        with pytest.raises(ModelError, match="their state behind these 30 positions was not kept"):
            await lfm2.prefill(tokens(3), [kv.select(slice(0, 30))])
        with pytest.raises(ModelError, match="their state behind these 39 positions was not kept"):
            await lfm2.prefill(tokens(3), [kv.select(slice(1, 40))])
        # another row's beginning, as long, in front of this one's end
        front, back = kv.split(20)
        other = (await lfm2.prefill(tokens(19, 5))).segments
        with pytest.raises(ModelError, match="was not kept"):
            await lfm2.prefill(tokens(3), [*other, back])
        assert (await lfm2.prefill(tokens(3), [front, back])).kv is not None

    anyio.run(run)


def test_a_reply_leaves_the_state_behind_its_prompt_too(lfm2: Engine) -> None:
    ids = tokens(50)

    async def run() -> None:
        done = await lfm2.generate(ids, spec=SPEC)
        prompt, reply = done.segments
        assert (len(prompt), len(reply)) == (50, STEPS - 1)
        again = await lfm2.prefill(tokens(5, 1), [prompt], logits="last")
        expected = await lfm2.prefill(ids + tokens(5, 1), logits="last")
        torch.testing.assert_close(again.logits, expected.logits)

    anyio.run(run)


def test_a_state_that_is_read_from_is_never_changed(lfm2: Engine) -> None:
    async def run() -> None:
        front = await lfm2.prefill(tokens(40))
        state = front.segments[-1].state
        assert state is not None
        before = [each.clone() for each in state.tensors()]
        await lfm2.generate(tokens(3), front.segments, SPEC)
        assert all(map(torch.equal, before, state.tensors()))

    anyio.run(run)


def test_cancelled_and_failing_neighbours_leave_a_rows_state_alone(engine: Engine) -> None:
    ids = tokens(140)

    async def run() -> None:
        expected = (await engine.generate(ids, spec=SPEC)).ids
        done: list[Generated] = []

        async def right() -> None:
            done.append(await engine.generate(ids, spec=SPEC))

        async def wrong() -> None:
            with pytest.raises(ModelError):
                await engine.generate([*tokens(9), 10**6], spec=SPEC)

        async def cancelled() -> None:
            with anyio.CancelScope() as scope:
                await engine.generate(ids, spec=SPEC, on_text=lambda _: scope.cancel())

        async with anyio.create_task_group() as group:
            for each in (right, wrong, cancelled, right, wrong):
                group.start_soon(each)
        assert [list(each.ids) for each in done] == [list(expected)] * 2

    anyio.run(run)


def test_rows_that_wait_for_memory_come_back_with_their_state(kind: str, tmp_path: Path) -> None:
    """Four rows where there is room for hardly two: they give up their memory in turn."""
    model = load_tiny(HYBRIDS[kind](), tmp_path)
    rows, spec = [tokens(60, seed) for seed in range(4)], GenerateSpec(max_new_tokens=60, ignore_eos=True)
    roomy = Engine(model)
    budget = int(2.5 * (128 * position_bytes(model) + model.info.state_bytes))
    narrow = Engine(model, budget)
    swapped: list[int] = []

    async def run(engine: Engine) -> list[Any]:
        replies: list[Any] = [None] * len(rows)

        async def one(index: int) -> None:
            replies[index] = (await engine.generate(rows[index], spec=spec)).ids

        async with anyio.create_task_group() as group:
            for index in range(len(rows)):
                group.start_soon(one, index)
        return replies

    before = RequestState.swap_out
    try:
        RequestState.swap_out = lambda self: (swapped.append(1), before(self))[1]  # type: ignore[method-assign, func-returns-value]
        expected = anyio.run(run, roomy)
        assert not swapped
        assert anyio.run(run, narrow) == expected
        assert swapped
    finally:
        RequestState.swap_out = before  # type: ignore[method-assign]
        roomy.close()
        narrow.close()


def test_a_swapped_row_has_the_same_state_bit_by_bit(lfm2: Engine) -> None:
    async def run() -> None:
        (kv,) = (await lfm2.prefill(tokens(20))).segments
        request: RequestState = RequestState(RowCache([kv]), [1], Mailbox())
        assert kv.state is not None
        request.swap_out()
        assert request.cache.state is None
        request.swap_in()
        assert request.cache.state is not None
        assert all(map(torch.equal, kv.state.tensors(), request.cache.state.tensors()))

    anyio.run(run)


def test_what_a_row_holds_counts_its_state(lfm2: Engine) -> None:
    ids = tokens(20)
    done = anyio.run(partial(lfm2.prefill, ids))
    (kv,) = done.segments
    assert kv.state is not None
    assert done.cost.kv_bytes == kv.nbytes == 20 * position_bytes(lfm2.model) + kv.state.nbytes
    assert lfm2.model.info.state_bytes == kv.state.nbytes
    assert lfm2.kv_use().used >= kv.nbytes


def test_a_verdict_that_was_kept_serves_without_computing_anything(kind: str, tmp_path: Path) -> None:
    model = load_tiny(HYBRIDS[kind](), tmp_path)
    kept = Verdict.from_dict(json.loads(json.dumps(model.verdict.to_dict())))
    assert kept == model.verdict
    network = own(tmp_path)
    trusted = restore_verified(network, ModelInfo.from_hf(network.config, network.generation_config), kept)
    assert trusted.info == model.info
    again = Engine(LoadedModel(**{**vars(model), "network": network, "rotation": trusted.rotation}))
    fresh = Engine(model)
    rows = [tokens(150), tokens(30, 1)]
    try:
        assert anyio.run(together, again, rows) == anyio.run(together, fresh, rows)
    finally:
        again.close()
        fresh.close()


def test_a_state_goes_through_names_and_back() -> None:
    conv, recurrent = torch.rand(1, 2, 3), torch.rand(1, 4)
    state = RecurrentState.from_named({"1.conv.0": conv, "1.recurrent.1": recurrent}, (("1.conv.0", (1, 2, 3)),), 7)
    assert state is not None
    assert [name for name, _ in state.named()] == ["1.conv.0"]
    assert RecurrentState.from_named({"1.conv.0": conv}, (("1.conv.0", (1, 2, 4)),), 7) is None
    assert RecurrentState.from_named({}, (("1.conv.0", (1, 2, 3)),), 7) is None


def test_a_part_of_the_entries_has_no_state(lfm2: Engine) -> None:
    (kv,) = anyio.run(partial(lfm2.prefill, tokens(20))).segments
    front, back = kv.split(8)
    assert (front.state, back.state) == (None, kv.state)
    assert kv.select(slice(0, 20)).state is None
    assert kv.first(20).state is kv.state
    assert kv.first(19).state is None
    assert RowCache([back]).state is None
