import math

import pytest

from cachegraph.engine.cpu import weights as kernel_weights
from cachegraph.engine.cpu.build import Kernels, kernels


@pytest.fixture(scope="module")
def compiled() -> Kernels:
    found = kernels()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(params=[True, False], ids=["panels", "no panels"])
def panels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether there is memory for weights in a second order."""
    monkeypatch.setattr(kernel_weights, "_ROOM", 0 if request.param else math.inf)
    return bool(request.param)
