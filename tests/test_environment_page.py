"""docs/reference/environment.md names every exit code, environment variable and stored folder of the source."""

import ast
import gc
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachegraph import errors

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reference" / "environment.md").read_text()
FOLDERS = sorted(path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests")
Trees = dict[Path, ast.Module]


@pytest.fixture(scope="module")
def sources() -> Trees:
    folders = [*FOLDERS, ROOT / "src" / "cachegraph" / "cli", ROOT / "tests"]
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    gc.disable()  # over a million objects it takes three quarters of the time
    try:
        return {file: ast.parse(file.read_text()) for file in files}
    finally:
        gc.enable()


@pytest.fixture(scope="module")
def package(sources: Trees) -> Trees:
    return {file: tree for file, tree in sources.items() if not file.is_relative_to(ROOT / "tests")}


def _constants(tree: ast.Module) -> dict[str, str]:
    """Texts that a module gives a name."""
    return {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _texts(tree: ast.Module) -> Iterator[str]:
    return (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))


def _read_variables(tree: ast.Module) -> Iterator[ast.expr]:
    """What stands in `os.environ[...]`, `os.environ.get(...)` and `os.getenv(...)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
            yield node.slice
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.environ.get", "os.getenv"):
            yield node.args[0]


def test_page_names_every_variable_that_the_source_reads(sources: Trees, package: Trees) -> None:
    everywhere = {name: text for tree in sources.values() for name, text in _constants(tree).items()}
    read = set()
    for tree in package.values():
        for expression in _read_variables(tree):
            name = expression.attr if isinstance(expression, ast.Attribute) else ast.unparse(expression)
            if isinstance(expression, ast.Constant):
                assert isinstance(expression.value, str)
                read.add(expression.value)
            elif name in everywhere:
                read.add(everywhere[name])
    assert {"CACHEGRAPH_HOME", "CACHEGRAPH_KV_MEMORY", "CXX"} <= read
    missing = {name for name in read if f"`{name}`" not in PAGE} - {"SYSTEMROOT"}  # which Windows sets for everybody
    assert not missing


def test_page_names_every_variable_of_ours_and_no_other(sources: Trees, package: Trees) -> None:
    named = set(re.findall(r"CACHEGRAPH_[A-Z_]+[A-Z]", PAGE)) - {"CACHEGRAPH_COMMAND_OPTION", "CACHEGRAPH_RUN_CHANNELS"}
    ours = {text for tree in package.values() for text in _texts(tree) if re.fullmatch(r"CACHEGRAPH_[A-Z_]+", text)}
    everywhere = {text for tree in sources.values() for text in _texts(tree)}
    assert ours - {"CACHEGRAPH_"} <= named
    assert named <= everywhere


def _exit_codes(package: Trees) -> Iterator[int]:
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.CachegraphError):
            yield error.exit_code
    for tree in package.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("sys.exit", "typer.Exit", "SystemExit"):
                yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and type(arg.value) is int)


def _table_rows(heading: str) -> list[list[str]]:
    section = re.split(r"^##+ ", PAGE.split(f"## {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return rows[2:]


def test_page_explains_every_exit_code(package: Trees) -> None:
    rows = _table_rows("Exit codes")
    codes = {int(code) for row in rows for code in row[0].split(", ")}
    assert set(_exit_codes(package)) <= codes


def test_page_puts_every_error_beside_its_exit_code() -> None:
    beside = {name: row[0] for row in _table_rows("Exit codes") for name in re.findall(r"`(\w+Error)`", row[2])}
    raised = {
        name: str(error.exit_code)
        for name, error in vars(errors).items()
        if isinstance(error, type) and issubclass(error, errors.CachegraphError)
    }
    assert beside == raised


def test_page_names_every_folder_that_is_stored(package: Trees) -> None:
    stored = set()
    for file in package:
        stored |= set(re.findall(r"""\b(?:lasting|\w*Json\w*)\(\s*"([\w.]+)\"""", file.read_text()))
        stored |= set(re.findall(r"""\bhome\(\)\)? / "([\w.]+)\"""", file.read_text()))
    assert {"runs.db", "sessions", "fusers", "checks", "models", "kernels"} <= stored
    assert not {name for name in stored if not re.search(rf"^\| `{re.escape(name)}[`/]", PAGE, re.MULTILINE)}
