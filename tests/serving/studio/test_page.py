"""The studio's files: what a browser gets, and what it may do with it."""

import re
from pathlib import Path

import pytest
from live_server import Running, served
from server_graphs import scripted_duo

from cachegraph.serving.auth import read_keys
from cachegraph.serving.studio.page import STATIC


def test_the_page_and_its_files_need_no_key_and_hold_no_data(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alice secret\n")
    with served([scripted_duo()], keys=read_keys(tmp_path / "keys")) as server:
        page = server.get("/")
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "duo" not in page.text
        for path in re.findall(r'"(/studio/[^"]+)"', page.text):
            assert server.get(path).status_code == 200
        assert server.get("/graphs").status_code == 401


def test_the_policy_allows_nothing_from_elsewhere_and_no_inline_script(scripted_server: Running) -> None:
    page = scripted_server.get("/")
    policy = page.headers["content-security-policy"]
    for part in ("default-src 'self'", "frame-ancestors 'none'", "form-action 'none'", "trusted-types 'none'"):
        assert part in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=|https?://", page.text)


def test_no_script_builds_markup_from_text_or_names_another_host() -> None:
    for path in STATIC.iterdir():
        text = path.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            path
        )
        hosts = set(re.findall(r"https?://[\w.]+", text)) - {"http://www.w3.org"}
        assert not hosts, path


def test_every_import_of_a_module_is_a_file_of_the_studio() -> None:
    for path in STATIC.glob("*.js"):
        for name in re.findall(r'from "([^"]+)"', path.read_text()):
            assert name.startswith("/studio/")
            assert (STATIC / name.removeprefix("/studio/")).is_file(), f"{path.name} imports {name}"


@pytest.mark.parametrize("name", ["page.py", "../page.py", "..%2fpage.py", "%2e%2e/page.py", "", "index.html%00", "x"])
def test_only_its_own_files_are_given_out(scripted_server: Running, name: str) -> None:
    assert scripted_server.get(f"/studio/{name}").status_code == 404


def test_a_file_that_the_browser_has_is_not_sent_again(scripted_server: Running) -> None:
    first = scripted_server.get("/studio/main.js")
    again = scripted_server.get("/studio/main.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_link_on_another_site_opens_the_page_and_nothing_else(scripted_server: Running) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert scripted_server.get("/", headers=link).status_code == 200
    assert scripted_server.get("/", headers={**link, "Sec-Fetch-Dest": "iframe"}).status_code == 403
    assert scripted_server.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert scripted_server.get("/graphs", headers=link).status_code == 403
    assert scripted_server.post("/", headers=link).status_code == 403


def test_files_of_the_studio_stay_small() -> None:
    for path in STATIC.iterdir():
        assert len(path.read_text().splitlines()) < 300, path.name
