"""Who asks: keys from a file, each of them a tenant's."""

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
    """The keys of a server. They are kept and compared as digests, so that the time it takes tells nothing."""

    tenants: Mapping[bytes, str] = field(repr=False)  # by the digest of a key, whose it is

    def tenant_of(self, key: str) -> str | None:
        """Whose key this is; None where it is nobody's. All keys are compared, whichever fits."""
        digest, found = _digest(key), None
        for known, tenant in self.tenants.items():
            if hmac.compare_digest(known, digest):
                found = tenant
        return found


def read_keys(path: Path) -> Keys:
    """The keys in a file: one a line, alone or behind the name of its tenant. Raises ConfigError.

    Keys with the same name are the same tenant's; a key without a name is a tenant of its own.
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
            raise ConfigError(f"line {number} of the key file {str(path)!r} is no key; write 'KEY' or 'TENANT KEY'")
        digest = _digest(key)
        tenant = name[0] if name else f"key-{digest.hex()[:16]}"
        if tenants.setdefault(digest, tenant) != tenant:
            raise ConfigError(f"line {number} of the key file {str(path)!r} gives a key to a second tenant")
    if not tenants:
        raise ConfigError(f"the key file {str(path)!r} holds no key; write one a line, as `openssl rand -hex 32` makes")
    return Keys(tenants)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
