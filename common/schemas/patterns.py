"""Untrusted regular expressions, matched in linear time.

Uses the `regex` crate in pydantic: no backtracking, so no look-around and no back references. The grammars of
structured replies (llguidance) read the same syntax, so both accept the same replies.
"""

import re
from functools import lru_cache
from typing import Any

__all__ = ["Pattern", "PatternError", "compile_pattern"]

MAX_CHARACTERS = 2_000
_WIDE = 100  # states that a Unicode class may need: `.`, `\w`, `[^a]`, `\p{L}`
_TOKEN = re.compile(r"\\[pP]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*\]?|\{(\d+)(,?)(\d*)\}|.", re.DOTALL)


class PatternError(ValueError):
    """An unusable regular expression."""


class Pattern:
    """A compiled pattern. `weight` estimates the number of states that each character of a text may visit."""

    def __init__(self, source: str, validator: Any):
        self.weight = _weigh(source)
        self._validator = validator

    def search(self, text: str) -> bool:
        """Whether the pattern matches anywhere in the text."""
        return bool(self._validator.isinstance_python(text))


@lru_cache(maxsize=512)
def compile_pattern(source: str) -> Pattern:
    """Compile a pattern. Raises PatternError if the linear engine doesn't support it or it grows too large."""
    from pydantic_core import SchemaError, SchemaValidator, core_schema

    if len(source) > MAX_CHARACTERS:
        raise PatternError(f"it is longer than {MAX_CHARACTERS:,} characters")
    try:
        source.encode()
        schema = core_schema.str_schema(pattern=source, regex_engine="rust-regex", strict=True)
        return Pattern(source, SchemaValidator(schema))
    except SchemaError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1].removeprefix("error: ").removeprefix("SchemaError: ") if lines else "it can't be read"
        raise PatternError(reason) from error
    except UnicodeEncodeError as error:
        raise PatternError("it holds half a surrogate pair") from error


def _weigh(source: str) -> int:
    """Estimate the states of the compiled pattern: counted repetitions multiply their operand."""
    sums, last = [0], [0]  # per open group: its weight so far, and that of its last element
    for token in _TOKEN.finditer(source):
        text, (low, _, high) = token[0], token.groups()
        if low is not None:
            times = max(int(high or low), 1)
            sums[-1] += last[-1] * (times - 1)
            last[-1] *= times
        elif text == "(":
            sums.append(0)
            last.append(0)
        elif text == ")" and len(sums) > 1:
            inner = sums.pop()
            last.pop()
            sums[-1] += inner
            last[-1] = inner
        elif text not in "|*+?":
            is_wide = text in (".", "\\w", "\\W", "\\D", "\\S", "\\d", "\\s") or text.startswith(("\\p", "\\P", "["))
            last[-1] = _WIDE if is_wide and text != "[" else 1
            sums[-1] += last[-1]
    return sum(sums) + 1
