"""Clusters that can't be reached are errors with a remedy. No test here needs Ray."""

import socket
import sys
from threading import Thread

import pytest

import cachegraph.cluster.address
from cachegraph import Graph
from cachegraph.cluster.address import check_answers, why_not
from cachegraph.cluster.connect import connect
from cachegraph.errors import ConfigError, InputError


@pytest.mark.parametrize("address", ["locl", "10.0.0.1:6379", "ray:/head:10001", "RAY://head:10001", ""])
def test_an_unknown_kind_of_address_names_the_known_ones(address: str) -> None:
    with pytest.raises(InputError, match=f"there is no cluster '{address}'; give 'local', 'auto' or 'ray://HOST:PORT'"):
        connect(address)


@pytest.mark.parametrize("address", ["ray://", "ray://head", "ray://head:x", "ray://head:0", "ray://:10001", "ray://["])
def test_a_clients_address_without_host_and_port_shows_one_that_has_both(address: str) -> None:
    with pytest.raises(InputError, match=r"has no host and port; give one such as ray://head:10001"):
        connect(address)


@pytest.mark.parametrize("kind", ["ray://", "auto"])
def test_an_address_where_nothing_listens_is_refused_at_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        end = f"127.0.0.1:{bound.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", end)
        address, node = ("auto", end) if kind == "auto" else (kind + end, kind + end)
        with pytest.raises(ConfigError) as raised:
            check_answers(address)
    said = str(raised.value)
    assert said.startswith(f"there is no cluster at '{address}': nothing answers at {node} (Connection refused); start")


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (bytes([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 255, 255]), None),
        (None, "nothing answers at {} (timed out); start"),
        (b"HTTP/1.1 400 Bad Request", "what answers at {} is not Ray; start"),
        (b"", "what answers at {} is not Ray; start"),
    ],
    ids=["ray", "stopped", "web", "closes"],
)
def test_a_head_that_accepts_connections_must_answer_as_ray_does(
    says: bytes | None, why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cachegraph.cluster.address, "ANSWER_SECONDS", 0.2 if says is None else 60)
    held: list[socket.socket] = []  # a stopped process keeps its connections open

    def serve(listening: socket.socket) -> None:
        held.append(listening.accept()[0])
        if says is not None:
            held[0].recv(9)
            held[0].sendall(says)
            held[0].shutdown(socket.SHUT_WR)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        node = f"ray://127.0.0.1:{listening.getsockname()[1]}"
        thread = Thread(target=serve, args=[listening])
        thread.start()
        if why is None:
            check_answers(node)
        else:
            with pytest.raises(ConfigError) as raised:
                check_answers(node)
            assert str(raised.value).startswith(f"there is no cluster at '{node}': {why.format(node)}")
        thread.join()
    held[0].close()


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    graph = Graph(output="a")
    graph.add_agent("a", model="m", prompt="hello")
    with pytest.raises(ConfigError, match=r"pip install 'cachegraph\[ray\]'"):
        graph.run(cluster="local")


def test_a_cluster_that_is_not_there_says_how_to_start_one() -> None:
    said = why_not("auto", "Could not find any running Ray instance")
    assert said == (
        "there is no cluster at 'auto': Could not find any running Ray instance; start one with `ray start --head`, or "
        "use 'local'; if it is there and asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to what `ray "
        "get-auth-token` prints on its head"
    )


def test_other_versions_on_the_cluster_are_named() -> None:
    words = "Version mismatch: The cluster was started with:\n    Ray: 2.60.0\n    Python: 3.12.1\nThis process: 3.11.7"
    assert why_not("auto", words) == (
        "this process and the cluster 'auto' have different versions: Version mismatch: The cluster was started with: "
        "Ray: 2.60.0 Python: 3.12.1 This process: 3.11.7; install the same on both"
    )


def test_the_reason_of_a_servers_traceback_is_its_last_line() -> None:
    traceback = 'Traceback (most recent call last):\n  File "proxier.py", line 772\n    raise RuntimeError(\n'
    said = why_not("ray://head:10001", f"Failure from server:\n{traceback}RuntimeError: Starting the server failed\n")
    assert said.startswith("there is no cluster at 'ray://head:10001': RuntimeError: Starting the server failed; start")
