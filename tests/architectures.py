"""Tiny random models of the architectures that transformers has, from a table of what differs from common sizes."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tiny import save_tokenizer
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

from cachegraph.engine.model.quiet_transformers import quiet_transformers

__all__ = ["ARCHITECTURES", "NOT_IN_THE_TABLE", "Architecture", "build", "reference"]

_COMMON: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_ALWAYS = ("vocab_size", "bos_token_id", "eos_token_id", "tie_word_embeddings")
_AS_MADE = ("vision", "audio", "conv", "altup", "time_", "layer_scalar", "A_log", "dt_bias")  # not drawn again
_SHARPER = ("q_proj", "k_proj", "qkv", "c_attn", "query_key_value")


class Architecture(NamedTuple):
    """A configuration: what it has besides the common sizes, and which of those it has not."""

    name: str
    model_type: str
    sizes: dict[str, Any]
    without: Any = ()

    @property
    def config(self) -> Any:
        kind = CONFIG_MAPPING[self.model_type]
        if "text_config" in self.sizes:
            return kind(**self.sizes)
        known = _ALWAYS if self.without == "all" else [key for key in _COMMON if key not in self.without]
        return kind(**{**{key: _COMMON[key] for key in known}, **self.sizes})


_file = json.loads(Path(__file__).with_suffix(".json").read_text())
ARCHITECTURES = {each["name"]: Architecture(**each) for each in _file["table"]}
NOT_IN_THE_TABLE: dict[str, list[str]] = _file["not in the table"]  # types that AutoModelForCausalLM knows, by reason


def build(name: str, folder: Path) -> Path:
    """A model with weights that differ enough for everything in it to show, and a tokenizer."""
    config = ARCHITECTURES[name].config
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(0)
        network = _class_of(config).from_config(config).float().eval()
        _draw(network)
        network.save_pretrained(folder)
    (folder / "generation_config.json").write_text("{}")
    save_tokenizer(folder, vocabulary=258)
    return folder


def reference(folder: Path) -> Any:
    """transformers' own network, which ends no reply by itself."""
    from transformers import AutoConfig

    with quiet_transformers():
        config = AutoConfig.from_pretrained(folder)
        network = _class_of(config).from_pretrained(folder, dtype=torch.float32).eval()
    network.generation_config.eos_token_id = None
    network.generation_config.pad_token_id = 0
    return network


def _class_of(config: Any) -> Any:
    return AutoModelForCausalLM if type(config) in AutoModelForCausalLM._model_mapping else AutoModelForImageTextToText


@torch.no_grad()
def _draw(network: Any) -> None:
    generator = torch.Generator().manual_seed(7)
    head = network.get_output_embeddings()
    tables = {id(head.weight)} if head is not None else set()
    for name, parameter in network.named_parameters():
        if any(part in name for part in _AS_MADE) or name.endswith(".D"):
            continue
        drawn = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2:
            table = "embed" in name or "wte" in name or id(parameter) in tables
            gain = 1.6 if any(part in name for part in _SHARPER) else 1.1
            parameter.copy_(drawn * (0.5 if table else gain / math.sqrt(parameter.shape[-1])))
        elif "sink" in name:
            parameter.copy_(drawn)
        elif name.endswith("bias"):
            parameter.copy_(0.1 * drawn)
        elif "norm" in name or "ln" in name:
            parameter.add_(0.1 * drawn)
