"""Linear layers in bfloat16 that compute in float32."""

import pytest
import torch
from torch import nn

from cachegraph.engine.cpu import linear
from cachegraph.engine.cpu.build import kernels
from cachegraph.engine.cpu.linear import WideLinear, widen_linears
from cachegraph.engine.model import int8


def layer(inputs: int = 512, outputs: int = 300, bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(inputs, outputs, bias=bias, dtype=torch.bfloat16).requires_grad_(False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "float32_is_faster", lambda: True)
        widen_linears(made)
    assert type(made) is WideLinear
    return made


@pytest.fixture(params=["kernels", "torch alone"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch alone":
        monkeypatch.setattr(linear, "kernels", lambda: "no compiler")
        monkeypatch.setattr(int8, "_AT_ONCE", 512 * 70)  # several pieces
    return str(request.param)


@pytest.mark.parametrize("bias", [False, True])
def test_results_are_those_of_float32_rounded_once(way: str, bias: bool) -> None:
    made, x = layer(bias=bias), torch.randn(2, 9, 512).bfloat16()
    exact = x.double() @ made.weight.double().T
    expected = exact.bfloat16() if made.bias is None else exact.bfloat16() + made.bias
    torch.testing.assert_close(made(x), expected, rtol=1e-2, atol=1e-3)


def test_the_gradient_of_the_input_is_that_of_a_plain_layer(way: str) -> None:
    made, plain = layer(), nn.Linear(512, 300, bias=False)
    plain.weight.data = made.weight.float()
    x = torch.randn(5, 512)
    ours, theirs = x.bfloat16().requires_grad_(), x.bfloat16().float().requires_grad_()
    made(ours).float().square().sum().backward()
    plain(theirs).square().sum().backward()
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad.float(), theirs.grad, rtol=3e-2, atol=2e-2)


def test_a_row_gets_the_same_bits_whatever_stands_beside_it() -> None:
    if isinstance(kernels(), str):
        pytest.skip("needs the kernels")
    made, x = layer(), torch.randn(67, 512).bfloat16()
    whole = made(x)
    assert all(torch.equal(made(x[: row + 1])[row], whole[row]) for row in range(len(x)))


def test_small_layers_other_dtypes_and_cpus_that_compute_bfloat16_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = nn.Linear(64, 64, dtype=torch.bfloat16)
    single = nn.Linear(512, 512)
    native = nn.Linear(512, 512, dtype=torch.bfloat16)
    monkeypatch.setattr(linear, "float32_is_faster", lambda: True)
    widen_linears(nn.ModuleList([small, single]))
    monkeypatch.setattr(linear, "float32_is_faster", lambda: False)
    widen_linears(native)
    assert {type(each) for each in (small, single, native)} == {nn.Linear}
