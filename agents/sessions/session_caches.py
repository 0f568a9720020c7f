"""The KV cache of a conversation: restored if it matches the next prompt's tokens, saved after the run.

A cache is used only if exact. It names the model, dtype and tokens it was computed with, and the text file beside it
stores the hash of its bytes. On any difference the prompt is prefilled.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load, save

from cachegraph.engine.kv.cache import KV, LayerKV, concat
from cachegraph.engine.kv.recurrent_state import RecurrentState
from cachegraph.engine.model.load import LoadedModel
from cachegraph.errors import reason_of

from .session_files import AgentRecord, KeptCache

__all__ = ["Kept", "keep", "take_up"]


class Kept(NamedTuple):
    """KV from position 0 on and its tokens; or none, and the reason."""

    ids: list[int]
    kv: KV | None
    refused: str | None = None


def take_up(folder: Path, record: AgentRecord, model: LoadedModel) -> Kept:
    """Load the stored cache onto the model's devices. Reads the disk."""
    if record.cache is None:
        return Kept([], None)
    try:
        raw = (folder / record.cache.file).read_bytes()
    except (OSError, ValueError):
        return Kept([], None, "the stored cache was deleted: it was old, or others needed the room")
    if hashlib.sha256(raw).hexdigest() != record.cache.sha256:
        return Kept([], None, "the stored cache has been changed since it was saved")
    try:
        return _read(raw, model)
    except Exception as error:  # any defect of the file: prefill the prompt instead
        return Kept([], None, f"the stored cache can't be read: {reason_of(error)}")


def _read(raw: bytes, model: LoadedModel) -> Kept:
    header = int.from_bytes(raw[:8], "little")
    about = json.loads(raw[8 : 8 + header])["__metadata__"]
    tensors = load(raw)
    for name, expected in _about(model).items():
        if about.get(name, "plain") != expected:
            return Kept([], None, f"the stored cache is of {name} {about.get(name)!r}, and the model's is {expected!r}")
    layers = tuple(LayerKV(tensors[f"{n}.keys"], tensors[f"{n}.values"]) for n in range(model.info.layers))
    ids: list[int] = tensors["ids"].tolist()
    for layer, shape in zip(layers, model.info.shapes, strict=True):
        for tensor, dim in zip(layer, (shape.key_dim, shape.value_dim), strict=True):
            if tensor.shape != (1, shape.kv_heads, len(ids), dim) or not tensor.is_floating_point():
                return Kept([], None, "the stored cache is not of the shape that the model's is")
    kv = KV(layers, torch.arange(len(ids)), int(about.get("factors", 0))).to(model.devices, model.dtype)
    if not model.info.states:
        return Kept(ids, kv)
    state = RecurrentState.from_named(tensors, model.info.state_shapes, len(ids))
    if state is None:
        return Kept([], None, "the stored cache lacks the recurrent state that the model keeps beside it")
    return Kept(ids, replace(kv, state=state.map(lambda tensor: tensor.to(model.device))))


def keep(folder: Path, agent: str, model: LoadedModel, ids: Sequence[int], segments: Sequence[KV]) -> KeptCache | None:
    """Save a row atomically; None if it can't be continued. Each KV layer is (1, kv_heads, positions, head_dim)."""
    kv = concat(list(segments))
    lacks_state = bool(model.info.states) and kv.state is None
    if lacks_state or len(kv) != len(ids) or not torch.equal(kv.positions, torch.arange(len(ids))):
        return None
    tensors = {"ids": torch.tensor(ids)}
    for number, layer in enumerate(kv.layers):
        tensors[f"{number}.keys"] = layer.keys.cpu().contiguous()
        tensors[f"{number}.values"] = layer.values.cpu().contiguous()
    if kv.state is not None:
        tensors |= {name: tensor.cpu().contiguous() for name, tensor in kv.state.named()}
    raw = save(tensors, {**_about(model), "factors": str(kv.factors)})
    digest = hashlib.sha256(raw).hexdigest()
    file = f"{agent}-{digest[:16]}.safetensors"
    part = folder / f".{file}.part"
    with open(part, "wb") as out:
        out.write(raw)
        out.flush()
        os.fsync(out.fileno())
    part.replace(folder / file)
    return KeptCache(file=file, sha256=digest)


def _about(model: LoadedModel) -> dict[str, str]:
    dtype = str(model.dtype).removeprefix("torch.")
    return {"model": model.identity, "dtype": dtype, "weights": model.weights or "plain"}
