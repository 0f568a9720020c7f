"""Checks of functions, programs and tools."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from cachegraph.agents.http_client import ALLOW_LOCAL
from cachegraph.agents.kinds import KINDS
from cachegraph.common.did_you_mean import near_or_known

from .raw_spec import Finding, Permissions, RawSpec
from .safety import check_address, local_places
from .yaml_positions import Path

__all__ = ["check_code", "check_tools"]

ALLOW = "if you trust this recipe, allow it with --allow-code, or allow_code=True in Python"


def check_code(draft: RawSpec, permissions: Permissions) -> Iterator[Finding]:
    """Refuse code unless the caller allows it. A tool server on this machine also counts as code."""
    if permissions.allow_code:
        return
    for name, body in draft.agents.items():
        for key, code in filter(None, (kind.code_in(body) for kind in KINDS.values())):
            if name not in permissions.registered:
                yield Finding(f"agent {name!r} would run code: {code}", ("agents", name, key), ALLOW)
    for name, server in _servers(draft):
        if "command" in server:
            yield Finding(f"the tool server {name!r} would run a program", ("tools", name, "command"), ALLOW)
        elif isinstance(server.get("url"), str) and (places := local_places(_host(server["url"]))):
            path: Path = ("tools", name, "url")
            if "this machine" in places:
                yield Finding(f"the tool server {name!r} is one of this machine, and would act on it", path, ALLOW)
            elif not permissions.allow_local:
                yield Finding(f"the tool server {name!r} is at {places[0]}, and would act there", path, ALLOW_LOCAL)


def check_tools(draft: RawSpec, permissions: Permissions) -> Iterator[Finding]:
    """Check that keys may go to each tool server's address, and that every tool that agents name exists."""
    for name, server in _servers(draft):
        if isinstance(url := server.get("url"), str):
            key = server.get("api_key_env")
            variable = key if isinstance(key, str) else None
            yield from check_address(url, variable, ("tools", name, "url"), permissions)
    for name, body in draft.agents.items():
        wanted = body.get("tools")
        if not isinstance(wanted, list | tuple) or not wanted:
            continue
        for number, tool in enumerate(wanted):
            server_name = str(tool).partition(".")[0]
            if isinstance(tool, str) and server_name not in draft.tools:
                message = f"agent {name!r} has tools of {server_name!r}, which is not a key of 'tools'"
                yield Finding(message, ("agents", name, "tools", number), near_or_known(server_name, draft.tools))
        generate = body.get("generate")
        if isinstance(generate, dict) and generate.get("max_new_tokens") == 0:
            message = f"agent {name!r} writes nothing, so it can't call tools"
            yield Finding(message, ("agents", name, "tools"), "let it write, or give its tools to another", at_key=True)


def _servers(draft: RawSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name, server) for name, server in draft.tools.items() if isinstance(server, dict))


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
