"""Hosts that lead to this machine or its networks, judged by address.

`127.1`, `2130706433`, `0x7f.1`, `[::ffff:127.0.0.1]`, `localhost.` and the machine's own name are all this machine.
"""

import ipaddress
import os
import re
import socket
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

__all__ = ["Address", "is_plain_loopback", "known_addresses", "place_of", "port_is_reserved"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

HOSTS = Path(os.environ.get("SYSTEMROOT", "C:/Windows"), "System32/drivers/etc/hosts") if os.name == "nt" else None
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_PLAIN = re.compile(r"127(\.(0|[1-9]\d{0,2})){3}")
_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")


def place_of(address: Address) -> str | None:
    """Describe an address outside the public internet; None for a public one."""
    if isinstance(address, ipaddress.IPv6Address) and (inner := _embedded(address)) is not None:
        return place_of(inner)
    if address.is_loopback or address.is_unspecified:
        return "this machine"
    if address.is_link_local:
        return "the link-local network, where clouds keep their metadata"
    if address.is_multicast:
        return "a multicast group"
    if not address.is_global:
        return "a private network" if address.is_private else "a reserved network"
    if isinstance(address, ipaddress.IPv6Address) and address.is_site_local:
        return "a private network"
    return None


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address embedded in an IPv6 address."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64 or (int(address) >> 32 == 0 and int(address) > 0xFFFF):  # ::a.b.c.d
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def known_addresses(host: str) -> list[Address]:
    """Return the addresses of a host that are known without DNS: numeric ones, and names of this machine."""
    name = unquote(host).strip("[]").rstrip(".").lower()
    literal = _literal(name)
    if literal is not None:
        return [literal]
    if name in _NAMES or name.endswith(".localhost") or name == _own_name() or name == _own_name().split(".")[0]:
        return [ipaddress.IPv4Address("127.0.0.1"), *_hosts_file().get(name, ())]
    return list(_hosts_file().get(name, ()))


def _literal(name: str) -> Address | None:
    try:
        return ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        pass
    try:  # 127.1, 2130706433, 0x7f.1, 0177.0.0.1, as the C library reads them
        return ipaddress.IPv4Address(socket.inet_aton(name)) if name and name[0].isdigit() else None
    except (OSError, ValueError):
        return None


def _own_name() -> str:
    return socket.gethostname().rstrip(".").lower()


@lru_cache(maxsize=1)
def _hosts_file() -> dict[str, list[Address]]:
    """Return the names in this machine's hosts file with their addresses."""
    found: dict[str, list[Address]] = {}
    try:
        lines = (HOSTS or Path("/etc/hosts")).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        number, *names = line.partition("#")[0].split() or [""]
        address = _literal(number)
        for name in names if address is not None else ():
            found.setdefault(name.rstrip(".").lower(), []).append(address)  # type: ignore[arg-type]
    return found


def is_plain_loopback(host: str) -> bool:
    """Whether a host is this machine in a plain spelling that a reader of the recipe recognizes."""
    return host.lower() in ("localhost", "::1") or _PLAIN.fullmatch(host) is not None


def port_is_reserved(port: int | None) -> bool:
    """Whether a port may belong to a system service other than the web. (Nothing listens at port 1.)"""
    return port is not None and 1 < port < 1024 and port not in (80, 443)
