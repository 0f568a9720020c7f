"""JSON as the server writes it."""

import json
from typing import Any

__all__ = ["to_json"]


def to_json(value: Any) -> str:
    """On one line, without NaN, which is no JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
