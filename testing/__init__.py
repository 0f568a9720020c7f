"""Tools for testing recipes.

clock    `FakeClock`: sleeps and timeouts take no time
script   `Script`: agents whose replies the test sets
tiny     `tiny_model`, `with_tiny_models`: random models without a download
weights  The files of a tiny model and a tiny fuser
"""

from .clock import FakeClock
from .script import Say, Script, Told
from .tiny import tiny_model, with_tiny_models

__all__ = ["FakeClock", "Say", "Script", "Told", "tiny_model", "with_tiny_models"]
