"""Files that several processes or threads write, replace or delete at the same time."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cachegraph.agents.sessions import session_files as session_folder
from cachegraph.channels.fusers.files.atomic_folder import replaced_folder
from cachegraph.channels.fusers.files.card import CARD, Geometry, change_card, read_card
from cachegraph.channels.fusers.files.weights import WEIGHTS, save_fuser
from cachegraph.channels.fusers.fuser_folder import on_shelf
from cachegraph.channels.fusers.networks.create import new_fuser
from cachegraph.cli.recipes import _write
from cachegraph.common.atomic_write import write_atomically
from cachegraph.common.file_lock import open_locked
from cachegraph.common.json_cache import KeptJson
from cachegraph.engine.catalogue.store import folder_bytes
from cachegraph.errors import ConfigError, InputError


def at_once(*jobs: Callable[[], object], times: int = 1) -> None:
    """Call all of them in threads of their own, again and again; raises what one raises."""
    start = threading.Barrier(len(jobs))

    def repeat(job: Callable[[], object]) -> None:
        start.wait()
        for _ in range(times):
            job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        for done in [pool.submit(repeat, job) for job in jobs]:
            done.result()


def test_of_many_writers_one_wins_and_nobody_reads_half(tmp_path: Path) -> None:
    file = tmp_path / "recipe.svg"
    texts = {letter: letter * 100_000 for letter in "abcd"}
    seen: set[str] = set()
    write_atomically(file, texts["a"])
    at_once(
        *(lambda text=text: _write(text, file) for text in texts.values()), lambda: seen.add(file.read_text()), times=20
    )
    assert seen <= set(texts.values())
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.svg"]


@pytest.mark.parametrize("place", ["", "/", ".", "a\0b", "none/x"])
def test_a_path_that_is_no_files_is_told(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="can't write .*; choose another file"):
        _write("x", Path(place))
    assert not any(tmp_path.iterdir())


def test_half_a_character_does_not_keep_a_file_from_being_written(tmp_path: Path) -> None:
    write_atomically(tmp_path / "x", "a\ud83d\ude00\udc00")
    assert (tmp_path / "x").read_text() == "a\U0001f600\ufffd"


def test_two_that_replace_one_folder_both_end_well(tmp_path: Path) -> None:
    def replace() -> None:
        with replaced_folder(tmp_path / "fuser", frozenset({"file"})) as fresh:
            (fresh / "file").write_text("whole")

    at_once(*[replace] * 4, times=25)
    assert (tmp_path / "fuser" / "file").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["fuser"]


def test_a_folder_that_can_not_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str | Path, target: str | Path) -> None:
        if (
            Path(target) == tmp_path / "fuser"
            and Path(source).name.startswith(".fuser-")
            and "-old-" not in str(source)
        ):
            raise OSError(13, "Permission denied")
        rename(source, target)

    rename = os.replace
    (tmp_path / "fuser").mkdir()
    (tmp_path / "fuser" / "file").write_text("old")
    monkeypatch.setattr(os, "replace", refuse)
    with (
        pytest.raises(Exception, match="Permission denied"),
        replaced_folder(tmp_path / "fuser", frozenset({"file"})) as fresh,
    ):
        (fresh / "file").write_text("new")
    assert (tmp_path / "fuser" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["fuser"]


def saved_fuser(folder: Path) -> Path:
    save_fuser(new_fuser("lean", Geometry(1, 1, 4), Geometry(1, 1, 4), width=2), folder)
    return folder


def test_what_two_commands_add_to_a_card_is_kept(tmp_path: Path) -> None:
    fuser = saved_fuser(tmp_path / "fuser")

    def add(name: str) -> None:
        while True:
            try:
                change_card(fuser, lambda card: card.model_copy(update={"metrics": {**card.metrics, name: 1.0}}))
            except InputError:  # it is told so, and gives the command again
                continue
            return

    at_once(*(lambda name=f"m{number}": add(name) for number in range(16)))
    assert set(read_card(fuser).metrics) >= {f"m{number}" for number in range(16)}


def test_a_killed_commands_draft_does_not_make_a_fuser_a_strangers_folder(tmp_path: Path) -> None:
    fuser = saved_fuser(tmp_path / "fuser")
    (fuser / f".{CARD}.1-2.part").write_text("half")
    with replaced_folder(fuser, frozenset({CARD, WEIGHTS})) as fresh:
        (fresh / CARD).write_text("{}")
    assert [path.name for path in fuser.iterdir()] == [CARD]


def test_a_lock_of_a_file_that_was_replaced_is_of_the_new_one(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text("old")
    held = open_locked(file, "rb", "wait")
    write_atomically(file, "new")
    with open_locked(file, "rb", "wait") as new:
        assert new.read() == b"new"
        with pytest.raises(InputError, match="another command; wait"):
            open_locked(file, "rb", "wait")
    held.close()


def test_values_that_many_keep_at_once_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path))
    values = [list(range(number)) for number in range(1000, 1004)]
    kept = KeptJson("checks", ["one"])
    kept.write(values[0])

    def read() -> None:
        assert kept.read() in values

    at_once(*(lambda value=value: kept.write(value) for value in values), read, times=20)
    assert [path.suffix for path in (tmp_path / "checks").iterdir()] == [".json"]


def test_a_session_is_taken_again_while_another_run_lets_it_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder is deleted by whoever leaves it."""
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path))
    refused: list[int] = []

    def take() -> None:
        try:
            with session_folder.taken("ann") as place:
                assert place.is_dir()
                (place / "x").write_text("x")
                (place / "x").unlink()
        except InputError:
            refused.append(1)

    at_once(*[take] * 6, times=40)
    assert len(refused) < 6 * 40
    assert session_folder.sessions() == []


def test_folders_are_measured_while_others_delete_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path))
    monkeypatch.setenv("CACHEGRAPH_SESSIONS_GB", "0")
    session = tmp_path / "sessions" / "ann"
    stop = threading.Event()

    def churn() -> None:
        for number in range(300):
            (session / str(number)).mkdir(parents=True)
            (session / str(number) / "x").write_text("x")
            (session / f"{number}.safetensors").write_text("x")
            (session / str(number) / "x").unlink()
            (session / str(number)).rmdir()
            (session / f"{number}.safetensors").unlink(missing_ok=True)
        stop.set()

    def measure() -> None:
        while not stop.is_set():
            folder_bytes(tmp_path)
            folder_bytes(tmp_path, ".safetensors")
            session_folder.caches_of("ann")
            session_folder.sweep()
            on_shelf(tmp_path)

    at_once(churn, measure, measure)


def test_a_folder_that_is_deleted_before_it_is_read_counts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of pip, while the wheels that it fetches are counted."""
    scandir = os.scandir

    def late(place: Any = ".") -> Any:
        if Path(place).name == "tmp":
            raise FileNotFoundError(2, "No such file or directory", str(place))
        return scandir(place)

    (tmp_path / "pip" / "tmp").mkdir(parents=True)
    (tmp_path / "pip" / "x.whl").write_bytes(b"123")
    (tmp_path / "pip" / "pip.log").write_bytes(b"12345")
    monkeypatch.setattr(os, "scandir", late)
    assert (folder_bytes(tmp_path), folder_bytes(tmp_path, ".whl")) == (8, 3)
