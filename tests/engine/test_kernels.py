"""What a backend offers is asked for in one place, and a device without one is computed by torch."""

import pytest
import torch
from tiny import Tiny

from cachegraph.engine.kernels import KernelBackend, Unsupported, backend, backends


def test_every_backend_answers_for_its_type_of_device() -> None:
    assert [each.device_type for each in backends()] == ["cpu", "cuda"]
    assert all(isinstance(each, KernelBackend) and type(each) is not KernelBackend for each in backends())
    assert backend("cpu") is backends()[0]


def test_a_device_without_a_backend_leaves_everything_to_torch(tiny: Tiny) -> None:
    model, none = tiny("llama"), backend("mps")
    assert none.status() == "none"
    assert none.why_not(model.network) == "there are none for torch.float32 on mps"
    assert (none.key_rotator(), none.lean_fuser([]), none.float32_is_faster()) == (None, None, False)
    before = [type(module) for module in model.network.modules()]
    none.widen_linears(model.network)
    assert [type(module) for module in model.network.modules()] == before
    with pytest.raises(Unsupported, match="there are none for"):
        none.create_decoder(model.network, model.info)


def test_the_reason_to_have_no_kernels_names_what_the_device_computes_in(tiny: Tiny) -> None:
    assert backend("cpu").why_not(tiny("llama", torch.float16).network) == "there are none for torch.float16 on cpu"
