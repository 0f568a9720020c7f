"""On a machine without a GPU Triton's interpreter runs the kernels' own source there, program by program."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from tiny import Tiny, config_of, save_model

from cachegraph.engine.model.load import LoadedModel, load_model

try:
    kernels, decoder = (import_module(f"cachegraph.engine.gpu.{name}") for name in ("kernels", "decoder"))
except ImportError:  # there is no Triton for this system
    collect_ignore_glob = ["test_*.py"]
LAUNCHED = ("_append", "_attend", "_merge")
ON_GPU = os.environ.get("TRITON_INTERPRET") != "1"


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies the bits of bfloat16 as integers: it is given what they mean. Fewer programs share a
    row, each of fewer entries, so that short rows are shared and the tests are fast.
    """
    if ON_GPU:
        return
    monkeypatch.setattr(kernels, "_SPLITS", 2)
    monkeypatch.setattr(kernels, "_LEAST", 16)
    language, interpreter = import_module("triton.language"), import_module("triton.runtime.interpreter")
    multiply = interpreter.InterpreterBuilder.create_dot

    def wide(each: Any) -> Any:
        if each.dtype.scalar != language.bfloat16:
            return each
        return interpreter.TensorHandle((each.data.astype(np.uint32) << 16).view(np.float32), language.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return multiply(self, wide(a), wide(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
    # It also computes whether an integer overflows, but looks at what it finds only when it debugs.
    builder = interpreter.interpreter_builder
    monkeypatch.setattr(builder, "options", replace(builder.options, sanitize_overflow=builder.options.debug))
    # It prepares Triton's own functions again at every call, which takes most of its time; once in a launch is enough.
    prepare = interpreter._patch_lang
    prepared: set[Any] = set()

    def once(function: Any) -> Any:
        if function in prepared:
            return None
        if function.__name__ in LAUNCHED:  # what a launch prepares is undone when it ends
            prepared.clear()
        else:
            prepared.add(function)
        return prepare(function)

    monkeypatch.setattr(interpreter, "_patch_lang", once)
    for name in ("append", "attend"):
        monkeypatch.setattr(kernels, name, partial(_with_room, getattr(kernels, name)))


# Python's frames stand in chunks of memory of their own, and a loop whose calls begin at the end of one takes a new one
# from the system at every call, four times as slow. A frame this large gets one with room behind it.
_names: dict[str, Any] = {}
exec(
    "def with_room(call, *given):\n    return call(*given)\n    " + "; ".join(f"x{i} = 0" for i in range(20_000)),
    _names,
)
_with_room = _names["with_room"]


@pytest.fixture
def stepped(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LoadedModel]:
    """`stepped(kind)`: a tiny model that decodes as on a GPU; on one, if there is one."""

    def make(kind: str = "llama", dtype: torch.dtype = torch.float32) -> LoadedModel:
        if ON_GPU:
            model = load_model(save_model(config_of(kind), tmp_path_factory.mktemp(kind)), dtype=dtype, device="cuda")
            assert isinstance(model.decoder, decoder.GPUDecoder)
            return model
        model = tiny(kind, dtype)
        return replace(model, decoder=decoder.GPUDecoder(model.network, model.info))

    return make
