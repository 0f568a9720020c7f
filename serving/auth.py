"""Keys and tenants, read from a file."""

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cachegraph.errors import ConfigError

__all__ = ["Keys", "read_keys"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Keys:
    """The keys of a server. Stores and compares digests, so that timing reveals nothing."""

    tenants: Mapping[bytes, str] = field(repr=False)  # tenants by key digest

    def tenant_of(self, key: str) -> str | None:
        """Return the tenant of a key; None if unknown. Always compares all keys."""
        digest, found = _digest(key), None
        for known, tenant in self.tenants.items():
            if hmac.compare_digest(known, digest):
                found = tenant
        return found


def read_keys(path: Path) -> Keys:
    """Read a key file: one key per line, optionally after its tenant's name. Raises ConfigError.

    Keys with the same name belong to one tenant; each key without a name is a separate tenant.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"the key file {str(path)!r} can't be read: {why}") from error
    tenants: dict[bytes, str] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        *name, key = words
        if len(name) > 1 or not all(map(NAME.fullmatch, name)) or not (key.isascii() and key.isprintable()):
            raise ConfigError(f"line {number} of the key file {str(path)!r} is not a key; write 'KEY' or 'TENANT KEY'")
        digest = _digest(key)
        tenant = name[0] if name else f"key-{digest.hex()[:16]}"
        if tenants.setdefault(digest, tenant) != tenant:
            raise ConfigError(f"line {number} of the key file {str(path)!r} gives a key to a second tenant")
    if not tenants:
        raise ConfigError(f"the key file {str(path)!r} holds no key; write one a line, as `openssl rand -hex 32` makes")
    return Keys(tenants)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
