"""Completes what transformers reads of a SentencePiece tokenizer (`tokenizer.ggml.model` is `llama`) in a GGUF file."""

from typing import Any

from tokenizers import AddedToken, decoders, pre_tokenizers

from ..gguf_metadata import GGUFMetadata
from .vocabulary import CONTROL, Vocabulary

__all__ = ["complete_sentencepiece"]

_SPACE = "\u2581"  # SentencePiece's letter for a space
# Of Phi 3, the control tokens that leave the white space behind them in place. No file states it.
_PHI3_PLAIN = ("<unk>", "<s>", "<|endoftext|>")


def complete_sentencepiece(raw: Any, metadata: GGUFMetadata, vocabulary: Vocabulary) -> None:
    """Correct `raw`, transformers' tokenizer, by what the file states and transformers leaves out."""
    backend = raw.backend_tokenizer
    if metadata.architecture == "phi3":
        swallowing = [token for token in vocabulary.of_kind(CONTROL) if token not in _PHI3_PLAIN]
        backend.add_special_tokens([AddedToken(token, normalized=False, rstrip=True) for token in swallowing])
    elif metadata.value("tokenizer.ggml.add_space_prefix") is False and _adds_space(backend):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="never", split=False)
        backend.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])


def _adds_space(backend: Any) -> bool:
    return isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace)
