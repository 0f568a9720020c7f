"""Read and write our own format: `fuser.safetensors`, and `card.json` with its hash."""

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cachegraph.engine.kv.shapes import KVShape
from cachegraph.errors import FuserError, library_errors

from ..networks.base import Fuser, Projector
from ..networks.bottleneck import build_bottleneck
from ..networks.create import build_projector
from ..networks.prefix import Prefix, build_prefix
from ..networks.translator import ARCHITECTURE, Translator, build_translator
from .atomic_folder import replaced_folder
from .card import CARD, Card, read_card

__all__ = [
    "CARD",
    "WEIGHTS",
    "Expected",
    "expected_states",
    "filled_projector",
    "read_card",
    "read_fuser",
    "read_prefix",
    "read_translator",
    "save_fuser",
]

WEIGHTS = "fuser.safetensors"

Expected = dict[str, tuple[int, ...]]  # shapes by name
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class _Name(NamedTuple):
    layer: int
    parameter: str

    def __str__(self) -> str:
        return f"layers.{self.layer}.{self.parameter}"


def save_fuser(fuser: Fuser | Translator | Prefix, folder: Path | str) -> Card:
    """Write the fuser, translator or prefix to a folder atomically; returns the card with the weights' hash."""
    named = fuser.state() if isinstance(fuser, Fuser) else fuser.network.state_dict()
    tensors = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in named.items()}
    with replaced_folder(Path(folder), frozenset({CARD, WEIGHTS})) as fresh:
        save_file(tensors, fresh / WEIGHTS, metadata={"format": "pt"})
        (fresh / WEIGHTS).chmod(0o644)  # safetensors creates it readable by its owner alone
        card = fuser.card.model_copy(update={"sha256": _sha256(fresh / WEIGHTS)})
        (fresh / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return card


def read_fuser(folder: Path | str) -> Fuser:
    """Read the fuser in a folder of ours, checked against its card before anything is allocated. Raises FuserError."""
    card = read_card(folder)
    if card.kind == "prefix":
        raise FuserError(
            f"{str(folder)!r} is a trained prefix, a control of comparisons, which joins no two models; name a fuser"
        )
    if card.kind != "fuse":
        raise FuserError(f"{str(folder)!r} is a translator, which grafts; it can't fuse")
    with _damage(folder):
        return _read_fuser(folder, card)


def _read_fuser(folder: Path | str, card: Card) -> Fuser:
    if card.architecture == ARCHITECTURE:
        with torch.device("meta"):
            fuser = build_bottleneck(card)
        _fill(fuser.network, folder, card)
        return fuser.train(False)
    by_layer = expected_states(card)
    names = {_Name(layer, name): shape for layer, state in by_layer.items() for name, shape in state.items()}
    path = Path(folder) / WEIGHTS
    stored = _read_tensors(path, card, {str(name): shape for name, shape in names.items()})
    projectors = {}
    for layer, expected in by_layer.items():
        state = {name: stored.pop(str(_Name(layer, name))) for name in expected}
        projectors[layer] = filled_projector(card, layer, state, expected, f"layer {layer} of {str(path)!r}")
    return Fuser(card, projectors).train(False)


def read_translator(folder: Path | str) -> Translator:
    """Read the translator in a folder of ours, with the same checks. Raises FuserError."""
    card = read_card(folder)
    with _damage(folder):
        with torch.device("meta"):
            translator = build_translator(card)
        _fill(translator.network, folder, card)
        return translator.train(False)


def read_prefix(folder: Path | str) -> Prefix:
    """Read the trained prefix in a folder of ours, with the same checks. Raises FuserError."""
    card = read_card(folder)
    with _damage(folder):
        with torch.device("meta"):
            prefix = build_prefix(card)
        _fill(prefix.network, folder, card)
        return prefix


def _fill(network: nn.Module, folder: Path | str, card: Card) -> None:
    """Load the folder's tensors into a network on the meta device."""
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    path = Path(folder) / WEIGHTS
    state = _checked(_read_tensors(path, card, expected), expected, repr(str(path)))
    network.load_state_dict(state, assign=True)


def _damage(place: Path | str) -> AbstractContextManager[None]:
    """Convert whatever a library raises about an untrusted fuser to a FuserError."""
    return library_errors(
        lambda why: FuserError(f"the fuser in {str(place)!r} can't be read: {why}; get it again from its source")
    )


def _read_tensors(path: Path, card: Card, expected: Expected) -> dict[str, Tensor]:
    """Read all tensors of the file, if it has the card's hash and exactly the expected tensors."""
    if not path.is_file():
        raise FuserError(f"the fuser lacks {str(path)!r}; get it again from its source")
    if card.sha256 is None or card.sha256 != _sha256(path):
        raise FuserError(
            f"{str(path)!r} is not the file its card describes (sha256 differs); get the fuser again from its source"
        )
    try:
        with safe_open(path, "pt") as file:
            _check_names(set(file.keys()), set(expected), path)
            for name, shape in expected.items():
                _check_shape(name, tuple(file.get_slice(name).get_shape()), shape, path)
            return {name: file.get_tensor(name) for name in expected}
    except SafetensorError as error:
        raise FuserError(f"{str(path)!r} is not a safetensors file ({error}); get the fuser again") from error


def expected_states(card: Card) -> dict[int, Expected]:
    """By receiver layer, the names and shapes of its projector's tensors, from projectors on the meta device."""
    known: dict[tuple[KVShape, KVShape], Expected] = {}
    by_layer = {}
    for layer, source in card.layer_map:
        shapes = card.receiver.geometry.shape(layer), card.sharer.geometry.shape(source)
        if shapes not in known:
            state = _empty_projector(card, shapes).state_dict()
            known[shapes] = {name: tuple(tensor.shape) for name, tensor in state.items()}
        by_layer[layer] = known[shapes]
    return by_layer


def filled_projector(card: Card, layer: int, state: Mapping[str, Tensor], expected: Expected, where: str) -> Projector:
    """Build a receiver layer's projector from tensors by parameter name.

    They must have the shapes of `expected`, and be dense, finite and of one float dtype. Raises FuserError.
    """
    checked = _checked(state, expected, where)
    source = next(pair.sharer for pair in card.layer_map if pair.receiver == layer)
    projector = _empty_projector(card, (card.receiver.geometry.shape(layer), card.sharer.geometry.shape(source)))
    projector.load_state_dict(checked, assign=True)
    return projector


def _empty_projector(card: Card, shapes: tuple[KVShape, KVShape]) -> Projector:
    with torch.device("meta"):
        return build_projector(card.architecture, card.params, *shapes)


def _checked(state: Mapping[str, Tensor], expected: Expected, where: str) -> dict[str, Tensor]:
    """Copy these tensors, if all are dense and finite and share one dtype."""
    if state.keys() != expected.keys():
        odd = sorted(state.keys() ^ expected.keys())[0]
        verb = "lacks" if odd in expected else "has an unknown"
        raise FuserError(f"{where} {verb} tensor {odd!r}; the fuser is damaged or of another architecture")
    for name, tensor in state.items():
        _check_shape(name, tuple(tensor.shape), expected[name], where)
        if tensor.dtype not in FLOATS or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise FuserError(f"{name!r} in {where} is {tensor.dtype}, not plain floating point numbers; re-export it")
    if len({tensor.dtype for tensor in state.values()}) > 1:
        raise FuserError(f"{where} mixes number types; re-export the fuser in one dtype")
    copies = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    for name, tensor in copies.items():
        if not tensor.isfinite().all():
            raise FuserError(f"{name!r} in {where} holds NaN or infinity; the fuser is broken, get another one")
    return copies


def _check_names(stored: set[str], wanted: set[str], path: Path) -> None:
    if stored != wanted:
        odd = sorted(stored ^ wanted)[0]
        verb = "lacks" if odd in wanted else "has an unknown"
        raise FuserError(f"{str(path)!r} {verb} tensor {odd!r}; the fuser is damaged or of another architecture")


def _check_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...], where: Path | str) -> None:
    if shape != expected:
        raise FuserError(f"{name!r} in {str(where)!r} has shape {shape}, but its description says {expected}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
