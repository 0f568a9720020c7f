"""A port for a server that another process opens, or opens again."""

import os
import socket

__all__ = ["lasting_port"]


def lasting_port() -> int:
    """A free port below those that the system gives to clients, so that nobody gets it before the server opens it."""
    for port in range(20_000 + os.getpid() % 9_000, 30_000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")
