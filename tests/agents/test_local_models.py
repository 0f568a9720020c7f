"""The real demo models and an untrained fuser between them, through the path that a recipe takes."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from cachegraph.agents.base import Reply
from cachegraph.channels.fusers.files.card import Geometry
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.networks.create import new_fuser
from cachegraph.engine.kv.cache import concat
from cachegraph.engine.spec import ModelSpec

pytestmark = [pytest.mark.models, pytest.mark.anyio, pytest.mark.usefixtures("demo_engines")]

SMALL, OTHER = "smollm2-135m-instruct", "gemma-3-270m"
MODELS = {"small": ModelSpec(source=SMALL), "other": ModelSpec(source=OTHER)}
QUESTION = "Why is the sky blue? 空はなぜ青いの？🙂"
SHORT = {"max_new_tokens": 3}
AGENTS: dict[str, Any] = {
    "expert": {"model": "other", "prompt": "Question: {{ question }}\nWhat one needs to know:", "generate": SHORT},
    "answerer": {
        "model": "small",
        "system": "Answer in one short sentence.",
        "prompt": "{{ expert }}\n{{ question }}",
        "generate": SHORT,
    },
}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def fuser(folder: Path, players: Any, *, gate: float = 1.0, **card: Any) -> str:
    """SmolLM2 corrected by Gemma: 30 layers of 3 heads of 64 by 18 layers of 1 head of 256."""
    ends = []
    for name in ("answerer", "expert"):
        info = players.agents[name].peer().engine.model.info
        ends.append(Geometry(info.layers, info.kv_heads, info.head_dim))
    made = new_fuser("c2c", *ends, gate_logit=gate, hidden_dim=64, intermediate_dim=64)
    object.__setattr__(made, "card", made.card.model_copy(update=card))
    save_fuser(made, folder / "fuser")
    return "fuser"


def same_bits(a: Reply, b: Reply) -> bool:
    assert a.payload.cache is not None
    assert b.payload.cache is not None
    one, other = concat(a.payload.cache.segments), concat(b.payload.cache.segments)
    return all(
        torch.equal(x, y) for p, q in zip(one.layers, other.layers, strict=True) for x, y in zip(p, q, strict=True)
    )


@pytest.mark.parametrize(
    ("align", "reads", "include_response"),
    [
        ("first", "receiver-prompt", False),
        ("longest", "receiver-prompt", False),
        ("offsets", "receiver-prompt", True),
        ("offsets", "own-prompt", True),
    ],
)
async def test_an_untrained_fuser_corrects_the_receivers_cache(
    cast: Any, tmp_path: Path, align: str, reads: str, include_response: bool
) -> None:
    async with cast(AGENTS, models=MODELS, question=QUESTION) as players:
        name = fuser(tmp_path, players, alignment=align, reads=reads)
    edge = {"from": "expert", "to": "answerer", "channel": "cache", "fuser": name, "fallback": "error"}
    async with cast(AGENTS, [{**edge, "include_response": include_response}], MODELS, question=QUESTION) as players:
        first = (await players.play(keep=["answerer"]))["answerer"]
        again = (await players.play(keep=["answerer"]))["answerer"]
    report = first.edges["expert"]
    assert (report.channel_used, report.fallback_reason) == ("cache", None)
    assert report.positions_fused > 10
    # 18 sharer layers of keys and values, 256 numbers of 2 or 4 bytes a position
    assert report.bytes in {report.positions_fused * 18 * 2 * 256 * size for size in (2, 4)}
    assert first.payload.text == again.payload.text
    assert same_bits(first, again)


async def test_closed_gates_leave_the_receiver_alone_to_the_bit(cast: Any, tmp_path: Path) -> None:
    alone = {"answerer": {**AGENTS["answerer"], "prompt": "\n{{ question }}"}}
    async with cast(alone, models=MODELS, question=QUESTION) as players:
        expected = (await players.play(keep=["answerer"]))["answerer"]
    async with cast(AGENTS, models=MODELS, question=QUESTION) as players:
        name = fuser(tmp_path, players, gate=-1.0, alignment="offsets")
    edge = {"from": "expert", "to": "answerer", "channel": "cache", "fuser": name, "fallback": "error"}
    async with cast(AGENTS, [edge], MODELS, question=QUESTION) as players:
        fused = (await players.play(keep=["answerer"]))["answerer"]
    assert fused.payload.text == expected.payload.text
    assert same_bits(fused, expected)
    assert fused.edges["expert"].positions_fused == 0


async def test_without_a_fuser_the_edge_falls_back_with_the_reason(
    cast: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachegraph.channels.fusers.fuser_folder.files", lambda package: tmp_path)  # nothing ships
    for channel, reason in (("auto", "there is no fuser for the pair"), ("cache", "there is no fuser for the pair")):
        async with cast(
            AGENTS, [{"from": "expert", "to": "answerer", "channel": channel}], MODELS, question=QUESTION
        ) as players:
            replies = await players.play()
            report = replies["answerer"].edges["expert"]
            assert report.channel_used == "text"
            assert report.fallback_reason is not None
            assert reason in report.fallback_reason
            assert report.bytes == len((replies["expert"].payload.text or "").encode())


async def test_a_grafted_document_gives_the_reply_that_reading_it_gives(cast: Any) -> None:
    """One system message for both, so that the document stands where it stood."""
    story = "Anna keeps bees on the roof of the old library in Lisbon."
    system = "Answer with a few words from the text."
    agents = {
        "reader": {"model": "small", "system": system, "prompt": "{{ story }}", "generate": {"max_new_tokens": 0}},
        "answerer": {"model": "small", "system": system, "prompt": "{{ reader }}\n\n{{ question }}", "generate": SHORT},
    }
    found = []
    for channel in ("text", "cache"):
        async with cast(
            agents,
            [{"from": "reader", "to": "answerer", "channel": channel}],
            MODELS,
            story=story,
            question="Where are the bees?",
        ) as players:
            found.append((await players.play(keep=["answerer"]))["answerer"])
    text, cache = found
    assert list(cache.payload.cache.ids) == list(text.payload.cache.ids)
    assert cache.payload.text == text.payload.text
    assert cache.tokens.reused > 10
    assert cache.tokens.prefilled + cache.tokens.reused == text.tokens.prefilled


@pytest.mark.parametrize("model", ["small", "other"])
async def test_replies_are_data_where_a_schema_says_so(cast: Any, model: str) -> None:
    """Whole words, bytes, pieces that begin with a space: what the tokens allow is what the text becomes."""
    place = {"type": "object", "properties": {"name": {"type": "string", "pattern": "^[A-Zà-ü 空]{3,12}$"}}}
    schema = {
        "type": "object",
        "properties": {
            "colour": {"enum": ["blue", "sea green", "空色"]},
            "places": {"type": "array", "items": {**place, "required": ["name"], "additionalProperties": False}},
            "degrees": {"type": "integer", "minimum": -5, "maximum": 105},
        },
        "required": ["colour", "places", "degrees"],
        "additionalProperties": False,
    }
    schema["properties"]["places"].update(minItems=2, maxItems=2)  # type: ignore[index]
    for values in ({}, {"temperature": 1.0, "seed": 1}):
        generate = {"max_new_tokens": 160, "json_schema": schema, **values}
        agents = {"answerer": {"model": model, "prompt": "{{ question }}", "generate": generate}}
        async with cast(agents, models=MODELS, question=QUESTION) as players:
            message = (await players.play())["answerer"].payload
        assert json.loads(message.text) == message.data
        jsonschema.validate(message.data, schema)
