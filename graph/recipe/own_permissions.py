"""Permissions of a graph built in Python."""

from .raw_spec import Permissions
from .spec import GraphSpec

__all__ = ["own_permissions"]


def own_permissions(spec: GraphSpec) -> Permissions:
    """Allow the caller's own code to name any environment variable and any file."""
    parts = (*spec.models.values(), *spec.tools.values())
    variables = [getattr(part, "api_key_env", None) for part in parts]
    variables += [getattr(value, "env", None) for part in parts for value in getattr(part, "headers", {}).values()]
    return Permissions(allow_env=frozenset(name for name in variables if name), allow_paths=True, allow_code=True)
