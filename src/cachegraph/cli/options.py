"""Options that several commands take, said once."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["AllowEnv", "AllowPaths", "Recipe"]

Recipe = Annotated[Path, typer.Argument(help="A recipe's YAML file.", show_default=False)]
AllowEnv = Annotated[
    list[str] | None,
    typer.Option("--allow-env", metavar="NAME", help="An environment variable that endpoints may take a key from."),
]
AllowPaths = Annotated[bool, typer.Option("--allow-paths", help="Let recipes name files outside their folder.")]
