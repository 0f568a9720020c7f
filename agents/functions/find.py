"""From what a recipe calls a function to the function, and back."""

import sys
from collections.abc import Callable
from hashlib import sha256
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from cachegraph.errors import ConfigError

__all__ = ["Function", "find_function", "name_of"]

Function = Callable[..., Any]


def find_function(path: str, agent: str, folder: Path) -> Function:
    """The function that a recipe names: `package.module:name`, or `file.py:name` of its folder. Runs that module.

    Raises ConfigError.
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
    except Exception as error:  # the module's own code
        raise ConfigError(
            f"the function {path!r} of agent {agent!r} can't be imported: {type(error).__name__} in {module}: {error}"
        ) from error
    if not callable(found):
        raise ConfigError(f"{path!r} of agent {agent!r} is no function, but {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def name_of(function: Function) -> str:
    """What a recipe would call it."""
    home = function if hasattr(function, "__qualname__") else type(function)
    return f"{home.__module__}:{home.__qualname__}"


def _module_of_file(file: Path) -> Any:
    name = f"cachegraph_recipe_{sha256(str(file.resolve()).encode()).hexdigest()[:16]}"
    if name not in sys.modules:
        spec = spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        sys.modules[name] = module  # annotations of its classes are looked up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
