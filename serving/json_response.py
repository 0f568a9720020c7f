"""JSON encoding of responses."""

import json
from typing import Any

__all__ = ["to_json"]


def to_json(value: Any) -> str:
    """Encode on one line, in ASCII because some clients split lines at Unicode separators, and without NaN."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
