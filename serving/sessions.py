"""Names of sessions: each tenant has its own, whatever it calls them."""

import hashlib

__all__ = ["session_of"]


def session_of(tenant: str | None, name: str | None) -> str | None:
    """What the session of this name is called on disk: without tenants by its name, as on the command line."""
    if name is None or tenant is None:
        return name
    return f"tenant-{hashlib.sha256(repr((tenant, name)).encode()).hexdigest()[:40]}"
