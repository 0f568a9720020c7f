"""Session names per tenant."""

import hashlib

__all__ = ["RESPONSES", "session_of"]

RESPONSES = "response-"  # prefix of the sessions of responses


def session_of(tenant: str | None, name: str | None) -> str | None:
    """Return a session's name on disk; without tenants its plain name, as on the command line."""
    if name is None or tenant is None:
        return name
    kind = RESPONSES if name.startswith(f"{RESPONSES}resp_") else "tenant-"
    return f"{kind}{hashlib.sha256(repr((tenant, name)).encode()).hexdigest()[:40]}"
