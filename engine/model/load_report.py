"""Reads transformers' report on loading weights: which are missing, of another shape, or not known to it.

transformers fills missing weights, and those that don't fit, with random numbers. Such a model is refused.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cachegraph.errors import ModelError

__all__ = ["check_report"]

_NAMED = 4  # of the weights


def check_report(report: Mapping[str, Any], folder: str) -> None:
    """Raises ModelError where weights are missing, tied ones excepted, or have other shapes than the model.

    Warns of weights that nothing reads.
    """
    if misfits := sorted(report.get("mismatched_keys") or ()):
        name, stored, wanted = misfits[0]
        more = f", and {len(misfits) - 1} more" if len(misfits) > 1 else ""
        raise ModelError(
            f"the model in {folder!r} has weights of other shapes than its config.json says: {name} is "
            f"{_shape(stored)} and should be {_shape(wanted)}{more}; fetch it again, or correct its config.json"
        )
    if missing := report.get("missing_keys"):
        raise ModelError(
            f"the model in {folder!r} lacks {_count(missing)} that its config.json asks for: {_names(missing)}; fetch "
            "it again, or correct its config.json"
        )
    if unread := report.get("unexpected_keys"):
        logging.getLogger("cachegraph").warning(
            "the model in %r has %s that its config.json has no place for: %s", folder, _count(unread), _names(unread)
        )


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _count(keys: Collection[str]) -> str:
    return f"{len(keys)} weight{'s' if len(keys) > 1 else ''}"


def _names(keys: Collection[str]) -> str:
    names = sorted(keys)
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
