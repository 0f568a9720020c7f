"""Models of each architecture of GGUF files that converts exactly, by case."""

from collections.abc import Callable
from typing import Any

from gguf_files import SIZES
from transformers import models as hf

__all__ = ["CACHES", "CASES", "WINDOW"]

Case = tuple[
    str, Callable[[], Any], dict[str, Any]
]  # architecture, configuration, what the file states beside the usual

WINDOW = {"attention.sliding_window": 16}
GEMMA = {**SIZES, "tie_word_embeddings": True, "head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
}
PATTERN = ["full_attention", "sliding_attention", "sliding_attention"]
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
EXPERTS_SAID = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
PLAIN = {"vocab_size": SIZES["vocab_size"], "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.1}
FALCON = {**PLAIN, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT2 = {**PLAIN, "n_embd": 64, "n_layer": 2, "n_head": 4}
MAMBA = {"ssm.conv_kernel": 4, "ssm.state_size": 8, "ssm.inner_size": 128, "ssm.time_step_rank": 4}
MROPE = {"mrope_section": [2, 1, 1], "mrope_interleaved": True, "partial_rotary_factor": 0.5}
QWEN35 = {
    "head_dim": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "layer_types": ["linear_attention", "full_attention"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, **MROPE},
}
QWEN35_SAID = {
    "full_attention_interval": 2,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 8,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 6,
    "ssm.inner_size": 24,
    "rope.dimension_sections": [2, 1, 1, 0],
}
SHARED = {"shared_expert_intermediate_size": 48}
SHARED_SAID = {**EXPERTS_SAID, "expert_shared_feed_forward_length": 48}

# Models whose caches can travel, once converted.
CACHES: dict[str, Case] = {
    "llama": ("llama", lambda: hf.llama.LlamaConfig(**SIZES), {}),
    "qwen2": ("qwen2", lambda: hf.qwen2.Qwen2Config(**SIZES), {}),
    "qwen3 of small heads": ("qwen3", lambda: hf.qwen3.Qwen3Config(**SIZES, head_dim=8), {}),
    "phi3": ("phi3", lambda: hf.phi3.Phi3Config(**SIZES), {}),
    "starcoder2": ("starcoder2", lambda: hf.starcoder2.Starcoder2Config(**SIZES), {}),
}
CASES: dict[str, Case] = {
    "gemma2": (
        "gemma2",
        lambda: hf.gemma2.Gemma2Config(**GEMMA, final_logit_softcapping=1.0),
        {**WINDOW, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 1.0},
    ),
    "gemma3": ("gemma3", lambda: hf.gemma3.Gemma3TextConfig(**{**GEMMA, "num_hidden_layers": 7}), WINDOW),
    "gemma3 of another pattern and base": (
        "gemma3",
        lambda: hf.gemma3.Gemma3TextConfig(
            **{**GEMMA, "num_hidden_layers": 3}, layer_types=PATTERN, rope_parameters=GEMMA3_ROPE
        ),
        {**WINDOW, "attention.sliding_window_pattern": [False, True, True], "rope.freq_base_swa": 2e4},
    ),
    "falcon": ("falcon", lambda: hf.falcon.FalconConfig(**FALCON), {"tensor_data_layout": "jploski"}),
    "falcon of another epsilon": ("falcon", lambda: hf.falcon.FalconConfig(**FALCON, layer_norm_epsilon=0.1), {}),
    "gpt2": ("gpt2", lambda: hf.gpt2.GPT2Config(**GPT2), {"context_length": 1024}),
    "gpt2 of other sizes": (
        "gpt2",
        lambda: hf.gpt2.GPT2Config(**GPT2, n_positions=512, n_inner=96),
        {"context_length": 512, "feed_forward_length": 96},
    ),
    "bloom": (
        "bloom",
        lambda: hf.bloom.BloomConfig(**PLAIN, hidden_size=64, n_layer=2, n_head=4, layer_norm_epsilon=0.1),
        {"attention.max_alibi_bias": 8.0},
    ),
    "stablelm of partial RoPE": (
        "stablelm",
        lambda: hf.stablelm.StableLmConfig(**SIZES, layer_norm_eps=0.1, partial_rotary_factor=0.5, use_qkv_bias=True),
        {"rope.dimension_count": 8, "use_parallel_residual": False},
    ),
    "nemotron": (
        "nemotron",
        lambda: hf.nemotron.NemotronConfig(**SIZES, norm_eps=0.1, partial_rotary_factor=0.5),
        {"rope.dimension_count": 8, "rope.scaling.type": "none"},
    ),
    "mamba": (
        "mamba",
        lambda: hf.mamba.MambaConfig(
            **PLAIN, pad_token_id=None, hidden_size=64, num_hidden_layers=2, state_size=8, layer_norm_epsilon=0.1
        ),
        MAMBA,
    ),
    "lfm2": (
        "lfm2",
        lambda: hf.lfm2.Lfm2Config(
            **{**SIZES, "tie_word_embeddings": True},
            layer_types=["conv", "full_attention"],
            block_auto_adjust_ff_dim=False,
        ),
        {"shortconv.l_cache": 3, "attention.head_count_kv": [0, 2]},
    ),
    "qwen2moe": (
        "qwen2moe",
        lambda: hf.qwen2_moe.Qwen2MoeConfig(**SIZES, **EXPERTS, **SHARED),
        SHARED_SAID,
    ),
    "qwen3moe": (
        "qwen3moe",
        lambda: hf.qwen3_moe.Qwen3MoeConfig(**SIZES, **EXPERTS, head_dim=16, norm_topk_prob=True),
        {**EXPERTS_SAID, "expert_weights_norm": True},
    ),
    "qwen35": ("qwen35", lambda: hf.qwen3_5.Qwen3_5TextConfig(**SIZES, **QWEN35), QWEN35_SAID),
    "qwen35moe": (
        "qwen35moe",
        lambda: hf.qwen3_5_moe.Qwen3_5MoeTextConfig(
            **{name: size for name, size in SIZES.items() if name != "intermediate_size"},
            **EXPERTS,
            **SHARED,
            **QWEN35,
        ),
        {**QWEN35_SAID, **SHARED_SAID},
    ),
    "minimax-m2": (
        "minimax-m2",
        lambda: hf.minimax_m2.MiniMaxM2Config(
            **SIZES, head_dim=16, num_local_experts=4, num_experts_per_tok=2, rotary_dim=8
        ),
        {**EXPERTS_SAID, "expert_feed_forward_length": 64, "expert_gating_func": 2},
    ),
    "phi3 of partial RoPE": (
        "phi3",
        lambda: hf.phi3.Phi3Config(**SIZES, partial_rotary_factor=0.5),
        {"rope.dimension_count": 8},
    ),
    "phi3 with a window": ("phi3", lambda: hf.phi3.Phi3Config(**SIZES, sliding_window=16), WINDOW),
    "starcoder2 with a window": (
        "starcoder2",
        lambda: hf.starcoder2.Starcoder2Config(**SIZES, sliding_window=16),
        WINDOW,
    ),
    "starcoder2 of another base": (
        "starcoder2",
        lambda: hf.starcoder2.Starcoder2Config(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 1e5}),
        {},
    ),
    "llama of small heads": ("llama", lambda: hf.llama.LlamaConfig(**SIZES, head_dim=8, rms_norm_eps=0.1), {}),
    "llama that rotates all of a head": (
        "llama",
        lambda: hf.llama.LlamaConfig(**SIZES),
        {"rope.scaling.type": "none", "rope.scaling.factor": 0.0, "expert_count": 0, "attention.causal": True},
    ),
}
