"""The kernels read what they are given the addresses of, so every size is looked at first."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import SIZES, save_model
from transformers import models as hf

from cachegraph.engine.cpu import backend
from cachegraph.engine.cpu.build import kernels
from cachegraph.engine.model.load import load_model

WIDE: dict[str, Any] = {**SIZES, "hidden_size": 64, "intermediate_size": 64, "head_dim": 32, "num_hidden_layers": 2}
ODD: dict[str, tuple[Callable[[], Any], str | None]] = {
    "a part of each head is rotated": (
        lambda: hf.glm.GlmConfig(**{**WIDE, "pad_token_id": 0, "eos_token_id": 0}, partial_rotary_factor=0.5),
        None,
    ),
    "queries are twice as wide": (
        lambda: hf.qwen3_5.Qwen3_5TextConfig(**WIDE, layer_types=["full_attention"] * 2),
        "its q_proj is of the size (256, 64)",
    ),
}


@pytest.mark.parametrize("what", ODD)
def test_a_model_of_other_sizes_is_left_to_torch(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(found := kernels(), str):
        pytest.skip(found)
    monkeypatch.setattr(backend, "_LARGE_ENOUGH", 0)
    make, reason = ODD[what]
    model = load_model(save_model(make(), tmp_path))
    assert model.decoder is None
    assert reason is None or model.verdict.why_no_kernels == reason
