"""Compact copies of tokenizer files in the cache folder: the same tokenizers, which their library parses faster.

A copy has no white space and each merge as one string. The parser of the tokenizers library holds Python's lock, which
stops all other threads: for a vocabulary of 262k, for 0.71 s of CPU with the original file and 0.53 s with its copy.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from cachegraph.common.atomic_write import write_atomically
from cachegraph.common.paths import home

__all__ = ["find_copy", "write_copy"]

_KEPT = 16  # copies; the oldest go first
_log = logging.getLogger("cachegraph")


def write_copy(tokenizer: Any) -> str | None:
    """Keep a copy of a `tokenizers.Tokenizer`; its hash, by which it is found, or None where it can't be kept."""
    written = tokenizer.to_str()
    compact = _compact(written)
    if Tokenizer.from_str(compact).to_str() != written:
        return None
    digest = hashlib.sha256(compact.encode()).hexdigest()
    path = _path(digest)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, compact)
        copies = sorted(path.parent.glob(f"*{path.suffix}"), key=lambda copy: copy.stat().st_mtime)
        for old in copies[:-_KEPT]:
            old.unlink(missing_ok=True)
    except OSError as error:
        _log.debug("%s can't be kept: %s", path, error)
        return None
    return digest


def find_copy(digest: object) -> Path | None:
    """The copy with this hash, if it is there and whole."""
    if not isinstance(digest, str):
        return None
    path = _path(digest)
    try:
        intact = hashlib.sha256(path.read_bytes()).hexdigest() == digest
    except (OSError, ValueError):
        return None
    return path if intact else None


def _path(digest: str) -> Path:
    return home() / "tokenizers" / f"{digest[:32]}.compact"


def _compact(written: str) -> str:
    tokenizer = json.loads(written)
    merges = tokenizer["model"].get("merges")
    if isinstance(merges, list) and not any(" " in piece for merge in merges for piece in merge):
        tokenizer["model"]["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
