"""Every function and type that docs/background/architecture.md names is where the page says."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "background" / "architecture.md").read_text()
PLACES = sorted(set(re.findall(r"`([\w/]+\.py::[\w.]+)`", PAGE)))
WALKS = [section for section in PAGE.split("\n## ")[1:] if "| leads on by |" in section]


@cache
def _names(file: Path) -> frozenset[str]:
    """Functions, classes and methods of a file."""
    names: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{each.name}"
                for each in node.body
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return frozenset(names)


@pytest.mark.parametrize("place", PLACES)
def test_what_the_page_names_is_there(place: str) -> None:
    path, name = place.split("::")
    assert (ROOT / path).is_file(), f"{path} is gone: name its new place in docs/background/architecture.md"
    assert name in _names(ROOT / path), f"{path} has no {name}: name its new place in docs/background/architecture.md"


def test_both_walks_have_eight_steps_in_files_of_their_own() -> None:
    steps = [re.findall(r"^\| (\d) \| `([\w/]+\.py)::", walk, re.MULTILINE) for walk in WALKS]
    assert [[number for number, _ in walk] for walk in steps] == [[str(i) for i in range(1, 9)]] * 2
    assert len({file for walk in steps for _, file in walk}) == 16


def test_every_method_that_the_walks_name_is_in_a_file_of_the_page() -> None:
    there = frozenset[str]().union(*(_names(ROOT / place.partition("::")[0]) for place in PLACES))
    named = {name for walk in WALKS for name in re.findall(r"`([A-Z]\w+\.\w+)`", walk)}
    assert len(named) > 10
    assert named <= there
