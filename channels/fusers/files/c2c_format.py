"""Read and write the published Cache-to-Cache format (arXiv 2510.03215).

    projector_config.json   {"<receiver>": {"<sharer>": {"<receiver layer>": [[<sharer layer>, <projector>], ...]}}}
    projector_<n>.json      {"class": "C2CProjector", "init_args": {...}}
    projector_<n>.pt        its state dict
    ../config.json          the training configuration; optional

The `.pt` files are pickles. They are read with torch's tensors-only unpickler, and every shape is checked against
`init_args` before the numbers are used.
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from cachegraph.errors import FuserError, library_errors

from ..layer_map import LayerPair
from ..networks.base import Fuser, Projector
from ..networks.c2c import C2CParams
from .atomic_folder import read_json, replaced_folder
from .c2c_folder import CONFIG, PublishedSharer, read_sharers, weights_folder
from .card import Alignment, Card, Geometry, checked_card
from .weights import expected_states, filled_projector

__all__ = ["export_reference", "is_reference", "load_reference"]

LARGEST_PICKLE = 1 << 20


class _InitArgs(C2CParams):
    source_dim: int
    target_dim: int
    source_num_heads: int = 1
    target_num_heads: int = 1
    dtype: Any = None  # stated by the tensors
    zero_init: bool = False


def is_reference(folder: Path) -> bool:
    return weights_folder(folder) is not None


def load_reference(folder: Path | str) -> tuple[Fuser, ...]:
    """Load the fusers of a published folder, one per sharer, sorted by the sharers' numbers.

    Raises FuserError if the folder is not in that format.
    """
    found = weights_folder(Path(folder))
    if found is None:
        inside = sorted(path.parent.parent.name for path in Path(folder).glob(f"*/final/{CONFIG}"))
        hint = f"name one of its folders: {', '.join(map(repr, inside))}" if inside else "check the path"
        raise FuserError(f"{str(folder)!r} holds no {CONFIG!r}; {hint}")
    damage = f"the fuser in {str(folder)!r} can't be read"
    with library_errors(lambda why: FuserError(f"{damage}: {why}; get it again from its source")):
        training = _training_config(found)
        sharers = read_sharers(found)
        return tuple(_fuser(found, sharer, training, len(sharers) == 1) for sharer in sharers)


def export_reference(fuser: Fuser, folder: Path | str) -> None:
    """Write a `c2c` fuser in the format of the authors' code: `folder/config.json` and `folder/final/`.

    Raises FuserError for a fuser of another architecture, or of models whose layers differ in shape.
    """
    card = fuser.card
    if card.architecture != "c2c":
        raise FuserError(f"a {card.architecture!r} fuser has no published format; only 'c2c' can be exported")
    if any(not isinstance(size, int) for end in (card.receiver, card.sharer) for size in _sizes_of(end.geometry)):
        raise FuserError(
            "the published format knows one kind of layer, and those of this fuser's models differ in shape"
        )
    params = C2CParams.model_validate(card.params)
    with replaced_folder(Path(folder), frozenset({"config.json", "final"})) as fresh:
        final = fresh / "final"
        final.mkdir()
        mapping: dict[str, list[list[int]]] = {}
        for number, (receiver, sharer, projector) in enumerate(fuser):
            mapping[str(receiver)] = [[sharer, number]]
            _write_json(final / f"projector_{number}.json", _description(card, params, projector))
            state = {name: tensor.detach().cpu().clone() for name, tensor in projector.state_dict().items()}
            torch.save(state, final / f"projector_{number}.pt")
        _write_json(final / CONFIG, {"0": {"1": mapping}})
        _write_json(fresh / "config.json", {"model": _model_config(card, params)})


def _sizes_of(geometry: Geometry) -> tuple[object, object]:
    return geometry.kv_heads, geometry.head_dim


def _training_config(folder: Path) -> dict[str, Any]:
    for path in (folder / "config.json", folder.parent / "config.json"):
        if path.is_file():
            model = read_json(path).get("model")
            return model if isinstance(model, dict) else {}
    return {}


def _fuser(folder: Path, sharer: PublishedSharer, training: Mapping[str, Any], only: bool) -> Fuser:
    args = {number: _init_args(folder / f"projector_{number}.json") for _, number in sharer.layers.values()}
    first, *others = args.values()
    if any(_sizes(other) != _sizes(first) for other in others):
        raise FuserError(f"the projectors in {str(folder)!r} differ in size; one fuser must have one size")
    card = _card(folder, first, sharer, training, only)
    expected = expected_states(card)
    projectors: dict[int, Projector] = {}
    for layer, (_, number) in sharer.layers.items():
        path = folder / f"projector_{number}.pt"
        projectors[layer] = filled_projector(card, layer, _read_pt(path), expected[layer], repr(str(path)))
    return Fuser(card, projectors).train(False)


def _init_args(path: Path) -> _InitArgs:
    described = read_json(path)
    if described.get("class") != "C2CProjector":
        raise FuserError(
            f"{str(path)!r} describes a {described.get('class')!r}; of the published projectors only 'C2CProjector' "
            "can be loaded"
        )
    try:
        return _InitArgs.model_validate(described.get("init_args"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise FuserError(f"{str(path)!r} is wrong at {place!r}: {first['msg']}; get the fuser again") from error


def _sizes(args: _InitArgs) -> dict[str, Any]:
    return args.model_dump(exclude={"dtype", "zero_init"})


def _card(folder: Path, args: _InitArgs, sharer: PublishedSharer, training: Mapping[str, Any], only: bool) -> Card:
    pairs = [LayerPair(layer, source) for layer, (source, _) in sorted(sharer.layers.items())]
    geometry = _geometry(max(pair.receiver for pair in pairs), args.target_num_heads, args.target_dim)
    source = _geometry(max(pair.sharer for pair in pairs), args.source_num_heads, args.source_dim)
    return checked_card(
        {
            "receiver": {"name": _name(training.get("base_model"), "receiver"), "geometry": geometry},
            "sharer": {"name": _name(training.get("teacher_model") if only else None, "sharer"), "geometry": source},
            "layer_map": pairs,
            "params": args.model_dump(include=set(C2CParams.model_fields)),
            "alignment": _alignment(training),
        },
        repr(str(folder)),
    )


def _geometry(last_layer: int, heads: int, head_dim: int) -> dict[str, int]:
    """The folder does not state the number of layers, but its layer map always reaches the last one."""
    return {"layers": last_layer + 1, "kv_heads": heads, "head_dim": head_dim}


def _alignment(training: Mapping[str, Any]) -> Alignment:
    if not training.get("is_do_alignment"):
        return "ids"
    strategy = training.get("alignment_strategy")
    if strategy not in ("first", "longest"):
        raise FuserError(f"the fuser was trained with the unknown alignment {strategy!r}; use 'first' or 'longest'")
    return "first" if strategy == "first" else "longest"


def _name(value: Any, default: str) -> str:
    return value if isinstance(value, str) and value else default


def _read_pt(path: Path) -> dict[str, Tensor]:
    remedy = "get the fuser again from its source"
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # on a damaged archive zipfile also raises struct.error, ValueError, NotImplementedError
        raise FuserError(f"{str(path)!r} is missing, cut off or no torch file; {remedy}") from error
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for entry in entries):
        raise FuserError(f"{str(path)!r} holds compressed data, which torch never writes; don't trust it, {remedy}")
    if sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl")) > LARGEST_PICKLE:
        raise FuserError(f"{str(path)!r} holds more than tensors; don't trust it, {remedy}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a hostile pickle can make the unpickler raise anything
        raise FuserError(
            f"{str(path)!r} is not a plain dictionary of tensors (a pickle that may run code is never loaded); {remedy}"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise FuserError(f"{str(path)!r} is not a plain dictionary of tensors; {remedy}")
    return dict(state)


def _description(card: Card, params: C2CParams, projector: Projector) -> dict[str, Any]:
    sizes = {
        "source_dim": card.sharer.geometry.head_dim,
        "target_dim": card.receiver.geometry.head_dim,
        "source_num_heads": card.sharer.geometry.kv_heads,
        "target_num_heads": card.receiver.geometry.kv_heads,
    }
    dtype = {"__type__": "torch.dtype", "value": str(projector.dtype).removeprefix("torch.")}
    return {"class": "C2CProjector", "init_args": {**sizes, **params.model_dump(), "dtype": dtype}}


def _model_config(card: Card, params: C2CParams) -> dict[str, Any]:
    return {
        "base_model": card.receiver.name,
        "teacher_model": card.sharer.name,
        "is_do_alignment": card.alignment != "ids",
        "alignment_strategy": "first" if card.alignment == "ids" else card.alignment,
        "projector": {"type": "C2CProjector", "params": params.model_dump()},
    }


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
