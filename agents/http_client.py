"""HTTP clients for a recipe's endpoints and tool servers, which connect only to checked addresses.

A name is resolved once, its addresses are checked, and the connection uses one of those, so a second DNS answer changes
nothing. Behind the user's own proxy (HTTP_PROXY and similar) the proxy connects; there the name is checked as far as
this machine can resolve it.
"""

import ipaddress
import socket
from functools import cache
from ssl import SSLContext
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import anyio

from cachegraph.common.addresses import is_plain_loopback, known_addresses, place_of
from cachegraph.errors import ConfigError

if TYPE_CHECKING:
    import httpx2

__all__ = ["ALLOW_LOCAL", "http_client", "ssl_context"]

ALLOW_LOCAL = "if you trust this recipe, allow it with --allow-local, or allow_local=True in Python"


def http_client(url: str, allow_local: bool, **options: Any) -> "httpx2.AsyncClient":
    """Create a client for this address. `allow_local` permits this machine and its networks, under any name."""
    import httpx2

    verify = ssl_context()
    if allow_local:
        return httpx2.AsyncClient(verify=verify, **options)
    proxy = _proxy_for(url)
    inner = httpx2.AsyncHTTPTransport(verify=verify, proxy=proxy)
    return httpx2.AsyncClient(transport=_judging(inner, pinned=proxy is None), **options)


@cache
def ssl_context() -> SSLContext:
    import httpx2

    return httpx2.create_ssl_context()


def _judging(inner: "httpx2.AsyncBaseTransport", pinned: bool) -> "httpx2.AsyncBaseTransport":
    import httpx2

    class Judging(httpx2.AsyncBaseTransport):
        """Sends a request to a checked address of its host."""

        async def handle_async_request(self, request: "httpx2.Request") -> "httpx2.Response":
            host, port = request.url.host, request.url.port
            found = await _addresses(host, port, must_resolve=pinned)
            if not pinned:
                return await inner.handle_async_request(request)
            request.extensions = {**request.extensions, "sni_hostname": host}
            for number, address in enumerate(found):
                request.url = request.url.copy_with(host=address)
                try:
                    return await inner.handle_async_request(request)
                except (httpx2.ConnectError, httpx2.ConnectTimeout):
                    if number + 1 == len(found):
                        raise
            raise httpx2.ConnectError(f"{host!r} has no address", request=request)

        async def aclose(self) -> None:
            await inner.aclose()

    return Judging()


async def _addresses(host: str, port: int | None, must_resolve: bool) -> list[str]:
    """Resolve a host and check each address. Raises ConfigError if one is not on the open internet."""
    import httpx2

    try:
        answers = await anyio.getaddrinfo(host, port or 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        if must_resolve:
            raise httpx2.ConnectError(f"{host!r} can't be resolved: {error}") from error
        return []
    numbers = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
    for number in numbers:
        place = place_of(ipaddress.ip_address(number.partition("%")[0]))
        if place is not None and not (is_plain_loopback(host) and place == "this machine"):
            raise ConfigError(f"{host!r} leads to {number}, which is {place}; {ALLOW_LOCAL}")
    return numbers


def _proxy_for(url: str) -> str | None:
    """The user's proxy for an address; None without one or for local addresses."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or known_addresses(host) or proxy_bypass(f"{host}:{parts.port}" if parts.port else host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
