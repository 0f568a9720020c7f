"""Agents that take grafts and corrections at once, held to a long way round: run by run, projectors called by hand."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from agent_rows import check_row, fuser, info, plane, row, same_bits
from lean_fusers import assert_close, by_hand, geometry, lean

from cachegraph.agents.base import Control
from cachegraph.channels.cache.sent_cache import SentCache
from cachegraph.channels.fusers.files.card import ModelEnd
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.networks.base import Fuser
from cachegraph.channels.fusers.networks.translator import Translator, new_translator
from cachegraph.engine.kv.cache import KV, LayerKV, concat
from cachegraph.errors import ChannelError

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


DOCUMENT = "the sea is green and the sky is blue, and what is the answer of the question"
QUESTION = "what is the sky?"
READS = {"max_new_tokens": 0}
ANSWERER = {
    "model": "small",
    "system": "Be brief.",
    "prompt": "Hear: {{ reader }}\n{{ question }} Say:",
    "generate": {"max_new_tokens": 1},
}
READER = {"model": "other", "prompt": "Think: {{ document }} {{ question }}", "generate": READS}
BOTH = {"reader": READER, "answerer": ANSWERER}


def model(players: Any, agent: str) -> Any:
    return players.agents[agent].peer().engine.model


def translator(players: Any) -> Translator:
    ends = [ModelEnd(name=name, geometry=geometry(model(players, name))) for name in ("answerer", "reader")]
    made = new_translator(*ends, rank=6, hidden=4, seed=1)
    with torch.no_grad():
        made.network.gate.fill_(0.7)
    return made


def text_at(origin: Any, name: str) -> tuple[int, int] | None:
    return origin[1:] if origin is not None and origin[0] == name else None


def pairs_of(mine: Sequence[Any], theirs: Sequence[Any], name: str) -> dict[int, int]:
    """By entry, the other's last entry that holds its last character of this text."""
    found = {}
    for here, origin in enumerate(mine):
        if (span := text_at(origin, name)) is not None:
            last = span[1] - 1
            covers = [i for i, other in enumerate(theirs) if (at := text_at(other, name)) and at[0] <= last < at[1]]
            found[here] = covers[-1]
    return found


async def slowly(players: Any, taken: SentCache, graft: KV, fuse: Fuser, sharer: str, sent: SentCache, end: int) -> KV:
    """The receiver's prompt up to `end`: what it reads itself, what is grafted, and what both have read, in turn."""
    engine, mine, theirs = players.agents["answerer"].peer().engine, model(players, "answerer"), model(players, sharer)
    pairs = pairs_of(taken.origins, sent.origins, "question")

    def kind(at: int) -> str:
        return "graft" if is_private(taken.origins[at]) else "fuse" if at in pairs else "own"

    segments: tuple[KV, ...] = ()
    for what, group in groupby(range(end), key=kind):
        places = list(group)
        if what == "graft":
            assert len(places) == len(graft)
            segments = (*segments, mine.rotation.move(graft, torch.tensor(places)))
            continue
        done = await engine.prefill([taken.ids[at] for at in places], segments)
        kv = done.kv
        if what == "fuse":
            there = torch.tensor([pairs[at] for at in places])
            kv = by_hand(fuse, kv, concat(sent.segments), (mine, theirs), (torch.arange(len(places)), there))
        segments = (*segments, kv)
    return concat(segments)


def is_private(origin: Any) -> bool:
    """Of the document, or the reader's own words, which are what an agent that only reads says."""
    return bool(text_at(origin, "document") or text_at(origin, "reader"))


def private(sent: SentCache) -> KV:
    return concat(sent.segments).select(
        torch.tensor([at for at, origin in enumerate(sent.origins) if is_private(origin)])
    )


async def test_one_edge_grafts_what_is_private_and_fuses_what_is_shared(cast: Any, tmp_path: Path) -> None:
    async with cast(BOTH, question=QUESTION, document=DOCUMENT) as players:
        fuse = lean(model(players, "answerer"), model(players, "reader"), alignment="offsets", reads="own-prompt")
        graft = translator(players)
        save_fuser(fuse, tmp_path / "fuse")
        save_fuser(graft, tmp_path / "graft")
    named = {"fuse": "fuse", "graft": "graft"}
    edges = [{"from": "reader", "to": "answerer", "channel": "cache", "fuser": named, "fallback": "error"}]
    async with cast(BOTH, edges, question=QUESTION, document=DOCUMENT) as players:
        replies = await players.play(keep=["answerer"])
        reply, sent = replies["answerer"], plane(replies["reader"])
        still = model(players, "reader").rotation.unrotated(private(sent))
        brought = KV(graft.translate(still.layers), still.positions)
        end = len(plane(reply).ids) - 1  # the reply's one token is not corrected
        expected = await slowly(players, plane(reply), brought, fuse, "reader", sent, end)
    check_row(reply)
    assert_close(row(reply).select(slice(0, end)), expected)
    report = reply.edges["reader"]
    assert (report.channel_used, report.positions_grafted) == ("cache", len(brought))
    assert report.positions_fused == len(pairs_of(plane(reply).origins, sent.origins, "question")) > 2
    assert reply.tokens.reused == len(brought)


async def test_a_folder_may_hold_both_networks(cast: Any, tmp_path: Path) -> None:
    async with cast(BOTH, question=QUESTION, document=DOCUMENT) as players:
        fuse = lean(model(players, "answerer"), model(players, "reader"), alignment="offsets", reads="own-prompt")
        save_fuser(fuse, tmp_path / "made" / "fuse")
        save_fuser(translator(players), tmp_path / "made" / "graft")
    edge = {"from": "reader", "to": "answerer", "channel": "cache", "fallback": "error"}
    for named in ("made", {"fuse": "./made/fuse", "graft": "./made/graft"}):
        async with cast(BOTH, [{**edge, "fuser": named}], question=QUESTION, document=DOCUMENT) as players:
            report = (await players.play())["answerer"].edges["reader"]
        assert report.positions_fused > 2
        assert report.positions_grafted > 5


async def test_two_edges_graft_and_fuse_into_one_agent(cast: Any, tmp_path: Path) -> None:
    """The reader runs the receiver's own model, whose cache needs no translation."""
    agents = {
        "reader": {"model": "small", "prompt": "{{ document }}", "generate": READS},
        "one": {"model": "other", "prompt": "Think: {{ question }}", "generate": READS},
        "answerer": {**ANSWERER, "prompt": "Hear: {{ reader }}\n{{ one }}{{ question }} Say:"},
    }
    async with cast(agents, question=QUESTION, document=DOCUMENT) as players:
        fuse = lean(model(players, "answerer"), model(players, "one"), alignment="offsets", reads="own-prompt")
        save_fuser(fuse, tmp_path / "fuse")
    edges = [
        {"from": "reader", "to": "answerer", "channel": "cache", "fallback": "error"},
        {"from": "one", "to": "answerer", "channel": "cache", "fuser": "fuse", "fallback": "error"},
    ]
    async with cast(agents, edges, question=QUESTION, document=DOCUMENT) as players:
        replies = await players.play(keep=["answerer"])
        reply, sent = replies["answerer"], plane(replies["one"])
        end = len(plane(reply).ids) - 1
        brought = private(plane(replies["reader"]))
        expected = await slowly(players, plane(reply), brought, fuse, "one", sent, end)
    check_row(reply)
    assert_close(row(reply).select(slice(0, end)), expected)
    assert reply.edges["reader"].positions_grafted == len(brought)
    assert reply.edges["one"].positions_fused > 2


MEETING: dict[str, Any] = {
    "reader": {"model": "small", "prompt": "{{ document }}", "generate": READS},
    "one": {"model": "other", "prompt": "Think: {{ question }}", "generate": READS},
    "answerer": {**ANSWERER, "generate": {"max_new_tokens": 6}},
}


@pytest.mark.parametrize("include_response", [False, True])
@pytest.mark.parametrize("align", ["first", "longest", "offsets"])
async def test_a_sharer_that_reads_the_receivers_prompt_reads_it_without_the_grafts(
    cast: Any, tmp_path: Path, align: str, include_response: bool
) -> None:
    """Where templates are filled up with gaps, the gaps stay where they were; behind the slot all moves up."""
    async with cast(MEETING, question=QUESTION, document=DOCUMENT) as players:
        ends = {"receiver": info(players, "answerer"), "sharer": info(players, "one"), "alignment": align}
        name, shut = fuser(tmp_path, **ends), fuser(tmp_path, **ends, gate=-1.0)
    graft = {"from": "reader", "to": "answerer", "channel": "cache", "fallback": "error"}

    async def play(*edges: dict[str, Any]) -> Any:
        agents = {**MEETING}
        if graft not in edges:
            agents["answerer"] = {**MEETING["answerer"], "prompt": "Hear: \n{{ question }} Say:"}
        async with cast(agents, edges, question=QUESTION, document=DOCUMENT) as players:
            return (await players.play(keep=["answerer"]))["answerer"]

    fused = {
        "from": "one", "to": "answerer", "channel": "cache", "fallback": "error", "include_response": include_response,
    }  # fmt: skip
    both, fused_alone = await play(graft, {**fused, "fuser": name}), await play({**fused, "fuser": name})
    closed, graft_alone = await play(graft, {**fused, "fuser": shut}), await play(graft)
    assert closed.payload.text == graft_alone.payload.text
    assert same_bits(row(closed), row(graft_alone))
    count = both.edges["reader"].positions_grafted
    assert both.edges["one"].positions_fused == fused_alone.edges["one"].positions_fused > 2
    origins = plane(both).origins
    slot = next(at for at, origin in enumerate(origins) if text_at(origin, "document"))
    without = [at for at in range(len(origins)) if not slot <= at < slot + count]
    moved = row(both).positions[torch.tensor(without)] - count * (torch.tensor(without) > slot)
    prompt = len(without) - 6
    assert moved[:prompt].tolist() == row(fused_alone).positions[:prompt].tolist()
    assert not same_bits(row(both), row(graft_alone))


async def test_a_prompt_that_ends_with_a_graft_is_not_read_along(cast: Any, tmp_path: Path) -> None:
    agents = {**MEETING, "answerer": {**ANSWERER, "chat": False, "prompt": "{{ question }} {{ reader }}"}}
    async with cast(agents, question=QUESTION, document=DOCUMENT) as players:
        name = fuser(tmp_path, receiver=info(players, "answerer"), sharer=info(players, "one"), alignment="offsets")
    edges: list[dict[str, Any]] = [
        {"from": "reader", "to": "answerer", "channel": "cache"},
        {"from": "one", "to": "answerer", "channel": "cache", "fuser": name, "include_response": True},
    ]
    async with cast(agents, edges, question=QUESTION, document=DOCUMENT) as players:
        reply = (await players.play())["answerer"]
    assert "ends with a graft" in str(reply.edges["one"].fallback_reason)
    assert reply.edges["reader"].channel_used == "cache"
    async with cast(agents, [edges[0], {**edges[1], "include_response": False}], question=QUESTION, document=DOCUMENT) \
            as players:  # fmt: skip
        reply = (await players.play(keep=["answerer"]))["answerer"]
    assert reply.edges["one"].channel_used == "cache"
    check_row(reply)


@pytest.mark.parametrize(
    ("prompt", "grafted", "fused"),
    [("{{ question }}", False, True), ("Think: {{ document }}", True, False)],
)
async def test_a_network_that_finds_nothing_to_do_is_left_out(
    cast: Any, tmp_path: Path, prompt: str, grafted: bool, fused: bool
) -> None:
    agents = {**BOTH, "reader": {**READER, "prompt": prompt}}
    async with cast(agents, question=QUESTION, document=DOCUMENT) as players:
        fuse = lean(model(players, "answerer"), model(players, "reader"), alignment="offsets", reads="own-prompt")
        save_fuser(fuse, tmp_path / "made" / "fuse")
        save_fuser(translator(players), tmp_path / "made" / "graft")
    edges = [{"from": "reader", "to": "answerer", "channel": "cache", "fuser": "made", "fallback": "error"}]
    async with cast(agents, edges, question=QUESTION, document=DOCUMENT) as players:
        report = (await players.play())["answerer"].edges["reader"]
    assert (report.positions_grafted > 5, report.positions_fused > 2) == (grafted, fused)


async def test_networks_in_each_others_place_are_refused(cast: Any, tmp_path: Path) -> None:
    async with cast(BOTH, question=QUESTION, document=DOCUMENT) as players:
        save_fuser(translator(players), tmp_path / "graft")
        save_fuser(lean(model(players, "answerer"), model(players, "reader"), alignment="offsets"), tmp_path / "fuse")
    named = {"fuse": "graft", "graft": "fuse"}
    edges = [{"from": "reader", "to": "answerer", "channel": "cache", "fuser": named, "fallback": "error"}]
    async with cast(BOTH, edges, question=QUESTION, document=DOCUMENT) as players:
        with pytest.raises(ChannelError, match="'graft' must be a fuser and 'fuse' a translator, and they are not"):
            players.decide()


async def test_the_zero_control_gives_a_translator_zeros_to_read(cast: Any, tmp_path: Path) -> None:
    """As `cachegraph train --control zero` does: what it has learnt to say of anything stays."""
    agents = {**BOTH, "reader": {**READER, "prompt": "Think: {{ document }}"}}
    async with cast(agents, question=QUESTION, document=DOCUMENT) as players:
        made = translator(players)
        save_fuser(made, tmp_path / "made")
    edges = [{"from": "reader", "to": "answerer", "channel": "cache", "fuser": "made", "fallback": "error"}]
    async with cast(agents, edges, question=QUESTION, document=DOCUMENT) as players:
        replies = await players.play(keep=["answerer"], control=Control("zero"))
        row_of, sent = plane(replies["answerer"]), private(plane(replies["reader"]))
        layers = made.translate([LayerKV(torch.zeros_like(k), torch.zeros_like(v)) for k, v in sent.layers])
        at = torch.tensor([here for here, origin in enumerate(row_of.origins) if is_private(origin)])
        expected = model(players, "answerer").rotation.move(KV(layers, torch.zeros(len(at), dtype=torch.int64)), at)
    assert len(at) > 5
    assert all(layer.values.abs().max() > 0.01 for layer in expected.layers)
    assert_close(concat(row_of.segments).select(at), expected)
