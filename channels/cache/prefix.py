"""Put a trained prefix in front of a prompt: as entries of the model that it was trained for."""

from pathlib import Path

from cachegraph.engine.model.load import LoadedModel
from cachegraph.errors import ChannelError

from ..fusers.files.card import Geometry
from ..fusers.files.weights import read_prefix
from ..payload import KVSpan

__all__ = ["prefix_span", "why_no_prefix"]

UNKNOWN = 0  # the token of an entry that was trained, not computed


def prefix_span(folder: Path, model: LoadedModel) -> KVSpan:
    """Read the trained prefix in a folder as entries for the front of a row.

    Each layer is (1, kv_heads, positions, head_dim).

    Raises FuserError if the folder is damaged, ChannelError if the prefix does not fit the model.
    """
    prefix = read_prefix(folder)
    geometry = Geometry(model.info.layers, model.info.kv_heads, model.info.head_dim)
    trained = prefix.card.receiver
    reason = why_no_prefix(model)
    if trained.geometry != geometry or trained.identity not in (None, model.identity):
        reason = f"it was trained for {trained.name!r} ({trained.identity}), and this is {model.identity}"
    if reason is not None:
        raise ChannelError(f"the trained prefix {str(folder)!r} can't precede a prompt of {model.name!r}: {reason}")
    count = len(prefix)
    return KVSpan((prefix.frozen_kv(model.device, model.dtype),), [UNKNOWN] * count, [None] * count)


def why_no_prefix(model: LoadedModel) -> str | None:
    """Why this model can't continue from trained entries, as a sentence; None if it can."""
    if model.why_no_cache is not None:
        return model.why_no_cache
    if model.info.states:
        return "it keeps a recurrent state beside its KV cache, which no prefix has"
    if model.info.by_length is not None:
        return "its RoPE frequencies depend on the length of the row, and a prefix has those of one length"
    return None
