"""Reading a prompt together: what several sharers make of one row, and of many rows at once."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import anyio
import pytest
import torch
from golden_runner import fuser, model

from cachegraph.channels.cache.edge_plan import FusePlan
from cachegraph.channels.cache.fused_decode import FusedRow, ReplySharers, fused_generate
from cachegraph.channels.cache.fused_prefill import FusedPrefill, Sharer, fused_prefill
from cachegraph.channels.cache.shared_prompt import Pairs, SharedPrompt, SharerPrompt, Stretch, share_by_ids
from cachegraph.channels.fusers.files.card import Geometry
from cachegraph.channels.fusers.networks.base import Fuser
from cachegraph.channels.fusers.networks.create import new_fuser
from cachegraph.channels.peer import SharerEngine
from cachegraph.engine.engine import Engine
from cachegraph.engine.kv.cache import KV, concat
from cachegraph.engine.spec import GenerateSpec
from cachegraph.errors import ChannelError, ModelError


def tokens(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 512, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module")
def engines() -> Iterator[dict[str, Engine]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    names = ("receiver", "sharer_a", "sharer_b", "sharer_gemma3")
    made = {name: Engine(model(name, "float32")) for name in names}
    yield made
    for engine in made.values():
        engine.close()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def sharers(engines: dict[str, Engine]) -> list[Sharer]:
    pairs = (("sharer_a", "a"), ("sharer_b", "b"), ("sharer_gemma3", "gemma3"))
    return [Sharer(engines[name], fuser(checkpoint, "float32")) for name, checkpoint in pairs]


def closed() -> Fuser:
    geometries = Geometry(4, 2, 16), Geometry(3, 1, 32)
    return new_fuser("c2c", *geometries, gate_logit=-1.0, hidden_dim=16, intermediate_dim=16)


def same_bits(a: tuple[KV, ...], b: tuple[KV, ...]) -> bool:
    one, other = concat(a), concat(b)
    pairs = zip([x for layer in one.layers for x in layer], [x for layer in other.layers for x in layer], strict=True)
    return torch.equal(one.positions, other.positions) and all(torch.equal(x, y) for x, y in pairs)


def difference(a: tuple[KV, ...], b: tuple[KV, ...]) -> float:
    one, other = concat(a), concat(b)
    pairs = zip([x for layer in one.layers for x in layer], [x for layer in other.layers for x in layer], strict=True)
    return max(float((x - y).abs().max()) for x, y in pairs)


def test_the_order_of_parallel_sharers_changes_no_bit(engines: dict[str, Engine], sharers: list[Sharer]) -> None:
    async def run() -> None:
        ids = tokens(20)
        rows = [
            await fused_prefill(engines["receiver"], list(order), share_by_ids(ids, 3), "parallel")
            for order in itertools.permutations(sharers)
        ]
        assert all(same_bits(row.segments, rows[0].segments) for row in rows[1:])
        in_turn = [
            await fused_prefill(engines["receiver"], list(order), share_by_ids(ids, 3), "sequential")
            for order in (sharers, sharers[::-1])
        ]
        assert difference(in_turn[0].segments, in_turn[1].segments) > 1e-3

    anyio.run(run)


class Meeting(Engine):
    """An engine on a device of its own, as far as one can see: no first request is served before all engines have one.

    Were anything read one after the other, they would wait for each other for ever.
    """

    def __init__(self, engine: Engine | SharerEngine, arrived: list[Engine], expected: int):
        super().__init__(engine.model)
        self._of, self._arrived, self._expected = engine, arrived, expected
        self._all_there = anyio.Event()

    async def prefill(self, *args: Any, **kwargs: Any) -> Any:
        if self not in self._arrived:
            self._arrived.append(self)
            if len(self._arrived) == self._expected:
                for each in self._arrived:
                    assert isinstance(each, Meeting)
                    each._all_there.set()
            await self._all_there.wait()
        return await self._of.prefill(*args, **kwargs)

    async def call(self, function: Any) -> Any:
        return await self._of.call(function)


def met(sharers: list[Sharer], receiver: Engine) -> tuple[list[Sharer], Engine]:
    arrived: list[Engine] = []
    others = [replace(each, engine=Meeting(each.engine, arrived, len(sharers) + 1)) for each in sharers]
    return others, Meeting(receiver, arrived, len(sharers) + 1)


def test_receiver_and_sharers_read_at_the_same_time(engines: dict[str, Engine], sharers: list[Sharer]) -> None:
    """And come to what they come to on one device."""

    async def run() -> None:
        ids = tokens(20)
        reading = share_by_ids(ids, 3)
        in_turn = await fused_prefill(engines["receiver"], sharers, reading)
        others, receiver = met(sharers, engines["receiver"])
        with anyio.fail_after(60):
            at_once = await fused_prefill(receiver, others, reading)
        assert same_bits(at_once.segments, in_turn.segments)
        assert same_bits(at_once.uncorrected, in_turn.uncorrected)
        assert at_once.nbytes == in_turn.nbytes
        assert all(same_bits(*each) for each in zip(at_once.sharers, in_turn.sharers, strict=True))

    anyio.run(run)


def test_receiver_and_sharers_read_a_reply_along_at_the_same_time(
    engines: dict[str, Engine], sharers: list[Sharer]
) -> None:
    async def run() -> None:
        ids = tokens(12)
        row = await fused_prefill(engines["receiver"], sharers, share_by_ids(ids, 3))
        found = []
        for others, receiver in ((sharers, engines["receiver"]), met(sharers, engines["receiver"])):
            plans = [FusePlan(each.engine, each.fuser, "ids", "receiver-prompt", True) for each in others]
            fused = FusedRow(receiver, ReplySharers(plans, row.sharers, row.uncorrected), row.segments)
            with anyio.fail_after(60):
                found.append((await fused.read(ids[-1:]), fused.segments))
        (logits, segments), (again, segments_again) = found
        assert torch.equal(logits, again)
        assert same_bits(segments, segments_again)

    anyio.run(run)


def test_a_sharer_that_fails_ends_the_others_with_its_own_error(
    engines: dict[str, Engine], sharers: list[Sharer]
) -> None:
    """No group of errors around it, and nobody left waiting."""

    class Broken(Engine):
        async def prefill(self, *_: Any, **__: Any) -> Any:
            raise ModelError("broken")

    async def run() -> None:
        others, receiver = met(sharers[:1], engines["receiver"])
        broken = replace(others[0], engine=Broken(sharers[0].engine.model))
        with anyio.fail_after(60), pytest.raises(ModelError, match="broken"):
            await fused_prefill(receiver, [broken], share_by_ids(tokens(9), 1))

    anyio.run(run)


def test_rows_of_one_batch_may_fuse_different_sharers(engines: dict[str, Engine], sharers: list[Sharer]) -> None:
    """Each as it would be alone: no sharer, one, another, two; of different lengths."""
    wanted: list[tuple[list[Sharer], list[int]]] = [
        ([], tokens(9, 1)),
        (sharers[:1], tokens(31, 2)),
        (sharers[1:2], tokens(2, 3)),
        (sharers[:2], tokens(12, 4)),
        (sharers[2:], tokens(25, 5)),
    ]
    receiver, spec = engines["receiver"], GenerateSpec(max_new_tokens=6)

    async def one(together: list[Sharer], ids: list[int]) -> tuple[FusedPrefill, Any]:
        row = await fused_prefill(receiver, together, share_by_ids(ids, len(together)))
        return row, await receiver.generate(
            ids[len(ids) - 1 if together else 0 :], row.segments if together else (), spec
        )

    async def run() -> None:
        alone = [await one(*each) for each in wanted]
        found: list[Any] = [None] * len(wanted)

        async def put(index: int) -> None:
            found[index] = await one(*wanted[index])

        async with anyio.create_task_group() as group:
            for index in range(len(wanted)):
                group.start_soon(put, index)
        for (row, reply), (row_alone, reply_alone) in zip(found, alone, strict=True):
            assert reply.ids == reply_alone.ids
            assert difference(reply.segments, reply_alone.segments) < 1e-4
            assert row.nbytes == row_alone.nbytes

    anyio.run(run)


def test_sharers_with_closed_gates_do_no_work(engines: dict[str, Engine]) -> None:
    async def run() -> None:
        ids = tokens(12)
        sharer = Sharer(engines["sharer_a"], closed())
        row = await fused_prefill(engines["receiver"], [sharer], share_by_ids(ids, 1))
        alone = await engines["receiver"].prefill(ids[:-1])
        assert same_bits(row.segments, alone.segments)
        assert (row.sharer_cost.prefilled, row.nbytes, row.sharers) == (0, (0,), ((),))

    anyio.run(run)


def shallow(layer_map: Any) -> Fuser:
    return new_fuser(
        "c2c",
        Geometry(4, 2, 16),
        Geometry(3, 1, 32),
        layer_map=layer_map,
        gate_logit=1.0,
        hidden_dim=16,
        intermediate_dim=16,
    )


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_sharer_computes_no_further_than_an_open_gate_reads(depth: int, engines: dict[str, Engine]) -> None:
    """It comes to what a sharer gives that has read all, and a reply that it reads along does, too."""
    made = shallow([(layer, min(layer, depth - 1)) for layer in range(4)])
    receiver, engine, ids = engines["receiver"], engines["sharer_a"], tokens(30)

    async def run() -> None:
        whole = (await engine.prefill(ids[:-1])).segments
        rows = []
        for kv in (None, whole):
            sharer = Sharer(engine, made, kv)
            row = await fused_prefill(receiver, [sharer], share_by_ids(ids, 1))
            along = ReplySharers(plans([sharer]), [whole] if kv else row.sharers, row.uncorrected)
            rows.append(
                (row, await fused_generate(receiver, along, ids[-1:], row.segments, GenerateSpec(max_new_tokens=4)))
            )
        (ours, our_reply), (theirs, their_reply) = rows
        assert {len(segment.layers) for segment in ours.sharers[0]} == {depth}
        assert same_bits(ours.segments, theirs.segments)
        assert our_reply.ids == their_reply.ids
        assert same_bits(our_reply.segments, their_reply.segments)
        assert ours.nbytes == theirs.nbytes

    anyio.run(run)


def test_a_closed_gate_of_the_deepest_layer_lets_the_sharer_stop_before_it(engines: dict[str, Engine]) -> None:
    made = shallow([(0, 0), (1, 1), (2, 2)])
    assert made.sharer_depth == 3
    with torch.no_grad():
        for name, parameter in made.projectors[2].named_parameters():
            if name.endswith("gate_logit"):
                parameter.fill_(-1.0)
    row = anyio.run(
        fused_prefill, engines["receiver"], [Sharer(engines["sharer_a"], made)], share_by_ids(tokens(12), 1)
    )
    assert {len(segment.layers) for segment in row.sharers[0]} == {2}


def test_a_cache_of_too_few_layers_is_refused(engines: dict[str, Engine]) -> None:
    sharer = engines["sharer_a"]

    async def run() -> None:
        few = (await sharer.prefill(tokens(11), layers=1)).segments
        with pytest.raises(ChannelError, match="joins 3 sharer layers to 4 .* but got caches of 1 and 4"):
            await fused_prefill(
                engines["receiver"], [Sharer(sharer, shallow([(0, 1)]), few)], share_by_ids(tokens(12), 1)
            )

    anyio.run(run)


def test_a_sharers_cache_is_whole_past_its_sliding_window(engines: dict[str, Engine], sharers: list[Sharer]) -> None:
    """Its first positions, which its sliding layers no longer see at the end, are those of a short prompt."""

    async def run() -> None:
        ids = tokens(70)
        long = await fused_prefill(engines["receiver"], sharers[2:], share_by_ids(ids, 1))
        short = await fused_prefill(engines["receiver"], sharers[2:], share_by_ids(ids[:13], 1))
        assert [len(row) for row in long.sharers[0]] == [69]
        for rows in ((long.sharers[0], short.sharers[0]), (long.segments, short.segments)):
            assert difference((concat(rows[0]).select(slice(0, 12)),), rows[1]) < 1e-4

    anyio.run(run)


def test_only_the_layers_that_a_gate_lets_through_are_counted(
    engines: dict[str, Engine], sharers: list[Sharer]
) -> None:
    """Fuser `a` reads sharer layers 0 (twice) and 2: 11 positions of 2 * 32 numbers of 4 bytes each."""

    async def run() -> None:
        row = await fused_prefill(engines["receiver"], sharers[:1], share_by_ids(tokens(12), 1))
        assert row.nbytes == (2 * 11 * 2 * 32 * 4,)

    anyio.run(run)


def test_sharers_correct_disjoint_stretches(engines: dict[str, Engine], sharers: list[Sharer]) -> None:
    """A stretch that one sharer corrects, one that nobody does, one that the other does."""
    ids = tokens(14)

    def pairs(start: int, end: int) -> Pairs:
        return Pairs(torch.arange(end - start), torch.arange(start, end))

    reading = SharedPrompt(
        ids,
        None,
        [SharerPrompt(ids), SharerPrompt(ids)],
        [Stretch(0, 4, {0: pairs(0, 4)}), Stretch(4, 9, {}), Stretch(9, 13, {1: pairs(9, 13)})],
    )

    async def run() -> None:
        receiver = engines["receiver"]
        fused = await fused_prefill(receiver, sharers[:2], reading)
        plain = await receiver.prefill(ids[:13])
        assert reading.fused == 8
        assert concat(fused.segments).positions.tolist() == list(range(13))
        first = share_by_ids(ids[:5], 1)
        alone = await fused_prefill(receiver, sharers[:1], first)
        rest = await receiver.prefill(ids[4:9], alone.segments)
        assert difference((concat(fused.segments).select(slice(0, 9)),), rest.segments) < 1e-4
        assert difference(fused.segments, plain.segments) > 0.1
        assert difference(fused.uncorrected[:2], fused.segments[:2]) == 0
        assert difference(fused.uncorrected[2:], fused.segments[2:]) > 0.1

    anyio.run(run)


def plans(together: list[Sharer]) -> list[FusePlan]:
    return [FusePlan(each.engine, each.fuser, "ids", "receiver-prompt", True) for each in together]


def test_a_reply_corrected_by_several_sharers_does_not_depend_on_their_order(
    engines: dict[str, Engine], sharers: list[Sharer]
) -> None:
    async def run() -> None:
        receiver, ids = engines["receiver"], tokens(9)
        replies = []
        for order in (sharers, sharers[::-1]):
            row = await fused_prefill(receiver, order, share_by_ids(ids, 3))
            along = ReplySharers(plans(order), row.sharers, row.uncorrected)
            replies.append(
                await fused_generate(receiver, along, ids[-1:], row.segments, GenerateSpec(max_new_tokens=6))
            )
        assert replies[0].ids == replies[1].ids
        assert same_bits(replies[0].segments, replies[1].segments)
        assert replies[0].cost.generated == 6
        assert replies[0].cost.first_token is not None
        assert replies[0].cost.decode > 0

    anyio.run(run)


def test_rows_that_fork_go_on_as_if_alone(engines: dict[str, Engine], sharers: list[Sharer]) -> None:
    async def run() -> None:
        receiver, ids = engines["receiver"], tokens(9)
        row = await fused_prefill(receiver, sharers[:1], share_by_ids(ids, 1))
        along = ReplySharers(plans(sharers[:1]), row.sharers, row.uncorrected)
        shared = FusedRow(receiver, along, row.segments)
        await shared.read(ids[-1:])
        one, other = shared.fork(), shared.fork()
        first = await one.read([5])
        await other.read([6])
        again = await other.fork().read([7])
        second = await one.read([8])
        fresh = FusedRow(receiver, along, row.segments)
        await fresh.read(ids[-1:])
        assert torch.equal(await fresh.read([5]), first)
        assert torch.equal(await fresh.read([8]), second)
        assert not torch.allclose(again, second)

    anyio.run(run)


def test_sampled_replies_repeat_and_penalties_see_the_whole_prompt(
    engines: dict[str, Engine], sharers: list[Sharer]
) -> None:
    async def run() -> None:
        receiver, ids = engines["receiver"], tokens(9)
        row = await fused_prefill(receiver, sharers[:1], share_by_ids(ids, 1))
        along = ReplySharers(plans(sharers[:1]), row.sharers, row.uncorrected)

        async def reply(seen: tuple[int, ...] = (), **values: Any) -> list[int]:
            spec = GenerateSpec(max_new_tokens=5, **values)
            return list((await fused_generate(receiver, along, ids[-1:], row.segments, spec, seen=seen)).ids)

        assert await reply(temperature=1.0, seed=3) == await reply(temperature=1.0, seed=3)
        free = await reply()
        assert (await reply(repetition_penalty=100.0))[0] == free[0]
        assert (await reply((free[0],), repetition_penalty=100.0))[0] != free[0]

    anyio.run(run)
