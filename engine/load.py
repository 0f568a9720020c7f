"""From a folder of weights to a model that the engine can run, checked before it is trusted with caches."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from cachegraph.errors import ModelError

from .attention import NAME
from .cpu.build import Kernels, kernels
from .cpu.decoder import Decoder, Unsupported
from .cpu.linear import widen
from .forward import Row, forward
from .info import ModelInfo
from .kv import KV, RowCache
from .rope import Rotation
from .tokens import Tokenizer

__all__ = ["LoadedModel", "load_model"]

_PROBE = 8  # tokens
_FAR = 61  # positions
_KERNELS_PAY = 2**24  # parameters; a smaller model's step is over before a kernel could help
_one_at_a_time = threading.Lock()  # transformers changes process-wide state while it loads a model


@dataclass(eq=False)
class LoadedModel:
    """A model in memory. `why_no_cache` is set where its KV cache can't travel; it then works over text edges alone."""

    name: str
    identity: str  # equal for equal weights
    network: Any  # transformers' PreTrainedModel
    info: ModelInfo
    rotation: Rotation
    tokenizer: Tokenizer | None
    device: torch.device
    dtype: torch.dtype
    why_no_cache: str | None
    decoder: Decoder | None = None  # the CPU kernels for this model; without them torch decodes


def load_model(
    folder: str | Path,
    *,
    name: str | None = None,
    identity: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    chat_template: str | None = None,
) -> LoadedModel:
    """Load weights (safetensors only) and, if the folder has one, the tokenizer. Touches no network.

    Raises ModelError where the folder holds no model that transformers can read.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{str(folder)!r} holds no model: there is no config.json in it")
    device = torch.device(device)
    with _one_at_a_time:
        return _load(folder, name, identity, dtype, device, chat_template)


def _load(
    folder: Path,
    name: str | None,
    identity: str | None,
    dtype: torch.dtype,
    device: torch.device,
    chat_template: str | None,
) -> LoadedModel:
    network = _read_network(folder, dtype).to(device).eval().requires_grad_(False)
    widen(network)
    info = ModelInfo.from_hf(network.config, network.generation_config)
    reason = info.why_no_cache or _why_not_packed(network, info)
    rotation = Rotation(network, info)
    if reason is None and rotation.why_not is None:
        places = (0, max(min(_FAR, info.max_positions - _PROBE), 0))
        rotation.compare(*(_probe(network, info, start)[0] for start in places))
    return LoadedModel(
        name=name or folder.name,
        identity=identity or str(folder.resolve()),
        network=network,
        info=info,
        rotation=rotation,
        tokenizer=_read_tokenizer(folder, chat_template),
        device=device,
        dtype=dtype,
        why_no_cache=reason,
        decoder=_decoder(network, info) if reason is None else None,
    )


def _decoder(network: Any, info: ModelInfo) -> Decoder | None:
    """The kernels for this model, if there are any and they compute what the model does."""
    plain = network.device.type == "cpu" and network.dtype in (torch.bfloat16, torch.float32)
    if not plain or network.num_parameters() < _KERNELS_PAY or not isinstance(found := kernels(), Kernels):
        return None
    try:
        decoder = Decoder(network, info, found)
    except Unsupported:
        return None
    (cache, _), (other, _) = (_probe(network, info) for _ in range(2))
    with torch.inference_mode():
        (expected,) = forward(network, info, [Row([1], RowCache([cache]))])
        got = decoder.step([1], [RowCache([other])])[0]
    assert expected is not None
    alike = torch.nn.functional.cosine_similarity(got, expected[0].float(), dim=0).item()
    return decoder if alike > 0.999 else None


def _read_network(folder: Path, dtype: torch.dtype) -> Any:
    try:
        with quiet_transformers():
            return AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, use_safetensors=True
            )
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the model in {str(folder)!r} can't be read: {_first_line(error)}") from error


def _read_tokenizer(folder: Path, chat_template: str | None) -> Tokenizer | None:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        return None
    try:
        with quiet_transformers():
            return Tokenizer(AutoTokenizer.from_pretrained(folder, local_files_only=True), chat_template)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the tokenizer in {str(folder)!r} can't be read: {_first_line(error)}") from error


def _why_not_packed(network: Any, info: ModelInfo) -> str | None:
    """Switch the model to row-wise attention, if it then still computes what it did before."""
    own = network.config._attn_implementation
    with torch.inference_mode():
        tokens = torch.tensor([_probe_ids(info)], device=network.device)
        expected = network(input_ids=tokens, use_cache=False, logits_to_keep=1).logits[0].float()
    with quiet_transformers():
        network.set_attn_implementation(NAME)
    try:
        kv, got = _probe(network, info)
        # A wide tolerance: bfloat16 differs between kernels, a wrong mask or a lost attention sink differs by far more.
        if len(kv.layers) == info.layers and torch.nn.functional.cosine_similarity(got, expected).item() > 0.999:
            return None
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, AssertionError):
        pass  # as below
    with quiet_transformers():
        network.set_attn_implementation(own)
    return f"{info.model_type!r} models compute attention in a way of their own"


def _probe_ids(info: ModelInfo) -> list[int]:
    return [1 + index % (info.vocab_size - 1) for index in range(_PROBE)]


def _probe(network: Any, info: ModelInfo, start: int = 0) -> tuple[KV, torch.Tensor]:
    """What the packed forward pass makes of a few tokens that stand at `start`: their KV, and the last one's logits."""
    cache = RowCache()
    with torch.inference_mode():
        row = Row(_probe_ids(info), cache, positions=torch.arange(start, start + _PROBE))
        (logits,) = forward(network, info, [row])
    assert logits is not None
    return cache.tail(), logits.float()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no advice on the terminal; ours say what matters."""
    level = transformers.logging.get_verbosity()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
