"""From a model's name to a folder on this disk, and to the device it runs on. Importing this costs no torch."""

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
