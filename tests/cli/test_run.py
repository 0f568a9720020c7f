"""cachegraph run: what it prints where, and the exit code it ends with."""

import json
from pathlib import Path
from typing import Any

import pytest

from cachegraph.cli import output, progress_view
from cachegraph.graph.run.result import Result

from .conftest import Call, Spawn


def test_a_run_prints_its_reply_on_stdout_and_the_rest_on_stderr(recipes: Path, call: Call) -> None:
    ended = call("run", recipes / "duo.yaml", "-i", "question=what")
    assert ended.code == 0
    assert ended.out.endswith("\n")
    assert "agent" not in ended.out
    for shown in ("reader:", "prefill", "decode", "reader → writer", "cache", "grafted"):
        assert shown in ended.err


def test_quiet_prints_the_reply_and_json_a_result_that_can_be_read_back(recipes: Path, call: Call) -> None:
    quiet = call("run", recipes / "duo.yaml", "-i", "question=what", "-q")
    whole = call("run", recipes / "duo.yaml", "-i", "question=what", "--json")
    assert (quiet.code, quiet.err, whole.code, whole.err) == (0, "", 0, "")
    result = Result.from_json(whole.out)
    assert quiet.out == f"{result.text}\n"
    assert result.edges["reader", "writer"].channel_used == "cache"


def test_several_channels_are_shown_side_by_side_in_one_order(recipes: Path, call: Call) -> None:
    ended = call("run", recipes / "duo.yaml", "-i", "question=what", "-c", "cache", "-c", "text")
    assert ended.code == 0
    assert "side by side" in ended.err
    assert any(line.split() == ["text", "cache"] for line in ended.err.splitlines())
    both = json.loads(call("run", recipes / "duo.yaml", "-i", "question=x", "-c", "cache", "-c", "text", "--json").out)
    assert [each["edges"][0]["channel_used"] for each in both] == ["text", "cache"]


def test_side_by_side_no_channel_finds_what_another_has_read(recipes: Path, call: Call) -> None:
    arguments = ("run", recipes / "duo.yaml", "-i", f"question={'what is it? ' * 40}", "-c", "text", "-c")
    text, cache = json.loads(call(*arguments, "cache", "--json").out)
    reused = [[agent["tokens"]["reused"] for agent in result["agents"].values()] for result in (text, cache)]
    assert text["agents"]["writer"]["tokens"]["prefilled"] > 256  # more than a block, which would be found
    assert reused[0] == [0, 0]
    assert reused[1][1] == cache["edges"][0]["positions_grafted"] > 0


def test_a_fallback_is_reported_with_its_reason_and_fails_the_run_where_it_is_forbidden(
    recipes: Path, call: Call
) -> None:
    ended = call("run", recipes / "fallback.yaml", "-i", "question=x")
    assert ended.code == 0
    assert "text instead of a cache (reader → writer): 'qwen2' and 'llama' are different" in " ".join(ended.err.split())
    strict = call("run", recipes / "strict.yaml", "-i", "question=x")
    assert strict.code == 1
    assert strict.err.startswith("cachegraph: the cache edge 'reader' -> 'writer' can't work: ")


def test_a_failed_run_prints_what_finished_and_why(recipes: Path, call: Call) -> None:
    ended = call("run", recipes / "failing.yaml", "-i", "question=x")
    assert ended.code == 1
    assert "writer (failed)" in ended.err
    assert ended.err.splitlines()[-1].startswith("cachegraph: agent 'writer' failed: it took longer than its timeout")
    assert call("run", recipes / "failing.yaml", "-i", "question=x", "-q").err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["typo.yaml"], "unknown key 'max_new_token'; did you mean 'max_new_tokens'?"),
        (["none.yaml"], "none.yaml"),
        (["misnamed.yaml"], "model 'smolm2-135m-instruct' is not in the catalogue; did you mean"),
        (["duo.yaml"], "input 'question' is missing (Anything.); give it with -i question=..."),
        (["duo.yaml", "-i", "question=x", "-i", "quest=y"], "there is no input 'quest'; did you mean 'question'?"),
        (["duo.yaml", "-i", "question=x", "-i", "question=y"], "the input 'question' is given twice"),
        (["duo.yaml", "-i", "question"], "--input needs NAME=VALUE, got 'question'"),
        (["duo.yaml", "-i", "question=@none.txt"], "the input 'question' can't be read from 'none.txt': No such file"),
        (["duo.yaml", "-i", "question=@binary"], "it is not UTF-8 text"),
        (
            ["duo.yaml", "-i", "question=x", "-c", "cash"],
            "there is no channel 'cash'; choose one of text, cache, both, auto",
        ),
    ],
)
def test_a_wrong_recipe_input_or_channel_is_one_sentence_and_code_2(
    recipes: Path, call: Call, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(recipes)
    (recipes / "binary").write_bytes(b"\xff\xfe\x00")
    ended = call("run", *arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("cachegraph: ")
    assert said in ended.err


def test_an_input_comes_from_a_file_or_from_stdin(recipes: Path, call: Call, tmp_path: Path) -> None:
    (tmp_path / "question.txt").write_text("what is the sea = ?")
    read = [
        Result.from_json(
            call("run", recipes / "duo.yaml", "-i", f"question={value}", "--json", stdin="what is the sea = ?").out
        )
        for value in ("what is the sea = ?", f"@{tmp_path / 'question.txt'}", "@-")
    ]
    assert read[0].text == read[1].text == read[2].text
    assert read[0].agents["writer"].tokens == read[2].agents["writer"].tokens


def test_a_missing_model_is_a_failed_run(recipes: Path, call: Call) -> None:
    ended = call("run", recipes / "modelless.yaml", "-i", "question=x")
    assert ended.code == 1
    assert ended.err.startswith("cachegraph: ")
    assert "none" in ended.err


def test_an_error_has_a_traceback_with_debug_only(recipes: Path, spawn: Spawn) -> None:
    plain = spawn("run", recipes / "typo.yaml")
    debug = spawn("--debug", "run", recipes / "typo.yaml")
    assert "Traceback" not in plain.err
    assert debug.err.startswith("Traceback")
    assert "RecipeError" in debug.err
    assert (plain.code, debug.code) == (2, 2)


def test_a_terminal_gets_no_commands_from_a_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    output.write("a\x1b[2Jb\tc\n\x07é")
    assert capsys.readouterr().out == "a\ufffd[2Jb\tc\n\ufffdé"


def test_replies_and_errors_are_not_read_as_markup(recipes: Path, call: Call) -> None:
    recipe = recipes / "latex.yaml"
    text = (recipes / "duo.yaml").read_text().replace('prompt: "the sky"', "prompt: '\\[/x\\] [bold]'")
    recipe.write_text(
        text.replace("max_new_tokens: 4, ignore_eos: true", "max_new_tokens: 0").replace(
            "cache, carries: reply", "text"
        )
    )
    ended = call("run", recipe, "-i", "question=x")
    assert ended.code == 0
    assert "\\[/x\\] [bold]" in ended.err


def test_events_are_written_as_lines_that_end_with_the_result(recipes: Path, call: Call, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    assert call("run", recipes / "duo.yaml", "-i", "question=x", "-q", "--events", path).code == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [lines[0]["type"], lines[-1]["type"]] == ["run_started", "run_finished"]
    assert {line["schema_version"] for line in lines} == {1}
    assert lines[-1]["result"]["status"] == "finished"
    assert call("run", recipes / "failing.yaml", "-i", "question=x", "-q", "--events", path).code == 1
    assert json.loads(path.read_text().splitlines()[-1])["result"]["status"] == "failed"


def test_events_of_several_channels_follow_each_other(recipes: Path, call: Call, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    assert call("run", recipes / "duo.yaml", "-i", "question=x", "-q", "-c", "text", "-c", "cache", "--events", path)
    edges = [json.loads(line) for line in path.read_text().splitlines() if '"edge_travelled"' in line]
    assert [edge["report"]["channel_used"] for edge in edges] == ["text", "cache"]


def test_a_place_that_events_can_not_be_written_to_is_told_before_the_run(
    recipes: Path, call: Call, tmp_path: Path
) -> None:
    ended = call("run", recipes / "modelless.yaml", "-i", "question=x", "--events", tmp_path / "none" / "run.jsonl")
    assert ended.code == 3
    assert "can't write" in ended.err
    assert "choose another file" in ended.err


def test_a_trace_is_written_of_a_run_that_finished_failed_or_was_interrupted(
    recipes: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def traced(recipe: str, code: int) -> dict[str, Any]:
        path = tmp_path / "trace.json"
        assert call("run", recipes / recipe, "-i", "question=x", "--trace", path).code == code
        return {each["name"]: each for each in json.loads(path.read_text())["traceEvents"] if each["ph"] == "X"}

    whole = traced("duo.yaml", 0)
    assert {"duo", "reader", "writer", "decode", "prefill writer"} <= whole.keys()
    assert "cache" in whole["writer"]["args"]["from reader"]
    assert "timeout" in traced("failing.yaml", 1)["writer"]["args"]["unfinished"]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(progress_view, "_note", interrupt)
    assert traced("duo.yaml", 130)["duo"]["args"]["status"] == "cancelled"
