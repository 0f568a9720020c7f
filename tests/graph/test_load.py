import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from cachegraph.agents.spec import AgentSpec
from cachegraph.errors import RecipeError
from cachegraph.graph.recipe.load import load_recipe, parse_recipe
from cachegraph.graph.recipe.spec import GraphSpec

GOOD = """\
version: 1
name: duo
models:
  small: smollm2
inputs:
  question: {}
agents:
  expert:
    model: small
    prompt: "Facts: {{ question }}"
  answerer:
    model: small
    prompt: |
      {{ expert }}
      {{ question }}
edges:
  - {from: expert, to: answerer}
output: answerer
"""


def agent(spec: GraphSpec, name: str) -> AgentSpec:
    found = spec.agents[name]
    assert isinstance(found, AgentSpec)
    return found


def problems(text: str, folder: Path | None = None, **options: Any) -> list[str]:
    """Each problem as 'line:column message; hint'."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r.yaml", folder, **options)
    return [f"{p.line}:{p.column} {p.message}" + (f"; {p.hint}" if p.hint else "") for p in caught.value.problems]


def broken(old: str, new: str, **options: Any) -> list[str]:
    assert old in GOOD
    return problems(GOOD.replace(old, new, 1), **options)


def test_a_good_recipe_loads() -> None:
    spec = parse_recipe(GOOD)
    assert isinstance(spec, GraphSpec)
    assert spec.edges[0].sender == "expert"
    assert agent(spec, "answerer").prompt == "{{ expert }}\n{{ question }}\n"


def test_a_problem_shows_its_line_a_caret_and_what_was_meant() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(GOOD.replace('prompt: "', 'promt: "'), "r.yaml")
    assert str(caught.value) == (
        "r.yaml:10:5: unknown key 'promt'; did you mean 'prompt'?\n        promt: \"Facts: {{ question }}\"\n        ^"
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version: 1", "version: 2", "1:10 'version' must be 1, got 2"),
        ("version: 1", "version: yes", "1:10 'version' must be 1, got yes"),
        ("version: 1", "version: '1'", "1:10 'version' must be 1, got '1'; write it without quotes"),
        ("version: 1\n", "", "1:1 the recipe needs the key 'version'"),
        ("name: duo", "name: a b", "2:7 'name' must be letters, digits, '.', '_' and '-' (at most 100), got 'a b'"),
        ("name: duo", "name: on", "(at most 100), got on; write 'on' in quotes"),
        ("question: {}", "question: {descripton: x}", "6:14 unknown key 'descripton'; did you mean 'description'?"),
        ("inputs:", "imputs:", "5:1 unknown key 'imputs'; did you mean 'inputs'?"),
        ("model: small", "model: smal", "9:12 model 'smal' is neither a key of 'models' nor in the catalogue; did you"),
        ("    model: small\n", "    model: small\n    temperature: 1\n", "write it under 'generate'"),
        ("    model: small\n", "    model: small\n    generate: {max_new_tokens: many}\n",
         "10:32 'max_new_tokens' must be a whole number of 0 or more, got 'many'"),
        ("    model: small\n", "    model: small\n    generate: {max_new_tokens: yes}\n", "of 0 or more, got yes"),
        ("    model: small\n", "    model: small\n    generate: {temperature: .nan}\n", "from 0 to 10, got .nan"),
        ("    model: small\n", "    model: small\n    chat: maybe\n", "must be 'auto' or true or false, got"),
        ("    model: small\n", "    model: small\n    system: no\n", "must be text, got no; write 'no' in quotes"),
        ("to: answerer", "to: answerr", "17:24 edge 'expert' -> 'answerr' names 'answerr', which is not an agent; did"),
        ("to: answerer", "too: answerer", "17:20 unknown key 'too'; did you mean 'to'?"),
        ("to: answerer", "to: answerer, channel: cash", "17:43 'channel' must be 'text', 'cache', 'both' or"),
        ("to: answerer", "to: answerer, channel: on", "got on"),
        ("to: answerer", "to: answerer, fuser: x", "only edges with 'channel: cache', 'both' or 'auto' have it"),
        ("to: answerer}", "to: answerer}\n  - {from: expert, to: answerer, channel: cache}", "18:5 there is already"),
        ("to: answerer}", "to: answerer}\n  - {from: expert, to: expert}", "leads back to where it starts"),
        ("output: answerer", "output: answrer", "18:9 output 'answrer' is not an agent of this recipe; did"),
        ("output: answerer", "output: expert", "11:3 agent 'answerer' is never read"),
        ("{from: expert, to: answerer}", "3", "17:5 edge 1 must be a mapping, got 3; write '{from: N"),
        ("{from: expert, to: answerer}", "a -> b", "got 'a -> b'; write '{from: NAME, to: NAME}'"),
        ("inputs:\n  question: {}", "inputs: [question]", "'inputs' must be a mapping, got a list; write '{NAME: {}}'"),
        ("question: {}", "question: Why?", "6:13 'question' must be a mapping, got 'Why?'; write '{default: ...}'"),
        ("    model: small\n", "    model: {source: x}\n", "got a mapping; write the mapping under 'models'"),
        ("    model: small\n", "    model: small\n    generate: {stop: END}\n", "got 'END'; put it in square brackets"),
        ("    model: small\n", "    model: small\n    generate: {stop: [[]]}\n", "item 1 of 'stop' must be text"),
        ("    model: small\n", "    model: small\n    schema: {}\n", "'generate: {json_schema: ...}'"),
        ("    model: small\n", "    model: small\n    temprature: 1\n", "did you mean 'temperature'? Write it under"),
        ("{from: expert, to: answerer}", "{from: \u201ca\u201d: y: z}", "17:12 the typographic quote '\u201c'"),
        ("\"Facts: {{ question }}\"", "{{ question }}", "10:13 'prompt' must be text, got a mapping; put"),
        ("\"Facts: {{ question }}\"", "{{ question }} x", "10:13 a value can't start with '{{'; put it in quotes"),
        ("  expert:\n", "  bad-name:\n", "8:3 'bad-name' can't name one of the 'agents'"),
        ("  expert:\n", "  question:\n", "8:3 'question' is both an agent and an input"),
        ("  question: {}", "  question: {}\n  loop: {}", "7:3 input name 'loop' means something else in a template"),
        ("small: smollm2", "small:", "must be text that names a model, or a mapping with 'source' or"),
        ("small: smollm2", "small: {sauce: x}", "unknown key 'sauce'; did you mean 'source'?"),
        ("small: smollm2", "small: {source: x, device: gpu}", "'device' must be 'auto', 'cpu', 'mps', 'cuda' or a GPU"),
        ("small: smollm2", "small: {source: x, replicas: {min: 3, max: 1}}",
         "'replicas': max is 1 and min 3; max must be at least min"),
        ("small: smollm2", "small: {source: x, weights: int8, device_map: auto}",
         "'small': weights: int8 is for a model on one device; leave out weights or device_map"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_place(old: str, new: str, said: str) -> None:
    assert any(said in line for line in broken(old, new)), broken(old, new)


def test_a_misspelt_agents_key_is_the_only_problem_of_edges_and_output() -> None:
    assert [line.split(";")[0] for line in broken("agents:", "agnets:")] == ["7:1 unknown key 'agnets'"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("      {{ expert }}\n", "      hi\n        {{ exprt }}\n",
         "15:12 the prompt of agent 'answerer' names 'exprt', which is neither an input nor an agent; did you mean"),
        ("  - {from: expert, to: answerer}", "  []",
         "but no edge leads from there; add '- {from: expert, to: answerer}' to 'edges'"),
        ("{{ expert }}", "{{ answerer }}", "14:10 the prompt of agent 'answerer' names the agent itself"),
        ("{{ question }}\"", "\\n{{ questio }}\"", "10:26 the prompt of agent 'expert' names 'questio'"),
        ("{{ question }}\"", "{{ question | uper }}\"", "10:35 prompt of agent 'expert': unknown filter 'uper'"),
        ("{{ question }}\"", "{% include 'x' %}\"", "10:24 prompt of agent 'expert': a prompt can't hold 'include'"),
        ("{{ question }}\"", "{% for x in y %}\"", "prompt of agent 'expert': template: '{% for %}' is never closed"),
    ],
)  # fmt: skip
def test_a_template_s_problem_points_into_the_file(old: str, new: str, said: str) -> None:
    assert any(said in line for line in broken(old, new)), broken(old, new)


@pytest.mark.parametrize(
    ("generate", "place", "said", "hint"),
    [
        (
            "{json_schema: {properties: {kind: {typ: string}}}}",
            "typ",
            "json_schema of agent 'expert': 'typ' is not a keyword of a JSON schema that can be enforced",
            "did you mean 'type'?",
        ),
        (
            "{json_schema: {properties: {kind: {type: strng}}}}",
            "{type: strng",
            "json_schema of agent 'expert': the schema can't be enforced: Invalid type: strng",
            None,
        ),
        (
            "{ignore_eos: true, json_schema: {type: object}}",
            "true",
            "agent 'expert' has a json_schema, which its 'ignore_eos' leaves no way to fulfil",
            "leave out 'ignore_eos', or the schema",
        ),
        (
            "{max_new_tokens: 0, json_schema: {type: object}}",
            "0",
            "agent 'expert' has a json_schema, which its 'max_new_tokens' leaves no way to fulfil",
            "leave out 'max_new_tokens', or the schema",
        ),
        (
            "{min_new_tokens: 5, json_schema: {type: object}}",
            "5",
            "agent 'expert' has a json_schema, and that alone says how short a reply may be",
            "leave it out; the schema may have minLength and minItems",
        ),
        ("{json_schema: true}", "true", "'json_schema' must be a mapping, got true", None),
    ],
)
def test_a_json_schema_that_can_t_be_enforced_is_refused_where_it_stands(
    generate: str, place: str, said: str, hint: str | None
) -> None:
    line = f"    generate: {generate}"
    found = broken('    prompt: "Facts', f'{line}\n    prompt: "Facts')
    assert found == [f"10:{line.index(place) + 1} {said}" + (f"; {hint}" if hint else "")]


def test_all_problems_are_told_at_once_in_the_order_of_the_file() -> None:
    text = GOOD.replace("version: 1", "version: 3").replace("question: {}", "question: {x: 1}")
    text = text.replace("{{ expert }}", "{{ exprt }}").replace("output: answerer", "output: nobody")
    lines = problems(text)
    assert [line.split(":")[0] for line in lines] == ["1", "6", "14", "18"]


def test_cycles_are_named() -> None:
    text = GOOD.replace("edges:", "edges:\n  - {from: answerer, to: expert}")
    assert any("cycle without a bound: 'expert' -> 'answerer' -> 'expert'" in line for line in problems(text))


def test_catalogue_names_are_checked_where_the_catalogue_is_at_hand() -> None:
    assert parse_recipe(GOOD, known_models=["smollm2"])
    said = problems(GOOD, known_models=["smollm3"])
    assert said == ["4:10 model 'smollm2' is not in the catalogue; did you mean 'smollm3'?"]
    assert parse_recipe(GOOD.replace("smollm2", "Qwen/Qwen3-0.6B"), known_models=["smollm3"])


def test_a_model_may_be_named_without_the_models_section() -> None:
    spec = parse_recipe(GOOD.replace("model: small", "model: smollm2-135m"))
    assert agent(spec, "expert").model == "smollm2-135m"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "1:1 the file is empty; start with 'version: 1'"),
        ("name: a\nfor: g.yaml\nfuser: {}\n", "2:1 this recipe declares a training, not a graph; start it with"),
        ("- a\n", "1:1 a recipe is a mapping of keys to values"),
        ("a: 1\na: 2\n", "2:1 duplicate key 'a'; line 1 has it first; remove one"),
        ("a:\n\tb: 1\n", "2:1 a tab can't indent YAML; use spaces"),
        ("a: b: c\n", "1:5 a second ': ' in this line"),
        ("a: 'x\n", "1:4 a quote is opened and never closed"),
        ("a: [1\nb: 2\n", "2:2 a list or mapping in brackets is not closed here"),
        ("a: 1\n---\nb: 2\n", "2:1 a recipe is one YAML document"),
        ("a: *x\n", "1:4 alias '*x' has no finished anchor '&x' before it"),
        ("a: &x [*x]\n", "1:8 alias '*x' has no finished anchor '&x' before it"),
        ("a: !!python/object:os.system {}\n", "1:4 the tag 'tag:yaml.org,2002:python/object:os.system' is not part"),
        ("a: !secret x\n", "1:4 the tag '!secret' is not part of a recipe"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "3:3 merge keys ('<<') are not part of a recipe"),
        ("on: 1\n", "1:1 the key on is a truth value in YAML, and keys are text; write 'on' in quotes"),
        ("? [1]\n: 2\n", "1:3 a list or mapping can't be a key"),
        ("a: b\x01\n", "1:5 the file holds the control character '\\x01'; remove it"),
        ("a: " + "[" * 100, "1:67 the file nests deeper than 64 levels"),
        ("a: '\\ud800\n", "1:4 a quote is opened and never closed"),
        ('a: "\\ud800"\n', "the escape names no character"),
        ("a: \ud800\n", "1:4 the file holds the control character '\\ud800'"),
        ("a: " + "9" * 5000 + "\n", "1:4 this can't be read as 'int'"),
    ],
)
def test_what_is_no_recipe_s_yaml_is_refused(text: str, said: str) -> None:
    assert any(said in line for line in problems(text)), problems(text)


def test_an_alias_stands_for_a_whole_value() -> None:
    text = GOOD.replace('prompt: "Facts', 'generate: &g {seed: 3}\n    prompt: "Facts').replace(
        "    prompt: |", "    generate: *g\n    prompt: |"
    )
    assert agent(parse_recipe(text), "answerer").generate.seed == 3


@pytest.mark.parametrize(
    "bomb",
    [
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)),
        "- " * 5_000_000,
        "[" * 5_000_000,
        "{a: " * 1_000_000,
        "? " + "a" * 5_000_000 + "\n: 1\n",
        GOOD.replace("Facts", "{{ " + "a" * 5_000_000 + " }}"),
        GOOD.replace("Facts", "{{ question }}" * 500_000),
        GOOD.replace("expert, to", "x" * 1_000_000 + ", to"),
    ],
    ids=["aliases", "deep lists", "deep brackets", "deep braces", "long key", "long name", "much code", "long agent"],
)
def test_a_bomb_ends_quickly_in_a_short_error(bomb: str) -> None:
    start = time.process_time()
    with pytest.raises(RecipeError) as caught:
        parse_recipe(bomb)
    assert time.process_time() - start < 10  # measured: below 1 s
    assert len(str(caught.value)) < 10_000


def chain(length: int) -> str:
    agents = "".join(
        f"  a{i}: {{model: m, prompt: '{{{{ {'q' if i == 0 else f'a{i - 1}'} }}}} and more'}}\n" for i in range(length)
    )
    edges = "".join(f"  - {{from: a{i - 1}, to: a{i}}}\n" for i in range(1, length))
    return f"version: 1\nname: x\ninputs: {{q: {{}}}}\nagents:\n{agents}edges:\n{edges}output: a{length - 1}\n"


@pytest.mark.parametrize(
    "change", [("", ""), ("prompt", "promt"), ("{{ a", "{{ b"), ("from: a", "from: b"), ("model: m", "model: 3")]
)
def test_ten_thousand_agents_are_checked_in_seconds_right_or_wrong(change: tuple[str, str]) -> None:
    text = chain(10_000).replace(*change) if change[0] else chain(10_000)
    start = time.process_time()
    if change[0]:
        assert 100 <= len(problems(text)) <= 201
    else:
        assert len(parse_recipe(text).agents) == 10_000
    assert time.process_time() - start < 20  # measured: 2.5 s


@pytest.mark.parametrize("name", ["question", "qestion"])
def test_a_prompt_of_ten_megabytes_is_checked_in_seconds(name: str) -> None:
    text = GOOD.replace("      {{ expert }}\n", "      word: { and {\n" * 600_000 + "      {{ expert }} {{ NAME }}\n")
    text = text.replace("NAME", name)
    start = time.process_time()
    if name == "question":
        prompt = agent(parse_recipe(text), "answerer").prompt
        assert prompt is not None
        assert len(prompt) > 8_000_000
    else:
        (said,) = problems(text)
        assert said.startswith("600014:23 the prompt of agent 'answerer' names 'qestion'")
    assert time.process_time() - start < 20  # measured: 1.5 s


def test_files_that_are_no_recipes_are_refused(tmp_path: Path) -> None:
    for name, said in (
        ("gone.yaml", "there is no such file"),
        (".", "it is not a regular file"),
        ("a\0b", "no such file"),
    ):
        with pytest.raises(RecipeError, match=said):
            load_recipe(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(RecipeError, match="not a regular file"):
        load_recipe(tmp_path / "pipe.yaml")
    (tmp_path / "latin.yaml").write_bytes("version: 1\nname: café".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"latin.yaml:2:10: the file is not UTF-8: byte 0xe9 can't be read"):
        load_recipe(tmp_path / "latin.yaml")
    with (tmp_path / "big.yaml").open("wb") as file:
        file.truncate(64_000_001)
    with pytest.raises(RecipeError, match="larger than 64 MB"):
        load_recipe(tmp_path / "big.yaml")


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_recipe(tmp_path / "r.yaml") == parse_recipe(GOOD)


def test_problems_never_carry_control_characters_to_a_terminal() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(GOOD.replace("small: smollm2", 'small: {source: "\\e[2J", "\\e]0;x": 1}'))
    assert "\x1b" not in str(caught.value)
    with pytest.raises(RecipeError) as caught:
        parse_recipe("a: \x1b[2J")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("written", "meant"), [("1e-3", "1.0e-3"), ("2E5", "2.0e+5"), ("-1.e3", "-1.0e+3"), ("1.5e2", "1.5e+2")]
)
def test_a_number_that_yaml_takes_for_text_is_shown_as_yaml_wants_it(written: str, meant: str) -> None:
    text = (
        f"version: 1\nname: t\nagents:\n  a:\n    model: m\n    prompt: x\n    generate: {{temperature: {written}}}\n"
    )
    with pytest.raises(RecipeError) as caught:
        parse_recipe(f"{text}output: a\n")
    said = str(caught.value)
    assert f"got {written}; YAML 1.1 takes {written} for text; write {meant}" in said
    assert yaml.safe_load(meant) == float(written)


def test_json_is_yaml_with_its_pairs_of_escapes() -> None:
    prompt = "a😀 \\ 😀\\n\U0010ffff"
    recipe = {"version": 1, "name": "j", "agents": {"a": {"model": "m", "prompt": prompt}}, "output": "a"}
    assert agent(parse_recipe(json.dumps(recipe)), "a").prompt == prompt
    text = json.dumps({**recipe, "description": "😀😀", "agent": 1})
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text)
    assert [problem.column for problem in caught.value.problems] == [text.index('"agent":') + 1]
    assert caught.value.problems[0].source == text


@pytest.mark.parametrize("written", ['"\\ud83d"', '"\\ude00\\ud83d"', '"x\\ud83d\\ude00"'])
def test_an_escape_that_names_no_character_is_refused_with_what_to_do(written: str) -> None:
    with pytest.raises(RecipeError, match="write the character itself"):
        parse_recipe(f"version: 1\nname: t\ndescription: {written}\n")
