"""The projectors and their sums against what the published implementation recorded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cachegraph.channels.cache.apply_fuser import FuserInput, fuse_layers
from cachegraph.channels.fusers.files.load import load_fuser
from cachegraph.channels.fusers.networks.base import Fuser
from cachegraph.channels.fusers.networks.c2c import C2CProjector
from cachegraph.engine.kernels import KVPair

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(path.parent.name for path in (GOLDEN / "cases").glob("[a-g]*/case.json"))


def read_case(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    folder = GOLDEN / "cases" / name
    return json.loads((folder / "case.json").read_text()), load_file(folder / "tensors.safetensors")


def layers_of(tensors: dict[str, Tensor], name: str) -> list[KVPair]:
    count = sum(key.startswith(f"{name}_k.") for key in tensors)
    return [(tensors[f"{name}_k.{layer}"], tensors[f"{name}_v.{layer}"]) for layer in range(count)]


def fused_positions(case: dict[str, Any], sharer: int) -> Tensor:
    positions: list[int] = []
    start = 0
    for mask, length in case["sections"]:
        if mask > 0 and mask & (1 << (sharer - 1)):
            positions += range(start, start + length)
        start += length
    return torch.tensor(positions, dtype=torch.int64)


@pytest.mark.parametrize("name", CASES)
def test_recorded_caches_fuse_to_the_recorded_result(name: str) -> None:
    case, tensors = read_case(name)
    sources = []
    for number, checkpoint in enumerate(case["ckpts"], 1):
        positions = fused_positions(case, number)
        fuser = load_fuser(GOLDEN / "ckpt" / checkpoint, dtype=getattr(torch, case["dtype"]))
        sources.append(FuserInput(fuser, layers_of(tensors, f"dict_sharer{number}"), (positions, positions)))
    with torch.inference_mode():
        fused = fuse_layers(layers_of(tensors, "dict_receiver"), sources, case["fusion_mode"]).layers
    positions = fused_positions(case, 1)
    for ours, theirs in zip(fused, layers_of(tensors, "fused"), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a[:, :, positions], b[:, :, positions], rtol=0, atol=1e-5)


def test_bfloat16_caches_are_rounded_once() -> None:
    case, tensors = read_case("a_bf16")
    fuser = load_fuser(GOLDEN / "ckpt/a", dtype=torch.bfloat16)
    receiver, sharer = layers_of(tensors, "dict_receiver"), layers_of(tensors, "dict_sharer1")
    with torch.inference_mode():
        fused = fuse_layers(receiver, [FuserInput(fuser, sharer)]).layers
        keys = fuser.projectors[0].residual(*sharer[0], *receiver[0]).k
    assert keys is not None
    assert keys.dtype == torch.float32
    assert torch.equal(fused[0][0], (receiver[0][0].float() + keys).bfloat16())


def test_gates_are_read_from_the_published_logits() -> None:
    fuser = load_fuser(GOLDEN / "ckpt/a")
    assert [tuple(projector.gates) for _, _, projector in fuser] == [
        (True, True),
        (True, False),
        (False, False),
        (True, True),
    ]
    assert fuser.open_layers == (0, 1, 3)
    assert fuser.openness == 5 / 8


class Recorded:
    """Plays back the uniform numbers that the reference drew."""

    def __init__(self, draws: list[Tensor]):
        self.draws = draws

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        drawn = self.draws.pop(0)
        assert drawn.shape == shape
        return drawn


def test_training_step_fuses_as_recorded_with_the_recorded_noise() -> None:
    """Layer 0 of the fused prefill: the caches that go in are known from another case's first six positions."""
    case, tensors = read_case("h_train_step")
    other = read_case("a_basic_parallel")[1]
    assert torch.equal(tensors["input_ids"], other["input_ids"])
    fuser = load_fuser(GOLDEN / "ckpt/a")
    set_up_training(fuser, tensors, case["temps"])
    receiver = [(k[:, :, :6], v[:, :, :6]) for k, v in layers_of(other, "dict_receiver")]
    sharer = [(k[:, :, :6], v[:, :, :6]) for k, v in layers_of(other, "dict_sharer1")]
    fused = fuse_layers(receiver, [FuserInput(fuser, sharer)]).layers
    for (k, v), (expected_k, expected_v) in zip(fused, layers_of(tensors, "fused"), strict=True):
        torch.testing.assert_close(k, expected_k[:, :, :6], rtol=0, atol=1e-4)
        torch.testing.assert_close(v, expected_v[:, :, :6], rtol=0, atol=1e-4)
    sum(x.sum() for pair in fused for x in pair).backward()  # type: ignore[union-attr]
    named = {f"grad.{layer}.{name}" for layer, _, p in fuser for name, w in p.named_parameters() if w.grad is not None}
    assert named == {name for name in tensors if name.startswith("grad.")}


def set_up_training(fuser: Fuser, tensors: dict[str, Tensor], temperatures: list[float]) -> None:
    fuser.train()
    for layer, _, projector in fuser:
        assert isinstance(projector, C2CProjector)
        projector.noise = Recorded([tensors[f"u.{2 * layer}"], tensors[f"u.{2 * layer + 1}"]])
        projector.gate_temperature.fill_(temperatures[layer])
        for module in projector.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0


def test_temperature_anneals_as_recorded() -> None:
    """The recorded temperatures are those of some step and its three successors."""
    temperatures = read_case("h_train_step")[0]["temps"]
    projector = load_fuser(GOLDEN / "ckpt/a").projectors[0]
    assert isinstance(projector, C2CProjector)
    recorded = []
    for step in range(500, 504):
        projector.anneal(step)
        recorded.append(float(projector.gate_temperature))
    assert recorded == pytest.approx(temperatures, rel=1e-5)
    projector.anneal(10**9)
    assert float(projector.gate_temperature) == pytest.approx(0.001)
