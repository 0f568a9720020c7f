"""`cachegraph run` on a server of this user that serves this very recipe, without being asked to."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import Running, served
from server_graphs import scripted_duo

from cachegraph.agents.scripted import scripted
from cachegraph.cli import main
from cachegraph.graph.graph import Graph
from cachegraph.serving.announced_recipe import announced
from cachegraph.serving.local_servers import Announcement, find_server, permissions

PLAIN = permissions((), False, False, False, False)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path / "home"))
    file = tmp_path / "duo.yaml"
    scripted_duo(models={"m": {"source": "./m"}}).to_yaml(file)
    return file


@pytest.fixture
def server(recipe: Path) -> Iterator[Running]:
    """A server that has announced itself, as `cachegraph serve` does."""
    graph = Graph.from_yaml(recipe, create=scripted())
    described = announced(graph)
    assert described is not None
    with served([graph]) as running:
        announcement = Announcement(running.url, [described])
        announcement.write()
        yield running
        announcement.remove()


def run(monkeypatch: pytest.MonkeyPatch, recipe: Path, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["cachegraph", "run", str(recipe), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_run_uses_the_server_and_says_so(
    server: Running, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, recipe, "-i", "question=why?") == 0  # the model ./m does not exist here
    out, err = capsys.readouterr()
    assert out == "answerer(expert(why?))\n"
    assert err.startswith(f"on the server at {server.url} (--no-server runs it here)\n")
    assert run(monkeypatch, recipe, "-i", "question=why?", "-q", "-c", "text") == 0
    assert capsys.readouterr() == ("answerer(expert(why?))\n", "")
    assert run(monkeypatch, recipe, "-i", "question=why?", "--json") == 0
    assert json.loads(capsys.readouterr().out)["run_id"].startswith("server-")


@pytest.mark.parametrize(
    "options",
    [
        ("--no-server",),
        ("--no-store",),
        ("--strict",),
        ("--allow-paths",),
        ("--events", os.devnull),
        ("-c", "text", "-c", "both"),
    ],
)
def test_a_run_that_the_server_would_do_otherwise_takes_place_here(
    server: Running,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
) -> None:
    assert run(monkeypatch, recipe, "-i", "question=why?", *options) != 0
    err = capsys.readouterr().err
    assert "on the server" not in err
    assert "there is no model folder" in err


def test_what_the_server_refuses_is_reported_by_a_run_here(
    server: Running, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, recipe) == 2
    assert "input 'question' is missing" in (err := capsys.readouterr().err)
    assert err.rstrip().endswith("give it with -i question=...")
    server.queue.stop()  # as a server that ends its runs
    assert run(monkeypatch, recipe, "-i", "question=why?") == 1
    assert "there is no model folder" in capsys.readouterr().err


def test_another_recipe_is_not_the_servers(server: Running, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_server(recipe, PLAIN) is not None
    link = recipe.with_name("link.yaml")
    link.symlink_to(recipe)
    assert find_server(link, PLAIN) is not None
    copy = recipe.with_name("copy.yaml")
    copy.write_text(recipe.read_text())
    assert find_server(copy, PLAIN) is None
    monkeypatch.setenv("CACHEGRAPH_STORE", str(recipe.with_name("other.db")))
    assert find_server(recipe, PLAIN) is None
    monkeypatch.delenv("CACHEGRAPH_STORE")
    recipe.write_text(recipe.read_text() + "\n# changed\n")
    assert find_server(recipe, PLAIN) is None


def test_the_announcement_is_private_and_others_are_not_believed(server: Running, recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "servers"
    (file,) = folder.iterdir()
    assert (file.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
    file.chmod(0o644)
    assert find_server(recipe, PLAIN) is None
    file.chmod(0o600)
    folder.chmod(0o777)
    assert find_server(recipe, PLAIN) is None
    folder.chmod(0o700)
    assert find_server(recipe, PLAIN) is not None


@pytest.mark.parametrize("damage", ["", "[]", "{", "[" * 5000, '{"url": 1}'])
def test_a_file_of_a_dead_process_is_ignored_and_removed(recipe: Path, tmp_path: Path, damage: str) -> None:
    described = announced(Graph.from_yaml(recipe, create=scripted()))
    assert described is not None
    announcement = Announcement("http://127.0.0.1:1", [described])
    announcement.write()
    (file,) = (tmp_path / "home" / "servers").iterdir()
    body = file.read_text()
    announcement.remove()
    assert not file.exists()
    file.write_text(damage or body)
    file.chmod(0o600)
    assert find_server(recipe, PLAIN) is None
    assert not file.exists()


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1:80", "https://127.0.0.1", "http://localhost.evil.example", "file:///x"]
)
def test_only_addresses_of_this_machine_are_called(recipe: Path, url: str) -> None:
    described = announced(Graph.from_yaml(recipe, create=scripted()))
    assert described is not None
    announcement = Announcement(url, [described])
    announcement.write()
    assert find_server(recipe, PLAIN) is None
    announcement.remove()


def test_a_recipe_with_code_or_tools_is_not_announced(tmp_path: Path) -> None:
    (tmp_path / "steps.py").write_text("def answer() -> str:\n    return 'x'\n")
    file = tmp_path / "code.yaml"
    file.write_text("version: 1\nname: code\nagents: {answer: {function: 'steps.py:answer'}}\noutput: answer\n")
    assert announced(Graph.from_yaml(file, allow_code=True)) is None
    outer = tmp_path / "outer.yaml"
    outer.write_text("version: 1\nname: outer\nagents: {inner: {graph: code.yaml}}\noutput: inner\n")
    assert announced(Graph.from_yaml(outer, allow_code=True)) is None
    assert announced(scripted_duo()) is None


def test_files_of_included_recipes_count(tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner.yaml", tmp_path / "outer.yaml"
    inner.write_text("version: 1\nname: inner\nagents: {a: {model: b/c, prompt: x}}\noutput: a\n")
    outer.write_text("version: 1\nname: outer\nagents: {inner: {graph: inner.yaml}}\noutput: inner\n")
    described = announced(Graph.from_yaml(outer))
    assert described is not None
    assert described.hashes.keys() == {str(inner), str(outer)}


# Packages that take a command most of its start, and the parts of this one that bring them.
SLOW = ["anyio", "filelock", "httpx2", "jinja2", "networkx", "numpy", "pandas", "psutil", "sqlalchemy", "torch"]
SLOW += ["transformers", "yaml", "cachegraph.engine.spec", "cachegraph.graph.graph", "cachegraph.cli.serve"]
TABLES = ["cachegraph.graph.run.result", "rich.console"]  # needed after the reply


@pytest.mark.parametrize("named", [False, True])
def test_a_run_on_a_server_imports_nothing_slow(server: Running, recipe: Path, named: bool) -> None:
    options = ["--server", server.url] if named else []
    code = (
        f"import sys\nsys.argv = ['cachegraph', 'run', sys.argv[1], '-i', 'question=why?', *{options}]\n"
        "from cachegraph.cli import main, server_run\n"
        f"slow, tables, early = set({SLOW}), set({TABLES}), set()\n"
        "say = server_run.write\n"
        "def said(text):\n"
        "    early.update((slow | tables) & sys.modules.keys())\n"
        "    say(text)\n"
        "server_run.write = said\n"
        "try:\n    main()\nfinally:\n"
        "    print(sorted(early), sorted(slow & sys.modules.keys()), *tables & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(recipe)], capture_output=True, text=True, check=False)
    reply, imported, _ = done.stdout.split("\n")
    assert reply == "answerer(expert(why?))", done.stderr
    assert imported.startswith("[] [] "), imported
    assert {*imported.split()[2:]} == {*TABLES}
