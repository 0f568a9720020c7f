"""Slips of YAML: the sentence, its place and its remedy are of the slip, not of where libyaml stopped."""

import codecs
from pathlib import Path

import pytest

from cachegraph.errors import RecipeError
from cachegraph.graph.recipe.load import load_recipe, parse_recipe

GOOD = """version: 1
name: solo
inputs: {x: {}}
agents:
  reader:
    model: small
    prompt: "{{ x }}"
output: reader
"""


def problem(text: str) -> str:
    """The only problem of a recipe: its place, what is wrong, and what to do."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text)
    [found] = caught.value.problems
    return f"{found.line}:{found.column} {found.message}; {found.hint}"


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("{{ x }}\n\n{{ x }}", "7:13 a value can't start with '{{'; put it in quotes"),
        ("{% if x %}a{% endif %}", "7:13 a value can't start with '{%'; put it in quotes"),
        ("{# a note #} text", "7:13 a value can't start with '{#'; put it in quotes"),
        ("}", "7:13 a value can't start with '}'; put it in quotes"),
        ("* a", "7:13 a value can't start with '*'; put it in quotes"),
        ("*bold* text", "7:13 a value can't start with '*'; put it in quotes"),
        ("& a", "7:13 a value can't start with '&'; put it in quotes"),
        ("? a", "7:13 a value can't start with '?'; put it in quotes"),
        (": a", "7:13 a value can't start with ':'; put it in quotes"),
        ("`a`", "7:13 a value can't start with '`'; put it in quotes"),
        (
            "- a",
            "7:13 a list can't begin on the line of its key; put each '- ' on a line of its own, or a text in quotes",
        ),
        ("| {{ x }}", "7:13 a text can't follow '|' on its line; start it on the next line, or put it in quotes"),
        (">>> {{ x }}", "7:13 a text can't follow '>' on its line; start it on the next line, or put it in quotes"),
        ("|\n    {{ x }}", "8:5 the text of '|' is not indented; indent its lines further than the key"),
        ("|\n\t{{ x }}", "8:1 a tab can't indent YAML; use spaces"),
        ('"say "hi" {{ x }}"', '7:19 a text ends at its second "; write \\" for one inside the text'),
        ("'don't {{ x }}'", "7:18 a text ends at its second '; write two single quotes for one inside the text"),
        ('"Q: {{ x }}" and more', '7:26 a text ends at its second "; write \\" for one inside the text'),
        ("{a: b:{c}}", "7:18 a text in brackets can't hold this ':'; put the text in quotes"),
        ('"\\xyz"', "7:16 the escape names no character; write the character itself"),
        ("a: {{ x }}", "7:16 a value can't start with '{{'; put it in quotes"),
    ],
)
def test_a_slip_in_a_prompt_is_told_at_its_place(prompt: str, said: str) -> None:
    assert problem(GOOD.replace('"{{ x }}"', prompt)) == said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("model: small", "model:small", "6:10 the key 'model' needs a space behind its ':'; write 'model: ...'"),
        ('prompt: "{{ x }}"', 'prompt:"{{ x }}"', "7:11 the key 'prompt' needs a space behind its ':'"),
        ("name: solo", "name:solo", "2:5 the key 'name' needs a space behind its ':'; write 'name: ...'"),
        ("model: small", "model = small", "6:11 'model' is followed by '=', and a key by ':'; write 'model: ...'"),
        ("  reader:\n", "  reader\n", "5:3 a key without ':'"),
        ("output: reader", "output reader", "8:1 a key without ':'"),
        ("    prompt", "      prompt", "7:13 this line is indented further than the one above"),
        ("    prompt", "  \tprompt", "7:3 a tab can't indent YAML; use spaces"),
        ("    model: small\n", "    model: small\n\t\n", "7:1 a tab can't indent YAML; use spaces"),
        ("model: small", "model:\u00a0small", "6:11 the character U+00A0, no-break space"),
        ("model: small", "model\uff1asmall", "6:10 the character U+FF1A, fullwidth colon"),
        ("    model", "\u3000\u3000model", "6:1 the character U+3000, ideographic space"),
        (
            "output: reader",
            "edges:\n  -{from: a, to: b}\noutput: reader",
            "9:3 an item of a list needs a space behind its '-'",
        ),
        ("version: 1\n", "```yaml\nversion: 1\n", "1:1 this is a fence of Markdown"),
        ("version: 1\n", "%version: 1\n", "1:1 a line can't start with '%'; remove it, or indent and quote a text"),
        ("output: reader\n", "output: reader\n...\nmore\n", "10:1 nothing may follow the end of the document, '...'"),
        ("output: reader", "output: [", "9:1 a value is missing; write one, or close the brackets before"),
        ("output: reader", "output: 'reader\n---\n", "8:9 a quote is opened and never closed; close it"),
        ("name: solo", "name: !a!b solo", "2:7 a tag ('!...') is not part of a recipe"),
    ],
)
def test_a_slip_in_the_form_of_a_recipe_is_told_at_its_place(old: str, new: str, said: str) -> None:
    assert problem(GOOD.replace(old, new)).startswith(said)


@pytest.mark.parametrize("text", ["", " \n\n", "# nothing yet\n", "---\n", "---\n# nothing\n"])
def test_a_file_without_a_key_is_empty(text: str) -> None:
    assert problem(text).endswith(" the file is empty; start with 'version: 1'")


WIDE = "the file is UTF-16 or UTF-32, and a recipe is UTF-8; save it as UTF-8"
BINARY = "the file is not text; name a recipe, a YAML file"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (GOOD.encode("utf-16"), WIDE),
        (GOOD.encode("utf-16-le"), WIDE),
        (codecs.BOM_UTF16_BE + GOOD.encode("utf-16-be"), WIDE),
        (GOOD.encode("utf-32"), WIDE),
        (b"GGUF\x03\0\0\0\x22\0\0", BINARY),
        (b"PK\x03\x04\x14\0\0\0", BINARY),
        (b"\x89PNG\r\n\x1a\n\0\0\0\r", BINARY),
        (b"name: caf\xe9", "the file is not UTF-8: byte 0xe9 can't be read; save it as UTF-8"),
    ],
)
def test_a_file_that_is_no_utf8_text_is_named_as_what_it_is(tmp_path: Path, raw: bytes, said: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(raw)
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    [found] = caught.value.problems
    assert (found.file, f"{found.message}; {found.hint}") == (str(file), said)
    assert found.line > 0


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ("function: 'm:f'\n", "'model' and 'function'"),
        ("graph: other.yaml\n", "'model' and 'graph'"),
        ("pause: Well?\n", "'model' and 'pause'"),
        ("pause: Well?\n    graph: other.yaml\n", "'model', 'graph' and 'pause'"),
    ],
)
def test_an_agent_of_two_kinds_is_one_problem(keys: str, named: str) -> None:
    text = GOOD.replace("    prompt", f"    {keys}    prompt")
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, allow_code=True, allow_paths=True)
    found = [each for each in caught.value.problems if "is one of them" in each.message]
    assert [(each.line, each.message) for each in found] == [
        (7, f"agent 'reader' has {named}, and an agent is one of them")
    ]
    assert not [each for each in caught.value.problems if "unknown key" in each.message]
