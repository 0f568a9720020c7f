"""JSON as the server writes it."""

import json
from typing import Any

__all__ = ["to_json"]


def to_json(value: Any) -> str:
    """On one line, in ASCII, since some clients see line ends in other characters; without NaN, which is no JSON."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
