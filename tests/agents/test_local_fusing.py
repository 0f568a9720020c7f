"""Agents whose caches are corrected by sharers: what is fused, what is not, and what is said of it."""

from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from agent_rows import check_row, fuser, info, plane, row, same_bits
from tiny import config_of, save_model, save_tokenizer

from cachegraph.agents.base import Delivery, Turn
from cachegraph.engine.kv.rope import OutOfReach
from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import ChannelError, ModelError

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Both event loops are the engine's tests' matter; here the messages are looked at."""
    return "asyncio"


DOCUMENT = "the sea is green and the sky is blue, and what is the answer of the question"
QUESTION = "what is the sky?"
SHORT = {"max_new_tokens": 8}


PANEL: dict[str, Any] = {
    "one": {"model": "other", "prompt": "Think: {{ question }}", "generate": SHORT},
    "two": {"model": "third", "prompt": "{{ question }}", "generate": SHORT},
    "answerer": {"model": "small", "system": "Be brief.", "prompt": "Well: {{ question }}", "generate": SHORT},
}


def panel(*names: str) -> dict[str, Any]:
    return {name: PANEL[name] for name in names}


@pytest.mark.parametrize("reads", ["receiver-prompt", "own-prompt"])
@pytest.mark.parametrize("align", ["first", "longest", "offsets"])
@pytest.mark.parametrize("include_response", [False, True])
async def test_a_fuser_corrects_what_both_have_read(
    cast: Any, tmp_path: Path, reads: str, align: str, include_response: bool
) -> None:
    agents = panel("one", "answerer")
    async with cast(agents, question=QUESTION) as players:
        alone = (await players.play(keep=["answerer"]))["answerer"]
        name = fuser(
            tmp_path, receiver=info(players, "answerer"), sharer=info(players, "one"), alignment=align, reads=reads
        )
    edges = [
        {
            "from": "one",
            "to": "answerer",
            "channel": "cache",
            "fuser": name,
            "include_response": include_response,
            "fallback": "error",
        }
    ]
    async with cast(agents, edges, question=QUESTION) as players:
        first = (await players.play(keep=["answerer"]))["answerer"]
        again = (await players.play(keep=["answerer"]))["answerer"]
    check_row(first) if reads == "own-prompt" or align == "offsets" else None
    report = first.edges["one"]
    assert report.channel_used == "cache"
    assert report.positions_fused > 0
    assert report.bytes > 0
    assert (first.payload.text, same_bits(row(first), row(again))) == (again.payload.text, True)
    assert first.timing.first_token is not None
    prompt = len(plane(alone).ids) - 8
    assert list(plane(first).ids)[:prompt] == list(plane(alone).ids)[:prompt]
    assert first.tokens.generated == 8
    apart = (row(first).layers[0].keys[:, :, :prompt] - row(alone).layers[0].keys[:, :, :prompt]).abs().amax((0, 1, 3))
    if align == "offsets" and not include_response:
        assert int((apart > 1e-3).sum()) == report.positions_fused


async def test_closed_gates_leave_the_receiver_alone_to_the_bit(cast: Any, tmp_path: Path) -> None:
    agents = panel("one", "answerer")
    async with cast(agents, question=QUESTION) as players:
        alone = (await players.play(keep=["answerer"]))["answerer"]
        name = fuser(
            tmp_path, receiver=info(players, "answerer"), sharer=info(players, "one"), gate=-1.0, alignment="offsets"
        )
    async with cast(
        agents, [{"from": "one", "to": "answerer", "channel": "cache", "fuser": name}], question=QUESTION
    ) as players:
        fused = (await players.play(keep=["answerer"]))["answerer"]
    assert fused.payload.text == alone.payload.text
    assert same_bits(row(fused), row(alone))
    report = fused.edges["one"]
    assert (report.channel_used, report.positions_fused, report.bytes) == ("cache", 0, 0)


async def test_without_a_shared_span_the_receiver_is_alone_to_the_bit(cast: Any, tmp_path: Path) -> None:
    """The sharer has read something else."""
    agents = {**panel("answerer"), "one": {"model": "other", "prompt": "{{ document }}", "generate": SHORT}}
    agents = {name: agents[name] for name in ("one", "answerer")}
    async with cast(agents, question=QUESTION, document=DOCUMENT) as players:
        alone = (await players.play(keep=["answerer"]))["answerer"]
        name = fuser(
            tmp_path,
            receiver=info(players, "answerer"),
            sharer=info(players, "one"),
            alignment="offsets",
            reads="own-prompt",
        )
    edges = [{"from": "one", "to": "answerer", "channel": "cache", "carries": "prompt", "fuser": name}]
    async with cast(agents, edges, question=QUESTION, document=DOCUMENT) as players:
        fused = (await players.play(keep=["answerer"]))["answerer"]
    assert fused.payload.text == alone.payload.text
    assert same_bits(row(fused), row(alone))


@pytest.mark.parametrize("include_response", [False, True])
async def test_the_order_of_parallel_sharers_changes_no_bit(cast: Any, tmp_path: Path, include_response: bool) -> None:
    async with cast(PANEL, question=QUESTION) as players:
        names = {
            name: fuser(tmp_path, receiver=info(players, "answerer"), sharer=info(players, name), alignment="offsets")
            for name in ("one", "two")
        }
    found = []
    for order in (("one", "two"), ("two", "one")):
        edges = [
            {
                "from": name,
                "to": "answerer",
                "channel": "cache",
                "fuser": names[name],
                "include_response": include_response,
            }
            for name in order
        ]
        async with cast(PANEL, edges, question=QUESTION) as players:
            found.append((await players.play(keep=["answerer"]))["answerer"])
    assert found[0].payload.text == found[1].payload.text
    assert same_bits(row(found[0]), row(found[1]))
    assert [found[0].edges[name].positions_fused > 0 for name in ("one", "two")] == [True, True]


async def test_fusers_that_read_differently_fall_back_together(cast: Any, tmp_path: Path) -> None:
    async with cast(PANEL, question=QUESTION) as players:
        made = [
            fuser(
                tmp_path,
                receiver=info(players, "answerer"),
                sharer=info(players, name),
                alignment="offsets",
                reads=reads,
            )
            for name, reads in (("one", "own-prompt"), ("two", "receiver-prompt"))
        ]
    edges = [
        {"from": name, "to": "answerer", "channel": "cache", "fuser": each}
        for name, each in zip(("one", "two"), made, strict=True)
    ]
    prompts: list[str] = []
    async with cast(PANEL, edges, question=QUESTION) as players:
        replies = await players.play()
        deliveries = [Delivery(players.routes[name, "answerer"], replies[name].payload) for name in ("one", "two")]
        reply = await players.agents["answerer"].turn(
            Turn({"question": QUESTION}, deliveries, on_prompt=prompts.append)
        )
    for name in ("one", "two"):
        assert reply.edges[name].channel_used == "text"
        assert "read the prompt in different ways" in (reply.edges[name].fallback_reason or "")
    assert len(prompts) == 1, "the plans alone decide, so the prompt is rendered once"


async def test_nothing_is_computed_before_every_edge_is_settled(cast: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second graft has no room for its keys; the first one's front is not prefilled for a prompt that won't be."""
    agents = {
        "one": {"model": "small", "prompt": "{{ question }}", "generate": {"max_new_tokens": 0}, "chat": False},
        "two": {"model": "small", "prompt": "{{ question }} {{ question }}", "generate": SHORT, "chat": False},
        "answerer": {"model": "small", "prompt": "First {{ one }} then {{ two }} so", "generate": SHORT, "chat": False},
    }
    edges = [{"from": name, "to": "answerer", "channel": "cache"} for name in ("one", "two")]
    done: list[str] = []
    async with cast(agents, edges, question=QUESTION) as players:
        await players.play()
        engine = players.agents["answerer"].peer().engine
        moves = []

        def move(kv: Any, positions: Any) -> Any:
            moves.append(len(kv))
            if len(moves) == 2:
                raise OutOfReach("too far for the test")
            return kv

        async def prefill(*args: Any, **options: Any) -> Any:
            done.append("prefill")
            return await type(engine).prefill(engine, *args, **options)

        monkeypatch.setattr("cachegraph.channels.cache.graft._grafts", WeakKeyDictionary())
        monkeypatch.setattr(engine.model.rotation, "move", move)
        monkeypatch.setattr(engine, "prefill", prefill)
        deliveries = [
            Delivery(players.routes[name, "answerer"], players.replies[name].payload) for name in ("one", "two")
        ]
        turn = Turn({"question": QUESTION}, deliveries, on_prompt=lambda _: done.append("prompt"))
        reply = await players.agents["answerer"].turn(turn)
    assert reply.edges["two"].fallback_reason == "too far for the test"
    assert reply.edges["one"].channel_used == "cache"
    assert done == ["prompt", "prompt", "prefill"]


async def test_a_fuser_of_other_models_falls_back_with_the_reason_or_fails(cast: Any, tmp_path: Path) -> None:
    agents = panel("one", "answerer")
    async with cast(agents, question=QUESTION) as players:
        here, there = info(players, "answerer"), info(players, "one")
        wrong = fuser(tmp_path, receiver=there, sharer=here, alignment="offsets")
        right = fuser(tmp_path, receiver=here, sharer=there, alignment="offsets")
        revised = fuser(tmp_path, receiver=here, sharer=there, alignment="offsets")
        card = (tmp_path / revised / "card.json").read_text()
        (tmp_path / revised / "card.json").write_text(card.replace('"identity": null', '"identity": "sha256:0"', 1))
        unknown = fuser(tmp_path, receiver=here, sharer=there, alignment="ids")
    reasons = {
        wrong: "the fuser was made for the receiver 'here' with",
        revised: "the fuser was trained with other weights of the receiver 'here'",
        unknown: "have different tokenizers",
        "missing": "there is no fuser 'missing'",
    }
    for name, reason in reasons.items():
        edge = {"from": "one", "to": "answerer", "channel": "cache", "fuser": name}
        async with cast(agents, [edge], question=QUESTION) as players:
            report = (await players.play())["answerer"].edges["one"]
            assert (report.asked, report.channel_used) == ("cache", "text")
            assert reason in (report.fallback_reason or "")
        async with cast(agents, [{**edge, "fallback": "error"}], question=QUESTION) as players:
            with pytest.raises(ChannelError, match="the cache edge 'one' -> 'answerer' can't work: "):
                players.decide()
    async with cast(
        agents, [{"from": "one", "to": "answerer", "channel": "cache", "fuser": right}], question=QUESTION
    ) as players:
        players.decide()
        assert players.routes["one", "answerer"].used == "cache"


async def test_prompts_of_one_token_are_answered(cast: Any, tmp_path: Path) -> None:
    agents = {
        "one": {"model": "other", "prompt": "{{ q }}", "generate": SHORT, "chat": False},
        "answerer": {"model": "plain", "prompt": "{{ q }}", "generate": SHORT},
    }
    async with cast(agents, q="a") as players:
        alone = (await players.play(keep=["answerer"]))["answerer"]
        name = fuser(tmp_path, receiver=info(players, "answerer"), sharer=info(players, "one"), alignment="offsets")
    async with cast(agents, [{"from": "one", "to": "answerer", "channel": "cache", "fuser": name}], q="a") as players:
        fused = (await players.play(keep=["answerer"]))["answerer"]
    assert len(plane(alone).ids) == 9
    assert same_bits(row(fused), row(alone))


async def test_a_reply_ends_where_a_sharers_context_does(cast: Any, tmp_path: Path) -> None:
    config = config_of("qwen2")
    config.max_position_embeddings = 32
    save_tokenizer(save_model(config, tmp_path / "short"))
    short = {"brief": ModelSpec(source=str(tmp_path / "short"), dtype="float32", device="cpu")}
    long = {"max_new_tokens": 64, "ignore_eos": True}
    agents = {
        "one": {"model": "brief", "prompt": "{{ q }}", "generate": SHORT, "chat": False},
        "answerer": {"model": "plain", "prompt": "{{ q }}", "generate": long, "chat": False},
    }
    async with cast(agents, models=short, q=QUESTION) as players:
        name = fuser(tmp_path, receiver=info(players, "answerer"), sharer=info(players, "one"), alignment="offsets")
    edge = {"from": "one", "to": "answerer", "channel": "cache", "fuser": name, "fallback": "error"}
    async with cast(agents, [{**edge, "include_response": True}], models=short, q=QUESTION) as players:
        along = (await players.play(keep=["answerer"]))["answerer"]
        turn = Turn({"q": QUESTION}, [Delivery(players.routes["one", "answerer"], players.replies["one"].payload)])
        with pytest.raises(ModelError, match="too long for .*, which also reads the reply, and at most 32 tokens"):
            await players.agents["answerer"].score(turn, ["sea " * 40, "sky"])
    async with cast(agents, [edge], models=short, q=QUESTION) as players:
        apart = (await players.play())["answerer"]
    assert apart.tokens.generated == 64
    assert 0 < along.tokens.generated < 32
