"""Agents on models of this machine: what they read, reuse and write, over every kind of edge."""

from pathlib import Path
from typing import Any

import pytest
import torch
from agent_rows import check_row, plane, row
from tiny import save_model, save_tokenizer
from transformers import models as hf

from cachegraph.channels.cache.sent_cache import SentCache
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
READS = {"max_new_tokens": 0}


# Grafting


async def test_a_grafted_document_gives_the_reply_that_reading_it_gives(cast: Any) -> None:
    """Reader and answerer begin their chats alike, so that what is grafted is to the bit what a prefill makes."""
    agents = {
        "reader": {"model": "small", "prompt": "{{ document }}", "generate": READS},
        "answerer": {"model": "small", "prompt": "{{ reader }}\n\n{{ question }}", "generate": SHORT},
    }
    found = {}
    for channel in ("text", "cache"):
        edges = [{"from": "reader", "to": "answerer", "channel": channel}]
        async with cast(agents, edges, document=DOCUMENT, question=QUESTION) as players:
            replies = await players.play(keep=["answerer"])
            found[channel] = replies["answerer"]
            assert replies["reader"].payload.text == DOCUMENT
            check_row(found[channel])
    text, cache = found["text"], found["cache"]
    assert cache.payload.text == text.payload.text
    assert list(plane(cache).ids) == list(plane(text).ids)
    for ours, theirs in zip(row(cache).layers, row(text).layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, rtol=1e-4, atol=1e-4)
    report = cache.edges["reader"]
    assert (report.channel_used, report.fallback_reason) == ("cache", None)
    assert report.positions_grafted == cache.tokens.reused > 0
    assert report.bytes == report.positions_grafted * 3 * 2 * 2 * 8 * 4
    assert cache.tokens.prefilled + cache.tokens.reused == text.tokens.prefilled


async def test_what_stands_in_front_of_a_slot_moves_the_graft(cast: Any) -> None:
    agents = {
        "reader": {"model": "small", "prompt": "{{ document }}", "generate": READS},
        "answerer": {"model": "small", "prompt": "Before it: {{ reader }} {{ question }}", "generate": SHORT},
    }
    async with cast(
        agents, [{"from": "reader", "to": "answerer", "channel": "cache"}], document=DOCUMENT, question="so?"
    ) as players:
        replies = await players.play(keep=["answerer"])
        check_row(replies["answerer"])
        mine, theirs = plane(replies["answerer"]), plane(replies["reader"])
        assert [o for o in mine.origins if o and o[0] == "document"] == [o for o in theirs.origins if o]


@pytest.mark.parametrize("kind", ["small", "plain"])
@pytest.mark.parametrize(
    "prompt",
    [
        "{{ a }}{{ b }}{{ question }}",
        "{{ question }} {{ a }} {{ b }}",
        "{{ b }}{{ question }}{{ a }}",
        "{{ a }} {{ a }}{{ b }}",
        "{{ question }}",
    ],
)
async def test_several_grafts_stand_where_their_slots_are(cast: Any, kind: str, prompt: str) -> None:
    """At the beginning, in the middle, at the end, twice, or in messages of their own; nothing is read twice."""
    agents = {
        "a": {"model": kind, "prompt": "First: {{ one }}", "generate": READS},
        "b": {"model": kind, "prompt": "{{ two }} was second, and {{ one }} first", "generate": READS},
        "answerer": {"model": kind, "prompt": prompt, "generate": SHORT},
    }
    edges = [{"from": name, "to": "answerer", "channel": "cache"} for name in "ab"]
    async with cast(agents, edges, one="the sea", two="the sky", question=QUESTION) as players:
        replies = await players.play(keep=["answerer"])
        answer = replies["answerer"]
        check_row(answer)
        names = [origin[0] for origin in plane(answer).origins if origin and origin[0] in ("one", "two", "a", "b")]
        order = sorted({"one", "two"}, key=names.index)
        assert order == (["two", "one"] if prompt.startswith("{{ b }}") else ["one", "two"])
        assert {answer.edges[name].channel_used for name in "ab"} == {"cache"}
        grafted = sum(answer.edges[name].positions_grafted for name in "ab")
        assert len(names) == grafted  # what two have read goes over once
        # Where nothing follows the last graft, its last token is read again to decode from.
        at_the_end = kind == "plain" and prompt.endswith(("{{ a }}", "{{ b }}"))
        assert answer.tokens.reused == grafted - at_the_end
        assert answer.tokens.prefilled + answer.tokens.reused + answer.tokens.generated >= len(plane(answer).ids)


async def test_four_answerers_hold_one_document(cast: Any) -> None:
    agents: dict[str, Any] = {"reader": {"model": "small", "prompt": "{{ document }}", "generate": READS}}
    agents |= {
        f"a{n}": {"model": "small", "prompt": f"{{{{ reader }}}} question {n}", "generate": SHORT} for n in range(4)
    }
    edges = [{"from": "reader", "to": f"a{n}", "channel": "cache"} for n in range(4)]
    async with cast(agents, edges, document=DOCUMENT) as players:
        replies = await players.play(keep=[f"a{n}" for n in range(4)])
        before = [layer.values.clone() for layer in row(replies["reader"]).layers]
        grafted = replies["a0"].edges["reader"].positions_grafted
        storages = set()
        for n in range(4):
            (held,) = [s for s in plane(replies[f"a{n}"]).segments if len(s) == grafted]
            storages.add(held.layers[0].keys.untyped_storage().data_ptr())
            assert held.layers[0].values.untyped_storage().data_ptr() in {
                s.layers[0].values.untyped_storage().data_ptr() for s in plane(replies["reader"]).segments
            }
        assert len(storages) == 1
        assert all(torch.equal(a, b.values) for a, b in zip(before, row(replies["reader"]).layers, strict=True))
        assert len({replies[f"a{n}"].payload.text for n in range(4)}) > 1


@pytest.mark.parametrize("carries", ["reply", "all"])
async def test_a_reply_goes_on_as_cache(cast: Any, carries: str) -> None:
    """The writer's tokens and their origins are in step, whether it stopped at its bound or by itself."""
    agents = {
        "writer": {"model": "small", "prompt": "{{ document }}", "generate": {**SHORT, "temperature": 1.0, "seed": 3}},
        "answerer": {"model": "small", "prompt": "{{ writer }} {{ question }}", "generate": SHORT},
    }
    edges = [{"from": "writer", "to": "answerer", "channel": "cache", "carries": carries}]
    async with cast(agents, edges, document=DOCUMENT, question=QUESTION) as players:
        model = players.agents["writer"].peer().engine.model
        usual, replies = model.info, await players.play(keep=["answerer"])
        check_row(replies["writer"])
        spoken = [
            id_
            for id_, origin in zip(plane(replies["writer"]).ids, plane(replies["writer"]).origins, strict=True)
            if origin and origin[0] == "writer"
        ]
        assert model.tokenizer.decode(spoken) == replies["writer"].payload.text
        assert len(spoken) == 8
        try:
            model.info = type(usual)(**{**usual.__dict__, "eos_ids": frozenset([spoken[4]])})
            ended = await players.play(keep=["answerer"])
        finally:
            model.info = usual
        check_row(ended["writer"])
        check_row(ended["answerer"])
        count = [origin[0] for origin in plane(ended["writer"]).origins if origin].count("writer")
        assert count == spoken.index(spoken[4])
        taken = [o[0] for o in plane(ended["answerer"]).origins if o]
        assert taken.count("writer") == count
        assert (taken.count("document") > 0) == (carries == "all")


async def test_words_that_are_wanted_later_are_written_from_the_cache(
    cast: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the agent would have written them at once, without reading its prompt again."""
    agents = {
        "reader": {"model": "small", "prompt": "{{ document }}", "generate": SHORT},
        "answerer": {"model": "small", "prompt": "{{ reader }} {{ question }}", "generate": SHORT},
    }
    async with cast({"reader": agents["reader"]}, document=DOCUMENT) as players:
        expected = (await players.play())["reader"].payload.text
    async with cast(
        agents,
        [{"from": "reader", "to": "answerer", "channel": "cache", "carries": "prompt"}],
        document=DOCUMENT,
        question=QUESTION,
    ) as players:
        message = (await players.play())["reader"].payload
        engine, before = players.agents["reader"].peer().engine, digest_of(message.cache)
        read: list[int] = []
        generate = engine.generate

        def noted(ids: list[int], *rest: Any, **more: Any) -> Any:
            read.append(len(ids))
            return generate(ids, *rest, **more)

        monkeypatch.setattr(engine, "generate", noted)
        assert message.text is None
        assert await message.read() == expected
        assert read == [1]
        assert digest_of(message.cache) == before


def digest_of(held: SentCache) -> list[float]:
    return [float(x.double().sum()) for segment in held.segments for layer in segment.layers for x in layer]


async def test_a_chain_hands_on_what_it_was_handed(cast: Any) -> None:
    agents = {
        "first": {"model": "small", "prompt": "{{ document }}", "generate": READS},
        "second": {"model": "small", "prompt": "{{ first }} and {{ question }}", "generate": SHORT},
        "third": {"model": "small", "prompt": "{{ second }} so?", "generate": SHORT},
    }
    edges = [
        {"from": "first", "to": "second", "channel": "cache"},
        {"from": "second", "to": "third", "channel": "cache", "carries": "all"},
    ]
    async with cast(agents, edges, document=DOCUMENT, question=QUESTION) as players:
        replies = await players.play(keep=["third"])
        check_row(replies["third"])
        assert {o[0] for o in plane(replies["third"]).origins if o} == {"document", "question", "second", "third"}


async def test_what_both_have_read_is_not_grafted_and_the_reason_is_given(cast: Any) -> None:
    agents = {
        "reader": {"model": "small", "prompt": "{{ document }}", "generate": SHORT},
        "answerer": {"model": "small", "prompt": "{{ document }} {{ reader }}", "generate": SHORT},
    }
    edges = [{"from": "reader", "to": "answerer", "channel": "cache", "carries": "prompt"}]
    async with cast(agents, edges, document=DOCUMENT) as players:
        replies = await players.play()
        report = replies["answerer"].edges["reader"]
        assert report.channel_used == "text"
        assert report.fallback_reason is not None
        assert "'answerer' itself reads all that 'reader' has read" in report.fallback_reason
        assert report.bytes == len((replies["reader"].payload.text or "").encode())


# What can't be


async def test_an_empty_prompt_is_named(cast: Any) -> None:
    async with cast({"reader": {"model": "plain", "prompt": "{{ q }}"}}, q="") as players:
        with pytest.raises(ModelError, match="the prompt of agent 'reader' is empty"):
            await players.play()


async def test_a_prompt_that_leaves_no_room_is_named(cast: Any) -> None:
    async with cast({"reader": {"model": "plain", "prompt": "{{ q }}"}}, q="x" * 600) as players:
        with pytest.raises(ModelError, match=r"has 600 tokens, but 'plain' reads at most 512 with its reply"):
            await players.play()


async def test_a_reply_ends_where_the_model_can_read_no_more(cast: Any) -> None:
    async with cast(
        {"reader": {"model": "plain", "prompt": "{{ q }}", "generate": {"max_new_tokens": 50}}}, q="x" * 500
    ) as players:
        assert (await players.play())["reader"].tokens.generated == 12


async def test_models_without_a_travelling_cache_speak_over_text(cast: Any, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 32,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    save_model(hf.mamba.MambaConfig(**sizes, state_size=8, num_hidden_layers=2), tmp_path / "mamba")
    save_tokenizer(tmp_path / "mamba")
    mamba = ModelSpec(source=str(tmp_path / "mamba"), dtype="float32", device="cpu")
    agents = {
        "one": {"model": "mamba", "prompt": "{{ question }}", "generate": SHORT},
        "answerer": {"model": "small", "prompt": "{{ one }} {{ question }}", "generate": SHORT},
    }
    for channel in ("auto", "cache", "both"):
        edge = {"from": "one", "to": "answerer", "channel": channel}
        async with cast(agents, [edge], {"mamba": mamba}, question=QUESTION) as players:
            replies = await players.play()
            report = replies["answerer"].edges["one"]
            assert report.channel_used == "text"
            assert (
                report.fallback_reason
                == "'mamba' can't take part in a cache edge: its 'linear_attention' layers keep no KV cache"
            )
            assert replies["one"].tokens.generated == 8
    async with cast(agents, [{**edge, "fallback": "error"}], {"mamba": mamba}, question=QUESTION) as players:
        with pytest.raises(ChannelError, match="'linear_attention' layers keep no KV cache"):
            players.decide()
