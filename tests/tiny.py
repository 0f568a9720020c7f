"""Tiny random models of every kind that tests need, and a byte-level tokenizer for them. Nothing is downloaded."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers import models as hf

from cachegraph.engine.model.load import LoadedModel, load_model
from cachegraph.engine.model.quiet_transformers import quiet_transformers

__all__ = ["CHATML", "KINDS", "ROPE_KINDS", "SIZES", "Tiny", "config_of", "load_tiny", "save_model", "save_tokenizer"]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Tiny = Callable[..., LoadedModel]

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def _llama(**rope: Any) -> Any:
    return hf.llama.LlamaConfig(**SIZES, rope_parameters={"rope_theta": 10000.0, **rope})


def _gemma3(window: int) -> Any:
    full, sliding = {"rope_type": "default", "rope_theta": 1e6}, {"rope_type": "default", "rope_theta": 1e4}
    return hf.gemma3.Gemma3TextConfig(
        **SIZES,
        head_dim=16,
        sliding_window=window,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"full_attention": full, "sliding_attention": sliding},
        query_pre_attn_scalar=16,
    )


def _gemma4() -> Any:
    """Layers of two shapes, and of the last two each reads the keys and values of an earlier one of its kind."""
    return hf.gemma4.Gemma4TextConfig(
        **{**SIZES, "num_hidden_layers": 4},
        head_dim=8,
        global_head_dim=16,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        sliding_window=12,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=300,
        hidden_size_per_layer_input=8,
    )


def _deepseek_v3() -> Any:
    """Keys and values are made of a latent at every step."""
    return hf.deepseek_v3.DeepseekV3Config(
        **{**SIZES, "num_key_value_heads": 4},
        kv_lora_rank=16,
        q_lora_rank=24,
        qk_rope_head_dim=8,
        qk_nope_head_dim=12,
        v_head_dim=10,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=24,
        first_k_dense_replace=1,
        rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64},
    )


def _mimo_v2_flash() -> Any:
    """Layers differ in KV heads, and keys from values in width."""
    return hf.mimo_v2_flash.MiMoV2FlashConfig(
        **SIZES,
        head_dim=16,
        v_head_dim=8,
        swa_num_attention_heads=4,
        swa_num_key_value_heads=4,
        swa_head_dim=16,
        swa_v_head_dim=8,
        sliding_window=12,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        n_group=1,
        topk_group=1,
    )


ROPE_KINDS: dict[str, Callable[[], Any]] = {
    "default": lambda: _llama(rope_type="default"),
    "linear": lambda: _llama(rope_type="linear", factor=4.0),
    "dynamic": lambda: _llama(rope_type="dynamic", factor=2.0),
    "yarn": lambda: _llama(rope_type="yarn", factor=4.0, original_max_position_embeddings=128),
    "llama3": lambda: _llama(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=64,
    ),
}

KINDS: dict[str, Callable[[], Any]] = {
    "llama": ROPE_KINDS["default"],
    "qwen2": lambda: hf.qwen2.Qwen2Config(**SIZES),
    "qwen3": lambda: hf.qwen3.Qwen3Config(**SIZES, head_dim=16),
    "phi": lambda: hf.phi.PhiConfig(**SIZES, partial_rotary_factor=0.5),
    "gpt_neox": lambda: hf.gpt_neox.GPTNeoXConfig(
        **{key: value for key, value in SIZES.items() if key != "num_key_value_heads"}, rotary_pct=0.25
    ),
    "olmo2": lambda: hf.olmo2.Olmo2Config(**SIZES),
    "gpt_oss": lambda: hf.gpt_oss.GptOssConfig(
        **SIZES,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
        },
        sliding_window=12,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "mistral": lambda: hf.mistral.MistralConfig(**SIZES, sliding_window=12),
    "gemma3_short_window": lambda: _gemma3(12),
    "gemma3_long_window": lambda: _gemma3(256),
    "gemma2": lambda: hf.gemma2.Gemma2Config(**SIZES, head_dim=8, sliding_window=12, query_pre_attn_scalar=8),
    "smollm3": lambda: hf.smollm3.SmolLM3Config(**SIZES, no_rope_layers=[1, 1, 0]),
    "cohere2": lambda: hf.cohere2.Cohere2Config(
        **SIZES, sliding_window=12, layer_types=["sliding_attention", "sliding_attention", "full_attention"]
    ),
    **{f"llama_{name}": make for name, make in ROPE_KINDS.items() if name != "default"},
    "nanochat": lambda: hf.nanochat.NanoChatConfig(**SIZES),  # RoPE turns the other way round
    "gemma4": _gemma4,
    "deepseek_v3": _deepseek_v3,
    "mimo_v2_flash": _mimo_v2_flash,
    "gptj": lambda: hf.gptj.GPTJConfig(
        vocab_size=300,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=512,
        rotary_dim=4,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    ),
}


def config_of(kind: str) -> Any:
    return KINDS[kind]()


def save_model(config: Any, folder: Path, *, seed: int = 0) -> Path:
    """A model with random weights, as `from_pretrained` reads it."""
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        network = AutoModelForCausalLM.from_config(config)
        for name, parameter in network.named_parameters():
            if name.endswith("sinks"):
                torch.nn.init.normal_(parameter)
        network.save_pretrained(folder)
    return folder


def save_tokenizer(
    folder: Path, *, vocabulary: int = 300, template: str | None = CHATML, special: Sequence[str] = ()
) -> None:
    """A byte-level tokenizer with a few merges: any text has tokens, and most characters outside ASCII take several."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    added = ["<|im_start|>", "<|im_end|>", *special]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=added,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the sky is blue and the sea is green, what is the question of the answer"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.chat_template = template
    fast.save_pretrained(folder)


def load_tiny(config: Any, folder: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> LoadedModel:
    return load_model(save_model(config, folder, seed=seed), dtype=dtype)
