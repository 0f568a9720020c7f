"""The GGUF files that llama.cpp is measured with hold the model's own weights: transformers reads them back."""

from pathlib import Path

import pytest
import torch
from tiny import config_of, save_model
from to_gguf import write_gguf
from transformers import AutoModelForCausalLM


@pytest.mark.parametrize("kind", ["llama", "gemma3_short_window"])
def test_a_written_file_has_every_weight_at_its_place(tmp_path: Path, kind: str) -> None:
    config = config_of(kind)
    config.head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    folder = save_model(config, tmp_path / "model")
    write_gguf(folder, tmp_path / "model.gguf", "f16")
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more).state_dict()
        for more in ({}, {"gguf_file": str(tmp_path / "model.gguf")})
    )
    assert ours.keys() == theirs.keys()
    for name, weights in ours.items():
        torch.testing.assert_close(weights, theirs[name], rtol=1e-3, atol=1e-4, msg=name)  # float16 in between
