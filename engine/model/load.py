"""Loads a folder of weights as a model that the engine can run, verified before it is trusted with caches."""

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
import transformers
from transformers import AutoConfig

from cachegraph.errors import CachegraphError, ModelError, library_errors, reason_of

from ..kernels import DecodeKernels, Unsupported, backend
from ..kv.rope import Rotation
from ..spec import Weights
from ..text.tokenizer import Tokenizer
from ..text.tokenizer_load import read_raw_tokenizer
from .config_sizes import check_config_sizes
from .devices import DeviceMap, check_map, home_of, layer_devices
from .explain_config import explain_config
from .file_sizes import check_file_sizes
from .int8 import quantise
from .load_report import check_report
from .model_config import ModelInfo
from .quiet_transformers import quiet_transformers
from .text_model import auto_class, drop_other_parts
from .verify.verdict import Verdict
from .verify.verdict_cache import VerdictCache
from .verify.verify_model import VerifiedModel, restore_verified, verify_model
from .weight_dtypes import check_weight_dtypes

__all__ = ["Checks", "LoadedModel", "load_model"]

# Verify at every load; only where no kept verdict holds; or now, and keep the verdict.
Checks = Literal["always", "once", "again"]

_one_at_a_time = threading.Lock()  # transformers changes process-wide state while it loads a model


@dataclass(eq=False)
class LoadedModel:
    """A model in memory. `why_no_cache` is set where its KV cache can't travel; it then works over text edges alone."""

    name: str
    identity: str  # equal for equal weights
    network: Any  # transformers' PreTrainedModel; None where another process has it
    info: ModelInfo
    rotation: Rotation
    tokenizer: Tokenizer | None
    devices: tuple[torch.device, ...]  # by layer
    dtype: torch.dtype  # of activations and KV
    why_no_cache: str | None
    verdict: Verdict  # what the check at load compared
    decoder: DecodeKernels | None = None  # the kernels for this model; without them torch decodes
    weights: Weights | None = None  # what linear layers were rounded to
    seconds: Mapping[str, float] = field(default_factory=dict)  # that loading took, by part of the work

    @property
    def device(self) -> torch.device:
        """Where token ids go; of a model on one device, that device."""
        return self.devices[0] if self.network is None else home_of(self.network)


def load_model(
    folder: str | Path,
    *,
    name: str | None = None,
    identity: str | None = None,
    dtype: torch.dtype = torch.float32,
    weights: Weights | None = None,
    device: torch.device | str = "cpu",
    device_map: DeviceMap | None = None,
    chat_template: str | None = None,
    checks: Checks = "always",
) -> LoadedModel:
    """Load weights (safetensors only) and, if the folder has one, the tokenizer. Touches no network.

    `weights` says what linear layers are rounded to. `device_map` spreads the layers over several devices, and `device`
    says nothing then. `checks` says when the model is held to its own forward pass.
    Raises ModelError where the folder holds no model that transformers can read.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{str(folder)!r} is not a model: it has no config.json")
    with _one_at_a_time, library_errors(lambda why: ModelError(f"the model in {str(folder)!r} can't be used: {why}")):
        return _load(folder, name, identity, dtype, weights, device_map or torch.device(device), chat_template, checks)


def _load(
    folder: Path,
    name: str | None,
    identity: str | None,
    dtype: torch.dtype,
    weights: Weights | None,
    where: torch.device | DeviceMap,
    chat_template: str | None,
    checks: Checks,
) -> LoadedModel:
    began = perf_counter()
    check_file_sizes(folder)
    network = _read_network(folder, dtype, where).eval().requires_grad_(False)
    check_map(network, where, name or folder.name)
    if weights == "int8":
        quantise(network, name or folder.name)
    backend("cpu").widen_linears(network)
    info = _read_info(network, name or folder.name)
    read = perf_counter()
    try:
        kept = VerdictCache(folder, (str(dtype), weights, str(where))) if checks != "always" else None
        trusted = _check(network, info, kept, again=checks == "again")
        checked = perf_counter()
        if trusted.decoder is not None:
            trusted.decoder.warm_up()
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{name or folder.name!r} leaves {home_of(network)} no memory to compute with; free some, or take "
            "quantised weights or a smaller model"
        ) from error
    prepared = perf_counter()
    tokenizer = _read_tokenizer(folder, chat_template, remembers=checks != "always")
    return LoadedModel(
        name=name or folder.name,
        identity=identity or str(folder.resolve()),
        network=network,
        info=trusted.info,
        rotation=trusted.rotation,
        tokenizer=tokenizer,
        devices=layer_devices(network, trusted.info.layers),
        dtype=dtype,
        why_no_cache=trusted.why_no_cache,
        verdict=trusted.verdict,
        decoder=trusted.decoder,
        weights=weights,
        seconds={
            "read": read - began,
            "check": checked - read,
            "prepare": prepared - checked,
            "tokenizer": perf_counter() - prepared,
        },
    )


def _check(network: Any, info: ModelInfo, kept: VerdictCache | None, again: bool) -> VerifiedModel:
    """The check, or what a kept verdict says of the same model."""
    verdict = kept.read() if kept is not None and not again else None
    if verdict is not None:
        own = network.config._attn_implementation
        try:
            return restore_verified(network, info, verdict)
        except (Unsupported, LookupError, TypeError, ValueError):  # the verdict is not of this model
            with quiet_transformers():
                network.set_attn_implementation(own)
    trusted = verify_model(network, info)
    if kept is not None:
        kept.write(trusted.verdict)
    return trusted


def _read_info(network: Any, name: str) -> ModelInfo:
    try:
        return ModelInfo.from_hf(network.config, network.generation_config)
    except Exception as error:  # a boundary: configurations are classes with code of their own
        raise ModelError(
            f"the configuration of {name!r} doesn't say what a {network.config.model_type!r} model keeps in its cache "
            f"({reason_of(error)}); take another model"
        ) from error


def _read_network(folder: Path, dtype: torch.dtype, where: torch.device | DeviceMap) -> Any:
    spread = None if isinstance(where, torch.device) else where if isinstance(where, str) else dict(where)

    def explain(why: str) -> ModelError:
        return ModelError(f"the model in {str(folder)!r} can't be read: {_of_code(why)}")

    with library_errors(explain), quiet_transformers():
        try:
            return _build(folder, dtype, spread, where)
        except Exception as error:  # a boundary: what transformers raises of a configuration is often a line of code
            if isinstance(error, CachegraphError) or (why := explain_config(error, folder)) is None:
                raise
            raise explain(why) from error


def _build(folder: Path, dtype: torch.dtype, spread: Any, where: torch.device | DeviceMap) -> Any:
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    chosen = auto_class(config)
    try:
        check_config_sizes(config, folder)
    except ModelError as error:
        raise ModelError(f"the model in {str(folder)!r} can't be read: {error}") from error
    network, report = chosen.from_pretrained(
        folder,
        dtype=dtype,
        device_map=spread,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # the report names them, and `check_report` refuses them
    )
    check_weight_dtypes(network, report.get("unexpected_keys") or (), folder)
    if type(network.config) is not type(config):  # the text part was read, so the others' weights have no place
        report = {**report, "unexpected_keys": ()}
    check_report(report, str(folder))
    drop_other_parts(network)
    return network.to(where) if isinstance(where, torch.device) else network


def _read_tokenizer(folder: Path, chat_template: str | None, remembers: bool) -> Tokenizer | None:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        return None

    def explain(why: str) -> ModelError:
        return ModelError(f"the tokenizer in {str(folder)!r} can't be read: {_of_code(why)}")

    with library_errors(explain), quiet_transformers():
        raw = read_raw_tokenizer(folder, remembers=remembers)
        if not raw.is_fast:  # only fast tokenizers say which characters a token covers
            raise explain(f"{type(raw).__name__} gives no offsets of its tokens; add a tokenizer.json to the folder")
        return Tokenizer(raw, chat_template)


def _of_code(why: str) -> str:
    if (
        "trust_remote_code" in why or "contains custom code" in why
    ):  # the first or a later line of what transformers says
        return "it needs code of its own, and code of models is never run here; take a model that transformers has"
    if unknown := re.search(r"model type `(.*?)` but Transformers does not recognize", why):
        return (
            f"transformers {transformers.__version__} has no {unknown[1]!r} models; upgrade it, or take another model"
        )
    return why
