"""Prompts that were read before are found by their tokens, and change nothing but what is computed."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import anyio
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import Tiny

from cachegraph.engine.batching.kv_budget import KVBudget, position_bytes
from cachegraph.engine.batching.prefix_cache import PrefixCache, block_digests
from cachegraph.engine.batching.request_context import RequestContext, request_context
from cachegraph.engine.batching.scheduler import CHUNK
from cachegraph.engine.engine import Engine
from cachegraph.engine.kv.cache import KV, LayerKV, concat
from cachegraph.engine.request import Generated, Prefilled
from cachegraph.engine.spec import GenerateSpec
from cachegraph.errors import ModelError

WRITE = GenerateSpec(max_new_tokens=4)


def tokens(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 300, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture
def engine(tiny: Tiny) -> Iterator[Engine]:
    engine = Engine(tiny("llama"), 10**8)
    yield engine
    engine.close()


def same(a: Sequence[KV], b: Sequence[KV]) -> bool:
    """To the bit, whatever segments they come in."""
    ends = [[each for layer in part.layers for each in layer] for part in map(concat, (a, b))]
    return all(torch.equal(x, y) for x, y in zip(*ends, strict=True))


PROMPTS = st.lists(
    st.tuples(
        st.lists(st.sampled_from([0, 1, 2]), max_size=3),  # which blocks it begins with
        st.integers(1, CHUNK + 20),  # what follows
        st.integers(0, 1),
        st.sampled_from(["generate", "last", "none"]),
    ),
    min_size=2,
    max_size=5,
)


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PROMPTS)
def test_results_are_to_the_bit_those_without_it(engine: Engine, prompts: Any) -> None:
    async def ask(reuse: bool) -> list[Any]:
        await engine.forget()
        results: list[Generated | Prefilled] = []
        with request_context(RequestContext(reuse=reuse)):
            for blocks, rest, seed, how in prompts:
                ids = [token for block in blocks for token in tokens(CHUNK, seed=100 + block)] + tokens(rest, seed)
                if how == "generate":
                    results.append(await engine.generate(ids, spec=WRITE))
                else:
                    results.append(await engine.prefill(ids, logits=how))
        return results

    plain, found = anyio.run(ask, False), anyio.run(ask, True)
    for a, b in zip(plain, found, strict=True):
        assert a.cost.reused == 0
        assert b.cost.reused + b.cost.prefilled == a.cost.prefilled
        assert same(a.segments, b.segments)
        if hasattr(a, "ids"):
            assert a.ids == b.ids
        else:
            assert same([a.kv], [b.kv])
            assert a.logits is b.logits is None or torch.equal(a.logits, b.logits)


@pytest.mark.anyio
async def test_whole_blocks_are_found_and_at_least_one_token_is_read(engine: Engine) -> None:
    ids = tokens(2 * CHUNK)
    costs = [(await engine.prefill(ids[:count])).cost for count in (2 * CHUNK, 2 * CHUNK, CHUNK + 1, CHUNK, 5)]
    assert [(cost.reused, cost.prefilled) for cost in costs] == [
        (0, 2 * CHUNK),
        (CHUNK, CHUNK),
        (CHUNK, 1),
        (0, CHUNK),
        (0, 5),
    ]


@pytest.mark.anyio
async def test_another_beginning_another_tenant_and_whoever_wants_none_find_nothing(engine: Engine) -> None:
    ids = tokens(CHUNK + 3)
    await engine.prefill(ids)
    assert (await engine.prefill([1, *ids[1:]])).cost.reused == 0
    for who, found in (
        (RequestContext(tenant="t"), 0),
        (RequestContext(tenant="t"), CHUNK),
        (RequestContext(reuse=False), 0),
    ):
        with request_context(who):
            assert (await engine.prefill(ids)).cost.reused == found


@pytest.mark.anyio
async def test_nothing_but_plain_prompts_is_kept_or_found(engine: Engine) -> None:
    """Not behind another cache, not at other positions, not where K and V were given, and no reply."""
    ids = tokens(CHUNK + 3)
    past = await engine.prefill(tokens(5, seed=1))
    plain = await engine.prefill(tokens(3, seed=2))
    assert plain.kv is not None
    with request_context(RequestContext(reuse=False)):
        own = await engine.prefill(ids)
    assert own.kv is not None
    loop = engine._loop
    assert loop is not None

    async def altered() -> list[int]:
        replies = [
            await engine.prefill(ids, past.segments),
            await engine.prefill(ids, positions=torch.arange(len(ids)) + 1),
            await engine.prefill(ids, override=own.kv.layers if own.kv else None),
        ]
        return [each.cost.reused for each in replies]

    assert await altered() == [0, 0, 0]
    await engine.generate(tokens(CHUNK - 4), spec=GenerateSpec(max_new_tokens=12, ignore_eos=True))
    assert len(loop.prefixes) == 0
    await engine.prefill(ids)
    assert len(loop.prefixes) == 1
    assert await altered() == [0, 0, 0]


@pytest.mark.anyio
async def test_many_that_come_together_read_what_they_share_little_more_than_once(engine: Engine) -> None:
    shared = tokens(3 * CHUNK)
    costs: list[Any] = []

    async def ask(number: int) -> None:
        costs.append((await engine.generate([*shared, number], spec=WRITE)).cost)

    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(ask, number)
    assert sum(cost.reused for cost in costs) >= 6 * len(shared)


@pytest.mark.anyio
async def test_it_is_given_up_first_where_rows_need_the_memory(tiny: Tiny) -> None:
    model = tiny("llama")
    engine = Engine(model, 8 * CHUNK * position_bytes(model))
    await engine.prefill(tokens(2 * CHUNK))
    assert engine.kv_use().prefixes == 2 * CHUNK * position_bytes(model)
    whole = await engine.prefill(tokens(8 * CHUNK, seed=1))
    assert engine.kv_use().used == whole.cost.kv_bytes == engine.kv_memory
    assert engine.kv_use().prefixes == 0
    engine.close()


@pytest.mark.anyio
async def test_rows_of_some_first_layers_are_found_by_such_rows_alone(engine: Engine) -> None:
    ids = tokens(2 * CHUNK + 3)
    first, again = [await engine.prefill(ids, layers=1) for _ in range(2)]
    assert (first.cost.reused, again.cost.reused) == (0, 2 * CHUNK)
    assert same(first.segments, again.segments)
    whole = await engine.prefill(ids)
    assert whole.cost.reused == 0
    assert (await engine.prefill(ids[:-1], layers=engine.model.info.layers)).cost.reused == 2 * CHUNK
    assert (await engine.prefill(ids, layers=1)).cost.reused == 2 * CHUNK
    assert same([KV(part.layers[:1], part.positions) for part in whole.segments], first.segments)


@pytest.mark.anyio
async def test_no_layers_more_than_there_are_and_logits_of_some_are_refused(engine: Engine) -> None:
    for wrong in ({"layers": 0}, {"layers": 99}, {"layers": 1, "logits": "last"}):
        with pytest.raises(
            ModelError, match=r"'llama\d+' has . layers, and logits behind the last alone; ask for 1 to"
        ):
            await engine.prefill(tokens(3), **wrong)


@pytest.mark.anyio
async def test_another_engine_finds_nothing_of_this_one(engine: Engine, tiny: Tiny) -> None:
    ids = tokens(CHUNK + 3)
    await engine.prefill(ids)
    other = Engine(replace(tiny("llama"), name="other"), 10**8)
    assert (await other.prefill(ids)).cost.reused == 0
    other.close()


def block(count: int = CHUNK) -> KV:
    return KV((LayerKV(torch.zeros(1, 1, count, 1), torch.zeros(1, 1, count, 1)),), torch.arange(count))


def test_the_block_that_was_not_used_for_longest_goes_first_and_none_before_those_that_need_it() -> None:
    size = block().nbytes
    prefixes = PrefixCache(KVBudget(4 * 3 * size))  # three blocks are a quarter of it
    one, other, third = (block_digests(tokens(2 * CHUNK, seed), None) for seed in range(3))
    prefixes.keep(one, 1, block())
    assert len(prefixes) == 0  # without what comes before, nobody could find it
    prefixes.keep(one, 0, block())
    prefixes.keep(one, 1, block(2 * CHUNK))
    prefixes.keep(other, 0, block())
    assert len(prefixes.find(one)) == 2
    prefixes.keep(third, 0, block())
    assert [len(prefixes.find(each)) for each in (one, other, third)] == [2, 0, 1]
    prefixes.keep(other, 0, block())
    assert [len(prefixes.find(each)) for each in (one, other, third)] == [1, 1, 1]
    assert prefixes.nbytes == 3 * size


def test_a_chain_that_lost_blocks_while_it_was_read_is_kept_no_further() -> None:
    prefixes = PrefixCache(KVBudget(10**9))
    digests = block_digests(tokens(4 * CHUNK), None)
    for index in range(3):
        prefixes.keep(digests, index, block((index + 1) * CHUNK))
    prefixes.evict()
    prefixes.evict()
    assert len(prefixes.find(digests)) == 1  # its end went first
    prefixes.keep(digests, 3, block(4 * CHUNK))
    assert len(prefixes) == 1
    prefixes.keep(digests, 1, block(2 * CHUNK))
    assert len(prefixes.find(digests)) == 2


@pytest.mark.parametrize("seed", range(40))
def test_no_block_outlives_the_one_before_it_whatever_is_kept_found_and_dropped(seed: int) -> None:
    dice = random.Random(seed)
    size = block().nbytes
    memory = KVBudget(dice.choice([12, 20, 40, 10**4]) * size)
    prefixes = PrefixCache(memory)
    roots = [tokens(CHUNK * dice.randint(0, 3), n) for n in range(3)]
    chains = [block_digests([*roots[n % 3], *tokens(CHUNK * dice.randint(1, 4), 10 + n)], None) for n in range(8)]
    for _ in range(300):
        digests = dice.choice(chains)
        match dice.randrange(4):
            case 0 | 1:
                index = dice.randrange(len(digests))
                prefixes.keep(digests, index, block((index + 1) * CHUNK))
            case 2:
                prefixes.find(digests)
            case 3:
                prefixes.evict()
        for digests in chains:
            here = [digest in prefixes._blocks for digest in digests]
            assert here == sorted(here, reverse=True)
        assert prefixes.nbytes == len(prefixes) * size <= memory.limit // 4
        assert memory.held == prefixes.nbytes


def test_a_digest_stands_for_all_tokens_before_it_and_their_tenant() -> None:
    ids = tokens(2 * CHUNK + 5)
    digests = block_digests(ids, None)
    assert len(digests) == 2
    assert block_digests(ids[: 2 * CHUNK], None) == digests
    assert block_digests([ids[0] + 1, *ids[1:]], None)[1] != digests[1]
    assert block_digests(ids, "t")[0] != block_digests(ids, "None")[0] != digests[0]
