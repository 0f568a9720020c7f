"""What the kernels compute of the demo models is what torch computes in float32."""

from functools import cache
from typing import Any, NamedTuple

import pytest
import torch

from cachegraph.engine.cpu.build import Kernels
from cachegraph.engine.cpu.decoder import CPUDecoder
from cachegraph.engine.kv.cache import RowCache
from cachegraph.engine.model.forward import Row, forward
from cachegraph.engine.model.load import LoadedModel
from cachegraph.engine.model.verify.in_float32 import in_float32

pytestmark = [pytest.mark.models, pytest.mark.usefixtures("panels")]
LONG = [(1009 * i + 7) % 20000 for i in range(600)]


@pytest.mark.parametrize(
    ("name", "weights"), [("smollm2-135m-instruct", None), ("smollm2-135m-instruct", "int8"), ("gemma-3-270m", None)]
)
@torch.inference_mode()
def test_demo_models_decode_with_the_kernels(name: str, weights: Any, compiled: Kernels, demo_bfloat16: Any) -> None:
    model = demo_bfloat16(name, weights)
    assert isinstance(model.decoder, CPUDecoder)
    decoder = CPUDecoder(model.network, model.info, compiled)  # the model is shared, and may be loaded with panels
    past = RowCache()
    forward(model.network, model.info, [Row([(7 + 3 * i) % 300 for i in range(30)], past, "none")])
    (segment,) = past.freeze()
    wide = segment.to(model.devices, torch.float32)
    with in_float32(model.network):
        (expected,) = forward(model.network, model.info, [Row([9], RowCache([wide]))])
    assert expected is not None
    got = decoder.step([9], [RowCache([segment])])[0]
    assert torch.nn.functional.cosine_similarity(got, expected[0], dim=0) > 0.9999


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma-3-270m"])
@torch.inference_mode()
def test_demo_models_read_prompts_with_the_kernels_as_near_to_float32_as_torch_does(
    name: str, compiled: Kernels, demo_bfloat16: Any
) -> None:
    """600 tokens: attention goes beyond the entries that it takes at a time, and beyond Gemma's window."""
    model = demo_bfloat16(name)
    assert isinstance(model.decoder, CPUDecoder)
    decoder = CPUDecoder(model.network, model.info, compiled)
    exact, torchs = _read_by_torch(model)
    cache = RowCache()
    ours = decoder.read([LONG], [cache], [[len(LONG) - 1]], many=True)
    assert distance(ours, exact.logits) < 1.2 * distance(torchs.logits, exact.logits)
    for layer, (one, other, right) in enumerate(
        zip(cache.tail().layers, torchs.cache.tail().layers, exact.cache.tail().layers, strict=True)
    ):
        for a, b, c in zip(one, other, right, strict=True):
            assert distance(a, c) < 1.2 * distance(b, c) + 1e-4, layer


class _Read(NamedTuple):
    """Logits behind the last token, (1, vocab), and what is cached."""

    logits: torch.Tensor
    cache: RowCache


@cache  # with panels and without them, the same is expected
def _read_by_torch(model: LoadedModel) -> tuple[_Read, _Read]:
    """`LONG` in float32, and in the model's own dtype."""
    exact, torchs = RowCache(), RowCache()
    with in_float32(model.network):
        (expected,) = forward(model.network, model.info, [Row(LONG, exact)])
    (rounded,) = forward(model.network, model.info, [Row(LONG, torchs)])
    assert expected is not None
    assert rounded is not None
    return _Read(expected, exact), _Read(rounded, torchs)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative."""
    return float((a.float() - b.float()).norm() / b.float().norm())
