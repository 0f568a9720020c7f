"""Connections that never send a whole request, that are too many, or that declare too much."""

import socket
from contextlib import ExitStack

import pytest
from live_server import Running, served, wait_until
from server_graphs import scripted_duo

from cachegraph.serving.http_protocol import BoundedProtocol

HEAD = b"POST /runs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def connect(server: Running) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.settimeout(60)
    return connection


def answer(connection: socket.socket) -> bytes:
    """One answer whose body is a JSON object."""
    found = b""
    while not found.endswith(b"}") and (piece := connection.recv(65536)):
        found += piece
    return found


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    found = b""
    try:
        while piece := connection.recv(65536):
            found += piece
    except ConnectionResetError:
        pass
    return found


def test_connections_that_send_no_whole_request_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with served([scripted_duo()]) as server, ExitStack() as stack:
        again = stack.enter_context(connect(server))
        again.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert answer(again).startswith(b"HTTP/1.1 200")
        monkeypatch.setattr(BoundedProtocol, "header_seconds", 0.2)
        again.sendall(b"GET /hea")  # on a connection that is kept alive
        silent, slow = (stack.enter_context(connect(server)) for _ in range(2))
        slow.sendall(HEAD)
        assert [rest(each) for each in (silent, slow, again)] == [b"", b"", b""]


def test_a_connection_that_sends_on_after_its_answer_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with served([scripted_duo()]) as server, connect(server) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n")
        assert answer(connection).startswith(b"HTTP/1.1 404")
        monkeypatch.setattr(BoundedProtocol, "header_seconds", 0.2)
        connection.sendall(b"x")
        rest(connection)


def test_connections_beyond_the_bound_are_closed_and_others_work_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with served([scripted_duo()]) as server, ExitStack() as stack:
        monkeypatch.setattr(BoundedProtocol, "most_connections", 3)
        connections = [stack.enter_context(connect(server)) for _ in range(9)]
        assert [rest(each) for each in connections[5:]] == [b""] * 4
        for each in connections:
            each.close()
        wait_until(lambda: answers(server))


def test_a_server_that_is_told_to_stop_waits_for_no_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachegraph.serving.process.TICK", 600)
    with served([scripted_duo()]) as server, connect(server):  # one connection is idle
        assert answers(server)


def answers(server: Running) -> bool:
    with connect(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        return rest(connection).startswith(b"HTTP/1.1 200")


def test_a_body_that_declares_too_much_is_refused_before_it_is_sent(scripted_server: Running) -> None:
    with connect(scripted_server) as connection:
        connection.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 99999999999\r\n\r\n")
        assert answer(connection).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("upgrade", ["websocket", "h2c"])
def test_a_request_for_another_protocol_gets_an_answer_of_this_one(scripted_server: Running, upgrade: str) -> None:
    headers = {"Connection": "Upgrade", "Upgrade": upgrade, "Sec-WebSocket-Key": "dGhlIHNhbXBsZQ=="}
    assert scripted_server.get("/runs", headers={**headers, "Host": "other.example"}).status_code == 421
    assert scripted_server.get("/health", headers=headers).status_code == 200
