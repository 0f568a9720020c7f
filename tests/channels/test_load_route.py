"""What an edge will do, decided from its two ends before either speaks."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import config_of, load_tiny, save_model, save_tokenizer

from cachegraph.channels.cache.edge_plan import FusePlan, GraftPlan
from cachegraph.channels.fusers.files.card import Evidence, Geometry
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.networks.create import new_fuser
from cachegraph.channels.load_route import route
from cachegraph.channels.payload import Route
from cachegraph.channels.peer import Peer
from cachegraph.channels.spec import AutoEdge, BothEdge, CacheEdge, TextEdge
from cachegraph.engine.engine import Engine
from cachegraph.errors import ChannelError

KINDS: dict[str, type[TextEdge | CacheEdge | BothEdge | AutoEdge]] = {
    "text": TextEdge,
    "cache": CacheEdge,
    "both": BothEdge,
    "auto": AutoEdge,
}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Engine]]:
    made = {}
    for seed, (name, kind) in enumerate({"llama": "llama", "qwen": "qwen2", "silent": "llama"}.items()):
        folder = tmp_path_factory.mktemp(name) / name
        save_model(config_of(kind), folder, seed=seed)
        if name != "silent":
            save_tokenizer(folder, vocabulary=300 if name == "llama" else 280)
        made[name] = Engine(load_tiny(config_of(kind), folder, seed=seed))
    yield made
    for engine in made.values():
        engine.close()


def peer(agent: str, engine: Engine, *, reads: str = "document", **options: Any) -> Peer:
    return Peer(agent, engine.model.name, engine, reads=frozenset([reads]), holds=frozenset([reads]), **options)


def decide(channel: str, sender: Peer, receiver: Peer, folder: Path, **options: Any) -> Route:
    edge = KINDS[channel].model_validate({"from": sender.agent, "to": receiver.agent, "channel": channel, **options})
    return route(edge, sender, receiver, folder)


def saved_fuser(folder: Path, here: Engine, there: Engine, name: str = "fuser", **card: Any) -> None:
    ends = [Geometry(e.model.info.layers, e.model.info.kv_heads, e.model.info.head_dim) for e in (here, there)]
    made = new_fuser("c2c", *ends, hidden_dim=8, intermediate_dim=8)
    object.__setattr__(made, "card", made.card.model_copy(update=card))
    save_fuser(made, folder / name)


def test_a_text_edge_asks_for_nothing_but_words(engines: dict[str, Engine], tmp_path: Path) -> None:
    ends = Peer("a", "endpoint"), Peer("b", "endpoint")
    found = decide("text", *ends, tmp_path)
    assert (found.used, found.needs_text, found.needs_cache, found.fallback_reason) == ("text", True, False, None)


@pytest.mark.parametrize(
    ("channel", "carries", "used", "needs_text"),
    [
        ("cache", "prompt", "cache", False),
        ("cache", "reply", "cache", True),
        ("cache", "all", "cache", True),
        ("auto", "prompt", "cache", False),
        ("both", "reply", "both", True),
    ],
)
def test_agents_of_one_model_graft(
    engines: dict[str, Engine], tmp_path: Path, channel: str, carries: str, used: str, needs_text: bool
) -> None:
    """The sender writes only where its reply travels."""
    ends = peer("a", engines["llama"]), peer("b", engines["llama"], reads="question")
    found = decide(channel, *ends, tmp_path, carries=carries)
    assert (found.used, found.needs_text, found.needs_cache) == (used, needs_text, True)
    assert found.plan == GraftPlan(carries)  # type: ignore[arg-type]


def test_both_carries_the_prompt_of_an_agent_that_only_reads(engines: dict[str, Engine], tmp_path: Path) -> None:
    ends = peer("a", engines["llama"], reads_only=True), peer("b", engines["llama"], reads="question")
    assert decide("both", *ends, tmp_path).plan == GraftPlan("all")


@pytest.mark.parametrize("reads", ["receiver-prompt", "own-prompt"])
def test_a_fuser_joins_two_models(engines: dict[str, Engine], tmp_path: Path, reads: Any) -> None:
    """A sharer that reads the receiver's prompt need not even read its own."""
    saved_fuser(tmp_path, engines["llama"], engines["qwen"], alignment="offsets", reads=reads)
    ends = peer("a", engines["qwen"]), peer("b", engines["llama"])
    found = decide("cache", *ends, tmp_path, fuser="fuser", include_response=True)
    assert (found.used, found.needs_text, found.needs_cache) == ("cache", False, reads == "own-prompt")
    plan = found.plan
    assert isinstance(plan, FusePlan)
    assert (plan.alignment, plan.reads, plan.include_response, plan.sharer) == ("offsets", reads, True, engines["qwen"])
    both = decide("both", *ends, tmp_path, fuser="fuser")
    assert (both.used, both.needs_text) == ("both", True)
    plan = decide("cache", *ends, tmp_path, fuser="fuser", align="longest").plan
    assert isinstance(plan, FusePlan)
    assert plan.alignment == "longest"


@pytest.mark.parametrize("channel", ["auto", "cache", "both"])
def test_a_fuser_that_nobody_names_is_used_only_where_its_card_shows_communication(
    engines: dict[str, Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channel: str
) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path))
    here, there = engines["llama"], engines["qwen"]
    ends = peer("a", there), peer("b", here)
    before = decide(channel, *ends, tmp_path)
    assert before.fallback_reason == "'qwen' and 'llama' are different models, and there is no fuser for the pair"
    made = new_fuser("c2c", *([Geometry(3, 2, 8)] * 2), hidden_dim=8, intermediate_dim=8).card
    pair = {
        "receiver": made.receiver.model_copy(update={"name": "llama"}),
        "sharer": made.sharer.model_copy(update={"name": "qwen"}),
    }
    saved_fuser(tmp_path / "fusers", here, there, "llama--qwen", alignment="offsets", **pair)
    assert "the card of 'llama--qwen' shows no communication" in (
        decide(channel, *ends, tmp_path).fallback_reason or ""
    )
    assert decide(channel, *ends, tmp_path, fuser="llama--qwen").fuser_reason == "the edge names it"
    shown = Evidence(task="shared", data="d", metric="accuracy", examples=9, own=0.7, mismatched=0.3, low=0.1, high=0.6)
    saved_fuser(tmp_path / "fusers", here, there, "shown", alignment="offsets", evidence=(shown,), **pair)
    found = decide(channel, *ends, tmp_path)
    assert isinstance(found.plan, FusePlan)
    assert found.fuser == "shown"
    assert found.fuser_reason == f"its card shows communication: {shown}"


REFUSED = {
    "an end that can't": "'x' has no cache",
    "a receiver that only reads": "agent 'b' writes nothing: it hands over its prompt, so it needs the words",
    "two models": "'qwen' and 'llama' are different models, and there is no fuser for the pair",
    "another number type": "'llama' runs in torch.bfloat16 here and in torch.float32 there",
    "nothing private": "agent 'b' itself reads all that 'a' has read",
    "a missing fuser": "there is no fuser 'fuser'",
    "a fuser of other sizes": "the fuser was made for the receiver 'receiver' with 3 layers of 4 KV heads of 8",
    "another revision": "the fuser was trained with other weights of the sharer 'sharer'",
    "a graft fuser": "a card of kind 'graft' has sharer_layers",
    "no tokenizer": "'silent' has no tokenizer",
    "other token ids": "'llama' and 'qwen' have different tokenizers",
}


@pytest.mark.parametrize(
    ("case", "channel"),
    [
        (case, channel)
        for case in REFUSED
        for channel in ("cache", "both", "auto")
        if (case, channel) != ("nothing private", "both")  # which carries the reply
    ],
)
def test_an_edge_that_can_not_work_falls_back_with_the_reason_or_fails(
    engines: dict[str, Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, channel: str
) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path / "home"))
    llama, qwen, silent = engines["llama"], engines["qwen"], engines["silent"]
    half = Engine(replace(llama.model, dtype=torch.bfloat16))
    a, b = peer("a", qwen), peer("b", llama, reads="question")
    options: dict[str, Any] = {"fuser": "fuser", "carries": "prompt"}
    match case:
        case "an end that can't":
            a, options = peer("a", llama, why_no_cache="'x' has no cache"), {}
        case "a receiver that only reads":
            a, b, options = peer("a", llama), peer("b", llama, reads="question", reads_only=True), {}
        case "two models":
            options = {}
        case "another number type":
            a, options = peer("a", half), {}
        case "nothing private":
            a, b, options = peer("a", llama), peer("b", llama), {"carries": "prompt"}
        case "a fuser of other sizes":
            saved_fuser(tmp_path, with_heads(llama, 4), qwen, alignment="offsets")
        case "another revision":
            ends = new_fuser("c2c", *([Geometry(3, 2, 8)] * 2), hidden_dim=8, intermediate_dim=8).card.sharer
            saved_fuser(
                tmp_path, llama, qwen, sharer=ends.model_copy(update={"identity": "older"}), alignment="offsets"
            )
        case "a graft fuser":
            saved_fuser(tmp_path, llama, qwen, kind="graft", alignment="offsets")
        case "no tokenizer":
            a = peer("a", silent)
            saved_fuser(tmp_path, llama, silent, alignment="offsets")
        case "other token ids":
            saved_fuser(tmp_path, llama, qwen, alignment="ids")
    found = decide(channel, a, b, tmp_path, **options)
    assert (found.edge.channel, found.used) == (channel, "text")
    assert (found.needs_text, found.needs_cache, found.plan) == (True, False, None)
    assert REFUSED[case] in (found.fallback_reason or "")
    if channel != "auto":
        with pytest.raises(ChannelError, match=f"^the {channel} edge 'a' -> 'b' can't work: "):
            decide(channel, a, b, tmp_path, fallback="error", **options)


def with_heads(engine: Engine, kv_heads: int) -> Engine:
    shapes = tuple(shape._replace(kv_heads=kv_heads) for shape in engine.model.info.shapes)
    return Engine(replace(engine.model, info=replace(engine.model.info, shapes=shapes)))
