"""Kernels are compiled once, and their absence is told, not felt."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cachegraph.engine.cpu import build
from cachegraph.engine.cpu.build import Kernels, kernels
from cachegraph.engine.kernels import backend


@pytest.fixture(autouse=True, scope="module")
def quickly() -> Iterator[None]:
    """How fast the code is doesn't matter here, so the compiler need not optimise it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_FLAGS", ("-O0", *build._FLAGS[1:]))
        yield


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    build._kernels.cache_clear()


@pytest.fixture(scope="module")
def library(quickly: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was compiled into a home of its own."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHEGRAPH_HOME", str(home))
        build._kernels.cache_clear()
        if isinstance(found := kernels(), str):
            pytest.skip(found)
    (made,) = (home / "kernels").glob("*.so")
    return made


@pytest.fixture(autouse=True, scope="module")
def afterwards() -> Iterator[None]:
    yield
    build._kernels.cache_clear()


def test_they_are_compiled_into_the_home_once(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHEGRAPH_HOME", str(library.parents[1]))
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


def test_a_library_cut_short_is_compiled_again(library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a compiler that makes the same file as the real one, in no time."""
    quick = tmp_path / "quick"
    quick.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exec {build.compiler()} --version\n'
        f'for part; do :; done\ncp {library} "$part"\n'
    )
    quick.chmod(0o755)
    monkeypatch.setenv("CXX", str(quick))
    cut = tmp_path / "kernels" / library.name
    cut.parent.mkdir()
    cut.write_bytes(b"nothing")
    assert isinstance(kernels(), Kernels)
    assert cut.read_bytes() == library.read_bytes()
