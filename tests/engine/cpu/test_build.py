"""Kernels are compiled once, and their absence is told, not felt."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cachegraph.engine.cpu import build
from cachegraph.engine.cpu.build import Kernels, kernels
from cachegraph.engine.kernels import backend


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    build._kernels.cache_clear()


@pytest.fixture(autouse=True, scope="module")
def afterwards() -> Iterator[None]:
    yield
    build._kernels.cache_clear()


def test_they_are_compiled_into_the_home_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if isinstance(found := kernels(), str):
        pytest.skip(found)
    (library,) = (tmp_path / "kernels").glob("*.so")
    made = library.stat().st_mtime_ns
    build._kernels.cache_clear()
    assert isinstance(kernels(), Kernels)
    assert library.stat().st_mtime_ns == made
    assert "compiled for this CPU" in backend("cpu").status()


def test_a_variable_turns_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEGRAPH_KERNELS", "off")
    assert "CACHEGRAPH_KERNELS" in backend("cpu").status()


def test_without_a_compiler_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "install g++" in backend("cpu").status()


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 1 && exit 0\necho 'no such flag' >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert "broken" in backend("cpu").status()
    assert "no such flag" in backend("cpu").status()
    assert not list((tmp_path / "kernels").glob("*.part"))


def test_a_library_cut_short_is_compiled_again(tmp_path: Path) -> None:
    if isinstance(found := kernels(), str):
        pytest.skip(found)
    (library,) = (tmp_path / "kernels").glob("*.so")
    library.unlink()
    library.write_bytes(b"nothing")
    build._kernels.cache_clear()
    assert isinstance(kernels(), Kernels)
