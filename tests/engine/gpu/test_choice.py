"""Whether a model decodes by the kernels is decided by what they compute of it, and nothing wrong with it is fatal."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import Tiny
from torch import Tensor

from cachegraph.engine.gpu import kernels
from cachegraph.engine.gpu.decoder import GPUDecoder
from cachegraph.engine.kernels import SWITCH, DecodeKernels
from cachegraph.engine.model.load import LoadedModel
from cachegraph.engine.model.verify import verify_kernels
from cachegraph.engine.model.verify.verify_model import verify_model


def chosen(model: LoadedModel) -> DecodeKernels | None:
    """By the check at load, which takes the model to be on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify_kernels, "home_of", lambda _: torch.device("cuda"))
        model.network.set_attn_implementation("sdpa")
        return verify_model(model.network, model.info).decoder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_decode_a_model_of_which_they_compute_what_it_does_itself(dtype: torch.dtype, tiny: Tiny) -> None:
    model = tiny("llama", dtype)
    found = chosen(model)
    assert isinstance(found, GPUDecoder)
    assert found.replays


def test_they_decode_none_of_which_they_compute_something_else(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attend = kernels.attend

    def wrong(segments: Tensor, rows: Tensor, query: Tensor, kv_heads: int, scale: float, *rest: Any) -> Tensor:
        return attend(segments, rows, query, kv_heads, -scale, *rest)

    monkeypatch.setattr(kernels, "attend", wrong)
    assert chosen(tiny("llama")) is None
    assert "torch alone decodes llama: the kernels compute something else" in caplog.text


def no_triton(patch: pytest.MonkeyPatch) -> None:
    patch.delitem(sys.modules, "cachegraph.engine.gpu.decoder")
    patch.delitem(sys.modules, "cachegraph.engine.gpu.kernels")
    patch.setitem(sys.modules, "triton", None)


def no_driver(patch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("0 active drivers ([]). There should only be one.")

    patch.setattr(kernels, "append", fail)


def switched_off(patch: pytest.MonkeyPatch) -> None:
    patch.setenv(SWITCH, "off")


@pytest.mark.parametrize("lack", [no_triton, no_driver, switched_off])
def test_without_them_torch_decodes(
    lack: Callable[[pytest.MonkeyPatch], None], tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    lack(monkeypatch)
    assert chosen(tiny("llama")) is None
