"""What a stranger's recipe may not do: send secrets of this machine away, or read files outside its own folder."""

import ipaddress
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path as FilePath
from urllib.parse import SplitResult, urlsplit

from cachegraph.channels.fusers.name import is_hub_fuser

from .draft import Draft, Finding, Permissions
from .marks import Path

__all__ = ["check_address", "check_endpoints", "check_paths", "is_loopback", "looks_like_path"]

PATH = re.compile(r"^[./~\\]|^[A-Za-z]:[\\/]|[\\\0]|(^|/)\.\.(/|$)|\.gguf$")


def looks_like_path(source: str) -> bool:
    """Whether a model or fuser names a place on this machine rather than a catalogue name or a hub id."""
    return PATH.search(source) is not None


def check_endpoints(draft: Draft, permissions: Permissions) -> Iterator[Finding]:
    """Where keys go: only to where the user would send them."""
    for name, entry in draft.models.items():
        if isinstance(entry, dict) and isinstance(entry.get("base_url"), str):
            path: Path = ("models", name)
            key = entry.get("api_key_env")
            yield from check_address(
                entry["base_url"], key if isinstance(key, str) else None, (*path, "base_url"), permissions
            )


def check_address(address: str, key: str | None, path: Path, permissions: Permissions) -> Iterator[Finding]:
    """A web address at `path`, to which the key in this environment variable is sent."""
    url = _split(address)
    name = str(path[-1])
    if url is None:
        yield Finding(f"{name} {address!r} is no plain web address", path, "write it as 'https://host/...'")
        return
    if url.username is not None or url.password is not None:
        hint = "name the variable that holds the key in 'api_key_env'"
        yield Finding(f"{name} holds a user name or password", path, hint)
    if key is None:
        return
    if key in permissions.allow_env or key.startswith("CACHEGRAPH_"):
        pass
    elif key != "OPENAI_API_KEY":
        hint = f"use a name that starts with CACHEGRAPH_, or allow this one with --allow-env {key}"
        yield Finding(
            f"a recipe has no business with the environment variable {key!r}", (*path[:-1], "api_key_env"), hint
        )
    elif (url.scheme, url.hostname, url.port or 443) != ("https", "api.openai.com", 443):
        message = f"'OPENAI_API_KEY' goes to https://api.openai.com only, not to {url.hostname!r}"
        hint = "use a name that starts with CACHEGRAPH_, or allow it with --allow-env OPENAI_API_KEY"
        yield Finding(message, (*path[:-1], "api_key_env"), hint)
    if url.scheme == "http" and not is_loopback(url.hostname or ""):
        message = f"{key!r} would travel unencrypted to {url.hostname!r}"
        yield Finding(message, path, "use https, or an address of this machine")


def _split(base_url: str) -> SplitResult | None:
    if not base_url.isascii() or not base_url.isprintable() or re.search(r"[\s\\]", base_url):
        return None
    try:
        url = urlsplit(base_url)
        well_formed = url.scheme in ("http", "https") and url.hostname and (url.port or 1) > 0
    except ValueError:
        return None
    return url if well_formed else None


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_paths(draft: Draft, permissions: Permissions) -> Iterator[Finding]:
    """Files that a recipe names must lie in its folder, whatever links lead there."""
    if permissions.allow_paths:
        return
    folder = permissions.folder.resolve()
    # A hub id is no path, but a link of its name in the recipe's folder would make it one: all are resolved.
    inside = lru_cache(maxsize=None)(lambda place: _inside(folder, place))
    for path, place in _places(draft):
        if not inside(place):
            hint = "move it there, or allow it with --allow-paths"
            yield Finding(f"the path {place!r} leads out of the recipe's folder", path, hint)


def _places(draft: Draft) -> Iterator[tuple[Path, str]]:
    """Every value that may be a path."""
    for name, entry in draft.models.items():
        if isinstance(entry, str):
            yield ("models", name), entry
        for key in ("source", "chat_template"):
            if isinstance(entry, dict) and isinstance(entry.get(key), str):
                yield ("models", name, key), entry[key]
    for name, body in draft.agents.items():
        model = body.get("model")
        if isinstance(model, str) and model not in draft.models:
            yield ("agents", name, "model"), model
        if isinstance(graph := body.get("graph"), str):
            yield ("agents", name, "graph"), graph
        function = body.get("function")
        if isinstance(function, str) and (file := function.rpartition(":")[0]).endswith(".py"):
            yield ("agents", name, "function"), file
    for edge in draft.edges:
        for below, fuser in edge.fusers:
            if not is_hub_fuser(fuser):
                yield ("edges", edge.index, *below), fuser


def _inside(folder: FilePath, place: str) -> bool:
    if place.startswith("~") or "\\" in place or re.match(r"[A-Za-z]:", place):
        return False
    try:
        return (folder / place).resolve().is_relative_to(folder)
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name that is too long, a NUL
        return False
