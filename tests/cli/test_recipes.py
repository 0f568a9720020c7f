"""cachegraph validate, schema, show: reading recipes without running them; and where their output can't go."""

import json
from pathlib import Path

import pytest

from .conftest import Call


def test_validate_says_what_is_fine_and_names_every_problem(recipes: Path, call: Call) -> None:
    ended = call("validate", recipes / "duo.yaml", recipes / "typo.yaml")
    assert ended.code == 2
    assert ended.out.endswith("duo.yaml: fine, 2 agents, 1 edge\n")
    assert "typo.yaml:8:" in ended.err
    assert call("validate", recipes / "duo.yaml").code == 0


def test_validate_gives_json(recipes: Path, call: Call) -> None:
    ended = call("validate", recipes / "duo.yaml", recipes / "typo.yaml", "--json")
    assert ended.code == 2
    assert ended.err == ""
    fine, wrong = json.loads(ended.out)
    assert (fine["valid"], wrong["valid"]) == (True, False)
    assert wrong["problems"][0]["line"] == 8


def test_a_problem_s_excerpt_fits_a_terminal_and_its_caret_stands_below_the_place(recipes: Path, call: Call) -> None:
    lines = call("validate", recipes / "typo.yaml").err.splitlines()
    source, caret = lines[-2:]
    assert max(map(len, lines[-2:])) < 80
    assert source[caret.index("^") :].startswith("max_new_token")


def test_a_wrong_hub_fuser_is_a_problem_with_a_place(recipes: Path, call: Call) -> None:
    path = recipes / "hub.yaml"
    path.write_text((recipes / "duo.yaml").read_text().replace("carries: reply", "fuser: hub:org"))
    ended = call("validate", path)
    assert ended.code == 2
    assert "hub.yaml:10:55: 'hub:org' is not a fuser of the hub; write hub:ORGANISATION/NAME" in ended.err
    path.write_text((recipes / "duo.yaml").read_text().replace("carries: reply", "fuser: hub:org/name/fuser"))
    assert call("validate", path).code == 0


@pytest.mark.parametrize(("format", "start"), [("text", "duo"), ("mermaid", "flowchart"), ("svg", "<svg")])
def test_show_draws(recipes: Path, call: Call, tmp_path: Path, format: str, start: str) -> None:
    ended = call("show", recipes / "duo.yaml", "-f", format)
    assert ended.code == 0
    assert start in ended.out
    call("show", recipes / "duo.yaml", "-f", format, "-o", tmp_path / "drawing")
    assert (tmp_path / "drawing").read_text() == ended.out


def test_show_of_a_wrong_recipe_is_code_2(recipes: Path, call: Call) -> None:
    ended = call("show", recipes / "typo.yaml")
    assert (ended.code, ended.out) == (2, "")


def test_schema_is_json(call: Call) -> None:
    assert json.loads(call("schema").out)["title"] == "A cachegraph recipe"


def test_output_that_can_t_be_written_is_a_matter_of_this_machine_and_leaves_nothing(
    call: Call, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("kept")
    for place in (tmp_path / "none" / "x.json", tmp_path / "file" / "x.json", tmp_path):
        ended = call("schema", "-o", place)
        assert ended.code == 3
        assert ended.err.startswith("cachegraph: can't write ")
        assert ended.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_models_list_is_json_and_an_unknown_model_one_sentence(call: Call) -> None:
    listed = json.loads(call("models", "list", "--json").out)
    assert {"smollm2-135m-instruct", "gemma-3-270m"} <= {each["name"] for each in listed}
    for command in ("pull", "info"):
        ended = call("models", command, "smollm2-135m-instruc")
        assert ended.code == 1
        assert "did you mean 'smollm2-135m-instruct'" in ended.err


def test_a_word_that_is_no_command_or_option_is_code_2(call: Call) -> None:
    assert call("rum").code == 2
    assert call("run", "x.yaml", "--chanel", "text").code == 2
