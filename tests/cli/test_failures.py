"""With --json a command that fails prints what was wrong and what had finished, as one JSON object on stdout."""

import json
from pathlib import Path
from typing import Any

import pytest

from cachegraph.graph.graph import Graph

from .conftest import Call


def failure(ended: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ended.out)
    assert found["exit_code"] == ended.code
    return found


def test_a_failed_run_prints_its_result_with_the_error_and_the_exit_code(recipes: Path, call: Call) -> None:
    ended = call("run", recipes / "failing.yaml", "-i", "question=x", "--json")
    found = failure(ended)
    assert (found["exit_code"], found["kind"], found["status"]) == (1, "RunError", "failed")
    assert found["error"].startswith("agent 'writer' failed: it took longer than its timeout")
    assert found["agents"]["reader"]["status"] == "finished"
    assert found["agents"]["writer"]["status"] == "failed"
    assert found["edges"] == []
    assert ended.err.endswith(f"cachegraph: {found['error']}\n")


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (("typo.yaml", "-i", "question=x"), 2, "RecipeError"),
        (("duo.yaml",), 2, "InputError"),
        (("duo.yaml", "-i", "question=x", "--nonsense"), 2, "NoSuchOption"),
        (("duo.yaml", "-i", "question=x", "-c", "smoke"), 2, "InputError"),
        (("duo.yaml", "-i", "question=x", "--events", "/nowhere/at/all"), 3, "ConfigError"),
        (("modelless.yaml", "-i", "question=x"), 1, "ModelError"),
        (("strict.yaml", "-i", "question=x"), 1, "ChannelError"),
    ],
)
def test_every_kind_of_failure_is_an_object_with_its_exit_code(
    recipes: Path, call: Call, arguments: tuple[str, ...], code: int, kind: str
) -> None:
    ended = call("run", recipes / arguments[0], *arguments[1:], "--json")
    found = failure(ended)
    assert (ended.code, found["kind"]) == (code, kind)
    assert found["error"]


def test_problems_of_a_recipe_are_listed_with_their_places(recipes: Path, call: Call) -> None:
    (problem,) = failure(call("run", recipes / "typo.yaml", "-i", "question=x", "--json"))["problems"]
    assert (problem["line"], problem["message"]) == (8, "unknown key 'max_new_token'")


def test_an_interrupted_run_prints_how_far_it_came(recipes: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cachegraph.cli.progress_view._follow", interrupted)
    found = failure(call("run", recipes / "duo.yaml", "-i", "question=x", "--json"))
    assert (found["exit_code"], found["kind"], found["status"]) == (130, "KeyboardInterrupt", "not_started")
    assert list(found["agents"]) == ["reader", "writer"]


def test_of_several_channels_those_that_had_finished_are_there(
    recipes: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Graph] = []

    def second_fails(self: Graph, *arguments: Any, **options: Any) -> Any:
        ran.append(self)
        if len(ran) == 2:
            raise MemoryError
        return stream(self, *arguments, **options)

    stream = Graph.stream
    monkeypatch.setattr(Graph, "stream", second_fails)
    ended = call("run", recipes / "duo.yaml", "-i", "question=x", "-c", "text", "-c", "cache", "--json")
    found = failure(ended)
    assert (found["kind"], ended.code, len(found["finished"])) == ("MemoryError", 1, 1)
    assert found["finished"][0]["status"] == "finished"


def test_validate_prints_its_list_and_nothing_else(recipes: Path, call: Call) -> None:
    ended = call("validate", recipes / "typo.yaml", "--json")
    assert ended.code == 2
    assert isinstance(json.loads(ended.out), list)


@pytest.mark.parametrize(
    "arguments",
    [
        ("runs", "show", "no-such-run"),
        ("runs", "resume", "no-such-run"),
        ("fusers", "info", "no-such-fuser"),
        ("train", "no-such-recipe.yaml"),
        ("compare", "no-such-recipe.yaml", "--data", "no-such-rows.jsonl"),
        ("validate", "x.yaml", "--catalogue", "no-such-catalogue.yaml"),
        ("sessions", "show", "no-such-session"),
        ("models", "info", "no-such-model"),
    ],
)
def test_every_command_with_json_prints_an_object_where_it_fails(call: Call, arguments: tuple[str, ...]) -> None:
    found = failure(call(*arguments, "--json"))
    assert found["error"]
    assert found["kind"].endswith("Error")
    assert call(*arguments).out == ""


def test_without_json_stdout_stays_empty_and_a_value_behind_two_dashes_is_no_option(recipes: Path, call: Call) -> None:
    assert call("run", recipes / "failing.yaml", "-i", "question=x").out == ""
    assert call("runs", "show", "--", "--json").out == ""


@pytest.mark.parametrize("name", ["VERSION", "HELP", "INSTALL_COMPLETION", "SHOW_COMPLETION", "DEBUG"])
@pytest.mark.parametrize("value", ["1", "0.1.0"])
def test_options_of_the_program_itself_are_not_taken_from_the_environment(
    call: Call, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"CACHEGRAPH_{name}", value)
    assert json.loads(call("schema").out)["title"] == "A cachegraph recipe"


@pytest.mark.parametrize(
    ("arguments", "variable"),
    [
        (("run", "no-such-recipe.yaml"), "CACHEGRAPH_RUN_AS_JSON"),
        (("run", "no-such-recipe.yaml", "--nonsense"), "CACHEGRAPH_RUN_AS_JSON"),
        (("run",), "CACHEGRAPH_RUN_AS_JSON"),
        (("run", "x.yaml", "--events"), "CACHEGRAPH_RUN_AS_JSON"),
        (("train", "no-such-recipe.yaml"), "CACHEGRAPH_TRAIN_AS_JSON"),
        (("runs", "show", "no-such-run"), "CACHEGRAPH_RUNS_SHOW_AS_JSON"),
        (("--debug", "fusers", "info", "no-such-fuser"), "CACHEGRAPH_FUSERS_INFO_AS_JSON"),
    ],
)
def test_json_that_the_environment_asks_for_is_printed_on_failure(
    call: Call, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], variable: str
) -> None:
    assert call(*arguments).out == ""
    for value in ("0", "false", ""):
        monkeypatch.setenv(variable, value)
        assert call(*arguments).out == ""
    for value in ("1", "TRUE", "yes", "on", "t"):
        monkeypatch.setenv(variable, value)
        assert failure(call(*arguments))["error"]


@pytest.mark.parametrize(
    "arguments",
    [("run", "x.yaml", "--session", "--json"), ("run", "x.yaml", "-i", "--json"), ("runs", "show", "--", "--json")],
)
def test_a_value_that_reads_like_the_option_asks_for_no_json(call: Call, arguments: tuple[str, ...]) -> None:
    ended = call(*arguments)
    assert (ended.code != 0, ended.out) == (True, "")


@pytest.mark.parametrize("arguments", [("--json",), ("rum", "x.yaml", "--json"), ("runs", "lisst", "--json")])
def test_a_command_that_there_is_not_fails_with_an_object_too(call: Call, arguments: tuple[str, ...]) -> None:
    assert failure(call(*arguments))["error"]
