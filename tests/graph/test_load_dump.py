import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cachegraph.graph.recipe.json_schema import recipe_schema, schema_text
from cachegraph.graph.recipe.load import dump_recipe, load_recipe, parse_recipe
from cachegraph.graph.recipe.spec import GraphSpec

RECIPES = Path(__file__).parents[2] / "recipes"
SHIPPED = [path for path in sorted(RECIPES.glob("*.yaml")) if "\nagents:" in path.read_text(encoding="utf-8")]
SCHEMA = jsonschema.Draft202012Validator(recipe_schema())  # a valid one: test_the_schema_is_one

# Text without template code; all that YAML finds strange is in it.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{\ufdd0"), max_size=30) | st.sampled_from(
    ["yes", "on", "null", "1_0", "1:30", "2024-01-01", "a: b", "- a", "#", "'", '"', " a\n b", "a \nb", "\n", "\na",
     "a\n\nb\n\n", "\n a", "a\r\nb", "\x85", "\u2028a", "\ufeff", "&a", "*a", "!a", "|", ">", "%", "@", "`", "=", "<<",
     "\ta\n\tb"]
)  # fmt: skip
NAMES = ["a", "b", "c", "d", "on", "y", "Null", "_1"]


@st.composite
def specs(draw: st.DrawFn) -> GraphSpec:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1, max_size=5))
    generate = st.fixed_dictionaries(
        {},
        optional={
            "max_new_tokens": st.integers(0, 999),
            "temperature": st.floats(0, 10),
            "seed": st.none() | st.integers(-5, 5),
            "stop": st.lists(TEXT.filter(bool), max_size=3).map(tuple),
        },
    )
    agent = st.fixed_dictionaries(
        {"model": st.sampled_from(["m", "org/name", "yes"]), "prompt": TEXT},
        optional={"system": TEXT, "generate": generate, "chat": st.sampled_from(["auto", True, False])},
    )
    edge = st.fixed_dictionaries(
        {"channel": st.sampled_from(["cache", "both", "auto"])},
        optional={"fuser": st.just("f"), "fallback": st.just("error")},
    )
    chain = [
        {"from": left, "to": right, **draw(edge | st.just({}))} for left, right in zip(names, names[1:], strict=False)
    ]
    model = st.just("n") | st.fixed_dictionaries(
        {"source": st.just("s")}, optional={"revision": TEXT, "dtype": st.just("float32")}
    )
    data: dict[str, Any] = {
        "version": 1,
        "name": draw(st.sampled_from(["x", "on", "1.0", "0x1"])),
        "description": draw(TEXT),
        "models": draw(st.dictionaries(st.sampled_from(["m", "n"]), model)),
        "inputs": {name: {"default": draw(TEXT)} for name in draw(st.sets(st.sampled_from(["q", "no"])))},
        "agents": {name: draw(agent) for name in names},
        "edges": tuple(chain),
        "output": names[-1],
        "limits": draw(st.fixed_dictionaries({}, optional={"timeout": st.floats(0.1, 9)})),
    }
    return GraphSpec.model_validate(data)


@settings(deadline=None)
@given(specs())
def test_what_is_written_reads_back_as_the_same_graph(spec: GraphSpec) -> None:
    assert parse_recipe(dump_recipe(spec)) == spec


@settings(deadline=None, max_examples=50)
@given(specs())
def test_what_is_written_satisfies_the_schema(spec: GraphSpec) -> None:
    SCHEMA.validate(yaml.load(dump_recipe(spec), yaml.CSafeLoader))


def test_a_recipe_is_written_the_way_people_write_it() -> None:
    text = """\
version: 1
name: duo
description: Two of them.

models:
  small: smollm2

inputs:
  question: {}

agents:
  expert:
    model: small
    system: Be brief.
    prompt: |
      Facts about
      {{ question }}
    generate: {max_new_tokens: 48}
  answerer:
    model: small
    prompt: '{{ expert }}'

edges:
  - {from: expert, to: answerer, channel: cache, fuser: f}

output: answerer
"""
    assert dump_recipe(parse_recipe(text)) == text


def test_the_schema_beside_the_recipes_is_up_to_date() -> None:
    assert (RECIPES / "recipe.schema.json").read_text(encoding="utf-8") == schema_text(), (
        "write it again: cachegraph schema --output recipes/recipe.schema.json"
    )


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(schema_text()))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_satisfies_the_schema(path: Path) -> None:
    spec = load_recipe(path, allow_code=True)
    assert spec.name == path.stem
    SCHEMA.validate(yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader))


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"unknown": 1},
        {"agents": {}},
        {"agents": {"bad-name": {"model": "m", "prompt": ""}}},
        {"agents": {"a": {"model": "m"}}},
        {"edges": [{"from": "a", "to": "b", "fuser": "f"}]},
        {"edges": [{"from": "a", "to": "b", "channel": "cash"}]},
        {"models": {"m": {"source": "x", "base_url": "https://x"}}},
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(change: dict[str, Any]) -> None:
    good = {"version": 1, "name": "x", "agents": {"a": {"model": "m", "prompt": ""}}, "output": "a"}
    jsonschema.validate(good, recipe_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**good, **change}, recipe_schema())
