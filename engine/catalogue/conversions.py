"""Versions of the conversion of GGUF files: models of an earlier one are mended in place, or converted again.

Version 1 took the tokenizer from transformers, which cuts texts by GPT-2's rule where it does not know the file's.
"""

import json
import logging
from pathlib import Path

from cachegraph.common.atomic_write import write_atomically

from .store import RECORD, ModelRecord, Stored

__all__ = ["CONVERSION", "is_current"]

CONVERSION = 2
# By a GGUF file's hash: what its tokenizer does to a text first, which version 1 left out.
_FIRST_STAGE = {
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53": {"type": "Digits", "individual_digits": True},
}
_log = logging.getLogger("cachegraph")


def is_current(stored: Stored) -> bool:
    """Whether a stored model is what this version would convert; False if its file has to be converted again."""
    record = stored.record
    if record.sha256 is None or record.conversion >= CONVERSION:
        return True
    try:
        if not _mend(stored.folder / "tokenizer.json", _FIRST_STAGE.get(record.sha256)):
            return False
        _note(stored)
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.debug("%s can't be mended: %s", stored.folder, error)
        return False
    return True


def _mend(file: Path, first: "dict[str, object] | None") -> bool:
    """Whether the tokenizer is exact now."""
    tokenizer = json.loads(file.read_bytes())
    found = tokenizer["pre_tokenizer"]
    if found is None or found["type"] not in ("ByteLevel", "Sequence", "Metaspace"):
        return True  # a SentencePiece tokenizer without a choice of rules
    if first is None:
        return False
    if found["type"] == "ByteLevel":
        tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [first, found]}
        write_atomically(file, json.dumps(tokenizer, indent=2, ensure_ascii=False))
    return True


def _note(stored: Stored) -> None:
    record: ModelRecord = stored.record.model_copy(update={"conversion": CONVERSION})
    write_atomically(stored.place / RECORD, record.model_dump_json(indent=2) + "\n")
