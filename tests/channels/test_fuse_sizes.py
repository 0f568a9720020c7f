import pytest
import torch

from cachegraph.channels.cache.residual_norms import ResidualNorms
from cachegraph.channels.fusers.networks.base import Gates, Residual


class _Fuser:
    """Two layers: the first corrects keys alone, the second is closed."""

    gates = {3: Gates(True, False), 4: Gates(False, False)}


def test_corrections_are_measured_over_all_stretches_beside_what_was_there() -> None:
    sizes = ResidualNorms()
    first, second = torch.full((1, 1, 1, 2, 4), 2.0), torch.full((1, 1, 1, 6, 4), 2.0)
    sizes.add([3], Residual(0.5 * first, None), first, first)
    sizes.add([3], Residual(torch.zeros_like(second), None), second, second)
    found = sizes.by_layer(_Fuser())  # type: ignore[arg-type]
    # A quarter of all positions is changed by one half: sqrt(1/4 * 1/2 ** 2).
    assert found == {3: (pytest.approx(0.25), None), 4: (None, None)}


def test_where_nothing_was_corrected_nothing_is_said() -> None:
    assert ResidualNorms().by_layer(_Fuser()) == {}  # type: ignore[arg-type]
