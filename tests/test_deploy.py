"""deploy/ and the page about it: the image, the unit, and the tables that the page lists."""

import configparser
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from cachegraph.cli import app
from cachegraph.graph.store.schema import metadata

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "guides" / "deploy.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def check_command(words: list[str]) -> None:
    """Parse a command line of cachegraph, and run nothing. Raises a click exception."""
    command: Any = get_command(app)
    context = command.make_context("cachegraph", list(words), resilient_parsing=False)
    name, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    inner.make_context(name, rest, parent=context)


def test_a_wrong_command_line_would_be_found() -> None:
    check_command(["serve", "graph.yaml", "--port", "1"])
    with pytest.raises(Exception, match="--prot"):
        check_command(["serve", "graph.yaml", "--prot", "1"])


def test_the_unit_starts_a_command_that_exists() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((ROOT / "deploy" / "cachegraph.service").read_text())
    service = unit["Service"]
    program, *words = shlex.split(service["ExecStart"])
    assert program == "/opt/cachegraph/bin/cachegraph"
    check_command(words)
    assert service["SuccessExitStatus"] == "143"
    assert int(service["TimeoutStopSec"]) > 35  # the grace period, and what a server needs besides
    assert f"keys:{service['LoadCredential'].partition(':')[2]}" == service["LoadCredential"]


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", "", (ROOT / "deploy" / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def test_the_image_has_known_instructions_extras_and_a_command() -> None:
    found = instructions()
    known = {"FROM", "WORKDIR", "COPY", "RUN", "ARG", "USER", "ENV", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"}
    assert {name for name, _ in found} == known | {"ENTRYPOINT", "CMD"}
    last = dict(found)
    assert json.loads(last["ENTRYPOINT"]) == ["cachegraph"]
    check = json.loads(last["HEALTHCHECK"].partition("CMD ")[2])
    compile(check[2], "healthcheck", "exec")
    (extras,) = re.findall(r"cachegraph-\*\.whl\)\[([\w,]+)\]", "\n".join(words for _, words in found))
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    minor = int(re.search(r"python:3\.(\d+)", last["FROM"])[1])  # type: ignore[index]
    assert minor >= int(PROJECT["requires-python"].removeprefix(">=3."))
    assert last["USER"] == "cachegraph"


def test_what_the_image_is_built_from_is_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for path in ("src", "serving", "recipes", "integrations", "pyproject.toml", "README.md", "LICENSE"):
        assert (ROOT / path).exists()
        assert path not in ignored


def test_commands_of_the_page_are_complete() -> None:
    text = re.sub(r"\\\n\s*", "", PAGE)
    commands = re.findall(r"^(?:docker run .* cachegraph|cachegraph) ((?:serve|runs) .*)$", text, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        check_command(shlex.split(command))


def test_the_page_lists_every_table_and_column() -> None:
    rows = dict(re.findall(r"^\| `(cachegraph_\w+)` \| [^|]+ \| ([^|]+) \|$", PAGE, re.MULTILINE))
    listed = {table: re.findall(r"`(\w+)`", columns) for table, columns in rows.items()}
    assert listed == {table.name: [column.name for column in table.columns] for table in metadata.tables.values()}
