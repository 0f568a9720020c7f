"""Start Ray on this machine, or join a cluster."""

import logging
from typing import TYPE_CHECKING, Any

from cachegraph.errors import ConfigError, InputError

if TYPE_CHECKING:
    from .cluster import Cluster

__all__ = ["NO_RAY", "connect", "why_not"]

NO_RAY = "runs on a cluster need Ray; install it: pip install 'cachegraph[ray]'"


def connect(address: str, *, cpus: int | None = None, object_store_bytes: int | None = None) -> "Cluster":
    """Connect to `local` (start Ray here) or `auto` (the cluster of this machine).

    `cpus` and `object_store_bytes` are for `local`. A connection that this process already has is used as it is.
    Raises InputError for another address, ConfigError if Ray is not installed or there is no such cluster.
    """
    if address.startswith("ray://"):
        raise InputError(
            f"a run can't reach its cluster through a Ray client ({address!r}) yet; start it on a node of the cluster, "
            "for example with `ray job submit`, and give 'auto'"
        )
    if address not in ("auto", "local"):
        raise InputError(f"there is no cluster {address!r}; give 'local' or 'auto'")
    try:
        import ray
    except ImportError as error:
        raise ConfigError(NO_RAY) from error
    from .cluster import Cluster

    if ray.is_initialized():
        return Cluster(address, own=False)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        own = {"num_cpus": cpus, "object_store_memory": object_store_bytes, "include_dashboard": False}
        options |= {"address": "local", **{name: value for name, value in own.items() if value is not None}}
    else:
        options["address"] = address
    try:
        ray.init(**options)
    except Exception as error:  # a boundary: Ray raises RuntimeError, ConnectionError, TimeoutError, ValueError, ...
        raise ConfigError(why_not(address, str(error))) from error
    return Cluster(address, own=True)


def why_not(address: str, reason: str) -> str:
    """Why there is no connection, in one sentence; `reason` is what Ray says."""
    words = " ".join(reason.split())
    if "ersion mismatch" in words:
        return f"this process and the cluster {address!r} have different versions: {words}; install the same on both"
    first = words.split(". ")[0].rstrip(".")[:300]
    if address == "local":
        return f"Ray can't be started on this machine: {first}"
    return (
        f"there is no cluster at {address!r}: {first}; start one with `ray start --head`, or use 'local', and see that "
        "this process has the cluster's token (`ray get-auth-token`)"
    )
