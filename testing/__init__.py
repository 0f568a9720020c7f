"""A kit for testing recipes: agents that follow a script, models that need no download, a clock that jumps."""

from .clock import FakeClock
from .script import Say, Script, Told
from .tiny import tiny_model, with_tiny_models

__all__ = ["FakeClock", "Say", "Script", "Told", "tiny_model", "with_tiny_models"]
