"""Reads the tokenizer of a GGUF file, and saves it. Where the file does not say enough for that, it is refused."""

from pathlib import Path
from typing import Any

import transformers

from cachegraph.errors import ModelError

from ...text.tokenizer_load import mark_exact, read_raw_tokenizer
from ..gguf_metadata import GGUFMetadata
from .byte_level import build_byte_level, find_rule
from .sentencepiece import complete_sentencepiece
from .vocabulary import Vocabulary, read_names, read_vocabulary

__all__ = ["read_tokenizer", "save_tokenizer"]

_BYTE_LEVEL, _SENTENCEPIECE = "gpt2", "llama"
# Steps that no reader here takes, by the kinds of tokenizers whose published files may need them.
_UNREAD = ("remove_extra_whitespaces", "precompiled_charsmap", "normalizer.lowercase", "normalizer.strip_accents")


def read_tokenizer(gguf: Path, metadata: GGUFMetadata) -> Any:
    """transformers' tokenizer with the tokens of this file. Raises ModelError where it would not be exact."""
    kind = metadata.value("tokenizer.ggml.model")
    if kind not in (_BYTE_LEVEL, _SENTENCEPIECE):
        raise ModelError(
            f"the GGUF file {metadata.where!r} has a tokenizer of the kind {kind!r}, and only {_BYTE_LEVEL!r} and "
            f"{_SENTENCEPIECE!r} convert exactly; use the safetensors of this model"
        )
    for key in (*_UNREAD, *(("add_space_prefix",) if kind == _BYTE_LEVEL else ())):
        if value := metadata.value(f"tokenizer.ggml.{key}"):
            shown = value if isinstance(value, bool | int) else f"{len(value):,} values"
            raise ModelError(
                f"the GGUF file {metadata.where!r} says `tokenizer.ggml.{key} = {shown}`, which is not read for its "
                f"kind of tokenizer, {kind!r}; use the safetensors of this model"
            )
    vocabulary = read_vocabulary(metadata)
    if kind == _BYTE_LEVEL:
        return _byte_level(metadata, vocabulary)
    raw = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    complete_sentencepiece(raw, metadata, vocabulary)
    return raw


def _byte_level(metadata: GGUFMetadata, vocabulary: Vocabulary) -> Any:
    rule = find_rule(metadata, vocabulary)
    names = read_names(metadata, vocabulary)
    says_bos = metadata.value("tokenizer.ggml.add_bos_token")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=build_byte_level(metadata, vocabulary, rule),
        chat_template=metadata.value("tokenizer.chat_template"),
        add_bos_token=(rule.adds_bos if says_bos is None else bool(says_bos)) and "bos_token" in names,
        add_eos_token=bool(metadata.value("tokenizer.ggml.add_eos_token")) and "eos_token" in names,
        **names,
    )


def save_tokenizer(raw: Any, folder: Path, metadata: GGUFMetadata) -> None:
    """Write the tokenizer into `folder` so that it is read from there as it is. Raises ModelError where that fails."""
    raw.save_pretrained(folder)
    if _is_read(raw, folder):
        return
    mark_exact(folder)  # transformers rebuilds the tokenizers of some architectures, with rules of its own
    if not _is_read(raw, folder):
        raise ModelError(
            f"the tokenizer of the GGUF file {metadata.where!r} changes when it is saved; use the safetensors of this "
            "model"
        )


def _is_read(raw: Any, folder: Path) -> bool:
    saved = read_raw_tokenizer(folder, remembers=False)
    return bool(saved.backend_tokenizer.to_str() == raw.backend_tokenizer.to_str())
