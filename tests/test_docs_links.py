"""Links of the README and the docs lead to files and headings, and the site's navigation lists every page.

The site is built with the same rules (`make docs`); these tests hold them without its generator.
"""

import re
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
SHELVES = ["tutorial", "guides", "reference", "background"]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def _prose(page: Path) -> str:
    """The page without its code: what looks like a link or a heading there is none."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", lambda code: re.sub(r"[\[\]()]", "", code[0]), text)


def _links(page: Path) -> list[tuple[str, str]]:
    """Target and anchor of every link that stays in the repository."""
    targets = re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", _prose(page))
    return [(target, anchor) for target, _, anchor in (link.partition("#") for link in targets)]


def _headings(page: Path) -> list[str]:
    return re.findall(r"^#+ +(.+?) *$", _prose(page), flags=re.MULTILINE)


def _plain(heading: str) -> str:
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "").lower()


def _on_github(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", _plain(heading)).replace(" ", "-")


def _on_the_site(heading: str) -> str:
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", _plain(heading)).strip())


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target, anchor in _links(page):
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), f"{target} does not exist"
        if anchor:
            found = [heading for heading in _headings(there) if _on_the_site(heading) == anchor]
            assert found, f"{target}#{anchor}: no such heading"
            assert len(found) == 1, f"{target}#{anchor}: several such headings"
            assert _on_github(found[0]) == anchor, f"{target}#{anchor} is {_on_github(found[0])} on GitHub; rename it"


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_links_of_the_docs_stay_in_the_docs(page: Path) -> None:
    outside = [target for target, _ in _links(page) if not (page.parent / target).resolve().is_relative_to(DOCS)]
    assert not outside, "the site holds docs/ only; write such a path as `code`"


def test_every_page_stands_on_one_of_the_four_shelves() -> None:
    pages = {page.relative_to(DOCS) for page in DOCS.rglob("*.md")} - {Path("index.md")}
    assert {page.parts[0] for page in pages} == set(SHELVES)
    assert all(len(page.parts) == 2 for page in pages)


def test_navigation_of_the_site_lists_every_page_once() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(_paths(nav)) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_front_page_links_every_page() -> None:
    linked = {target for target, _ in _links(DOCS / "index.md") if target.endswith(".md")}
    assert linked == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} - {"index.md"}


def _paths(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return list(chain.from_iterable(map(_paths, entries)))
