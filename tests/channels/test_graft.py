"""Grafted KV against the text prefilled at the same positions, and what of a sender's row goes over."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from tiny import KINDS, config_of, load_tiny
from torch import Tensor

from cachegraph.channels.cache.graft import graft, why_no_graft
from cachegraph.channels.cache.sent_cache import SentCache
from cachegraph.channels.payload import KVSpan, Origin
from cachegraph.engine.engine import Engine
from cachegraph.engine.kv.cache import KV
from cachegraph.engine.model.load import LoadedModel
from cachegraph.engine.spec import GenerateSpec


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(0, 300, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


LEAD, DOCUMENT, QUESTION = tokens(5, 1), tokens(30, 2), tokens(6, 3)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    made: dict[str, Engine] = {}

    def engine(kind: str) -> Engine:
        if kind not in made:
            made[kind] = Engine(load_tiny(config_of(kind), tmp_path_factory.mktemp(kind)))
        return made[kind]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield engine
    torch.set_num_threads(threads)
    for each in made.values():
        each.close()


async def read(engine: Engine, ids: Sequence[int], *past: KV, at: int | None = None) -> tuple[tuple[KV, ...], Tensor]:
    positions = None if at is None else torch.arange(at, at + len(ids))
    done = await engine.prefill(ids, past, positions=positions, logits="all")
    assert done.logits is not None
    return done.segments, done.logits


def plane(
    model: LoadedModel, segments: tuple[KV, ...], *texts: tuple[str | None, list[int]], sender: str = "reader"
) -> SentCache:
    """A row made of these texts, (whose, tokens), one character a token."""
    ids = [token for _, part in texts for token in part]
    origins = [None if name is None else Origin(name, at, at + 1) for name, part in texts for at in range(len(part))]
    return SentCache(segments, ids, origins, model.identity, sender)


@pytest.mark.parametrize("start", [0, 3, 5, 70])
@pytest.mark.parametrize("kind", KINDS)
def test_grafted_text_in_front_equals_its_prefill_there(kind: str, start: int, engines: Any) -> None:
    """A document that comes first in the sender's row, too, moved to any place; the windows are shorter and longer."""
    engine = engines(kind)

    async def run() -> None:
        theirs, _ = await read(engine, DOCUMENT, at=5)
        taken = graft(plane(engine.model, theirs, ("document", DOCUMENT)), engine.model, start, (), "prompt")
        assert taken is not None
        assert taken.ids == DOCUMENT
        _, logits = await read(engine, QUESTION, taken.segments[0])
        both, expected = await read(engine, DOCUMENT + QUESTION, at=start)
        torch.testing.assert_close(logits, expected[len(DOCUMENT) :], rtol=1e-4, atol=1e-4)
        spec = GenerateSpec(max_new_tokens=8)
        grafted = await engine.generate(QUESTION, (taken.segments[0],), spec)
        prefilled = await engine.generate(DOCUMENT + QUESTION, (), spec, positions=torch.arange(start, start + 36))
        assert grafted.ids == prefilled.ids

    anyio.run(run)


def test_several_senders_stand_behind_each_other_and_keep_their_own(engines: Any) -> None:
    """Each keeps the keys of its own text, rotated to its own place, and nothing of it is computed again."""
    engine = engines("llama")
    model = engine.model

    async def run() -> None:
        rows = [tokens(count, seed=count) for count in (7, 1, 12)]
        planes = []
        for number, ids in enumerate(rows):
            segments, _ = await read(engine, LEAD + ids)
            planes.append(plane(model, segments, (None, LEAD), (f"text{number}", ids), sender=f"agent{number}"))
        position, taken = 4, list[KVSpan]()
        for each in planes:
            one = graft(each, model, position, (), "prompt")
            assert one is not None
            taken.append(one)
            position += len(one.ids)
        assert [one.ids for one in taken] == rows
        assert torch.cat([one.segments[0].positions for one in taken]).tolist() == list(range(4, 24))
        assert [one.names for one in taken] == [{"text0"}, {"text1"}, {"text2"}]
        for one, each in zip(taken, planes, strict=True):
            own = each.segments[0].select(slice(len(LEAD), None))
            back = model.rotation.move(one.segments[0], own.positions)
            for a, b in zip(back.layers, own.layers, strict=True):
                torch.testing.assert_close(a.keys, b.keys, rtol=1e-4, atol=1e-4)
                assert torch.equal(a.values, b.values)
        start, _ = await read(engine, tokens(4, 9))
        done = await engine.prefill(QUESTION, (*start, *(one.segments[0] for one in taken)))
        assert done.cost.prefilled == len(QUESTION)
        assert done.segments[-1].positions.tolist() == list(range(24, 30))

    anyio.run(run)


def test_only_what_the_receiver_has_not_read_goes_over(engines: Any) -> None:
    model = engines("llama").model

    async def run() -> None:
        segments, _ = await read(engines("llama"), list(range(9)))
        row = plane(
            model, segments, (None, [0, 1]), ("a", [2, 3]), (None, [4]), ("b", [5]), ("reader", [6, 7]), (None, [8])
        )
        found = {
            (carries, *seen): None if (got := row.private(seen, carries)) is None else got.ids
            for carries in ("prompt", "reply", "all")
            for seen in ((), ("a",), ("a", "b"))
        }
        assert found == {
            ("prompt",): [2, 3, 5],
            ("prompt", "a"): [5],
            ("prompt", "a", "b"): None,
            ("reply",): [6, 7],
            ("reply", "a"): [6, 7],
            ("reply", "a", "b"): [6, 7],
            ("all",): [2, 3, 5, 6, 7],
            ("all", "a"): [5, 6, 7],
            ("all", "a", "b"): [6, 7],
        }

    anyio.run(run)


def test_a_whole_row_at_its_place_is_shared_not_copied(engines: Any) -> None:
    """However many receivers take it; only a piece of a row that lies apart is copied together."""
    engine = engines("llama")

    async def run() -> None:
        segments, _ = await read(engine, DOCUMENT)
        row = plane(engine.model, segments, ("document", DOCUMENT))
        taken = [graft(row, engine.model, 0, (), "prompt") for _ in range(4)]
        memory = {one.segments[0].layers[0].keys.untyped_storage().data_ptr() for one in taken if one is not None}
        assert memory == {segments[0].layers[0].keys.untyped_storage().data_ptr()}

    anyio.run(run)


def test_a_row_of_several_segments_is_taken_whole(engines: Any) -> None:
    engine = engines("gemma3_short_window")

    async def run() -> None:
        first, _ = await read(engine, DOCUMENT[:11])
        segments, _ = await read(engine, DOCUMENT[11:], *first)
        assert len(segments) == 2
        row = plane(engine.model, segments, ("document", DOCUMENT))
        taken = graft(row, engine.model, 0, (), "prompt")
        assert taken is not None
        _, logits = await read(engine, QUESTION, taken.segments[0])
        _, expected = await read(engine, DOCUMENT + QUESTION)
        torch.testing.assert_close(logits, expected[30:], rtol=1e-4, atol=1e-4)

    anyio.run(run)


def test_different_models_and_number_types_are_refused(tmp_path: Path) -> None:
    one = load_tiny(config_of("llama"), tmp_path / "one")
    other = load_tiny(config_of("qwen2"), tmp_path / "other")
    half = load_tiny(config_of("llama"), tmp_path / "one", dtype=torch.bfloat16)
    assert why_no_graft(one, one) is None
    assert why_no_graft(one, other) == "'one' and 'other' are different models, and there is no fuser for the pair"
    assert why_no_graft(half, one) == "'one' runs in torch.bfloat16 here and in torch.float32 there"
