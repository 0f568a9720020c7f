"""Reads transformers' report on loading weights: which are missing, and which it does not know.

transformers fills missing weights with random numbers, so a model that lacks some is refused.
"""

import logging
from collections.abc import Collection, Mapping
from typing import Any

from cachegraph.errors import ModelError

__all__ = ["check_report"]

_NAMED = 4  # of the weights


def check_report(report: Mapping[str, Any], folder: str) -> None:
    """Raises ModelError where weights are missing, tied ones excepted; warns of weights that nothing reads."""
    if missing := report.get("missing_keys"):
        raise ModelError(
            f"the model in {folder!r} lacks {_count(missing)} that its config.json asks for: {_names(missing)}; fetch "
            "it again, or correct its config.json"
        )
    if unread := report.get("unexpected_keys"):
        logging.getLogger("cachegraph").warning(
            "the model in %r has %s that its config.json has no place for: %s", folder, _count(unread), _names(unread)
        )


def _count(keys: Collection[str]) -> str:
    return f"{len(keys)} weight{'s' if len(keys) > 1 else ''}"


def _names(keys: Collection[str]) -> str:
    names = sorted(keys)
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
