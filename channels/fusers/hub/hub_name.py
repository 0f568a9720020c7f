"""How a recipe names a fuser of the Hugging Face hub."""

import re
from typing import NamedTuple

__all__ = ["HUB_FORM", "HubFuser", "is_hub_fuser", "parse_hub_fuser"]

HUB_FORM = "hub:ORGANISATION/NAME, then @REVISION and /FOLDER where needed"
NAME = re.compile(
    r"hub:(?P<repo>\w[\w.-]*/\w(?:[\w.-]*\w)?)(?:@(?P<revision>[\w.-]+))?(?:/(?P<folder>[\w.+-]+(?:/[\w.+-]+)*))?",
    re.ASCII,
)


class HubFuser(NamedTuple):
    """One fuser of a repository that may hold many, each in a folder of its own."""

    repo: str
    revision: str | None
    folder: str  # "": the repository itself

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        inside = f"/{self.folder}" if self.folder else ""
        return f"hub:{self.repo}{at}{inside}"


def is_hub_fuser(name: str) -> bool:
    """Whether this is meant to be such a name; it is then never read as a path."""
    return name.startswith("hub:")


def parse_hub_fuser(name: str) -> HubFuser | None:
    """The fuser that a recipe names as `hub:...`, or None where that is no name of one."""
    parts = NAME.fullmatch(name)
    if parts is None:
        return None
    folder = parts["folder"] or ""
    if {".", ".."} & set(folder.split("/")):
        return None
    return HubFuser(parts["repo"], parts["revision"], folder)
