"""Session names per tenant."""

import hashlib

__all__ = ["session_of"]


def session_of(tenant: str | None, name: str | None) -> str | None:
    """Return a session's name on disk; without tenants its plain name, as on the command line."""
    if name is None or tenant is None:
        return name
    return f"tenant-{hashlib.sha256(repr((tenant, name)).encode()).hexdigest()[:40]}"
