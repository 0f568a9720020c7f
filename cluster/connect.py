"""Start Ray on this machine, or join a cluster."""

import logging
import os
import warnings
from typing import TYPE_CHECKING, Any

from cachegraph.errors import ConfigError

from .address import check_answers, check_form, is_client, why_not

if TYPE_CHECKING:
    from .cluster import Cluster
    from .head import Head

__all__ = ["NO_RAY", "connect"]

NO_RAY = "runs on a cluster need Ray; install it: pip install 'cachegraph[ray]'"


def connect(address: str, *, cpus: int | None = None, object_store_bytes: int | None = None) -> "Cluster":
    """Connect to `local` (start Ray here), `auto` (the cluster of this machine) or `ray://HOST:PORT` (from elsewhere).

    `cpus` and `object_store_bytes` are for `local`. A connection that this process already has is used as it is.
    Raises InputError for another address, ConfigError if Ray is not installed or there is no such cluster.
    """
    check_form(address)
    try:
        import ray
    except ImportError as error:
        raise ConfigError(NO_RAY) from error
    from .cluster import Cluster

    is_from_outside = is_client(os.environ.get("RAY_ADDRESS", "") if address == "auto" else address)
    if ray.is_initialized():
        return Cluster(address, _head(address, own=False), own=False)
    options: dict[str, Any] = {"address": address, "log_to_driver": False}
    if address == "local":
        own = {"num_cpus": cpus, "object_store_memory": object_store_bytes, "include_dashboard": False}
        options |= {name: value for name, value in own.items() if value is not None}
    else:
        check_answers(address)
    if is_from_outside:
        logging.getLogger("ray.client_builder").setLevel(logging.ERROR)
        logging.getLogger("ray.util.client.logsclient").addHandler(logging.NullHandler())  # the log of the other end
    else:
        options["logging_level"] = logging.ERROR
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the error says it
            ray.init(**options)
    except Exception as error:  # a boundary: Ray raises RuntimeError, ConnectionError, TimeoutError, ValueError, ...
        raise ConfigError(why_not(address, str(error))) from error
    return Cluster(address, _head(address, own=True), own=True)


def _head(address: str, own: bool) -> "Head":
    """The head of the connection that this process has."""
    import ray

    from .head import watch_head

    if not ray.util.client.ray.is_connected():
        return watch_head(ray.get_runtime_context().gcs_address, own)
    return watch_head(os.environ.get("RAY_ADDRESS", "") if address == "auto" else address, own)
