"""Limits the size of the files of a model's folder that a library reads whole into memory."""

from pathlib import Path

from cachegraph.errors import ModelError

__all__ = ["check_file_size", "check_file_sizes"]

LARGEST = 256_000_000  # bytes; the largest tokenizers known have a sixth of it
READ_WHOLE = (".json", ".jinja", ".txt", ".model", ".tiktoken")


def check_file_sizes(folder: Path) -> None:
    """Raise ModelError where a file other than weights is larger than any of its kind, before it fills the memory."""
    places = (folder, folder / "additional_chat_templates")
    for path in (path for place in places if place.is_dir() for path in sorted(place.iterdir())):
        if path.suffix in READ_WHOLE:
            check_file_size(path, folder)


def check_file_size(path: Path, folder: Path) -> None:
    """The same for one file in the folder. Raises ModelError if it is larger than any file of its kind."""
    if path.is_file() and (size := path.stat().st_size) > LARGEST:
        name = str(path.relative_to(folder))
        raise ModelError(
            f"{name!r} in the model's folder {str(folder)!r} has {size:,} bytes, more than any file of its kind; "
            "get the model again from its source"
        )
