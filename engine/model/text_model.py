"""The transformers class that loads a model, and the text part of a multimodal one.

Models of pictures or sound wrap a text model, whose configuration is a part of theirs. transformers loads them by other
classes than plain text models. Only the parts that read text are kept.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)

from cachegraph.errors import ModelError

__all__ = ["auto_class", "count_text_parameters", "drop_other_parts"]

_WRAPPERS = (
    (MODEL_FOR_MULTIMODAL_LM_MAPPING, AutoModelForMultimodalLM),
    (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, AutoModelForSeq2SeqLM),
)


def auto_class(config: Any) -> Any:
    """The class of transformers that reads a decoder of this configuration. Raises ModelError where there is none."""
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{config.model_type!r} models have an encoder before the decoder; choose a decoder alone")
    for mapping, wrapper in _WRAPPERS:
        if type(config) in mapping:
            return wrapper
    raise ModelError(f"transformers knows no {config.model_type!r} model that writes text; choose another model")


def count_text_parameters(folder: Path) -> int | None:
    """How many numbers the weights are that stay of a model of pictures or sound. None: of all its weights, or unknown.

    The model is built without memory for its weights, which takes less than a second.
    """
    try:
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            if config.get_text_config(decoder=True) is config:
                return None
            network = auto_class(config).from_config(config, trust_remote_code=False)
            drop_other_parts(network)
    except Exception:  # a boundary: loading the model says what is wrong with it
        return None
    counts: list[int] = [weight.numel() for weight in network.parameters()]
    return sum(counts)


@torch.no_grad()
def drop_other_parts(network: Any) -> None:
    """Drop all parts of a model that reading text does not call."""
    decoder = network.get_decoder()
    if network.config.get_text_config(decoder=True) is network.config or decoder is network:
        return
    others = list(_beside(network, decoder))
    called: set[nn.Module] = set()
    hooks = [part.register_forward_pre_hook(lambda module, _: called.add(module)) for _, _, part in others]
    try:
        _read_something(network)
    finally:
        for hook in hooks:
            hook.remove()
    idle = [(parent, name, part) for parent, name, part in others if part not in called]
    for parent, name, _ in idle:
        setattr(parent, name, None)
    try:
        _read_something(network)
    except (AttributeError, TypeError):  # it asks a part something without calling it
        for parent, name, part in idle:
            setattr(parent, name, part)


def _beside(network: nn.Module, decoder: nn.Module) -> "list[tuple[nn.Module, str, nn.Module]]":
    """(parent, name, part) of what is in the model and not on the way to its decoder."""
    parts, parent = [], network
    while parent is not decoder:
        within = [child for child in parent.children() if any(module is decoder for module in child.modules())]
        parts += [(parent, name, child) for name, child in parent.named_children() if child not in within]
        if not within:
            break
        parent = within[0]
    return parts


def _read_something(network: Any) -> None:
    device = network.get_input_embeddings().weight.device
    network(input_ids=torch.tensor([[1, 2]], device=device))
