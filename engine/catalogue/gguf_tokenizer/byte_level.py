"""Builds a byte-level tokenizer (`tokenizer.ggml.model` is `gpt2`) from a GGUF file's metadata."""

from collections.abc import Iterator, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from cachegraph.errors import ModelError

from ..gguf_metadata import GGUFMetadata
from .split_rules import RULE_OF, RULES, SplitRule
from .vocabulary import CONTROL, USER_DEFINED, Vocabulary

__all__ = ["build_byte_level", "find_rule"]

_NAMELESS = (None, "", "default")


def build_byte_level(metadata: GGUFMetadata, vocabulary: Vocabulary, rule: SplitRule) -> Tokenizer:
    """A tokenizer with the ids of the file. Raises ModelError where it can't be built."""
    tokens = vocabulary.tokens
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: id_ for id_, token in enumerate(tokens)},
            merges=list(_merges(metadata, set(tokens))),
            continuing_subword_prefix="",
            end_of_word_suffix="",
            ignore_merges=rule.whole_words,
        )
    )
    if rule.composes:
        tokenizer.normalizer = normalizers.NFC()
    first, *others = rule.stages
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, *others]) if others else first
    tokenizer.decoder = decoders.ByteLevel()
    # The file spells these as they stand in a text, and all others by the letters that stand for their bytes.
    for kind in (CONTROL, USER_DEFINED):
        special = kind == CONTROL
        found = [AddedToken(token, normalized=False, special=special) for token in vocabulary.of_kind(kind)]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(found)
    return tokenizer


def find_rule(metadata: GGUFMetadata, vocabulary: Vocabulary) -> SplitRule:
    """The rule by which the file's tokenizer splits texts. Raises ModelError where it is not known."""
    name = metadata.value("tokenizer.ggml.pre")
    if name in _NAMELESS:
        name = RULE_OF.get(metadata.architecture)
        if name is None and not _spells_every_byte(vocabulary.tokens):
            name = "gpt-2"  # the vocabulary of a test: no published one lacks a byte
        if name is None:
            raise ModelError(
                f"the GGUF file {metadata.where!r} does not name the rule by which its tokenizer splits texts "
                "(`tokenizer.ggml.pre`); use one that a newer llama.cpp wrote, or the safetensors of this model"
            )
    if name not in RULES:
        raise ModelError(
            f"the GGUF file {metadata.where!r} splits texts by the rule {name!r} (`tokenizer.ggml.pre`), which is not "
            f"one that converts exactly ({', '.join(RULES)}); use the safetensors of this model"
        )
    return RULES[name]


def _spells_every_byte(tokens: Sequence[str]) -> bool:
    return set(pre_tokenizers.ByteLevel.alphabet()) <= set(tokens)


def _merges(metadata: GGUFMetadata, tokens: set[str]) -> Iterator[tuple[str, str]]:
    for merge in metadata.value("tokenizer.ggml.merges") or []:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= tokens:
            raise ModelError(
                f"the GGUF file {metadata.where!r} merges {left!r} and {right!r}, and one of the three is not a token "
                "of its vocabulary; fetch it again, or use the safetensors of this model"
            )
        yield left, right
