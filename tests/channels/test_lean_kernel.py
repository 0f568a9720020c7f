"""The kernel that corrects all layers by a lean fuser in one call gives what the fuser itself gives."""

from typing import Any

import pytest
import torch

from cachegraph.channels.cache import apply_fuser
from cachegraph.channels.cache.apply_fuser import FusedLayers, FuserInput, ReceiverRope, fuse_layers
from cachegraph.channels.cache.residual_norms import ResidualNorms
from cachegraph.channels.fusers.files.card import Geometry
from cachegraph.channels.fusers.networks.base import Fuser
from cachegraph.channels.fusers.networks.create import new_fuser
from cachegraph.engine.cpu.build import Kernels, kernels
from cachegraph.engine.kv.cache import LayerKV

RECEIVER, SHARER = Geometry(3, 3, 64), Geometry(4, 1, 96)
HERE, THERE = torch.arange(2, 43), torch.arange(41).flip(0) // 2


@pytest.fixture(autouse=True)
def compiled() -> Kernels:
    found = kernels()
    if isinstance(found, str):
        pytest.skip(found)
    return found


def lean(**card: Any) -> Fuser:
    made = new_fuser("lean", RECEIVER, SHARER, width=32, seed=2, card=card)
    numbers = torch.Generator().manual_seed(3)
    for projector in made.projectors.values():
        for name, parameter in projector.named_parameters():
            if name != "gate_logit":
                spread = torch.randn(parameter.shape, generator=numbers) / max(1, parameter.shape[-1]) ** 0.5
                parameter.data.copy_(spread if parameter.ndim == 2 else 1 + 0.3 * spread)
        projector.requires_grad_(False).eval()
    return made


def layers(geometry: Geometry, seed: int, positions: int) -> list[LayerKV]:
    """In bfloat16, with room behind the positions, as a row's own tail has."""
    numbers = torch.Generator().manual_seed(seed)
    assert isinstance(geometry.kv_heads, int)
    assert isinstance(geometry.head_dim, int)
    shape = (2, 1, geometry.kv_heads, positions + 20, geometry.head_dim)
    drawn = [torch.randn(shape, generator=numbers).bfloat16() for _ in range(geometry.layers)]
    return [LayerKV(*(x[:, :, :positions] for x in each.unbind())) for each in drawn]


@pytest.fixture
def rope(demo_bfloat16: Any) -> ReceiverRope:
    """SmolLM2's RoPE, of heads of 64; its layers are more than the fuser's."""
    return ReceiverRope(demo_bfloat16("smollm2-135m-instruct").rotation, torch.arange(7, 57))


def by_kernel(source: FuserInput, receiver: list[LayerKV]) -> FusedLayers:
    done = apply_fuser._by_kernel(receiver, source)
    assert done is not None
    return done


def by_torch(source: FuserInput, receiver: list[LayerKV], dtype: torch.dtype) -> FusedLayers:
    """Without the kernel, the caches and the fuser in this dtype."""
    fuser = source.fuser.to("cpu", dtype)
    theirs = [LayerKV(*(x.to(dtype) for x in layer)) for layer in source.layers]
    mine = [LayerKV(*(x.to(dtype) for x in layer)) for layer in receiver]
    plain = FuserInput(fuser, theirs, source.pairs, source.sizes, source.rope)
    return FusedLayers(apply_fuser._fuse(mine, [plain], None), ())


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


@pytest.mark.models
@pytest.mark.parametrize("turns", [True, False], ids=["unrotated", "as it is"])
def test_it_is_as_near_to_float32_as_torch_in_bfloat16(turns: bool, rope: ReceiverRope) -> None:
    fuser, receiver = lean().to("cpu", torch.bfloat16), layers(RECEIVER, 0, 50)
    source = FuserInput(fuser, layers(SHARER, 1, 30), (HERE, THERE), rope=rope if turns else None)
    exact, torchs = (by_torch(source, receiver, dtype) for dtype in (torch.float32, torch.bfloat16))
    ours = by_kernel(source, receiver)
    assert ours.changed == (0, 1, 2)
    for clean, right, theirs, mine in zip(receiver, exact.layers, torchs.layers, ours.layers, strict=True):
        for base, a, b, c in zip(clean, right, theirs, mine, strict=True):
            base = base.float()
            assert distance(c, a) < 1.1 * distance(b, a)
            assert distance(c.float() - base, a - base) < 0.02
            assert torch.equal(c[:, :, :2], base[:, :, :2])  # nobody corrects these
            assert torch.equal(c[:, :, 43:], base[:, :, 43:])


@pytest.mark.models
def test_the_sizes_of_corrections_are_those_of_torch(rope: ReceiverRope) -> None:
    fuser, receiver = lean().to("cpu", torch.bfloat16), layers(RECEIVER, 0, 50)
    ours, theirs = ResidualNorms(), ResidualNorms()
    by_kernel(FuserInput(fuser, layers(SHARER, 1, 30), (HERE, THERE), ours, rope), receiver)
    by_torch(FuserInput(fuser, layers(SHARER, 1, 30), (HERE, THERE), theirs, rope), receiver, torch.bfloat16)
    for layer, numbers in theirs.by_layer(fuser).items():
        assert ours.by_layer(fuser)[layer] == pytest.approx(numbers, rel=0.01)


def test_a_position_gets_the_same_bits_whatever_else_is_corrected_on_any_number_of_threads() -> None:
    fuser, receiver, theirs = lean().to("cpu", torch.bfloat16), layers(RECEIVER, 0, 50), layers(SHARER, 1, 30)
    whole = by_kernel(FuserInput(fuser, theirs, (HERE, THERE)), receiver)
    threads = torch.get_num_threads()
    try:
        for count, some in ((1, slice(0, 41)), (3, slice(5, 38)), (2, slice(40, 41))):
            torch.set_num_threads(count)
            part = by_kernel(FuserInput(fuser, theirs, (HERE[some], THERE[some])), receiver)
            for one, other in zip(whole.layers, part.layers, strict=True):
                for a, b in zip(one, other, strict=True):
                    assert torch.equal(a[:, :, HERE[some]], b[:, :, HERE[some]])
    finally:
        torch.set_num_threads(threads)


def test_what_it_was_given_stays_as_it_is() -> None:
    receiver, theirs = layers(RECEIVER, 0, 50), layers(SHARER, 1, 30)
    before = [x.clone() for layer in (*receiver, *theirs) for x in layer]
    by_kernel(FuserInput(lean().to("cpu", torch.bfloat16), theirs, (HERE, THERE)), receiver)
    assert all(map(torch.equal, before, [x for layer in (*receiver, *theirs) for x in layer]))


def test_what_it_can_not_correct_is_left_to_torch() -> None:
    narrow, receiver, theirs = lean().to("cpu", torch.bfloat16), layers(RECEIVER, 0, 50), layers(SHARER, 1, 30)
    pairs = (HERE, THERE)
    wide = [LayerKV(*(x.float() for x in layer)) for layer in receiver]
    assert apply_fuser._by_kernel(wide, FuserInput(narrow, theirs, pairs)) is None
    assert apply_fuser._by_kernel(receiver, FuserInput(lean(), theirs, pairs)) is None  # its weights are float32
    assert apply_fuser._by_kernel(receiver, FuserInput(narrow, theirs, (HERE[:0], THERE[:0]))) is None
    for projector in narrow.projectors.values():
        projector.requires_grad_(True)  # it is being trained
    assert apply_fuser._by_kernel(receiver, FuserInput(narrow, theirs, pairs)) is None
    assert fuse_layers(receiver, [FuserInput(narrow, theirs, pairs)]).changed == (0, 1, 2)
