"""Read which projectors a published Cache-to-Cache folder names. No torch."""

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from cachegraph.engine.spec import Strict
from cachegraph.errors import FuserError

from .atomic_folder import read_json

__all__ = ["CONFIG", "PublishedSharer", "read_sharers", "weights_folder"]

CONFIG = "projector_config.json"


class PublishedSharer(Strict):
    """One sharer's part of the configuration: (sharer layer, projector) by receiver layer."""

    layers: dict[int, tuple[int, int]] = Field(min_length=1)


def weights_folder(folder: Path) -> Path | None:
    """The folder itself or its `final`, whichever holds the configuration."""
    return next((path for path in (folder, folder / "final") if (path / CONFIG).is_file()), None)


def read_sharers(folder: Path) -> list[PublishedSharer]:
    """Read every sharer that the folder with the weights names, sorted by number.

    Raises FuserError if it names no sharer, or several receivers.
    """
    path = folder / CONFIG
    config = read_json(path)
    if len(config) != 1:
        raise FuserError(f"{str(path)!r} names {len(config)} receivers; a fuser has one, split the file")
    by_sharer = next(iter(config.values()))
    if not isinstance(by_sharer, dict) or not by_sharer:
        raise FuserError(f"{str(path)!r} names no sharer; get the fuser again from its source")
    return [_sharer(by_sharer[number], path) for number in sorted(by_sharer, key=_as_number)]


def _sharer(layers: Any, path: Path) -> PublishedSharer:
    chosen = {}
    for layer, pairs in layers.items() if isinstance(layers, dict) else ():
        if isinstance(pairs, list) and len(pairs) > 1:
            raise FuserError(
                f"{str(path)!r} gives receiver layer {layer} {len(pairs)} projectors; the published code reads only "
                "the first, so delete the others if that is meant"
            )
        chosen[layer] = pairs[0] if isinstance(pairs, list) and pairs else None
    try:
        sharer = PublishedSharer.model_validate({"layers": chosen})
    except ValidationError as error:
        raise FuserError(
            f"{str(path)!r} is not of the form {{receiver: {{sharer: {{layer: [[layer, projector]]}}}}}} "
            f"({error.errors()[0]['msg']}); get the fuser again from its source"
        ) from error
    if min(min(layer, *pair) for layer, pair in sharer.layers.items()) < 0:
        raise FuserError(f"{str(path)!r} holds a negative number; get the fuser again from its source")
    return sharer


def _as_number(key: str) -> int:
    return int(key) if key.isdecimal() else -1
