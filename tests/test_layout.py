"""The folders, their links under src/cachegraph and the way they import each other."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINKS = ROOT / "src" / "cachegraph"
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests")
FILES = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_is_linked(folder: str) -> None:
    assert (LINKS / folder).resolve() == ROOT / folder


def test_wheel_takes_every_folder() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {folder: f"cachegraph/{folder}" for folder in FOLDERS}
    assert wheel["exclude"] == [f"src/cachegraph/{folder}" for folder in FOLDERS]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_are_relative_inside_a_folder_and_absolute_across(file: Path) -> None:
    folder, *rest = file.relative_to(ROOT).parts
    for level, module in _imports(file):
        assert level <= len(rest), f"{module}: leaves {folder}/, write cachegraph.…"
        assert not module.startswith(f"cachegraph.{folder}"), f"{module}: inside {folder}/, write it with dots"


def test_no_two_public_classes_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for file in FILES + sorted(LINKS.glob("*.py")) + sorted((LINKS / "cli").glob("*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(file.relative_to(ROOT)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def _imports(file: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""
