"""Where things lie that last, and how what an earlier version left in the cache folder comes there."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import time

import pytest
from filelock import FileLock
from sqlalchemy import update

from cachegraph import Graph
from cachegraph.agents.scripted import scripted
from cachegraph.agents.sessions import session_files
from cachegraph.channels.fusers.fuser_folder import installed_fusers
from cachegraph.common import paths
from cachegraph.common.paths import data_home, home, lasting
from cachegraph.graph.store import Store, run_owner
from cachegraph.graph.store.schema import runs


@contextmanager
def free(_: Path) -> Iterator[bool]:
    yield True


@contextmanager
def busy(_: Path) -> Iterator[bool]:
    yield False


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, on a machine where nothing says otherwise."""
    monkeypatch.delenv("CACHEGRAPH_HOME")
    monkeypatch.setattr(paths, "user_cache_path", lambda *_, **__: tmp_path / "cache" / "cachegraph")
    monkeypatch.setattr(paths, "user_data_path", lambda *_, **__: tmp_path / "data" / "cachegraph")
    monkeypatch.setattr(paths, "_staying", set())
    home().mkdir(parents=True)
    return home()


def graph() -> Graph:
    built = Graph(name="one", create=scripted()).add_input("q").add_agent("a", model="m", prompt="{{ q }}")
    built.output = "a"
    return built


def test_what_lasts_lies_in_the_data_folder_and_models_in_the_cache_folder(old: Path, tmp_path: Path) -> None:
    assert (home(), data_home()) == (tmp_path / "cache" / "cachegraph", tmp_path / "data" / "cachegraph")
    assert lasting("fusers", free) == tmp_path / "data" / "cachegraph" / "fusers"
    graph().run(q="x", store=Store())
    assert (data_home() / "runs.db").is_file()
    assert not any(old.iterdir())


def test_one_variable_puts_all_in_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path))
    assert home() == data_home() == tmp_path
    (tmp_path / "sessions").mkdir()
    assert lasting("sessions", busy) == tmp_path / "sessions"


def test_what_an_earlier_version_left_is_moved_and_said_once(old: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Store(old / "runs.db") as store:
        run = graph().run(q="x", store=store).run_id
    (old / "fusers" / "mine").mkdir(parents=True)
    (old / "fusers" / "mine" / "card.json").write_text("{}")
    (old / "sessions" / "ann").mkdir(parents=True)
    (old / "models").mkdir()
    with Store() as store:
        assert [each.id for each in store.list()] == [run]
    assert (installed_fusers() / "mine" / "card.json").read_text() == "{}"
    assert session_files.sessions() == ["ann"]
    assert [path.name for path in old.iterdir()] == ["models"]
    assert caplog.text.count("moved") == 3
    Store().list()
    assert caplog.text.count("moved") == 3


def test_a_store_that_somebody_has_open_stays_until_he_is_gone(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(old / "runs.db") as store:
        run = graph().run(q="x", store=store).run_id
    server = sqlite3.connect(old / "runs.db")
    server.execute("SELECT * FROM cachegraph_runs").fetchall()
    with Store() as ours:  # all the same it is the store that we use
        assert [each.id for each in ours.list()] == [run]
        graph().run(q="y", store=ours)
    assert not (data_home() / "runs.db").exists()
    server.close()
    monkeypatch.setattr(paths, "_staying", set())  # a later process
    (old / f".runs.db.used-by-{os.getpid()}").unlink()
    assert len(Store().list()) == 2
    assert (data_home() / "runs.db").is_file()


def test_a_store_with_a_run_at_work_stays(old: Path) -> None:
    with Store(old / "runs.db") as store:
        run = graph().run(q="x", store=store).run_id
        with store._database.writing() as connection:
            values = {"status": "running", "owner": run_owner.me(), "heartbeat": time()}
            connection.execute(update(runs).where(runs.c.id == run).values(values))
    assert [each.status for each in Store().list()] == ["running"]
    assert (old / "runs.db").is_file()


def test_a_session_in_use_keeps_all_where_they_are(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (old / "sessions" / "ann").mkdir(parents=True)
    with FileLock(old / "sessions" / ".lock-ann"):
        assert session_files.sessions() == ["ann"]
        assert (old / "sessions").is_dir()
    monkeypatch.setattr(paths, "_staying", set())
    (old / f".sessions.used-by-{os.getpid()}").unlink()
    with session_files.taken("ann") as place:
        assert place == data_home() / "sessions" / "ann"
    assert not (old / "sessions").exists()


def test_a_training_under_way_keeps_its_folder(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = old / "fusers" / "mine.training" / "log.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text("{}")
    assert installed_fusers() == old / "fusers"
    monkeypatch.setattr(paths, "_staying", set())
    (old / f".fusers.used-by-{os.getpid()}").unlink()
    for path in (log, log.parent):
        os.utime(path, (time() - 2 * 86_400,) * 2)
    assert installed_fusers() == data_home() / "fusers"
    assert (data_home() / "fusers" / "mine.training" / "log.jsonl").is_file()


def test_what_both_places_have_stays_and_the_rest_is_moved(old: Path) -> None:
    for place, names in ((old, "ab"), (data_home(), "bc")):
        for name in names:
            (place / "fusers" / name).mkdir(parents=True)
            (place / "fusers" / name / "from").write_text(place.parent.name)
    assert lasting("fusers", free) == data_home() / "fusers"
    found = {path.parent.name: path.read_text() for path in (data_home() / "fusers").glob("*/from")}
    assert found == {"a": "cache", "b": "data", "c": "data"}
    assert (old / "fusers" / "b" / "from").read_text() == "cache"


def test_between_two_disks_it_is_copied_first(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def of_another_disk(source: str | Path, target: str | Path) -> None:
        if Path(source).parent != Path(target).parent:
            raise OSError(18, "Invalid cross-device link")
        rename(source, target)

    (old / "fusers" / "mine").mkdir(parents=True)
    (old / "fusers" / "mine" / "card.json").write_text("{}")
    (old / "runs.db").write_text("x")
    monkeypatch.setattr(os, "rename", of_another_disk)
    assert (lasting("fusers", free) / "mine" / "card.json").read_text() == "{}"
    assert lasting("runs.db", free).read_text() == "x"
    assert not any(old.iterdir())
    assert sorted(path.name for path in data_home().iterdir()) == [".moving.lock", "fusers", "runs.db"]


def test_where_the_data_folder_cannot_be_written_the_old_place_serves(
    old: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (old / "sessions").mkdir()
    data_home().parent.write_text("a file")
    assert lasting("sessions", free) == old / "sessions"
    assert "stays where it is" in caplog.text


def test_of_many_threads_one_moves_it(old: Path, caplog: pytest.LogCaptureFixture) -> None:
    (old / "fusers" / "mine").mkdir(parents=True)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: lasting("fusers", free), range(32)))
    assert set(found) == {data_home() / "fusers"}
    assert caplog.text.count("moved") == 1


def test_of_two_processes_one_moves_it_and_both_find_it(tmp_path: Path) -> None:
    """By the variables that platformdirs reads on Linux."""
    if sys.platform != "linux":
        pytest.skip("other systems have no variables for these folders")
    places_of = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_DATA_HOME": str(tmp_path / "data")}
    with Store(tmp_path / "cache" / "cachegraph" / "runs.db") as store:
        run = graph().run(q="x", store=store).run_id
    variables = {key: value for key, value in os.environ.items() if not key.startswith("CACHEGRAPH_")} | places_of
    command = [sys.executable, "-c", "from cachegraph.graph.store import Store; print(*[r.id for r in Store().list()])"]
    both = [subprocess.Popen(command, env=variables, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    ended = [process.communicate(timeout=120) for process in both]
    assert [out.strip() for out, _ in ended] == [run, run]
    assert sum("moved" in err for _, err in ended) == 1
    assert [path.name for path in (tmp_path / "cache" / "cachegraph").iterdir()] == []
    assert (tmp_path / "data" / "cachegraph" / "runs.db").is_file()
