"""What the store keeps of a run, and what it says when it can't."""

import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from time import time
from typing import Any

import pytest
from sqlalchemy import update

from cachegraph import ConfigError, InputError, RunError
from cachegraph.agents.scripted import ScriptedAgent
from cachegraph.common.surrogates import mend
from cachegraph.graph.store import Store, schema
from cachegraph.graph.store.schema import runs

from .conftest import chain


def test_a_run_is_kept_with_every_turn_and_all_that_it_needs_to_go_on(store: Store) -> None:
    result = chain().run(question="why?", store=store)
    (info,) = store.list()
    kept = store.get(info.id)
    assert result.run_id == info.id == kept.id
    assert (info.graph, info.status, info.turns) == ("chain", "finished", 3)
    assert [turn.turn for turn in kept.turns] == ["a", "b", "c"]
    assert [turn.recorded.text for turn in kept.turns] == ["a(why?)", "b(a(why?))", "c(b(a(why?)))"]
    assert kept.turns[0].recorded.agent["tokens"]["generated"] == 1
    assert kept.setting.inputs == {"question": "why?"}
    assert kept.setting.versions["cachegraph"]
    assert kept.recipe == chain().to_yaml()
    assert kept.seconds == pytest.approx(result.seconds)


@pytest.mark.parametrize("text", ["\0 and \ud800", "日本語 🎈", "x" * 1_000_000])
def test_any_text_survives(store: Store, text: str) -> None:
    run = chain(ScriptedAgent("c", text)).run(question=text, store=store)
    kept = store.get(run.run_id or "")
    assert kept.turns[-1].recorded.text == run.text == mend(text)  # no agent replies with half a surrogate
    assert kept.setting.inputs == {"question": text}


def test_a_failed_run_keeps_what_finished_and_says_who_failed(store: Store) -> None:
    with pytest.raises(RunError) as caught:
        chain(ScriptedAgent("b", fail=ValueError("no idea"))).run(question="q", store=store)
    kept = store.get(caught.value.result.run_id)
    assert kept.status == "failed"
    assert [turn.turn for turn in kept.turns] == ["a"]
    assert kept.outcome.unfinished["b"].error == "ValueError: no idea"
    assert kept.outcome.unfinished["c"].status == "cancelled"
    assert kept.outcome.error == "agent 'b' failed: ValueError: no idea"


def test_without_a_store_nothing_is_kept_and_nothing_of_it_is_imported() -> None:
    code = (
        "import sys; from cachegraph import Graph; from cachegraph.agents.scripted import scripted;"
        "g = Graph(name='g', agents={'a': {'model': 'm', 'prompt': 'p'}}, output='a', create=scripted());"
        "assert g.run().run_id is None; assert 'sqlalchemy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_runs_are_listed_newest_first_in_pages_and_by_graph_and_status(store: Store) -> None:
    made = [chain().run(question=str(number), store=store).run_id for number in range(3)]
    with pytest.raises(RunError):
        chain(ScriptedAgent("a", fail=ValueError("no"))).run(question="q", store=store)
    assert [run.id for run in store.list(status="finished")] == made[::-1]
    assert [run.id for run in store.list(1, skip=2)] == [made[1]]
    assert [run.status for run in store.list(graph="chain")] == ["failed", "finished", "finished", "finished"]
    assert store.list(graph="other") == []


def test_a_run_is_found_by_as_much_of_its_id_as_no_other_has(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = iter(["abc1", "token", "abc2", "token"])
    monkeypatch.setattr("cachegraph.graph.store.store.token_hex", lambda _: next(ids))
    chain().run(question="1", store=store)
    assert store.get("a").id == "abc1"
    chain().run(question="2", store=store)
    assert store.get("abc2").id == "abc2"
    with pytest.raises(InputError, match=r"several runs begin with 'abc': abc1, abc2; give more letters"):
        store.get("abc")
    for nobody in ("", "zzz", "%", "_bc1"):
        with pytest.raises(InputError, match="there is no run"):
            store.get(nobody)


def test_runs_are_removed_all_or_none(store: Store) -> None:
    one, two, three = (chain().run(question=text, store=store).run_id or "" for text in "123")
    with pytest.raises(InputError, match="no run 'nobody'"):
        store.remove(one, "nobody")
    assert store.remove(one, two) == [one, two]
    assert [run.id for run in store.list()] == [three]
    with store._database.reading() as connection:
        assert connection.exec_driver_sql("select count(*) from cachegraph_turns").scalar() == 3


def test_old_runs_are_pruned(store: Store) -> None:
    old, new = (chain().run(question=text, store=store).run_id or "" for text in "12")
    with store._database.writing() as connection:
        connection.execute(update(runs).where(runs.c.id == old).values(created=time() - 100))
    assert store.prune(50) == 1
    assert [run.id for run in store.list()] == [new]


def test_the_file_is_its_owners_alone_and_in_wal_mode_with_every_commit_on_disk(
    file_store: Store, tmp_path: Path
) -> None:
    chain().run(question="q", store=file_store)
    assert stat.S_IMODE((tmp_path / "runs.db").stat().st_mode) == 0o600
    with file_store._database.reading() as connection:
        assert connection.exec_driver_sql("pragma journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("pragma synchronous").scalar() == 2


def test_the_place_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CACHEGRAPH_STORE", raising=False)
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path / "home"))
    assert Store().list() == []
    assert (tmp_path / "home" / "runs.db").exists()
    monkeypatch.setenv("CACHEGRAPH_STORE", str(tmp_path / "else.db"))
    assert Store().place == repr(str(tmp_path / "else.db"))


# What it says when it can't


def test_a_store_of_a_newer_version_is_refused(store: Store) -> None:
    store.list()
    with store._database.writing() as connection:
        connection.exec_driver_sql("update cachegraph_store set version = 99")
    store.close()
    with pytest.raises(ConfigError, match=r"newer cachegraph \(its format is 99, .*; upgrade cachegraph, or set"):
        store.list()


def test_a_file_that_is_no_store_or_damaged_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    path.write_bytes(b"Dear diary, " * 500)
    with pytest.raises(ConfigError, match=r"damaged, or no run store \(file is not a database\); move it away"):
        Store(path).list()
    assert path.read_bytes() == b"Dear diary, " * 500


def test_a_damaged_page_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    with Store(path) as store:
        for number in range(20):
            chain().run(question=str(number) * 4000, store=store)
    data = bytearray(path.read_bytes())
    for page in range(4096, len(data), 4096):
        data[page : page + 100] = b"\xff" * 100
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="damaged, or no run store"):
        Store(path).list()


def test_a_locked_store_is_a_sentence(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs.db")
    store.list()
    store.close()
    store._database._patience = 0.1
    other = sqlite3.connect(tmp_path / "runs.db", isolation_level=None)
    other.execute("begin exclusive")
    with pytest.raises(ConfigError, match=r"is locked: another process has been writing for 0.1 s; try again"):
        chain().run(question="q", store=store)
    other.close()
    assert chain().run(question="q", store=store).status == "finished"
    store.close()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("mysql://somewhere/x", "SQLite file or a PostgreSQL database, not 'mysql'"),
        ("sqlite://", "SQLite file or a PostgreSQL database"),
        ("no url://", "is not the address of a database"),
        ("/proc/nowhere/runs.db", "can't be written"),
    ],
)
def test_a_place_that_can_not_be_a_store_is_refused(place: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Store(place).list()


def test_postgres_without_its_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"needs 'psycopg'; pip install 'cachegraph\[postgres\]'"):
        Store("postgresql://me:secret@nowhere/x").list()
    assert "secret" not in Store("postgresql://me:secret@nowhere/x").place


# Migration


def _half(connection: Any) -> None:
    connection.exec_driver_sql("alter table cachegraph_runs add column mood text")
    raise ConfigError("the power went")


def _whole(connection: Any) -> None:
    connection.exec_driver_sql("alter table cachegraph_runs add column mood text")


def test_a_store_is_brought_up_to_date_wholly_or_not_at_all(file_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = chain().run(question="q", store=file_store).run_id
    file_store.close()
    for step, columns in ((_half, 0), (_whole, 1)):
        steps = (*schema.STEPS[:1], step)
        monkeypatch.setattr("cachegraph.graph.store.schema.STEPS", steps)
        monkeypatch.setattr("cachegraph.graph.store.database.STEPS", steps)
        if step is _half:
            with pytest.raises(ConfigError, match="the power went"):
                file_store.list()
        else:
            assert [run.id for run in file_store.list()] == [kept]
        file_store.close()
        plain = sqlite3.connect(file_store.place.strip("'"))
        found = [row for row in plain.execute("pragma table_info(cachegraph_runs)") if row[1] == "mood"]
        assert len(found) == columns
        assert plain.execute("select version from cachegraph_store").fetchall() == [(1 + columns,)]
        plain.close()


# Size


def test_lists_and_shows_use_an_index_whatever_the_number_of_runs(file_store: Store) -> None:
    file_store.list()
    with file_store._database.reading() as connection:
        for query in (
            "select id from cachegraph_runs order by created desc, id desc limit 20",
            "select id from cachegraph_runs where status = 'failed' order by created desc, id desc limit 20",
            "select id from cachegraph_runs where graph = 'x' order by created desc, id desc limit 20",
            "select * from cachegraph_turns where run = 'x'",
        ):
            plan = " ".join(row[3] for row in connection.exec_driver_sql(f"explain query plan {query}"))
            assert "INDEX" in plan or "PRIMARY KEY" in plan
            assert "TEMP B-TREE" not in plan
