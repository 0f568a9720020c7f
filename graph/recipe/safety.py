"""Checks of addresses, keys and paths."""

import ipaddress
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import SplitResult, urlsplit

from cachegraph.agents.endpoint.request import RECIPE_FIELDS
from cachegraph.agents.endpoint_presets import KEY_HOSTS
from cachegraph.agents.http_client import ALLOW_LOCAL
from cachegraph.agents.kinds import KINDS
from cachegraph.channels.fusers.hub.hub_name import is_hub_fuser
from cachegraph.common.addresses import is_plain_loopback, known_addresses, place_of, port_is_reserved
from cachegraph.common.folder_escapes import why_outside

from .raw_spec import Finding, Permissions, RawSpec
from .yaml_positions import Path

__all__ = [
    *("check_address", "check_endpoints", "check_headers", "check_paths"),
    *("fuser_names", "is_loopback", "local_places", "looks_like_path"),
]

PATH = re.compile(r"^[./~\\]|^[A-Za-z]:[\\/]|[\\\0]|(^|/)\.\.(/|$)|\.gguf$")


# Keys that the client sets in a request, and fields that an agent sets for its turn.
OWN_HEADERS = {
    *("host", "content-length", "content-type", "content-encoding", "transfer-encoding", "connection", "keep-alive"),
    *("te", "trailer", "upgrade", "expect", "accept", "accept-encoding"),
}
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
HEADER_TEXT = re.compile(r"[!-~]([ -~]{0,1000}[!-~])?")
SECRET_HEADER = re.compile(r"authorization|cookie|api-?key|token|secret|password|credential|signature")


def looks_like_path(source: str) -> bool:
    """Whether a model or fuser name is a local path rather than a catalogue name or a hub id."""
    return PATH.search(source) is not None


def check_endpoints(draft: RawSpec, permissions: Permissions) -> Iterator[Finding]:
    """Check that keys go only to addresses to which the user would send them."""
    for name, entry in draft.models.items():
        if isinstance(entry, dict) and isinstance(entry.get("base_url"), str):
            path: Path = ("models", name)
            key = entry.get("api_key_env")
            yield from check_address(
                entry["base_url"], key if isinstance(key, str) else None, (*path, "base_url"), permissions
            )
            yield from _check_place(entry["base_url"], name, (*path, "base_url"), permissions)
            yield from check_headers(entry, path, permissions)
            yield from _check_body(_mapping(entry.get("extra_body")), (*path, "extra_body"))


def _check_body(extra: Mapping[str, Any], path: Path) -> Iterator[Finding]:
    """Check the extra request keys of a recipe: JSON values, and no key that a recipe field already sets."""
    for key, value in extra.items():
        if key in RECIPE_FIELDS:
            yield _doubled(key, RECIPE_FIELDS[key], (*path, key))
        elif not _is_json(value):
            yield Finding(f"{key!r} of a request holds a number or a key that JSON does not know", (*path, key))


def _doubled(key: str, field: str | None, path: Path) -> Finding:
    if field is None:
        return Finding(f"{key!r} of a request is not extra: cachegraph sets it", path, "remove it", at_key=True)
    whose = "of the model" if field == "model" else "of its agents"
    message = f"{key!r} of a request is not extra: {field!r} {whose} sets it"
    return Finding(message, path, f"remove it here, and write it as {field!r}", at_key=True)


def _check_place(address: str, name: str, path: Path, permissions: Permissions) -> Iterator[Finding]:
    """Check that a model's endpoint is on the public internet, or plainly a web service on this machine."""
    url = _split(address)
    if permissions.reaches_local or url is None:
        return
    host = url.hostname or ""
    if is_plain_loopback(host) and not port_is_reserved(url.port):
        return
    for place in local_places(host):
        message = f"the endpoint of model {name!r} is at {place}: {host!r}" + (f", port {url.port}" if url.port else "")
        yield Finding(message, path, ALLOW_LOCAL)
        return


def local_places(host: str) -> list[str]:
    """Describe the local addresses that a host is known to have, without a DNS query."""
    return [place for address in known_addresses(host) if (place := place_of(address)) is not None]


def check_headers(entry: Mapping[str, Any], path: Path, permissions: Permissions) -> Iterator[Finding]:
    """Check endpoint headers: none reserved by HTTP, no secret in the recipe, keys only to permitted addresses."""
    seen: set[str] = set()
    for name, value in _mapping(entry.get("headers")).items():
        place: Path = (*path, "headers", name)
        lower = str(name).lower()
        if lower in seen:
            yield Finding(
                f"the header {name!r} is given twice: case makes no difference", place, "keep one", at_key=True
            )
        seen.add(lower)
        if not HEADER_NAME.fullmatch(str(name)):
            hint = "use letters, digits and '-'"
            yield Finding(f"{str(name)[:100]!r} can't name an HTTP header", place, hint, at_key=True)
        elif isinstance(value, str) and not HEADER_TEXT.fullmatch(value):
            yield Finding(f"the header {name!r} must be one line of printable ASCII", place)
        elif lower in OWN_HEADERS or lower.startswith("proxy-"):
            message = f"the header {name!r} belongs to the connection"
            yield Finding(message, place, "remove it", at_key=True)
        elif lower == "authorization" and entry.get("api_key_env") is not None:
            message = "'api_key_env' is sent as the header 'Authorization', which is given too"
            yield Finding(message, place, "leave one of them out", at_key=True)
        elif isinstance(value, str) and SECRET_HEADER.search(lower):
            hint = "name the variable that holds it: {env: CACHEGRAPH_...}"
            yield Finding(f"the header {name!r} holds a secret, which stands in no recipe", place, hint)
        variable, url = _mapping(value).get("env"), _split(entry["base_url"])
        if isinstance(variable, str) and url is not None:
            yield from _check_key(variable, url, (*path, "base_url"), (*place, "env"), permissions)


def check_address(address: str, key: str | None, path: Path, permissions: Permissions) -> Iterator[Finding]:
    """Check a web address at `path` to which the key in this environment variable is sent."""
    url = _split(address)
    name = str(path[-1])
    if url is None:
        yield Finding(f"{name} {address!r} is not a plain web address", path, "write it as 'https://host/...'")
        return
    if url.username is not None or url.password is not None:
        hint = "name the variable that holds the key in 'api_key_env'"
        yield Finding(f"{name} holds a user name or password", path, hint)
    if key is not None:
        yield from _check_key(key, url, path, (*path[:-1], "api_key_env"), permissions)


def _check_key(
    key: str, url: SplitResult, address_path: Path, key_path: Path, permissions: Permissions
) -> Iterator[Finding]:
    """Check an environment variable whose value is sent to an address."""
    if key in permissions.allow_env or key.startswith("CACHEGRAPH_"):
        pass
    elif key not in KEY_HOSTS:
        hint = f"use a name that starts with CACHEGRAPH_, or allow this one with --allow-env {key}"
        yield Finding(f"a recipe has no business with the environment variable {key!r}", key_path, hint)
    elif (url.scheme, url.hostname, url.port or 443) != ("https", KEY_HOSTS[key], 443):
        message = f"{key!r} goes to https://{KEY_HOSTS[key]} only, not to {url.hostname!r}"
        hint = f"use a name that starts with CACHEGRAPH_, or allow it with --allow-env {key}"
        yield Finding(message, key_path, hint)
    if url.scheme == "http" and not is_loopback(url.hostname or ""):
        message = f"{key!r} would travel unencrypted to {url.hostname!r}"
        yield Finding(message, address_path, "use https, or an address of this machine")


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


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


def check_paths(draft: RawSpec, permissions: Permissions) -> Iterator[Finding]:
    """Check that files named by a recipe lie in its folder after resolving links."""
    if permissions.allow_paths:
        return
    folder = permissions.folder.resolve()
    # Resolve hub ids too: a link of that name in the recipe's folder would turn one into a path.
    wrong = lru_cache(maxsize=None)(lambda place: why_outside(folder, place))
    for path, place in _places(draft):
        if (reason := wrong(place)) is not None:
            hint = "move it there, or allow it with --allow-paths"
            yield Finding(f"the path {place!r} {reason}", path, hint)


def _places(draft: RawSpec) -> Iterator[tuple[Path, str]]:
    """Yield every value that may be a path."""
    for name, entry in draft.models.items():
        if isinstance(entry, str):
            yield ("models", name), entry
        for key in ("source", "chat_template"):
            if isinstance(entry, dict) and isinstance(entry.get(key), str):
                yield ("models", name, key), entry[key]
    for name, body in draft.agents.items():
        for kind in KINDS.values():
            for key, path in kind.paths_in(body, draft.models):
                yield ("agents", name, key), path
    for place, fuser in fuser_names(draft):
        if not is_hub_fuser(fuser):
            yield place, fuser


def fuser_names(draft: RawSpec) -> Iterator[tuple[Path, str]]:
    """Yield every fuser that the recipe names, on an edge or as a default."""
    yield from ((("fusers", index), fuser) for index, fuser in draft.fusers)
    for edge in draft.edges:
        yield from ((("edges", edge.index, *below), fuser) for below, fuser in edge.fusers)
