"""Agents whose replies are data: over every kind of edge, in a stream, behind an endpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
from agent_rows import fuser, info

from cachegraph.agents.structured_output import parse_reply
from cachegraph.errors import ModelError

pytestmark = pytest.mark.anyio

DOCUMENT = "the sea is green and the sky is blue"
TICKET = {
    "type": "object",
    "properties": {"kind": {"enum": ["bug", "idea"]}, "urgent": {"type": "boolean"}},
    "required": ["kind", "urgent"],
    "additionalProperties": False,
}
DATA = {"max_new_tokens": 60, "json_schema": TICKET}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def check(message: Any) -> None:
    assert json.loads(message.text) == message.data
    assert message.data.keys() == {"kind", "urgent"}
    assert message.data["kind"] in ("bug", "idea")
    assert isinstance(message.data["urgent"], bool)


@pytest.mark.parametrize("model", ["small", "other", "plain"])
async def test_a_reply_becomes_the_messages_data(cast: Any, model: str) -> None:
    agents = {"triage": {"model": model, "prompt": "{{ q }}", "generate": {**DATA, "temperature": 1.5, "seed": 3}}}
    async with cast(agents, q="what is the sky?") as players:
        check((await players.play())["triage"].payload)


async def test_behind_a_grafted_cache(cast: Any) -> None:
    agents = {
        "reader": {"model": "small", "prompt": "{{ document }}", "generate": {"max_new_tokens": 0}},
        "triage": {"model": "small", "prompt": "{{ reader }} What is it?", "generate": DATA},
    }
    edges = [{"from": "reader", "to": "triage", "channel": "cache", "fallback": "error"}]
    async with cast(agents, edges, document=DOCUMENT) as players:
        replies = await players.play(keep=["triage"])
    assert replies["triage"].edges["reader"].positions_grafted > 0
    check(replies["triage"].payload)


@pytest.mark.parametrize("include_response", [False, True])
async def test_behind_a_fused_cache(cast: Any, tmp_path: Path, include_response: bool) -> None:
    agents = {
        "one": {"model": "other", "prompt": "Think: {{ q }}", "generate": {"max_new_tokens": 4}},
        "triage": {"model": "small", "prompt": "Well: {{ q }}", "generate": DATA},
    }
    async with cast(agents, q=DOCUMENT) as players:
        name = fuser(tmp_path, receiver=info(players, "triage"), sharer=info(players, "one"), alignment="offsets")
    edge = {"from": "one", "to": "triage", "channel": "cache", "fuser": name, "fallback": "error"}
    async with cast(agents, [{**edge, "include_response": include_response}], q=DOCUMENT) as players:
        replies = await players.play(keep=["triage"])
    assert replies["triage"].edges["one"].positions_fused > 0
    check(replies["triage"].payload)


async def test_a_reply_that_is_cut_off_fails_and_says_what_to_do(cast: Any) -> None:
    agents = {"triage": {"model": "small", "prompt": "{{ q }}", "generate": {**DATA, "max_new_tokens": 3}}}
    async with cast(agents, q="what?") as players:
        with pytest.raises(ModelError, match="'triage' was cut off after 3 tokens.* raise max_new_tokens"):
            await players.play()
    agents["triage"]["generate"] = {**DATA, "stop": ["urgent"]}
    async with cast(agents, q="what?") as players:
        with pytest.raises(ModelError, match="a stop string of agent 'triage' ended its reply"):
            await players.play()
    agents["triage"]["generate"] = DATA
    async with cast(agents, q="a " * 247) as players:
        with pytest.raises(ModelError, match="shorten its prompt"):
            await players.play()


async def test_a_schema_is_compiled_when_the_agent_opens(cast: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    agents = {"triage": {"model": "small", "prompt": "{{ q }}", "generate": {**DATA, "temperature": 1.0}}}
    async with cast(agents, q="what?") as players:
        monkeypatch.setattr("llguidance.LLMatcher", lambda *_: pytest.fail("compiled in the turn"))
        check((await players.play())["triage"].payload)


def test_what_does_not_fit_is_refused_with_the_place() -> None:
    with pytest.raises(ModelError, match=r"'a' does not fit its json_schema at \$.kind: 'x' is not one of"):
        parse_reply("a", '{"kind": "x", "urgent": true}', TICKET)
    for text in ("", "Sure! {}", '{"kind": NaN}', "[" * 100_000):
        with pytest.raises(ModelError, match="'a' is not JSON"):
            parse_reply("a", text, TICKET)
    assert parse_reply("a", "0.3", {"type": "number", "multipleOf": 0.1}) == 0.3
    with pytest.raises(ModelError, match="not a multiple"):
        parse_reply("a", "0.35", {"type": "number", "multipleOf": 0.1})


@pytest.mark.parametrize(
    "text", ['{"a": 1e999}', '{"a": -1e400}', '{"a": Infinity}', '{"a": NaN}', "1e999", "[-Infinity]"]
)
def test_numbers_that_no_json_value_can_be_are_refused(text: str) -> None:
    with pytest.raises(ModelError, match="'a' is not JSON"):
        parse_reply("a", text, {})


@pytest.mark.parametrize(
    ("text", "schema", "fits"),
    [
        ("70000000000000000000000000000000000008", {"type": "integer", "multipleOf": 7}, False),
        ("70000000000000000000000000000000000000", {"type": "integer", "multipleOf": 7}, True),
        ("1e300", {"multipleOf": 1e-5}, True),
        ("0", {"type": "number", "exclusiveMinimum": 0}, False),
        ("1e-300", {"type": "number", "exclusiveMinimum": 0}, True),
        ("1.0", {"type": "integer"}, True),
        ("1.0", {"enum": [1]}, True),
        ("true", {"enum": [1]}, False),
        ('"é"', {"pattern": r"^\p{L}$"}, True),
        ('"\\u00e9"', {"pattern": r"^\p{L}$"}, True),
        ('"٣"', {"pattern": r"^\d$"}, False),
        ('"a\\n"', {"pattern": "a$"}, False),
        ('"2023-02-30"', {"format": "date"}, False),
        ('{"é": 1}', {"patternProperties": {r"^\W$": {"type": "null"}}}, False),
        ('{"b": 1, "a": 2}', {"properties": {"a": {}, "b": {}}, "required": ["a", "b"]}, True),
    ],
)
def test_a_reply_is_checked_by_the_rules_it_would_be_written_by(text: str, schema: dict[str, Any], fits: bool) -> None:
    if fits:
        assert parse_reply("a", text, schema) == json.loads(text)
    else:
        with pytest.raises(ModelError, match="does not fit"):
            parse_reply("a", text, schema)
