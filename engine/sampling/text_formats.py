"""Whether a text fits a pattern or a format, decided by llguidance as in the grammars of replies."""

import json
from functools import lru_cache
from typing import Any

__all__ = ["byte_tokenizer", "can_begin", "fits_format", "fits_pattern", "limits"]


@lru_cache(maxsize=1)
def byte_tokenizer() -> Any:
    """A tokenizer whose tokens are the 256 bytes."""
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


@lru_cache(maxsize=1)
def limits() -> Any:
    """What a grammar may cost: some seconds when it is made, a second a step. llguidance's defaults are a twentieth."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=20_000_000, step_lexer_fuel=5_000_000, max_lexer_states=500_000, verbose_errors=False
    )


def fits_pattern(pattern: str, text: str) -> bool:
    r"""Whether a pattern is found in a text. `\d` and `\w` are ASCII here, as in ECMAScript, and `\s` is not."""
    return _fits("pattern", pattern, text)


def fits_format(name: str, text: str) -> bool:
    """Whether a text has a format."""
    return _fits("format", name, text)


@lru_cache(maxsize=256)
def can_begin(words: str) -> bool:
    """Whether any text satisfies these keywords of a schema, given as JSON; True where they are refused elsewhere."""
    from llguidance import LLMatcher

    escapes: Any = {"json_allowed_escapes": '"\\bfnrt', "whitespace_flexible": False}
    schema = json.dumps({"type": "string", **json.loads(words)})
    matcher = LLMatcher(byte_tokenizer(), LLMatcher.grammar_from_json_schema(schema, overrides=escapes))
    if matcher.is_error():
        return True
    return matcher.try_consume_tokens([ord('"')]) == 1 and bool(any(matcher.compute_bitmask()))


def _fits(key: str, value: str, text: str) -> bool:
    """Takes time in proportion to the text: llguidance's regular expressions are automata."""
    matcher = _matcher(key, value).deep_copy()
    quoted = json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f").encode("utf-8", "replace")
    read: int = matcher.try_consume_tokens(list(quoted))
    return read == len(quoted) and bool(matcher.is_accepting())


@lru_cache(maxsize=256)
def _matcher(key: str, value: str) -> Any:
    from llguidance import LLMatcher

    # Any escape that JSON knows may stand in the text: control characters have no other form.
    schema = json.dumps({"type": "string", key: value})
    escapes: Any = {"json_allowed_escapes": '"\\bfnrtu', "whitespace_flexible": False}
    return LLMatcher(byte_tokenizer(), LLMatcher.grammar_from_json_schema(schema, overrides=escapes))
