"""Says which value of a config.json keeps transformers from building a model, where transformers says it in code."""

import json
import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .config_sizes import check_config_sizes
from .text_model import auto_class

__all__ = ["explain_config"]

_FIELD = re.compile(r"Field '(\w+)' (?:expected (.+?), got|with value)")
_SIZES = ("hidden_size", "_heads", "head_dim", "vocab_size", "intermediate_size", "n_embd", "n_head", "d_model")
_PLAIN = (OSError, ValueError, RuntimeError, ImportError, MemoryError)  # whose messages are sentences
_SHOWN = 60  # characters of a value
_NAMED = 40  # names that are known


class _Entry(NamedTuple):
    """A key of the configuration with those above it, and its value."""

    path: str
    key: str
    value: Any


def explain_config(error: BaseException, folder: Path) -> str | None:
    """What is wrong with the folder's config.json, by the error that reading the model raised; None if not known."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        entries = list(_entries(config))
    except (OSError, ValueError, RecursionError):
        return None
    by_key = {entry.key: entry for entry in reversed(entries)}
    if type(error).__name__.startswith("StrictDataclass") and (said := _of_check(str(error), by_key)):
        return said
    for entry in entries:
        if wrong := _wrong(entry, by_key):
            return wrong
    if isinstance(error, KeyError) and error.args:
        for entry in entries:
            if entry.value == error.args[0] or (isinstance(entry.value, list) and error.args[0] in entry.value):
                return _says(entry, "which transformers does not know")
    return None if type(error) in _PLAIN else _of_defaults(config, folder)


def _of_check(said: str, by_key: dict[str, _Entry]) -> str | None:
    """transformers checks some values by itself, and says the result on the second line."""
    found = _FIELD.search(said)
    if found and (entry := by_key.get(found[1])):
        return _says(entry, f"where a value of type {found[2]} belongs" if found[2] else "where no such value belongs")
    rule = re.search(r"\n\s*ValueError: (.*)", said)
    return f"its config.json contradicts itself: {rule[1]}" if rule else None


def _of_defaults(config: Any, folder: Path) -> str | None:
    """The value of another type than this type of model has by default, with which default a model can be built."""
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        return None
    usual = transformers.AutoConfig.for_model(kind).to_dict()
    for key, value in config.items():
        default = usual.get(key)
        if default is None or _like(value, default) or not _builds({**config, key: default}, folder):
            continue
        why = f"where models of type {kind!r} have a value like {json.dumps(default)}"
        return _says(_Entry(key, key, value), why)
    return None


def _builds(config: dict[str, Any], folder: Path) -> bool:
    try:
        found = transformers.AutoConfig.for_model(**config)
        check_config_sizes(found, folder)
        with torch.device("meta"):
            auto_class(found).from_config(found)
    except Exception:  # a boundary: the same errors that are to be explained
        return False
    return True


def _like(value: Any, default: Any) -> bool:
    if _is_number(default):
        return _is_number(value) and (value > 0 or default <= 0)
    return isinstance(value, type(default))


def _wrong(entry: _Entry, by_key: dict[str, _Entry]) -> str | None:
    key, value = entry.key, entry.value
    if key == "model_type" and not isinstance(value, str):
        return _says(entry, "where the name of a type of model belongs")
    if key in ("rope_type", "type") and "rope" in entry.path and not _is_in(value, ropes := _rope_types()):
        return _unknown(entry, ropes)
    if key.endswith(("hidden_act", "activation_function", "hidden_activation")) and not _is_in(value, ACT2FN):
        return None if value is None else _unknown(entry, list(ACT2FN))
    if key in ("dtype", "torch_dtype") and value is not None and value != "auto":
        known = value.removeprefix("torch.") if isinstance(value, str) else ""
        if not isinstance(getattr(torch, known or "-", None), torch.dtype):
            return _unknown(entry, ["float32", "float16", "bfloat16"])
    if key.endswith(_SIZES) and _is_number(value) and value <= 0:
        return _says(entry, "where a positive number belongs")
    if key == "rope_theta" and not (_is_number(value) and value > 0):
        return _says(entry, "where a positive number belongs")
    vocabulary: Any = by_key["vocab_size"].value if "vocab_size" in by_key else None
    if key == "pad_token_id" and _is_number(value) and _is_number(vocabulary) and not -vocabulary <= value < vocabulary:
        return _says(entry, f"and its `vocab_size` is {vocabulary}")
    return None


def _rope_types() -> list[str]:
    return sorted({"default", *ROPE_INIT_FUNCTIONS})


def _is_in(value: Any, known: Any) -> bool:
    return isinstance(value, str) and value in known


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unknown(entry: _Entry, known: list[str]) -> str:
    near = get_close_matches(str(entry.value), known, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    names = ", ".join(known[:_NAMED])
    return _says(entry, f"and transformers {transformers.__version__} knows {names}{meant}")


def _says(entry: _Entry, why: str) -> str:
    shown = json.dumps(entry.value, ensure_ascii=False)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return f"its config.json says `{entry.path}: {shown}`, {why}; correct it, or fetch the model again"


def _entries(config: Any, above: str = "") -> Iterator[_Entry]:
    for key, value in config.items() if isinstance(config, dict) else ():
        yield _Entry(f"{above}{key}", key, value)
        yield from _entries(value, f"{above}{key}.")
