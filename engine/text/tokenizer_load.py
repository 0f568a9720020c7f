"""Loads a tokenizer, as transformers does and as fast as the tokenizers library can.

transformers reads a tokenizer.json in Python, takes it apart and builds it again, which takes seconds at every start
for a vocabulary of 262k. If the result equals the file, which is checked once and remembered, the library reads the
file directly from then on, or a compact copy of it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cachegraph.common.json_cache import KeptJson, file_facts

from .compact_tokenizer import find_copy, write_copy

__all__ = ["mark_exact", "read_raw_tokenizer"]

_FORMAT = 2
_CONFIG, _EXACT = "tokenizer_config.json", "cachegraph_exact"
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_OPTIONS = ("chat_template", "clean_up_tokenization_spaces", "split_special_tokens", "padding_side", "model_max_length")
_NONE = type(None)
_TYPES = {  # of values that transformers uses without a check
    "tokenizer_class": (str, _NONE),
    "model_max_length": (int, float, _NONE),
    "auto_map": (dict, list, _NONE),
}
_LARGE = 100_000  # bytes of a tokenizer.json; a smaller one is read at once
# What classes of transformers say of themselves beside how they are built.
_DATA = {"vocab_files_names", "model_input_names", "padding_side", "truncation_side", "model", "slow_tokenizer_class"}


def read_raw_tokenizer(folder: Path, *, remembers: bool) -> Any:
    """The tokenizer in a folder, transformers' own. `remembers`: what an earlier start found out of it."""
    file = folder / "tokenizer.json"
    if not remembers or not file.is_file() or file.stat().st_size < _LARGE:
        return _read_slowly(folder)
    kept = KeptJson("tokenizers", [_FORMAT, transformers.__version__, tokenizers.__version__, *_facts(folder)])
    known = kept.read()
    if isinstance(known, dict) and known.keys() >= {"options", "copy"}:
        try:
            return _read_directly(find_copy(known["copy"]) or file, known["options"])
        except Exception:  # a boundary: another program cut the file or wrote to it
            known = None
    raw = _read_slowly(folder)
    if known != {}:  # where it is empty, transformers makes something else of the file
        kept.write(_found_out(file, raw))
    return raw


def _found_out(file: Path, raw: Any) -> dict[str, Any]:
    """What the tokenizer can be read from at the next start; nothing where only transformers reads it right."""
    options = _options(raw)
    if not options or not _alike(_read_directly(file, options), raw):
        return {}
    return {"options": options, "copy": write_copy(raw.backend_tokenizer)}


def mark_exact(folder: Path) -> None:
    """Have the tokenizer in a folder of ours read as its file says, not by the class for the model's type."""
    file = folder / _CONFIG
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, _EXACT: True}, indent=2) + "\n", encoding="utf-8")


def _read_slowly(folder: Path) -> Any:
    config = _read_config(folder)
    for key, kinds in _TYPES.items():
        if not isinstance(config.get(key), kinds):
            wanted = kinds[0].__name__
            raise ValueError(
                f"its {_CONFIG} says `{key}: {json.dumps(config[key])}`, where a value of type {wanted} belongs; "
                "correct it, or fetch the model again"
            )
    if config.get(_EXACT) is True:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / _CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):  # transformers says what is wrong with it
        return {}
    return config if isinstance(config, dict) else {}


def _read_directly(file: Path, options: dict[str, Any]) -> Any:
    return PreTrainedTokenizerFast(tokenizer_file=str(file), **options)


def _facts(folder: Path) -> Iterator[Any]:
    """All files that transformers may read for a tokenizer; all are small."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in (".json", ".jinja", ".model", ".txt") and "safetensors" not in path.name:
            yield file_facts(path)


def _options(raw: Any) -> dict[str, Any] | None:
    """What a tokenizer is made of beside its file, as JSON values; None where its class does something of its own."""
    own = [kind for kind in type(raw).__mro__ if issubclass(kind, PreTrainedTokenizerFast)]
    written = {name for kind in own if kind is not PreTrainedTokenizerFast for name in vars(kind)}
    if any(name not in _DATA and not name.startswith("__") for name in written) or not raw.is_fast:
        return None
    options = {name: getattr(raw, name) for name in _OPTIONS}
    options |= {name: str(value) for name in _NAMES if (value := getattr(raw, name)) is not None}
    extra = [str(token) for token in raw.all_special_tokens if str(token) not in options.values()]
    return {**options, "extra_special_tokens": extra, "model_input_names": list(raw.model_input_names)}


def _alike(a: Any, b: Any) -> bool:
    """Whether two tokenizers are the same in all that is used of them."""
    names = (*_OPTIONS, *_NAMES, *(f"{name}_id" for name in _NAMES), "all_special_ids", "vocab_size", "is_fast")
    same = all(getattr(a, name) == getattr(b, name) for name in names)
    same = same and _written(a.special_tokens_map) == _written(b.special_tokens_map)  # what chat templates are given
    return same and len(a) == len(b) and a.backend_tokenizer.to_str() == b.backend_tokenizer.to_str()


def _written(names: dict[str, Any]) -> dict[str, Any]:
    return {key: list(map(str, name)) if isinstance(name, list) else str(name) for key, name in names.items() if name}
