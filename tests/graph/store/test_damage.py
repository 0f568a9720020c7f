"""A damaged run store: a sentence or the run, never another library's error."""

import json
import shutil
import sqlite3
from pathlib import Path
from random import Random
from typing import Any

import pytest
from damage import Tally, damage_bytes, damage_json, odd_value

from cachegraph.errors import CachegraphError, ConfigError
from cachegraph.graph.store import Store

from .conftest import chain

JSON_COLUMNS = [("cachegraph_runs", "setting"), ("cachegraph_runs", "outcome"), ("cachegraph_runs", "owner")]
COLUMNS = [("cachegraph_runs", name) for name in ("graph", "status", "created", "seconds", "recipe", "heartbeat", "id")]
TURNS = [("cachegraph_turns", "body")] * 3 + [("cachegraph_turns", name) for name in ("recorded", "turn")]


def made(folder: Path) -> tuple[Path, str]:
    """A store with a run that was interrupted after its second turn."""
    with Store(folder / "whole.db") as store:
        run = chain().run(question="why?", store=store).run_id
        assert run is not None
    with sqlite3.connect(folder / "whole.db") as database:
        owner = json.dumps({"host": "elsewhere", "pid": 1, "since": 1.0})
        database.execute("DELETE FROM cachegraph_turns WHERE turn = 'c'")
        database.execute("UPDATE cachegraph_runs SET status = 'running', owner = ?, heartbeat = 1.0", (owner,))
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    return folder / "whole.db", run


def change(file: Path, table: str, column: str, value: Any) -> None:
    database = sqlite3.connect(file)
    try:
        with database:
            database.execute(f"UPDATE OR IGNORE {table} SET {column} = ?", (value,))
    except (sqlite3.Error, OverflowError, UnicodeEncodeError):
        pass  # the value is one that SQLite itself does not take
    finally:
        database.close()


def use(file: Path, run: str) -> None:
    """All that people do with a store."""
    problems = []
    with Store(file) as store:
        graph = chain()
        for work in (
            lambda: json.dumps([vars(each) for each in store.list()]),
            lambda: store.list(status="interrupted"),
            lambda: json.dumps(store.get(run).to_dict()),
            lambda: graph.resume(run, store=store),
            lambda: store.prune(0.0),
            lambda: chain().run(question="new", store=store),
        ):
            try:
                work()
            except CachegraphError as error:
                problems.append(error)
    if problems:
        raise problems[0]


def damage(dice: Random, file: Path) -> None:
    kind = dice.randrange(10)
    if kind < 3:
        table, column = dice.choice([*JSON_COLUMNS, ("cachegraph_turns", "body")])
        database = sqlite3.connect(file)
        (text,) = database.execute(f"SELECT {column} FROM {table}").fetchone()
        database.close()
        change(file, table, column, json.dumps(damage_json(dice, json.loads(text))))
    elif kind < 6:
        table, column = dice.choice([*JSON_COLUMNS, *COLUMNS, *TURNS])
        value = odd_value(dice)
        as_bytes = damage_bytes(dice, b'{"a": [1, 2]}')
        value = (
            as_bytes if dice.random() < 0.3 else value if isinstance(value, str | int | float) else json.dumps(value)
        )
        change(file, table, column, as_bytes.decode("utf-8", "replace") if dice.random() < 0.3 else value)
    elif kind < 7:
        change(file, "cachegraph_store", "version", odd_value(dice) or "x")
    else:
        file.write_bytes(damage_bytes(dice, file.read_bytes()))


def test_whatever_is_damaged_is_told_in_our_words(tmp_path: Path) -> None:
    whole, run = made(tmp_path)
    tally, seed = Tally("run stores"), 0
    while tally.goes_on:
        seed += 1
        dice, file = Random(seed), tmp_path / f"{seed}.db"
        shutil.copy(whole, file)
        damage(dice, file)
        tally.attempt(lambda file=file: use(file, run))  # type: ignore[misc]
        for each in tmp_path.glob(f"{seed}.db*"):
            each.unlink()
    tally.print()
    assert tally.refused


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("setting", "[" * 100_000),
        ("setting", "not JSON"),
        ("setting", '{"inputs": 5}'),
        ("setting", "9" * 5000),
        ("outcome", '{"unfinished": {"a": {"status": "failed", "more": 1}}}'),
        ("outcome", b"\xff\xfe"),
        ("created", "yesterday"),
        ("recipe", b"\xff\xfe"),
    ],
)
def test_a_damaged_run_is_named_and_can_be_removed_while_others_are_as_they_were(
    column: str, value: object, tmp_path: Path
) -> None:
    file, run = made(tmp_path)
    change(file, "cachegraph_runs", column, value)
    with Store(file) as store:
        other = chain().run(question="q", store=store).run_id
        assert other is not None
        assert {each.id for each in store.list()} == {run, other}
        for work in (lambda: store.get(run), lambda: chain().resume(run, store=store)):
            with pytest.raises(ConfigError, match=f"run '{run}' in the run store .* is damaged .* cachegraph runs rm"):
                work()
        assert store.get(other).status == "finished"
        assert store.remove(run) == [run]
        assert [each.id for each in store.list()] == [other]


@pytest.mark.parametrize(
    "owner", ["x", "[]", "[" * 100_000, "{}", '{"host": 1}', b"\xff", '{"host": "h", "pid": -1, "since": "a"}']
)
def test_a_run_whose_owner_is_damaged_is_nobodys(owner: object, tmp_path: Path) -> None:
    file, run = made(tmp_path)
    change(file, "cachegraph_runs", "owner", owner)
    with Store(file) as store:
        assert [each.status for each in store.list()] == ["interrupted"]
        assert chain().resume(run, store=store).status == "finished"


def test_half_a_character_in_a_reply_is_no_damage(tmp_path: Path) -> None:
    file, run = made(tmp_path)
    change(file, "cachegraph_turns", "body", json.dumps({"text": "half \ud83d", "agent": {}, "edges": {}}))
    with Store(file) as store:
        assert store.get(run).turns[0].recorded.text == "half \ud83d"
