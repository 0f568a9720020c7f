"""Parse the name of a fuser on the Hugging Face hub: hub:ORGANISATION/NAME/FOLDER."""

import re
from typing import NamedTuple

__all__ = ["HUB_FORM", "HubFuser", "is_hub_fuser", "parse_hub_fuser"]

HUB_FORM = "hub:ORGANISATION/NAME, then @REVISION and /FOLDER where needed"
NAME = re.compile(
    r"hub:(?P<repo>\w[\w.-]*/\w(?:[\w.-]*\w)?)(?:@(?P<revision>[\w.-]+))?(?:/(?P<folder>[\w.+-]+(?:/[\w.+-]+)*))?",
    re.ASCII,
)


class HubFuser(NamedTuple):
    """One fuser of a repository that may hold many, each in its own folder."""

    repo: str
    revision: str | None
    folder: str  # "": the repository itself

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        inside = f"/{self.folder}" if self.folder else ""
        return f"hub:{self.repo}{at}{inside}"


def is_hub_fuser(name: str) -> bool:
    """Whether the name has the prefix `hub:`; such a name is never read as a path."""
    return name.startswith("hub:")


def parse_hub_fuser(name: str) -> HubFuser | None:
    """Parse a name `hub:...`; None if it is invalid."""
    parts = NAME.fullmatch(name)
    if parts is None:
        return None
    folder = parts["folder"] or ""
    if {".", ".."} & set(folder.split("/")):
        return None
    return HubFuser(parts["repo"], parts["revision"], folder)
