"""Converts a GGUF file, once, to a folder of safetensors and a tokenizer that loads in seconds.

transformers reads the file, several times, and shows its own progress bars. Both are replaced during a conversion.
"""

import contextlib
import errno
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cachegraph.errors import CachegraphError, ConfigError, ModelError, is_library_error, reason_of

from .gguf_header import check_header
from .progress import Progress

if TYPE_CHECKING:
    from .gguf_metadata import GGUFMetadata

__all__ = ["check_gguf", "convert_gguf"]

NeedRoom = Callable[[int], None]
TOKENIZER_BYTES = 50_000_000
COUNTS = re.compile("layers|experts|heads")  # of a configuration: the parts that a network is built of
MOST_PARTS = 10_000
INTEGERS = ("I8", "I16", "I32", "I64")  # kinds of tensors that are not weights
BUFFER_ELEMENTS = 500_000_000  # of masks and tables, which no weights stand for
# What is replaced during a conversion belongs to the whole process.
_one_at_a_time = threading.Lock()


def check_gguf(gguf: Path) -> None:
    """Raise ModelError unless the file says that it is GGUF."""
    try:
        with gguf.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"the GGUF file {str(gguf)!r} can't be read: {error.strerror}; check the path") from error
    if magic != b"GGUF":
        raise ModelError(f"{str(gguf)!r} is not a GGUF file: it starts with {magic!r}; fetch it again")


def convert_gguf(gguf: Path, folder: Path, need_room: NeedRoom, progress: Progress) -> None:
    """Write the model and the tokenizer of `gguf` to `folder`, once `need_room` has seen how many bytes that takes.

    Raises ModelError for a file that transformers can't convert, ConfigError for too little memory, OSError for a full
    disk.
    """
    check_gguf(gguf)
    try:
        check_header(gguf)
        with _one_at_a_time, _quiet_transformers(progress):
            _convert(gguf, folder, need_room, progress)
    except MemoryError as error:
        raise ConfigError(f"not enough memory to convert {str(gguf)!r}; close other programs and pull again") from error
    except CachegraphError:
        raise
    # transformers and gguf raise whatever they stumble over in a file that they don't know.
    except BaseException as error:
        if not is_library_error(error):
            raise
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise OSError(errno.ENOSPC, "No space left on device") from error
        raise ModelError(
            f"the GGUF file {str(gguf)!r} can't be converted: {_reason(reason_of(error))}; use another model"
        ) from error


def _reason(said: str) -> str:
    if "ignore_mismatched_sizes" in said:
        return "its weights have other shapes than its metadata say"
    return said


def _convert(gguf: Path, folder: Path, need_room: NeedRoom, progress: Progress) -> None:
    import gguf as library
    import transformers

    from ..model.text_model import auto_class
    from .gguf_config import complete_config
    from .gguf_metadata import GGUFMetadata, check_readable
    from .gguf_tokenizer import read_tokenizer, save_tokenizer

    progress("read", 0, 0)
    reader = library.GGUFReader(gguf)
    metadata = GGUFMetadata(reader, str(gguf))
    check_readable(metadata)
    target = _target(reader, metadata)
    need_room(target.bytes)
    config = transformers.AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    if config.model_type == "mistral":  # by the model's name; transformers can read the weights of its class alone
        config = transformers.LlamaConfig(**{**config.to_dict(), "model_type": "llama", "sliding_window": None})
    complete_config(config, metadata)
    _check_sizes(config, target.elements, gguf)
    tokenizer = read_tokenizer(gguf, metadata)
    model, report = auto_class(config).from_pretrained(
        gguf.parent,
        config=config,
        gguf_file=gguf.name,
        dtype=target.dtype,
        quantization_config=transformers.GgufConfig(dequantize=True),
        output_loading_info=True,
        trust_remote_code=False,
    )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"the GGUF file {str(gguf)!r} lacks the weights {missing[:3]}, or names them in another way than "
            "transformers reads; fetch it again, or use the safetensors of this model"
        )
    progress("save", 0, 0)
    model.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)  # safetensors leaves them to their owner alone
    save_tokenizer(tokenizer, folder, metadata)


def _check_sizes(config: Any, elements: int, gguf: Path) -> None:
    """Raise ModelError where the metadata describe a larger model than the weights are: building it may fill memory."""
    import torch

    from ..model.text_model import auto_class

    counts = {key: value for key, value in vars(config).items() if COUNTS.search(key) and isinstance(value, int)}
    for key, value in counts.items():
        if value > MOST_PARTS:
            raise ModelError(f"the GGUF file {str(gguf)!r} is damaged: its {key!r} is {value:,}; fetch it again")
    with torch.device("meta"):
        network = auto_class(config).from_config(config)
    built = sum(tensor.numel() for tensor in (*network.parameters(), *network.buffers()))
    if built > 2 * elements + BUFFER_ELEMENTS:
        raise ModelError(
            f"the GGUF file {str(gguf)!r} is damaged: its metadata describe a model of {built:,} numbers, and it holds "
            f"{elements:,}; fetch it again"
        )
    _check_all_is_read(network, elements, gguf)


def _check_all_is_read(network: Any, elements: int, gguf: Path) -> None:
    """Raise ModelError where the file holds weights that the model has no place for: transformers drops them silently.

    `elements`: of the file's tensors, those of RoPE excepted.
    """
    fixed = sum(
        tensor.numel() for name, tensor in network.state_dict().items() if name in dict(network.named_buffers())
    )
    read = fixed + sum(tensor.numel() for tensor in network.parameters())
    if elements > read:
        raise ModelError(
            f"the GGUF file {str(gguf)!r} holds {elements - read:,} numbers, such as biases or experts, that "
            f"transformers does not read for its architecture {network.config.model_type!r}; use the safetensors of "
            "this model"
        )


class _Target(NamedTuple):
    dtype: Any
    elements: int
    bytes: int


def _target(reader: Any, metadata: "GGUFMetadata") -> _Target:
    """bfloat16 for quantised weights; weights that are not quantised keep the type of most of their matrices."""
    import torch

    tensors = reader.tensors
    if integers := [tensor for tensor in tensors if tensor.tensor_type.name in INTEGERS]:
        raise ModelError(
            f"the GGUF file {metadata.where!r} stores {integers[0].name} as {integers[0].tensor_type.name}, whole "
            "numbers that nothing scales; use the safetensors of this model"
        )
    kinds = Counter(tensor.tensor_type.name for tensor in tensors if len(tensor.shape) > 1)
    most = kinds.most_common(1)[0][0] if kinds else "BF16"
    dtype = {"F32": torch.float32, "F16": torch.float16}.get(most, torch.bfloat16)
    elements = sum(int(tensor.n_elements) for tensor in tensors if not _is_spare(tensor.name, metadata))
    return _Target(dtype, elements, elements * dtype.itemsize + TOKENIZER_BYTES)


def _is_spare(tensor: str, metadata: "GGUFMetadata") -> bool:
    """Whether a model has no place for this tensor and loses nothing by it.

    RoPE's factors become parameters; transformers ties the output of some architectures although it is in the file; and
    layers that predict several tokens ahead do not take part in writing one.
    """
    if tensor == "output.weight":
        return metadata.architecture in ("falcon", "bloom")
    layer = re.match(r"blk\.(\d+)\.", tensor)
    return "rope_f" in tensor or (layer is not None and int(layer[1]) in metadata.prediction_layers)


@contextlib.contextmanager
def _quiet_transformers(progress: Progress) -> Iterator[None]:
    import gguf as library
    from transformers import modeling_gguf_pytorch_utils as loader
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with (
            _replaced(loader, "tqdm", lambda tensors, **_: _counted(tensors, progress)),
            _replaced(library, "GGUFReader", _once(library.GGUFReader)),
        ):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _counted(tensors: Iterable[Any], progress: Progress) -> Iterator[Any]:
    tensors = list(tensors)
    for done, tensor in enumerate(tensors):
        progress("convert", done, len(tensors))
        yield tensor
    progress("convert", len(tensors), len(tensors))


def _once(reader: Any) -> Any:
    """Reading a vocabulary of 262k takes ten seconds, and every step of transformers reads it again."""
    kept: dict[str, Any] = {}

    def read(path: Any, *args: Any, **kwargs: Any) -> Any:
        if str(path) not in kept:
            kept[str(path)] = reader(path, *args, **kwargs)
        return kept[str(path)]

    return read


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
