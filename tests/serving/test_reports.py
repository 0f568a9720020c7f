"""/reports: comparison reports that a server shows."""

import os
from pathlib import Path

import pytest
from live_server import served
from server_graphs import scripted_duo

from cachegraph.serving.auth import read_keys
from cachegraph.serving.errors import ApiError
from cachegraph.serving.reports.folder import Reports


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (made := tmp_path / "reports").mkdir()
    for age, name in enumerate(("new.html", "old.html", "notes.txt")):
        (made / name).write_text(f"<title>{name}</title>")
        os.utime(made / name, (1e9 - age, 1e9 - age))
    (tmp_path / "secret.html").write_text("secret")
    (made / "link.html").symlink_to(tmp_path / "secret.html")
    (made / "folder.html").mkdir()
    return made


def test_reports_are_listed_and_viewed_by_a_ticket(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alice secret\n")
    key = {"Authorization": "Bearer secret"}
    with served([scripted_duo()], keys=read_keys(tmp_path / "keys"), reports=folder) as server:
        assert server.get("/reports").status_code == 401
        assert server.post("/reports/new.html").status_code == 401
        listed = server.get("/reports", headers=key).json()["reports"]
        assert [report["name"] for report in listed] == ["new.html", "old.html"]
        url = server.post("/reports/new.html", headers=key).json()["url"]
        page = server.get(url)
        assert (page.status_code, page.text) == (200, "<title>new.html</title>")
        policy = page.headers["content-security-policy"]
        assert policy.startswith("sandbox allow-scripts;")
        assert "default-src 'none'" in policy
        assert server.get(f"{url}x").status_code == 404
        for name in ("link.html", "folder.html", "notes.txt", "..%2fsecret.html", "other.html"):
            assert server.post(f"/reports/{name}", headers=key).status_code in (404, 405), name


def test_a_ticket_ends_and_there_are_never_many(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = Reports(folder)
    tickets = [reports.ticket("new.html") for _ in range(300)]
    assert len(reports._tickets) <= 200
    assert reports.read(tickets[-1])
    with pytest.raises(ApiError):
        reports.read(tickets[0])
    monkeypatch.setattr("cachegraph.serving.reports.folder.monotonic", lambda: 1e12)
    with pytest.raises(ApiError):
        reports.read(tickets[-1])


def test_without_a_folder_there_are_none() -> None:
    with served([scripted_duo()]) as server:
        assert server.get("/reports").status_code == 404
        assert server.get("/graphs").json()["reports"] is False
