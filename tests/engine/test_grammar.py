"""Replies of a model that knows nothing obey their schema all the same, or are said to have been cut."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from tiny import config_of, save_model, save_tokenizer

from cachegraph.engine.engine import Engine
from cachegraph.engine.model.load import load_model
from cachegraph.engine.request import Generated
from cachegraph.engine.sampling.grammar import allowed
from cachegraph.engine.sampling.json_schema import find_flaw
from cachegraph.engine.spec import GenerateSpec
from cachegraph.errors import ModelError

TICKET = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["bug", "idea", "question"]},
        "urgent": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
    },
    "required": ["kind", "urgent", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["eos", "no_eos"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Of a model whose vocabulary is larger than its tokenizer's, with and without a token that ends a reply."""
    folder = tmp_path_factory.mktemp("tiny")
    config = config_of("llama")
    config.vocab_size = 333
    config.eos_token_id = 1 if request.param == "eos" else None
    save_model(config, folder)
    save_tokenizer(folder)
    engine = Engine(load_model(folder))
    yield engine
    engine.close()


def write(engine: Engine, schema: dict[str, Any], **values: Any) -> Generated:
    spec = GenerateSpec(**{"max_new_tokens": 80, "json_schema": schema, **values})

    async def run() -> Generated:
        return await engine.generate([5, 6, 7], spec=spec)

    return anyio.run(run)


NUMBERS = st.integers(-20, 20)
LEAVES = st.one_of(
    st.sampled_from([{"type": kind} for kind in ("boolean", "null", "integer", "number")]),
    st.builds(lambda n, least: {"type": "string", "minLength": least, "maxLength": n}, st.integers(2, 6), NUMBERS),
    st.builds(lambda a, b: {"type": "integer", "minimum": min(a, b), "maximum": max(a, b)}, NUMBERS, NUMBERS),
    st.builds(lambda a: {"type": "number", "exclusiveMinimum": a, "maximum": a + 1}, NUMBERS),
    st.sampled_from([{"type": "integer", "multipleOf": 7}, {"type": "number", "multipleOf": 0.5}]),
    st.builds(
        lambda values: {"enum": values}, st.lists(st.one_of(NUMBERS, st.text(max_size=4), st.none()), max_size=3)
    ),
    st.sampled_from(
        [{"type": "string", "pattern": "^[a-f]{2}$"}, {"type": "string", "format": "date"}, {"const": [1]}]
    ),
    st.sampled_from([{"type": "string", "not": {"const": "a"}}, {"type": ["integer", "null"]}]),
)


def _nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    objects = st.builds(
        lambda parts, needed, more: {
            "type": "object",
            "properties": parts,
            "required": sorted(parts)[:needed],
            "additionalProperties": more,
        },
        st.dictionaries(st.text('abé"\\ ', min_size=1, max_size=3), inner, max_size=3),
        st.integers(0, 3),
        st.one_of(st.just(False), st.just(False), inner),
    )
    lists = st.builds(
        lambda items, most, unique: {"type": "array", "items": items, "maxItems": most, **unique},
        inner,
        st.integers(0, 3),
        st.sampled_from([{}, {}, {"uniqueItems": True}, {"minItems": 1}]),
    )
    return st.one_of(objects, lists, st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    schema=st.recursive(LEAVES, _nested, max_leaves=5), seed=st.integers(0, 10**6), temperature=st.sampled_from([0, 1])
)
def test_a_reply_obeys_any_schema_that_is_accepted(
    engine: Engine, schema: dict[str, Any], seed: int, temperature: float
) -> None:
    assume(find_flaw(schema) is None)
    done = write(engine, schema, seed=seed, temperature=temperature)
    event("whole" if done.whole else "cut")
    if done.whole:
        jsonschema.validate(json.loads(done.text), schema, jsonschema.Draft202012Validator)
    else:
        assert done.finish == "length"


@pytest.mark.parametrize("values", [{}, {"temperature": 2.0, "seed": 3, "top_p": 0.9, "repetition_penalty": 1.3}])
def test_bounded_schemas_are_fulfilled_and_end_by_themselves(engine: Engine, values: dict[str, Any]) -> None:
    done = write(engine, TICKET, **values)
    assert (done.finish, done.whole) == ("stop", True)
    jsonschema.validate(json.loads(done.text), TICKET)
    assert len(done.ids) < 80


def test_a_reply_that_is_cut_says_so(engine: Engine) -> None:
    done = write(engine, TICKET, max_new_tokens=4)
    assert (done.finish, done.whole) == ("length", False)
    done = write(engine, TICKET, stop=["urgent"])
    assert (done.finish, done.whole) == ("stop", False)


def test_rows_with_and_without_a_schema_share_their_steps(engine: Engine) -> None:
    """And each gets what it gets alone."""
    specs = [
        GenerateSpec(max_new_tokens=40, json_schema=TICKET),
        GenerateSpec(max_new_tokens=40),
        GenerateSpec(max_new_tokens=40, json_schema={"type": "boolean"}, temperature=1.0, seed=1),
        GenerateSpec(max_new_tokens=40, temperature=1.0, seed=2, repetition_penalty=1.2),
        GenerateSpec(max_new_tokens=40, json_schema=TICKET, temperature=1.0, seed=5),
    ]
    found: dict[int, list[int]] = {}

    async def row(index: int) -> None:
        found[index] = list((await engine.generate([9, 8, index], spec=specs[index])).ids)

    async def together() -> None:
        async with anyio.create_task_group() as group:
            for index in range(len(specs)):
                group.start_soon(row, index)

    anyio.run(together)
    all_at_once = dict(found)
    for index in range(len(specs)):
        anyio.run(row, index)
    assert found == all_at_once


def test_a_schema_is_compiled_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    import llguidance

    write(engine, TICKET)
    monkeypatch.setattr(llguidance, "LLMatcher", lambda *_: pytest.fail("compiled again"))
    assert write(engine, json.loads(json.dumps(TICKET))).whole


def test_masks_are_spread_to_the_models_vocabulary() -> None:
    mask = torch.tensor([0b101 - 2**31], dtype=torch.int64).to(torch.int32)
    expected = {0, 2, 31}
    for vocabulary in (20, 32, 40):
        (row,) = allowed([mask], vocabulary, torch.device("cpu")).tolist()
        assert {index for index, may in enumerate(row) if may} == {each for each in expected if each < vocabulary}
        assert len(row) == vocabulary


def test_a_model_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    engine = Engine(load_model(save_model(config_of("llama"), tmp_path), name="mute"))
    with pytest.raises(ModelError, match="'mute' has no tokenizer"):
        write(engine, TICKET)
    engine.close()
