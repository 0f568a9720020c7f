"""Files of a tiny model and a tiny fuser. The only file of this folder that imports torch."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from cachegraph.channels.fusers.files.card import Geometry
from cachegraph.channels.fusers.files.weights import save_fuser
from cachegraph.channels.fusers.networks.create import new_fuser

__all__ = ["save_tiny_fuser", "save_tiny_model"]

MARKS = ("<|im_start|>", "<|im_end|>")
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LAYERS, WIDTH, INNER, HEADS, KV_HEADS = 2, 32, 48, 4, 2
SHAPE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 256 + len(MARKS),
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": WIDTH // HEADS,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "eos_token_id": 257,
    "torch_dtype": "float32",
}


def save_tiny_model(folder: Path, seed: int) -> None:
    """Write a Llama of two layers, its tokenizer and its chat template, as transformers reads them."""
    folder.mkdir(parents=True)
    save_file(_tensors(seed), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(SHAPE, indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": SHAPE["eos_token_id"]}))
    _tokenizer().save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": MARKS[1], "chat_template": CHAT}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def save_tiny_fuser(folder: Path, receiver: Path, sharer: Path) -> None:
    """Write a lean fuser of two tiny models, with open gates and residuals that differ from zero."""
    both = Geometry(LAYERS, KV_HEADS, WIDTH // HEADS)
    made = new_fuser("lean", both, both, width=6, rope="unrotated", names=(receiver.name, sharer.name), gate_logit=1.0)
    numbers = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for projector in made.projectors.values():
            for name, parameter in projector.named_parameters():
                if "up" in name or "alpha" in name:  # initialized to zero
                    parameter.copy_(torch.randn(parameter.shape, generator=numbers))
    save_fuser(made, folder)


def _tensors(seed: int) -> dict[str, torch.Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=numbers) * 0.3
        for name, shape in _shapes().items()
    }
    # Replies hold printable ASCII alone and never end early: their length is max_new_tokens.
    readable = torch.zeros(SHAPE["vocab_size"], 1)
    readable[32:127] = 1.0
    tensors["lm_head.weight"] *= readable
    return tensors


def _shapes() -> dict[str, tuple[int, ...]]:
    narrow = KV_HEADS * WIDTH // HEADS
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (SHAPE["vocab_size"], WIDTH)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        shapes |= {
            f"{name}.input_layernorm.weight": (WIDTH,),
            f"{name}.self_attn.q_proj.weight": (WIDTH, WIDTH),
            f"{name}.self_attn.k_proj.weight": (narrow, WIDTH),
            f"{name}.self_attn.v_proj.weight": (narrow, WIDTH),
            f"{name}.self_attn.o_proj.weight": (WIDTH, WIDTH),
            f"{name}.post_attention_layernorm.weight": (WIDTH,),
            f"{name}.mlp.gate_proj.weight": (INNER, WIDTH),
            f"{name}.mlp.up_proj.weight": (INNER, WIDTH),
            f"{name}.mlp.down_proj.weight": (WIDTH, INNER),
        }
    return {**shapes, "model.norm.weight": (WIDTH,), "lm_head.weight": (SHAPE["vocab_size"], WIDTH)}


def _tokenizer() -> Tokenizer:
    """Return a tokenizer with one token per byte, whose id is the byte; then the special tokens of a chat."""
    letters = {letter: byte for byte, letter in _letters().items()}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(MARKS))
    return tokenizer


def _letters() -> dict[int, str]:
    """Return the character of the byte-level alphabet for each byte; printable bytes map to themselves."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {**{byte: chr(byte) for byte in plain}, **{byte: chr(256 + n) for n, byte in enumerate(rest)}}
