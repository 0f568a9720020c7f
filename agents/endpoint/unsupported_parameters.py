"""Replace parameters that a model refuses, such as `temperature` for reasoning models.

A parameter is replaced only if the server names it, once each, and later requests keep the change only if the server
then answers.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = ["REPLACED", "adapted", "refused_parameter"]

# Replacements of refused parameters; None: omit it.
REPLACED: Mapping[str, str | None] = {
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": "max_tokens",
    "temperature": None,
    "stream_options": None,
    "stream": None,
}
_NAME = re.compile(r"\b(" + "|".join(REPLACED) + r")\b")
_REFUSES = re.compile(
    r"unsupported|not (?:be )?(?:supported|permitted|allowed|available)|(?:does|do)(?: not|n't) support|"
    r"unrecogni[sz]ed|unknown|unexpected|extra|deprecated|"
    r"only the default|must be verified to stream|incompatible|instead",
    re.IGNORECASE,
)


def refused_parameter(status: int, body: str, sent: Iterable[str]) -> str | None:
    """The sent and replaceable parameter that a response refuses; None if there is none."""
    if status not in (400, 404, 422, 501) or not _REFUSES.search(body):
        return None
    sent = set(sent)
    return next((name for name in _named(body) if name in sent and name in REPLACED), None)


def adapted(body: dict[str, Any], refused: Iterable[str]) -> dict[str, Any]:
    """The body with refused parameters replaced."""
    refused = list(dict.fromkeys(refused))
    out = dict(body)
    for name in refused:
        if name in out:
            value = out.pop(name)
            new = REPLACED[name]
            if new is not None and new not in refused:
                out[new] = value
    if "stream" in refused:
        out.pop("stream_options", None)
    return out


def _named(body: str) -> Iterator[str]:
    """Yield the parameters that an error names: first in a field for it, then in its message."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        parsed = None
    error = parsed.get("error", parsed) if isinstance(parsed, dict) else None
    if isinstance(error, dict):
        if isinstance(param := error.get("param"), str):
            yield param.rpartition(".")[2]
        detail = error.get("detail")
        for entry in detail if isinstance(detail, list) else ():
            place = entry.get("loc") if isinstance(entry, dict) else None
            if isinstance(place, list) and place:
                yield str(place[-1])
    yield from _NAME.findall(body)
