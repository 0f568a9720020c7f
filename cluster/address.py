"""Where a cluster's address leads, and whether anything answers there. Ray itself waits for minutes."""

import os
import socket
from urllib.parse import urlsplit

from cachegraph.errors import ConfigError, InputError

__all__ = ["check_answers", "check_form", "is_client", "silence_of", "why_not"]

SECONDS = 5.0  # until a node must have accepted a connection
ANSWER_SECONDS = 20.0  # until its process must have answered: the system accepts connections for one that has stopped
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # a client's first bytes, no settings
NAMED = ("local", "auto")


def is_client(address: str) -> bool:
    """Whether this process would be a client of the cluster, which needs no Ray node on its machine."""
    return address.startswith("ray://")


def check_form(address: str) -> None:
    """Raises InputError unless this is an address that a run can have."""
    if address in NAMED:
        return
    if not is_client(address):
        raise InputError(f"there is no cluster {address!r}; give 'local', 'auto' or 'ray://HOST:PORT'")
    if _host_and_port(address) is None:
        raise InputError(f"the cluster's address {address!r} has no host and port; give one such as ray://head:10001")


def check_answers(address: str) -> None:
    """Raises ConfigError if no process of Ray answers where the address leads."""
    node = _node(address)
    reason = None if node is None else silence_of(node, SECONDS, ANSWER_SECONDS)
    if reason is not None:
        raise ConfigError(why_not(address, reason))


def silence_of(node: str, connect_seconds: float, answer_seconds: float) -> str | None:
    """Why no process of Ray answers at this node; None if one does, or if only Ray can read the node's form."""
    ends = _host_and_port(node)
    if ends is None:
        return None
    try:
        with socket.create_connection(ends, connect_seconds) as connection:
            answer = None if os.environ.get("RAY_USE_TLS") == "1" else _answer(connection, answer_seconds)
    except OSError as error:
        return f"nothing answers at {node} ({error.strerror or error})"
    if answer is not None and answer[3:4] != b"\x04":  # the settings with which every gRPC server begins
        return f"what answers at {node} is not Ray"
    return None


def _answer(connection: socket.socket, seconds: float) -> bytes:
    """The first bytes that a gRPC server says, as all of Ray's are. Raises TimeoutError if it has stopped."""
    connection.settimeout(seconds)
    connection.sendall(HTTP2)
    with connection.makefile("rb") as answer:
        return answer.read(9)


def why_not(address: str, reason: str) -> str:
    """Why there is no connection, in one sentence; `reason` is what Ray says."""
    raised = [line for line in reason.strip().splitlines() if line[:1] not in ("", " ")]  # of a traceback, the error
    words = " ".join((raised[-1] if "Traceback (most recent call last)" in reason and raised else reason).split())
    if "ersion mismatch" in words:
        return f"this process and the cluster {address!r} have different versions: {words}; install the same on both"
    first = words.split(". ")[0].rstrip(".")[:300]
    if address == "local":
        return f"Ray can't be started on this machine: {first}"
    return (
        f"there is no cluster at {address!r}: {first}; start one with `ray start --head`, or use 'local'; if it is "
        "there and asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to what `ray get-auth-token` prints on "
        "its head"
    )


def _node(address: str) -> str | None:
    """The node that `auto` means, as Ray looks for it, or the one that the address names."""
    if address != "auto":
        return address
    if given := os.environ.get("RAY_ADDRESS"):
        return None if given == "auto" else given
    try:
        from ray._private.services import get_ray_address_from_environment
    except ImportError:  # another version of Ray; its own error comes later, and in more words
        return None
    try:
        found: str | None = get_ray_address_from_environment("auto", None)
    except ConnectionError as error:
        raise ConfigError(why_not(address, str(error))) from error
    return found


def _host_and_port(node: str) -> tuple[str, int] | None:
    try:
        parts = urlsplit(node if "://" in node else f"//{node}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    return None if not host or not port else (host, port)
