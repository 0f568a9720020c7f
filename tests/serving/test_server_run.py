"""`cachegraph run --server`: a recipe on a server that has its models loaded."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from live_server import Running, served
from server_graphs import scripted_duo

from cachegraph.agents.scripted import ScriptedAgent, scripted
from cachegraph.cli import main
from cachegraph.graph.graph import Graph
from cachegraph.serving.auth import read_keys


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "duo.yaml"
    scripted_duo(models={"m": {"source": "./m"}}).to_yaml(file)
    return file


def run(monkeypatch: pytest.MonkeyPatch, recipe: Path, url: str, *options: str) -> int:
    return run_command(monkeypatch, "cachegraph", "run", str(recipe), "--server", url, "-i", "question=why?", *options)


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", list(arguments))
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_reply_is_the_servers(
    scripted_server: Running, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, recipe, scripted_server.url) == 0
    out, err = capsys.readouterr()
    assert out == "answerer(expert(why?))\n"
    assert "expert" in err
    assert run(monkeypatch, recipe, scripted_server.url, "--quiet") == 0
    assert capsys.readouterr().out == "answerer(expert(why?))\n"
    assert run(monkeypatch, recipe, scripted_server.url, "--json", "-c", "text") == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (result["status"], result["text"]) == ("finished", "answerer(expert(why?))")
    assert result["run_id"].startswith("server-")


def test_what_goes_wrong_is_one_sentence(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failure(*arguments: str) -> tuple[int, str]:
        code = run(monkeypatch, recipe, *arguments)
        return code, capsys.readouterr().err

    code, err = failure("http://127.0.0.1:1")
    assert (code, "no cachegraph server answers" in err) == (3, True)
    code, err = failure("nonsense")
    assert code == 3
    (tmp_path / "keys").write_text("alice secret\n")
    failing = ScriptedAgent("expert", fail=ValueError("no"))
    with served([scripted_duo(failing)], keys=read_keys(tmp_path / "keys")) as server:
        code, err = failure(server.url)
        assert (code, "needs an API key" in err) == (3, True)
        code, err = failure(server.url, "--server-key-file", str(tmp_path / "keys"))
        assert (code, "agent 'expert' failed" in err) == (1, True)
        code, err = failure(server.url, "--no-store")
        assert (code, "--no-store" in err) == (2, True)


def test_only_a_file_that_is_the_servers_is_not_checked_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "duo.yaml"
    scripted_duo(models={"m": {"source": "./m"}}).to_yaml(file)
    with served([Graph.from_yaml(file, create=scripted())]) as server:
        assert run(monkeypatch, file, server.url) == 0
        assert capsys.readouterr().out == "answerer(expert(why?))\n"
        assert run_command(monkeypatch, "cachegraph", "run", str(file), "--server", server.url) == 2
        assert capsys.readouterr().err.endswith("is missing (A question.); give it with -i question=...\n")
        file.write_text(file.read_text().replace("{{ expert }}", "{{ exprt }}"))
        assert run(monkeypatch, file, server.url) == 2
        assert "did you mean 'expert'?" in capsys.readouterr().err


def test_no_server_wins_over_the_environment(
    scripted_server: Running, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CACHEGRAPH_RUN_SERVER", scripted_server.url)
    monkeypatch.setattr(sys, "argv", ["cachegraph", "run", str(recipe), "-i", "question=why?", "--no-server"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "there is no model folder" in capsys.readouterr().err
