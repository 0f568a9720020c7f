"""Every snippet of the README and the docs: Python runs, recipes are valid, commands exist."""

import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import fuzzers
import pytest
import yaml
from fuzz_counts import FUZZERS, report
from opentelemetry import trace
from opentelemetry.util._once import Once
from typer.main import get_command
from typer.testing import CliRunner

from cachegraph.cli import app
from cachegraph.graph.recipe.load import parse_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEEDS_MODELS = "# needs the demo models"
NEEDS_RAY = "# needs Ray"  # which the usual environment does not have
WALKED = [
    ROOT / "README.md",
    ROOT / "docs" / "tutorial" / "first-graph.md",
]  # whose commands run, one after another, on their recipes


@pytest.fixture(autouse=True)
def own_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page configures is gone after it."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def _run_page(page: Path, monkeypatch: pytest.MonkeyPatch, *, with_models: bool) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {"__name__": "__docs__"}
    for block in _blocks(page, "python"):
        if NEEDS_RAY not in block and (with_models or NEEDS_MODELS not in block):
            exec(compile(block, f"{page.name}", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_a_page_runs_in_order(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run_page(page, monkeypatch, with_models=False)


@pytest.mark.models
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page", [page for page in PAGES if NEEDS_MODELS in page.read_text()], ids=lambda page: page.name
)
def test_python_of_a_page_runs_with_the_demo_models(
    page: Path, monkeypatch: pytest.MonkeyPatch, demo_engines: object
) -> None:
    _run_page(page, monkeypatch, with_models=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_whole_recipes_of_a_page_are_valid(page: Path) -> None:
    for block in _blocks(page, "yaml"):
        if re.search(r"^version: 1$", block, re.MULTILINE) and "agents:" in block:
            parse_recipe(block, name=page.name, folder=ROOT / "recipes")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_exist(page: Path) -> None:
    commands = get_command(app)
    for line in (line for block in _blocks(page, "(?:bash|sh|console)") for line in block.splitlines()):
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words[:1] != ["cachegraph"]:
            continue
        node: Any = commands
        for word in words[1:]:
            if word.startswith("-") or not hasattr(node, "commands"):
                break
            assert word in node.commands, f"{page.name}: there is no {line!r}"
            node = node.commands[word]
        options = {name for option in node.params for name in (*option.opts, *option.secondary_opts)}
        given = {word.partition("=")[0] for word in words if re.match("--?[a-z]", word)}
        assert given <= options, f"{page.name}: {line!r} has {given - options}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_of_a_page_is_yaml(page: Path) -> None:
    for block in _blocks(page, "yaml"):
        yaml.safe_load(block)


@pytest.mark.models
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", WALKED, ids=lambda page: page.name)
def test_commands_of_a_tutorial_run_in_order(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, demo_engines: object
) -> None:
    monkeypatch.chdir(tmp_path)
    for block in _blocks(page, "yaml"):
        if named := re.match(r"# (\S+\.yaml)\n", block):
            (tmp_path / named[1]).write_text(block)
    lines = [line for block in _blocks(page, "bash") for line in block.splitlines() if line.startswith("cachegraph ")]
    assert lines
    for line in lines:
        done = CliRunner().invoke(app, shlex.split(line)[1:])
        assert done.exit_code == 0, f"{line}\n{done.output}"


def test_the_page_on_security_has_the_rows_that_the_fuzzers_print() -> None:
    """Its numbers are those of one run."""
    page = (ROOT / "docs" / "reference" / "security.md").read_text()
    printed = fuzzers.table({name: Counter({"taken": 1}) for name in FUZZERS}).splitlines()
    start = page.splitlines().index(printed[0])
    rows = [line.split("|") for line in page.splitlines()[start:][: len(printed) + 1]]
    assert not rows.pop()[1:]  # the table ends there
    assert [(row[1], row[4]) for row in rows] == [(line.split("|")[1], line.split("|")[4]) for line in printed]
    for name, file in FUZZERS.items():
        assert f'"{name.partition(" (")[0]}' in (ROOT / file).read_text(), name


def test_counts_of_fuzzers_are_summed_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    report("recipes", {"taken": 3, "refused": 0})
    report("recipes", {"taken": 2, "refused": 5})
    printed = capsys.readouterr().out.replace("\nfuzzer", "\n.fuzzer")  # pytest's dots stand before them
    assert fuzzers.counts(printed.splitlines()) == {"recipes": {"taken": 5, "refused": 5}}
    with pytest.raises(AssertionError, match="give 'unheard of' a row"):
        report("unheard of", {"taken": 1})
