"""Tiny random models with recurrent layers beside attention, one of each family."""

from collections.abc import Callable
from typing import Any

from transformers import models as hf

__all__ = ["HYBRIDS"]

_SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_LINEAR: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_state": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 32,
    "mamba_expand": 2,
}

HYBRIDS: dict[str, Callable[[], Any]] = {
    "qwen3_5": lambda: hf.qwen3_5.Qwen3_5TextConfig(**_SIZES, **_LINEAR, head_dim=16),
    "qwen3_next": lambda: hf.qwen3_next.Qwen3NextConfig(
        **_SIZES,
        **_LINEAR,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "lfm2": lambda: hf.lfm2.Lfm2Config(
        **_SIZES, layer_types=["conv", "full_attention", "conv"], block_auto_adjust_ff_dim=False
    ),
    "granite4": lambda: hf.granitemoehybrid.GraniteMoeHybridConfig(
        **_SIZES,
        **_MAMBA,
        layer_types=["mamba", "attention", "mamba"],
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=16,
    ),
    "falcon_h1": lambda: hf.falcon_h1.FalconH1Config(**_SIZES, **_MAMBA, mamba_d_ssm=64, head_dim=8),
    "nemotron_h": lambda: hf.nemotron_h.NemotronHConfig(
        **{**_SIZES, "num_hidden_layers": 4},
        hybrid_override_pattern="M*M-",
        head_dim=8,
        ssm_state_size=8,
        mamba_num_heads=4,
        mamba_head_dim=16,
        n_groups=1,
        chunk_size=32,
    ),
    "jamba": lambda: hf.jamba.JambaConfig(
        **_SIZES,
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=1,
        num_experts_per_tok=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "zamba2": lambda: hf.zamba2.Zamba2Config(
        **{**_SIZES, "num_hidden_layers": 4, "num_key_value_heads": 4},
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        mamba_d_state=8,
        mamba_ngroups=1,
        n_mamba_heads=4,
        mamba_headdim=16,
        chunk_size=32,
        num_mem_blocks=1,
        use_mamba_kernels=False,
    ),
    "olmo_hybrid": lambda: hf.olmo_hybrid.OlmoHybridConfig(**_SIZES, **_LINEAR),
    "bamba": lambda: hf.bamba.BambaConfig(**_SIZES, **_MAMBA, attn_layer_indices=[1], attn_rotary_emb=8),
}
