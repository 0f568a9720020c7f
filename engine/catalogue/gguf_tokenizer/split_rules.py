"""How byte-level tokenizers cut a text before they merge its bytes, by the name that GGUF files give each rule.

Each rule is that of the published tokenizer for which llama.cpp's converter introduced the name, which llama.cpp and
transformers follow only in part. A name whose tokenizer is not known to this table is refused.
"""

from typing import NamedTuple

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Punctuation, Split

__all__ = ["RULES", "RULE_OF", "SplitRule"]


class SplitRule(NamedTuple):
    """What a byte-level tokenizer does to a text before its merges."""

    stages: tuple[PreTokenizer, ...]
    composes: bool = False  # brings the text into Unicode's normal form C first
    whole_words: bool = False  # takes a word that is a token as that token, whatever the merges make of it
    adds_bos: bool = False  # where the file does not say


def _split(pattern: str) -> PreTokenizer:
    return Split(Regex(pattern), behavior="isolated")


def _spaces() -> tuple[str, ...]:
    """Spaces before a word leave it the last one."""
    return (r"\s+(?!\S)", r"\s+")


def _tiktoken(
    words: tuple[str, ...],
    digits: str,
    symbols: str = r" ?[^\s\p{L}\p{N}]+[\r\n]*",
) -> tuple[PreTokenizer, ...]:
    """The form of OpenAI's patterns: words, digits, symbols, line breaks, spaces."""
    return (_split("|".join((*words, digits, symbols, r"\s*[\r\n]+", *_spaces()))), _BYTES)


_BYTES = ByteLevel(add_prefix_space=False, use_regex=False)
_GPT2 = ByteLevel(add_prefix_space=False, use_regex=True)
_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ANY_CASE = (_CONTRACTION, r"[^\r\n\p{L}\p{N}]?\p{L}+")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BY_CASE = tuple(rf"[^\r\n\p{{L}}\p{{N}}]?{word}" for word in (f"{_UPPER}*{_LOWER}+", f"{_UPPER}+{_LOWER}*"))
_PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"  # symbols with the slashes behind them

_DIGITS_THEN_GPT2 = (Digits(individual_digits=True), _GPT2)
_LLAMA3 = _tiktoken(_ANY_CASE, r"\p{N}{1,3}")
_QWEN2 = _tiktoken(_ANY_CASE, r"\p{N}")
_QWEN35 = _tiktoken((_CONTRACTION, r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"), r"\p{N}", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*")
_TEKKEN = _tiktoken(_BY_CASE, r"\p{N}", _PATHS)
_GPT4O = _tiktoken(tuple(f"{word}{_CONTRACTION}?" for word in _BY_CASE), r"\p{N}{1,3}", _PATHS)
_BLOOM = (_split(r" ?[^(\s|.,!?…。，、।۔،)]+"), _BYTES)
_FALCON = (Punctuation("contiguous"), _GPT2, Digits(individual_digits=False), _split("[0-9][0-9][0-9]"))
_FALCON3 = (Punctuation("contiguous"), _GPT2, Digits(individual_digits=True))

# Letters that have a case, as the authors of DeepSeek LLM listed them.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_EAST_ASIAN = "[\u0800-\u9fa5\uac00-\ud7ff]+"
_DEEPSEEK_LLM = (
    _split("[\r\n]"),
    _split(rf"\s?[{_CASED}]+"),
    _split(r"\s?[!-/:-~" + "\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"),
    _split(r"\s+$"),
    _split(_EAST_ASIAN),
    Digits(individual_digits=True),
    _BYTES,
)
_DEEPSEEK_CODER = (
    _split("[\r\n]"),
    _split(r"\s?\p{L}+"),
    _split(r"\s?\p{P}+"),
    _split(_EAST_ASIAN),
    Digits(individual_digits=True),
    _BYTES,
)
_DEEPSEEK_V3 = (
    _split(r"\p{N}{1,3}"),
    _split("[\u4e00-\u9fa5\u3040-\u30ff]+"),
    _split(
        "|".join(
            (
                r"[!-/:-@\[-`{-~][A-Za-z]+",
                r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
                r" ?[\p{P}\p{S}]+[\r\n]*",
                r"\s*[\r\n]+",
                *_spaces(),
            )
        )
    ),
    _BYTES,
)

RULES: dict[str, SplitRule] = {
    **dict.fromkeys(("gpt-2", "phi-2"), SplitRule((_GPT2,))),
    **dict.fromkeys(("mpt", "olmo"), SplitRule((_GPT2,), composes=True)),  # both are GPT-NeoX's tokenizer
    **dict.fromkeys(("smollm", "starcoder", "refact"), SplitRule(_DIGITS_THEN_GPT2)),
    "command-r": SplitRule(_DIGITS_THEN_GPT2, composes=True),
    "falcon": SplitRule(_FALCON),
    "falcon3": SplitRule(_FALCON3),
    "bloom": SplitRule(_BLOOM),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "pixtral", "lfm2"),
        SplitRule(_LLAMA3, whole_words=True, adds_bos=True),
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe"), SplitRule(_LLAMA3)),
    **dict.fromkeys(("qwen2", "stablelm2"), SplitRule(_QWEN2, composes=True)),
    "qwen35": SplitRule(_QWEN35, composes=True),
    "tekken": SplitRule(_TEKKEN, whole_words=True, adds_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "minimax-m2"), SplitRule(_GPT4O)),
    "deepseek-llm": SplitRule(_DEEPSEEK_LLM),
    "deepseek-coder": SplitRule(_DEEPSEEK_CODER),
    "deepseek-v3": SplitRule(_DEEPSEEK_V3),
}
# The rule of an architecture all of whose published models share a tokenizer; older files do not name it.
RULE_OF = {
    "bloom": "bloom",
    "falcon": "falcon",
    "gpt2": "gpt-2",
    "lfm2": "lfm2",
    "mamba": "mpt",
    "minimax-m2": "minimax-m2",
    "qwen2": "qwen2",
    "qwen2moe": "qwen2",
    "qwen3": "qwen2",
    "qwen3moe": "qwen2",
    "qwen35": "qwen35",
    "qwen35moe": "qwen35",
    "starcoder2": "starcoder",
}
