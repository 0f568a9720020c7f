"""Tokenizers of GGUF files, held to a second implementation: the published patterns by `regex`, and merges by rank."""

import random
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
import regex
from tokenizers.pre_tokenizers import ByteLevel

from cachegraph.engine.catalogue.gguf_metadata import GGUFMetadata
from cachegraph.engine.catalogue.gguf_tokenizer import read_tokenizer, save_tokenizer
from cachegraph.engine.catalogue.gguf_tokenizer.split_rules import RULES
from cachegraph.engine.text.tokenizer_load import read_raw_tokenizer
from cachegraph.errors import ModelError

Split = Callable[[str], list[str]]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_V3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PUNCTUATION = r"[\p{P}!-/:-@\[-`{-~]+"
EAST_ASIAN = "[一-龥ࠀ-一가-퟿]+"
LATIN = r"[A-Za-zÀ-ÖØ-öø-ʓʕ-ʯͰ-ͳΣ-ϵА-ҁ]+"  # of DeepSeek LLM's letters, those that the texts have
LETTER = {value: letter for letter, value in zip(sorted(ByteLevel.alphabet()), range(256), strict=True)}


def pieces(*patterns: str) -> Split:
    """Cut by each pattern in turn; what a pattern does not match stays whole."""

    def split(text: str) -> list[str]:
        parts = [text]
        for pattern in patterns:
            parts = [piece for part in parts for piece in _cut(pattern, part)]
        return parts

    return split


def _cut(pattern: str, text: str) -> list[str]:
    found, end = [], 0
    for match in regex.finditer(pattern, text):
        found += [text[end : match.start()], match.group()]
        end = match.end()
    return [piece for piece in (*found, text[end:]) if piece]


DIGITS_THEN_GPT2 = pieces(r"\p{N}", GPT2)
DEEPSEEK_CODER = pieces("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", EAST_ASIAN, r"\p{N}")
DEEPSEEK_LLM = pieces("[\r\n]", rf"\s?{LATIN}", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", EAST_ASIAN, r"\p{N}")
# The rules that cut a text before its bytes get their letters; Falcon's cut between these letters too.
EXPECTED: dict[str, Split] = {
    "gpt-2": pieces(GPT2),
    "mpt": pieces(GPT2),
    "smollm": DIGITS_THEN_GPT2,
    "command-r": DIGITS_THEN_GPT2,
    "bloom": pieces(r" ?[^(\s|.,!?…。，、।۔،)]+"),
    "llama-bpe": pieces(LLAMA3),
    "dbrx": pieces(LLAMA3),
    "qwen2": pieces(QWEN2),
    "qwen35": pieces(QWEN35),
    "tekken": pieces(TEKKEN),
    "gpt-4o": pieces(GPT4O),
    "deepseek-llm": DEEPSEEK_LLM,
    "deepseek-coder": DEEPSEEK_CODER,
    "deepseek-v3": pieces(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK_V3),
}
FALCONS = {"falcon": (r"\p{N}+", "[0-9][0-9][0-9]"), "falcon3": (r"\p{N}",)}
COMPOSES = {"mpt", "olmo", "command-r", "qwen2", "stablelm2", "qwen35"}
SCRAPS = [
    *("1", "22", "333", "4444", "12345", "½", "²", "٣٤", "五", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n "),
    *("the", "The", "THE", "eTh", "a", "x1", "1x", "_a", "-b", "é", "e\u0301", "ñandú", "Straße", "кот", "한국"),
    *("中文字", "かな", "カナ", "عربي", "हिन्दी", "👍", "👍🏽", "🇩🇪", "\u200d", "\u00a0"),
    *("'s", "'S", "'re", "'LL", "n't", "’s", "'", '"', "(", ")", ".", "...", ", ", "!?", "…", "。", "¿"),
    *("$", "€", "=", "==", "/", "//", "::", "`", "<|"),
]  # fmt: skip


def texts(seed: int, count: int = 100) -> list[str]:
    source = random.Random(seed)
    return ["".join(source.choices(SCRAPS, k=source.randrange(1, 14))) for _ in range(count)]


def spelled(text: str) -> str:
    """With a letter for each byte."""
    return "".join(ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]) if text else ""


def _vocabulary() -> tuple[list[str], list[str]]:
    """All bytes, and merges of all pairs that the texts have, so that each cut shows in the tokens."""
    pairs: dict[tuple[str, str], None] = {}
    for text in texts(99, 600):
        written = spelled(text)
        pairs |= dict.fromkeys(zip(written, written[1:], strict=False))
    merges = sorted(pairs)
    random.Random(1).shuffle(merges)
    return [*sorted(ByteLevel.alphabet()), *map("".join, merges)], [" ".join(pair) for pair in merges]


TOKENS, MERGES = _vocabulary()


def file_of(
    folder: Path,
    tokens: Sequence[str] = TOKENS,
    merges: Sequence[str] | None = MERGES,
    architecture: str = "llama",
    kinds: Sequence[int] | None = None,
    **said: Any,
) -> Path:
    """A GGUF file without weights. `said`: metadata of its tokenizer."""
    path = folder / "m.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in ({"model": "gpt2"} | said).items():
        add: Any = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32}.get(type(value))
        (add or writer.add_array)(f"tokenizer.ggml.{key}", value)
    writer.add_token_list(list(tokens))
    if merges is not None:
        writer.add_token_merges(list(merges))
    writer.add_token_types(list(kinds or [1] * len(tokens)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read(path: Path) -> Any:
    return read_tokenizer(path, GGUFMetadata(gguf.GGUFReader(path), str(path)))


def merged(piece: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """The tokens of a piece that is spelled by bytes: the merge of the lowest rank first."""
    parts = list(piece)
    while len(parts) > 1:
        best = min(zip(parts, parts[1:], strict=False), key=lambda pair: ranks.get(pair, 10**9))
        if best not in ranks:
            break
        joined, at = [], 0
        while at < len(parts):
            both = tuple(parts[at : at + 2]) == best
            joined.append("".join(parts[at : at + 2]) if both else parts[at])
            at += 2 if both else 1
        parts = joined
    return parts


RANKS = {(left, right): rank for rank, (left, right) in enumerate(merge.split(" ") for merge in MERGES)}


def expected_tokens(name: str, text: str) -> list[str]:
    text = unicodedata.normalize("NFC", text) if name in COMPOSES else text
    if name in FALCONS:
        cut = pieces(*FALCONS[name])
        words = [piece for word in pieces(PUNCTUATION, GPT2)(text) for piece in cut(spelled(word))]
    else:
        words = [spelled(word) for word in EXPECTED[name](text)]
    return [token for word in words for token in merged(word, RANKS)]


@pytest.mark.parametrize("name", [*EXPECTED, *FALCONS])
def test_a_rule_cuts_texts_as_the_published_tokenizer_does(name: str, tmp_path: Path) -> None:
    tokenizer = read(file_of(tmp_path, pre=name))
    for text in [*texts(7), "\n\n12", "a  3", "x\n\n\n45 6", "Lügen 1'000 €", "don't  'S"]:
        assert tokenizer.tokenize(text) == expected_tokens(name, text), (name, text)
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == (
            unicodedata.normalize("NFC", text) if name in COMPOSES else text
        )


def test_rules_of_one_tokenizer_are_the_same() -> None:
    same = [
        ("gpt-2", "phi-2"),
        ("mpt", "olmo"),
        ("smollm", "starcoder", "refact"),
        ("llama-bpe", "llama3", "llama-v3", "pixtral", "lfm2"),
        ("dbrx", "smaug-bpe"),
        ("qwen2", "stablelm2"),
        ("gpt-4o", "llama4", "minimax-m2"),
    ]
    for first, *others in same:
        assert all(RULES[name] is RULES[first] for name in others)
    assert {name for names in same for name in names} | EXPECTED.keys() | FALCONS.keys() == RULES.keys()


@pytest.mark.parametrize("name", ["viking", "kimi-k2", "falcon-h1", "whatever"])
def test_a_rule_that_is_not_known_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"splits texts by the rule '{name}' .*gpt-2, .*use the safetensors"):
        read(file_of(tmp_path, pre=name))


@pytest.mark.parametrize("said", [{}, {"pre": "default"}])
def test_a_file_that_names_no_rule_has_that_of_its_architecture_or_is_refused(
    said: dict[str, Any], tmp_path: Path
) -> None:
    text = "a  12"
    assert read(file_of(tmp_path, architecture="starcoder2", **said)).tokenize(text) == expected_tokens("smollm", text)
    with pytest.raises(ModelError, match="does not name the rule by which its tokenizer splits"):
        read(file_of(tmp_path, **said))


def test_a_word_that_is_a_token_needs_no_merges_where_the_rule_says_so(tmp_path: Path) -> None:
    tokens, word = [*TOKENS, "Ġqqq"], " qqq"
    assert read(file_of(tmp_path, tokens, pre="llama-bpe")).tokenize(word) == ["Ġqqq"]
    assert read(file_of(tmp_path, tokens, pre="smaug-bpe")).tokenize(word) == merged("Ġqqq", RANKS)


def test_control_and_user_defined_tokens_keep_their_ids_however_they_are_spelled(tmp_path: Path) -> None:
    added = ["<｜User｜>", "<|end|>", "    ", "<think>"]
    path = file_of(tmp_path, [*TOKENS, *added], kinds=[*[1] * len(TOKENS), 3, 3, 4, 4], pre="qwen2")
    tokenizer = read(path)
    ids = tokenizer.encode("<｜User｜>a<|end|>    <think>", add_special_tokens=False)
    first = len(TOKENS)
    assert ids == [first, TOKENS.index("a"), first + 1, first + 2, first + 3]
    assert len(tokenizer) == first + len(added)
    assert [id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special] == [first, first + 1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a    <think>"


def test_a_text_begins_as_the_file_says_or_its_rule(tmp_path: Path) -> None:
    tokens = [*TOKENS, "<s>", "</s>"]
    ends = {"bos_token_id": len(TOKENS), "eos_token_id": len(TOKENS) + 1}
    kinds = [*[1] * len(TOKENS), 3, 3]

    def ids(**said: Any) -> list[int]:
        found: list[int] = read(file_of(tmp_path, tokens, kinds=kinds, **said))("a")["input_ids"]
        return [id_ - len(TOKENS) for id_ in found if id_ >= len(TOKENS)]

    assert ids(pre="llama-bpe", **ends) == [0]
    assert ids(pre="llama-bpe", add_bos_token=False, **ends) == []
    assert ids(pre="gpt-2", **ends) == []
    assert ids(pre="gpt-2", add_bos_token=True, add_eos_token=True, **ends) == [0, 1]
    assert ids(pre="llama-bpe") == []  # it has no such token


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"model": "bert"}, "a tokenizer of the kind 'bert'"),
        ({"pre": "gpt-2", "add_space_prefix": True}, "add_space_prefix = True"),
        ({"pre": "gpt-2", "normalizer.lowercase": True}, "normalizer.lowercase = True"),
        ({"pre": "gpt-2", "bos_token_id": 10**6}, "damaged: its `bos_token_id` is 1,000,000"),
    ],
)
def test_what_would_be_dropped_or_is_damaged_is_refused(said: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=reason):
        read(file_of(tmp_path, **said))


def test_a_vocabulary_that_can_not_be_right_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="2 of its tokens are 'a'"):
        read(file_of(tmp_path, [*TOKENS, "a"], pre="gpt-2"))
    with pytest.raises(ModelError, match="merges 'a' and '', and one"):
        read(file_of(tmp_path, merges=["a"], pre="gpt-2"))
    with pytest.raises(ModelError, match="has .* tokens and 3 kinds"):
        read(file_of(tmp_path, kinds=[1, 1, 1], pre="gpt-2"))


@pytest.mark.parametrize(("architecture", "name"), [("qwen2", "llama-bpe"), ("qwen35", "gpt-2"), ("llama", "qwen2")])
def test_a_saved_tokenizer_is_read_as_it_is_whatever_transformers_has_for_its_architecture(
    architecture: str, name: str, tmp_path: Path
) -> None:
    config = {"qwen2": "qwen2", "qwen35": "qwen3_5", "llama": "llama"}[architecture]
    path = file_of(tmp_path, architecture=architecture, pre=name)
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "config.json").write_text(f'{{"model_type": "{config}"}}')
    made = read(path)
    save_tokenizer(made, folder, GGUFMetadata(gguf.GGUFReader(path), str(path)))
    found = read_raw_tokenizer(folder, remembers=False)
    assert found.backend_tokenizer.to_str() == made.backend_tokenizer.to_str()
    assert [found.tokenize(text) for text in texts(3, 20)] == [made.tokenize(text) for text in texts(3, 20)]


def sentencepiece(folder: Path, architecture: str, **said: Any) -> Any:
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    words = ["▁", "h", "i", "▁h", "▁hi", "hi"]
    tokens = ["<unk>", "<s>", "</s>", "<|user|>", *bytes_, *words]
    kinds = [2, 3, 3, 3, *[6] * 256, *[1] * len(words)]
    scores = [0.0] * 260 + [-5.0, -6.0, -7.0, -1.0, -2.0, -3.0]
    more = {"model": "llama", "scores": scores, "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return read(file_of(folder, tokens, None, architecture, kinds, **more, **said))


def test_sentencepiece_adds_a_space_only_where_the_file_says_so(tmp_path: Path) -> None:
    plain = sentencepiece(tmp_path, "llama")
    assert plain.tokenize("hi hi") == ["▁hi", "▁hi"]
    without = sentencepiece(tmp_path, "llama", add_space_prefix=False)
    assert without.tokenize("hi hi") == ["hi", "▁hi"]
    assert without.decode(without.encode(" hi", add_special_tokens=False)) == " hi"
    assert plain.decode(plain.encode("hi", add_special_tokens=False)) == "hi"
    assert without.tokenize("é") == ["<0xC3>", "<0xA9>"]


def test_control_tokens_of_phi_3_swallow_the_white_space_behind_them(tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path, "phi3")
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    ids = tokenizer.encode("<|user|>\n hi<s> hi", add_special_tokens=False)
    assert (user, ids) == (3, tokenizer.convert_tokens_to_ids(["<|user|>", "▁hi", "<s>", "▁", "▁hi"]))
