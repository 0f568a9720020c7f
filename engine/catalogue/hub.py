"""Models of the Hugging Face hub: the files that a load needs, and those that are not safe to load."""

from cachegraph.errors import ModelError

from .catalogue import HubSource
from .hub_download import Selection, Snapshot, snapshot
from .progress import Progress

__all__ = ["fetch_snapshot"]

WANTED = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt")
# Other formats of the same weights lie in folders, or are the vendor's own.
UNWANTED = ("*/*", "consolidated*")
PICKLED = (".bin", ".pt", ".pth")


def fetch_snapshot(source: HubSource, progress: Progress) -> Snapshot:
    """Fetch what a load needs of `source`; where the hub can't be reached, take what its cache holds.

    Raises ModelError if it holds no weights in safetensors.
    """

    def check(wanted: list[str], files: list[str]) -> None:
        if not any(name.endswith(".safetensors") for name in wanted):
            raise ModelError(_why_no_weights(source, files))

    advice = ". Names of the catalogue: cachegraph models list"
    selection = Selection(source.repo, source.revision, WANTED, UNWANTED, "model", ModelError, check, advice)
    return snapshot(selection, progress)


def _why_no_weights(source: HubSource, files: list[str]) -> str:
    if any(name.endswith(PICKLED) for name in files):
        return (
            f"the hub model {source.repo!r} has only pickled weights, which can run code when they are read; "
            "choose one with safetensors"
        )
    if any(name.endswith(".gguf") for name in files):
        return (
            f"the hub model {source.repo!r} has only GGUF files; download the one you want "
            "and give the path of the .gguf file as the source"
        )
    return f"the hub repository {source.repo!r} has no safetensors weights, so it can't be loaded"
