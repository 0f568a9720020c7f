"""The tokens of a GGUF file with their kinds, and which of them begin and end a text."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from cachegraph.errors import ModelError

from ..gguf_metadata import GGUFMetadata

__all__ = ["CONTROL", "USER_DEFINED", "Vocabulary", "read_names", "read_vocabulary"]

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4


class Vocabulary(NamedTuple):
    """Tokens by id, and a kind for each."""

    tokens: list[str]
    kinds: list[int]

    def of_kind(self, kind: int) -> Iterator[str]:
        return (token for token, its in zip(self.tokens, self.kinds, strict=True) if its == kind and token)


def read_vocabulary(metadata: GGUFMetadata) -> Vocabulary:
    """Raises ModelError where the file's vocabulary is missing or damaged."""
    tokens = metadata.value("tokenizer.ggml.tokens")
    if not tokens:
        raise ModelError(f"the GGUF file {metadata.where!r} holds no vocabulary; use the safetensors of this model")
    kinds = metadata.value("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    if len(kinds) != len(tokens):
        raise _damaged(metadata, f"it has {len(tokens):,} tokens and {len(kinds):,} kinds of them")
    token, count = Counter(tokens).most_common(1)[0]
    if count > 1:
        raise _damaged(metadata, f"{count:,} of its tokens are {token!r}")
    return Vocabulary(tokens, kinds)


def read_names(metadata: GGUFMetadata, vocabulary: Vocabulary) -> dict[str, str]:
    """The tokens that begin, end, fill and are unknown, by transformers' names; those that the file has."""
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    found = {}
    for name, key in names.items():
        id_ = metadata.value(f"tokenizer.ggml.{key}_token_id")
        if id_ is None:
            continue
        if not 0 <= id_ < len(vocabulary.tokens):
            raise _damaged(metadata, f"its `{key}_token_id` is {id_:,} and it has {len(vocabulary.tokens):,} tokens")
        found[name] = vocabulary.tokens[id_]
    return found


def _damaged(metadata: GGUFMetadata, why: str) -> ModelError:
    return ModelError(f"the GGUF file {metadata.where!r} is damaged: {why}; fetch it again")
