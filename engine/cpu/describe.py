"""Describes a transformers model to the kernels: where its weights lie, and how it norms, rotates and gates.

Nothing is taken from the model's class. A part that the kernels would compute differently raises Unsupported, and a
description is used only after a step by it gave the model's own logits.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from ..kernels import Unsupported
from ..model.model_config import ModelInfo
from .build import Kernels
from .structs import LayerStruct, MatrixStruct, ModelStruct
from .weights import KernelWeights, norm_epsilon

__all__ = ["ModelDescription"]

_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_ROPE = {"default", "linear", "llama3", "yarn"}  # cosines and sines depend on the position alone


class ModelDescription:
    """`model` for the kernels, `layers` in it, and `rope_kinds`: the names of the model's tables of cosines.

    Raises Unsupported, or whatever an attribute that is not there raises.
    """

    model: ModelStruct

    def __init__(self, network: Any, info: ModelInfo, kernels: Kernels):
        self.weights = KernelWeights(network, kernels)
        self.vocabulary = 0
        self.rope_kinds = list(dict.fromkeys(_rope_kinds(network, info)))
        self._info = info
        self._kernels = kernels
        self._kv_heads, self._head_dim, _ = info.shapes[0]
        self._first_layers: dict[int, ModelStruct] = {}
        self.layers = (LayerStruct * len(network.get_decoder().layers))()
        self.model = self._describe(network)

    def first(self, layers: int | None) -> ModelStruct:
        """The description of the model's first `layers` layers; None: all of them."""
        if layers is None:
            return self.model
        if layers not in self._first_layers:
            self._first_layers[layers] = ModelStruct.from_buffer_copy(self.model)
            self._first_layers[layers].depth = layers
        return self._first_layers[layers]

    def pack(self) -> None:
        """Make the packed copies of all weights."""
        self.weights.pack()
        self._first_layers.clear()

    def _describe(self, network: Any) -> ModelStruct:
        layers, head = list(network.get_decoder().layers), network.get_output_embeddings()
        self._check_sizes(network, layers, head)
        mlp, attention, norm = layers[0].mlp, layers[0].self_attn, network.get_decoder().norm
        kinds = _rope_kinds(network, self._info)
        for index, layer in enumerate(layers):
            self._describe_layer(layer, self.layers[index], index, kinds[index])
        hidden, inner = norm.weight.shape[0], mlp.gate_proj.weight.shape[0]
        for size in (hidden, inner, self._head_dim, attention.o_proj.weight.shape[1]):
            if size % self._kernels.block:
                raise Unsupported(f"an inner dimension of {size} is not a multiple of {self._kernels.block}")
        self.vocabulary = len(network.get_input_embeddings().weight)
        return ModelStruct(
            self.layers,
            len(layers),
            hidden,
            inner,
            attention.q_proj.weight.shape[0] // self._head_dim,
            self._kv_heads,
            self._head_dim,
            norm_epsilon(norm),
            attention.scaling,
            _is_gelu(mlp.act_fn),
            network.dtype == torch.bfloat16,
            self.weights.gain(norm, ordered=True),
            self.weights.matrix(head, lambda: cast("MatrixStruct", self.model.head)),
            *self.weights.embeddings(network.get_input_embeddings(), hidden),
        )

    def _describe_layer(self, layer: Any, to: LayerStruct, index: int, rope_kind: str | None) -> None:
        attention, mlp, weights = layer.self_attn, layer.mlp, self.weights
        sandwich = hasattr(layer, "pre_feedforward_layernorm")  # Gemma also norms the output of a block
        to.norm_in = weights.gain(layer.input_layernorm, ordered=True)
        after = weights.gain(layer.post_attention_layernorm, ordered=True)
        to.norm_attention, to.norm_mlp = (after, None) if sandwich else (None, after)
        if sandwich:
            to.norm_mlp = weights.gain(layer.pre_feedforward_layernorm, ordered=True)
            to.norm_out = weights.gain(layer.post_feedforward_layernorm, ordered=True)
        if hasattr(attention, "q_norm"):
            to.q_norm, to.k_norm = weights.gain(attention.q_norm), weights.gain(attention.k_norm)
        for part, names in ((attention, ("q", "k", "v", "o")), (mlp, ("gate", "up", "down"))):
            for name in names:
                linear, struct, ordered = getattr(part, f"{name}_proj"), partial(getattr, to, name), name not in "qkv"
                setattr(to, name, weights.matrix(linear, struct, ordered))
        to.rope = self.rope_kinds.index(rope_kind)
        to.window = self._info.windows[index] or 0

    def _check_sizes(self, network: Any, layers: Sequence[Any], head: Any) -> None:
        """Raises Unsupported where a matrix or a norm is of another size than the kernels read."""
        hidden, inner = network.get_decoder().norm.weight.shape[0], layers[0].mlp.gate_proj.weight.shape[0]
        queries, kv = layers[0].self_attn.o_proj.weight.shape[1], self._kv_heads * self._head_dim
        if queries % kv:
            raise Unsupported(f"its queries are {queries} wide, its keys {kv}")
        attention = {"q_proj": (queries, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden)}
        attention |= {"o_proj": (hidden, queries)}
        mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
        for layer in layers:
            own: list[tuple[Any, str, tuple[int, ...]]]
            own = [(layer.self_attn, name, size) for name, size in attention.items()]
            own += [(layer.mlp, name, size) for name, size in mlp.items()]
            own += [(layer.self_attn, name, (self._head_dim,)) for name in ("q_norm", "k_norm")]
            own += [(layer, name, (hidden,)) for name in _NORMS]
            for module, name, size in own:
                if hasattr(module, name) and tuple(getattr(module, name).weight.shape) != size:
                    raise Unsupported(f"its {name} is of the size {tuple(getattr(module, name).weight.shape)}")
        if head.weight.shape[1] != hidden:
            raise Unsupported(f"its head reads {head.weight.shape[1]} numbers")


def _rope_kinds(network: Any, info: ModelInfo) -> list[str | None]:
    """By layer: which of the model's tables of cosines it uses."""
    if strange := sorted(set(info.rope_types) - _ROPE):
        raise Unsupported(f"its RoPE is of type {strange[0]!r}")
    config = network.config.get_text_config(decoder=True)
    kinds = list(getattr(config, "layer_types", None) or [])
    rotary = getattr(network.get_decoder(), "rotary_emb", None)
    several = bool(kinds) and hasattr(rotary, f"{kinds[0]}_inv_freq")
    return [kinds[index] if several else None for index in range(info.layers)]


def _is_gelu(activation: Any) -> bool:
    probe = torch.linspace(-3, 3, 13)
    got = activation(probe)
    for gelu, expected in ((True, nn.functional.gelu(probe, approximate="tanh")), (False, nn.functional.silu(probe))):
        if torch.allclose(got, expected, atol=1e-5):
            return gelu
    raise Unsupported("its activation is neither SiLU nor GELU")
