"""A model folder's weights by their safetensors headers. Reads no tensor and needs no torch."""

import hashlib
import json
import math
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

from cachegraph.errors import ModelError, library_errors

from ..model.file_sizes import check_file_size, check_file_sizes

__all__ = ["check_folder", "count_parameters", "count_tensors", "fingerprint", "tensor_dtypes", "weight_files"]

MAX_HEADER = 100_000_000
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class _Header(NamedTuple):
    text: bytes
    tensors: int
    parameters: int
    file_bytes: int
    dtypes: dict[str, str]


def check_folder(folder: Path) -> None:
    """Raise ModelError unless transformers can load `folder` and its weights are safetensors that are all there."""
    if not folder.is_dir():
        raise ModelError(f"there is no model folder {str(folder)!r}; check the path, or pull the model")
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"the folder {str(folder)!r} has no config.json, so it is not a model; name a model's own folder"
        )
    check_file_sizes(folder)
    count_parameters(folder)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The weight files that transformers reads, and no others of the folder.

    Raises ModelError if there are none, or an index names files outside the folder.
    """
    single = folder / "model.safetensors"
    if single.is_file():
        return (single,)
    listing = folder / INDEX
    if not listing.is_file():
        raise ModelError(_why_no_weights(folder))
    check_file_size(listing, folder)
    again = f"the weight index {str(listing)!r} can't be read"
    with library_errors(lambda why: ModelError(f"{again}: {why}; fetch the model again")):
        names = set(json.loads(listing.read_text(encoding="utf-8"))["weight_map"].values())
    if strange := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        strange = sorted(map(str, strange))[:3]
        raise ModelError(f"the weight index {str(listing)!r} names files outside its folder: {strange}")
    return tuple(folder / name for name in sorted(names))


def count_parameters(folder: Path) -> int:
    """How many numbers the weights are; tied weights, stored once, count once."""
    return count_tensors(folder)[1]


def count_tensors(folder: Path) -> tuple[int, int]:
    """How many tensors the weights are, and how many numbers."""
    headers = [_header(file) for file in weight_files(folder)]
    return sum(header.tensors for header in headers), sum(header.parameters for header in headers)


def tensor_dtypes(folder: Path) -> dict[str, str]:
    """What the weights are stored as, by name, in safetensors' words (`BF16`, `I32`, ...)."""
    return {name: dtype for file in weight_files(folder) for name, dtype in _header(file).dtypes.items()}


def fingerprint(folder: Path) -> str:
    """A hash that changes with the config, and with the names, shapes, dtypes and sizes of the weights."""
    check_file_size(folder / "config.json", folder)
    with library_errors(lambda why: ModelError(f"the config.json of {str(folder)!r} can't be read: {why}")):
        digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in weight_files(folder):
        header = _header(file)
        digest.update(f"{file.name}:{header.file_bytes}:".encode() + header.text)
    return digest.hexdigest()


def _header(file: Path) -> _Header:
    damage = f"the weights {str(file)!r} can't be read"
    with library_errors(lambda why: ModelError(f"{damage}: {why}; fetch the model again")):
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > min(MAX_HEADER, size):
                raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
            text = opened.read(length)
        tensors: dict[str, Any] = json.loads(text)
        tensors.pop("__metadata__", None)
        end = max((index(tensor["data_offsets"][1]) for tensor in tensors.values()), default=0)
        parameters = sum(math.prod(map(index, tensor["shape"])) for tensor in tensors.values())
        dtypes = {name: str(tensor["dtype"]) for name, tensor in tensors.items()}
    if size < 8 + length + end:
        raise ModelError(
            f"the weights {str(file)!r} are cut short: {size:,} bytes of {8 + length + end:,}; fetch the model again"
        )
    return _Header(text, len(tensors), parameters, size, dtypes)


def _why_no_weights(folder: Path) -> str:
    if any(file.suffix in PICKLED for file in folder.iterdir()):
        return (
            f"the folder {str(folder)!r} has only pickled weights, which can run code when they are read; "
            "save the model again with safetensors"
        )
    return f"the folder {str(folder)!r} has no model.safetensors and no {INDEX}; is it a model's folder?"
