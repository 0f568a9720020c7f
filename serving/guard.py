"""Middleware that checks every request: its host, its origin, and its key if keys are configured.

Adds headers to every response that stop browsers from interpreting it.
"""

import ipaddress
import logging
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .config import ServerConfig
from .connection import ClientGone
from .errors import ApiError
from .metrics import Metrics
from .reports.folder import VIEW
from .studio.page import is_page

__all__ = ["Guard"]

OPEN = ("/health", "/ready")  # reveal only whether the server works
ROUTES = {
    *("/v1/models", "/v1/chat", "/v1/messages", "/v1/responses", "/runs", "/graphs"),
    *("/health", "/ready", "/metrics", "/openapi.json", "/recipe.schema.json", "/", "/studio", "/reports"),
}
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}
log = logging.getLogger("cachegraph.serving")

Refuse = Callable[[str, Exception], Response]  # path, error


class Guard:
    """ASGI middleware around the whole server. `refuse` formats errors for a path's API."""

    def __init__(self, app: ASGIApp, config: ServerConfig, refuse: Refuse, metrics: Metrics):
        self._app, self._config, self._refuse, self._metrics = app, config, refuse, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._metrics.count("cachegraph_requests_total", path=_route(scope), status=str(message["status"]))
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, send_guarded)
        except ClientGone:
            pass
        except Exception as error:  # a boundary: logs unexpected errors; the client gets a short response
            if not isinstance(error, ApiError):
                log.exception("%s %s failed", scope["method"], scope["path"])
            if not started:
                await self._refuse(scope["path"], error)(scope, receive, send_guarded)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        _check_host(headers.getlist("host"), self._config.hosts)
        if not _opens_the_page(scope, headers):
            _check_origin(headers)
        if self._config.keys is not None and not _is_open(scope["path"]):
            scope["cachegraph.tenant"] = self._tenant(headers)

    def _tenant(self, headers: Headers) -> str:
        assert self._config.keys is not None
        kind, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        tenant = self._config.keys.tenant_of(key) if key else None
        if tenant is None:
            words = "the API key is not one of this server's" if key else "this server needs an API key"
            raise ApiError(
                401,
                f"{words}; send it as `Authorization: Bearer KEY`, or as `x-api-key`",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return tenant


def _route(scope: Scope) -> str:
    """Return the path without ids, to bound the number of metric labels."""
    first = scope["path"].strip("/").split("/")
    known = "/" + "/".join(first[:2] if first[0] == "v1" else first[:1])
    return known if known in ROUTES else "other"


def _check_host(hosts: list[str], known: Iterable[str]) -> None:
    """Reject unknown host names, against DNS rebinding. IP addresses can't be rebound."""
    if len(hosts) != 1 or not _is_ours(hosts[0], known):
        shown = hosts[0][:200] if hosts else ""
        words = f"this server does not answer to the host {shown!r}; start it with --allow-host to have it do so"
        raise ApiError(421, words, "unknown_host")


def _is_open(path: str) -> bool:
    """Whether a path needs no key: it holds no data, or its ticket is the key."""
    return path in OPEN or is_page(path) or path.startswith(VIEW)


def _opens_the_page(scope: Scope, headers: Headers) -> bool:
    """Whether somebody follows a link to the page, which may stand on another site. The page itself holds no data."""
    opens = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return opens and scope["method"] == "GET" and scope["path"] == "/" and "origin" not in headers


def _check_origin(headers: Headers) -> None:
    """Reject requests from pages of other sites, even if those pages couldn't read the responses."""
    origin = headers.get("origin")
    if origin is not None:
        scheme, _, host = origin.partition("://")
        if scheme not in ("http", "https") or host.lower() != headers["host"].lower():
            raise ApiError(403, "pages of other origins may not use this server", "foreign_origin")
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise ApiError(403, "pages of other sites may not use this server", "foreign_origin")


def _is_ours(host: str, known: Iterable[str]) -> bool:
    try:
        parts = urlsplit(f"//{host}")
        name, _ = parts.hostname or "", parts.port
    except ValueError:
        return False
    if parts.netloc != host or "@" in host:
        return False
    name = name.rstrip(".")
    if name == "localhost" or name.endswith(".localhost") or name in {alias.lower() for alias in known}:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
