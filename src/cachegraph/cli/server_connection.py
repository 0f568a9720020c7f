"""HTTP to a server of cachegraph: requests with JSON, and server-sent events.

Uses Python's own client: a command's reply waits for this import, and `httpx2` takes four times as long.
"""

import json
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, NamedTuple
from urllib.parse import urlsplit

__all__ = ["ServerAnswer", "ServerConnection", "ServerConnectionError"]

SCHEMES: dict[str, type[HTTPConnection]] = {"http": HTTPConnection, "https": HTTPSConnection}


class ServerConnectionError(Exception):
    """Nothing answers there, or not in HTTP. The message is the reason."""


class ServerAnswer(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes

    def json(self) -> Any:
        """Parse the body. Raises ValueError."""
        return json.loads(self.body)


class ServerConnection:
    """One connection to a server, which is opened again after a break. Its methods raise ServerConnectionError."""

    def __init__(self, url: str, silence: float, key: str | None = None):
        """`silence`: seconds after which a server that sends nothing is given up."""
        try:
            parts = urlsplit(url)
            connection = SCHEMES.get(parts.scheme)
            if connection is None or not parts.hostname:
                raise ServerConnectionError("a server's address begins with http:// or https://")
            self._connection = connection(parts.hostname, parts.port, timeout=silence)
        except (ValueError, HTTPException) as error:
            raise ServerConnectionError(str(error)) from error
        self.url = url.rstrip("/")
        self._prefix = parts.path.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key is not None else {}

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> ServerAnswer:
        """Post a JSON object."""
        return _whole(self._request("POST", path, {}, json.dumps(body or {}).encode()))

    def get(self, path: str) -> ServerAnswer:
        """Get what is at a path."""
        return _whole(self._request("GET", path, {}))

    def events(self, path: str, last: str | None) -> "ServerAnswer | Iterator[tuple[str | None, dict[str, Any]]]":
        """Return the events after the one with id `last`, each with its id; or the answer, if the server refuses."""
        answer = self._request("GET", path, {"Last-Event-ID": last} if last else {})
        return _events(answer) if answer.status < 400 else _whole(answer)

    def close(self) -> None:
        """Close the connection. A later request opens another one."""
        self._connection.close()

    def _request(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None) -> HTTPResponse:
        kind = {"Content-Type": "application/json"} if body is not None else {}
        try:
            self._connection.request(method, self._prefix + path, body, {**self._headers, **kind, **headers})
            return self._connection.getresponse()
        except (OSError, HTTPException, ValueError) as error:
            raise _problem(error) from error


def _whole(answer: HTTPResponse) -> ServerAnswer:
    try:
        return ServerAnswer(answer.status, answer.read())
    except (OSError, HTTPException) as error:
        raise _problem(error) from error


def _events(answer: HTTPResponse) -> Iterator[tuple[str | None, dict[str, Any]]]:
    id: str | None = None
    try:
        for line in iter(answer.readline, b""):
            name, _, value = line.decode().rstrip("\r\n").partition(": ")
            if name == "id":
                id = value
            elif name == "data":
                yield id, json.loads(value)
    except (OSError, HTTPException, ValueError) as error:
        raise _problem(error) from error


def _problem(error: Exception) -> ServerConnectionError:
    return ServerConnectionError(getattr(error, "strerror", None) or str(error) or type(error).__name__)
