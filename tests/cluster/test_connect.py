"""Clusters that can't be reached are errors with a remedy. No test here needs Ray."""

import socket
import sys

import pytest

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
        bound.listen()
        check_answers(address)
    said = str(raised.value)
    assert said.startswith(f"there is no cluster at '{address}': nothing answers at {node} (Connection refused); start")


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
