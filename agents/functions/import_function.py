"""Import a function by the name that a recipe gives it."""

import os
import sys
from collections.abc import Callable
from hashlib import sha256
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

from cachegraph.errors import ConfigError, is_library_error

__all__ = ["Function", "find_function", "name_of"]

Function = Callable[..., Any]
PREFIX = "cachegraph_recipe_"  # of modules created from recipes' files


def find_function(path: str, agent: str, folder: Path) -> Function:
    """Import the function that a recipe names: `package.module:name`, or `file.py:name` in its folder.

    Executes the module. Raises ConfigError.
    """
    module, _, name = path.rpartition(":")
    try:
        found: Any = _module_of_file(folder / module) if module.endswith(".py") else import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except ImportError as error:
        raise ConfigError(
            f"the function {path!r} of agent {agent!r} can't be imported: {error}; install its package, or run where "
            "Python finds it (PYTHONPATH)"
        ) from error
    except AttributeError as error:
        raise ConfigError(f"the function {path!r} of agent {agent!r} is not there: {error}") from error
    except OSError as error:
        raise ConfigError(f"the function {path!r} of agent {agent!r} can't be read: {error.strerror}") from error
    except BaseException as error:  # user code, which may also call sys.exit
        if not (is_library_error(error) or isinstance(error, SystemExit)):
            raise
        raise ConfigError(
            f"the function {path!r} of agent {agent!r} can't be imported: {type(error).__name__} in {module}: {error}"
        ) from error
    if not callable(found):
        raise ConfigError(f"{path!r} of agent {agent!r} is not a function but {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def name_of(function: Function) -> str:
    """The name by which a recipe would call it."""
    home = function if hasattr(function, "__qualname__") else type(function)
    return f"{home.__module__}:{home.__qualname__}"


class _RecipeFiles(MetaPathFinder):
    """Makes files importable by name, so that Python's import lock guards them.

    If several threads import one file, the first runs it and the others wait; a file that raises leaves no module.
    """

    def __init__(self) -> None:
        self._files: dict[str, Path] = {}

    def name(self, file: Path) -> str:
        """The module name under which to import this file."""
        name = f"{PREFIX}{sha256(os.fsencode(file)).hexdigest()[:16]}"
        self._files[name] = file
        return name

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        file = self._files.get(fullname)
        return spec_from_file_location(fullname, file) if file is not None else None


_recipe_files = _RecipeFiles()
sys.meta_path.append(_recipe_files)


def _module_of_file(file: Path) -> Any:
    return import_module(_recipe_files.name(file.resolve()))
