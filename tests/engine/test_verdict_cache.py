"""The check at load is remembered as long as nothing changed that it depends on, and by nobody else."""

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hybrids import HYBRIDS
from tiny import config_of, save_model

from cachegraph.common import json_cache
from cachegraph.engine.cpu import backend as cpu
from cachegraph.engine.kernels import SWITCH
from cachegraph.engine.kv.cache import RowCache
from cachegraph.engine.model import load
from cachegraph.engine.model.forward import Row, forward
from cachegraph.engine.model.load import LoadedModel, load_model
from cachegraph.engine.model.verify import verdict_cache
from cachegraph.engine.model.verify.verdict import Verdict
from cachegraph.engine.model.verify.verdict_cache import VerdictCache
from cachegraph.engine.model.verify.verify_model import VerifiedModel, verify_model


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "checks"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(config_of("llama"), tmp_path / "model")


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every check that is made."""
    made: list[int] = []

    def counted(*args: Any) -> VerifiedModel:
        made.append(1)
        return verify_model(*args)

    monkeypatch.setattr(load, "verify_model", counted)
    return made


def logits_of(model: LoadedModel) -> torch.Tensor:
    (logits,) = forward(model.network, model.info, [Row([3, 5, 7], RowCache())])
    assert logits is not None
    return logits


@pytest.mark.parametrize(
    "kind", ["llama", "gemma3_short_window", "gpt_neox", "gpt_oss", "gemma4", "deepseek_v3", "lfm2"]
)
def test_a_model_of_a_kept_verdict_is_the_one_that_was_checked(
    tmp_path: Path, home: Path, checked: list[int], kind: str
) -> None:
    folder = save_model(HYBRIDS[kind]() if kind in HYBRIDS else config_of(kind), tmp_path / "model")
    first, second = (load_model(folder, checks="once") for _ in range(2))
    assert len(checked) == 1
    assert second.verdict == first.verdict
    assert second.info == first.info
    assert (second.why_no_cache, second.rotation.why_not) == (first.why_no_cache, first.rotation.why_not)
    assert torch.equal(logits_of(second), logits_of(first))
    assert len(list(home.iterdir())) == 1


def test_a_model_without_a_cache_is_remembered_as_one(folder: Path, home: Path, checked: list[int]) -> None:
    verdict = replace(load_model(folder, checks="once").verdict, why_no_cache="it keeps none")
    VerdictCache(folder, (str(torch.float32), None, "cpu")).write(verdict)
    assert load_model(folder, checks="once").why_no_cache == "it keeps none"
    assert len(checked) == 1


def touch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(folder / "model.safetensors", ns=(1, 1))


def change_one_weight_and_put_the_time_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "model.safetensors"
    times, content = file.stat(), bytearray(file.read_bytes())
    content[-7] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def change_the_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))


CHANGES: dict[str, Callable[[Path, pytest.MonkeyPatch], Any]] = {
    "time": touch,
    "weight": change_one_weight_and_put_the_time_back,
    "config": change_the_config,
    "torch": lambda _, patch: patch.setattr(torch, "__version__", "2.99.0"),
    # By its path: transformers runs its own `__init__` twice, so that a test may hold another module object.
    "transformers": lambda _, patch: patch.setattr(f"{verdict_cache.__name__}.transformers.__version__", "0.0"),
    "cachegraph": lambda _, patch: patch.setattr(verdict_cache, "__version__", "0.0"),
    "code": lambda _, patch: patch.setattr(verdict_cache, "_own_code", lambda: "other"),
    "cpu": lambda _, patch: patch.setattr(cpu, "cpu_features", lambda: "other"),
    "compiler": lambda _, patch: patch.setattr(cpu, "compiler", lambda: "/another/g++"),
    "switch": lambda _, patch: patch.setenv(SWITCH, "off"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_is_checked_again(
    folder: Path, home: Path, checked: list[int], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    if change == "switch":  # which changes nothing on a machine without a compiler
        monkeypatch.setattr(cpu, "compiler", lambda: "/another/g++")
    load_model(folder, checks="once")
    CHANGES[change](folder, monkeypatch)
    load_model(folder, checks="once")
    load_model(folder, checks="once")
    assert len(checked) == 2


def test_another_dtype_is_another_verdict(folder: Path, home: Path, checked: list[int]) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float32, torch.bfloat16):
        load_model(folder, dtype=dtype, checks="once")
    assert len(checked) == 2


def test_models_with_equal_headers_and_times_are_told_apart(tmp_path: Path, home: Path, checked: list[int]) -> None:
    """As archives leave them, which set all times alike."""
    for seed in (0, 1):
        folder = save_model(config_of("llama"), tmp_path / str(seed), seed=seed)
        os.utime(folder / "model.safetensors", ns=(0, 0))
        load_model(folder, checks="once")
    assert len(checked) == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"key": "x"}', b"\xff\xfe", b'{"key": 1, "verdict": {}}', b"[" * 100_000],
)
def test_a_damaged_file_is_checked_again_and_replaced(
    folder: Path, home: Path, checked: list[int], content: bytes
) -> None:
    load_model(folder, checks="once")
    (file,) = home.iterdir()
    whole = file.read_bytes()
    file.write_bytes(content)
    load_model(folder, checks="once")
    load_model(folder, checks="once")
    assert len(checked) == 2
    assert json.loads(file.read_bytes())["key"] == json.loads(whole)["key"]


def test_a_file_that_lost_a_part_of_its_verdict_is_damaged(folder: Path, home: Path, checked: list[int]) -> None:
    load_model(folder, checks="once")
    (file,) = home.iterdir()
    kept = json.loads(file.read_text())
    for number, name in enumerate([*kept["value"], "shapes[0]"]):
        broken = json.loads(json.dumps(kept))
        if name == "shapes[0]":
            del broken["value"]["shapes"][0]
        else:
            del broken["value"][name]
        file.write_text(json.dumps(broken))
        load_model(folder, checks="once")
        assert len(checked) == number + 2


def test_a_check_made_again_does_not_look_at_what_is_kept_and_keeps_what_it_finds(
    folder: Path, home: Path, checked: list[int]
) -> None:
    for how, expected in (("once", 1), ("again", 2), ("once", 2), ("always", 3)):
        load_model(folder, checks=how)  # type: ignore[arg-type]
        assert len(checked) == expected


def test_a_home_that_can_not_be_written_to_keeps_nothing(
    folder: Path, tmp_path: Path, checked: list[int], home: Path
) -> None:
    home.parent.mkdir()
    home.write_text("no folder")
    for expected in (1, 2):
        load_model(folder, checks="once")
        assert len(checked) == expected


def test_a_failed_compilation_is_not_remembered(
    folder: Path, home: Path, checked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "failure", lambda: "the model is small")
    load_model(folder, checks="once")
    assert not home.exists() or not list(home.iterdir())


def test_writers_at_the_same_time_leave_a_whole_file(folder: Path, home: Path) -> None:
    cache = VerdictCache(folder, "how")
    verdict = load_model(folder).verdict
    read: list[Verdict | None] = []

    def work() -> None:
        for _ in range(20):
            cache.write(verdict)
            read.append(cache.read())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == [verdict] * 80
    assert len(list(home.iterdir())) == 1


def test_old_verdicts_make_room(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_cache, "_KEPT", 3)
    verdict = load_model(folder).verdict
    for number in range(6):
        VerdictCache(folder, number).write(verdict)
    assert len(list(home.iterdir())) == 3
    assert VerdictCache(folder, 5).read() == verdict
